"""The readers of raw data, on tiny files in the official formats."""

import io
import multiprocessing
import os
import sys
import tarfile
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from palimpsest.datasets.utils import sources, tinyimagenet
from palimpsest.datasets.utils.sources import IDX_FILES, RawData
from palimpsest.utils.errors import UserError
from tests.datasets import formats

IDX_SOURCES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}


@pytest.fixture(autouse=True)
def isolated(monkeypatch):
    """Without a network, without the system's own files, with nothing kept from another test; small files are taken for
    the official ones (`test_official.py` has the comparison).
    """

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(sources, "SYSTEM_FASHION_MNIST", Path("/nonexistent"))
    formats.accept_small(monkeypatch)
    sources._read_once.cache_clear()


def equal(a: RawData, b: RawData) -> bool:
    return all(
        torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def error_of(source, base) -> str:
    sources._read_once.cache_clear()
    with pytest.raises(UserError) as caught:
        source(str(base))
    message = str(caught.value)
    assert "\n" not in message
    return message


def contents(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def damaged(path: Path, damage) -> str:
    """The path, its file changed by a function of bytes or gone."""
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    return str(path)


# ---- digits


def test_digits_are_split_alike_for_every_seed():
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    data = sources.digits("anywhere")
    assert data.train_x.shape == (1347, 1, 8, 8) and data.test_x.shape == (450, 1, 8, 8)
    assert data.train_x.dtype == torch.uint8 and data.train_y.dtype == torch.int64
    # The levels 0..16 become round(v * 255 / 16).
    levels = torch.cat([data.train_x, data.test_x]).unique().tolist()
    assert levels == [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    counts = torch.bincount(data.test_y)
    assert counts.min() >= 43 and counts.max() <= 46
    np.random.seed(2)  # noqa: NPY002
    sources._read_once.cache_clear()
    assert equal(data, sources.digits("anywhere"))


# ---- the MNIST family


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", IDX_SOURCES)
def test_idx_family(tmp_path, name, compress):
    expected = formats.write_idx_family(tmp_path / IDX_SOURCES[name] / "raw", compress=compress)
    before = contents(tmp_path)
    data = getattr(sources, name)(str(tmp_path))
    assert equal(data, expected) and data.train_x.shape == (30, 1, 28, 28)
    assert contents(tmp_path) == before
    if not compress:
        reference = getattr(datasets, IDX_SOURCES[name])(tmp_path, train=True)
        assert torch.equal(data.train_x.squeeze(1), reference.data) and torch.equal(data.train_y, reference.targets)


def test_fashion_mnist_of_the_system_is_read_and_never_written(tmp_path, monkeypatch):
    system = tmp_path / "system"
    expected = formats.write_idx_family(system, compress=True)
    monkeypatch.setattr(sources, "SYSTEM_FASHION_MNIST", system)
    before = contents(tmp_path)
    assert equal(sources.fashion_mnist(str(tmp_path / "data")), expected)
    assert contents(tmp_path) == before and not (tmp_path / "data").exists()
    # One's own copy comes first; MNIST never takes files that only share the names.
    own = formats.write_idx_family(tmp_path / "own" / "FashionMNIST" / "raw", n_train=10)
    assert equal(sources.fashion_mnist(str(tmp_path / "own")), own)
    error_of(sources.mnist, tmp_path / "data")


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Debian's dataset-fashion-mnist is not installed"
)
def test_official_fashion_mnist(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SYSTEM_FASHION_MNIST", Path("/usr/share/datasets/fashion-mnist"))
    data = sources.fashion_mnist(str(tmp_path))
    assert data.train_x.shape == (60000, 1, 28, 28) and data.test_x.shape == (10000, 1, 28, 28)
    assert torch.bincount(data.train_y).tolist() == [6000] * 10 and data.train_y[:5].tolist() == [9, 0, 0, 3, 0]
    # The statistics everybody normalises with.
    pixels = data.train_x.double() / 255
    assert pixels.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3530, abs=5e-5)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("file", range(4))
@pytest.mark.parametrize(
    "damage",
    [lambda b: b"", lambda b: b[:3], lambda b: b[:10], lambda b: b[:-1], lambda b: b + b"x", lambda b: b"<html>" + b],
    ids=["empty", "3", "10", "short", "long", "other"],
)
def test_damaged_idx_file_is_named(tmp_path, compress, file, damage):
    raw = tmp_path / "MNIST" / "raw"
    formats.write_idx_family(raw, compress=compress)
    path = damaged(raw / (IDX_FILES[file] + (".gz" if compress else "")), damage)
    message = error_of(sources.mnist, tmp_path)
    assert path in message and ("the MD5" if compress else "truncated or damaged") in message


@pytest.mark.parametrize(
    ("shape", "labels", "words"),
    [
        ((29, 28, 28), range(30), "29 images but 30 labels"),
        ((30, 14, 14), range(30), "(30, 1, 14, 14)"),
        ((0, 28, 28), [], "N >= 1"),
        ((2, 28, 28), [0, 10], "labels from 0 to 10"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, shape, labels, words):
    raw = tmp_path / "MNIST" / "raw"
    formats.write_idx_family(raw)
    (raw / IDX_FILES[0]).write_bytes(formats.idx_bytes(np.zeros(shape, np.uint8)))
    (raw / IDX_FILES[1]).write_bytes(formats.idx_bytes(np.array(labels, dtype=np.uint8)))
    assert words in error_of(sources.mnist, tmp_path)


def test_unreadable_file_is_not_called_damaged(tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    formats.write_idx_family(raw)

    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", deny)
    message = error_of(sources.mnist, tmp_path)
    assert IDX_FILES[0] in message and "permission" in message and "truncated" not in message


# ---- CIFAR and SVHN


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "SVHN"])
def test_cifar_and_svhn(tmp_path, monkeypatch, name):
    expected = formats.official(monkeypatch, tmp_path, name)
    data = getattr(sources, name.lower())(str(tmp_path))
    assert equal(data, expected) and data.train_x.shape[1:] == (3, 32, 32) and data.train_x.is_contiguous()


@pytest.mark.parametrize(
    ("name", "file"),
    [("CIFAR10", "data_batch_3"), ("CIFAR100", "test"), ("CIFAR100", "meta"), ("SVHN", "test_32x32.mat")],
)
def test_altered_file_is_named(tmp_path, monkeypatch, name, file):
    formats.official(monkeypatch, tmp_path, name)
    path, source = damaged(next(tmp_path.rglob(file)), lambda b: b[:-5]), getattr(sources, name.lower())
    message = error_of(source, tmp_path)
    assert message.startswith(path) and "MD5" in message and "download=True" not in message
    if name == "SVHN":  # the right checksum of a file that scipy cannot read
        formats.accept(monkeypatch, tmp_path, name)
        message = error_of(source, tmp_path)
        assert message.startswith(path) and "truncated or damaged" in message


def test_cifar_archive_in_the_data_folder_is_unpacked(tmp_path, monkeypatch):
    expected = formats.official(monkeypatch, tmp_path / "made", "CIFAR10")
    base, other = tmp_path / "data", tmp_path / "other"
    base.mkdir()
    archive = base / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", formats.md5(archive))
    assert equal(sources.cifar10(str(base)), expected)
    # A truncated archive is named, and nothing of it is unpacked.
    other.mkdir()
    (other / archive.name).write_bytes(archive.read_bytes()[:-100])
    message = error_of(sources.cifar10, other)
    assert message.startswith(str(other / archive.name)) and "MD5" in message
    assert contents(other) == [archive.name]


# ---- Tiny ImageNet


def zipped(folder: Path) -> Path:
    """A data folder with the archive of what lies in another one."""
    base = folder / "zipped"
    base.mkdir()
    with zipfile.ZipFile(base / "tiny-imagenet-200.zip", "w") as archive:
        for file in contents(folder / "tiny-imagenet-200"):
            archive.write(folder / "tiny-imagenet-200" / file, f"tiny-imagenet-200/{file}")
    return base


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
def test_tinyimagenet(tmp_path, as_zip):
    expected = formats.write_tinyimagenet(tmp_path)
    base = zipped(tmp_path) if as_zip else tmp_path
    before = contents(base)
    data = sources.tinyimagenet(str(base))
    assert equal(data, expected) and contents(base) == before
    assert data.train_x.shape == (12, 3, 64, 64) and data.train_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4


def small_jpeg(_: bytes) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 64)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("train/n00000011/images/n00000011_2.JPEG", lambda b: b[: len(b) // 2], "truncated"),
        ("train/n00000011/images/n00000011_2.JPEG", lambda b: b"text", "UnidentifiedImageError"),
        ("train/n00000012/images/n00000012_3.JPEG", None, "holds 3 images, 1 too few"),
        ("val/images/val_0.JPEG", small_jpeg, "val_0.JPEG: truncated or damaged (ValueError: 32x64 pixels"),
        ("val/images/val_3.JPEG", None, "val_3.JPEG"),
        ("val/val_annotations.txt", None, "val_annotations.txt"),
        ("val/val_annotations.txt", lambda b: b.replace(b"n00000011", b"n99999999", 1), "n99999999"),
        ("wnids.txt", None, "wnids.txt"),
        ("wnids.txt", lambda b: b + b"n00000050", "train/n00000050/images holds 0 images"),
    ],
)
def test_damaged_tinyimagenet_is_named(tmp_path, as_zip, name, damage, words):
    formats.write_tinyimagenet(tmp_path)
    damaged(tmp_path / "tiny-imagenet-200" / name, damage)
    message = error_of(sources.tinyimagenet, zipped(tmp_path) if as_zip else tmp_path)
    assert words in message and "tiny-imagenet-200" in message


def test_truncated_tinyimagenet_archive_is_named(tmp_path):
    formats.write_tinyimagenet(tmp_path)
    path = damaged(zipped(tmp_path) / "tiny-imagenet-200.zip", lambda b: b[:-200])
    message = error_of(sources.tinyimagenet, tmp_path / "zipped")
    assert message.startswith(path) and "BadZipFile" in message


# ---- downloads


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist", [*IDX_FILES, "MNIST/raw", "no network in tests"]),
        ("cifar100", ["cifar-100-python.tar.gz", "train, test, meta not found"]),
        ("tinyimagenet", [tinyimagenet.TINY_URL]),
    ],
)
def test_missing_files_end_in_one_helpful_line(tmp_path, name, words):
    base = tmp_path / "not" / "there"
    message = error_of(getattr(sources, name), base)
    for part in (*words, str(base), "--base_path", "--dataset seq-digits"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "write", "file"),
    [
        ("KMNIST", lambda base: formats.write_idx_family(base / "KMNIST/raw"), f"KMNIST/raw/{IDX_FILES[1]}"),
        ("SVHN", formats.write_svhn, "test_32x32.mat"),
    ],
)
def test_only_what_is_missing_is_named(tmp_path, name, write, file):
    write(tmp_path)
    damaged(tmp_path / file, None)
    before = contents(tmp_path)
    assert f"{name}: {Path(file).name} not found" in error_of(getattr(sources, name.lower()), tmp_path)
    assert contents(tmp_path) == before


def pretend_download(monkeypatch, log: Path, seconds: float = 0.0, fail: bool = False) -> None:
    """Replaces torchvision's MNIST download by one that writes small files, slowly, and notes each call."""

    def download(self):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        print("progress bar", file=sys.stderr)
        formats.write_idx_family(Path(self.raw_folder))
        time.sleep(seconds)
        if fail:
            raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(datasets.MNIST, "download", download)


def test_download_leaves_only_the_files(tmp_path, monkeypatch, capsys):
    pretend_download(monkeypatch, tmp_path / "log")
    base = tmp_path / "data"
    data = sources.mnist(str(base))
    assert equal(data, formats.write_idx_family(tmp_path / "expected"))
    assert contents(base) == sorted(f"MNIST/raw/{name}" for name in IDX_FILES)
    assert capsys.readouterr().err == ""


def test_failed_download_leaves_nothing(tmp_path, monkeypatch):
    pretend_download(monkeypatch, tmp_path / "log", fail=True)
    assert "File not found or corrupted" in error_of(sources.mnist, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def _read_in_child(base: str, queue) -> None:
    queue.put(sources.mnist(base).train_x.sum().item())


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="the platform cannot fork")
def test_processes_that_start_together_download_once(tmp_path, monkeypatch):
    pretend_download(monkeypatch, tmp_path / "log", seconds=0.5)
    base = tmp_path / "data"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        children = [context.Process(target=_read_in_child, args=(str(base), queue)) for _ in range(4)]
        for child in children:
            child.start()
    sums = [queue.get(timeout=20) for _ in children]
    for child in children:
        child.join(timeout=20)
        assert child.exitcode == 0
    assert len(set(sums)) == 1
    assert len((tmp_path / "log").read_text().splitlines()) == 1
    assert contents(base) == sorted(f"MNIST/raw/{name}" for name in IDX_FILES)


def test_a_source_is_read_once_in_a_process(tmp_path, monkeypatch):
    formats.write_idx_family(tmp_path / "MNIST" / "raw")
    first = sources.mnist(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert sources.mnist(".") is first
    assert sources._read_once.cache_info().maxsize == 2
