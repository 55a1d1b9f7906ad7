"""Plots of any size, and the numbers that are drawn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from utils import charts
from utils.log import plots

R = np.array([[90.0, np.nan, np.nan], [60.0, 80.0, np.nan], [70.0, 60.0, 90.0]])
STOPPED = np.array([[90.0, np.nan, np.nan], [60.0, 80.0, np.nan], [np.nan] * 3])
JOINT = np.array([[np.nan] * 3, [np.nan] * 3, [70.0, 60.0, 90.0]])


def test_curves_worked_example():
    assert plots.mean_curve(R).tolist() == pytest.approx([90.0, 70.0, 220 / 3])


def test_terms_by_task_worked_example():
    assert plots.terms_per_task("forgetting", R) == {1: 20.0, 2: 20.0}
    assert plots.terms_per_task("forgetting", STOPPED) == {1: 30.0}
    assert plots.terms_per_task("forgetting", JOINT) == {}
    assert plots.terms_per_task("forgetting", np.array([[90.0, 0], [95.0, 80.0]])) == {1: 0.0}
    assert plots.terms_per_task("bwt", R) == {1: -20.0, 2: -20.0}
    assert plots.terms_per_task("bwt", STOPPED) == {1: -30.0}
    assert plots.terms_per_task("bwt", JOINT) == plots.terms_per_task("bwt", np.array([[80.0]])) == {}
    full = np.array([[90.0, 45.0, np.nan], [60.0, 80.0, 50.0], [70.0, 60.0, 90.0]])
    assert plots.terms_per_task("fwt", full, [10.0, 20.0, 35.0]) == {2: 25.0, 3: 15.0}
    assert plots.terms_per_task("fwt", full, [10.0, np.nan, 35.0]) == {3: 15.0}
    assert plots.terms_per_task("fwt", full) == {}


def test_capacity_rises():
    axes = plots.capacity_bars([500, 200, 100], 1000).axes[0]
    before, own = axes.containers
    assert [bar.get_height() for bar in before] == [0, 500, 700]
    assert [bar.get_y() + bar.get_height() for bar in own] == [500, 700, 800]
    assert [text.get_text() for text in axes.texts] == ["50.0 %", "20.0 %", "10.0 %"]


def test_confusion_is_in_percent_of_the_true_class():
    image = charts.confusion_matrix(np.array([[3, 1], [0, 0]])).axes[0].images[0]
    assert image.get_array().tolist() == [[75.0, 25.0], [0.0, 0.0]]


@pytest.mark.parametrize("tasks, classes", [(1, 10), (5, 2), (20, 10), (1, 200)])
def test_embedding_draws_every_point_once(tasks, classes, tmp_path):
    rng = np.random.default_rng(0)
    task = np.repeat(np.arange(tasks), 40)
    figure = plots.embedding(
        rng.normal(size=(len(task), 2)), task, rng.integers(0, classes, len(task)), [0.5, 0.1]
    )
    assert sum(len(part.get_offsets()) for part in figure.axes[0].collections) == len(task)
    figure.savefig(tmp_path / "x.png", dpi=40)


@pytest.mark.parametrize("n", [1, 20])
def test_plots_of_any_length_draw(n, tmp_path):
    matrix = np.random.default_rng(0).uniform(0, 100, (n, n))
    matrices = {"class-il": matrix, "task-il": matrix}
    curve = plots.mean_curve(matrix)
    for figure in (
        plots.accuracy_curves(matrix),
        plots.average_curves({name: plots.mean_curve(m)[None] for name, m in matrices.items()}),
        plots.accuracy_matrix(matrix),
        plots.term_bars("bwt", {name: np.linspace(-2, 3, n) for name in matrices}),
        plots.capacity_bars([10] * n, 10 * n),
        plots.importance_histogram(np.arange(n), np.arange(n + 1.0), 0.1),
        charts.confusion_matrix(matrix),
        plots.comparison_bars({f"method {k}": (50.0 - k, 1.0) for k in range(n)}, "accuracy (%)", "Comparison"),
        plots.average_curves({"class-il": np.stack([curve, curve])}),
        plots.loss_curves([(k, {"loss": 100.0 / (k + 1)}, 0.1) for k in range(3 * n)], ["loss"]),
    ):
        figure.savefig(tmp_path / "x.png", dpi=40)
        labels = [t for axes in figure.axes for t in axes.get_xticklabels() if t.get_text()]
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.x1 > b.x0 for a, b in zip(boxes, boxes[1:], strict=False) if a.y0 == b.y0)
    image = plots.matrix_image(matrix)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def test_loss_axis_and_long_runs():
    long = [(k, {"loss": 1.0 + 99.0 * (k == 0)}, 0.1) for k in range(5000)]
    axes = plots.loss_curves(long, ["loss"], task_ends=[2500]).axes[0]
    assert len(axes.lines[0].get_xdata()) == 1000
    assert plots.loss_curves([(0, {"loss": 100.0}, 0.1), (1, {"loss": 1.0}, 0.1)], ["loss"]).axes[0].get_yscale() == "log"
    assert plots.loss_curves([(0, {"loss": 100.0}, 0.1), (1, {"loss": -1.0}, 0.1)], ["loss"]).axes[0].get_yscale() == "linear"
    mixed = plots.loss_curves([(k, {"loss": -50.0 - k, "ce": 0.5}, 0.1) for k in range(3)], ["loss", "ce"]).axes[0]
    assert mixed.get_yscale() == "symlog" and mixed.get_ylim()[0] < -50
    names = [f"term {n}" for n in range(14)]
    many = plots.loss_curves([(k, {name: 1.0 + k for name in names}, 0.1) for k in range(3)], names).axes[0]
    assert len({(line.get_color(), line.get_linestyle()) for line in many.lines}) == 14
    assert plots.loss_curves([], []).axes


def test_scores_below_zero_stay_on_the_plot():
    axes = plots.average_curves({"domain-il": np.array([[-20.0]])}).axes[0]
    assert axes.get_ylim()[0] < -20


def test_plots_leave_pyplot_alone_and_methods_import_no_picture_code():
    code = (
        "import importlib, io, sys; from pathlib import Path; import numpy as np;"
        "[importlib.import_module(f'models.{path.stem}') for path in Path('models').glob('*.py')];"
        "assert not [name for name in sys.modules if 'plots' in name or name == 'matplotlib'];"
        "from utils.log import plots;"
        "assert 'matplotlib' not in sys.modules;"
        "plots.accuracy_matrix(np.eye(3)).savefig(io.BytesIO(), format='png');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
