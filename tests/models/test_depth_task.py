"""A new kind of task is one class and its stream: methods of any task learn it, report it and resume on it."""

from pathlib import Path

import pytest
import torch

from tests.models.helpers import Command, finished
from utils import conformance
from utils.config import resolve
from utils.experiment import execute

STREAM = str(Path(__file__).with_name("depth_stream.py"))
METHODS = {"er": ["--buffer_size", "100"], "lwf": ["--alpha", "3"], "ewc": ["--e_lambda", "10"]}
pytestmark = pytest.mark.usefixtures("undrawn")


def floor(dataset, task) -> float:
    """The score of the mean depth of each pixel over the training examples."""
    score, test = dataset.tasks[task].score(), dataset.test_loaders[task].dataset.targets
    score.add(dataset.task_data(task).targets.mean(0).expand_as(test), test)
    return score.result()["delta1"]


@pytest.mark.parametrize("model", METHODS)
def test_a_method_learns_depth_and_reports_it(model, tmp_path, capsys):
    argv = ["--model", model, "--dataset", STREAM, *METHODS[model], "--num_threads", "1", "--exp_name", "x"]
    run, dataset = execute(resolve([*argv, "--results_path", str(tmp_path)]))[0], None
    exp = finished(model, *METHODS[model], dataset=STREAM)
    dataset = exp.dataset
    matrix = run.matrices["domain-il"]
    print(model, matrix, [floor(dataset, t) for t in range(2)], run.history[-1].others)


def test_x():
    exp = finished("sgd", dataset=STREAM)
    print(exp.run.matrices)
