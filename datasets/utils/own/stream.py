"""Streams over image files of one's own: what `seq-folder` and `domain-folder` have in common."""

import argparse
import hashlib
from pathlib import Path

import torch
from torch import Tensor

from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.own.images import (
    MEASURED,
    PROBED,
    ImageFiles,
    StreamedImages,
    count_channels,
    load_images,
    statistics,
)  # fmt: skip
from palimpsest.datasets.utils.own.tree import Tree
from palimpsest.datasets.utils.source_files import RawData
from palimpsest.utils.args import non_negative_int, number
from palimpsest.utils.errors import UserError
from palimpsest.utils.leaks.kinds import STATISTICS

AUGMENTATIONS = ("none", "crop", "crop_flip")


def fractions(text: str) -> list[float]:
    """`0.5,0.4,0.3`: a value in [0, 1] for every channel."""
    try:
        values = [float(part) for part in str(text).strip("[]() ").split(",")]
    except ValueError:
        values = []
    if len(values) not in (1, 3) or not all(0 <= value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"'{text}': expected one number or three from 0 to 1, as 0.5,0.4,0.3")
    return values


class OwnImages:
    """A mixin for streams whose images lie in `--folder`: options, size, statistics, in memory or read while one
    trains. A stream says what is in the folder and calls `_take` before its other base is made.
    """

    SIZE = (3, 32, 32)  # until the folder is known
    DEFAULTS = {"backbone": "resnet18", "lr": 0.03, "n_epochs": 10, "batch_size": 32}

    @classmethod
    def get_parser(cls, parser):
        add = parser.add_argument
        cls._add_source(parser)
        told = "side of the images (pixels): the shorter side is resized to it, the centre cut out"
        add("--image_size", type=number(int, 4, 2048), default=32, help=told)
        told = "1 for grey, 3 for colours (default: what the first images are)"
        add("--channels", type=int, choices=[1, 3], help=told)
        told = "share of every class for testing, where the folder has no test part"
        add("--test_fraction", type=number(float, 0.01, 0.99), default=0.2, help=told)
        told = "random shifts by up to an eighth and mirror images (default: crop_flip of colours, none of grey)"
        add("--augmentation", choices=AUGMENTATIONS, help=told)
        add("--image_mean", type=fractions, metavar="R,G,B", help="statistics of the inputs (default: measured)")
        add("--image_std", type=fractions, metavar="R,G,B", help="the same")
        told = "memory for decoded images (MB); of more than that the first are kept, the others read while one trains"
        add("--resident_mb", type=non_negative_int, default=2048, metavar="MB", help=told)
        add("--num_workers", type=non_negative_int, default=0, help="processes that read images; 0: the run itself")
        return parser

    @classmethod
    def _add_source(cls, parser) -> None:
        """Options that say where the images are."""
        told = f"folder or zip archive: {cls.LAYOUT}"
        parser.add_argument("--folder", required=True, metavar="PATH", help=told)

    def _tree(self, args) -> Tree:
        """The files."""
        return Tree(args.folder)

    def _take(self, args, tree: Tree, train: list[str], test: list[str]) -> None:
        """Set what the stream's class has else: SIZE, MEAN, STD, AUGMENT.

        Args:
            train, test: names of all images, sorted by class.
        """
        if (args.image_mean is None) != (args.image_std is None):
            raise UserError("--image_mean and --image_std go together: give both or neither")
        if args.image_std is not None and min(args.image_std) <= 0:
            raise UserError("--image_std: expected numbers above 0")
        step = max(1, len(train) // PROBED)
        channels = args.channels or count_channels(tree, train[::step][:PROBED])
        self._train_files, self._test_files = (
            ImageFiles(tree, names, args.image_size, channels) for names in (train, test)
        )
        self.SIZE, self._caches = self._train_files.shape, {}
        self.resident = self._train_files.nbytes + self._test_files.nbytes <= args.resident_mb * 2**20
        kind = args.augmentation or ("crop_flip" if channels == 3 else "none")
        if kind != "none":
            self.AUGMENT = {"crop_padding": max(1, args.image_size // 8), "flip": kind == "crop_flip"}
        base = Path(args.base_path).expanduser()
        self._images = [load_images(f, base) if self.resident else f for f in (self._train_files, self._test_files)]
        self.MEAN, self.STD = args.image_mean, args.image_std
        if self.MEAN is None:
            files = self._train_files[:: max(1, len(train) // MEASURED)]
            if args.normalize == "dataset":
                told = "inputs normalised by statistics of all tasks' training images (--image_mean and --image_std)"
                self.declared_leaks = {STATISTICS: told}
            self.MEAN, self.STD = statistics(self._images[0] if self.resident else files.decoded())

    def _raw(self, train_y: Tensor, test_y: Tensor) -> RawData:
        """Both parts with their labels; sets `checksum`. Images that are not in memory stay `ImageFiles`."""
        raw = RawData(self._images[0], train_y, self._images[1], test_y)
        if self.resident:
            self.checksum = raw.checksum
        else:
            self.device = torch.device("cpu")
            if self.args.data_device == "cuda":
                raise UserError(f"--data_device cuda: the images do not fit into --resident_mb {self.args.resident_mb}")
            keys = self._train_files.key + self._test_files.key
            labels = train_y.numpy().tobytes() + test_y.numpy().tobytes()
            self.checksum = hashlib.blake2b(keys.encode() + labels, digest_size=16).hexdigest()
        return raw

    def _on_device(self, images: Tensor | ImageFiles, targets: Tensor) -> Split | StreamedImages:
        if isinstance(images, Tensor):
            return super()._on_device(images, targets)
        whole = len(self._train_files) + len(self._test_files)
        fitting = self.args.resident_mb * 2**20 * len(images) // (whole * self._train_files[:1].nbytes)
        split = StreamedImages(images, targets, fitting, self.args.num_workers)
        split.cache = self._caches.setdefault(id(images), split.cache)  # the same images may have other labels
        return split

    @property
    def waited(self) -> float:
        """Seconds that training has waited for images."""
        return getattr(self._train, "waited", 0.0)


def listed(classes: dict[str, list[str]], names: list[str]) -> tuple[list[str], Tensor]:
    """All images of some classes one after the other, and their labels, positions among `names`."""
    files = [file for name in names for file in classes.get(name, ())]
    sizes = torch.tensor([len(classes.get(name, ())) for name in names])
    return files, torch.repeat_interleave(sizes)
