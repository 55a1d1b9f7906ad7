"""What a run on a vision stream leaves to look at: curves, pictures of predictions, the forgetting criterion."""

import json
import math
import re

import pytest
import torch

import main as entry
from palimpsest.datasets.utils.vision.kinds import BinaryMaskTask, BoxTask, ImageClassTask, MaskTask, PresenceTask
from palimpsest.datasets.utils.vision.plots import predictions, stage_curves
from palimpsest.datasets.utils.vision.scores import MultiLabelScore, SegmentationScore, TopScore, bootstrap
from palimpsest.utils import criterion
from palimpsest.utils.check import case_runs, cases
from palimpsest.utils.log.page import drawn
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import train
from tests.models.test_balanced_ewc import SMALL, case


def trained(name, *more):
    exp = build(case(name).config(*more))
    train(exp)
    return exp


# ---- records


@pytest.mark.parametrize("name", ["sgd", "joint", "balanced-ewc"])  # stages, none, and a fine-tuning after them
def test_a_run_leaves_curves_pictures_and_verdicts(name):
    exp = trained(name, "--enable_other_metrics")
    run, joint = exp.run, name == "joint"
    again = [2] if getattr(exp.model, "finetuned", False) else []  # scored before and after the fine-tuning
    assert [r["task"] for r in run.epochs] == ([0] if joint else [0, 1, 2])
    assert all(math.isfinite(r["loss"]) and r["steps"] == (6 if joint else 2) for r in run.epochs)
    assert [stage for stage, _ in run.pictures] == ([2] if joint else [0, 1, 2, *again])
    shapes = [{k: tuple(v.shape) for k, v in answers.items()} for answers in run.pictures[-1][1]]
    assert shapes == [{"mask": (4, 32, 32)}, {"scores": (4, 10)}, {"scores": (4, 10)}]
    rows = criterion.of_run(run)
    assert [row.task for row in rows] == ["seg", "det", "cls"]
    assert [row.achieved for row in rows] == run.history[-1].scores["task-il"]
    assert all(bool(row.passed) != joint for row in rows) and all(0 <= row.floor <= 100 for row in rows)
    top5 = run.history[-1].others["top-5"]["task-il"]
    assert [math.isnan(v) for v in top5] == [True, True, False] and "parameters" in run.notes
    assert not joint or all(math.isfinite(v) for v in run.matrices["task-il"][-1])


def test_the_loss_of_an_epoch_is_the_mean_of_its_steps():
    exp = build(case("sgd").config("--n_epochs", "3"))
    seen, original = [], exp.model.observe

    def watched(*args, **kwargs):
        seen.append(original(*args, **kwargs))
        return seen[-1]

    vars(exp.model)["observe"] = watched
    train(exp)
    assert [(r["task"], r["epoch"], r["start"]) for r in exp.run.epochs] == [
        (t, e, 2 * (3 * t + e)) for t in range(3) for e in range(3)
    ]
    for record in exp.run.epochs:
        own = seen[record["start"] : record["start"] + 2]
        assert record["loss"] == pytest.approx(torch.stack(own).mean().item()) and not record["kept"]
        assert "held_out_loss" not in record


STOPPING = (
    *("--holdout", "25", "--n_epochs", "3", "--fitting_mode", "early_stopping"),
    *("--early_stopping_patience", "3", "--enable_other_metrics"),
)


def test_early_stopping_marks_the_epoch_it_goes_back_to(monkeypatch):
    asked = []

    def scores(model, dataset, task, batches=None):
        if batches is not None:  # training images, for the curve
            return {"accuracy": 0.0, "loss": 2.0}
        asked.append(task)
        return {"accuracy": (10.0, 30.0, 20.0)[len(asked) % 3 - 1], "loss": 1.0}

    monkeypatch.setattr("palimpsest.utils.run.stopping.held_out_scores", scores)
    run = trained("sgd", *STOPPING).run
    assert asked == [0] * 3 + [1] * 3 + [2] * 3  # once per epoch, although two ask
    assert [r["kept"] for r in run.epochs] == [False, True, False] * 3
    assert [r["held_out_score"] for r in run.epochs] == [10.0, 30.0, 20.0] * 3
    assert {(r["held_out_loss"], r["training_loss"]) for r in run.epochs} == {(1.0, 2.0)}


def test_both_curves_are_the_loss_of_the_task():
    """Not what the method minimises, which is divided by its mean at the beginning."""
    exp = trained("balanced-ewc", "--holdout", "25", "--n_epochs", "1", "--stop_after", "1", "--no_finetune")
    (record,), task, data = exp.run.epochs, exp.dataset.tasks[0], exp.dataset.held_out_loader
    n, losses = len(data.dataset), {}
    exp.model.eval()
    for name, batches in (("held_out_loss", data), ("training_loss", exp.dataset.examples(n, 0))):
        with torch.no_grad():
            sums = [len(x) * float(task.loss(exp.model.net(x, task.branch), y)) for x, y, *_ in batches]
        losses[name] = sum(sums) / n
        assert record[name] == pytest.approx(losses[name], rel=1e-5)
    assert record["loss"] != pytest.approx(record["training_loss"], rel=0.01)


def test_a_resumed_run_leaves_the_same_to_look_at():
    more = (*STOPPING, "--detection", "boxes")
    undisturbed = case_runs.run(case("er"), *more).run
    ends = [evaluation.step for evaluation in undisturbed.history]
    for step in (ends[-3] + 1, -ends[-2]):  # within a stage, or after one
        resumed = case_runs.resumed_run(case("er"), step, *more).run
        assert resumed.epochs == undisturbed.epochs
        assert [stage for stage, _ in resumed.pictures] == [0, 1, 2]
        for (_, a), (_, b) in zip(resumed.pictures, undisturbed.pictures, strict=True):
            assert all(torch.equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


# ---- the report


def test_the_criterion_has_two_readings_and_its_table_what_was_kept_above_the_floor():
    scores = {"seg": (22.08, 20.47), "det": (83.40, 78.94), "cls": (100.0, 100.0)}
    rows = [criterion.Verdict(name, *values) for name, values in scores.items()]
    assert criterion.overall(rows, "absolute") and not criterion.overall(rows, "relative")
    assert [row.passed["absolute"] for row in rows] == [True, True, True]
    assert [row.passed["relative"] for row in rows] == [False, False, True]
    assert not criterion.Verdict("", 22.08, 17.07).passed["absolute"]
    assert criterion.Verdict("", 22.08, 17.08).passed["absolute"] and criterion.Verdict("", 100, 95).passed["relative"]
    assert criterion.cells(rows[0])[2:9] == ["22.08", "20.47", "-1.61", "17.08", "PASS", "20.98", "FAIL"]
    assert len(criterion.cells(rows[0])) == len(criterion.COLUMNS)
    kept = [criterion.Verdict("a", base, 40.0, floor=20.0).kept for base in (60.0, 20.0, math.nan)]
    assert kept[0] == 50 and all(map(math.isnan, kept[1:]))


N_KINDS = 11
PICTURES = {
    MaskTask: torch.randint(N_KINDS, (2, 32, 32)),
    BinaryMaskTask: torch.randint(2, (2, 32, 32)) * 255,
    PresenceTask: torch.tensor([[1.0] * N_KINDS, [0.0] * N_KINDS]),  # all, none
    ImageClassTask: torch.tensor([3, 4]),
    BoxTask: {
        "boxes": torch.tensor([[[4.0, 4, 20, 30], [0, 0, 0, 0]]] * 2),
        "classes": torch.tensor([[2, -1], [-1, -1]]),
        "crowd": torch.tensor([[True, False], [False, False]]),
    },
}


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_of_every_kind_of_task(kind):
    task = kind("any", ["background", *"abcdefghij"])
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    outputs = torch.randn(2, task.n_outputs, *([32, 32] if task.MASKED else []))
    if kind is BoxTask:
        # One location in the middle that sees class 2, of 8 pixels in each direction, and one that sees nothing.
        place = torch.tensor([[2.0] * 4 + [9.0, 16, 16, 4], [1.0] * 4 + [-9.0, 30, 30, 4]])
        outputs = torch.cat((torch.full((2, N_KINDS), -9.0), place), 1).repeat(2, 1, 1)
        outputs[:, 0, 2] = 9.0
    answers = task.decode(outputs)
    if kind is BoxTask:
        assert answers["classes"][0].tolist() == [2] + [-1] * 9 and answers["boxes"][0, 0].tolist() == [8, 8, 24, 24]
    figure = predictions(task, images, PICTURES[kind], {"before": answers, "after": answers})
    assert len(drawn(figure, "png")) > 5000


def test_curves_with_and_without_a_held_out_part():
    tasks = {"seg": "mIoU", "det": "mAP_cls"}
    plain = [{"task": t, "epoch": e, "loss": 1.0, "kept": False} for t in (0, 1) for e in range(3)]
    more = {"held_out_loss": 2.0, "held_out_score": 50.0, "training_loss": 1.5}
    watched = [{**r, **more, "kept": r["epoch"] == 1} for r in plain]
    assert len(stage_curves(plain, tasks).axes) == 2 and len(stage_curves(watched, tasks).axes) == 4
    lines = stage_curves(watched, tasks).axes[0].get_lines()
    assert {line.get_label(): line.get_ydata()[0] for line in lines if len(line.get_ydata()) == 3} == {
        "training": 1.5, "held out": 2.0,
    }  # fmt: skip
    (joint,) = stage_curves(plain[:3], tasks, joint=True).axes
    assert joint.get_title(loc="left") == "All tasks at once"


# ---- intervals


def test_intervals_by_resampling_images():
    weights = bootstrap(4)
    assert (weights.sum(1) == 4).all() and torch.equal(weights, bootstrap(4))
    right, wrong = torch.tensor([[5.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    top = TopScore(2)
    top.add(torch.cat((right, wrong, right, wrong)), torch.zeros(4, dtype=torch.long))
    assert top.result()["top-1 low"] == pytest.approx(15.0, abs=0.01)  # Wilson, 2 of 4
    score, labels = SegmentationScore(2), torch.zeros(4, 1, 1, dtype=torch.long)
    labels[2:] = 1
    score.add(torch.stack((right,) * 4).view(4, 2, 1, 1), labels)
    # Class 0 everywhere: a resample of the first two images alone scores 100, of the others alone 0.
    assert score.interval() == {"mIoU low": 0.0, "mIoU high": 100.0}


def test_the_average_precision_of_a_resample_counts_its_images_as_often_as_they_are_in_it(monkeypatch):
    torch.manual_seed(0)
    logits, labels = torch.randn(30, 3), (torch.rand(30, 3) < 0.3).float()
    whole, again = MultiLabelScore(), MultiLabelScore()
    rows = torch.randint(30, (30,))
    weights = torch.bincount(rows, minlength=30).double().expand(500, 30)
    monkeypatch.setattr("palimpsest.datasets.utils.vision.scores.bootstrap", lambda n: weights)
    whole.add(logits, labels)
    again.add(logits[rows], labels[rows])
    assert list(whole.interval().values()) == pytest.approx([again.result()["mAP_cls"]] * 2)


def test_a_run_that_begins_later_has_no_baseline_for_what_it_left_out():
    run = trained("sgd", "--start_from", "1").run
    first, *others = criterion.of_run(run)
    assert math.isnan(first.baseline) and not first.passed and all(row.passed for row in others)


def test_files_of_a_run(tmp_path, capsys, undrawn):
    argv = [a for pair in SMALL.items() for a in pair]
    argv[argv.index("--n_epochs") + 1] = "2"
    given = ["--model", "sgd", "--base_path", cases.vision_folder(), "--results_path", str(tmp_path), "--holdout", "25"]
    assert entry.main([*argv, *given, "--enable_other_metrics", "--non_verbose", "--no-tensorboard"]) == 0
    (results,) = tmp_path.glob("*/*/*/*/config.yaml")
    results, out = results.parent, capsys.readouterr().out
    facts = json.loads((results / "metrics.json").read_text())
    matrix = facts["task-il"]["accuracy_matrix"]
    assert all(math.isfinite(v) for row in matrix for v in row)
    lines = [json.loads(line) for line in (results / "epochs.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(line["held_out_score"] is None or line["held_out_score"] >= 0 for line in lines)
    names = ("stages", "predictions_seg", "predictions_det", "predictions_cls")
    assert {f"{name}.png" for name in names} <= {path.name for path in (results / "plots").iterdir()}
    judged = facts["criterion"]
    assert [row["task"] for row in judged["tasks"]] == ["seg", "det", "cls"]
    assert [row["baseline"] for row in judged["tasks"]] == [matrix[t][t] for t in range(3)]
    assert [row["achieved"] for row in judged["tasks"]] == matrix[-1]
    assert re.search(r"\n  cls   top-1 .* PASS .* PASS ", out) and "Overall: " in out
    page = (results / "report.html").read_text()
    assert "Forgetting criterion" in page and "predictions on test images of seg" in page and "Overall: " in page
