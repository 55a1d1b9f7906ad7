"""The readers of raw data, on tiny files in the official formats."""

import multiprocessing
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.utils import sources
from datasets.utils.sources import IDX_FILES, RawData
from tests.datasets import formats
from utils.errors import UserError

REPOSITORY = Path(sources.__file__).parents[2]
IDX_SOURCES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}


@pytest.fixture(autouse=True)
def isolated(monkeypatch):
    """Without a network, without the system's own files, with nothing kept from another test."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(sources, "SYSTEM_FASHION_MNIST", Path("/nonexistent"))
    sources._read_once.cache_clear()


def equal(a: RawData, b: RawData) -> bool:
    return all(
        torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(vars(a).values(), vars(b).values(), strict=True)
    )


def error_of(source, base) -> str:
    with pytest.raises(UserError) as caught:
        source(str(base))
    message = str(caught.value)
    assert "\n" not in message
    return message


def contents(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# ---- digits


def test_digits():
    data = sources.digits("anywhere")
    assert data.train_x.shape == (1347, 1, 8, 8) and data.test_x.shape == (450, 1, 8, 8)
    assert data.train_x.dtype == torch.uint8 and data.train_y.dtype == torch.int64
    # The levels 0..16 become round(v * 255 / 16).
    levels = torch.cat([data.train_x, data.test_x]).unique().tolist()
    assert levels == [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]
    counts = torch.bincount(data.test_y)
    assert counts.min() >= 43 and counts.max() <= 46


def test_digits_split_is_the_same_for_every_seed():
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    first = sources.digits("a")
    np.random.seed(2)  # noqa: NPY002
    sources._read_once.cache_clear()
    assert equal(first, sources.digits("a"))


# ---- the MNIST family


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("name", IDX_SOURCES)
def test_idx_family(tmp_path, name, compress):
    expected = formats.write_idx_family(tmp_path / IDX_SOURCES[name] / "raw", compress=compress)
    before = contents(tmp_path)
    data = getattr(sources, name)(str(tmp_path))
    assert equal(data, expected)
    assert data.train_x.shape == (30, 1, 28, 28)
    assert contents(tmp_path) == before


def test_idx_reader_agrees_with_torchvision(tmp_path):
    from torchvision.datasets import MNIST

    formats.write_idx_family(tmp_path / "MNIST" / "raw")
    data, reference = sources.mnist(str(tmp_path)), MNIST(tmp_path, train=True)
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
    assert torch.bincount(data.train_y).tolist() == [6000] * 10
    assert torch.bincount(data.test_y).tolist() == [1000] * 10
    assert data.train_y[:5].tolist() == [9, 0, 0, 3, 0]
    # The statistics everybody normalises with.
    pixels = data.train_x.double() / 255
    assert pixels.mean().item() == pytest.approx(0.2860, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3530, abs=5e-5)


def test_missing_files_end_in_one_helpful_line(tmp_path):
    base = tmp_path / "not" / "there"
    message = error_of(sources.mnist, base)
    for part in (*IDX_FILES, str(base / "MNIST" / "raw"), "--base_path", "--dataset seq-digits", "no network in tests"):
        assert part in message
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_missing_is_named(tmp_path):
    raw = tmp_path / "KMNIST" / "raw"
    formats.write_idx_family(raw)
    (raw / IDX_FILES[1]).unlink()
    before = contents(tmp_path)
    message = error_of(sources.kmnist, tmp_path)
    assert f"KMNIST: {IDX_FILES[1]} not found" in message
    assert contents(tmp_path) == before


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("file", range(4))
@pytest.mark.parametrize("kept", [0, 3, 10, -1])
def test_truncated_idx_file_is_named(tmp_path, compress, file, kept):
    raw = tmp_path / "MNIST" / "raw"
    formats.write_idx_family(raw, compress=compress)
    path = raw / (IDX_FILES[file] + (".gz" if compress else ""))
    path.write_bytes(path.read_bytes()[:kept])
    message = error_of(sources.mnist, tmp_path)
    assert str(path) in message and "truncated" in message


def test_altered_idx_files_are_named(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    formats.write_idx_family(raw, compress=True)
    path = raw / f"{IDX_FILES[0]}.gz"
    good = path.read_bytes()
    for bad in (b"<html>not found</html>", good[:60] + bytes([good[60] ^ 255]) + good[61:]):
        path.write_bytes(bad)
        message = error_of(sources.mnist, tmp_path)
        assert str(path) in message and "MD5" in message
    path.unlink()
    (raw / IDX_FILES[0]).write_bytes(formats.idx_bytes(np.zeros((30, 28, 28), np.uint8)) + b"extra")
    assert IDX_FILES[0] in error_of(sources.mnist, tmp_path)


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
    if list(labels) != list(range(30)):
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


# ---- downloads


def pretend_download(monkeypatch, log: Path, seconds: float = 0.0, fail: bool = False) -> None:
    """Replaces torchvision's MNIST download by one that writes small files, slowly, and notes each call."""
    from torchvision.datasets import MNIST

    def download(self):
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        print("progress bar", file=sys.stderr)
        formats.write_idx_family(Path(self.raw_folder))
        time.sleep(seconds)
        if fail:
            raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr(MNIST, "download", download)


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


# ---- all of them


def test_a_source_is_read_once_in_a_process(tmp_path, monkeypatch):
    formats.write_idx_family(tmp_path / "MNIST" / "raw")
    first = sources.mnist(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert sources.mnist(".") is first
    assert sources._read_once.cache_info().maxsize == 2


def test_importing_the_module_is_light():
    code = (
        "import sys, datasets.utils.sources, datasets.utils.transforms;"
        "print([m for m in ('torchvision', 'sklearn', 'PIL', 'scipy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
