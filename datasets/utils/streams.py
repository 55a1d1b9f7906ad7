"""The four ways a labelled image collection becomes a stream: split by class, permuted, rotated, rotating without
boundaries.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.utils.continual_dataset import ContinualDataset, checked_order
from datasets.utils.loaders import Split, TrainLoader
from datasets.utils.transforms import rotate
from utils.args import add_bool, non_negative_int, positive_int
from utils.errors import UserError
from utils.randomness import generator, permutation


class Collection(ContinualDataset):
    """Tasks over one collection in memory: each uses the rows of its own classes, all rows where it has all classes."""

    def _load(self, label_of: Tensor) -> None:
        """Read the source; class c gets label `label_of[c]`."""
        raw = self._read()
        self._train = self._on_device(raw.train_x, label_of[raw.train_y])
        self._test = self._on_device(raw.test_x, label_of[raw.test_y])
        # Held-out examples are chosen by original class, so that the class order does not change them.
        self._held_out = self._held_out_mask(self._clean).to(self.device)
        self._true = Split(self._train.images, label_of[self._clean].to(self.device))

    def _rows(self, split: Split, task: int, among: Tensor | bool = True) -> tuple[Split, Tensor]:
        low, high = self.task_classes(task)
        return split, ((split.targets >= low) & (split.targets < high) & among).nonzero().squeeze(1)

    def _train_part(self, task: int) -> tuple[Split, Tensor]:
        return self._rows(self._train, task, ~self._held_out)

    def _test_part(self, task: int, held_out: bool) -> tuple[Split, Tensor]:
        return self._rows(self._true, task, self._held_out) if held_out else self._rows(self._test, task)


class ClassIncremental(Collection):
    """Every task brings classes of its own; scored as class-IL and task-IL.

    Labels are positions in the class order: task 0 holds labels 0..cpt-1, whatever classes these are.
    """

    SETTING = "class-il"

    def _prepare(self) -> None:
        order = torch.arange(self.N_CLASSES)
        if self.args.permute_classes:
            order = permutation(self.N_CLASSES, self.seed, "class order")
        if self.args.custom_class_order:
            order = torch.tensor(checked_order(self.args.custom_class_order, self.N_CLASSES, "class"))
        sizes, tasks = [self.cpt(t) for t in range(self.N_TASKS)], self._task_order()
        blocks = order.split(sizes)
        order = torch.cat([blocks[t] for t in tasks])
        if not isinstance(self.N_CLASSES_PER_TASK, int):
            self.N_CLASSES_PER_TASK = [sizes[t] for t in tasks]
        self._load(label_of=order.argsort())


class DomainIncremental(Collection):
    """Every task shows all classes under a transformation of its own; one score per task.

    A task's images are transformed once, when it is entered, and stay uint8.
    """

    SETTING = "domain-il"
    N_TASKS = 20

    def _prepare(self) -> None:
        if self.args.permute_classes or self.args.custom_class_order:
            raise UserError(
                f"{self.NAME} shows all classes in every task: a class order has no meaning, drop the option"
            )
        self._order = self._task_order()
        self._load(label_of=torch.arange(self.N_CLASSES))

    def transformed(self, images: Tensor, domain: int) -> Tensor:
        """The images (N, C, H, W) uint8 as domain number `domain` shows them."""
        raise NotImplementedError

    def _rows(self, split: Split, task: int, among: Tensor | bool = True) -> tuple[Split, Tensor]:
        split, rows = super()._rows(split, task, among)
        images = self.transformed(split.images[rows], self._order[task])
        return Split(images, split.targets[rows]), torch.arange(len(rows), device=self.device)

    def _train_size(self, task: int) -> int:
        return int((~self._held_out).sum())


class Permuted(DomainIncremental):
    """Every task shuffles the pixels with a fixed random permutation of its own, the first one too unless
    `--identity_first`.

    `--pad N` puts N rows and columns of zeros around the images before (28 -> 32 pixels a side with 2, as in von Oswald
    et al. 2020), so that `SIZE` grows; `--n_tasks` is the number of permutations, task t's being the same whatever it
    is.
    """

    @classmethod
    def get_parser(cls, parser):
        parser.add_argument("--n_tasks", type=positive_int, default=cls.N_TASKS, help="number of permutations")
        parser.add_argument("--pad", type=non_negative_int, default=0, metavar="N", help="zeros around each image")
        add_bool(parser, "--identity_first", help="permutation 0 leaves the pixels where they are")
        return parser

    def __init__(self, args, device="cpu"):
        self.N_TASKS = args.n_tasks
        super().__init__(args, device)

    def _prepare(self) -> None:
        super()._prepare()
        channels, *sides = self.SIZE
        self.SIZE = (channels, *(side + 2 * self.args.pad for side in sides))

    def transformed(self, images: Tensor, domain: int) -> Tensor:
        images = F.pad(images, (self.args.pad,) * 4)
        if domain == 0 and self.args.identity_first:
            return images
        pixels = images.flatten(1)
        order = permutation(pixels.shape[1], self.seed, "permutation", domain)
        return pixels.index_select(1, order.to(pixels.device)).view(images.shape)


class Rotated(DomainIncremental):
    """Every task rotates the images by a fixed random angle in [0, 180) degrees."""

    def angle(self, domain: int) -> float:
        """Degrees of a domain, counter-clockwise."""
        return 180 * torch.rand((), generator=generator(self.seed, "rotation", domain), dtype=torch.float64).item()

    def transformed(self, images: Tensor, domain: int) -> Tensor:
        return rotate(images, self.angle(domain))


class Rotating360(ContinualDataset):
    """Digits that turn: a boundary-free stream over classes 0 to 8 (9 is left out: it is a turned 6).

    The stream shows two neighbouring classes at a time, (0, 1), (1, 2), ... (8, 0), three rounds of it, while each
    class turns once through 360 degrees: image i of class j, in the order of the stream, stands at
    (j - 1) * 60 + i * 360 / n_j degrees. Every training image is seen once; the two classes are mixed in proportion
    to their numbers. The test set is fixed: image i of class j at i * 360 / n_j.

    Reference: Buzzega et al. 2020 (Dark Experience), MNIST-360. There a stage ends when one of its two classes is
    used up; here the few images left over are shown too.
    """

    SETTING = "general-continual"
    N_TASKS = 1
    N_CLASSES, SOURCE_CLASSES = 9, 10
    ROUNDS = 3

    def _prepare(self) -> None:
        for option in ("permute_classes", "custom_class_order", "custom_task_order"):
            if getattr(self.args, option):
                raise UserError(f"{self.NAME} has one fixed order of classes and no tasks: drop --{option}")
        raw = self._read()
        held_out = self._held_out_mask(self._clean)
        self._train = self._stream(raw.train_x[~held_out], raw.train_y[~held_out])
        self._tests = {False: self._turned(raw.test_x, raw.test_y)}
        if held_out.any():
            self._tests[True] = self._turned(raw.train_x[held_out], self._clean[held_out])

    def _stream(self, images: Tensor, targets: Tensor) -> Split:
        """All training images in stream order, each turned to its angle."""
        chunks, angles = {}, torch.zeros(len(targets))
        for j in range(self.N_CLASSES):
            rows = (targets == j).nonzero().squeeze(1)
            rows = rows[permutation(len(rows), self.seed, "stream", j)]
            angles[rows] = (j - 1) * 60 + torch.arange(len(rows)) * 360 / max(len(rows), 1)
            chunks[j] = iter(rows.tensor_split(2 * self.ROUNDS))
        stages = [(c, (c + 1) % self.N_CLASSES) for _ in range(self.ROUNDS) for c in range(self.N_CLASSES)]
        order = torch.cat([interleave(next(chunks[a]), next(chunks[b])) for a, b in stages])
        return self._on_device(rotate(images[order], angles[order]), targets[order])

    def _turned(self, images: Tensor, targets: Tensor) -> Split:
        rows = [(targets == j).nonzero().squeeze(1) for j in range(self.N_CLASSES)]
        angles = torch.cat([torch.arange(len(r)) * 360 / max(len(r), 1) for r in rows])
        order = torch.cat(rows)
        return self._on_device(rotate(images[order], angles), targets[order])

    def _train_part(self, task: int) -> tuple[Split, Tensor]:
        return self._train, torch.arange(len(self._train.targets), device=self.device)

    def _test_part(self, task: int, held_out: bool) -> tuple[Split, Tensor]:
        split = self._tests[held_out]
        return split, torch.arange(len(split.targets), device=self.device)

    def _make_train_loader(self, split: Split, rows: Tensor, task: int) -> TrainLoader:
        loader = super()._make_train_loader(split, rows, task)
        if not self.args.joint:
            loader.order = lambda n, epoch: torch.arange(n)
        return loader


def interleave(a: Tensor, b: Tensor) -> Tensor:
    """Two sequences merged evenly: element i of n stands at (i + 1/2) / n of the way."""
    place = torch.cat([(torch.arange(len(x)) + 0.5) / max(len(x), 1) for x in (a, b)])
    return torch.cat([a, b])[place.argsort(stable=True)]
