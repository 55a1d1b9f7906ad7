"""Images of your own in a folder or zip archive, a sub-folder for each class: every task brings new classes.

`--folder` has `train/CLASS/*` and `test/CLASS/*`, or `CLASS/*` of which `--test_fraction` of every class is for
testing, the same images on every machine and for every seed. Classes are numbered by their sorted names.
"""

import torch

from palimpsest.datasets.utils.own.cuts import add_class_options, cut_named
from palimpsest.datasets.utils.own.layout import read_parts, shortened
from palimpsest.datasets.utils.own.stream import OwnImages, listed
from palimpsest.datasets.utils.own.tree import unwrap
from palimpsest.datasets.utils.source_files import RawData
from palimpsest.datasets.utils.streams import ClassIncremental
from palimpsest.utils.errors import UserError


class SequentialFolder(OwnImages, ClassIncremental):
    NAME = "seq-folder"
    LAYOUT = "train/CLASS/* and test/CLASS/*, or CLASS/*"
    N_TASKS = N_CLASSES_PER_TASK = N_CLASSES = 1  # until the folder is known

    @classmethod
    def get_parser(cls, parser):
        super().get_parser(parser)
        add_class_options(parser)
        return parser

    def __init__(self, args, device="cpu"):
        tree = self._tree(args)
        parts = read_parts(unwrap(tree.root, 2), args.test_fraction)
        names = parts.classes()
        self.class_names = self._names(names)
        for one, other, what in ((parts.test, parts.train, "training"), (parts.train, parts.test, "test")):
            if alone := [name for name in one if name not in other]:
                raise UserError(
                    f"{tree.path}: no {what} image of class {shortened(self._names(alone))}: add some, or remove it"
                )
        self.N_CLASSES = len(names)
        sizes, self._named = cut_named(args, self.class_names)
        self._set_shares(sizes)
        (train, self._train_y), (test, self._test_y) = (listed(part, names) for part in (parts.train, parts.test))
        self._take(args, tree, train, test)
        super().__init__(args, device)

    def _names(self, folders: list[str]) -> list[str]:
        """Classes of these folders."""
        return folders

    def _class_order(self):
        return super()._class_order() if self._named is None else torch.tensor(self._named)

    def _read(self) -> RawData:
        return self._labelled(self._raw(self._train_y, self._test_y))
