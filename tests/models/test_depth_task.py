"""A new kind of task is one class and its stream: methods of any task learn it, report it and resume on it."""

from pathlib import Path

import pytest

from palimpsest.utils.check import conformance
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import execute
from tests.models.helpers import Command, finished

STREAM = str(Path(__file__).with_name("depth_stream.py"))
METHODS = {"er": ["--buffer_size", "100"], "lwf": ["--alpha", "1"], "ewc": ["--e_lambda", "30"]}
pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def forgotten():
    """Per task the score of the mean training depth of each pixel; what fine-tuning leaves of the first task."""
    exp = finished("sgd", dataset=STREAM)
    floors = []
    for t, task in enumerate(exp.dataset.tasks):
        score, depth = task.score(), exp.dataset.test_loaders[t].dataset.targets
        score.add(exp.dataset.task_data(t).targets.mean(0).expand_as(depth), depth)
        floors.append(score.result()["delta1"])
    return floors, exp.run.matrices["domain-il"][1, 0]


@pytest.mark.parametrize("model", METHODS)
def test_depth_is_learned_kept_and_reported(model, forgotten, tmp_path, capsys):
    argv = ["--model", model, "--dataset", STREAM, *METHODS[model], "--num_threads", "1"]
    run, _ = execute(resolve([*argv, "--results_path", str(tmp_path), "--exp_name", "x"]))
    floors, left = forgotten
    scores = run.matrices["domain-il"]
    assert scores[0, 0] > floors[0] + 15 and scores[1, 1] > floors[1] + 5
    assert left < 40 and scores[1, 0] > left + 10
    assert 0 < run.history[-1].others["rmse"]["domain-il"][1] < 0.7
    assert "delta1: percent of pixels" in capsys.readouterr().out
    assert "delta1: percent of pixels" in (run.folder / "report.html").read_text()


@pytest.mark.parametrize("model", METHODS)
def test_a_run_on_depth_resumes_exactly(model):
    conformance.resumes_exactly(Command(model, *METHODS[model], dataset=STREAM), elsewhere=False)
