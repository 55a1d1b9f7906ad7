"""What methods share on streams whose tasks ask for different things: a branch, a loss and labels for each task."""

from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils.data import default_collate

from datasets.utils.boxes import parts
from datasets.utils.vision_losses import draw_labels, log_likelihood
from models.utils.batchnorm import batchnorm_mode
from models.utils.distillation import kd
from models.utils.fisher import fisher_diagonal
from utils.buffer import Buffer
from utils.errors import UserError

HELD_GRADIENTS = 2**26  # entries of per-example gradients in memory at a time


def give_heads(net: nn.Module, dataset) -> None:
    """Branches for the tasks of a stream.

    Raises:
        UserError: the network cannot have any.
    """
    if not hasattr(net, "set_tasks"):
        raise UserError(
            f"backbone '{net.NAME}' has one head, the tasks of {dataset.NAME} need one each: use --backbone multitask"
        )
    size, coarsest = dataset.SIZE[1], net.trunk.strides[-1]
    if size % coarsest or size < 2 * coarsest:
        raise UserError(
            f"--vision_size {size}: the trunk makes images {coarsest} times smaller: give a multiple of that, "
            f"{2 * coarsest} or more"
        )
    net.set_tasks({t.name: t.n_outputs for t in dataset.tasks}, boxes=any(t.kind == "boxes" for t in dataset.tasks))


def raw_images(part, rows: Iterable[int], device: torch.device) -> tuple[Tensor, Tensor | dict]:
    """Raw images (n, 3, H, W) uint8 and labels of examples of a task, without augmentation.

    Args:
        part: what a loader of the task shows as its `dataset`.
        rows: which of them.
    """
    raw, labels = default_collate([(raw, label) for _, label, raw in map(part.__getitem__, rows)])
    return raw.to(device), on_device(labels, device)


def plain_batches(dataset, task: int, n: int | None = None) -> Iterator[tuple[Tensor, Tensor | dict]]:
    """(inputs, labels) of `n` training images of a task, of all by default, without augmentation."""
    from datasets.utils.vision_data import equally_spaced  # brings torchvision, which other methods can do without

    data, device, size = dataset.task_data(task), dataset.train_device, dataset.get_batch_size()
    rows = equally_spaced(len(data), len(data) if n is None else n)
    for start in range(0, len(rows), size):
        inputs, labels = default_collate([data[i][:2] for i in rows[start : start + size]])
        yield inputs.to(device), on_device(labels, device)


def on_device(labels: Tensor | dict[str, Tensor], device: torch.device) -> Tensor | dict[str, Tensor]:
    """Labels, a tensor or a dict of them, moved."""
    return {k: v.to(device) for k, v in labels.items()} if isinstance(labels, dict) else labels.to(device)


def task_fisher(net: nn.Module, dataset, task: int, kind: str = "mc", n: int | None = None) -> Tensor:
    """Diagonal of the Fisher information (P,) of a task's branch, over `plain_batches` of `n` images.

    Args:
        kind: 'mc' or 'empirical', see `fisher_diagonal`.
    """
    name, size = dataset.tasks[task].name, sum(p.numel() for p in net.parameters())
    net.select(name)
    likelihood = partial(draw_labels, name), partial(log_likelihood, name)
    chunk = max(1, min(64, HELD_GRADIENTS // size))
    return fisher_diagonal(net, plain_batches(dataset, task, n), kind, chunk=chunk, likelihood=likelihood)


def distillation(outputs: Tensor, taught: Tensor, task: str, tau: float, direction: str = "teacher") -> Tensor:
    """tau^2 * KL between what a branch says and what a teacher's said (0-d), mean over images and pixels.

    Categorical over the classes of an image or a pixel; where classes (or the one channel of a mask) are independent,
    each of them is a distribution over yes and no. The classes that an image shows are one answer: theirs add up.
    """
    if task == "det" and outputs.dim() == 3:
        return _distilled_boxes(outputs, taught, tau, direction)
    if task == "det" or outputs.shape[1] == 1:
        outputs, taught = (torch.stack((z, torch.zeros_like(z)), -1) for z in (outputs, taught))
    elif task == "seg":
        outputs, taught = outputs.movedim(1, -1), taught.movedim(1, -1)
    each = kd(outputs, taught, tau, direction)
    return each.sum(1).mean() if task == "det" else each.mean()


def _distilled_boxes(outputs: Tensor, taught: Tensor, tau: float, direction: str) -> Tensor:
    """Classes as those of an image, at each location; sides by their squared difference, where the teacher sees any."""
    logits, sides, *_ = parts(outputs)
    old, old_sides, *_ = parts(taught)
    seen = old.sigmoid().amax(-1)
    moved = ((sides - old_sides).square().mean(-1) * seen).sum() / seen.sum()
    return distillation(logits.flatten(0, 1), old.flatten(0, 1), "det", tau, direction) + moved


def distilled(
    net: nn.Module, teacher: nn.Module, inputs: Tensor, names: list[str], tau: float, direction="teacher"
) -> Tensor:
    """Sum over the branches `names` of `distillation` from a frozen copy of the network, on images of another task;
    both with running statistics, since those images are not what the branch's batches were made of.
    """
    with batchnorm_mode(net, False), batchnorm_mode(teacher, False):
        with torch.no_grad():
            taught = [teacher(inputs, name) for name in names]
        return sum(distillation(net(inputs, n), t, n, tau, direction) for n, t in zip(names, taught, strict=True))


class TaskReservoirs(nn.Module):
    """A reservoir for each task, since their labels have different shapes.

    Args:
        size: images kept, of all tasks together; each has an equal share, at least one.
        names: of the tasks.
    """

    def __init__(self, size: int, names: list[str], device: torch.device | str = "cpu"):
        super().__init__()
        self.parts = nn.ModuleDict({name: Buffer(max(size // len(names), 1), device) for name in names})

    def add(self, task, images: Tensor, labels: Tensor | dict[str, Tensor]) -> None:
        """Offer raw images (B, 3, H, W) uint8 of a task of the stream, with the labels that belong to them."""
        fields = labels if isinstance(labels, dict) else {"labels": labels}
        self.parts[task.name].add_data(examples=images, **fields)

    def draw(self, tasks: list, size: int, transform) -> Iterator[tuple]:
        """(task, inputs, labels) of up to `size` images of each of `tasks` that has any."""
        for task in tasks:
            part = self.parts[task.name]
            if not part.is_empty():
                inputs, *rest = part.get_data(size, transform=transform)
                yield task, inputs, dict(zip(part.fields[1:], rest, strict=True)) if task.kind == "boxes" else rest[0]


def presence(task, labels: Tensor | dict[str, Tensor]) -> Tensor:
    """(N, C) bool: which classes an image shows, by its labels."""
    if task.kind == "boxes":
        classes = labels["classes"]
        return torch.stack([(classes == c).any(1) for c in range(task.n_outputs)], 1)
    if task.name == "det":
        return labels > 0
    n = max(task.n_outputs, 2)
    return (
        torch.stack([(labels == c).flatten(1).any(1) for c in range(n)], 1)
        if labels.dim() > 1
        else one_hot(labels, n) > 0
    )


def covering(shown: Tensor, n: int) -> list[int]:
    """Up to `n` rows of `shown` (N, C) bool, one by one that whose classes the chosen ones show least."""
    shown, counts, chosen = shown.double().cpu(), torch.zeros(shown.shape[1], dtype=torch.float64), []
    for _ in range(min(n, len(shown))):
        gain = (shown / (1 + counts)).sum(1)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
        counts += shown[chosen[-1]]
    return chosen
