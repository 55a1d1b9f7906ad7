"""A class-balanced store of exemplars on the shared buffer: which examples stand for a class, in which order, and how
they join training.

Rows lie class after class in the order of the classes, the most representative of a class first, so that a share is
lowered by cutting each class's tail. `sizes` are the rows of each class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.rehearsal import Rehearsal
from palimpsest.models.utils.snapshot import Distillation
from palimpsest.utils.args import add_rehearsal_args
from palimpsest.utils.buffer import Buffer
from palimpsest.utils.errors import UserError

CHUNK = 256  # images whose features are computed at a time


def share(buffer: Buffer, n_classes: int) -> int:
    """Exemplars of each class when the buffer is divided equally.

    Raises:
        UserError: more classes than slots.
    """
    if buffer.buffer_size < n_classes:
        raise UserError(
            f"--buffer_size {buffer.buffer_size} leaves no exemplar for each of {n_classes} classes: raise it"
        )
    return buffer.buffer_size // n_classes


@torch.no_grad()
def features_of(model: ContinualModel, images: Tensor) -> Tensor:
    """Features (N, d) of raw images (N, C, H, W) in eval mode, on the network's device; modes are left as they are."""
    net, normalize = model.net, model.normalization_transform
    training = [part for part in net.modules() if part.training]
    net.eval()
    features = torch.cat([net.features(normalize(part.to(model.device))).flatten(1) for part in images.split(CHUNK)])
    for part in training:
        part.training = True
    return features


def herding(features: Tensor, n: int) -> Tensor:
    """Rows whose running mean stays nearest to the mean of all (Rebuffi et al. 2017, algorithm 4).

        p_k = argmin_x || mu - (phi(x) + sum_{j<k} phi(p_j)) / k ||,  every row at most once

    Args:
        features: phi (N, d).
        n: rows wanted.

    Returns:
        (min(n, N),) int64, in the order chosen.
    """
    mean, norms = features.mean(0), features.square().sum(1)
    total, taken, chosen = torch.zeros_like(mean), torch.zeros_like(norms), []
    for k in range(1, min(n, len(features)) + 1):
        # k^2 ||mu - (phi + total) / k||^2 up to a constant
        best = (norms - 2 * features @ (k * mean - total) + taken).argmin().view(1)
        total = total + features[best].squeeze(0)
        taken = taken.index_fill(0, best, torch.inf)
        chosen.append(best)
    return torch.cat(chosen)


def refill(buffer: Buffer, sizes: list[int], n: int, new: list[dict[str, Tensor]]) -> list[int]:
    """Cut the stored classes to their first n rows and append new classes.

    Args:
        buffer: filled by this function alone.
        sizes: rows of each stored class.
        n: rows of each class from now on, see `share`.
        new: the fields of each new class, first rows first; those past the n-th are left out.

    Returns:
        The new sizes.
    """
    classes = [{name: rows.to(buffer.device) for name, rows in fields.items()} for fields in new]
    if sizes:
        stored = [rows.split(sizes) for rows in buffer.get_all_data()]
        classes = [dict(zip(buffer.fields, rows, strict=True)) for rows in zip(*stored, strict=True)] + classes
    rows = {name: torch.cat([fields[name][:n] for fields in classes]) for name in classes[0]}
    buffer.empty()
    buffer.add_data(**rows)
    return [len(fields["labels"][:n]) for fields in classes]


def class_means(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """Normalised means (C, d) of the normalised features (N, d) of each class; NaN for a class without any."""
    own = F.one_hot(labels, n_classes).to(features.dtype)
    means = F.normalize(own.T @ F.normalize(features))
    return means.masked_fill(own.sum(0).unsqueeze(1) == 0, torch.nan)


def nearest_mean_scores(features: Tensor, means: Tensor) -> Tensor:
    """Cosines (B, C) of features (B, d) with the class means (C, d), -inf for a class without one.

    Among vectors of length 1 the highest cosine is the smallest distance.
    """
    return (F.normalize(features) @ means.T).nan_to_num(nan=-torch.inf)


def random_rows(labels: Tensor, c: int, n: int) -> Tensor:
    """Positions of up to n of the labels that are c, drawn at random."""
    rows = (labels == c).nonzero().squeeze(1)
    return rows[torch.randperm(len(rows))[:n].to(rows.device)]


class RandomExemplars(Rehearsal):
    """A method whose buffer holds, when a task ends, an equal share for every class, drawn at random within a class.

    Attributes:
        sizes: exemplars of each class seen.
    """

    BUFFER_SHARES = "classes"

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.sizes: list[int] = []

    def end_task(self, dataset):
        data, n = dataset.task_data(self.current_task), share(self.buffer, self.n_seen_classes)
        rows = [random_rows(data.targets, c, n) for c in range(self.n_past_classes, self.n_seen_classes)]
        new = [{"examples": data.data[chosen], "labels": data.targets[chosen]} for chosen in rows]
        self.sizes = refill(self.buffer, self.sizes, n, new)


class Exemplars(Distillation, Rehearsal):
    """A method that trains on new data and exemplars together, taught by the network before the task: the epochs of a
    task go over the union of both.

    Attributes:
        sizes: exemplars of each class seen.
    """

    BUFFER_SHARES = "classes"

    @staticmethod
    def get_parser(parser):
        return add_rehearsal_args(parser, minibatch=False)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.sizes: list[int] = []

    def extra_examples(self):
        return self.buffer.get_all_data()[:2] if self.sizes else None

    def epoch_sizes(self, dataset, tasks):
        out, sizes = [], []
        for task in tasks:
            low, high = dataset.get_offsets(task)
            counts = torch.bincount(dataset.task_data(task).targets - low, minlength=high - low).tolist()
            out.append(self.union_size(counts, sizes))
            sizes = [min(size, share(self.buffer, high)) for size in (*sizes, *counts)]
        return out

    def union_size(self, counts: list[int], sizes: list[int]) -> int:
        """Examples of an epoch, given those of each class of the task and the exemplars of each class before."""
        return sum(counts) + sum(sizes)

    def end_task(self, dataset):
        """Refill the buffer with the herded exemplars of the task's classes: normalised features, no augmentation."""
        data, n, new = dataset.task_data(self.current_task), share(self.buffer, self.n_seen_classes), []
        for c in range(self.n_past_classes, self.n_seen_classes):
            own = data.data[data.targets == c]
            if len(own):
                own = own[herding(F.normalize(features_of(self, own)), n).to(own.device)]
            new.append({"examples": own, "labels": torch.full((len(own),), c)})
        self.sizes = refill(self.buffer, self.sizes, n, new)
