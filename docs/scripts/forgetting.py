"""The picture of README.md, from the folders that its first two commands leave.

python docs/scripts/forgetting.py results docs/pictures/forgetting.svg
"""

import csv
import sys
from pathlib import Path

import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[2]))  # so that the script runs without an installed package

from palimpsest.utils.charts import CYCLE, style  # noqa: E402

# Text stays text: the file is small, and a browser chooses the font. The same runs give the same bytes.
SVG = {"svg.fonttype": "none", "svg.hashsalt": "palimpsest", "font.family": "sans-serif"}
SHOWN = {"sgd": "Plain training", "er": "With replay of 200 stored images"}


def score_matrix(folder: Path) -> np.ndarray:
    """R (T, T) in class-IL of a run's folder, percent, nan where nothing was evaluated."""
    with open(folder / "accuracy_matrix.csv", newline="") as f:
        rows = [row for row in csv.DictReader(f) if row["scenario"] == "class-il"]
    tasks = [name for name in rows[0] if name.startswith("task_")]
    return np.array([[float(row[name] or "nan") for name in tasks] for row in rows])


def newest(results: Path, method: str) -> Path:
    """The folder of a method's last finished run on seq-digits."""
    done = sorted((results / "class-il" / "seq-digits" / method).glob("*/accuracy_matrix.csv"))
    if not done:
        sys.exit(f"no run of {method} on seq-digits below {results}: make it by the commands of README.md")
    return done[-1].parent


def draw(matrices: dict[str, np.ndarray]) -> Figure:
    """A panel for each title: the accuracy on each task from its training on."""
    figure = Figure(figsize=(8.2, 3.2), layout="constrained", facecolor="white")
    panels = figure.subplots(1, len(matrices), sharey=True)
    for axes, (title, R) in zip(panels, matrices.items(), strict=True):
        style(axes, f"{title}:\n{np.nanmean(R[-1]):.0f} % right at the end", "after training on the digits", "")
        for task in range(len(R)):
            label = f"digits {2 * task}, {2 * task + 1}"
            after = np.arange(task, len(R))
            axes.plot(after, R[task:, task], "o-", color=CYCLE[task], markersize=5, label=label, clip_on=False)
        axes.set_xticks(range(len(R)), [f"{2 * t}, {2 * t + 1}" for t in range(len(R))])
        axes.set(ylim=(0, 102), xlim=(-0.15, len(R) - 0.85))
    panels[0].set_ylabel("test images of a task right (%)", fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return figure


def main(results: str, picture: str) -> None:
    found = {title: score_matrix(newest(Path(results), method)) for method, title in SHOWN.items()}
    rcParams.update(SVG)
    draw(found).savefig(picture, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
