"""Balanced EWC: its mathematics by hand, and methods on a small vision stream."""

import math
from types import SimpleNamespace

import pytest
import torch

from palimpsest.models.balanced_ewc import normalised
from palimpsest.models.utils.kept_images import select_exemplars
from palimpsest.utils.check import case_runs, cases, conformance
from palimpsest.utils.criterion import Verdict, of_run, remarks
from palimpsest.utils.errors import UserError
from palimpsest.utils.log.analysis import analyse
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import train
from tests.models.helpers import enter

pytestmark = pytest.mark.usefixtures("undrawn")


def test_normalised_information_has_mean_one_over_the_shared_parameters():
    shared = torch.tensor([True, True, False])
    assert normalised(torch.tensor([1.0, 3.0, 100.0]), shared, 0.5).tolist() == [1.0, 2.0, 0.0]


# ---- criterion


def test_a_target_below_the_floor_is_said_to_say_nothing():
    rows = [Verdict("det", 12.0, 8.0, floor=9.0)]
    run = SimpleNamespace(config={})
    assert any("no higher than the floor" in line and "det" in line for line in remarks(run, rows))
    run.config["criterion"] = "relative"  # 11.4
    assert not any("no higher" in line for line in remarks(run, rows))
    run.config["validation"] = 20
    assert any("--validation" in line for line in remarks(run, rows))


@pytest.mark.parametrize("option", ["joint", "inference_only", None])
def test_a_run_of_the_last_stage_alone_has_its_baseline(option):
    end = SimpleNamespace(epoch=None, task=2, scores={"task-il": [10.0, 20.0, 30.0]}, others={})
    tasks = {"seg": "mIoU", "det": "mAP_cls", "cls": "top-1"}
    run = SimpleNamespace(
        history=[end], tasks=tasks, matrices={"task-il": None}, config={option: True} if option else {}
    )
    assert [math.isnan(row.baseline) for row in of_run(run)] == [True, True, option is not None]


def test_kept_images_cover_the_classes():
    shown = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]]).bool()
    assert sorted(select_exemplars(shown, 2)) == [2, 3] and len(set(select_exemplars(shown, 9))) == 5


# ---- on a stream


SMALL = {
    "--dataset": "seq-vision-mini", "--vision_items": "digits", "--vision_size": "32", "--vision_subset": "20",
    "--batch_size": "8", "--n_epochs": "1", "--num_threads": "1", "--device": "cpu",
}  # fmt: skip


class VisionCase(cases.Case):
    """A method on three tasks of 16 training images each."""

    def config(self, *more, share=None):
        given = [*self.model.split()[1:], *more]
        default = [a for name, value in SMALL.items() if name not in given for a in (name, value)]
        argv = ["--model", self.model.split()[0], "--base_path", cases.vision_folder(), "--disable_log"]
        return resolve([*argv, "--non_verbose", *default, *given])


METHODS = {
    "sgd": "sgd",
    "er": "er --buffer_size 12 --minibatch_size 3",
    "lwf": "lwf",
    "ewc": "ewc --n_fisher 8",
    "joint": "joint",
    "sgd with boxes": "sgd --detection boxes",
    "balanced-ewc with one head": "balanced-ewc --head unified --distill_weight 1 --probe_size 8 --finetune_steps 10",
    "balanced-ewc by its penalty": "balanced-ewc --n_fisher 8 --probe_size 8 --finetune_steps 10",
    "balanced-ewc": "balanced-ewc --n_fisher 8 --replay_weight 1 --distill_weight 1 --probe_size 8 --finetune_steps 10",
}


def case(name: str) -> VisionCase:
    return VisionCase(METHODS[name], "task-il")


@pytest.mark.parametrize("name", ["er", "lwf", "sgd with boxes", "balanced-ewc with one head"])
def test_observe_never_waits_and_leaves_the_stream_alone(name):
    conformance.observe_never_waits(case(name))
    conformance.the_stream_is_left_alone(case(name))


@pytest.mark.parametrize("model", ["ewc", "balanced-ewc by its penalty"])
def test_branches_of_finished_tasks_do_not_move(model):
    options = ["--task_batch_sizes", "4,8,3", "--bn_policy", "per_task", "--optimizer", "adamw", "--optim_wd", "0.1"]
    exp, seen = build(case(model).config(*options)), []

    def own(*_):
        state = exp.model.net.state_dict()
        seen.append({k: v.clone() for k, v in state.items() if k.startswith("heads.seg.") or ".norms.seg." in k})

    exp.log.after_task = own
    train(exp)
    assert all(torch.equal(seen[0][key], seen[2][key]) for key in seen[0])
    assert [record["steps"] for record in exp.run.epochs] == [4, 2, 6]  # of 16 images


def test_old_boxes_are_replayed_and_distilled():
    exp = build(case("balanced-ewc").config("--detection", "boxes", "--vision_order", "det,seg,cls"))
    train(exp)
    assert analyse(exp.model, exp.dataset, 2).confusion is None  # no label is one class per image
    assert all(math.isfinite(v) for _, means, _ in exp.run.losses for v in means.values())
    assert "AP50" in exp.run.history[-1].others


def test_a_run_resumed_in_the_middle_of_its_second_task_ends_as_if_it_had_never_stopped():
    undisturbed = case_runs.Ended.of(case_runs.run(case("lwf")))
    resumed = case_runs.Ended.of(case_runs.resumed_run(case("lwf"), 3))
    assert not case_runs.differing_ends(undisturbed, resumed)


def at_the_end(values: list[float], bases: list[float], *more: str):
    """Balanced EWC before its last stage, with these scores on what it keeps."""
    exp = build(case("balanced-ewc").config(*more))
    model, dataset = exp.model, exp.dataset
    for task in range(3):
        enter(model, dataset, task).keep_images(dataset, task)
    model.bases = bases
    model.value = lambda k: values[k]
    return model, dataset


def test_kept_images_are_bytes_and_trained_on_or_scored_but_never_both():
    model, dataset = at_the_end([0.0] * 3, [0.0] * 3, "--replay_per_task", "4")
    kept = [*model.replay, *(batch for probe in model.probes for batch in probe)]
    assert all(raw.dtype == torch.uint8 for raw, _ in kept)
    assert [labels.dtype for _, labels in model.replay] == [torch.uint8, torch.float32, torch.int64]
    for task, (raw, _) in enumerate(model.replay):
        scored = torch.cat([images for images, _ in model.probes[task]])
        assert len(raw) == 4 and len(scored) and not any(torch.equal(x, y) for x in raw for y in scored)
        inputs, labels = model.unpacked(model.replay[task])
        rows = list(zip(*map(torch.cat, zip(*dataset.examples(task=task), strict=True)), strict=True))
        for x, y in zip(inputs, labels, strict=True):
            assert any(torch.equal(x, a) and torch.equal(y, b) for a, b in rows)


@pytest.mark.parametrize("option, held_out", [("--holdout", True), ("--validation", False)])
def test_what_the_method_is_judged_by_is_never_kept(option, held_out):
    """The fine-tuning may follow scores on held-out images, but not on those that stand in for the test set."""
    model, dataset = at_the_end([0.0] * 3, [0.0] * 3, option, "20", "--replay_per_task", "4")
    for task, probe in enumerate(model.probes):
        dataset.enter_task(task)
        scored = torch.cat([inputs for inputs, _ in dataset.held_out_loader])
        probes = torch.cat([model.unpacked(batch)[0] for batch in probe])
        assert len(probes) and all(any(torch.equal(x, y) for y in scored) == held_out for x in probes)
        assert not any(torch.equal(x, y) for x in model.unpacked(model.replay[task])[0] for y in scored)


def test_losses_are_divided_by_their_mean_over_the_first_epoch():
    exp = build(case("balanced-ewc").config("--replay_per_task", "4"))
    model, told = exp.model, []
    loss, model.loss = model.loss, lambda z, y: told.append(loss(z, y)) or told[-1]
    enter(model, exp.dataset, 0)
    for epoch in range(2):
        for batch in exp.dataset.train_loader.epoch(epoch):
            step = model.meta_observe(*batch, epoch)
            first = [value.item() for value in told[: len(exp.dataset.train_loader)]]  # as far as they are known
            assert step["task"].item() == pytest.approx(told[-1].item() * len(first) / sum(first), rel=1e-5)
    model.meta_end_task(exp.dataset)
    (one,), _ = model.remembered(exp.dataset.tasks[:1])
    model.args.balance_losses = False
    (other,), _ = model.remembered(exp.dataset.tasks[:1])
    assert one.item() == pytest.approx(other.item() * len(first) / sum(first), rel=1e-5)


def test_without_images_beside_those_to_train_on_there_is_no_value():
    exp = build(case("balanced-ewc").config("--vision_subset", "10", "--batch_size", "4", "--n_epochs", "1"))
    train(exp)
    assert all(map(math.isnan, exp.model.bases)) and not exp.model.finetuned


@pytest.mark.parametrize(
    "values, helped, steps",
    [
        ([60.0, 70.0, 80.0], None, 0),  # all targets are met
        ([50.0, 70.0, 80.0], None, 10),  # what helps nobody is undone
        ([50.0, 70.0, 80.0], 61.0, 10),
    ],
)
def test_a_missed_target_is_fine_tuned_for(values, helped, steps):
    model, dataset = at_the_end(values, [65.0, 70.0, 80.0])
    before, asked, rates = model.net.get_params(), [], []
    original = model.remembered

    def watched(tasks):
        losses, _ = original(tasks)
        for loss in losses:
            loss.retain_grad()
        asked.append(losses)
        rates.append(model.opt.param_groups[0]["lr"])
        if helped and len(asked) == 10:
            values[0] = helped
        return losses, []

    model.remembered = watched
    model.finetune(dataset)
    assert rates == [pytest.approx(model.args.lr / 10)] * steps
    assert len(asked) == steps and model.finetuned == bool(steps)
    assert torch.equal(model.net.get_params(), before) == (not helped)
    if steps:
        seg, det, cls = asked[0]
        assert seg.grad == 1 and det.grad is None and cls.grad is None  # the weight of a task that passes is 0
    assert model.report(dataset, range(3)).numbers["fine-tuned at the end"] == bool(steps)


@pytest.mark.parametrize(
    "name, more, message",
    [
        ("sgd", ["--task_batch_sizes", "8,8,0"], "a number above 0 for each of 3 tasks"),
        ("ewc", ["--ewc_fisher", "exact"], "give mc"),
        ("sgd", ["--backbone", "resnet18"], "--backbone multitask"),
        ("er", ["--joint"], "use --model joint"),
        ("sgd", ["--validation", "20", "--fitting_mode", "early_stopping"], "use --holdout"),
    ],
)
def test_options_that_do_not_fit(name, more, message):
    with pytest.raises(UserError, match=message):
        build(case(name).config(*more))
