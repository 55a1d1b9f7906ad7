"""Writes tiny files in the official on-disk formats of the image sources, for tests without a network.

Every writer takes the data folder that `--base_path` would name and returns what a reader must find in the files, as
`RawData`. Labels run through the classes in turn, so any number of images holds every class as soon as it is as large
as the number of classes. torchvision compares the checksums of CIFAR and SVHN files with the official ones: `accept`
makes it expect those of the files written here.
"""

import gzip
import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import scipy.io
import torch
from PIL import Image
from torchvision import datasets

from palimpsest.datasets.utils import sources, tinyimagenet
from palimpsest.datasets.utils.sources import IDX_FILES, RawData


def _random_split(count: int, shape: tuple[int, int, int], classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, np.arange(count) % classes


def _raw_data(*arrays: np.ndarray) -> RawData:
    train_x, train_y, test_x, test_y = map(torch.from_numpy, arrays)
    return RawData(train_x, train_y.long(), test_x, test_y.long())


def idx_bytes(array: np.ndarray) -> bytes:
    """An idx file of bytes: two zeros, 8 (unsigned byte), the number of dimensions, the sizes big-endian, the data."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


def write_idx_family(folder: Path, n_train: int = 30, n_test: int = 20, compress: bool = False) -> RawData:
    """Writes the four files of MNIST, Fashion-MNIST or KMNIST, plain or .gz, into `folder` (`<base>/MNIST/raw`)."""
    train, test = _random_split(n_train, (28, 28), 10, 0), _random_split(n_test, (28, 28), 10, 1)
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(IDX_FILES, (*train, *test), strict=True):
        content = idx_bytes(array)
        (folder / (name + ".gz" * compress)).write_bytes(gzip.compress(content) if compress else content)
    return _raw_data(train[0][:, None], train[1], test[0][:, None], test[1])


def write_cifar(base: Path, name: str = "CIFAR10", n_train: int = 50, n_test: int = 20) -> RawData:
    """Writes the Python batches of "CIFAR10" (n_train a multiple of 5) or "CIFAR100"."""
    source, classes = getattr(datasets, name), int(name.removeprefix("CIFAR"))
    folder, labels_key = base / source.base_folder, "labels" if name == "CIFAR10" else "fine_labels"
    folder.mkdir(parents=True, exist_ok=True)
    train, test = _random_split(n_train, (3, 32, 32), classes, 2), _random_split(n_test, (3, 32, 32), classes, 3)
    files = [file for file, _ in source.train_list + source.test_list]
    images, labels = ([*np.split(part, len(source.train_list)), last] for part, last in zip(train, test, strict=True))
    for file, x, y in zip(files, images, labels, strict=True):
        (folder / file).write_bytes(pickle.dumps({"data": x.reshape(len(x), -1), labels_key: y.tolist()}))
    meta = {source.meta["key"]: [f"class {c}" for c in range(classes)]}
    (folder / source.meta["filename"]).write_bytes(pickle.dumps(meta))
    return _raw_data(*train, *test)


def write_svhn(base: Path, n_train: int = 30, n_test: int = 20) -> RawData:
    """Writes both .mat files: X (32, 32, 3, N), y (N, 1) with 10 for the digit 0."""
    base.mkdir(parents=True, exist_ok=True)
    splits = []
    for split, count, seed in (("train", n_train, 4), ("test", n_test, 5)):
        images, labels = _random_split(count, (3, 32, 32), 10, seed)
        stored = np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]
        scipy.io.savemat(
            base / f"{split}_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": stored}, do_compression=True
        )
        splits += [images, labels]
    return _raw_data(*splits)


def accept(monkeypatch, base: Path, name: str) -> None:
    """Makes torchvision take the files of "CIFAR10", "CIFAR100" or "SVHN" written here for the official ones."""
    source = getattr(datasets, name)
    if name == "SVHN":
        for split in ("train", "test"):
            url, file, _ = source.split_list[split]
            monkeypatch.setitem(source.split_list, split, [url, file, md5(base / file)])
        return
    folder = base / source.base_folder
    for attribute in ("train_list", "test_list"):
        files = [[file, md5(folder / file)] for file, _ in getattr(source, attribute)]
        monkeypatch.setattr(source, attribute, files)
    monkeypatch.setattr(source, "meta", source.meta | {"md5": md5(folder / source.meta["filename"])})


def accept_small(monkeypatch, classes: int = 3, per_class: int = 4, n_test: int = 6) -> None:
    """Takes the idx files and the Tiny ImageNet written here for the official ones, whatever their checksums."""
    monkeypatch.setattr(sources, "_is_official", lambda name, path, content: bool(content))
    monkeypatch.setattr(tinyimagenet, "_is_official", lambda archive: True)
    for name, n in (("N_CLASSES", classes), ("N_TRAIN", per_class), ("N_TEST", n_test)):
        monkeypatch.setattr(tinyimagenet, name, n)


def official(monkeypatch, base: Path, name: str) -> RawData:
    """Writes the files of "CIFAR10", "CIFAR100" or "SVHN" and makes torchvision take them for the official ones."""
    expected = write_svhn(base) if name == "SVHN" else write_cifar(base, name)
    accept(monkeypatch, base, name)
    return expected


def write_tinyimagenet(base: Path, classes: int = 3, per_class: int = 4, n_test: int = 6) -> RawData:
    """Writes the folder `tiny-imagenet-200`; some images are grey, as in the original.

    The ids stand in `wnids.txt` in another order than the sorted one, which the labels follow.
    """
    rng = np.random.default_rng(6)
    wnids = [f"n{10 + c:08d}" for c in range(classes)]
    files = {"wnids.txt": "\n".join(reversed(wnids)).encode() + b"\n"}

    def image(grey: bool) -> tuple[bytes, np.ndarray]:
        stream = io.BytesIO()
        # Coarse noise: JPEG keeps enough of it to tell the images apart.
        small = rng.integers(0, 256, (8, 8) if grey else (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64)).save(stream, "JPEG")
        return stream.getvalue(), np.asarray(Image.open(stream).convert("RGB")).transpose(2, 0, 1)

    train_x, test_x = [], []
    for wnid in wnids:
        for i in range(per_class):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"], pixels = image(grey=i == 0)
            train_x.append(pixels)
    test_y = np.arange(n_test) % classes
    annotations = []
    for i, label in enumerate(test_y):
        files[f"val/images/val_{i}.JPEG"], pixels = image(grey=False)
        test_x.append(pixels)
        annotations.append(f"val_{i}.JPEG\t{wnids[label]}\t0\t32\t44\t62\n")
    files["val/val_annotations.txt"] = "".join(annotations).encode()

    for name, content in files.items():
        path = base / "tiny-imagenet-200" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return _raw_data(np.stack(train_x), np.repeat(np.arange(classes), per_class), np.stack(test_x), test_y)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()
