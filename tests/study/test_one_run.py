"""What a run in a process of its own tells."""

import io

import pytest

from palimpsest.utils.run.experiment import execute
from palimpsest.utils.run.finished import RECORD
from palimpsest.utils.study import one_run
from palimpsest.utils.study.jobs import Job
from palimpsest.utils.study.records import read_runs

pytestmark = pytest.mark.usefixtures("undrawn")
SGD = [
    "--model",
    "sgd",
    "--dataset",
    "seq-digits",
    "--debug_mode",
    "--stop_after",
    "2",
    "--no_tensorboard",
    "--report",
    "off",
]


@pytest.fixture
def tell(tmp_path, monkeypatch):
    """(what was told on the way, the outcome) of a command line."""
    monkeypatch.setattr(one_run, "_redirect", lambda file: None)

    def call(*argv, seed=None, **facts):
        told, output = [], io.BytesIO(b"printed before\n")
        pipe = type("Pipe", (), {"send": staticmethod(told.append)})
        job = Job("job", [*SGD, *argv, "--results_path", str(tmp_path)], seed, "seeds_of_mine", facts)
        return told, one_run._outcome(job, one_run.Teller(pipe, output))

    return call


def test_a_run_tells_its_share_and_is_not_repeated(tell, tmp_path):
    told, (state, folder, trained, metrics) = tell("--seeds", "3", "4", seed=4, chosen_on="a coin")
    assert (state, trained) == ("finished", True) and "_seed4_" in folder and metrics["class-il"]["acc"] > 0
    shares = [share for kind, share, _ in told if kind == "share"]
    assert shares[0] == 0 and shares[-1] == 1 and sorted(shares) == shares and 0.5 in shares
    assert [words for _, share, words in told if share == 0] == ["task 1/2"]
    (run,) = read_runs(tmp_path)
    assert run.facts["group"] == "seeds_of_mine" and run.chosen_on == "a coin" and not run.trial
    assert (run.folder / one_run.OUTPUT).read_text() == "printed before\n"
    again = tell("--seeds", "3", "4", seed=4)
    assert again == ([], ("finished", folder, False, metrics))
    (run.folder / RECORD).write_text("")  # of this run alone: the others may go on
    _, (state, reason, trace) = tell("--seeds", "3", "4", seed=4)
    assert state == "failed" and "move the folder away" in reason and not trace


def test_what_holds_for_every_run_is_refused_and_what_happens_in_one_has_failed(tell, monkeypatch, tmp_path):
    assert tell("--lr", "-1")[1][0] == "refused"
    state, reason = tell("--start_from", "9")[1]  # found when the stream is there
    assert state == "refused" and "has 5 task(s)" in reason and not [*tmp_path.iterdir()]
    _, (state, reason, trace) = tell("--lr", "1e30", "--n_epochs", "1")
    assert state == "failed" and "not finite" in reason or "nan" in reason and not trace

    def defect(*_, **__):
        raise ZeroDivisionError("of the program")

    monkeypatch.setattr(one_run, "execute", defect)
    _, (state, reason, trace) = tell()
    assert (state, reason) == ("failed", "ZeroDivisionError: of the program") and "in defect" in trace


def test_nobody_listens_any_more(tell, monkeypatch):
    def broken(config, listeners, **_):
        listeners[0].pipe.send = lambda told: (_ for _ in ()).throw(BrokenPipeError())
        return execute(config, listeners=listeners)

    monkeypatch.setattr(one_run, "execute", broken)
    assert tell()[1][0] == "finished"
