"""What is told of a posterior at the end of a run: numbers by hand, pictures, and that a resumed run tells the same."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import main as entry
from palimpsest.models.utils.posterior import plots as posterior_plots
from palimpsest.models.utils.posterior import view as posterior_view
from palimpsest.models.utils.posterior.base import Look
from palimpsest.models.utils.posterior.calibration import auroc, ece, reliability
from palimpsest.utils.check.case_runs import differing_entries, resumed_run, run, state_of
from palimpsest.utils.log import plots
from palimpsest.utils.log.analysis import analyse
from palimpsest.utils.randomness import random_state
from palimpsest.utils.run.checkpoint import fingerprint
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import execute
from tests.models.helpers import Command, finished

HYPERNETWORK, SAMPLES = ["--hnet_arch", "10", "--cond_emb_size", "4"], ["--val_sample_size", "3"]
FEW = {"pr_bbb": [*HYPERNETWORK, *SAMPLES], "pr_dirac": HYPERNETWORK, "vcl": SAMPLES, "ewc_post": SAMPLES}


def test_calibration_by_hand():
    confidence, correct = np.array([0.5, 0.6, 0.9, 0.9, 1.0]), np.array([0, 1, 1, 0, 1])
    claimed, right, count = reliability(confidence, correct, 2)  # (0, .5] and (.5, 1]
    assert count.tolist() == [1, 4] and claimed == pytest.approx([0.5, 0.85]) and right == pytest.approx([0, 0.75])
    assert ece(confidence, correct, 2) == pytest.approx(100 * (0.2 * 0.5 + 0.8 * 0.1))
    assert ece([1.0, 1.0], [True, True]) == 0
    assert np.isnan(reliability([0.99], [1], 2)[0][0])


def test_area_under_the_curve_by_hand():
    assert auroc([1, 2], [3, 4]) == 1 and auroc([3, 4], [1, 2]) == 0
    assert auroc([1, 3], [2, 3]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)  # the pairs (1,2), (1,3), (3,2), (3,3)
    assert auroc([0, 0], [0]) == 0.5


def test_what_a_look_tells_by_hand():
    """Two tasks of classes {0, 1} and {2, 3}: the first is inferred for the first example only."""
    p = [torch.tensor([[0.9, 0.1], [0.5, 0.5]]), torch.tensor([[0.4, 0.6], [0.2, 0.8]])]
    entropies = torch.tensor([[0.3, 1.0], [0.9, 0.5]])
    look = Look([q.log() for q in p], {"ent": entropies, "conf": entropies})
    model = SimpleNamespace(
        joint_softmax=False, regression=False, by_class=True, criteria=("ent",), look=lambda x: look,
        first_label=lambda t: 2 * t,
        predicted=lambda _, task: torch.eye(4)[torch.where(task == 0, 0, 3)],
    )  # fmt: skip
    told = posterior_view._answers(model, torch.zeros(2, 1), torch.tensor([2, 3]), 1)
    assert told["inferred"].tolist() == [0, 1]
    torch.testing.assert_close(told["given confidence"], torch.tensor([0.6, 0.8]))
    assert told["given correct"].tolist() == [False, True] and told["inferred correct"].tolist() == [False, True]
    torch.testing.assert_close(told["given nll"], -torch.tensor([0.4, 0.8]).log())
    torch.testing.assert_close(told["inferred confidence"], torch.tensor([0.9, 0.8]))


def test_numbers_are_means_over_tasks():
    seen = {"task": np.array([0, 0, 0, 1.0]), "by ent": np.array([[0.1, 0.1, 0.4, 0.3], [0.5, 0.6, 0.7, 0.2]])}
    numbers = posterior_view.uncertainty_numbers(SimpleNamespace(regression=False, criteria=("ent",)), seen)
    assert numbers == {
        "entropy on own data": pytest.approx((0.2 + 0.2) / 2),
        "entropy on other tasks' data": pytest.approx((0.3 + 0.6) / 2),
        "AUROC of other tasks' data by entropy": pytest.approx((2 / 3 + 1) / 2),
    }


def test_pictures_of_many_tasks_and_of_little_data(tmp_path):
    rng, (n, many) = np.random.default_rng(0), (9, posterior_plots.MOST_PANELS)
    plane = [(rng.normal(size=(4, 2)), np.array([2 * t, 2 * t, 2 * t + 1, 2 * t + 1])) for t in range(n)]
    x, line = np.linspace(-1, 1, 20), [(rng.normal(size=3), rng.normal(size=3))] * n
    curves = {"then": [None] * n, "now": [np.stack([x, x**2])] * n}
    maps = posterior_plots.entropy_maps(rng.uniform(size=(n, 5, 5)), (-1, 1, -1, 1), plane)
    functions = posterior_plots.functions(x, curves, [x] * n, [(-1.0, 0.0)] * n, line, 0.1)
    assert len(maps.axes) == many + 1 and len(functions.axes) == 2 * many  # the maps with a colour bar
    mean, (low, high) = functions.axes[-1].lines[0].get_ydata(), functions.axes[-1].get_ylim()
    assert mean.tolist() == x.tolist() and low < -1 and high > 1
    classes = posterior_plots.class_map(rng.integers(0, 2 * n, (5, 5)), (-1, 1, -1, 1), plane, "classes")
    assert len(classes.axes[0].collections) == 2 * n and classes.axes[0].get_legend() is None
    nothing = posterior_plots.uncertainty_histogram(np.zeros(3), np.zeros(4), "spread")
    assert nothing.axes[0].patches[0].get_data().values.max() == 100
    reliable = posterior_plots.reliability({"given": reliability([0.99], [1]), "none": reliability([], [])})
    for figure in (classes, nothing, reliable):  # of the others there is less below
        figure.savefig(tmp_path / "x.png", dpi=40)


def test_a_score_in_words():
    assert plots.worded("Average accuracy (ACC)", "r2") == "Average R² (ACC)"
    assert plots.worded("mean accuracy (%)", "accuracy") == "mean accuracy (%)"
    axes = plots.accuracy_matrix(np.array([[50.0]]), "Accuracy matrix: domain-il", "r2").axes[0]
    assert (axes.get_title("left"), axes.get_xlabel()) == ("R² matrix: domain-il", "R² (%) on task")


PLANE = {"uncertainty", "task_inference", "reliability", "class_map", "entropy_map"}
LINE = {"uncertainty", "task_inference", "functions"}
DRAWN: set[str] = set()  # kinds of picture: one of each is enough


@pytest.mark.parametrize(
    "model, dataset, more, pictures",
    [
        ("pr_bbb", "seq-gmm2d", [], PLANE),
        ("pr_dirac", "seq-poly1d", ["--separate"], {"functions"}),
        ("vcl", "seq-poly1d", [], LINE),
        ("ewc_post", "seq-gmm2d", ["--ewc_head", "growing"], {"reliability", "class_map"}),
        ("ewc_post", "seq-poly1d", ["--det_multi_head"], {"functions"}),
        ("ewc_post", "seq-poly1d", ["--stop_after", "1"], {"functions"}),
        ("pr_bbb", "seq-gmm2d", ["--joint"], set()),
    ],
)
def test_every_method_finds_what_it_can(model, dataset, more, pictures, tmp_path):
    exp = finished(model, "--n_iters", "10", *FEW[model], *more, dataset=dataset)
    exp.dataset.all_test_loaders()
    before = fingerprint([exp.model.state_dict(), random_state()])
    found = analyse(exp.model, exp.dataset, exp.run.history[-1].task)
    assert fingerprint([exp.model.state_dict(), random_state()]) == before
    assert {panel.name for panel in found.panels if panel.name != "importance"} == pictures
    for panel in found.panels:
        figure = panel.figure()
        if panel.name not in DRAWN:
            figure.savefig(tmp_path / f"{panel.name}.png", dpi=40)
            DRAWN.add(panel.name)
    assert bool(found.numbers) == bool(pictures) and all(map(math.isfinite, found.numbers.values()))


@pytest.mark.usefixtures("undrawn")
def test_a_report_has_the_findings(tmp_path):
    argv = ["--model", "pr_bbb", "--dataset", "seq-poly1d", "--n_iters", "5", *FEW["pr_bbb"], "--num_threads", "1"]
    done, _ = execute(resolve([*argv, "--no_tensorboard", "--non_verbose", "--results_path", str(tmp_path)]))
    findings = json.loads((done.folder / "metrics.json").read_text())["extra_metrics"]
    assert {"weights of the hypernetwork / of the network", "drift of the hypernetwork's outputs"} <= {*findings}
    told = (done.folder / "report.html").read_text()
    assert all(f'aria-label="{name.replace("_", " ")}"' in told for name in LINE)
    report = done.folder / "report.html"
    assert entry.main(["--report", str(done.folder)]) == 0 and report.read_text() == told  # panels are data, too
    assert "Findings of pr_bbb" in told and "Average R² (ACC)" in told and "Average accuracy" not in told


def test_every_stride_th_example_is_looked_at(monkeypatch):
    exp = finished("vcl", "--n_iters", "2", "--eval_batch_size", "30", *FEW["vcl"], dataset="seq-poly1d")
    monkeypatch.setattr(posterior_view, "IN_ALL", 60)  # 20 of 50: every third
    with torch.no_grad():
        seen = posterior_view.gather(exp.model.eval(), exp.dataset, range(3))
    assert np.bincount(seen["task"].astype(int)).tolist() == [17, 17, 17] and seen["by ent"].shape == (3, 51)
    x, y = exp.dataset.test_loaders[1].dataset.data[::3], exp.dataset.test_loaders[1].dataset.targets[::3]
    look = exp.model.look(x)
    assert seen["given error"][17:34] == pytest.approx((look.means[1] - y).square()[:, 0].numpy(), rel=1e-5)


def test_curves_survive_a_resume_and_training_does_not_feel_them(monkeypatch):
    case = Command("pr_bbb", *FEW["pr_bbb"], "--n_iters", "4", dataset="seq-poly1d")
    whole = run(case)
    assert {*whole.model.curves} == {0, 1, 2} and whole.model.curves[0].shape == (2, 200)
    for step in (6, -8):  # in the second task, and right after it
        again = resumed_run(case, step)
        assert not differing_entries(state_of(whole), state_of(again))
        assert all(torch.equal(curve, again.model.curves[task]) for task, curve in whole.model.curves.items())
    last = posterior_view.curve(whole.model.eval(), whole.dataset.plot_inputs())[2]
    torch.testing.assert_close(last, whole.model.curves[2])
    monkeypatch.delattr(type(whole.dataset), "plot_inputs")
    without = run(case)
    assert not without.model.curves
    pairs = zip(whole.model.parameters(), without.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
