"""Streams of vectors, regression and its score, and which networks and methods take them."""

import math
import re

import numpy as np
import pytest
import torch

from palimpsest.datasets.seq_poly1d import SequentialPoly1D
from palimpsest.datasets.utils.scores import RegressionScore
from palimpsest.datasets.utils.task import RegressionTask, Task
from palimpsest.utils import registry
from palimpsest.utils.check import cases, conformance
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import held_out_scores
from palimpsest.utils.log import plots
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import execute
from tests.models.helpers import Command, experiment, finished

REGRESSION = [m for m in registry.names("model") if {Task, RegressionTask} & {*registry.load("model", m).TASKS}]
FEW = ["--n_iters", "20"]
pytestmark = pytest.mark.usefixtures("undrawn")


def stream(name, *more):
    return experiment("sgd", *more, dataset=name).dataset


# ---- the Gaussian modes


def test_modes_lie_on_a_circle_and_tasks_take_two_at_a_time():
    dataset = stream("seq-gmm2d")
    high = 5 * math.sqrt(3) / 2
    centres = [(2.5, high), (5, 0), (2.5, -high), (-2.5, -high), (-5, 0), (-2.5, high)]
    for mode, centre in enumerate(centres):
        assert dataset.centre(mode) == pytest.approx(centre, abs=1e-12)
    dataset.all_test_loaders()
    for task in range(3):
        for data, n in ((dataset.task_data(task), 10), (dataset.test_loaders[task].dataset, 100)):
            assert data.data.shape == (2 * n, 2) and data.data.dtype == torch.float32
            assert data.targets.tolist() == [2 * task] * n + [2 * task + 1] * n
            for mode in (2 * task, 2 * task + 1):
                points = data.data[data.targets == mode]
                torch.testing.assert_close(points.mean(0), torch.tensor(centres[mode]).float(), atol=0.2, rtol=0)
                assert points.std(0).min() > 0.1 and points.std(0).max() < 0.3


def test_points_do_not_depend_on_the_seed_and_tasks_can_be_reordered():
    a, b = stream("seq-gmm2d"), stream("seq-gmm2d", "--seed", "5")
    assert a.checksum == b.checksum
    turned = stream("seq-gmm2d", "--custom_task_order", "2,0,1")
    assert torch.equal(turned.task_data(1).data, a.task_data(0).data)
    assert turned.task_data(1).targets.unique().tolist() == [2, 3]
    first = np.random.RandomState(42).standard_normal((10, 2))  # noqa: NPY002
    np.testing.assert_allclose(a.task_data(0).data[:10], a.centre(0) + 0.2 * first, rtol=1e-6)


def test_the_grid_goes_row_by_row_from_the_bottom():
    grid = stream("seq-gmm2d").plot_grid(3)
    assert grid.tolist() == [[x, y] for y in (-8, 0, 8) for x in (-8, 0, 8)]


def test_modes_are_learned_and_forgotten_in_class_il_alone():
    scores = finished("sgd", "--lr", "0.01", "--n_iters", "150", dataset="seq-gmm2d").run.matrices
    assert scores["task-il"][2, 2] == 100 and scores["class-il"][2, 0] < 50


# ---- the polynomials


@pytest.mark.parametrize(
    "which, ends",
    [
        (3, [((-4, -1), (-2, 1)), ((-1, 1), (1, 1)), ((2, 1), (4, -1))]),
        (1, [((-4, -1), (-2, 1)), ((-1, 1), (1, 1)), ((2, -1), (4, 1))]),
        (0, [((-4, -64), (4, 64))]),
    ],
)
def test_polynomials_at_the_ends_of_their_intervals(which, ends):
    dataset = stream("seq-poly1d", "--poly_set", str(which))
    assert len(ends) == dataset.N_TASKS and (3 if which == 0 else 0.05) == dataset.SIGMA
    dataset.all_test_loaders()
    for task, ((low, at_low), (high, at_high)) in enumerate(ends):
        assert dataset.domain(task) == (low, high)
        assert dataset.target(task, torch.tensor([low, high])).tolist() == [at_low, at_high]
        test, train = dataset.test_loaders[task].dataset, dataset.task_data(task)
        assert test.data.shape == test.targets.shape == (50, 1) and test.targets.dtype == torch.float32
        torch.testing.assert_close(test.data, torch.linspace(low, high, 50).unsqueeze(1))
        torch.testing.assert_close(test.targets, dataset.target(task, test.data))
        assert len(train) == 20 and low <= train.data.min() and train.data.max() <= high
        noise = (train.targets - dataset.target(task, train.data)) / dataset.SIGMA
        assert 0.5 < noise.std() < 1.5 and noise.abs().max() < 4


def test_plot_inputs_and_task_order():
    dataset = stream("seq-poly1d", "--custom_task_order", "2,1,0")
    torch.testing.assert_close(dataset.plot_inputs(), torch.linspace(-4.1, 4.1, 200).unsqueeze(1))
    last = stream("seq-poly1d").task_data(2)
    assert dataset.domain(0) == (2, 4) and torch.equal(dataset.task_data(0).data, last.data)


def r2(*batches):
    score = RegressionScore()
    for outputs, labels in batches:
        score.add(outputs, labels)
    return score.result()


def test_r2_by_hand():
    y = torch.tensor([[1.0], [2.0], [6.0]])
    # Errors 1, 0, 2: SSE 5; mean 3, SST 4 + 1 + 9 = 14.
    result = r2((torch.tensor([[0.0], [2.0]]), y[:2]), (torch.tensor([[8.0]]), y[2:]))
    assert result == {"r2": pytest.approx(100 * (1 - 5 / 14)), "mse": pytest.approx(5 / 3)}
    assert r2((y, y))["r2"] == 100
    assert r2((torch.full((3, 1), 3.0), y))["r2"] == pytest.approx(0, abs=1e-12)
    assert r2((y + 10, y))["r2"] == pytest.approx(100 * (1 - 300 / 14))
    assert math.isnan(r2((torch.ones(3, 1), torch.ones(3, 1)))["r2"])
    # Two outputs have a mean each: SST 2 + 2, SSE 4.
    pair = torch.tensor([[0.0, 100.0], [2.0, 102.0]])
    assert r2((pair + 1, pair)) == {"r2": pytest.approx(0, abs=1e-9), "mse": 1}


@pytest.mark.parametrize("model", REGRESSION)
def test_methods_of_any_loss_run_on_regression(model):
    exp = finished(model, *cases.required_options(model), *FEW, dataset="seq-poly1d")
    assert math.isfinite(exp.run.matrices["domain-il"][2, 2])
    assert exp.run.history[-1].others["mse"]["domain-il"][0] > 0


def test_the_methods_of_any_loss():
    assert {"sgd", "joint", "er", "si", "agem", "agem_r", "gem"} <= {*REGRESSION}


def test_a_regression_run_names_its_score_and_draws_what_lies_below_zero(tmp_path, capsys):
    argv = ["--model", "sgd", "--dataset", "seq-poly1d", *FEW, "--num_threads", "1", "--exp_name", "x"]
    run, _ = execute(resolve([*argv, "--results_path", str(tmp_path)]))
    metrics, report = ((run.folder / name).read_text() for name in ("metrics.csv", "report.html"))
    assert ",r2," in metrics and ",mse," in metrics and ",accuracy," not in metrics
    assert "R^2 in percent wherever" in capsys.readouterr().out and "R^2 in percent" in report
    low, _ = plots.accuracy_curves(run.matrices["domain-il"]).axes[0].get_ylim()
    assert low < np.nanmin(run.matrices["domain-il"]) < 0


def test_early_stopping_watches_the_error():
    stopping = ["--fitting_mode", "early_stopping", "--holdout", "20", "--early_stopping_metric", "loss"]
    exp = finished("sgd", *stopping, "--n_epochs", "3", dataset="seq-poly1d")
    exp.dataset.enter_task(2)
    assert len(exp.dataset.held_out_loader.dataset) == 4 and len(exp.dataset.train_loader.dataset) == 16
    scores = held_out_scores(exp.model, exp.dataset, 2)
    x, y = next(iter(exp.dataset.held_out_loader))
    assert scores["loss"] == pytest.approx((exp.model.net(x) - y).square().mean().item(), rel=1e-5)


# ---- networks, options, buffers


def test_the_default_network_is_that_of_the_stream_and_reads_vectors():
    nets = [experiment("sgd", dataset=name).model.net for name in ("seq-poly1d", "seq-gmm2d")]
    assert [net.get_params().numel() for net in nets] == [141, 206]
    assert experiment("sgd", "--mlp_hidden_size", "50", dataset="seq-poly1d").model.net.feature_dim == 50


OTHER = """
import torch
from backbone.utils.base import Backbone

class Line(Backbone):
    NAME, INPUT = "line", "vectors"

    def __init__(self, inputs, outputs):
        super().__init__()
        self.feature_dim, self.num_classes, self.classifier = inputs, outputs, torch.nn.Linear(inputs, outputs)

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(in_size[0], num_classes)

    def stages(self, x):
        return [x]
"""


def test_another_network_does_without_the_options_of_the_streams_own(tmp_path):
    (tmp_path / "line.py").write_text(OTHER)
    exp = finished("er", "--buffer_size", "20", "--backbone", str(tmp_path / "line.py"), *FEW, dataset="seq-poly1d")
    assert not hasattr(exp.args, "mlp_hidden_size") and exp.model.net.get_params().numel() == 2


def test_epochs_take_the_place_of_the_streams_iterations():
    args = experiment("sgd", "--n_epochs", "3", dataset="seq-poly1d").args
    assert (args.fitting_mode, args.n_iters, args.n_epochs) == ("epochs", None, 3)
    args = experiment("sgd", "--n_iters", "7", dataset="seq-poly1d").args
    assert (args.fitting_mode, args.n_iters) == ("iters", 7)
    assert experiment("sgd", dataset="seq-poly1d").args.n_iters == SequentialPoly1D.DEFAULTS["n_iters"]


@pytest.mark.parametrize(
    "argv, words",
    [
        (["derpp", "seq-poly1d"], "'derpp' is for .* but the tasks of 'seq-poly1d' are regression"),
        (["sgd", "seq-gmm2d", "--backbone", "convnet"], "reads images but .* holds vectors: .* mnistmlp"),
        (["sgd", "seq-language", "--backbone", "mnistmlp"], "reads images and vectors but .* holds tokens: .* gru"),
        (["sgd", "seq-gmm2d", "--permute_classes"], "--permute_classes has no meaning for the vectors of seq-gmm2d"),
        (["sgd", "seq-poly1d", "--label_perc", "0.5"], "--label_perc has no meaning"),
        (["sgd", "seq-poly1d", "--multi_head"], "--multi_head: the tasks of seq-poly1d share"),
        (["sgd", "seq-poly1d", "--custom_task_order", "0,1"], "name each task from 0 to 2 once"),
        (["pah", "seq-gmm2d"], "prototypes that are images, seq-gmm2d holds none"),
        (["sgd", "seq-digits", "--backbone", "gru"], "reads tokens but dataset 'seq-digits' holds images"),
        (["sgd", "seq-language", "--noise_rate", "0.1"], "--noise_rate has no meaning for the tokens of seq-language"),
        (["sgd", "seq-language", "--normalize", "half"], "--normalize has no meaning"),
        (["ewc_on", "seq-language"], "weighted is not defined for the language"),
        (["sgd", "seq-language", "--backbone", "transformer", "--tf_heads", "5"], "a multiple of --tf_heads 5"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(argv, words):
    required = cases.required_options(argv[0])
    with pytest.raises(UserError, match=words) as e:
        experiment(argv[0], *required, *argv[2:], dataset=argv[1])
    assert "\n" not in str(e.value)


def test_the_documented_example(tmp_path):
    block = re.findall(r"```python\n(.*?)```", (registry.ROOT / "docs" / "add_a_dataset.md").read_text(), re.S)
    code = next(b for b in block if "RegressionStream" in b)
    (tmp_path / "sines.py").write_text(code)
    exp = finished("er", "--buffer_size", "50", dataset=str(tmp_path / "sines.py"))
    assert exp.run.matrices["domain-il"][2, 2] > 50


@pytest.mark.parametrize(
    "name, more", [("seq-poly1d", []), ("seq-gmm2d", []), ("seq-language", ["--n_tasks", "2", "--debug_mode"])]
)
def test_replay_keeps_the_contract(name, more):
    case = Command("er", "--buffer_size", "40", *more, dataset=name)
    conformance.looking_changes_nothing(case)
    conformance.observe_never_waits(case)
    conformance.resumes_exactly(case, elsewhere=False)
