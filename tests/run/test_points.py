"""Any-time evaluation: which images, when, in one pass, and no trace in what is learned."""

import csv

import pytest
import torch

import main as entry
from palimpsest.datasets.utils.loaders import EvalLoader, Split
from palimpsest.utils.evaluation import evaluate
from palimpsest.utils.run.measure import points
from palimpsest.utils.run.measure.points import subset_of
from tests import kills
from tests.models.helpers import experiment, finished

ER = ["er", "--n_epochs", "2", "--buffer_size", "50", "--stop_after", "3"]


def loader_of(targets: torch.Tensor) -> EvalLoader:
    split = Split(torch.arange(len(targets)).view(-1, 1), targets)
    return EvalLoader(split, torch.arange(len(targets)), 10, lambda raw: raw)


def test_a_subset_has_the_share_of_every_class_and_is_a_function_of_the_seed():
    targets = torch.cat([torch.zeros(600), torch.ones(300), torch.full((100,), 2)]).long()
    subset = subset_of(loader_of(targets), 100, 0, 0)
    assert (
        torch.bincount(subset.dataset.targets).tolist() == [60, 30, 10] and subset.dataset.rows.unique().numel() == 100
    )
    again, other, task = (subset_of(loader_of(targets), 100, *at).dataset.rows for at in ((0, 0), (1, 0), (0, 1)))
    assert torch.equal(subset.dataset.rows, again)
    assert not torch.equal(again, other) and not torch.equal(again, task)
    assert len(subset_of(loader_of(targets), 1000, 0, 0).dataset) == 1000
    spaced = subset_of(loader_of(torch.linspace(0, 1, 1000)), 4, 0, 0)  # numbers have no classes
    assert spaced.dataset.rows.tolist() == [0, 250, 500, 750]


def test_points_are_taken_every_n_iterations_and_at_the_ends_of_tasks():
    exp = finished(*ER, "--eval_every", "7", "--eval_subset", "30")
    ends = [e.step for e in exp.run.history]
    during = [p.step for p in exp.run.points if p.epoch is not None]
    assert during == [*range(7, ends[-1] + 1, 7)]
    assert [p.step for p in exp.run.points if p.epoch is None] == ends
    assert [len(p.scores["class-il"]) for p in exp.run.points if p.epoch is None] == [1, 2, 3]
    assert [len(loader.dataset) for loader in exp.points.subsets] == [30, 30, 30]
    assert [e.epoch for e in exp.run.history] == [None] * 3  # whole evaluations are apart


def test_one_pass_gives_the_scores_of_one_task_after_the_other():
    exp = finished(*ER, "--eval_every", "7", "--eval_subset", "1000")
    assert exp.points.inputs  # in one pass
    last, scores = exp.run.points[-1], exp.run.history[-1].scores
    assert last.scores == scores  # a subset of all images has the whole score
    calls = []
    forward = exp.model.net.register_forward_hook(lambda *_: calls.append(1))
    exp.points._scores(exp, 2)
    forward.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("model, argv, dataset", [
    ("pnn", [], "seq-digits"), ("sgd", ["--fitting_mode", "iters", "--n_iters", "12"], "seq-poly1d"),
    ("pr_dirac", ["--hnet_arch", "10"], "perm-digits"),
])  # fmt: skip
def test_methods_that_ask_for_the_task_and_other_kinds_of_task(model, argv, dataset):
    short = [] if "--n_iters" in argv else ["--n_epochs", "1", "--label_perc", "0.2"]
    exp = finished(
        model, *argv, *short, "--stop_after", "2", "--eval_every", "5", "--eval_subset", "20", dataset=dataset
    )
    points_at_end = [p for p in exp.run.points if p.epoch is None]
    exp.dataset.test_loaders[:2] = exp.points.subsets
    scores = evaluate(exp.model, exp.dataset, range(2), 1)[0]
    for name, values in scores.items():
        assert points_at_end[-1].scores[name] == pytest.approx(values)


def test_looking_leaves_no_trace():
    plain, looked = finished(*ER), finished(*ER, "--eval_every", "3")
    for a, b in zip(plain.model.parameters(), looked.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert plain.run.matrices["class-il"].tobytes() == looked.run.matrices["class-il"].tobytes()
    assert not plain.run.points


def test_as_often_as_costs_five_percent():
    exp = finished(*ER, "--eval_every", "--eval_subset", "20")
    first, step = exp.run.points[0], exp.points.every
    assert first.step == 8  # after the step that was counted
    one = finished(*ER[:-1], "1")
    per_step = one.meter.flops(one.run.history[0].step) / one.run.history[0].step
    point = 20 * 5 * exp.meter.spent["inference"] / 1000  # at the last of five tasks
    assert step == -(-point // (points.SHARE * per_step))
    during = [p.step for p in exp.run.points[1:] if p.epoch is not None]
    assert during == [s for s in range(step, exp.run.history[-1].step + 1, step) if s > 8]
    exp = finished("gdumb", "--n_epochs", "1", "--buffer_size", "50", "--fitting_epochs", "1", "--stop_after", "2",
                   "--eval_every")  # fmt: skip
    assert exp.points.every == 0 and [p.epoch for p in exp.run.points[1:]] == [None, None]  # its steps cost nothing


def test_whole_evaluations_of_every_kth_task(tmp_path, capsys):
    exp = finished("sgd", "--n_epochs", "1", "--eval_tasks", "2")
    assert [e.task for e in exp.run.history] == [1, 3, 4]
    argv = ["--model", "sgd", "--dataset", "seq-digits", "--n_epochs", "1", "--eval_tasks", "2", "--eval_every", "4"]
    assert entry.main([*argv, "--non_verbose", "--num_threads", "1", "--results_path", str(tmp_path)]) == 0
    folder = kills.run_folder(tmp_path)
    with open(folder / "points.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    ends = [row["task_trained"] for row in rows if not row["epoch"] and row["scenario"] == "class-il"]
    assert ends == [*"011222333344444"]
    told = (folder / "report.html").read_text()
    assert "needs a score after every task" in told and "Stability gap" in told
    assert entry.main([*argv, "--results_path", str(tmp_path), "--resume"]) == 0  # finished: shown once more
    assert "stability_gap" in capsys.readouterr().out.split("this run is finished")[1]


@pytest.mark.parametrize("value", ["0", "often", "1.5"])
def test_an_impossible_interval_is_one_line(value, capsys):
    argv = ["--model", "sgd", "--dataset", "seq-digits", "--eval_every", value]
    assert entry.main(argv) == 2
    assert f"'{value}': expected a number of iterations, or auto" in capsys.readouterr().err


def test_a_stream_with_loaders_of_its_own():
    exp = experiment(*ER, "--eval_every", "5")
    exp.dataset.test_loaders[0] = [1]
    with pytest.raises(points.UserError, match="no part can be taken of a list"):
        exp.points._extend(exp, 0)
