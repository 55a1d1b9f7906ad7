"""What every stream of tasks is: the contract between a dataset file, the training loop and the methods.

A dataset file names its source and its numbers; the subclasses in `datasets.utils.streams` cut the data into tasks.
Class orders, permutations, rotations, validation splits and label noise are functions of the seed alone.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.datasets.utils.checks import checked_data, refuse_declared
from palimpsest.datasets.utils.label_noise import noisy_labels
from palimpsest.datasets.utils.loaders import EvalLoader, Split, TaskData, TrainLoader
from palimpsest.datasets.utils.source_files import RawData
from palimpsest.datasets.utils.sources import Source
from palimpsest.datasets.utils.task import TaskStream
from palimpsest.datasets.utils.transforms import Augment, Denormalize, Normalize, TrainTransform
from palimpsest.utils.errors import UserError
from palimpsest.utils.leaks.reads import HELD_OUT, TESTED, TRAINED, Reads
from palimpsest.utils.randomness import generator, permutation, seed_of

DEBUG_BATCHES = 5
STATISTICS = {
    "none": (None, None),
    "half": ((0.5,), (0.5,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class ContinualDataset(TaskStream):
    """A stream of tasks over one labelled image collection.

    Class attributes (a dataset file sets them):
        NAME: as given to `--dataset`.
        SETTING: 'class-il', 'domain-il', 'task-il' or 'general-continual'. A class-il stream is also scored as task-il.
        SETTINGS: where an option of the stream decides the setting, all that it may become.
        TASK: what its tasks are, see `datasets.utils.task`.
        INPUT: 'images', 'tokens' or 'vectors': which networks can read the stream.
        RECORDS_EPOCHS: the mean loss of every epoch, and the held-out score after it, are kept for the report.
        PRESETS: as a method's.
        SOURCE: function of `base_path` that returns RawData. A `Source` also gives SIZE, N_CLASSES, MEAN and STD where
            the class does not set them.
        N_TASKS: number of tasks.
        N_CLASSES_PER_TASK: int, or a list with one entry per task; by default equal shares in class-il, else all.
        N_CLASSES: classes over all tasks, the network's outputs.
        SOURCE_CLASSES: those of the source, where the stream leaves some out; by default N_CLASSES.
        SIZE: (C, H, W) of an example; of a token stream (L, V), sequence length and number of different tokens; of a
            vector (D,).
        MEAN, STD: per-channel statistics in [0, 1], or None for inputs that are only scaled to [0, 1].
        AUGMENT: keyword arguments of `Augment`, or None.
        DEFAULTS: option defaults of this stream; 'backbone', 'lr', 'n_epochs' and 'batch_size' are required.

    Args:
        args: resolved options.
        device: where training happens; the data live there too unless `--data_device` says otherwise.

    Attributes:
        checksum: of the data read, before anything is done to them.
        stages: the tasks that are trained together: one at a time, all under `--joint`.
        train_sizes: examples to train on in every stage.
        class_names: of the original labels, None where they are only numbers.
        class_order: the original label of every label.
        task_names: of the tasks in the order they have without `--custom_task_order`, None where they are only
            numbered.
        notes: what a reader of the results must know of the data.
        train_loader: loader of the task that is being trained.
        test_loaders: one loader per task entered so far (all of them after `all_test_loaders`).
        reads: what was read of which part, by whom.
    """

    NAME: str
    SETTING: str
    SETTINGS: tuple[str, ...] = ()
    INPUT = "images"
    RECORDS_EPOCHS = False
    PRESETS: dict[str, dict] = {}
    SOURCE: Callable[[str], RawData]
    N_TASKS: int
    N_CLASSES_PER_TASK: int | list[int]
    N_CLASSES: int
    SOURCE_CLASSES: int | None = None
    SIZE: tuple[int, int, int]
    MEAN: tuple[float, ...] | None = None
    STD: tuple[float, ...] | None = None
    AUGMENT: dict | None = None
    DEFAULTS: dict
    class_names: Sequence[str] | None = None
    task_names: Sequence[str] | None = None
    notes: dict[str, str] = {}

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        source = vars(cls).get("SOURCE")
        if isinstance(source, Source):
            for name in ("SIZE", "MEAN", "STD", "class_names"):
                if name not in vars(cls):
                    setattr(cls, name, getattr(source, name))
            if not hasattr(cls, "N_CLASSES"):
                cls.N_CLASSES = source.N_CLASSES
        if hasattr(cls, "N_CLASSES") and hasattr(cls, "N_TASKS") and not hasattr(cls, "N_CLASSES_PER_TASK"):
            shares = cls.N_TASKS if getattr(cls, "SETTING", None) == "class-il" else 1
            if cls.N_CLASSES % shares == 0:
                cls.N_CLASSES_PER_TASK = cls.N_CLASSES // shares

    def __init__(self, args, device: torch.device | str = "cpu"):
        self.args, self.seed, self.order_seed = args, seed_of(args, "data"), seed_of(args, "order")
        self._cut_classes()
        refuse_declared(self)
        self.class_order = [*range(self.N_CLASSES)]
        self.train_device = torch.device(device)
        if args.data_device == "cuda" and self.train_device.type != "cuda":
            raise UserError(f"--data_device cuda needs training on a GPU, this run trains on {self.train_device}")
        self.device = torch.device("cpu") if args.data_device == "cpu" else self.train_device
        self.EVAL_TASKS = self.N_TASKS
        self.checksum = "unknown"  # a stream that does not read its data by `_read` may set it
        self.c_task = -1
        self.reads = Reads(self)
        self.train_loader: TrainLoader | None = None
        self.held_out_loader: EvalLoader | None = None
        self.test_loaders: list[EvalLoader] = []
        mean, std = (self.MEAN, self.STD) if args.normalize == "dataset" else STATISTICS[args.normalize]
        self.mean, self.std = self._per_channel(mean, "mean"), self._per_channel(std, "std")
        augment = None
        if self.AUGMENT and args.augment:
            # A generator of its own: the augmentation of step n is the same whatever else draws numbers.
            rng = generator(self.seed, "augmentation", device=self.train_device)
            augment = Augment(**self.AUGMENT, generator=rng)
        self._normalize = Normalize(self.mean, self.std)
        self._transform = TrainTransform(augment, self._normalize)
        self._prepare()
        every = range(self.EVAL_TASKS)
        self._scored = [self.get_offsets(t) for t in every]
        self.stages = [every] if args.joint else [range(t, t + 1) for t in every]
        self._refuse_too_few()
        if args.joint:  # one task for the method, still scored on each of the stream's tasks
            self.N_TASKS, self.N_CLASSES_PER_TASK = 1, self.N_CLASSES if self.SETTING == "class-il" else self.cpt(0)
        self._make_tasks()

    # ---- what a kind of stream defines

    def _cut_classes(self) -> None:
        """Set N_TASKS and N_CLASSES_PER_TASK where options say how many classes a task has."""
        if self.args.init_cls or self.args.increment:
            raise UserError(f"{self.NAME} is no stream whose classes are cut into tasks: drop --init_cls, --increment")

    def _set_shares(self, sizes: list[int]) -> None:
        """So many classes in each task; one number where it is the same for all."""
        self.N_TASKS, self.N_CLASSES_PER_TASK = len(sizes), sizes if len({*sizes}) > 1 else sizes[0]

    def _prepare(self) -> None:
        """Read the source and build what `_train_part` and `_test_part` need."""
        raise NotImplementedError

    def _train_part(self, task: int) -> tuple[Split, Tensor]:
        """Split and rows of a task's training data; the held-out examples are not among them."""
        raise NotImplementedError

    def _test_part(self, task: int, held_out: bool) -> tuple[Split, Tensor]:
        """Split and rows of a task's test data, or of its held-out training data."""
        raise NotImplementedError

    def _train_size(self, task: int) -> int:
        """Examples that `_train_part` gives."""
        return len(self._train_part(task)[1])

    def split_parts(self, task: int) -> Iterator[tuple[Tensor, Any]]:
        """Rows, and labels of these rows, of the training part and of what a task is scored on."""
        self._count_parts(task)
        for split, rows in (self._train_part(task), self._test_part(task, held_out=bool(self.args.validation))):
            yield rows, split.targets[rows]

    def _count_parts(self, task: int) -> None:
        self.reads.note(TRAINED, task)
        self.reads.note(TESTED, task)

    def _make_tasks(self) -> None:
        """Make `tasks`, what is asked on each part of the stream."""
        self._set_tasks(self._scored, [self.get_offsets(t) for t in range(self.N_TASKS)], self.args.multi_head)

    # ---- what the loop and the methods use

    def enter_task(self, task: int) -> TrainLoader:
        """Make `task` the current one: set `train_loader`, and `test_loaders` for all tasks up to it."""
        self.reads.note_entry(task)
        self.c_task, stage = task, self.stages[task]
        self.train_loader = self._make_train_loader(*self._stage_part(task), task)
        self.extend_test_loaders(stage[-1])
        if self.args.holdout or self.args.validation:
            parts = [self._test_part(t, held_out=True) for t in stage]
            loader = self._make_test_loader(*_concatenate(parts))
            self.held_out_loader = self.reads.of_part(loader, TESTED if self.args.validation else HELD_OUT, task)
        return self.train_loader

    def get_data_loaders(self) -> tuple[TrainLoader, EvalLoader]:
        """Enter the next task; its train and test loaders."""
        self.enter_task(self.c_task + 1)
        return self.train_loader, self.test_loaders[-1]

    def task_data(self, task: int) -> TaskData:
        """Training examples of any task, without augmentation, in storage order."""
        note = partial(self.reads.note, TRAINED, task)
        return TaskData(*self._stage_part(task), self.get_normalization_transform(), note)

    def all_test_loaders(self) -> list[EvalLoader]:
        """Test loaders of every task of the stream, trained or not."""
        self.extend_test_loaders(self.EVAL_TASKS - 1)
        return self.test_loaders

    def extend_test_loaders(self, last: int) -> None:
        """Make the test loaders of all tasks up to `last` that do not exist yet."""
        for task in range(len(self.test_loaders), last + 1):
            part = self._test_part(task, held_out=bool(self.args.validation))
            self.test_loaders.append(self.reads.of_part(self._make_test_loader(*part), TESTED, task))

    def cpt(self, task: int) -> int:
        """Number of classes of a task."""
        per_task = self.N_CLASSES_PER_TASK
        return per_task if isinstance(per_task, int) else per_task[task]

    def get_offsets(self, task: int | None = None) -> tuple[int, int]:
        """First class of a task, and one past its last (of the current task by default)."""
        task = max(self.c_task, 0) if task is None else task
        if self.SETTING != "class-il":
            return 0, self.N_CLASSES
        start = sum(self.cpt(t) for t in range(task))
        return start, start + self.cpt(task)

    def task_classes(self, task: int) -> tuple[int, int]:
        """As `get_offsets`, for the tasks that are scored: under `--joint` these stay the stream's own."""
        return self._scored[task]

    def get_transform(self) -> TrainTransform:
        """Raw uint8 batch -> augmented, normalised network input."""
        return self._transform

    def get_normalization_transform(self) -> Normalize:
        """Raw batch -> normalised network input without augmentation; never None."""
        return self._normalize

    def get_denormalization_transform(self) -> Denormalize:
        """Network input -> image in [0, 1]."""
        return Denormalize(self.mean, self.std)

    def get_loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """Cross-entropy, mean over the batch; with `--multi_head` each example's over the classes of its own task."""
        if not self.args.multi_head:
            return F.cross_entropy
        if self.SETTING != "class-il":
            raise UserError(f"--multi_head: the tasks of {self.NAME} share their classes, there is one head: drop it")
        return MultiHeadLoss(self._scored, self.train_device)

    def get_backbone(self) -> str:
        """Name of the default network."""
        return self.DEFAULTS["backbone"]

    def get_epochs(self) -> int:
        """Epochs per task of this run."""
        return self.args.n_epochs

    def get_batch_size(self) -> int:
        """Batch size of this run."""
        return self.args.batch_size

    def get_minibatch_size(self) -> int:
        """Replay batch size of this run; a name that method files know."""
        return getattr(self.args, "minibatch_size", None) or self.args.batch_size

    # ---- shared pieces for the kinds of stream

    def _read(self) -> RawData:
        """The source with label noise and unlabelled examples applied to its training part."""
        self.reads.note_storage(TESTED)
        source = getattr(type(self), "SOURCE", None)
        if not callable(source):
            raise UserError(f"{self.NAME}: SOURCE is {source!r}: expected a function of the data folder")
        raw = source(self.args.base_path)
        if not hasattr(self, "SIZE"):
            raise UserError(f"{self.NAME}: the class does not set SIZE, (C, H, W) of an image")
        raw = checked_data(self.NAME, raw, self.SIZE, self.SOURCE_CLASSES or self.N_CLASSES)
        self.checksum = raw.checksum
        return self._labelled(raw)

    def _labelled(self, raw: RawData) -> RawData:
        """The data with label noise and unlabelled examples applied to the training part; sets `_clean`, its true
        labels, and `_kept`, which of its rows are left.
        """
        name = getattr(getattr(type(self), "SOURCE", None), "name", "")
        targets = noisy_labels(raw.train_y, self.args.noise_type, self.args.noise_rate, self.seed, name)
        share = self.args.label_perc
        kept = stratified_mask(targets, share, self.seed, "labelled") if share < 1 else slice(None)
        self._kept, self._clean = kept, raw.train_y[kept]  # held-out examples are scored by their true labels
        return RawData(raw.train_x[kept], targets[kept], raw.test_x, raw.test_y)

    def _task_order(self) -> list[int]:
        """What each task shows: its own number, unless `--custom_task_order` says otherwise."""
        return checked_order(self.args.custom_task_order or list(range(self.N_TASKS)), self.N_TASKS, "task")

    def _held_out_mask(self, targets: Tensor) -> Tensor:
        """Which training examples (N,) are held out, the same fraction of every class."""
        percent = self.args.validation or self.args.holdout
        if not percent:
            return torch.zeros(len(targets), dtype=torch.bool)
        mask = stratified_mask(targets, percent / 100, self.seed, "held out")
        trained, every = targets[~mask].unique(), targets.unique()
        if len(trained) < len(every):
            lost = int(every[~torch.isin(every, trained)][0]) % self.N_CLASSES
            raise UserError(
                f"{self.NAME}: {percent:g} % held out leave no example of class {lost} to train on: drop --holdout and "
                "--validation, or leave the class out"
            )
        return mask

    def _make_train_loader(self, split: Split, rows: Tensor, task: int) -> TrainLoader:
        def order(n: int, epoch: int | str) -> Tensor:
            return permutation(n, self.seed, "order", task, epoch)

        limit, drop_last = DEBUG_BATCHES if self.args.debug_mode else None, self.args.drop_last
        size = self.size_of_batch(task)
        loader = TrainLoader(split, rows, size, self.get_transform(), order, self.train_device, drop_last, limit, task)
        return self.reads.of_part(loader, TRAINED, task)

    def size_of_batch(self, task: int) -> int:
        """Batch size of a task."""
        return self.get_batch_size()

    def _train_sizes(self) -> list[int]:
        """Examples to train on in every stage."""
        return [sum(self._train_size(task) for task in stage) for stage in self.stages]

    def _refuse_too_few(self) -> None:
        """A task without a batch should not be found out after hours of training on those before it."""
        self.train_sizes = self._train_sizes()
        for task, n in enumerate(sizes := self.train_sizes):
            name = f"{self.NAME}: task {task + 1}/{len(sizes)} has {n} examples to train on"
            if n == 0:
                raise UserError(f"{name}: leave more of them (--holdout, --validation, --label_perc, --vision_subset)")
            if self.args.drop_last and n < self.size_of_batch(task):
                raise UserError(f"{name}, less than a batch: lower --batch_size, or train without --drop_last")

    def _make_test_loader(self, split: Split, rows: Tensor) -> EvalLoader:
        return EvalLoader(split, rows, self.args.eval_batch_size, self.get_normalization_transform(), self.train_device)

    def _stage_part(self, stage: int) -> tuple[Split, Tensor]:
        return _concatenate([self._train_part(t) for t in self.stages[stage]])

    def _per_channel(self, values, what: str):
        """Statistics with a value for each channel of the images; one value stands for all of them."""
        if values is None:
            return None
        size = getattr(self, "SIZE", None)  # a stream may learn it with its data
        channels = size[0] if size and len(size) == 3 else len(values)
        if len(values) not in (1, channels):
            chosen = f"--normalize {self.args.normalize}" if self.args.normalize != "dataset" else what.upper()
            raise UserError(
                f"{chosen} has statistics of {len(values)} channels, the images of {self.NAME} have {channels}: use "
                "--normalize half or none, or another stream"
            )
        return values if len(values) > 1 else tuple(values) * channels

    def _on_device(self, images: Tensor, targets: Tensor) -> Split:
        return Split(images.to(self.device), targets.to(self.device))

    # ---- what a checkpoint keeps

    def state_dict(self) -> dict:
        """The only thing a stream remembers: the augmentation generator's state."""
        augment = self._transform.augment
        return {} if augment is None else {"augmentation": augment.generator.get_state()}

    def load_state_dict(self, state: dict) -> None:
        if "augmentation" in state:
            self._transform.augment.generator.set_state(state["augmentation"].cpu())


class MultiHeadLoss:
    """Cross-entropy in which the classes of one task compete, those of the example's own.

    Args:
        classes: of every task (first class, one past the last), or all its classes as a set.
        device: of the logits.
    """

    def __init__(self, classes: Sequence[tuple[int, int] | frozenset[int]], device: torch.device):
        sets = [sorted(part) if isinstance(part, frozenset) else range(*part) for part in classes]
        task = torch.zeros(sum(map(len, sets)), dtype=torch.int64)
        for t, part in enumerate(sets):
            task[[*part]] = t
        self.others = (task.unsqueeze(1) != task).to(device)  # (C, C): row y marks the classes of other tasks than y's

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        others = self.others[labels.clamp(min=0)]  # -100, the label of a token that is not scored, is ignored below
        return F.cross_entropy(logits.masked_fill(others, -torch.inf), labels)


def checked_order(order: list[int], n: int, what: str) -> list[int]:
    """The order itself, if it names each of 0..n-1 once."""
    if sorted(order) != list(range(n)):
        raise UserError(
            f"--custom_{what}_order must name each {what} from 0 to {n - 1} once, got {','.join(map(str, order))}"
        )
    return order


def stratified_mask(targets: Tensor, share: float, seed: int, purpose: str) -> Tensor:
    """Mark round(share * n_c) examples of every class c, at least one; a function of the seed."""
    mask = torch.zeros(len(targets), dtype=torch.bool)
    for c in targets.unique().tolist():
        rows = (targets == c).nonzero().squeeze(1)
        count = max(1, round(share * len(rows)))
        mask[rows[permutation(len(rows), seed, purpose, c)[:count]]] = True
    return mask


def _concatenate(parts: list[tuple[Split, Tensor]]) -> tuple[Split, Tensor]:
    """One split and rows for several; no image is copied where they share one split."""
    first = parts[0][0]
    if all(split is first for split, _ in parts):
        return first, torch.cat([rows for _, rows in parts])
    images = torch.cat([split.images[rows] for split, rows in parts])
    targets = torch.cat([split.targets[rows] for split, rows in parts])
    return Split(images, targets), torch.arange(len(targets), device=targets.device)
