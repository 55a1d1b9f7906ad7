"""The readers of CIFAR, SVHN and Tiny ImageNet, on tiny files in the official formats."""

import io
import os
import tarfile
import zipfile

import numpy as np
import pytest
import torch

from datasets.utils import sources, tinyimagenet
from datasets.utils.sources import RawData
from tests.datasets import formats, test_sources
from tests.datasets.test_sources import contents, equal, error_of

isolated = test_sources.isolated  # a fixture for every test here

# ---- CIFAR


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100"])
def test_cifar(tmp_path, monkeypatch, name):
    expected = formats.write_cifar(tmp_path, name)
    formats.accept_cifar(monkeypatch, tmp_path, name)
    data = getattr(sources, name.lower())(str(tmp_path))
    assert equal(data, expected)
    assert data.train_x.shape == (50, 3, 32, 32) and data.train_x.is_contiguous()


@pytest.mark.parametrize(("name", "file"), [("CIFAR10", "data_batch_3"), ("CIFAR100", "test"), ("CIFAR100", "meta")])
def test_altered_cifar_file_is_named(tmp_path, monkeypatch, name, file):
    formats.write_cifar(tmp_path, name)
    formats.accept_cifar(monkeypatch, tmp_path, name)
    (path,) = tmp_path.glob(f"*/{file}")
    path.write_bytes(path.read_bytes()[:-5])
    message = error_of(getattr(sources, name.lower()), tmp_path)
    assert message.startswith(str(path)) and "MD5" in message and "download=True" not in message


def test_missing_cifar(tmp_path):
    message = error_of(sources.cifar100, tmp_path)
    assert "cifar-100-python.tar.gz" in message and "train, test, meta not found" in message
    assert list(tmp_path.iterdir()) == []


def test_cifar_archive_in_the_data_folder_is_unpacked(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    expected = formats.write_cifar(tmp_path / "made")
    formats.accept_cifar(monkeypatch, tmp_path / "made")
    base = tmp_path / "data"
    base.mkdir()
    archive = base / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    monkeypatch.setattr(CIFAR10, "tgz_md5", formats._md5(archive))
    assert equal(sources.cifar10(str(base)), expected)

    # A truncated archive is named, and nothing of it is unpacked.
    other = tmp_path / "other"
    other.mkdir()
    (other / archive.name).write_bytes(archive.read_bytes()[:-100])
    message = error_of(sources.cifar10, other)
    assert message.startswith(str(other / archive.name)) and "MD5" in message
    assert contents(other) == [archive.name]


# ---- SVHN


def test_svhn(tmp_path, monkeypatch):
    expected = formats.write_svhn(tmp_path)
    formats.accept_svhn(monkeypatch, tmp_path)
    data = sources.svhn(str(tmp_path))
    assert equal(data, expected)
    assert data.train_x.is_contiguous() and data.train_y[0] == 0


def test_damaged_svhn_file_is_named(tmp_path, monkeypatch):
    formats.write_svhn(tmp_path)
    formats.accept_svhn(monkeypatch, tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-50])
    message = error_of(sources.svhn, tmp_path)
    assert message.startswith(str(path)) and "MD5" in message
    # The right checksum of a file that scipy cannot read.
    formats.accept_svhn(monkeypatch, tmp_path)
    sources._read_once.cache_clear()
    message = error_of(sources.svhn, tmp_path)
    assert message.startswith(str(path)) and "truncated or damaged" in message


def test_missing_svhn_split(tmp_path, monkeypatch):
    formats.write_svhn(tmp_path)
    formats.accept_svhn(monkeypatch, tmp_path)
    (tmp_path / "test_32x32.mat").unlink()
    message = error_of(sources.svhn, tmp_path)
    assert "SVHN: test_32x32.mat not found" in message
    assert contents(tmp_path) == ["train_32x32.mat"]


# ---- Tiny ImageNet

CACHE = "tiny-imagenet-200-decoded.npz"


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
def test_tinyimagenet(tmp_path, monkeypatch, as_zip):
    expected = formats.write_tinyimagenet(tmp_path, as_zip=as_zip)
    before = contents(tmp_path)
    data = sources.tinyimagenet(str(tmp_path))
    assert equal(data, expected)
    assert data.train_x.shape == (12, 3, 64, 64) and data.train_y.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert contents(tmp_path) == sorted([*before, CACHE])

    # The second start decodes nothing.
    monkeypatch.setattr(tinyimagenet, "_decode_tiny", lambda origin: pytest.fail("decoded again"))
    sources._read_once.cache_clear()
    again = sources.tinyimagenet(str(tmp_path))
    assert equal(again, expected) and again is not data


def test_tinyimagenet_cache_follows_its_source(tmp_path):
    def fresh() -> RawData:
        sources._read_once.cache_clear()
        return sources.tinyimagenet(str(tmp_path))

    formats.write_tinyimagenet(tmp_path)
    fresh()
    # Another number of images, even where the directories claim the same time.
    folders = [path for path in (tmp_path / "tiny-imagenet-200").rglob("*") if path.is_dir() or path.suffix == ".txt"]
    times = [path.stat().st_mtime_ns for path in folders]
    larger = formats.write_tinyimagenet(tmp_path, per_class=5)
    for path, time_ns in zip(folders, times, strict=True):
        os.utime(path, ns=(time_ns, time_ns))
    assert equal(fresh(), larger)
    # The same number, another time: an image replaced through a rename.
    images = sorted((tmp_path / "tiny-imagenet-200" / "train").glob("*/images/*.JPEG"))
    (tmp_path / "new").write_bytes(images[1].read_bytes())
    os.replace(tmp_path / "new", images[0])
    os.utime(images[0].parent, ns=(1, 1))
    assert torch.equal(fresh().train_x[0], larger.train_x[1])


def test_tinyimagenet_cache_alone_is_enough_and_a_damaged_one_is_not(tmp_path):
    expected = formats.write_tinyimagenet(tmp_path, as_zip=True)
    sources.tinyimagenet(str(tmp_path))
    cache, archive = tmp_path / CACHE, tmp_path / "tiny-imagenet-200.zip"
    good = cache.read_bytes()
    for bad in (b"", b"not a zip", good[: len(good) // 2], good[:5000] + b"\xff" * 20 + good[5020:]):
        cache.write_bytes(bad)
        sources._read_once.cache_clear()
        assert equal(sources.tinyimagenet(str(tmp_path)), expected)
    assert cache.read_bytes() != bad

    archive.unlink()
    sources._read_once.cache_clear()
    assert equal(sources.tinyimagenet(str(tmp_path)), expected)
    cache.write_bytes(good[:100])
    sources._read_once.cache_clear()
    assert "tiny-imagenet-200.zip not found" in error_of(sources.tinyimagenet, tmp_path)


def test_tinyimagenet_without_room_for_the_cache(tmp_path, monkeypatch):
    expected = formats.write_tinyimagenet(tmp_path)
    before = contents(tmp_path)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.warns(UserWarning, match="No space left"):
        data = sources.tinyimagenet(str(tmp_path))
    assert equal(data, expected) and contents(tmp_path) == before


@pytest.mark.parametrize("as_zip", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("train/n00000011/images/n00000011_2.JPEG", lambda b: b[: len(b) // 2], "truncated"),
        ("train/n00000011/images/n00000011_2.JPEG", lambda b: b"text", "UnidentifiedImageError"),
        ("train/n00000012/images/n00000012_3.JPEG", None, "holds 3 images, other classes 4"),
        ("val/images/val_3.JPEG", None, "val_3.JPEG"),
        ("val/val_annotations.txt", None, "val_annotations.txt"),
        ("val/val_annotations.txt", lambda b: b.replace(b"n00000011", b"n99999999", 1), "n99999999"),
        ("wnids.txt", None, "wnids.txt"),
        ("wnids.txt", lambda b: b + b"n00000050", "train/n00000050/images holds 0 images"),
    ],
)
def test_damaged_tinyimagenet_is_named(tmp_path, as_zip, name, change, words):
    formats.write_tinyimagenet(tmp_path)
    path = tmp_path / "tiny-imagenet-200" / name
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_bytes()))
    base = tmp_path
    if as_zip:
        base = tmp_path / "zipped"
        base.mkdir()
        with zipfile.ZipFile(base / "tiny-imagenet-200.zip", "w") as archive:
            for file in contents(tmp_path / "tiny-imagenet-200"):
                archive.write(tmp_path / "tiny-imagenet-200" / file, f"tiny-imagenet-200/{file}")
    message = error_of(sources.tinyimagenet, base)
    assert words in message and "tiny-imagenet-200" in message
    assert not (base / CACHE).exists()


def test_image_of_another_size_is_named(tmp_path):
    from PIL import Image

    formats.write_tinyimagenet(tmp_path)
    stream = io.BytesIO()
    Image.new("RGB", (32, 64)).save(stream, "JPEG")
    (tmp_path / "tiny-imagenet-200/val/images/val_0.JPEG").write_bytes(stream.getvalue())
    message = error_of(sources.tinyimagenet, tmp_path)
    assert "val_0.JPEG" in message and "32x64" in message


def test_truncated_tinyimagenet_archive_is_named(tmp_path):
    formats.write_tinyimagenet(tmp_path, as_zip=True)
    archive = tmp_path / "tiny-imagenet-200.zip"
    archive.write_bytes(archive.read_bytes()[:-200])
    message = error_of(sources.tinyimagenet, tmp_path)
    assert message.startswith(str(archive)) and "BadZipFile" in message


def test_missing_tinyimagenet(tmp_path):
    message = error_of(sources.tinyimagenet, tmp_path / "new")
    assert tinyimagenet.TINY_URL in message and "--dataset seq-digits" in message
    assert list(tmp_path.iterdir()) == []
