"""When the machine fails: one line, the right status, nothing lost, and `--resume` completes once the cause is gone."""

import math
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import main as entry
from palimpsest.models.sgd import SGD
from palimpsest.utils.run import checkpoint
from tests.kills import at_call, run_folder

ARGV = ["--model", "sgd", "--dataset", "seq-digits", "--num_threads", "1", "--non_verbose", "--n_epochs", "3"]
ARGV += ["--savecheck", "5", "--resume", "--optimizer", "adam", "--lr", "0.001", "--stop_after", "3"]
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> bytes:
    """metrics.csv of the run that nothing happened to."""
    results = tmp_path_factory.mktemp("undisturbed")
    assert entry.main([*ARGV, "--results_path", str(results)]) == 0
    return (run_folder(results) / "metrics.csv").read_bytes()


def completed(results: Path) -> bytes:
    assert entry.main([*ARGV, "--results_path", str(results)]) == 0
    return (run_folder(results) / "metrics.csv").read_bytes()


def mount(*argv: str) -> None:
    done = subprocess.run(["mount", *argv], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")


@contextmanager
def small_disk(folder: Path, size: str):
    """A file system of its own in a folder."""
    if sys.platform != "linux" or not shutil.which("mount"):
        pytest.skip("needs Linux's tmpfs")
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("size", ["16k", "100k", "1m"])
def test_a_full_disk_is_one_line_and_the_run_completes_with_more_room(tmp_path, undisturbed, capsys, size):
    results = tmp_path / "disk"
    with small_disk(results, size):
        assert entry.main([*ARGV, "--results_path", str(results)]) == 2
        err = capsys.readouterr().err
        assert "No space left on device" in err and "free some space" in err and err.count("\n") == 1
        for file in results.rglob("*.pt"):
            assert checkpoint.verify(file)
        mount("-o", "remount,size=64m", str(results))
        assert completed(results) == undisturbed


def test_a_folder_that_becomes_read_only_is_one_line_and_the_run_completes_later(
    tmp_path, undisturbed, capsys, monkeypatch
):
    results = tmp_path / "disk"
    with small_disk(results, "64m"):
        at_call(monkeypatch, SGD, 33, out_of_memory)
        assert entry.main([*ARGV, "--results_path", str(results)]) == 1
        monkeypatch.undo()
        capsys.readouterr()
        mount("-o", "remount,ro", str(results))
        assert entry.main([*ARGV, "--results_path", str(results)]) == 2
        err = capsys.readouterr().err
        assert "Read-only file system" in err and err.count("\n") == 1
        mount("-o", "remount,rw", str(results))
        assert completed(results) == undisturbed


def out_of_memory(loss):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def no_memory_on_the_host(loss):
    raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize("failure", [out_of_memory, no_memory_on_the_host])
def test_too_little_memory_names_batch_sizes_to_try(tmp_path, capsys, monkeypatch, undisturbed, failure):
    at_call(monkeypatch, SGD, 48, failure)
    assert entry.main([*ARGV, "--results_path", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "out of memory" in err and "--batch_size 16 or 8" in err and "checkpoint.pt" in err and err.count("\n") == 1
    monkeypatch.undo()
    assert completed(tmp_path) == undisturbed


def test_a_loss_that_is_not_a_number_keeps_the_last_good_checkpoint(tmp_path, capsys, monkeypatch, undisturbed):
    at_call(monkeypatch, SGD, 48, lambda loss: {"loss": loss * math.nan, "penalty": loss * 0})
    assert entry.main([*ARGV, "--results_path", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "loss is nan at step 48 (task 1; loss nan, penalty 0)" in err and err.count("\n") == 1
    kept = run_folder(tmp_path) / "checkpoint.pt"
    assert str(kept) in err and checkpoint.verify(kept).step == 45
    monkeypatch.undo()
    assert completed(tmp_path) == undisturbed


def test_data_that_are_gone_or_others_stop_the_run_and_nothing_is_lost(tmp_path, capsys, monkeypatch):
    from tests.datasets.formats import accept_small, write_idx_family

    accept_small(monkeypatch)
    data, results = tmp_path / "data", tmp_path / "results"
    write_idx_family(data / "KMNIST" / "raw")
    argv = ["--model", "sgd", "--dataset", "seq-kmnist", "--base_path", str(data), "--results_path", str(results)]
    argv += ["--n_epochs", "2", "--batch_size", "4", "--savecheck", "2", "--resume", "--num_threads", "1"]
    argv += ["--backbone", "mnistmlp"]
    assert entry.main(argv) == 0
    folder = run_folder(results)
    whole = (folder / "metrics.csv").read_bytes()
    (folder / "result.yaml").unlink()
    (folder / "checkpoint.pt").unlink()
    from palimpsest.datasets.utils import sources

    sources._read_once.cache_clear()
    data.rename(tmp_path / "elsewhere")
    monkeypatch.setattr("urllib.request.urlopen", out_of_memory)
    capsys.readouterr()
    assert entry.main(argv) == 2
    err = capsys.readouterr().err
    assert str(data) in err and err.count("\n") == 1
    write_idx_family(data / "KMNIST" / "raw", n_train=40)
    sources._read_once.cache_clear()
    assert entry.main(argv) == 2
    assert "are not those the run in" in capsys.readouterr().err
    shutil.rmtree(data)
    (tmp_path / "elsewhere").rename(data)
    sources._read_once.cache_clear()
    assert entry.main(argv) == 0
    assert (folder / "metrics.csv").read_bytes() == whole
