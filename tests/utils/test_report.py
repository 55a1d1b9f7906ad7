import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from palimpsest.utils import panels
from palimpsest.utils.log.report import excluded_terms, reason, summarise_run, write_report
from palimpsest.utils.log.seeds import summarise_seeds, write_seeds_report, write_seeds_summary
from palimpsest.utils.metrics import METRICS
from palimpsest.utils.record import Analysis, Evaluation, Run

pytestmark = pytest.mark.usefixtures("undrawn")
R = np.array([[90.0, np.nan, np.nan], [60.0, 80.0, np.nan], [70.0, 60.0, 90.0]])
STOPPED, JOINT = R.copy(), R.copy()
STOPPED[2], JOINT[:2] = np.nan, np.nan


class Page(HTMLParser):
    """Text, tags and table rows of a page; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.rows, self.images, self.links = [], [], "", [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "svg":
            self.images.append(dict(attrs)["aria-label"])
        if tag == "a":
            self.links.append(dict(attrs)["href"])
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "span":
            self.rows[-1][-1] += " | "
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data.replace("\n", "")
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, *start):
        return next(row for row in self.rows if all(cell.startswith(s) for cell, s in zip(row, start, strict=False)))


def a_run(tmp_path, matrix=R, scenarios=("class-il", "task-il"), **facts):
    config = {"lr": 0.1, "buffer_size": 200, "n_epochs": 1, "debug_mode": False, "notes": "none", "seed": 4}
    origins = {**dict.fromkeys(config, "default"), "buffer_size": "command line", "lr": "best_args"}
    matrices = {name: matrix.copy() for name in scenarios}
    fields = {"folder": tmp_path, "matrices": matrices, "seconds": 75.0, "parameters": 89610, **facts}
    return Run("er", "seq-mnist", scenarios[0], len(matrix), 4, config, origins, tmp_path, **fields)


def page(run):
    path = write_report(run, summarise_run(run))
    assert path == run.folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def test_report_of_a_run(tmp_path):
    run = a_run(tmp_path, notes={"evaluation mode": "eval()"}, environment={"torch": "2.15"})
    run.losses = [(50, {"loss": 2.0}, 0.1), (100, {"loss": 1.0, "replay": 0.1}, 0.1)]
    run.history = [Evaluation(100, 0, None, {"class-il": [90.0], "task-il": [90.0]})]
    found = page(run)
    assert "er on seq-mnist, seed 4" in found.text
    assert "class-il · 89,610 parameters · 3 tasks · finished" in found.text
    assert (
        "Average accuracy, class-il73.33 %Forgetting, class-il20.00 pointsAverage accuracy, task-il73.33 %"
        in found.text
    )
    assert "Task 1 lost most: 90.0 to 70.0." in found.text
    assert found.images[:2] == ["matrix class-il", "average accuracy"]
    # By hand: forgetting (20 + 20) / 2 with the last row in the maximum, as well as without; BWT (-20 - 20) / 2.
    assert found.row("Average accuracy (ACC)")[1:] == ["73.33", "73.33"]
    assert found.row("Backward transfer")[1:] == ["-20.00", "-20.00"]
    assert found.row("Forgetting (Chaudhry)")[1:] == ["20.00", "20.00"]
    assert found.row("Forward transfer")[1] == "needs --enable_other_metrics"
    assert found.row("Minimum accuracy")[1] == "needs --eval_every or --eval_epochs"
    assert found.text.index("Stability") < found.text.index("8 more that this run does not define")
    assert found.row("evaluation mode") == ["evaluation mode", "eval()"]
    assert found.row("buffer_size") == ["buffer_size", "200", "command line"]
    assert found.row("torch") == ["torch", "2.15"]
    assert found.row("debug_mode") == ["debug_mode", "False"]  # folded: nobody chose it
    assert found.text.index("buffer_size") < found.text.index("3 options at their defaults")
    assert len(found.images) == 7


ANALYSIS = Analysis(
    costs={"parameters": 89610, "bytes_parameters": 358440, "bytes_buffer": 500, "bytes_teachers": 3 * 2**20},
    panels=[panels.capacity([500, 200, 100], 1000), panels.importance(torch.tensor([0.0, 1e-4, 1e-2, 0.1]))],
    confusion=np.arange(36).reshape(6, 6),
)


def test_everything_is_escaped_and_nothing_is_fetched(tmp_path):
    evil = "<script>alert('x')</script>&\""
    run = a_run(tmp_path, notes={evil: evil}, environment={evil: evil})
    run.model_name = run.dataset_name = evil
    run.config[evil] = evil
    run.origins[evil] = evil
    run.losses = [(50, {"<loss>": 1.0}, 0.1)]
    run.published = {"source": evil, "note": evil, "published": {evil: {"acc": 1.0, "std": 0.1}}}
    assert [evil, evil, evil] in page(run).rows
    write_seeds_report(tmp_path / "seeds", [run, run], summarise_seeds([summarise_run(run)] * 2))
    for path in tmp_path.rglob("report.html"):
        text = path.read_text()
        assert "script" not in Page(text).tags
        assert not re.search(r'(src|href)="(?!data:|#|\.\./)', text) and "@import" not in text
        assert not re.search(r"url\((?!#)", text)


@pytest.mark.parametrize(
    "matrix, reason, images",
    [
        (STOPPED, None, 6),
        (JOINT, "needs a score after every task", 2),
        (np.full((3, 3), np.nan), "nothing evaluated yet", 2),
        (np.array([[80.0]]), "needs two trained tasks", 2),
    ],
)
def test_partial_runs_render(tmp_path, matrix, reason, images):
    found = page(a_run(tmp_path, matrix, seconds=None))
    row = found.row("Backward transfer")
    assert row[1] == (reason or "-30.00")
    assert len(found.images) == images
    assert "not finished" in found.text and not (tmp_path / "plots").exists()
    assert "Nothing evaluated yet." in page(a_run(tmp_path, matrices={}, seconds=None)).text


PUBLISHED = {
    "args": {"lr": 0.1, "n_epochs": 1},
    "source": "DER paper",
    "verified": True,
    "published": {"class-il": {"acc": 75.0, "std": 1.67, "forgetting_chaudhry": 19.5}},
}


@pytest.mark.parametrize("row, matrix, cells, words", [
    (PUBLISHED, R, ["75.00 ± 1.67", "73.33", "-1.67", "yes"],
     "Source: DER paperThe published score was checked against a published text."),
    ({"published": {"class-il": {"acc": 80.0, "std": 1.0}}}, R, ["80.00 ± 1.00", "73.33", "-6.67", "no"], "not given"),
    ({"published": {"class-il": {"acc": 70.0, "std": 1.0}}}, R, ["70.00 ± 1.00", "73.33", "+3.33", "no"], "not given"),
    ({"published": {"class-il": {"acc": 75.0, "std": None}}, "note": "10 runs"}, R,
     ["75.00", "73.33", "-1.67", "unknown"], "from memory, not checked against the text.Note: 10 runs"),
    ({"source": "ours: mean of 5 seeds", "verified": True, "published": {"class-il": {"acc": 75.0, "std": 2.0}}}, R,
     ["75.00 ± 2.00", "73.33", "-1.67", "yes"], "5 seedsMeasured with this program."),
    ({"comparable": False, "published": {"class-il": {"acc": 75.0, "std": 5.0}}}, R,
     ["75.00 ± 5.00", "73.33", "-", "not comparable"], ""),
    (PUBLISHED, STOPPED, ["75.00 ± 1.67", "70.00", "-", "not comparable: not all tasks were trained"], ""),
])  # fmt: skip
def test_published_beside_measured(tmp_path, row, matrix, cells, words):
    found = page(a_run(tmp_path, matrix, published=row))
    assert found.row("class-il", "Average")[2:] == cells
    assert words in found.text and "Set on the command line" not in found.text


def test_published_scores_that_cannot_be_compared_and_options_set_otherwise(tmp_path):
    run = a_run(tmp_path, scenarios=("task-il",), published=PUBLISHED)
    run.config |= {"n_epochs": 5, "debug_mode": True}
    run.origins |= {"n_epochs": "command line", "debug_mode": "command line", "lr": "command line"}
    found = page(run)
    assert "apart from the stored row: n_epochs is 5, stored is 1; debug_mode is True." in found.text
    assert found.row("class-il", "Average")[2:] == ["75.00 ± 1.67", "not measured", "-", "unknown"]
    assert found.row("class-il", "Forgetting (Chaudhry)")[2:4] == ["19.50", "not measured"]
    run.published = {"source": "s"}
    assert "No published score is stored for this row." in page(run).text


def test_metrics_over_the_evaluations_during_tasks(tmp_path):
    run = a_run(tmp_path, scenarios=("domain-il",), baselines={"domain-il": [10.0, 20.0, 30.0]})
    run.matrices["domain-il"] = np.array([[90.0, 30.0, 40.0], [60.0, 80.0, 50.0], [70.0, 60.0, 90.0]])
    points = [(0, -1, None, [10.0, 20.0, 30.0]), (1, 0, None, [90.0]), (2, 1, 0, [40.0, 70.0]), (3, 1, 1, [0.0, 0.0]),
              (3, 1, None, [60.0, 80.0]), (4, 2, None, [70.0, 60.0, 90.0])]  # fmt: skip
    run.history = [Evaluation(step, task, epoch, {"domain-il": scores}) for step, task, epoch, scores in points]
    found = summarise_run(run)["domain-il"]
    assert found["fwt"] == pytest.approx((30 - 20 + 50 - 30) / 2)
    assert found["min_acc"] == pytest.approx((40 + 60) / 2)  # of two evaluations at one iteration the later counts
    assert set(found) == {*METRICS} - {"stability_gap", "recovery"}
    assert not excluded_terms(run)[
        "domain-il"
    ]  # the look at the untrained network is no evaluation of tasks seen so far


def test_points_on_a_subset_are_a_curve_of_their_own(tmp_path):
    run = a_run(tmp_path, scenarios=("domain-il",))
    run.matrices["domain-il"] = np.array([[99.0, np.nan], [1.0, 99.0]])
    run.history = [Evaluation(4, 0, None, {"domain-il": [99.0]}), Evaluation(8, 1, None, {"domain-il": [1.0, 99.0]})]
    points = [(4, 0, None, [90.0]), (5, 1, 0, [40.0, 0.0]), (6, 1, 0, [60.0, 0.0]), (8, 1, None, [85.0, 80.0])]
    run.points = [Evaluation(step, task, epoch, {"domain-il": scores}) for step, task, epoch, scores in points]
    found = summarise_run(run)["domain-il"]
    assert (found["acc"], found["la"], found["bwt"]) == (50, 99, -98)  # of whole evaluations
    assert (found["min_acc"], found["wc_acc"], found["stability_gap"], found["recovery"]) == (40, 60, 50, 4)
    run.matrices["domain-il"][0, 0] = np.nan  # the first task's end was not evaluated: --eval_tasks 2
    found = summarise_run(run)["domain-il"]
    assert "bwt" not in found and (found["acc"], found["min_acc"]) == (50, 40)
    assert reason(run, "domain-il", "bwt") == "needs a score after every task"


def test_report_of_a_look_at_the_network(tmp_path):
    run = a_run(tmp_path, scenarios=("class-il",), analysis=ANALYSIS, baselines={"class-il": [10.0, 20.0, np.nan]})
    run.matrices["class-il"][0, 1] = 45.0
    run.config["figures"] = "pdf"
    found = page(run)
    names = {"average_accuracy", "forgetting", "accuracy_class-il", "matrix_class-il", "confusion",
             "forward_transfer", "capacity", "importance"}  # fmt: skip
    assert {p.name for p in (tmp_path / "plots").iterdir()} == {f"{name}.pdf" for name in names}
    assert {name.replace("_", " ") for name in names} == set(found.images)
    assert found.row("Forward transfer")[1] == "25.00 | 1 undefined term left out"
    assert found.row("network, and")[1] == "350.0 KiB"
    assert found.row("replay") == ["replay buffers", "500 bytes"]
    assert found.row("teachers")[1] == "3.0 MiB"


def test_summarise_seeds_worked_example():
    table = summarise_seeds([{"a": {"acc": 70.0}}, {"a": {"acc": 72.0, "bwt": -1.0}}, {"a": {"acc": 77.0}}])
    mean, std, half, n = table["a"]["acc"]
    assert (mean, n) == (73.0, 3)
    assert std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert half == pytest.approx(4.302653 * std / math.sqrt(3), rel=1e-6)  # t(0.975, 2 degrees of freedom)
    assert table["a"]["bwt"] == pytest.approx((-1.0, math.nan, math.nan, 1), nan_ok=True) and summarise_seeds([]) == {}


def test_seeds_report(tmp_path):
    runs = [a_run(tmp_path / str(k), R + k, published=PUBLISHED) for k in range(3)]
    for k, run in enumerate(runs):
        run.seed = 10 + k
    table = summarise_seeds([summarise_run(run) for run in runs])
    path = write_seeds_report(tmp_path / "new" / "seeds", runs, table)
    assert path == tmp_path / "new" / "seeds" / "report.html"
    found = Page(path.read_text(encoding="utf-8"))
    assert "er on seq-mnist, 3 seeds" in found.text
    row = found.row("Average accuracy")
    assert row[1:] == ["74.33 ± 1.00", "71.85 to 76.82", "73.33", "74.33", "75.33"]
    assert found.row("class-il", "Average")[2:] == ["75.00 ± 1.67", "74.33", "-0.67", "yes"]
    assert found.images == ["average accuracy", "final accuracy"]
    assert found.links == [f"../{k}/report.html" for k in range(3)]
    assert not any(row[0] == "seed" and len(row) == 3 for row in found.rows)
    write_seeds_summary(path.parent, runs, table)
    facts = json.loads((path.parent / "summary.json").read_text())
    assert facts["seeds"] == [10, 11, 12] and facts["runs"] == ["0", "1", "2"]
    acc = facts["metrics"]["class-il"]["acc"]
    assert [acc["mean"], acc["std"], acc["n"], acc["low"]] == pytest.approx([74.333333, 1.0, 3, 71.849219])
    head, first, *_ = (path.parent / "summary.csv").read_text().splitlines()
    assert head == "model,dataset,scenario,metric,mean,std,n,low,high"
    assert first == "er,seq-mnist,class-il,acc," + ",".join(str(acc[k]) for k in ("mean", "std", "n", "low", "high"))
    run = a_run(tmp_path, JOINT)
    path = write_seeds_report(tmp_path / "s", [run], summarise_seeds([summarise_run(run)]))
    found = Page(path.read_text(encoding="utf-8"))
    assert found.row("Average accuracy (ACC)")[1:] == ["73.33", "needs 3 seeds", "73.33"]
    assert found.row("Forgetting")[1] == "needs a score after every task"
