"""Images of your own in several domains (styles, cameras, places): every task shows the same classes in another one.

`--folder` has `DOMAIN/train/CLASS/*` and `DOMAIN/test/CLASS/*`, or `DOMAIN/CLASS/*` of which `--test_fraction` of every
class is for testing. The tasks are the domains by their sorted names, or as `--domain_order` says; the classes are
those of all domains together.
"""

import torch

from palimpsest.datasets.utils.own.layout import numbers_of, read_names, read_parts, shortened
from palimpsest.datasets.utils.own.stream import OwnImages, listed
from palimpsest.datasets.utils.own.tree import unwrap
from palimpsest.datasets.utils.streams import SeparateDomains
from palimpsest.utils.errors import UserError


class DomainFolder(OwnImages, SeparateDomains):
    NAME = "domain-folder"
    LAYOUT = "DOMAIN/train/CLASS/* and DOMAIN/test/CLASS/*, or DOMAIN/CLASS/*"
    N_TASKS = N_CLASSES_PER_TASK = N_CLASSES = 1  # until the folder is known

    @classmethod
    def get_parser(cls, parser):
        super().get_parser(parser)
        told = "names of the domains in the order of the tasks: a,b,c or a file with a name per line (default: sorted)"
        parser.add_argument("--domain_order", metavar="NAMES", help=told)
        return parser

    def __init__(self, args, device="cpu"):
        tree = self._tree(args)
        found = unwrap(tree.root, 3).folders
        names = sorted(found)
        if {"train", "test"} & {name.lower() for name in names}:
            raise UserError(f"{args.folder}: has train and test but no domains: expected {self.LAYOUT}")
        if args.domain_order:
            given = [name for group in read_names(args.domain_order, "--domain_order") for name in group]
            names = [names[i] for i in numbers_of(given, names, "--domain_order", "domain")]
        parts = [read_parts(found[name], args.test_fraction) for name in names]
        if not parts:
            raise UserError(f"{args.folder}: no images: expected {self.LAYOUT}")
        self.task_names = names
        self.class_names = classes = sorted({name for part in parts for name in part.classes()})
        self.notes = _missing(names, parts, classes)
        self.N_TASKS, self.N_CLASSES, self.N_CLASSES_PER_TASK = len(names), len(classes), len(classes)
        self._listed = [listed(part.train, classes) for part in parts], [listed(part.test, classes) for part in parts]
        train, test = ([file for files, _ in side for file in files] for side in self._listed)
        for side, what in zip(self._listed, ("training", "test"), strict=True):
            present = {*torch.cat([y for _, y in side]).tolist()}
            if absent := [c for i, c in enumerate(classes) if i not in present]:
                raise UserError(f"{args.folder}: no {what} image of class {shortened(absent)} in any domain: add some")
        self._take(args, tree, train, test)
        super().__init__(args, device)

    def _read_domains(self):
        labels = [torch.cat([y for _, y in side]) for side in self._listed]
        domains = [torch.repeat_interleave(torch.tensor([len(y) for _, y in side])) for side in self._listed]
        return self._raw(*labels), *domains


def _missing(names, parts, classes) -> dict[str, str]:
    """What to tell of classes that some domains do not have."""
    lacking = []
    for name, part in zip(names, parts, strict=True):
        for what, images in (("training", part.train), ("test", part.test)):
            if absent := [c for c in classes if c not in images]:
                lacking.append(f"{name} ({what}): {shortened(absent)}")
    return {"missing classes": "; ".join(lacking)} if lacking else {}
