"""The loop: order of the hooks, flushing, schedules, what ends a task, resuming, and evaluation against a plain
loop.
"""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from palimpsest.models.sgd import SGD
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.utils.check import case_runs, cases
from palimpsest.utils.errors import TrainingFailed
from palimpsest.utils.evaluation import evaluate
from palimpsest.utils.log.events import FLUSH_EVERY
from palimpsest.utils.log.loggers import Logger
from palimpsest.utils.log.report import summarise_run
from palimpsest.utils.optimise import set_learning_rate
from palimpsest.utils.record import Position
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.training import train
from tests.models.helpers import experiment, finished


def test_hooks_are_called_in_order_with_the_counters_of_the_task(monkeypatch):
    calls = []

    def note(name):
        def hook(self, *args):
            counts = (self.current_task, self.n_past_classes, self.n_seen_classes, self.n_remaining_classes)
            calls.append((name, *counts))

        return hook

    for name in ("begin_task", "end_task", "begin_epoch", "end_epoch", "end_eval"):
        monkeypatch.setattr(SGD, name, note(name))
    exp = finished("sgd", "--stop_after", "2", "--n_epochs", "2")
    epoch = ["begin_epoch", "end_epoch"]
    assert [c[0] for c in calls] == ["begin_task", *epoch, *epoch, "end_task", "end_eval"] * 2
    assert calls[0][1:] == calls[5][1:] == (0, 0, 2, 8) and calls[7][1:] == (1, 2, 4, 6)
    assert calls[6][1] == 1  # a task counts as ended when it is evaluated
    assert exp.model.task_iteration == 18 and exp.model.epoch_iteration == 9


def test_observe_gets_only_the_keywords_it_names(tmp_path):
    class NoEpoch(ContinualModel):
        NAME, COMPATIBILITY = "no_epoch", ["class-il"]

        def observe(self, inputs, labels, not_aug_inputs):
            return torch.zeros(())

    exp = experiment("sgd")
    model = NoEpoch(exp.model.net, exp.model.loss, exp.args, exp.model.transform, exp.dataset)
    assert model.meta_observe(torch.zeros(1), torch.zeros(1), torch.zeros(1), 3) == 0


@pytest.mark.parametrize("returned", ["tensor", "float", "dict"])
def test_losses_reach_the_loggers_as_means_of_a_window(monkeypatch, returned):
    values = iter(range(10**6))

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        value = float(next(values))
        as_dict = {"loss": torch.tensor(value), "half": value / 2}
        return {"tensor": torch.tensor(value), "float": value, "dict": as_dict}[returned]

    monkeypatch.setattr(SGD, "observe", observe)
    seen = []

    class Recorder(Logger):
        def step(self, step, losses, lr):
            seen.append((step, losses, lr))

    exp = experiment("sgd", "--stop_after", "1", "--n_epochs", "7")
    exp.log.loggers = [Recorder()]
    train(exp)
    assert [s for s, _, _ in seen] == [FLUSH_EVERY, 63] and seen[0][2] == exp.args.lr
    assert seen[0][1]["loss"] == pytest.approx(np.mean(range(50))) and seen[1][1]["loss"] == pytest.approx(56)
    if returned == "dict":
        assert seen[0][1]["half"] == pytest.approx(np.mean(range(50)) / 2)


def test_the_step_with_the_first_bad_loss_is_named(monkeypatch):
    count = iter(range(1, 1000))
    bad_from_60 = lambda self, *a, epoch=None: torch.tensor(math.nan if next(count) >= 60 else 1.0)  # noqa: E731
    monkeypatch.setattr(SGD, "observe", bad_from_60)
    exp = experiment("sgd", "--stop_after", "2", "--n_epochs", "15")
    with pytest.raises(TrainingFailed, match=r"loss is nan at step 60 \(task 0; loss nan\)"):
        train(exp)


def test_a_number_of_iterations_ends_a_task():
    exp = finished("sgd", "--fitting_mode", "iters", "--n_iters", "20", "--stop_after", "2")
    assert [e.step for e in exp.run.history] == [20, 40]


@pytest.mark.parametrize("options, expected", [
    ("--lr_scheduler multisteplr --lr_milestones 2 3 --sched_multistep_lr_gamma 0.1", [1, 1, 0.1, 0.01]),
    ("--lr_warmup 0.5", [1 / 3, 2 / 3, 1, 1]),
    ("--lr_scheduler cosine --lr_warmup 0.5", [1 / 3, 2 / 3, 1, 0.5]),
    ("--lr_scheduler cosine", [1, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2]),
    ("", [1, 1, 1, 1]),
])  # fmt: skip
def test_learning_rate_schedules(options, expected):
    exp = experiment("sgd", "--lr", "1", "--n_epochs", "4", *options.split())
    rates = []
    for epoch in range(4):
        set_learning_rate(exp.model, exp.args, epoch, n_epochs=4)
        rates.append(exp.model.opt.param_groups[0]["lr"])
    assert rates == pytest.approx(expected)


def test_gradients_are_clipped():
    exp = experiment("sgd", "--lr", "1", "--clip_grad", "0.01")
    before = exp.model.net.get_params()
    exp.dataset.enter_task(0)
    exp.model.meta_begin_task(exp.dataset)
    exp.model.meta_observe(*next(iter(exp.dataset.train_loader)), 0)
    assert (exp.model.net.get_params() - before).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_scores_equal_those_of_a_plain_loop():
    exp = finished("er", "--buffer_size", "50", "--n_epochs", "3", "--eval_batch_size", "7")
    net = exp.model.net.eval()
    for task in range(5):
        data = exp.dataset.test_loaders[task].dataset
        with torch.no_grad():
            logits = net((data.data.float() / 255 - 0.5) / 0.5)
        class_il = 100 * sum(int(z.argmax()) == int(y) for z, y in zip(logits, data.targets, strict=True)) / len(data)
        own = logits[:, 2 * task : 2 * task + 2].argmax(1) + 2 * task
        assert exp.run.matrices["class-il"][4, task] == pytest.approx(class_il, abs=1e-4)
        assert exp.run.matrices["task-il"][4, task] == pytest.approx(
            100 * (own == data.targets).double().mean().item(), abs=1e-4
        )


def test_classes_up_to_the_task_compete_in_class_il_and_those_of_the_task_in_task_il():
    exp = experiment("sgd")
    exp.dataset.all_test_loaders()
    exp.model.net.set_params(torch.zeros_like(exp.model.net.get_params()))
    with torch.no_grad():
        exp.model.net.classifier.bias.copy_(torch.arange(10.0))  # the last class among those that compete wins
    found, _ = evaluate(exp.model, exp.dataset, range(5), trained=1)
    targets = [loader.dataset.targets for loader in exp.dataset.test_loaders]
    shares = [100 * (y == 2 * task + 1).double().mean().item() for task, y in enumerate(targets)]
    # A task to come may be answered rightly, the first one has lost to the second.
    assert found["class-il"] == pytest.approx([0, *shares[1:]]) and found["task-il"] == pytest.approx(shares)


def test_a_method_that_needs_the_task_is_given_it_and_has_no_class_il_score():
    class Told(ContinualModel):
        NAME, COMPATIBILITY = "told", ["task-il"]

        def forward(self, x, task_label):
            self.asked.add(task_label)
            return self.net(x)

    exp = experiment("sgd")
    model = Told(exp.model.net, exp.model.loss, exp.args, exp.model.transform, exp.dataset)
    model.asked = set()
    exp.dataset.all_test_loaders()
    assert list(evaluate(model, exp.dataset, [0, 3], trained=3)[0]) == ["task-il"] and model.asked == {0, 3}


def test_evaluations_during_a_task_are_kept_apart():
    exp = finished("sgd", "--eval_epochs", "2", "--n_epochs", "5", "--stop_after", "1")
    assert [e.epoch for e in exp.run.history] == [1, 3, None]
    quiet = finished("sgd", "--n_epochs", "5", "--stop_after", "1")
    assert exp.run.history[-1].scores == quiet.run.history[-1].scores  # how often one looks changes nothing


@pytest.mark.parametrize(
    ("options", "epochs"),
    [
        ("--eval_epochs 2 --n_epochs 4", [1, None]),
        ("--eval_epochs 1 --n_epochs 1", [None]),
        ("--eval_epochs 1 --fitting_mode iters --n_iters 12", [0, None]),  # the second epoch is cut short
        ("--eval_epochs 1 --n_epochs 9 --fitting_mode early_stopping --holdout 9 --early_stopping_patience 1 --lr 1e-9",
         [0, None]),
    ],
)  # fmt: skip
def test_a_task_is_scored_once_at_its_end(options, epochs):
    run = finished("sgd", *options.split(), "--stop_after", "2", "--enable_other_metrics").run
    assert [e.epoch for e in run.history] == epochs * 2
    rows = Counter((e.step, *key) for e in run.history for *key, _ in e.values("accuracy"))
    assert set(rows.values()) == {1}
    assert "anytime" in summarise_run(run)["class-il"]  # which was asked for, if only by the tasks' ends


def test_starting_at_a_later_task():
    exp = finished("sgd", "--start_from", "3", "--n_epochs", "1")
    assert [e.task for e in exp.run.history] == [3, 4]
    assert exp.model.current_task == 5


@pytest.mark.parametrize("level", ["1", "2"])
def test_code_optimization_levels_train(level):
    try:
        exp = finished("sgd", "--code_optimization", level, "--stop_after", "1", "--n_epochs", "10")
    finally:
        torch.set_float32_matmul_precision("highest")
    assert exp.run.matrices["task-il"][0, 0] > 80


@pytest.mark.parametrize("options", [
    "--fitting_mode early_stopping --holdout 20 --early_stopping_patience 1 --lr 0.5 --n_epochs 4",
    "--lr_scheduler cosine --optimizer adam --lr 0.001 --clip_grad 1 --n_epochs 4",
    "--lr_scheduler multisteplr --lr_milestones 1 --optim_mom 0.9 --optim_wd 0.001 --n_epochs 4",
    "--fitting_mode iters --n_iters 25 --eval_epochs 1 --n_epochs 4",
    "--enable_other_metrics --backbone resnet18 --num_filters 4 --n_epochs 2",
], ids=lambda o: o.split()[1])  # fmt: skip
def test_a_run_with_these_options_is_resumed_exactly(options):
    case = cases.Case("derpp", "class-il")
    more = options.split()
    whole = case_runs.run(case, *more)
    total = whole.run.history[-1].step
    for step in (total // 3, total // 2, total - 3):
        resumed = case_runs.resumed_run(case, step, *more)
        assert not case_runs.differing_entries(case_runs.state_of(whole), case_runs.state_of(resumed))
        assert whole.run.history == resumed.run.history and whole.run.losses == resumed.run.losses


def test_a_state_with_weights_that_are_not_finite_is_not_kept():
    exp = experiment("sgd")
    with torch.no_grad():
        next(exp.model.net.parameters()).fill_(math.inf)
    with pytest.raises(TrainingFailed, match=r"not finite after step 7 \(task 1\)"):
        checkpoint.capture(exp, Position(task=1, step=7))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("data_device", ["cpu", "cuda"])
def test_training_on_a_gpu_with_data_on_either_side(data_device):
    exp = finished("er", "--buffer_size", "50", "--device", "cuda", "--data_device", data_device, "--stop_after", "2")
    assert exp.run.matrices["task-il"][1, 1] > 80
