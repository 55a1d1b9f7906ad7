"""Raw data of the benchmarks: each source is read into one uint8 tensor per split.

`source(base_path) -> RawData`, for the sources `digits`, `mnist`, `fashion_mnist`, `kmnist`, `cifar10`, `cifar100`,
`svhn` and `tinyimagenet` at the end of this file. Files are looked for in torchvision's layout and downloaded when they
are missing. Whatever the user can mend (missing, truncated or altered files, a folder without write permission) is a
one-line `UserError`. The last two sources that were read stay in memory, so treat the tensors as read-only.
"""

import functools
import gzip
import hashlib
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from palimpsest.datasets.utils.checks import checked
from palimpsest.datasets.utils.classes import CIFAR10, CIFAR100, DIGITS, FASHION, KUZUSHIJI
from palimpsest.datasets.utils.source_files import REPLACE, RawData, fetch, present, reading
from palimpsest.datasets.utils.tinyimagenet import read_tinyimagenet
from palimpsest.utils.errors import UserError

# Where Debian's package dataset-fashion-mnist puts the four .gz files. Only read.
SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

# MD5 of what the official .gz files hold, in the order of IDX_FILES; of KMNIST those of the .gz files alone are known.
CONTENT_MD5 = {
    "MNIST": (
        "6bbc9ace898e44ae57da46a324031adb", "a25bea736e30d166cdddb491f175f624",
        "2646ac647ad5339dbf082846283269ea", "27ae3e4e09519cfbb04c329615203637",
    ),
    "FashionMNIST": (
        "f4a8712d7a061bf5bd6d2ca38dc4d50a", "9018921c3c673c538a1fc5bad174d6f9",
        "8181f5470baa50b63fa0f6fddb340f0a", "15d484375f8d13e6eb1aabb0c3f46965",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A labelled image collection: what it is, and how it is read.

    A stream whose `SOURCE` it is takes `SIZE`, `MEAN`, `STD` and `N_CLASSES` from it unless it sets them itself.

    Attributes:
        name: as torchvision has it, or the folder's.
        read: (name, data folder) -> RawData.
        citation: where it is from.
        SIZE: (C, H, W).
        N_CLASSES: number of classes.
        MEAN, STD: per-channel statistics of inputs in [0, 1], None for inputs that are only scaled to [0, 1].
        class_names: by label, None where they are only numbers.
    """

    name: str
    read: Callable[[str, Path], RawData]
    citation: str
    SIZE: tuple[int, int, int]
    N_CLASSES: int
    MEAN: tuple[float, ...] | None = None
    STD: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None

    def __call__(self, base_path: str) -> RawData:
        """Both splits, from below `base_path` or downloaded to it.

        Raises:
            UserError: files are missing and cannot be had, or are damaged.
        """
        return _read_once(self.read, self.name, os.path.abspath(os.path.expanduser(base_path)))


@functools.lru_cache(maxsize=2)
def _read_once(reader: Callable[[str, Path], RawData], name: str, base: str) -> RawData:
    return reader(name, Path(base))


def _read_digits(name: str, base: Path) -> RawData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    images = np.rint(data.images * (255 / 16)).astype(np.uint8)[:, None]
    train_x, test_x, train_y, test_y = train_test_split(
        images, data.target, test_size=0.25, random_state=0, stratify=data.target
    )
    return RawData(*checked(name, train_x, train_y, (1, 8, 8), 10), *checked(name, test_x, test_y, (1, 8, 8), 10))


def _idx_files(folder: Path) -> list[Path] | None:
    """The four files, each plain or .gz, if all are in a folder."""
    files = [present(folder / file) for file in IDX_FILES]
    return files if all(files) else None


def _read_idx_family(name: str, base: Path) -> RawData:
    raw = Path(name) / "raw"
    files = _idx_files(base / raw)
    if not files and name == "FashionMNIST":
        files = _idx_files(SYSTEM_FASHION_MNIST)
    if not files:
        from torchvision import datasets

        source = getattr(datasets, name)
        advice = f"put the four .gz files of {source.mirrors[0]} into {base / raw}"
        if name == "FashionMNIST":
            advice += f", or Debian's package dataset-fashion-mnist into {SYSTEM_FASHION_MNIST}"
        fetch(name, base, [raw / file for file in IDX_FILES], lambda folder: source(folder, download=True), advice)
        files = _idx_files(base / raw)
    splits = []
    for pair in (files[:2], files[2:]):
        images, labels = (_read_idx(name, file) for file in pair)
        splits += checked(f"{pair[0]} and {pair[1].name}", images[:, None], labels, (1, 28, 28), 10, REPLACE)
    return RawData(*splits)


def _read_idx(name: str, path: Path) -> np.ndarray:
    """Reads one idx file of bytes, plain or .gz (torchvision's reader takes plain files only).

    Raises:
        UserError: it is damaged, or reads well and is not the official one.
    """

    def is_altered() -> list[Path]:
        return [path] if path.suffix == ".gz" and not _is_official(name, path, b"") else []

    with reading(path, is_altered):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        dimensions = int(path.name.split("-idx")[1][0])
        if content[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError(f"no idx header of {dimensions} dimensions of bytes")
        shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
        start = 4 + 4 * dimensions
        if len(content) - start != math.prod(shape):
            raise ValueError(f"{len(content) - start} bytes of data, the header {shape} asks for {math.prod(shape)}")
    if not _is_official(name, path, content):
        raise UserError(f"{path}: altered, the MD5 checksum is not the official one: {REPLACE}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _is_official(name: str, path: Path, content: bytes) -> bool:
    """Whether an idx file, whose unpacked bytes are `content`, is the official one, however it is packed.

    An unpacked file of KMNIST can only be compared with the .gz file beside it; without one it must have the official
    length.
    """
    file = path.name.removesuffix(".gz")
    if hashlib.md5(content).hexdigest() in CONTENT_MD5.get(name, ())[IDX_FILES.index(file) :][:1]:
        return True
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    packed = path.with_name(f"{file}.gz")
    if packed.is_file() and check_integrity(packed, dict(getattr(datasets, name).resources)[packed.name]):
        return path == packed or gzip.decompress(packed.read_bytes()) == content
    n = 60000 if file.startswith("train") else 10000
    return name not in CONTENT_MD5 and path != packed and len(content) == (16 + 784 * n if "idx3" in file else 8 + n)


def _read_cifar(name: str, base: Path) -> RawData:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity, extract_archive

    source = getattr(datasets, name)
    checksums = dict(source.train_list + source.test_list) | {source.meta["filename"]: source.meta["md5"]}
    folder = base / source.base_folder
    archive = base / source.filename

    def download(staging: str) -> None:
        if not archive.is_file():
            source(staging, download=True)
        elif check_integrity(archive, source.tgz_md5):
            extract_archive(str(archive), staging)
        else:
            raise UserError(f"{archive}: wrong MD5 checksum, the file is truncated or altered: {REPLACE}")

    wanted = [Path(source.base_folder) / file for file in checksums]
    fetch(name, base, wanted, download, f"put {source.url} into {base}")
    with reading(folder, lambda: [folder / f for f, md5 in checksums.items() if not check_integrity(folder / f, md5)]):
        train, test = (source(str(base), train=flag) for flag in (True, False))
    splits = []
    for part in (train, test):
        images = part.data.transpose(0, 3, 1, 2)
        splits += checked(folder, images, part.targets, (3, 32, 32), len(train.classes), REPLACE)
    return RawData(*splits)


def _read_svhn(name: str, base: Path) -> RawData:
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import check_integrity

    files = {split: SVHN.split_list[split] for split in ("train", "test")}

    def download(staging: str) -> None:
        for split, (_, file, _) in files.items():
            if not (base / file).is_file():
                SVHN(staging, split, download=True)

    urls = " and ".join(url for url, _, _ in files.values())
    fetch(name, base, [Path(file) for _, file, _ in files.values()], download, f"put {urls} into {base}")
    splits = []
    for split, (_, file, md5) in files.items():
        path = base / file
        with reading(path, lambda path=path, md5=md5: [] if check_integrity(path, md5) else [path]):
            data = SVHN(str(base), split)
        splits += checked(path, data.data, data.labels, (3, 32, 32), 10, REPLACE)
    return RawData(*splits)


def has_fashion_mnist(base_path: str) -> bool:
    """Whether `fashion_mnist` finds its files without a network."""
    folders = (Path(base_path).expanduser() / "FashionMNIST/raw", SYSTEM_FASHION_MNIST)
    return any(map(_idx_files, folders))


# Grey levels 0..16 become round(v * 255 / 16). 1347 training and 450 test images, split alike for every seed; reads no
# file.
digits = Source("digits", _read_digits, "scikit-learn's embedded digits", (1, 8, 8), 10, (0.5,), (0.5,), DIGITS)

# 60000 / 10000: idx files, plain or .gz, in `<base_path>/<name>/raw`; Fashion-MNIST's else where Debian installs them.
# Scaled to [0, 1] and not normalised further: the published protocol.
mnist = Source("MNIST", _read_idx_family, "LeCun et al. 1998", (1, 28, 28), 10, class_names=DIGITS)
fashion_mnist = Source(*("FashionMNIST", _read_idx_family, "Xiao et al. 2017", (1, 28, 28), 10), class_names=FASHION)
kmnist = Source("KMNIST", _read_idx_family, "Clanuwat et al. 2018", (1, 28, 28), 10, class_names=KUZUSHIJI)

# 50000 / 10000: Python batches in `<base_path>/cifar-10-batches-py` or `cifar-100-python` (its 100 fine labels); the
# official archive in `<base_path>` is unpacked when the folder is incomplete.
cifar10 = Source(
    *("CIFAR10", _read_cifar, "Krizhevsky 2009", (3, 32, 32), 10),
    *((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615), CIFAR10),
)
cifar100 = Source(
    *("CIFAR100", _read_cifar, "Krizhevsky 2009", (3, 32, 32), 100),
    *((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), CIFAR100),
)

# 73257 / 26032 cropped digits, digit 0 being class 0: two .mat in `<base_path>`.
svhn = Source(
    *("SVHN", _read_svhn, "Netzer et al. 2011", (3, 32, 32), 10),
    *((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), DIGITS),
)

# 100000 / 10000 (its validation split), classes in the order of their WordNet ids: `<base_path>/tiny-imagenet-200` or
# its .zip, which need not be unpacked.
tinyimagenet = Source(
    *("tiny-imagenet-200", read_tinyimagenet, "the 64x64 subset of ImageNet used at Stanford", (3, 64, 64), 200),
    *((0.4802, 0.4480, 0.3975), (0.2770, 0.2691, 0.2821)),
)
