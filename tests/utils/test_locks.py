"""One process at a time, also where the file system has no locks."""

import errno
import multiprocessing
import os

import pytest
from filelock import FileLock

import main as entry
from palimpsest.utils.atomic import LockTaken, file_errors, locked
from palimpsest.utils.errors import UserError
from palimpsest.utils.log.mean_accs import append_row

ARGV = ["--model", "sgd", "--dataset", "seq-digits", "--n_epochs", "1", "--label_perc", "0.1", "--stop_after", "1"]
ARGV += ["--num_threads", "1", "--non_verbose", "--resume"]
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(params=["ENOLCK", "not implemented"])
def without_locks(request, monkeypatch):
    """A file system that answers so."""

    def refuse(*args, **kwargs):
        if request.param == "not implemented":
            raise NotImplementedError("FileSystem does not appear to support flock")
        raise OSError(getattr(errno, request.param), "no locks here")

    monkeypatch.setattr(FileLock, "acquire", refuse)


def take(path, n: int) -> None:
    for i in range(n):
        append_row(path, {"run_id": f"{multiprocessing.current_process().pid}-{i}", "seed": i})


def test_a_lock_is_for_one(tmp_path):
    with (
        locked(tmp_path / "a.lock"),
        pytest.raises(LockTaken, match="taken by another process$"),
        locked(tmp_path / "a.lock"),
    ):
        raise AssertionError("two had it")


def test_without_locks_a_marker_is_for_one_and_is_named(tmp_path, without_locks):
    for _ in range(2):  # it is free again
        again = pytest.raises(LockTaken, match="delete .*a.lock.marker")
        with locked(tmp_path / "a.lock"), again, locked(tmp_path / "a.lock"):
            raise AssertionError("two had it")
    assert not (tmp_path / "a.lock.marker").exists()


def test_without_locks_two_writers_lose_no_row(tmp_path, without_locks):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=take, args=(tmp_path / "table.csv", 10)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 21


def test_without_locks_a_run_is_begun_and_shown_again_and_held_against_a_second(tmp_path, capsys, without_locks):
    argv = [*ARGV, "--results_path", str(tmp_path)]
    assert entry.main(argv) == 0 and entry.main(argv) == 0
    (folder,) = (config.parent for config in tmp_path.glob("*/*/*/*/config.yaml"))
    capsys.readouterr()
    with locked(folder / ".lock"):
        assert entry.main(argv) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "another process is running" in err and f"delete {folder / '.lock.marker'}" in err


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_what_is_no_want_of_locks_is_told_as_it_is(tmp_path, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, "refused")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(OSError) as told, locked(tmp_path / "a.lock"):
        raise AssertionError("not refused")
    assert told.value.errno == number


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, "free some space or give"), (errno.EDQUOT, "free some space or give"),
     (errno.EROFS, "make the folder writable or give"), (errno.EACCES, "make the folder writable or give"),
     (errno.ENOENT, "put it back or give"), (errno.ENOTDIR, "directory; give"), (errno.ENAMETOOLONG, "too long; give")],
)  # fmt: skip
def test_the_advice_is_about_what_is_wrong(tmp_path, number, advice):
    with pytest.raises(UserError, match=f"{advice} another --results_path") as told, file_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    assert str(told.value).count(";") == 1
