"""A run that is killed and resumed ends as if it had never been touched; signals; two processes; repetitions."""

import csv
import os
import re
import signal
import time
from pathlib import Path

import pytest

import main as entry
from palimpsest.models.er import ER
from palimpsest.models.sgd import SGD
from palimpsest.utils import registry
from palimpsest.utils.run import checkpoint
from tests import kills

ARGV = ["--model", "er", "--dataset", "seq-digits", "--buffer_size", "50", "--num_threads", "1", "--non_verbose"]


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module", autouse=True)
def warm():
    kills.warm_up()


# A buffer, a network that grows, and weights swapped in the forward pass; the conformance suite stops every method.
OFTEN = ["er", "pnn", "packnet"]
RARELY = [*registry.names("model"), *map(str, kills.PLAIN)]
LONG = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("model, times", [
    *((model, 3) for model in OFTEN), *(pytest.param(model, 30, marks=LONG) for model in RARELY)
], ids=lambda v: Path(v).stem if isinstance(v, str) else None)  # fmt: skip
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(model, times):
    found, steps = kills.torture(model, times)
    assert not found and len(steps) == times


def signalled(number: int):
    """Sends this process a signal on the way."""
    return lambda loss: os.kill(os.getpid(), number) or loss


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_leaves_a_checkpoint_and_its_exit_status(tmp_path, capsys, monkeypatch, name, status):
    argv = [*ARGV, "--n_epochs", "1", "--stop_after", "2", "--results_path", str(tmp_path)]
    kills.at_call(monkeypatch, ER, 12, signalled(getattr(signal, name)))
    assert entry.main(argv) == status
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"stopped by {name} after iteration 12" in last and "--resume goes on" in last
    folder = kills.run_folder(tmp_path)
    assert checkpoint.verify(folder / "checkpoint.pt").step == 12
    assert entry.main([*argv, "--resume"]) == 0
    assert "from iteration 12" in capsys.readouterr().out
    assert (folder / "result.yaml").is_file() and not list(folder.glob(".*.tmp"))


def test_a_second_signal_ends_at_once_and_a_second_process_is_refused(tmp_path, capsys):
    argv = [*ARGV, "--n_epochs", "60", "--results_path", str(tmp_path), "--resume", "--savecheck", "20"]
    pid = os.fork()
    if pid == 0:
        os._exit(entry.main(argv))
    while not list(tmp_path.glob("*/*/*/*/events*")):  # until it trains
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        time.sleep(0.1)
    assert entry.main(argv) == 2
    err = capsys.readouterr().err
    assert "another process is running this configuration" in err and err.count("\n") == 1
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 143
    newest = checkpoint.newest(kills.run_folder(tmp_path))[0]
    assert newest is None or checkpoint.verify(newest)


def test_without_a_folder_a_signal_ends_the_run_and_says_that_nothing_is_kept(capsys, monkeypatch):
    kills.at_call(monkeypatch, SGD, 5, signalled(signal.SIGTERM))
    assert entry.main(["--model", "sgd", "--dataset", "seq-digits", "--disable_log", "--n_epochs", "1"]) == 143
    assert "nothing kept" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(tmp_path, capsys):
    argv = [*ARGV, "--n_epochs", "1", "--results_path", str(tmp_path), "--resume", "--savecheck", "20"]
    assert entry.main(argv) == 0
    folder = kills.run_folder(tmp_path)
    whole = (folder / "metrics.csv").read_bytes(), (folder / "result.yaml").read_bytes()
    (folder / "result.yaml").unlink()
    file = folder / "checkpoint.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    capsys.readouterr()
    assert entry.main([*ARGV, "--n_epochs", "1", "--loadcheck", str(file), "--inference_only", "--disable_log"]) == 2
    err = capsys.readouterr().err
    assert "altered" in err and "checkpoint.previous.pt" in err and err.count("\n") == 1
    assert entry.main(argv) == 0
    out = capsys.readouterr()
    assert "altered" in out.err and "checkpoint.previous.pt" in out.out
    assert whole == ((folder / "metrics.csv").read_bytes(), (folder / "result.yaml").read_bytes())
    with open(tmp_path / "class-il" / "seq-digits" / "er" / "mean_accs.csv") as f:
        assert len(list(csv.DictReader(f))) == 1


def test_a_repetition_is_identical_and_says_what_differs_otherwise(tmp_path, capsys):
    results = ["--results_path", str(tmp_path / "a")]
    assert entry.main([*ARGV, "--n_epochs", "1", "--stop_after", "2", *results]) == 0
    folder = kills.run_folder(tmp_path / "a")
    capsys.readouterr()
    again = ["--rerun", str(folder), "--results_path", str(tmp_path / "b")]
    assert entry.main(again) == 0
    assert "identical: every score and every bit" in capsys.readouterr().out
    scores = (folder / "metrics.csv").read_text()
    (folder / "metrics.csv").write_text(re.sub(r",accuracy,[\d.]+,", ",accuracy,1.0,", scores, count=1))
    assert entry.main(again) == 1
    out = capsys.readouterr().out
    assert "not identical" in out and "then" in out
    assert entry.main([*again, "--lr", "1"]) == 2
    assert "drop --lr" in capsys.readouterr().err
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("buffer_size: 50", "buffer_size: 60"))
    assert entry.main(again) == 2
    assert "config.yaml was altered" in capsys.readouterr().err


def test_loggers_evaluation_and_saving_do_not_change_the_result(tmp_path):
    argv, states = [*ARGV, "--n_epochs", "1", "--stop_after", "2", "--results_path"], set()
    for i, more in enumerate([[], ["--no_tensorboard", "--no_csv_log"], ["--savecheck", "3"], ["--eval_epochs", "1"]]):
        assert entry.main([*argv, str(tmp_path / str(i)), *more]) == 0
        (result,) = (tmp_path / str(i)).glob("*/*/*/*/result.yaml")
        states.add(re.search("state: (.*)", result.read_text())[1])
    assert len(states) == 1
