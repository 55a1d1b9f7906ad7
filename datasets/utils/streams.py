"""The ways labelled images become a stream: split by class, permuted, rotated, domains with images of their own,
rotating without boundaries.
"""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.datasets.utils.checks import PARTS, checked_data, refuse_missing
from palimpsest.datasets.utils.classes import chosen_shares
from palimpsest.datasets.utils.continual_dataset import ContinualDataset, checked_order
from palimpsest.datasets.utils.loaders import ShownSplit, Split, TrainLoader
from palimpsest.datasets.utils.source_files import RawData
from palimpsest.datasets.utils.transforms import rotate
from palimpsest.utils.args import add_bool, non_negative_int, positive_int
from palimpsest.utils.errors import UserError
from palimpsest.utils.leaks.reads import TESTED, TRAINED
from palimpsest.utils.randomness import generator, permutation


class Collection(ContinualDataset):
    """Tasks over one collection in memory: each uses the rows of its own classes, all rows where it has all classes."""

    def _load(self, label_of: Tensor) -> None:
        """Read the source; class c gets label `label_of[c]`."""
        raw = self._read()
        self._train = self._on_device(raw.train_x, label_of[raw.train_y])
        self._test = self._on_device(raw.test_x, label_of[raw.test_y])
        # Held-out examples are chosen by original class, so that the class order does not change them.
        self._held_out = self._held_out_mask(self._clean).to(self.device)
        self._true = self._on_device(self._train.images, label_of[self._clean])
        self._count_storage()

    def _count_storage(self) -> None:
        """Reads past the loaders are counted, too."""
        for split, part in ((self._train, TRAINED), (self._true, TRAINED), (self._test, TESTED)):
            split.note = partial(self.reads.note_storage, part)

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

    def _cut_classes(self) -> None:
        if hasattr(self, "N_CLASSES") and (sizes := chosen_shares(self.args, self.N_CLASSES)):
            self._set_shares(sizes)

    def _class_order(self) -> Tensor:
        """Original labels (N_CLASSES,) in the order of the tasks."""
        if self.args.permute_classes:
            return permutation(self.N_CLASSES, self.order_seed, "class order")
        if self.args.custom_class_order:
            return torch.tensor(checked_order(self.args.custom_class_order, self.N_CLASSES, "class"))
        return torch.arange(self.N_CLASSES)

    def _prepare(self) -> None:
        order = self._class_order()
        sizes, tasks = [self.cpt(t) for t in range(self.N_TASKS)], self._task_order()
        blocks = order.split(sizes)
        order = torch.cat([blocks[t] for t in tasks])
        if not isinstance(self.N_CLASSES_PER_TASK, int):
            self.N_CLASSES_PER_TASK = [sizes[t] for t in tasks]
        self.class_order = order.tolist()
        self._load(label_of=order.argsort())


class DomainIncremental(Collection):
    """Every task shows all classes under a transformation of its own; one score per task.

    A task's training images are transformed once, when it is entered, and stay uint8. Test images are transformed batch
    by batch in each evaluation, since copies for all tasks would be many times the data; only where `transformed`
    leaves some out they are kept.

    Class attributes:
        KEEPS_IMAGES: `transformed` never leaves an image out, so that the sizes of tasks are known without it.
    """

    SETTING = "domain-il"
    N_TASKS = 20
    KEEPS_IMAGES = False

    def _prepare(self) -> None:
        _refuse_class_order(self)
        self._order = self._task_order()
        self._load(label_of=torch.arange(self.N_CLASSES))

    def transformed(self, images: Tensor, domain: int) -> Tensor:
        """The images (N, C, H, W) uint8 as domain number `domain` shows them: N in the same order, or a selection of
        them, unchanged.
        """
        raise NotImplementedError

    def _rows(self, split: Split, task: int, among: Tensor | bool = True) -> tuple[Split, Tensor]:
        split, rows = super()._rows(split, task, among)
        images, kept = self._shown(split.images[rows], self._order[task])
        return Split(images, split.targets[rows][kept]), torch.arange(len(images), device=self.device)

    def _test_part(self, task: int, held_out: bool) -> tuple[Split | ShownSplit, Tensor]:
        if held_out or not self.KEEPS_IMAGES:
            return super()._test_part(task, held_out)
        split, rows = super()._rows(self._test, task)
        return ShownSplit(split, partial(self._all_shown, domain=self._order[task])), rows

    def _all_shown(self, images: Tensor, domain: int) -> Tensor:
        return self._shown(images, domain)[0]

    def _shown(self, images: Tensor, domain: int) -> tuple[Tensor, Tensor | slice]:
        """What a domain shows of images, and which of them these are."""
        shown, name = self.transformed(images, domain), f"{self.NAME}: transformed(images, {domain})"
        if not isinstance(shown, Tensor) or shown.dtype != torch.uint8 or tuple(shown.shape[1:]) != tuple(self.SIZE):
            what = f"{tuple(shown.shape)} {shown.dtype}" if isinstance(shown, Tensor) else type(shown).__name__
            raise UserError(f"{name} gave {what}: expected images (N, {', '.join(map(str, self.SIZE))}) torch.uint8")
        if len(shown) == len(images):
            return shown, slice(None)
        # What selects images selects their numbers alike.
        numbers = torch.arange(len(images), device=images.device).view(-1, 1, 1, 1)
        try:
            kept = self.transformed(numbers, domain).flatten()
            same = torch.equal(images[kept], shown)
        except (RuntimeError, IndexError, ValueError, TypeError, AttributeError):
            same = False
        if not same:
            raise UserError(
                f"{name} gave {len(shown)} images for {len(images)}, so that labels are unknown: where domains have "
                "images of their own, derive from SeparateDomains (docs/add_a_dataset.md)"
            )
        return shown, kept

    def _train_size(self, task: int) -> int:
        return int((~self._held_out).sum()) if self.KEEPS_IMAGES else super()._train_size(task)

    def split_parts(self, task: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As they are before `transformed`, which would take long."""
        self._count_parts(task)
        tested = (self._true, task, self._held_out) if self.args.validation else (self._test, task)
        for part in ((self._train, task, ~self._held_out), tested):
            split, rows = super()._rows(*part)
            yield rows, split.targets[rows]

    def _refuse_too_few(self) -> None:
        super()._refuse_too_few()
        for task in range(0 if self.KEEPS_IMAGES else self.EVAL_TASKS):
            if not len(self._test_part(task, held_out=bool(self.args.validation))[1]):
                raise UserError(f"{self.NAME}: task {task + 1}/{self.EVAL_TASKS} has no image to be scored on")


class SeparateDomains(Collection):
    """Every task shows the same classes in images of its own: of other writers, cameras or styles; one score per task.

    A subclass defines `domain_data`; it has no SOURCE. What is held out or left unlabelled is the same share of every
    class in every domain.
    """

    SETTING = "domain-il"

    def domain_data(self, domain: int) -> RawData:
        """Training and test images of domain number `domain`, as a source returns them; `self.args.base_path` is the
        data folder. A class may be missing in a domain, but not in all.
        """
        raise NotImplementedError

    def _prepare(self) -> None:
        _refuse_class_order(self)
        self._order = self._task_order()
        raw, train, test = self._read_domains()
        refuse_missing(self.NAME, raw.train_y, raw.test_y, self.N_CLASSES)
        raw = self._labelled(raw)
        train = train[self._kept]
        self._train, self._test = self._on_device(raw.train_x, raw.train_y), self._on_device(raw.test_x, raw.test_y)
        self._true = self._on_device(self._train.images, self._clean)
        self._count_storage()
        self._held_out = self._held_out_mask(self._clean + self.N_CLASSES * train).to(self.device)
        self._domains = {"train": train.to(self.device), "test": test.to(self.device)}

    def _read_domains(self) -> tuple[RawData, Tensor, Tensor]:
        """The data of all domains together, and the domain of every training (N,) and test (M,) image."""
        parts = []
        for d in range(self.N_TASKS):
            where = f"{self.NAME}, domain {d}"
            parts.append(checked_data(where, self.domain_data(d), self.SIZE, self.N_CLASSES, complete=False))
        raw = RawData(*(torch.cat([getattr(part, name) for part in parts]) for name in PARTS))
        self.checksum = raw.checksum
        sizes = torch.tensor([(len(part.train_y), len(part.test_y)) for part in parts])
        return raw, *map(torch.repeat_interleave, sizes.unbind(1))

    def _rows(self, split: Split, task: int, among: Tensor | bool = True) -> tuple[Split, Tensor]:
        domains = self._domains["test" if split is self._test else "train"]
        return split, ((domains == self._order[task]) & among).nonzero().squeeze(1)


class Permuted(DomainIncremental):
    """Every task shuffles the pixels with a fixed random permutation of its own, the first one too unless
    `--identity_first`.

    `--pad N` puts N rows and columns of zeros around the images before (28 -> 32 pixels a side with 2, as in von Oswald
    et al. 2020), so that `SIZE` grows; `--n_tasks` is the number of permutations, task t's being the same whatever it
    is.
    """

    KEEPS_IMAGES = True

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
        self.SIZE = (self.SIZE[0], *(side + 2 * self.args.pad for side in self.SIZE[1:]))

    def transformed(self, images: Tensor, domain: int) -> Tensor:
        images = F.pad(images, (self.args.pad,) * 4)
        if domain == 0 and self.args.identity_first:
            return images
        pixels = images.flatten(1)
        order = permutation(pixels.shape[1], self.order_seed, "permutation", domain)
        return pixels.index_select(1, order.to(pixels.device)).view(images.shape)


class Rotated(DomainIncremental):
    """Every task rotates the images by a fixed random angle in [0, 180) degrees."""

    KEEPS_IMAGES = True

    def angle(self, domain: int) -> float:
        """Degrees of a domain, counter-clockwise."""
        rng = generator(self.order_seed, "rotation", domain)
        return 180 * torch.rand((), generator=rng, dtype=torch.float64).item()

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
        self._tests[False].note = partial(self.reads.note_storage, TESTED)

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


def _refuse_class_order(stream: ContinualDataset) -> None:
    if stream.args.permute_classes or stream.args.custom_class_order:
        raise UserError(f"{stream.NAME} shows all classes in every task: a class order has no meaning, drop the option")


def interleave(a: Tensor, b: Tensor) -> Tensor:
    """Two sequences merged evenly: element i of n stands at (i + 1/2) / n of the way."""
    place = torch.cat([(torch.arange(len(x)) + 0.5) / max(len(x), 1) for x in (a, b)])
    return torch.cat([a, b])[place.argsort(stable=True)]
