"""Official data that read well are compared with their checksums, in whatever form they lie there."""

import gzip
import hashlib
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torchvision import datasets

from palimpsest.datasets.utils import sources, tinyimagenet
from palimpsest.datasets.utils.sources import IDX_FILES
from palimpsest.utils.errors import UserError
from tests.datasets import formats


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(sources, "SYSTEM_FASHION_MNIST", Path("/nonexistent"))
    sources._read_once.cache_clear()


def refused(source, base) -> str:
    sources._read_once.cache_clear()
    with pytest.raises(UserError) as caught:
        source(str(base))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def turn_a_pixel(path: Path) -> None:
    """The last byte is another one; the file is as long as before and reads as well."""
    packed, content = path.suffix == ".gz", bytearray(path.read_bytes())
    content = bytearray(gzip.decompress(content)) if packed else content
    content[-1] ^= 1
    path.write_bytes(gzip.compress(content) if packed else content)


def take_for_official(monkeypatch, raw: Path, name: str) -> None:
    """The idx files in a folder are the official ones from now on."""
    contents = []
    for file in IDX_FILES:
        path = raw / file
        contents.append(path.read_bytes() if path.is_file() else gzip.decompress((raw / f"{file}.gz").read_bytes()))
    monkeypatch.setitem(sources.CONTENT_MD5, name, tuple(hashlib.md5(c).hexdigest() for c in contents))


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("file", range(4))
def test_an_idx_file_that_reads_well_and_is_another_one_is_named(tmp_path, monkeypatch, compress, file):
    raw = tmp_path / "MNIST" / "raw"
    formats.write_idx_family(raw, compress=compress)
    take_for_official(monkeypatch, raw, "MNIST")
    sources.mnist(str(tmp_path))
    path = raw / (IDX_FILES[file] + (".gz" if compress else ""))
    turn_a_pixel(path)
    message = refused(sources.mnist, tmp_path)
    assert message.startswith(f"{path}: altered, the MD5")


def test_an_official_file_may_be_packed_anew(tmp_path, monkeypatch):
    raw = tmp_path / "FashionMNIST" / "raw"
    expected = formats.write_idx_family(raw, compress=True)
    take_for_official(monkeypatch, raw, "FashionMNIST")
    path = raw / f"{IDX_FILES[0]}.gz"
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 1, mtime=5))
    assert sources.fashion_mnist(str(tmp_path)).checksum == expected.checksum


def test_an_unpacked_file_is_held_against_the_packed_one(tmp_path, monkeypatch):
    raw = tmp_path / "KMNIST" / "raw"
    formats.write_idx_family(raw, compress=True)
    official = [(f"{file}.gz", formats.md5(raw / f"{file}.gz")) for file in IDX_FILES]
    monkeypatch.setattr(datasets.KMNIST, "resources", official)
    formats.write_idx_family(raw)
    sources.kmnist(str(tmp_path))
    turn_a_pixel(raw / IDX_FILES[1])
    assert refused(sources.kmnist, tmp_path).startswith(f"{raw / IDX_FILES[1]}: altered")
    # Without the packed file there is the official number of images to go by.
    (raw / f"{IDX_FILES[0]}.gz").unlink()
    assert refused(sources.kmnist, tmp_path).startswith(f"{raw / IDX_FILES[0]}: altered")
    for file, n in zip(IDX_FILES, (60000, 60000, 10000, 10000), strict=True):
        (raw / f"{file}.gz").unlink(missing_ok=True)
        shape = (n, 28, 28) if "idx3" in file else (n,)
        (raw / file).write_bytes(formats.idx_bytes(np.zeros(shape, np.uint8)))
    sources._read_once.cache_clear()
    assert len(sources.kmnist(str(tmp_path)).train_x) == 60000


def small_tinyimagenet(monkeypatch, base: Path) -> Path:
    """A folder and the archive it is unpacked from, both official."""
    formats.write_tinyimagenet(base)
    for name, n in (("N_CLASSES", 3), ("N_TRAIN", 4), ("N_TEST", 6)):
        monkeypatch.setattr(tinyimagenet, name, n)
    archive, folder = base / "tiny-imagenet-200.zip", base / "tiny-imagenet-200"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in folder.rglob("*"):
            packed.write(path, path.relative_to(base))
    monkeypatch.setattr(tinyimagenet, "TINY_MD5", formats.md5(archive))
    return folder


def test_an_archive_that_is_not_the_official_one_is_named(tmp_path, monkeypatch):
    folder = small_tinyimagenet(monkeypatch, tmp_path)
    folder.rename(tmp_path / "elsewhere")
    sources.tinyimagenet(str(tmp_path))
    monkeypatch.setattr(tinyimagenet, "TINY_MD5", "0" * 32)
    assert refused(sources.tinyimagenet, tmp_path).startswith(f"{tmp_path / 'tiny-imagenet-200.zip'}: truncated or alt")


def test_an_unpacked_image_is_held_against_the_archive(tmp_path, monkeypatch):
    folder = small_tinyimagenet(monkeypatch, tmp_path)
    data = sources.tinyimagenet(str(tmp_path))
    one, other = (folder / f"val/images/val_{i}.JPEG" for i in (0, 1))
    one.write_bytes(other.read_bytes())
    assert "val_0.JPEG" in refused(sources.tinyimagenet, tmp_path)
    (tmp_path / "tiny-imagenet-200.zip").unlink()  # there is nothing left to compare with but the numbers
    sources._read_once.cache_clear()
    assert sources.tinyimagenet(str(tmp_path)).checksum != data.checksum


@pytest.mark.parametrize("name", ["N_CLASSES", "N_TRAIN", "N_TEST"])
def test_a_folder_without_the_official_numbers_is_named(tmp_path, monkeypatch, name):
    small_tinyimagenet(monkeypatch, tmp_path)
    monkeypatch.setattr(tinyimagenet, name, getattr(tinyimagenet, name) + 1)
    assert "1 too few" in refused(sources.tinyimagenet, tmp_path)
