"""Streams of different vision tasks: a task brings its own labels, loss and score, and the network a head for it."""

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from palimpsest.datasets.utils.continual_dataset import STATISTICS, ContinualDataset, stratified_mask
from palimpsest.datasets.utils.per_task import MEANINGLESS
from palimpsest.datasets.utils.streaming import JointLoader, moved
from palimpsest.datasets.utils.vision.data import VisionData, equally_spaced
from palimpsest.datasets.utils.vision.formats import REPAIR, Boxes, Parts
from palimpsest.datasets.utils.vision.kinds import DETECTION, SEGMENTATION, ImageClassTask, VisionTask
from palimpsest.utils.args import int_list, non_negative_int, number
from palimpsest.utils.errors import UserError
from palimpsest.utils.leaks.reads import HELD_OUT, TESTED
from palimpsest.utils.option_types import name_list
from palimpsest.utils.randomness import permutation

TASKS = ("seg", "det", "cls")
SHOWN = 4  # test images of each task whose predictions a run keeps


class VisionStream(ContinualDataset):
    """Segmentation, detection and classification, in the order of `--vision_order`; a task's images are read while one
    trains on it, and those that fit into `--cache_mb` are kept decoded.

    A subclass defines `_parts`. Of a batch the raw images are those its labels belong to, already flipped and shifted:
    a method that keeps (raw, labels) keeps what fits together, and `get_transform` only normalises.

    Attributes:
        tasks: the tasks in stream order.
        SIZE: (3, S, S) with S = `--vision_size`.
        N_CLASSES_PER_TASK: outputs per task, as the data have them; N_CLASSES is their sum.
        mirror: whether mirrored images are of the same classes.
        waited: seconds that training has waited for its images so far.
    """

    SETTING = "task-il"
    TASK, MIXED = VisionTask, False
    RECORDS_EPOCHS = True
    INPUT = "images"
    mirror = True
    N_TASKS = len(TASKS)
    N_CLASSES_PER_TASK = [21, 80, 10]
    N_CLASSES = 111
    MEAN, STD = STATISTICS["imagenet"]
    DEFAULTS = {
        "backbone": "multitask", "optimizer": "adamw", "lr": 0.003, "lr_scheduler": "cosine", "lr_warmup": 0.2,
        "n_epochs": 20, "batch_size": 16, "eval_batch_size": 30,
    }  # fmt: skip

    @classmethod
    def get_parser(cls, parser):
        add, orders = parser.add_argument, [",".join(order) for order in permutations(TASKS)]
        add("--vision_order", type=name_list, choices=orders, default=orders[0], help="order of the tasks")
        add("--seg_classes", choices=[*SEGMENTATION], default="semantic", help="masks of objects, or of their classes")
        told = "which classes are there, or a box for each"
        add("--detection", choices=[*DETECTION], default="multilabel", help=told)
        add("--vision_size", type=number(int, 16, 2048), default=96, help="side of the images (pixels)")
        told = "images of each task, four fifths for training, drawn by the seed; 0 for all there are"
        add("--vision_subset", type=non_negative_int, default=300, metavar="N", help=told)
        told = "images per batch of each task, in their order (default: --batch_size)"
        add("--task_batch_sizes", type=int_list, metavar="N,N,...", help=told)
        add("--num_workers", type=non_negative_int, default=0, help="processes that read images; 0: the run itself")
        add("--cache_mb", type=non_negative_int, default=512, metavar="MB", help="memory for decoded images, in MB")
        return parser

    def _parts(self) -> dict[str, Parts]:
        """Training and test examples of every task."""
        raise NotImplementedError

    def _prepare(self) -> None:
        args = self.args
        for option, without in MEANINGLESS.items():
            if option != "normalize" and getattr(args, option) != without:
                raise UserError(f"--{option} has no meaning for the tasks of {self.NAME}: drop it")
        if args.custom_task_order:
            raise UserError(f"--custom_task_order: the tasks of {self.NAME} have names: use --vision_order det,seg,cls")
        if args.multi_head:
            raise UserError(f"--multi_head: every task of {self.NAME} has a head of its own anyway: drop it")
        if 0 < args.vision_subset < 5:
            raise UserError(f"--vision_subset {args.vision_subset}: a fifth of it is for testing: give 5 or more, or 0")
        if args.joint and args.fitting_mode == "early_stopping":
            raise UserError("--fitting_mode early_stopping looks at one task, --joint trains all: give --n_epochs")
        if args.validation and args.fitting_mode == "early_stopping":
            raise UserError(
                "--validation is scored in place of the test set, and --fitting_mode early_stopping would choose by "
                "it: use --holdout"
            )
        if args.data_device == "cuda":
            raise UserError(f"--data_device cuda: the images of {self.NAME} are read while one trains: drop it")
        if (sizes := args.task_batch_sizes) and (len(sizes) != self.N_TASKS or min(sizes) < 1):
            raise UserError(f"--task_batch_sizes {sizes}: expected a number above 0 for each of {self.N_TASKS} tasks")
        self.SIZE, self.device = (3, args.vision_size, args.vision_size), torch.device("cpu")
        try:
            parts = self._parts()
        except OSError as e:
            raise UserError(f"{e.filename}: {e.strerror}: give access to it, or {REPAIR}") from None
        for train, test in parts.values():
            if both := set(train.files) & set(test.files):
                raise UserError(f"{min(both)}: among the training images and among the test images: drop one of them")
        kinds = {"seg": SEGMENTATION[args.seg_classes], "det": DETECTION[args.detection], "cls": ImageClassTask}
        self.tasks = [kinds[name](name, parts[name][0].class_names) for name in args.vision_order.split(",")]
        self.N_CLASSES_PER_TASK = [task.n_outputs for task in self.tasks]
        self.N_CLASSES = sum(self.N_CLASSES_PER_TASK)
        # Every part has the same share of the cache.
        pixels = args.vision_size**2
        whole = sum(len(p) * pixels * (4 if name == "seg" else 3) for name, pair in parts.items() for p in pair)
        share = min(1.0, args.cache_mb * 2**20 / whole)
        boxes = [len(t.classes) for pair in parts.values() for p in pair for t in p.targets if isinstance(t, Boxes)]
        common = {"max_boxes": max(boxes, default=0), "seed": self.seed, "num_workers": args.num_workers}
        self._data = [
            tuple(
                VisionData(part, task, args.vision_size, augment, self.mirror, int(share * len(part)), **common)
                for part, augment in zip(parts[task.name], (args.augment, False), strict=True)
            )
            for task in self.tasks
        ]

    # ---- what the loop and the methods use

    def enter_task(self, task: int):
        """Make `task` the current one; under `--joint` the training batches are of all tasks in turn."""
        self.reads.note_entry(task)
        args, self.c_task, stage = self.args, task, self.stages[task]
        loaders = [self._make_train_loader(*self._train_part(t), t) for t in stage]
        together = JointLoader(loaders, lambda n, epoch: permutation(n, self.seed, "tasks", epoch))
        self.train_loader = loaders[0] if len(stage) == 1 else together
        self.extend_test_loaders(stage[-1])
        if (args.holdout or args.validation) and len(stage) == 1:
            loader = self._make_test_loader(*self._test_part(task, held_out=True))
            self.held_out_loader = self.reads.of_part(loader, TESTED if args.validation else HELD_OUT, task)
        return self.train_loader

    def task_data(self, task: int):
        """Training examples of a task without augmentation; of the first one under `--joint`."""
        return self._make_train_loader(*self._train_part(task), task).dataset

    @property
    def waited(self) -> float:
        """See the class."""
        return sum(train.waited for train, _ in self._data)

    def get_loss(self):
        """Loss of the task that the latest training batch is of."""
        return lambda outputs, labels: self.tasks[self.train_loader.task].loss(outputs, labels)

    def _make_tasks(self) -> None:
        self._heads = self.tasks  # made with the data, which say how many classes there are

    def examples(self, n: int | None = None, task: int | None = None) -> Iterator[tuple[Tensor, Any]]:
        """(inputs, labels) of `n` training images of a task, of all of the current one by default; equally spaced,
        without augmentation.
        """
        data, size = self.task_data(max(self.c_task, 0) if task is None else task), self.get_batch_size()
        rows = equally_spaced(len(data), len(data) if n is None else n)
        for start in range(0, len(rows), size):
            inputs, labels = default_collate([data[i][:2] for i in rows[start : start + size]])
            yield moved(inputs, self.train_device), moved(labels, self.train_device)

    def shape_network(self, net) -> None:
        """A branch for each task.

        Raises:
            UserError: the network cannot have any, or makes the images too small.
        """
        if not hasattr(net, "set_tasks"):
            raise UserError(
                f"backbone '{net.NAME}' has one head, the tasks of {self.NAME} need one each: use --backbone multitask"
            )
        size, coarsest = self.SIZE[1], net.trunk.strides[-1]
        if size % coarsest or size < 2 * coarsest:
            raise UserError(
                f"--vision_size {size}: the trunk makes images {coarsest} times smaller: give a multiple of that, "
                f"{2 * coarsest} or more"
            )
        net.set_tasks({t.name: t.n_outputs for t in self.tasks}, {t.name: t.HEAD for t in self.tasks})

    def begin_stage(self, net, stage: int) -> None:
        begun = [self.tasks[t].name for t in self.stages[stage]]
        net.begin_tasks(begun)
        net.select(begun[0])

    def begin_batch(self, net) -> None:
        net.select(self.tasks[self.train_loader.task].name)

    # ---- the parts of a task

    def _held_out_rows(self, task: int) -> Tensor:
        """(n,) bool: training examples of a task that are held out; of 'cls' the same share of every class."""
        data, percent = self._data[task][0], self.args.validation or self.args.holdout
        labels = data.examples.targets if self.tasks[task].name == "cls" else [0] * len(data)
        if not percent:
            return torch.zeros(len(data), dtype=torch.bool)
        return stratified_mask(torch.tensor(labels), percent / 100, self.seed, f"held out of {self.tasks[task].name}")

    def _train_part(self, task: int) -> tuple[VisionData, Tensor]:
        return self._data[task][0], (~self._held_out_rows(task)).nonzero().squeeze(1)

    def _test_part(self, task: int, held_out: bool) -> tuple[VisionData, Tensor]:
        train, test = self._data[task]
        if held_out:
            return train, self._held_out_rows(task).nonzero().squeeze(1)
        return test, torch.arange(len(test))

    def split_parts(self, task: int) -> Iterator[tuple[Tensor, list[str]]]:
        """Rows, and names of their files."""
        self._count_parts(task)
        for data, rows in (self._train_part(task), self._test_part(task, held_out=bool(self.args.validation))):
            yield rows, [data.examples.files[row].name for row in rows.tolist()]

    def shown(self, task: int) -> tuple[Tensor, Any]:
        """Raw images (n, 3, S, S) uint8 and labels of `SHOWN` test images of a task, always the same."""
        data, rows = self._test_part(task, held_out=bool(self.args.validation))
        return default_collate([data.example(int(rows[i]), None) for i in equally_spaced(len(rows), SHOWN)])

    def _train_sizes(self) -> list[int]:
        return [self._train_size(task) for task in range(self.EVAL_TASKS)]  # never in one batch, under --joint neither

    def size_of_batch(self, task: int) -> int:
        sizes = self.args.task_batch_sizes
        return sizes[task] if sizes else super().size_of_batch(task)
