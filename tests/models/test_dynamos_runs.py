"""DYNAMOS over whole runs: warm-up, options, evaluation, what the report shows."""

import math

import pytest
import torch
import torch.nn.functional as F

from palimpsest.utils import registry
from palimpsest.utils.check.cases import Interrupted
from palimpsest.utils.errors import UserError
from palimpsest.utils.log.report import pictures_of
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.best_args import find_row
from palimpsest.utils.run.training import Position, train
from tests.models.helpers import experiment, finished, options
from tests.models.test_dynamos import ROW, argv

# ---- warm-up


def gates_from(dataset: str = "seq-digits", **changed) -> tuple[int, int, int] | None:
    """(task, epoch, iteration of the epoch) of the first step with gates; nothing may be stored before it."""
    exp = experiment("dynamos", *argv(**changed), "--warmup", dataset=dataset)
    model = exp.model
    observe = model.observe

    def watched(inputs, labels, raw, epoch=None):
        place = model.current_task, epoch, model.epoch_iteration
        out = observe(inputs, labels, raw, epoch)
        if model.net.gating:
            raise Interrupted(place)
        assert list(out) == ["loss", "ce"] and model.buffer.num_seen_examples == 0
        return out

    vars(model)["observe"] = watched
    try:
        train(exp)
    except Interrupted as found:
        return found.args[0]


def test_warmup():
    few = {"label_perc": 0.1, "batch_size": 5}  # 6 iterations in an epoch of a task
    assert gates_from(n_epochs=1, stop_after=1) == (0, 0, 10)
    assert gates_from(n_epochs=1, stop_after=2, **few) == (1, 0, 4)
    assert gates_from(n_epochs=12, stop_after=1, **few) == (0, 10, 0)
    assert gates_from("digits-360", n_epochs=2, label_perc=0.2) == (0, 0, 10)
    assert gates_from(fitting_mode="iters", n_iters=14, stop_after=1, **few) == (0, 1, 4)
    for epochs in (2, 5, 10):
        with pytest.raises(UserError, match=f"--n_epochs {epochs}: use one epoch"):
            experiment("dynamos", *argv(n_epochs=epochs), "--warmup")
    with pytest.raises(UserError, match="the run is over before"):
        gates_from(n_epochs=1, stop_after=1, **few)
    assert gates_from(n_epochs=1, stop_after=1, debug_mode=1, **few) is None  # a look whether it runs at all


# ---- options, rows


def test_defaults():
    names = ("policy_alpha", "policy_penalty", "reward_weight", "keep_ratio", "prototype_loss", "temperature",
             "hidden_dim_ratio", "warmup", "infer_mode", "inf_thresh", "nf")  # fmt: skip
    args = options("dynamos", *ROW)
    assert [getattr(args, n) for n in names] == [0.2, -500, 0.5, 0.7, 0.3, 0.15, 16, False, "threshold", 0.5, 32]


def test_names():
    for name in ("dynamos-sgd", "dynamos_sgd"):
        assert registry.load("model", name).NAME == "dynamos_sgd"
    for name in ("multi-scale", "multi_scale", "derpp-single"):
        assert registry.load("model", name).NAME == "derpp_single"
    with pytest.raises(UserError, match="dynamos needs channels that can be gated"):
        experiment("dynamos", *ROW, "--backbone", "mnistmlp")


@pytest.mark.parametrize("dataset", ["seq-mnist", "seq-fmnist"])
def test_rows(dataset):
    row = find_row("dynamos", dataset, 1000)
    assert row["args"] == {
        "buffer_size": 1000, "lr": 0.07, "batch_size": 10, "minibatch_size": 10, "n_epochs": 1, "nf": 32, "alpha": 0.1,
        "beta": 2.5, "policy_alpha": 0.2, "policy_penalty": -200, "reward_weight": 0.7, "prototype_loss": 0.5,
        "keep_ratio": 0.7, "temperature": 0.15, "warmup": True, "normalize": "none", "augment": False,
    }  # fmt: skip
    assert "published" not in row
    args = options("dynamos", "--buffer_size", "1000", "--load_best_args", "--lr", "0.01", dataset=dataset)
    assert (args.lr, args.backbone, args.alpha) == (0.01, "gated-resnet", 0.1)


# ---- evaluation


@pytest.fixture(scope="module")
def trained():
    return finished("dynamos", *argv(nf=8, stop_after=2, n_epochs=1, label_perc=0.5))


def test_a_loaded_network_has_the_settings_of_this_run(trained, tmp_path):
    more = ("--inf_thresh", "0.9", "--infer_mode", "sample", "--temperature", "0.5")
    exp, file = experiment("dynamos", *argv(nf=8, label_perc=0.5), *more), tmp_path / "a.pt"
    model = exp.model
    at = Position(task=len(trained.dataset.tasks), step=trained.run.history[-1].step)
    checkpoint.save(checkpoint.capture(trained, at), file)
    checkpoint.restore(checkpoint.load(file), exp, exact=False)
    assert (model.net.inf_thresh, model.net.sample, model.net.temperature) == (0.9, True, 0.5)


@torch.no_grad()
def test_sparse_inference_gives_the_same_scores(trained):
    model, (inputs, _) = trained.model.eval(), next(iter(trained.dataset.test_loaders[0]))
    dense, trained.args.sparse_infer = model(inputs[:30]), True
    sparse, trained.args.sparse_infer = model(inputs[:30]), False
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)
    assert not torch.equal(sparse, dense)


def test_the_same_seed_gives_the_same_row_where_gates_are_sampled():
    sampled = [*argv(stop_after=1, n_epochs=1, label_perc=0.2), "--infer_mode", "sample"]
    runs = [finished("dynamos", *sampled).run for _ in range(2)]
    assert runs[0].history == runs[1].history and runs[0].losses == runs[1].losses
    assert math.isfinite(runs[0].losses[-1][1]["loss"])


# ---- what the report shows


def test_gate_analysis_by_hand(trained):
    """Two classes of two images, whose masks are chosen."""
    from palimpsest.models.utils.gates.analysis import gate_analysis

    class Stream:
        SIZE, N_CLASSES = (1, 8, 8), 10
        images = torch.stack([torch.full((1, 8, 8), float(i)) for i in (1, 1, 2, 2)])

        def __init__(self):
            loader = type("Loader", (list,), {"dataset": range(4)})
            self.test_loaders = [loader([(self.images, torch.tensor([0, 0, 1, 1]))])]

        def task_classes(self, task):
            return 0, 2

    net, width = trained.model.net, 64
    masks = torch.zeros(4, width)
    masks[:2, :32] = 1  # class 0: the first half; class 1: the third quarter, and for one image the first too
    masks[2:, 32:48] = 1
    masks[3, :16] = 1
    traced = net.traced

    def chosen(x):
        logits, trace = traced(x)
        if net.inf_thresh == 0.5:
            trace.actions = masks
        return F.one_hot(torch.tensor([0, 0, 1, 0]), 10).float(), trace

    net.traced = chosen
    try:
        found = gate_analysis(trained.model, Stream(), range(1))
    finally:
        del net.traced
    assert found["images"] == 4 and found["slices"] == [0, 16, 32, 48, 64]
    assert found["rates"][1].tolist() == [0.5] * 16 + [0] * 16 + [1] * 16 + [0] * 16
    assert found["similarity"] == pytest.approx(1)
    numbers = found["numbers"]
    expected = {f"kept by agent {g}": kept for g, kept in enumerate((0.75, 0.5, 0.5, 0), start=1)} | {
        "different masks on 4 images": 3, "filters always on": 0, "filters never on": 0.25,
        "overlap of filters, two classes": 8 / 48, "overlap of filters, halves of a class": (1 + 16 / 32) / 2,
        "overlap of masks, images of two classes": 16 / 48 / 2,
        "overlap of masks, images of a class": (1 + 16 / 32) / 2,
    }  # fmt: skip
    assert {name: numbers[name] for name in expected} == pytest.approx(expected)
    assert "rank correlation of overlap with likeness" not in numbers  # of two classes there is one pair
    tau, kept, macs, accuracy = found["curve"][2]
    assert (tau, accuracy) == (0.5, 75) and kept == pytest.approx(28 / 64) and 0.5 < macs < 0.8
    assert net.inf_thresh == 0.5


def test_findings(trained):
    with torch.no_grad():
        report = trained.model.eval().report(trained.dataset, range(2))
    numbers = report.numbers
    assert [panel.name for panel in report.panels] == ["gate_rates", "gate_overlap", "gate_accuracy"]
    assert 0.3 < numbers["kept by agent 4"] <= 1 and 0.5 < numbers["multiply-accumulates / without gates"] <= 1.1
    for panel in report.panels:
        panel.figure().canvas.draw()
    drawn = {p.name: [line.get_label() for line in p.figure.axes[0].lines] for p in pictures_of(trained.run)}
    names = ["loss", "ce", "policy", "prototype", "logits", "vectors", "replay", "replay_policy", "replay_prototype"]
    assert [name for name in drawn["loss"] if not name.startswith("_")] == names
    assert [name for name in drawn["shares"] if not name.startswith("_")] == list(report.shares)
