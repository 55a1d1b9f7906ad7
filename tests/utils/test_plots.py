"""Plots of any size, and the numbers that are drawn."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from palimpsest.utils import charts
from palimpsest.utils.log import plots


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
    figure = plots.embedding(rng.normal(size=(len(task), 2)), task, rng.integers(0, classes, len(task)), [0.5, 0.1])
    assert sum(len(part.get_offsets()) for part in figure.axes[0].collections) == len(task)
    figure.savefig(tmp_path / "x.png", dpi=40)


@pytest.mark.parametrize("n", [1, 20])
def test_plots_of_any_length_draw(n, tmp_path):
    matrix = np.random.default_rng(0).uniform(0, 100, (n, n))
    curve = plots.mean_curve(matrix)
    losses = [(k, {"loss": 100.0 / (k + 1)}, 0.1) for k in range(3 * n)]
    for figure in (
        plots.accuracy_curves(matrix),
        plots.average_curves({"class-il": np.stack([curve, curve]), "task-il": np.stack([curve, curve])}),
        plots.accuracy_matrix(matrix),
        plots.term_bars("bwt", {name: np.linspace(-2, 3, n) for name in ("class-il", "task-il")}),
        plots.capacity_bars([10] * n, 10 * n),
        plots.importance_histogram(np.arange(n), np.arange(n + 1.0), 0.1),
        charts.confusion_matrix(matrix),
        plots.comparison_bars({f"method {k}": (50.0 - k, 1.0) for k in range(n)}, "accuracy (%)", "Comparison"),
        plots.loss_curves(losses, ["loss"]),
    ):
        figure.savefig(tmp_path / "x.png", dpi=40)
        labels = [t for axes in figure.axes for t in axes.get_xticklabels() if t.get_text()]
        boxes = [label.get_window_extent() for label in labels]
        assert not any(a.x1 > b.x0 for a, b in zip(boxes, boxes[1:], strict=False) if a.y0 == b.y0)
    image = plots.matrix_image(matrix)
    assert image.dtype == np.uint8 and image.shape[2] == 3 and len(np.unique(image)) > 2


def test_curves_and_bars_show_the_numbers():
    curve = plots.mean_curve(np.array([[90.0, np.nan, np.nan], [60.0, 80.0, np.nan], [70.0, 60.0, 90.0]]))
    assert curve.tolist() == pytest.approx([90.0, 70.0, 220 / 3])
    axes = plots.average_curves({"domain-il": np.stack([curve, curve + 2])}).axes[0]
    assert axes.lines[-1].get_ydata().tolist() == pytest.approx([91.0, 71.0, 223 / 3])
    bars = plots.term_bars("fwt", {"domain-il": np.array([np.nan, 15.0])}).axes[0].patches  # tasks 2 and 3
    assert [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in bars] == [(3.0, 15.0)]
    assert plots.average_curves({"domain-il": np.array([[-20.0]])}).axes[0].get_ylim()[0] < -20


@pytest.mark.parametrize("values, scale", [
    ({"loss": [100.0, 1.0]}, "log"), ({"loss": [100.0, -1.0]}, "linear"),
    ({"loss": [-50.0, -52.0], "ce": [0.5, 0.5]}, "symlog"),
])  # fmt: skip
def test_axis_of_the_loss(values, scale):
    steps = [(k, {name: v[k] for name, v in values.items()}, 0.1) for k in range(2)]
    axes = plots.loss_curves(steps, list(values)).axes[0]
    assert axes.get_yscale() == scale and axes.get_ylim()[0] < min(map(min, values.values()))


def test_long_runs_and_many_terms():
    names = [f"term {n}" for n in range(14)]
    lines = (
        plots.loss_curves([(k, dict.fromkeys(names, 1.0), 0.1) for k in range(1500)], names, [900]).axes[0].lines[:14]
    )
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 14
    assert all(len(line.get_xdata()) == 1000 for line in lines)


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
