"""Images of any size and kind as arrays of one size, decoded at once or while one trains."""

import functools
import hashlib
import io
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from palimpsest.datasets.utils.own.tree import Tree
from palimpsest.datasets.utils.streaming import Cache, Streamed
from palimpsest.utils.atomic import atomic_write
from palimpsest.utils.errors import UserError, one_line

GREY = {"1", "L", "LA", "La", "I", "F"}  # modes of Pillow; so are I;16 and its kin
CACHED_SECONDS = 3.0  # decoding that takes longer is kept on the disk
PROBED = 10  # images that are looked at for their colours
MEASURED = 10_000  # images that are read for the statistics of a stream that is not in memory


def decode(content: bytes, size: int, channels: int) -> np.ndarray:
    """One image file as (channels, size, size) uint8.

    Turned upright where a camera says how it was held; the first picture of several; transparent pixels on white; 16
    bits become 8. The shorter side is resized to `size` (bilinear, over all pixels of the source), then the centre is
    cut out.

    Raises:
        Exception: whatever Pillow raises of a file that is no image or damaged.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        image.draft(None, (2 * size, 2 * size))  # a JPEG much larger than that is decoded at a smaller scale
        return pixels_of(image, size, channels)


def pixels_of(image: Any, size: int, channels: int) -> np.ndarray:
    """A PIL image as `decode` returns it."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        if deep.min() < 0 or deep.max() > 65535:
            raise ValueError("32 bits a pixel, expected 8 or 16")
        image = Image.fromarray((deep >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("pixels are fractions, expected 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB" if channels == 3 else "L")
    short = min(image.size)
    if short != size:
        image = image.resize([max(size, round(side * size / short)) for side in image.size], Image.BILINEAR)
    left, top = ((side - size) // 2 for side in image.size)
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return pixels.reshape(size, size, channels).transpose(2, 0, 1)


def count_channels(tree: Tree, names: Sequence[str]) -> int:
    """1 where all of some image files are grey, else 3."""
    from PIL import Image

    for name in names:
        with readable(tree, name), Image.open(io.BytesIO(tree.read(name))) as image:
            if image.mode not in GREY and not image.mode.startswith("I;"):
                return 3
    return 1


@contextmanager
def readable(tree: Tree, name: str) -> Iterator[None]:
    """Turns whatever reading an image raises into one line that names the file."""
    try:
        yield
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as e:
        said = f"{type(e).__name__}: {one_line(e)[:200]}"
        raise UserError(f"{tree.path}/{name}: cannot be read as an image ({said}): replace or remove it") from e


class ImageFiles:
    """Image files that become (N, channels, size, size) uint8 when they are asked for.

    Args:
        tree: where they lie.
        names: in order.
        size, channels: see `decode`.
    """

    def __init__(self, tree: Tree, names: Sequence[str], size: int, channels: int):
        self.tree, self.names, self.size, self.channels = tree, list(names), size, channels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, rows: Tensor | slice) -> "ImageFiles":
        """A selection, by a mask (N,), by numbers or by a slice."""
        numbers = torch.arange(len(self))[rows].tolist()
        return ImageFiles(self.tree, [self.names[i] for i in numbers], self.size, self.channels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return self.channels, self.size, self.size

    @property
    def nbytes(self) -> int:
        """Of all of them, decoded."""
        return len(self) * self.channels * self.size**2

    @functools.cached_property
    def key(self) -> str:
        """BLAKE2b of what decides the pixels: names, sizes, checksums or times of the files, and how they are decoded;
        32 hexadecimal digits.
        """
        import PIL

        facts = [PIL.__version__, self.size, self.channels, [(name, self.tree.stamps[name]) for name in self.names]]
        return hashlib.blake2b(repr(facts).encode(errors="surrogateescape"), digest_size=16).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ImageFiles) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def image(self, row: int) -> Tensor:
        """One of them; raises UserError, naming the file, where it cannot be read."""
        name = self.names[row]
        with readable(self.tree, name):
            return torch.from_numpy(decode(self.tree.read(name), self.size, self.channels).copy())

    def decoded(self) -> Tensor:
        """All of them. Decoding releases the GIL, so threads help."""
        pixels = torch.empty((len(self), *self.shape), dtype=torch.uint8)

        def fill(row: int) -> None:
            pixels[row] = self.image(row)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(fill, range(len(self))):
                pass  # raises what decoding raised
        return pixels


@functools.lru_cache(maxsize=2)
def load_images(files: ImageFiles, base: Path) -> Tensor:
    """All images, from the disk where they were decoded before; do not change them.

    What takes long to decode is kept in `base`, under a name that is a checksum of all that it depends on, with a
    checksum of its content; one that does not fit is made anew.
    """
    kept = base / "own_images" / f"{files.key}.bin"
    if kept.is_file() and (pixels := _read_kept(kept, files)) is not None:
        return pixels
    before = time.perf_counter()
    pixels = files.decoded()
    if time.perf_counter() - before > CACHED_SECONDS:
        with suppress(OSError, UserError):  # without it the next run decodes once more
            kept.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(kept) as file:
                file.write(_digest(pixels.numpy()))
                file.write(memoryview(pixels.numpy()))
    return pixels


def _digest(content) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _read_kept(path: Path, files: ImageFiles) -> Tensor | None:
    """The images of a file that `load_images` wrote, None if it is not whole."""
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except OSError:
        return None
    body = content[16:]
    if len(body) != files.nbytes or _digest(body) != content[:16].tobytes():
        return None
    return torch.from_numpy(body).view(len(files), *files.shape)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every channel of images (N, C, H, W) uint8, in [0, 1]: of all pixels, exactly.

    A channel of one value has deviation 1 / 255, so that it can be divided by.
    """
    counts = torch.stack([torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])])
    values = torch.arange(256, dtype=torch.float64) / 255
    share = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
    mean = share @ values
    variance = (share * (values - mean.unsqueeze(1)).square()).sum(1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp(min=1 / 255).tolist())


class StreamedImages(Streamed):
    """Images with labels that are decoded while one trains; the first ones that fit stay in memory.

    Args:
        images: the files.
        targets: (N,) int64.
        capacity: decoded images kept.
        num_workers: processes that decode.
    """

    def __init__(self, images: ImageFiles, targets: Tensor, capacity: int, num_workers: int):
        super().__init__(num_workers)
        self.images, self.targets = images, targets
        self.cache = Cache(images.shape, min(capacity, len(images)))

    def __len__(self) -> int:
        return len(self.images)

    def example(self, row: int, epoch: int | str | None = None) -> tuple[Tensor, Tensor]:
        return self.cache.get(row, lambda: self.images.image(row)), self.targets[row]

    def targets_of(self, rows: Tensor) -> Tensor:
        return self.targets[rows]
