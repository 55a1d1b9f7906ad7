"""The vision stream piece by piece, for a training loop of one's own: seeds, official files as PyTorch data sets, the
network of three branches, EWC, and the learner that puts them together. docs/vision.md has an example.
"""

import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from palimpsest.backbone.multitask import BalancedMultiTaskModel
from palimpsest.backbone.utils.base import Backbone
from palimpsest.datasets.utils.continual_dataset import STATISTICS
from palimpsest.datasets.utils.transforms import Normalize
from palimpsest.datasets.utils.vision.data import VisionData
from palimpsest.datasets.utils.vision.formats import coco, folders, voc
from palimpsest.datasets.utils.vision.kinds import DETECTION, SEGMENTATION, ImageClassTask, VisionTask
from palimpsest.models.balanced_ewc import normalised
from palimpsest.models.utils.fisher import fisher_diagonal
from palimpsest.models.utils.quadratic import Quadratic, step_sizes
from palimpsest.utils.errors import UserError
from palimpsest.utils.randomness import seed_all
from palimpsest.utils.run.balanced_learner import BalancedContinualLearner

__all__ = [
    "BalancedContinualLearner", "BalancedMultiTaskModel", "COCODataset", "EnhancedEWC", "ImageNetDataset",
    "VOCSegmentationDataset", "create_data_loaders", "set_random_seed",
]  # fmt: skip


def set_random_seed(seed: int = 42) -> None:
    """Seed Python, numpy and torch on every device, and ask torch for deterministic kernels (a warning where it has
    none): the same program gives the same numbers again on the same machine.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    seed_all(seed)


class OfficialImages(Dataset):
    """One part of a task as (image, label): images (3, S, S) float, normalised by ImageNet's mean and deviation.

    Args:
        base_path: folder that holds the files in their official layout, see `datasets.utils.vision.formats`.
        split: 'train', or 'val' for the official validation part.
        size: side S of the images.
        subset: images in all, four fifths of them for training; 0 for all there are.
        seed: decides which, and the augmentation.
        augment: shift and mirror images and labels together; anew after each `set_epoch`.

    Attributes:
        task: has `loss(outputs, labels)`, `score()`, `class_names`, `n_outputs`; see `datasets.utils.vision.kinds`.

    Raises:
        UserError: files that are missing, damaged or contradict one another.
    """

    def __init__(self, base_path, split: str, size: int, subset: int, seed: int, augment: bool, read, name, kind):
        if split not in ("train", "val"):
            raise UserError(f"split is {split!r}: expected 'train' or 'val'")
        examples = read(str(base_path), subset, seed)[split == "val"]
        self.task: VisionTask = kind(name, examples.class_names)
        boxes = max((len(target.classes) for target in examples.targets), default=0) if name == "det" else 0
        self._data = VisionData(examples, self.task, size, augment, max_boxes=boxes, seed=seed)
        self._epoch, self._normalize = 0 if augment else None, Normalize(*STATISTICS["imagenet"])

    def set_epoch(self, epoch: int) -> None:
        """Augment from now on as in this epoch."""
        if self._epoch is not None:
            self._epoch = epoch

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, row: int) -> tuple[Tensor, Any]:
        image, label = self._data.example(range(len(self))[row], self._epoch)
        return self._normalize(image.unsqueeze(0)).squeeze(0), label


class VOCSegmentationDataset(OfficialImages):
    """PASCAL VOC 2012, see `OfficialImages`: labels are masks (S, S) int64, 255 where nothing is scored.

    Args:
        classes: 'binary', objects are 1 and the background 0; or 'semantic', the numbers of their classes.
    """

    def __init__(self, base_path, split="train", size=224, subset=300, seed=42, augment=False, classes="binary"):
        kind = SEGMENTATION[_choice("classes", classes, SEGMENTATION)]
        super().__init__(base_path, split, size, subset, seed, augment, voc, "seg", kind)


class COCODataset(OfficialImages):
    """COCO 2017, see `OfficialImages`: labels say which of the classes (C,), 80 in the official files, are there.

    Args:
        detection: 'multilabel', or 'boxes': labels are dicts of padded 'boxes' (K, 4) in pixels of the S, 'classes'
            (K,), -1 for padding, and 'crowd' (K,).
    """

    def __init__(self, base_path, split="train", size=224, subset=300, seed=42, augment=False, detection="multilabel"):
        kind = DETECTION[_choice("detection", detection, DETECTION)]
        super().__init__(base_path, split, size, subset, seed, augment, coco, "det", kind)


class ImageNetDataset(OfficialImages):
    """Imagenette or ImageNet, a folder per class, see `OfficialImages`: labels are class numbers () int64."""

    def __init__(self, base_path, split="train", size=224, subset=300, seed=42, augment=False):
        super().__init__(base_path, split, size, subset, seed, augment, folders, "cls", ImageClassTask)


def create_data_loaders(
    base_path,
    batch_size: int = 16,
    size: int = 224,
    subset: int = 300,
    seed: int = 42,
    num_workers: int = 0,
    augment: bool = False,
) -> dict[str, tuple[DataLoader, DataLoader]]:
    """'seg', 'det' and 'cls', in the order in which they are learned -> (training, validation) loader.

    Args:
        base_path, size, subset, seed, augment: see `OfficialImages`; validation images are never augmented.
        batch_size: images per batch; training batches are shuffled by the seed.
        num_workers: processes that read images.

    Raises:
        UserError: as the data sets.
    """
    out = {}
    for name, kind in {"seg": VOCSegmentationDataset, "det": COCODataset, "cls": ImageNetDataset}.items():
        train = kind(base_path, "train", size, subset, seed, augment)
        order = torch.Generator().manual_seed(seed)
        out[name] = (
            DataLoader(train, batch_size, shuffle=True, generator=order, num_workers=num_workers),
            DataLoader(kind(base_path, "val", size, subset, seed), batch_size, num_workers=num_workers),
        )
    return out


class EnhancedEWC(nn.Module):
    """The penalty of `models.balanced_ewc` for a loop of one's own.

        lambda/2 sum_k sum_i (F~_ki + drift) (theta_i - theta*_ki)^2,  F~_k = F_k / mean(F_k) over the shared parameters

    `consolidate` after each task; then in every step of later tasks either `(loss + ewc.penalty()).backward()`, or,
    which no lambda makes diverge, `ewc.step(optimizer)` after `optimizer.step()`.

    Args:
        model: a network of `backbone`; of a `BalancedMultiTaskModel` the parameters that its tasks share are held.
        strength: lambda. Under Adam a lambda of 1 almost freezes the trunk.
        drift: penalty on plain drift.
    """

    def __init__(self, model: Backbone, strength: float = 0.01, drift: float = 0.01):
        super().__init__()
        if not isinstance(model, Backbone):
            raise UserError(f"model is {type(model).__name__}: expected a network of backbone/")
        self._model, self.strength, self.drift = [model], strength, drift  # in a list: no part of this module
        self.quadratic = Quadratic()

    def consolidate(self, batches: Iterable, task: VisionTask | None = None) -> None:
        """Hold the parameters from now on as they are.

        Args:
            batches: (images, labels) of the task that was learned, as a loader gives them.
            task: what its outputs mean, `task` of a data set above; a softmax over classes by default.
        """
        (net,) = self._model
        device = next(net.parameters()).device

        def moved() -> Iterator[tuple[Tensor, Any]]:
            for images, labels, *_ in batches:
                there = {k: v.to(device) for k, v in labels.items()} if isinstance(labels, dict) else labels.to(device)
                yield images.to(device), there

        if task is not None and task.branch:
            net.select(task.branch)
        fisher = fisher_diagonal(net, moved(), "mc", task)
        shared = net.shared() if hasattr(net, "shared") else torch.ones_like(fisher, dtype=torch.bool)
        self.quadratic.merge(normalised(fisher, shared, self.drift), net.get_params().detach())

    def penalty(self) -> Tensor:
        """Its value (), through which gradients flow; 0 before the first `consolidate`."""
        theta = self._model[0].get_params()
        return self.strength * self.quadratic.value(theta) if self.quadratic else theta.new_zeros(())

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """A proximal step on the penalty, of the length of the optimiser's own.

        Raises:
            UserError: the optimiser is neither SGD nor Adam or AdamW.
        """
        if self.quadratic:
            (net,) = self._model
            self.quadratic.contract(net, self.strength, step_sizes(optimizer, net))


def _choice(name: str, value: str, known: dict) -> str:
    if value not in known:
        raise UserError(f"{name} is {value!r}: expected {' or '.join(map(repr, known))}")
    return value
