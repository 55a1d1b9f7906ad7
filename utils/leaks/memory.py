"""Images in what a method remembers: in a method without a replay buffer any, in every method those of the test."""

import collections
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.utils.buffer import Buffer
from palimpsest.utils.leaks.kinds import KEPT
from palimpsest.utils.leaks.reads import TESTED, TRAINED, Reads

MOST = 4096  # rows of one tensor that are compared
NEAR = 0.25  # how far from whole numbers bytes may be: half precision leaves 0.1
FEW = 10  # tensors of an image's shape that may be something else: a mean, a mask, learned prototypes
STREAMS = "palimpsest.datasets."
PLAIN = (list, tuple, set, frozenset, dict, collections.deque)
SKIPPED = ("dataset", "loss", "transform", "normalization_transform", "_origin", "_modules")


class Known:
    """Images of a stream by a 64-bit number of their bytes, computed when something is first compared with them.

    Args:
        size: shape of an example.
        normalize: raw images -> network inputs.
        parts: name of a part -> () -> its raw images (n, C, H, W) uint8, task by task.
    """

    def __init__(self, size: tuple[int, ...], normalize: Any, parts: dict[str, Callable[[], Iterable[Tensor]]]):
        self.size, self.normalize, self.parts = tuple(size), normalize, parts
        self.numel = int(np.prod(self.size))
        self.factors = torch.randint(1 << 62, (self.numel,), generator=torch.Generator().manual_seed(0)) | 1
        self.tables: dict[str, Tensor] = {}
        self._shift: tuple[Tensor, Tensor] | None = None

    def numbers(self, raw: Tensor) -> Tensor:
        """(n,) int64 of raw images (n, ...) uint8; those of one colour are left out."""
        raw = raw.cpu().reshape(len(raw), -1)
        raw = raw[raw.amin(1) < raw.amax(1)]
        parts = [(part.long() * self.factors).sum(1) for part in raw.split(MOST)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)

    def table(self, part: str) -> Tensor:
        """The numbers of a part."""
        if part not in self.tables:
            numbers = [self.numbers(raw) for raw in self.parts[part]()]
            self.tables[part] = torch.cat(numbers) if numbers else torch.zeros(0, dtype=torch.int64)
        return self.tables[part]

    def among(self, part: str, rows: Tensor) -> Tensor:
        """The numbers of those of some rows that are images of a part."""
        numbers = self.numbers(rows)
        return numbers[torch.isin(numbers, self.table(part))] if len(numbers) else numbers

    def as_raw(self, rows: Tensor) -> Tensor | None:
        """Rows of an example's shape, or flat, as raw bytes; None where they are no such rows. Floats are taken for
        network inputs, for images in [0, 1], or for those of another linear scale that has its ends among the rows.
        """
        shaped = rows.dim() > len(self.size) and tuple(rows.shape[-len(self.size) :]) == self.size
        flat = rows.dim() > 1 and self.numel <= rows.shape[-1] < 2 * self.numel  # a label may stand beside an image
        if not (shaped or flat) or not (rows.dtype == torch.uint8 or rows.is_floating_point()):
            return None
        rows = rows[..., : self.numel] if flat and not shaped else rows
        rows = rows.detach().reshape(-1, *self.size)[:MOST].cpu()
        if rows.dtype == torch.uint8:
            return rows
        return self._bytes(rows.float())

    def ends(self) -> tuple[Tensor, Tensor]:
        """Network input of a black image, and how far that of a white one is from it; both of an example's shape."""
        if self._shift is None:
            black, white = (torch.full((1, *self.size), value, dtype=torch.uint8) for value in (0, 255))
            low, high = (self.normalize(image).float().cpu()[0] for image in (black, white))
            self._shift = low, high - low
        return self._shift

    def _bytes(self, rows: Tensor) -> Tensor | None:
        """Bytes of network inputs: the inverse of the stream's normalisation, which is linear in each channel."""
        low, width = self.ends()
        least = rows.amin()
        for image in ((rows - low) / width, rows, (rows - least) / (rows.amax() - least)):
            steps = image * 255
            if steps.amin() > -0.5 and steps.amax() < 255.5 and (steps - steps.round()).abs().amax() < NEAR:
                return steps.round().byte()
        return None


def held_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all that a method and its file hold, besides what the runner gave it."""
    seen = {id(part) for part in model.modules()}
    for place, part in model.named_modules():
        tables = {name for name in ("_parameters", "_buffers") if name in vars(part)}
        for name, value in vars(part).items():
            if name in tables:
                for key, tensor in value.items():
                    yield from _within(tensor, f"{place}.{key}".lstrip("."), seen)
            elif name not in SKIPPED:
                yield from _within(value, f"{place}.{name}".lstrip("."), seen)
    file = vars(sys.modules[type(model).__module__])
    for owner, held in (("global", file), ("class attribute", vars(type(model)))):
        for name, value in held.items():
            if isinstance(value, (*PLAIN, Tensor, np.ndarray)) and not name.startswith("__"):
                yield from _within(value, f"{owner} {name}", seen)


def _within(value: Any, name: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    if value is None or isinstance(value, str | int | float | bool | type) or depth > 6:
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if not value.is_meta and value.layout is torch.strided:
            yield name, value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "uif":
            yield name, torch.from_numpy(np.ascontiguousarray(value))
    elif isinstance(value, bytes | bytearray):
        yield name, torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.empty(0)
    elif isinstance(value, dict):
        yield from _listed(value.values(), name, seen, depth)
    elif isinstance(value, PLAIN):
        yield from _listed(value, name, seen, depth)
    elif not isinstance(value, types.ModuleType | types.FunctionType) and hasattr(value, "__dict__"):
        if isinstance(vars(value).get("reads"), Reads) or type(value).__module__.startswith(STREAMS):
            return  # the stream itself, or a part of it, which a method may know
        for inner, part in vars(value).items():
            yield from _within(part, f"{name}.{inner}", seen, depth + 1)


def _listed(values: Any, name: str, seen: set[int], depth: int) -> Iterator[tuple[str, Tensor]]:
    """Single images in a list are looked at together."""
    values = list(values)
    alike: dict[tuple, list[Tensor]] = {}
    for value in values:
        if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
            alike.setdefault((tuple(value.shape), value.dtype, value.device), []).append(value)
    for group in alike.values():
        yield name, group[0].unsqueeze(0) if len(group) == 1 else torch.stack(group)
    for value in values:
        if not isinstance(value, Tensor):
            yield from _within(value, name, seen, depth + 1)


def kept_images(model: nn.Module, known: Known) -> dict[str, list[str]]:
    """What a method keeps of images: {KEPT: sentences}, empty where there is nothing to say."""
    has_buffer, found = any(isinstance(part, Buffer) for part in model.modules()), []
    weights = {tuple(p.shape) for p in model.parameters()}
    remembers = has_buffer or getattr(model.args, "buffer_size", None) or getattr(model, "KEEPS_IMAGES", False)
    for name, tensor in held_tensors(model):
        if not tensor.dim() or not tensor.numel():
            continue
        if tensor.dim() == 1 and tensor.dtype == torch.uint8 and not len(tensor) % known.numel:
            tensor = tensor.view(-1, known.numel)  # bytes, as of a pickled image
        raw = known.as_raw(tensor) if tensor.dim() > 1 else None
        tested = known.among(TESTED, raw) if raw is not None else ()
        # Some data sets have an image in both parts.
        if len(tested) and (n := int((~torch.isin(tested, known.table(TRAINED))).sum())):
            found.append(f"'{name}' holds {n} test image(s)")
        elif raw is not None and not remembers and (n := len(known.among(TRAINED, raw))):
            found.append(f"'{name}' holds {n} training image(s), and the method has no replay buffer")
        elif not remembers and _image_shaped(tensor, known.size) and tuple(tensor.shape) not in weights:
            n = tensor.numel() // known.numel
            if n >= FEW and not tensor.requires_grad:
                found.append(f"'{name}' holds {n} tensors of an image's shape, and the method has no replay buffer")
    return {KEPT: found} if found else {}


def _image_shaped(tensor: Tensor, size: tuple[int, ...]) -> bool:
    return len(size) == 3 and tensor.dim() > 3 and tuple(tensor.shape[-3:]) == size
