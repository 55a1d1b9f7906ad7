"""Plots of any size, and the numbers that are drawn."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from palimpsest.utils import charts
from palimpsest.utils.log import plots
from palimpsest.utils.log.page import Picture, svg
from palimpsest.utils.metrics import seen_means
from tests.utils.test_report import ANALYSIS, a_run, page


def test_capacity_rises():
    axes = plots.capacity_bars([500, 200, 100], 1000).axes[0]
    before, own = axes.containers
    assert [bar.get_height() for bar in before] == [0, 500, 700]
    assert [bar.get_y() + bar.get_height() for bar in own] == [500, 700, 800]
    assert [text.get_text() for text in axes.texts] == ["50.0 %", "20.0 %", "10.0 %"]


def test_confusion_is_in_percent_of_the_true_class():
    image = charts.confusion_matrix(np.array([[3, 1], [0, 0]])).axes[0].images[0]
    assert image.get_array().tolist() == [[75.0, 25.0], [0.0, 0.0]]


@pytest.mark.parametrize("n", [1, 13])  # alone, and more than a legend names
def test_plots_of_any_length_draw(n, tmp_path):
    matrix = np.random.default_rng(0).uniform(0, 100, (n, n))
    curve = seen_means(matrix)
    losses = [(k, {"loss": 100.0 / (k + 1)}, 0.1) for k in range(3 * n)]
    for figure in (
        plots.accuracy_curves(matrix),
        plots.average_curves({"class-il": np.stack([curve, curve]), "task-il": np.stack([curve, curve])}),
        plots.accuracy_matrix(matrix),
        plots.final_scores({0: matrix[-1:], 7: matrix[-1:]}, "class-il"),
        plots.term_bars("forgetting", {name: np.linspace(-2, 3, n) for name in ("class-il", "task-il")}),
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
    curve = seen_means(np.array([[90.0, np.nan, np.nan], [60.0, 80.0, np.nan], [70.0, 60.0, 90.0]]))
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


def test_plots_leave_pyplot_alone():
    code = (
        "import io, sys; import numpy as np; from utils.log import plots;"
        "assert 'matplotlib' not in sys.modules;"
        "plots.accuracy_matrix(np.eye(3)).savefig(io.BytesIO(), format='png');"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_equal_runs_leave_equal_pages_and_plots(tmp_path):
    files = []
    for name, seconds in (("a", 1.0), ("b", 75.0)):
        (tmp_path / name).mkdir()
        found = page(a_run(tmp_path / name, scenarios=("class-il",), analysis=ANALYSIS, seconds=seconds))
        files.append((tmp_path / name / "report.html").read_text())
    assert files[0] == files[1] and len(found.images) == 7
    assert not re.search(r"#000000|#222222|fill: ?white", files[0])  # ink has the colour of the page's text
    for font in re.findall(r"font: [^;]*", files[0]):
        assert font.startswith(("font: 10px", "font: 14px"))


def test_a_picture_is_cut_nowhere():
    figure = plots.comparison_bars({"a method with a name of some length, lr 0.1": (50.0, 99.0)}, "x", "t" * 90)
    box = re.search(r'viewBox="([-\d.]+) ([-\d.]+) ([\d.]+)', svg(Picture("bars", figure, "")))
    assert float(box[1]) < -150 and float(box[3]) > 6 * 72  # beyond the figure itself on both sides


def test_no_whisker_leaves_what_a_percentage_can_be():
    bars = {"a": (98.0, 5.0), "b": (2.0, 3.0), "c": (50.0, np.nan)}
    for share, ends in ((True, [(93, 100), (0, 5)]), (False, [(93, 103), (-1, 5)])):
        (axes, *_) = plots.comparison_bars(bars, "accuracy (%)", "Comparison", share).axes
        (lines,) = [c for c in axes.collections if len(c.get_segments()) == 3]
        assert [tuple(part[:, 0].round(6)) for part in lines.get_segments()[:2]] == ends
