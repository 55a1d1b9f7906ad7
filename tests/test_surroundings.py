"""What surrounds a run and is not its business: who reads its output, in which encoding, and what a disk answers."""

import errno
import io
import os
import shutil
import subprocess
import sys
import threading

import pytest

import main as entry
from palimpsest.models.sgd import SGD
from palimpsest.utils.registry import ROOT
from tests.kills import at_call

ARGV = ["--model", "sgd", "--dataset", "seq-digits", "--n_epochs", "1", "--label_perc", "0.1", "--stop_after", "2"]
ARGV += ["--num_threads", "1", "--non_verbose"]
SEEDS = [*ARGV, "--seeds", "0", "1", "--notes", "caf\u00e9 \u2192 \U0001f600"]
pytestmark = pytest.mark.usefixtures("undrawn")


def started(*argv: str, environment=None, **streams) -> subprocess.CompletedProcess:
    command = [sys.executable, "main.py", *argv]
    return subprocess.run(command, cwd=ROOT, env=os.environ | (environment or {}), timeout=120, **streams)


@pytest.mark.parametrize("argv", [["--list"], ["--help"], ARGV + ["--disable_log"]])
def test_output_that_nobody_reads_ends_without_a_traceback(argv):
    reading, writing = os.pipe()
    os.close(reading)
    done = started(*argv, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    if "--help" in argv:  # argparse itself overlooks that nobody reads
        assert (done.returncode, done.stderr) == (0, "")
    else:
        told = "main.py: ended, since nobody reads the output any more; a run that was saved goes on with --resume\n"
        assert (done.returncode, done.stderr) == (141, "" if argv == ["--list"] else told)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("argv", [["--list"], ARGV + ["--disable_log"]])
def test_output_to_a_full_disk_is_one_line(argv):
    with open("/dev/full", "w") as full:
        done = started(*argv, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("main.py: error: cannot write the output: No space left on device; free some space")


def test_a_run_needs_no_output_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    assert entry.main([*SEEDS, "--results_path", str(tmp_path)]) == 0


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_run_reports_on_a_console_of_any_encoding(tmp_path, monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding=encoding))
    assert entry.main([*SEEDS, "--results_path", str(tmp_path)]) == 0
    text = written.getvalue()
    assert b"2 seeds: mean" in text and (b" +- " if encoding == "ascii" else "\u00b1".encode("latin-1")) in text


def test_a_run_without_a_locale_reports_and_writes_its_files(tmp_path):
    plain = {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = started(*SEEDS, "--results_path", str(tmp_path), environment=plain, capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert b"2 seeds: mean" in done.stdout and done.stdout.isascii()


def test_an_error_about_a_strange_name_is_one_line_on_any_console():
    done = started("--model", "\u00e9t\u00e9", environment={"PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert done.returncode == 2 and done.stderr.isascii() and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("answer", [errno.ENOSPC, errno.ESTALE])
def test_a_thread_that_cannot_write_is_told_in_the_one_line_alone(tmp_path, capfd, monkeypatch, answer):
    from tensorboard.summary.writer.record_writer import RecordWriter

    written = []

    def write(self, data):
        written.append(data)
        if len(written) > 3:
            raise OSError(answer, os.strerror(answer))

    monkeypatch.setattr(RecordWriter, "write", write)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    assert entry.main([*ARGV, "--results_path", str(tmp_path)]) == 2
    err = capfd.readouterr().err
    assert err.startswith("main.py: error: cannot write ") and os.strerror(answer) in err and err.count("\n") == 1, err


def test_a_thread_of_somebody_else_keeps_its_traceback(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    assert entry.main([*ARGV, "--results_path", str(tmp_path)]) == 0

    def fail():
        raise OSError(errno.ENOSPC, "mine")

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    assert "Traceback" in capfd.readouterr().err


def test_a_folder_that_vanishes_is_one_line(tmp_path, capfd, monkeypatch):
    results = tmp_path / "results"

    def vanish(loss):
        shutil.rmtree(results)
        return loss

    at_call(monkeypatch, SGD, 2, vanish)
    assert entry.main([*ARGV, "--results_path", str(results), "--savecheck", "1"]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "its folder was removed or unmounted" in err
