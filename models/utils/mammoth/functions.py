"""Functions and losses that method files written for Mammoth import: settings, gradients, augmentations, losses."""

import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import transforms

from palimpsest.datasets.utils.transforms import crop_flip
from palimpsest.models.utils.mammoth.model import given
from palimpsest.models.utils.mammoth.stream import Stream, as_stored, fresh_network
from palimpsest.models.utils.projection import solve_dual
from palimpsest.utils.randomness import generator, seed_of

# ---- settings and the run


def get_device(*_, **__) -> torch.device:
    """The device of the run."""
    return given.device


def get_dataset(args: Any) -> Stream:
    """The stream of the run, always the same one."""
    return given.stream


def get_backbone(args: Any) -> nn.Module:
    """A fresh network of the run's kind."""
    return fresh_network(given.stream)


def base_path(*_) -> str:
    """Folder of the data."""
    return given.args.base_path


def warn_once(*words: Any) -> None:
    """Print words to stderr."""
    print(*words, file=sys.stderr)


def create_seeded_dataloader(args: Any, dataset: Any, **options) -> torch.utils.data.DataLoader:
    """A loader whose order is a function of the run's seed, in this process."""
    options = {"generator": generator(seed_of(args, "data"), "loader"), **options, "num_workers": 0}
    return torch.utils.data.DataLoader(dataset, **options)


def identity(value: Any) -> Any:
    return value


def decorator(*_, **__) -> Callable:
    """What registers a class by a name: here a file's name is the name."""
    return identity


def nothing(*_, **__) -> None:
    """For what only prints or logs, and for what the runner does, as setting seeds and learning rates."""


class ProgressBar:
    """A bar that is not shown: the runner has one."""

    __init__ = prog = update = close = nothing


def evaluate(model: nn.Module, dataset: Stream, last: bool = False, **_) -> tuple[list[float], list[float]]:
    """`Stream.evaluate`."""
    return dataset.evaluate(model, last=last)


def mask_classes(outputs: Tensor, dataset: Stream, k: int) -> None:
    """Set the logits of all classes but those of task k to -inf."""
    low, high = dataset.get_offsets(k)
    outputs[:, :low], outputs[:, high:] = -torch.inf, -torch.inf


@contextmanager
def bn_track_stats(module: nn.Module, condition: bool = True) -> Iterator[None]:
    """Inside, batch normalisation uses the batch's statistics and leaves the running ones; with `condition` True
    nothing changes.
    """
    changed = [] if condition else [m for m in module.modules() if getattr(m, "track_running_stats", False)]
    for layer in changed:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in changed:
            layer.track_running_stats = True


# ---- options


def add_experiment_args(parser: Any) -> None:
    """The runner has these options; one of them a file may take away again, see `entry`."""
    parser.add_argument("--batch_size", type=int)
    parser.takes_batch_size = True


def binary_to_boolean_type(value: Any) -> bool:
    """'1', 'true', 'yes' and their like, or '0', 'false', 'no'.

    Raises:
        ValueError: anything else.
    """
    yes = str(value).lower() in ("true", "1", "t", "y", "yes")
    if not yes and str(value).lower() not in ("false", "0", "f", "n", "no"):
        raise ValueError(f"'{value}' is neither 1 nor 0")
    return yes


def none_or_float(value: str) -> float | None:
    """A number, or None for 'None'."""
    return None if value == "None" else float(value)


def custom_str_underscore(value: str) -> str:
    """A name with '-' for '_'."""
    return str(value).replace("_", "-").strip()


def field_with_aliases(choices: dict[str, list[str]]) -> Callable[[Any], str]:
    """A converter: any alias -> its name."""

    def convert(value: Any) -> str:
        for name, aliases in choices.items():
            if str(value) in aliases:
                return name
        raise ValueError(f"'{value}' is none of {', '.join(choices)}")

    return convert


# ---- gradients as one vector: GEM and A-GEM


def store_grad(params: Callable[[], Iterable[nn.Parameter]], grads: Tensor, grad_dims: list[int]) -> None:
    """Copy the gradients of `params()` to `grads` (P,), zero where there is none."""
    for part, p in zip(grads.split([int(n) for n in grad_dims]), params(), strict=False):
        part.zero_() if p.grad is None else part.copy_(p.grad.detach().flatten())


def overwrite_grad(params: Callable[[], Iterable[nn.Parameter]], newgrad: Tensor, grad_dims: list[int]) -> None:
    """Copy a vector (P,) to the gradients that exist."""
    for part, p in zip(newgrad.split([int(n) for n in grad_dims]), params(), strict=False):
        if p.grad is not None:
            p.grad.copy_(part.view_as(p.grad))


def project(gxy: Tensor, ger: Tensor) -> Tensor:
    """`gxy` (P,) without its part along `ger` (P,): Chaudhry et al. 2019, equation 11."""
    return gxy - torch.dot(gxy, ger) / torch.dot(ger, ger) * ger


def project2cone2(gradient: Tensor, memories: Tensor, margin: float = 0.5, eps: float = 1e-3) -> None:
    """Overwrite `gradient` (P, 1) by the nearest one that agrees with the columns of `memories` (P, t): Lopez-Paz &
    Ranzato 2017, equations 8-11.
    """
    past, g = memories.detach().double(), gradient.detach().double().flatten()
    v = solve_dual((past.T @ past).cpu().numpy(), (past.T @ g).cpu().numpy(), margin or 0.0, eps, relative=False)
    gradient.copy_((g + past @ torch.from_numpy(v).to(past)).view_as(gradient))


def solve_qp(G: np.ndarray, a: np.ndarray, C: np.ndarray, b: np.ndarray, meq: int = 0) -> tuple:
    """min 1/2 x'Gx - a'x subject to C'x >= b, in the form of the package quadprog; the first entry is x.

    By the dual, a non-negative least-squares problem in the multipliers.

    Raises:
        NotImplementedError: equality constraints.
    """
    from scipy.optimize import nnls

    if meq:
        raise NotImplementedError("solve_qp without the package quadprog takes no equality constraints")
    root = np.linalg.cholesky(G)
    free = np.linalg.solve(root, a)
    # With u = L'x - L^-1 a: min ||u|| subject to M'u >= h (Lawson & Hanson 1974, LDP).
    M = np.linalg.solve(root, C)
    h = b - M.T @ free
    E, f = np.vstack((M, h)), np.zeros(len(M) + 1)
    f[-1] = 1
    r = E @ nnls(E, f)[0] - f
    return (np.linalg.solve(root.T, free - r[:-1] / r[-1]),)


# ---- images


def apply_transform(x: Tensor, transform: Callable[[Tensor], Tensor], autosqueeze: bool = False) -> Tensor:
    """A transform on a batch (B, C, H, W), or on one image."""
    return transform(x) if x.dim() != 3 or autosqueeze else transform(x.unsqueeze(0))


def rand_bbox(size: torch.Size, lam: float) -> tuple[int, int, int, int]:
    """A random box (x1, y1, x2, y2) that covers about 1 - lam of an image of `size` (B, C, W, H)."""
    sides = [int(n * np.sqrt(1 - lam)) for n in size[2:4]]
    centres = [np.random.randint(n) for n in size[2:4]]  # noqa: NPY002 - drawn as files of Mammoth draw
    low = [int(np.clip(c - s // 2, 0, n)) for c, s, n in zip(centres, sides, size[2:4], strict=True)]
    high = [int(np.clip(c + s // 2, 0, n)) for c, s, n in zip(centres, sides, size[2:4], strict=True)]
    return low[0], low[1], high[0], high[1]


def cutmix_data(x: Tensor, y: Tensor, alpha: float = 1.0, cutmix_prob: float = 0.5) -> tuple:
    """With a probability, paste a box of other images of the batch (Yun et al. 2019): (images, labels, labels of the
    pasted ones, share of the former).
    """
    if np.random.rand() > cutmix_prob:  # noqa: NPY002
        return x, y, y, 1.0
    other = torch.randperm(len(x), device="cpu").to(x.device)
    x1, y1, x2, y2 = rand_bbox(x.shape, np.random.beta(alpha, alpha))  # noqa: NPY002
    x = x.clone()
    x[:, :, x1:x2, y1:y2] = x[other][:, :, x1:x2, y1:y2]
    return x, y, y[other], 1 - (x2 - x1) * (y2 - y1) / (x.shape[-1] * x.shape[-2])


def normalize(x: Tensor, mean: Any, std: Any) -> Tensor:
    """(x - mean) / std per channel of (B, C, H, W); x itself where there is no mean."""
    return x if mean is None else transforms.functional.normalize(x, mean, std)


def random_flip(x: Tensor) -> Tensor:
    """Each image mirrored with probability one half."""
    return torch.where((torch.rand(len(x), 1, 1, 1) < 0.5).to(x.device), x.flip(3), x)


def random_grayscale(x: Tensor, prob: float = 0.2) -> Tensor:
    """Each image of three channels grey with a probability; of one channel as it is."""
    if x.shape[1] != 3:
        return x
    grey = (x * torch.tensor([0.299, 0.587, 0.114], device=x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    return torch.where((torch.rand(len(x), 1, 1, 1) < prob).to(x.device), grey.expand_as(x), x)


def random_crop(x: Tensor, padding: int) -> Tensor:
    """Each image (C, H, W) moved by up to `padding` pixels, zeros where nothing was."""
    top, left = torch.randint(0, 2 * padding + 1, (len(x), 2)).T.to(x.device)
    return crop_flip(x, top, left, torch.zeros_like(top), padding)


class soft_aug:
    """Crop, mirror, normalise."""

    def __init__(self, mean: Any, std: Any):
        self.mean, self.std = mean, std

    def __call__(self, x: Tensor) -> Tensor:
        return normalize(random_flip(random_crop(x, 4)), self.mean, self.std)


class strong_aug:
    """The augmentations of contrastive learning (Chen et al. 2020): mirror, resized crop, colours, grey, normalise.

    Args:
        size: side of the result, or (H, W).
        mean, std: per channel.
    """

    def __init__(self, size: int | tuple[int, ...], mean: Any, std: Any):
        self.size, self.mean, self.std = size if isinstance(size, int) else tuple(size)[-2:], mean, std

    def __call__(self, x: Tensor) -> Tensor:
        """Floats (B, C, H, W) in [0, 1]."""
        change = _strong(self.size)
        return normalize(random_grayscale(torch.stack([change(one) for one in random_flip(x)])), self.mean, self.std)


@functools.cache
def _strong(size: Any) -> Callable[[Tensor], Tensor]:
    colours = transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
    return transforms.Compose([transforms.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True), colours])


class ValidationDataset(torch.utils.data.Dataset):
    """Images in any form that `TaskRows.data` has, their labels, and a transform of one image (C, H, W)."""

    def __init__(self, data: Any, targets: Any, transform: Callable | None = None, target_transform=None):
        like = given.stream.own_loader(max(given.stream.c_task, 0)).dataset.first()[0]
        self.data, self.targets = as_stored(data, like), targets
        self.transform, self.target_transform = transform, target_transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        image, label = self.data[i], self.targets[i]
        image = self.transform(image) if self.transform else image
        return image, self.target_transform(label) if self.target_transform else label


# ---- losses


class SupConLoss(nn.Module):
    """Supervised contrastive loss (Khosla et al. 2020), each view of an image against all views of all images.

    Args:
        temperature, base_temperature: the loss is scaled by their quotient.
        contrast_mode: 'all'.
        reduction: 'mean' over the images, or 'sum'.
    """

    def __init__(self, temperature=0.07, contrast_mode="all", base_temperature=0.07, reduction="mean"):
        super().__init__()
        if contrast_mode != "all":
            raise NotImplementedError(f"SupConLoss(contrast_mode='{contrast_mode}'): only 'all' is here")
        self.temperature, self.scale, self.reduction = temperature, temperature / base_temperature, reduction

    def forward(self, features: Tensor, labels: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Features (B, views, ...) of length 1; the positives are those of one label (B,), or of `mask` (B, B), or the
        other views of the same image.
        """
        n, views = features.shape[:2]
        z = features.flatten(2).transpose(0, 1).flatten(0, 1)  # (views * B, d), view after view
        if labels is not None:
            mask = labels.view(-1, 1) == labels.view(1, -1)
        mask = torch.eye(n, device=z.device) if mask is None else mask
        others = 1 - torch.eye(len(z), device=z.device)
        positive = mask.to(z).repeat(views, views) * others
        logits = z @ z.T / self.temperature
        logits = logits - logits.max(1, keepdim=True).values.detach()
        log_p = logits - (logits.exp() * others).sum(1, keepdim=True).log()
        loss = -self.scale * (positive * log_p).sum(1) / positive.sum(1)
        loss = loss.view(views, n).mean(0)
        return loss.mean() if self.reduction == "mean" else loss.sum()


class SPKDLoss(nn.Module):
    """Similarity-preserving distillation (Tung & Mori 2019): squared distance of the row-normalised Gram matrices.

    Args:
        reduction: 'batchmean' divides by the squared batch size, 'none' gives the matrix.
    """

    def __init__(self, reduction: str):
        super().__init__()
        self.reduction = reduction

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Features (B, ...) of both."""
        grams = [F.normalize(x.flatten(1) @ x.flatten(1).T, dim=1) for x in (teacher, student)]
        squares = (grams[0] - grams[1]).square()
        return squares.sum() / len(squares) ** 2 if self.reduction == "batchmean" else squares
