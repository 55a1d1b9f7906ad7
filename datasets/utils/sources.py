"""Raw data of the benchmarks: each source is read into one uint8 tensor per split.

`source(base_path) -> RawData`, for the sources `digits`, `mnist`, `fashion_mnist`, `kmnist`, `cifar10`, `cifar100`,
`svhn` and `tinyimagenet`. Files are looked for in torchvision's layout and downloaded when they are missing.
Whatever the user can mend (missing, truncated or altered files, a folder without write permission) is a one-line
`UserError`. The last two sources that were read stay in memory, so treat the tensors as read-only.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import math
import os
import socket
import sys
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError

# Where Debian's package dataset-fashion-mnist puts the four .gz files. Only read.
SYSTEM_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
# A cluster node behind a firewall would otherwise wait minutes for each connection.
NETWORK_TIMEOUT_SECONDS = 30
REPLACE = "replace it with the official file, or delete it to have it downloaded again"


SPLITS = ("train_x", "train_y", "test_x", "test_y")


@dataclass
class RawData:
    """Both splits of a source.

    Attributes:
        train_x: (N, C, H, W) uint8.
        train_y: (N,) int64 labels in [0, classes).
        test_x: (M, C, H, W) uint8.
        test_y: (M,) int64.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @functools.cached_property
    def checksum(self) -> str:
        """BLAKE2b of pixels and labels, 32 hexadecimal digits: equal for equal data, however they are stored."""
        digest = hashlib.blake2b(digest_size=16)
        for name in SPLITS:
            digest.update(getattr(self, name).contiguous().numpy())
        return digest.hexdigest()


def digits(base_path: str) -> RawData:
    """scikit-learn's embedded handwritten digits: 1 x 8 x 8, 10 classes, 1347 training and 450 test images.

    Grey levels 0..16 become round(v * 255 / 16). The split is stratified and the same for every seed. Reads no file.
    """
    return _read(_read_digits, "digits", base_path)


def mnist(base_path: str) -> RawData:
    """MNIST: 1 x 28 x 28, 10 classes, 60000 / 10000; idx files, plain or .gz, in `<base_path>/MNIST/raw`."""
    return _read(_read_idx_family, "MNIST", base_path)


def fashion_mnist(base_path: str) -> RawData:
    """Fashion-MNIST, as `mnist`, in `<base_path>/FashionMNIST/raw`, else where Debian's package installs it."""
    return _read(_read_idx_family, "FashionMNIST", base_path)


def has_fashion_mnist(base_path: str) -> bool:
    """Whether `fashion_mnist` finds its files without a network."""
    folders = (Path(base_path).expanduser() / "FashionMNIST/raw", SYSTEM_FASHION_MNIST)
    return any(all(_present(folder / file) for file in IDX_FILES) for folder in folders)


def kmnist(base_path: str) -> RawData:
    """Kuzushiji-MNIST, as `mnist`, in `<base_path>/KMNIST/raw`."""
    return _read(_read_idx_family, "KMNIST", base_path)


def cifar10(base_path: str) -> RawData:
    """CIFAR-10: 3 x 32 x 32, 10 classes, 50000 / 10000; Python batches in `<base_path>/cifar-10-batches-py`.

    The official archive `cifar-10-python.tar.gz` in `<base_path>` is unpacked when the folder is incomplete.
    """
    return _read(_read_cifar, "CIFAR10", base_path)


def cifar100(base_path: str) -> RawData:
    """CIFAR-100 with its 100 fine labels, as `cifar10`, in `<base_path>/cifar-100-python`."""
    return _read(_read_cifar, "CIFAR100", base_path)


def svhn(base_path: str) -> RawData:
    """SVHN, cropped digits: 3 x 32 x 32, 10 classes (digit 0 is class 0), 73257 / 26032; two .mat in `<base_path>`."""
    return _read(_read_svhn, "SVHN", base_path)


def tinyimagenet(base_path: str) -> RawData:
    """Tiny ImageNet: 3 x 64 x 64, 200 classes in the order of their WordNet ids, 100000 / 10000 (its validation split).

    Reads the official folder `<base_path>/tiny-imagenet-200`, else `<base_path>/tiny-imagenet-200.zip` in place. The
    decoded pixels are kept in `<base_path>/tiny-imagenet-200-decoded.npz` for the next start. That file is written anew
    when the number of source files or a modification time differs, and is enough on its own when folder and archive
    are gone.
    """
    return _read(_read_tinyimagenet, "tiny-imagenet-200", base_path)


def _read(reader: Callable[[str, Path], RawData], name: str, base_path: str) -> RawData:
    return _read_once(reader, name, os.path.abspath(os.path.expanduser(base_path)))


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
    return RawData(*_checked(name, train_x, train_y, (1, 8, 8), 10), *_checked(name, test_x, test_y, (1, 8, 8), 10))


def _read_idx_family(name: str, base: Path) -> RawData:
    raw = Path(name) / "raw"
    files = [_present(base / raw / file) for file in IDX_FILES]
    if not all(files) and name == "FashionMNIST":
        files = [_present(SYSTEM_FASHION_MNIST / file) for file in IDX_FILES]
    if not all(files):
        from torchvision import datasets

        source = getattr(datasets, name)
        advice = f"put the four .gz files of {source.mirrors[0]} into {base / raw}"
        if name == "FashionMNIST":
            advice += f", or Debian's package dataset-fashion-mnist into {SYSTEM_FASHION_MNIST}"
        _fetch(
            name,
            base,
            wanted=[raw / file for file in IDX_FILES],
            download=lambda folder: source(folder, download=True),
            advice=advice,
        )
        files = [_present(base / raw / file) for file in IDX_FILES]
    arrays = [_read_idx(name, file) for file in files]
    splits = []
    for first in (0, 2):
        images, labels = arrays[first : first + 2]
        splits += _checked(f"{files[first]} and {files[first + 1].name}", images[:, None], labels, (1, 28, 28), 10)
    return RawData(*splits)


def _read_idx(name: str, path: Path) -> np.ndarray:
    """Reads one idx file of bytes, plain or .gz (torchvision's reader takes plain files only)."""

    def is_altered() -> list[Path]:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        official = dict(getattr(datasets, name).resources)
        return [] if check_integrity(path, official.get(path.name)) else [path]

    with _reading(path, is_altered):
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        dimensions = int(path.name.split("-idx")[1][0])
        if content[:4] != bytes([0, 0, 8, dimensions]):
            raise ValueError(f"no idx header of {dimensions} dimensions of bytes")
        shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
        start = 4 + 4 * dimensions
        if len(content) - start != math.prod(shape):
            raise ValueError(
                f"{len(content) - start} bytes of data where the header {shape} asks for {math.prod(shape)}"
            )
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


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

    _fetch(
        name,
        base,
        wanted=[Path(source.base_folder) / file for file in checksums],
        download=download,
        advice=f"put {source.url} into {base}",
    )
    with _reading(folder, lambda: [folder / f for f, md5 in checksums.items() if not check_integrity(folder / f, md5)]):
        train, test = (source(str(base), train=flag) for flag in (True, False))
    shape, classes = (3, 32, 32), len(train.classes)
    return RawData(
        *_checked(folder, train.data.transpose(0, 3, 1, 2), train.targets, shape, classes),
        *_checked(folder, test.data.transpose(0, 3, 1, 2), test.targets, shape, classes),
    )


def _read_svhn(name: str, base: Path) -> RawData:
    from torchvision.datasets import SVHN
    from torchvision.datasets.utils import check_integrity

    files = {split: SVHN.split_list[split] for split in ("train", "test")}

    def download(staging: str) -> None:
        for split, (_, file, _) in files.items():
            if not (base / file).is_file():
                SVHN(staging, split, download=True)

    _fetch(
        name,
        base,
        wanted=[Path(file) for _, file, _ in files.values()],
        download=download,
        advice=f"put {' and '.join(url for url, _, _ in files.values())} into {base}",
    )
    splits = []
    for split, (_, file, md5) in files.items():
        path = base / file
        with _reading(path, lambda path=path, md5=md5: [] if check_integrity(path, md5) else [path]):
            data = SVHN(str(base), split)
        splits += _checked(path, data.data, data.labels, (3, 32, 32), 10)
    return RawData(*splits)


def _read_tinyimagenet(name: str, base: Path) -> RawData:
    cache = base / f"{name}-decoded.npz"
    if _tiny_origin(base / name) is None:
        # Somebody may have kept only the decoded pixels: a hundred thousand small files are a burden on a cluster.
        if (data := _load_decoded(cache, None)) is not None:
            return data
        _fetch_tiny(name, base)
    origin, state = _tiny_origin(base / name)
    if (data := _load_decoded(cache, state)) is not None:
        return data
    with contextlib.ExitStack() as stack:
        # In a folder that cannot be written there is neither a cache nor anything to guard.
        with contextlib.suppress(OSError):
            stack.enter_context(_lock(base, name))
        # Another process may have decoded while this one waited.
        if (data := _load_decoded(cache, state)) is None:
            data = _decode_tiny(origin)
            _save_decoded(cache, state, data)
    return data


def _fetch_tiny(name: str, base: Path) -> None:
    from torchvision.datasets.utils import download_url

    archive = f"{name}.zip"
    _fetch(
        name,
        base,
        wanted=[Path(archive)],
        download=lambda staging: download_url(TINY_URL, staging, archive, TINY_MD5),
        advice=f"put {TINY_URL} or the folder unpacked from it into {base}",
    )


def _tiny_origin(folder: Path) -> tuple[Path, str] | None:
    """Returns the folder or the archive beside it, and a text that changes when its content does; None without both.

    A directory's modification time changes with every file added, removed or renamed in it; asking for the time of each
    image would take minutes on a network file system.
    """
    if folder.is_dir():
        files, times = 0, 0
        for part in ("train", "val"):
            for directory, _, names in os.walk(folder / part):
                files += len(names)
                times += os.stat(directory).st_mtime_ns
        for text in (folder / "wnids.txt", folder / "val/val_annotations.txt"):
            times += text.stat().st_mtime_ns if text.is_file() else 0
        return folder, f"folder, {files} files, times {times}"
    archive = folder.with_suffix(".zip")
    if archive.is_file():
        stat = archive.stat()
        return archive, f"archive, {stat.st_size} bytes, time {stat.st_mtime_ns}"
    return None


@contextlib.contextmanager
def _open_tiny(origin: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """Yields the names of the training images, relative to the folder, and a function that reads such a file."""
    if origin.is_dir():
        yield (
            [path.relative_to(origin).as_posix() for path in origin.glob("train/*/images/*.JPEG")],
            lambda name: (origin / name).read_bytes(),
        )
    else:
        import zipfile

        root = f"{origin.stem}/"
        with _reading(origin):
            archive = zipfile.ZipFile(origin)
        with archive:
            names = [name.removeprefix(root) for name in archive.namelist() if name.endswith(".JPEG")]
            yield [name for name in names if name.startswith("train/")], lambda name: archive.read(root + name)


def _decode_tiny(origin: Path) -> RawData:
    with _open_tiny(origin) as (listing, read):
        with _reading(origin / "wnids.txt"):
            wnids = sorted(read("wnids.txt").decode().split())
        with _reading(origin / "val/val_annotations.txt"):
            annotations = [line.split("\t")[:2] for line in read("val/val_annotations.txt").decode().splitlines()]
            label_of = {wnid: label for label, wnid in enumerate(wnids)}
            test_y = [label_of[wnid] for _, wnid in annotations]
        images = {wnid: [] for wnid in wnids}
        for name in sorted(listing):
            wnid = name.split("/")[1]
            if wnid in images:
                images[wnid].append(name)
        # The official classes are equally large; an unpacking that was interrupted leaves some smaller.
        largest = max(map(len, images.values()), default=0)
        for wnid, names in images.items():
            if len(names) < max(largest, 1):
                raise UserError(
                    f"{origin}: train/{wnid}/images holds {len(names)} images, other classes {largest}: "
                    "the copy is incomplete, unpack or download the archive again"
                )
        train_x = _decode_images(origin, read, [name for names in images.values() for name in names])
        test_x = _decode_images(origin, read, [f"val/images/{file}" for file, _ in annotations])
        train_y = [label for label, names in enumerate(images.values()) for _ in names]
        shape = (3, 64, 64)
        return RawData(
            *_checked(origin / "train", train_x, train_y, shape, len(wnids)),
            *_checked(origin / "val", test_x, test_y, shape, len(wnids)),
        )


def _decode_images(origin: Path, read: Callable[[str], bytes], names: list[str]) -> np.ndarray:
    """Decodes JPEG files to (N, 3, 64, 64) uint8; grey ones become RGB. Decoding releases the GIL, so threads help."""
    from PIL import Image

    pixels = np.empty((len(names), 3, 64, 64), np.uint8)

    def decode(indices: range) -> None:
        for i in indices:
            with _reading(origin / names[i]):
                image = Image.open(io.BytesIO(read(names[i]))).convert("RGB")
                if image.size != (64, 64):
                    raise ValueError(f"{image.width}x{image.height} pixels, expected 64x64")
            pixels[i] = np.asarray(image).transpose(2, 0, 1)

    step = 500
    chunks = [range(first, min(first + step, len(names))) for first in range(0, len(names), step)]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode, chunks):
            pass
    return pixels


def _load_decoded(cache: Path, state: str | None) -> RawData | None:
    """Reads the decoded pixels; None when there are none, they are damaged, or they belong to another `state`."""
    # A damaged copy is only worth decoding again: whatever numpy raises for it means the same.
    with contextlib.suppress(Exception), np.load(cache, allow_pickle=False) as arrays:
        if state is None or str(arrays["state"]) == state:
            return RawData(*(torch.from_numpy(arrays[key]) for key in SPLITS))
    return None


def _save_decoded(cache: Path, state: str, data: RawData) -> None:
    """Writes the decoded pixels in one step, so that no reader ever meets half a file."""
    partial = cache.with_name(f".{cache.stem}-{uuid.uuid4().hex}.npz")
    try:
        with partial.open("xb") as file:
            np.savez(file, state=np.array(state), **{key: getattr(data, key).numpy() for key in SPLITS})
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, cache)
    except OSError as error:
        warnings.warn(
            f"{cache}: cannot be written ({_one_line(error)}); the images will be decoded again at the next start",
            stacklevel=2,
        )
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _checked(
    where: Path | str, images: np.ndarray, labels: Sequence[int], shape: tuple[int, int, int], classes: int
) -> tuple[Tensor, Tensor]:
    """Returns one split as tensors (N, *shape) uint8 and (N,) int64 after checking that the two belong together."""
    if len(images) == 0 or images.shape[1:] != shape or images.dtype != np.uint8:
        raise UserError(
            f"{where}: images {tuple(images.shape)} {images.dtype}, expected (N, {', '.join(map(str, shape))}) uint8 "
            f"with N >= 1: {REPLACE}"
        )
    x = torch.from_numpy(np.require(images, requirements="CW"))
    y = torch.as_tensor(np.array(labels, dtype=np.int64))
    if len(x) != len(y):
        raise UserError(f"{where}: {len(x)} images but {len(y)} labels, the two do not belong together: {REPLACE}")
    if y.min() < 0 or y.max() >= classes:
        raise UserError(f"{where}: labels from {y.min()} to {y.max()}, expected 0 to {classes - 1}: {REPLACE}")
    return x, y


def _present(path: Path) -> Path | None:
    """Returns the file, else its .gz form, else None."""
    return next((p for p in (path, path.with_name(f"{path.name}.gz")) if p.is_file()), None)


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@contextlib.contextmanager
def _reading(path: Path, find_altered: Callable[[], list[Path]] = list) -> Iterator[None]:
    """Turns whatever a reader of foreign files raises into one line that names the file.

    Args:
        path: the file or folder being read.
        find_altered: finds the files whose checksum is not the official one. Asked only after a failure.
    """
    try:
        yield
    except (UserError, MemoryError, ImportError):
        raise
    except OSError as error:
        # Without an error number it is a decoder's word for bad content.
        if error.errno is None:
            raise _damaged(path, error, find_altered()) from error
        raise UserError(
            f"{path}: cannot be read ({_one_line(error)}): check that it exists and its permissions"
        ) from error
    except Exception as error:
        raise _damaged(path, error, find_altered()) from error


def _damaged(path: Path, error: Exception, altered: list[Path]) -> UserError:
    if altered:
        names = ", ".join(map(str, altered))
        return UserError(f"{names}: truncated or altered, the MD5 checksum is not the official one: {REPLACE}")
    return UserError(f"{path}: truncated or damaged ({_one_line(error)}): {REPLACE}")


@contextlib.contextmanager
def _lock(base: Path, name: str) -> Iterator[None]:
    """Lets one process at a time into the block.

    The lock file is removed at the end. Processes that then hold different lock files do no harm: what they write,
    they write elsewhere and put in place in one step.
    """
    from filelock import FileLock

    path = base / f".{name}.lock"
    with FileLock(path):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()


def _fetch(name: str, base: Path, wanted: list[Path], download: Callable[[str], object], advice: str) -> None:
    """Downloads what is missing into a folder of its own, then moves each complete file into place.

    A process that is killed meanwhile leaves at most its `.download-*` folder, which nobody reads.

    Args:
        name: the source, for messages and the lock.
        base: the data folder; made when it does not exist, and removed again when nothing came.
        wanted: the files, relative to `base`; one that is there as .gz counts as present.
        download: fills the folder whose path it is given with the wanted files, checksums verified.
        advice: what somebody without a network can do, for the message.

    Raises:
        UserError: files are missing and the download failed, or `download` raised it.
    """

    def missing() -> list[Path]:
        return [file for file in wanted if _present(base / file) is None]

    if not missing():
        return
    new_folders = [folder for folder in (base, *base.parents) if not folder.exists()]
    try:
        base.mkdir(parents=True, exist_ok=True)
        with _lock(base, name):
            # Another process may have finished the download while this one waited.
            if missing():
                with tempfile.TemporaryDirectory(dir=base, prefix=".download-") as staging, _patient_network():
                    download(staging)
                    for file in missing():
                        (base / file).parent.mkdir(parents=True, exist_ok=True)
                        os.replace(Path(staging) / file, base / file)
    except (UserError, MemoryError, ImportError):
        raise
    except Exception as error:
        names = ", ".join(file.name for file in missing())
        raise UserError(
            f"{name}: {names} not found in {base / wanted[0].parent} and not downloaded: {advice}, or name another "
            f"folder with --base_path, or try the embedded data of --dataset seq-digits ({_one_line(error)})"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            for folder in new_folders:
                folder.rmdir()


@contextlib.contextmanager
def _patient_network() -> Iterator[None]:
    """A time limit for silent connections, and no progress bars in log files."""
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_SECONDS)
    try:
        with contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        socket.setdefaulttimeout(timeout)
