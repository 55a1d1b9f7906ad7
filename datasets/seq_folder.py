"""Images of your own in a folder or zip archive, a sub-folder for each class: every task brings new classes.

`--folder` has `train/CLASS/*` and `test/CLASS/*`, or `CLASS/*` of which `--test_fraction` of every class is for
testing, the same images on every machine and for every seed. Classes are numbered by their sorted names.
"""

import torch

from datasets.utils.classes import class_shares
from datasets.utils.own.layout import numbers_of, read_names, read_parts, shortened
from datasets.utils.own.stream import OwnImages, listed
from datasets.utils.own.tree import Tree, unwrap
from datasets.utils.source_files import RawData
from datasets.utils.streams import ClassIncremental
from utils.args import positive_int
from utils.errors import UserError

ORDERS = ("class_order", "tasks_file", "permute_classes", "custom_class_order")
CUTS = ("classes_per_task", "increment", "tasks_file")


class SequentialFolder(OwnImages, ClassIncremental):
    NAME = "seq-folder"
    LAYOUT = "train/CLASS/* and test/CLASS/*, or CLASS/*"
    N_TASKS = N_CLASSES_PER_TASK = N_CLASSES = 1  # until the folder is known

    @classmethod
    def get_parser(cls, parser):
        super().get_parser(parser)
        told = "the last task may have fewer (default: 2, of more than 20 classes a tenth); or --init_cls, --increment"
        parser.add_argument("--classes_per_task", type=positive_int, metavar="N", help=told)
        told = "names of the classes in the order of the tasks: a,b,c or a file with a name per line"
        parser.add_argument("--class_order", metavar="NAMES", help=told)
        told = "file with a class per line and a blank line between tasks"
        parser.add_argument("--tasks_file", metavar="FILE", help=told)
        return parser

    def __init__(self, args, device="cpu"):
        for options in (ORDERS, CUTS):
            if len(given := [option for option in options if getattr(args, option)]) > 1:
                raise UserError(f"--{given[0]} and --{given[1]} exclude each other: drop one of them")
        tree = Tree(args.folder)
        parts = read_parts(unwrap(tree.root, 2), args.test_fraction)
        self.class_names = names = parts.classes()
        for one, other, what in ((parts.test, parts.train, "training"), (parts.train, parts.test, "test")):
            if alone := [name for name in one if name not in other]:
                raise UserError(f"{args.folder}: no {what} image of class {shortened(alone)}: add some, or remove it")
        self.N_CLASSES, self._named = len(names), None
        if option := next((option for option in ORDERS[:2] if getattr(args, option)), None):
            groups = read_names(getattr(args, option), f"--{option}")
            self._named = numbers_of([name for group in groups for name in group], names, f"--{option}", "class")
        if args.tasks_file:
            self._set_shares([len(group) for group in groups])
        else:
            n = args.classes_per_task or max(2, -(-len(names) // 10))
            self._set_shares(class_shares(len(names), min(n, len(names)), n))
        (train, self._train_y), (test, self._test_y) = (listed(part, names) for part in (parts.train, parts.test))
        self._take(args, tree, train, test)
        super().__init__(args, device)

    def _class_order(self):
        return super()._class_order() if self._named is None else torch.tensor(self._named)

    def _read(self) -> RawData:
        return self._labelled(self._raw(self._train_y, self._test_y))
