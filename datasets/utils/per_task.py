"""Streams whose tasks each have a training and a test set of their own, made or read one by one; no images."""

import hashlib

import torch
from torch import Tensor

from palimpsest.datasets.utils.checks import checked_split, refuse_missing
from palimpsest.datasets.utils.continual_dataset import ContinualDataset
from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.task import ClassTask, TokenTask
from palimpsest.datasets.utils.transforms import TrainTransform
from palimpsest.utils.errors import UserError
from palimpsest.utils.randomness import permutation

# Options of the image streams: value without effect.
MEANINGLESS = {
    "permute_classes": False,
    "custom_class_order": None,
    "noise_rate": 0.0,
    "label_perc": 1.0,
    "normalize": "dataset",
}


class PerTaskStream(ContinualDataset):
    """A subclass defines `_splits`, and `_to_input` where stored rows are not yet network inputs."""

    @staticmethod
    def _to_input(stored: Tensor) -> Tensor:
        """Network inputs of stored rows."""
        return stored

    def _splits(self, domain: int) -> tuple[Split, Split]:
        """Training and test set of domain number `domain`, on the host.

        Class labels count from 0 within the domain. The domain is the task, unless `--custom_task_order` says
        otherwise.
        """
        raise NotImplementedError

    def _prepare(self) -> None:
        for option, without in MEANINGLESS.items():
            if getattr(self.args, option) != without:
                raise UserError(f"--{option} has no meaning for the {self.INPUT} of {self.NAME}: drop it")
        self._normalize, self._transform = self._to_input, TrainTransform(None, self._to_input)
        self._order = self._task_order()
        digest, self._parts = hashlib.blake2b(digest_size=16), []
        for task, domain in enumerate(self._order):
            first, part = self.get_offsets(task)[0], []
            for split in self._checked_splits(domain, self.cpt(task)):
                y = split.targets
                targets = torch.where(y < 0, y, y + first) if first else y  # below 0: not scored
                digest.update(split.images.contiguous().numpy())
                digest.update(targets.contiguous().numpy())
                part.append(self._on_device(split.images, targets))
            self._parts.append(part)
        self.checksum = digest.hexdigest()

    def _checked_splits(self, domain: int, classes: int) -> list[Split]:
        """`_splits`, as tensors of the kinds that the stream declares."""
        pair, where = self._splits(domain), f"{self.NAME}, task {domain + 1}/{self.N_TASKS}"
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError(f"{where}: _splits gave {type(pair).__name__}: expected a training and a test Split")
        named = zip(("train", "test"), pair, strict=True)
        splits = [checked_split(f"{where}, {n}", s, self.TASK, self.INPUT, self.SIZE, classes) for n, s in named]
        if issubclass(self.TASK, ClassTask) and not issubclass(self.TASK, TokenTask):
            refuse_missing(where, *(split.targets for split in splits), classes)
        return splits

    def _held_out_rows(self, task: int) -> tuple[Tensor, Tensor]:
        """Rows of a task's training set that are held out, and those that are kept."""
        n = len(self._parts[task][0].targets)
        percent = self.args.validation or self.args.holdout
        count = max(1, round(n * percent / 100)) if percent else 0
        rows = permutation(n, self.seed, "held out", task).to(self.device)
        return rows[:count].sort().values, rows[count:].sort().values

    def _train_part(self, task: int) -> tuple[Split, Tensor]:
        return self._parts[task][0], self._held_out_rows(task)[1]

    def _test_part(self, task: int, held_out: bool) -> tuple[Split, Tensor]:
        train, test = self._parts[task]
        if held_out:
            return train, self._held_out_rows(task)[0]
        return test, torch.arange(len(test.targets), device=self.device)
