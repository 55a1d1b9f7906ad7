"""What a run costs: operations counted against sums by hand, and what a killed and resumed run says of itself."""

import itertools

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch.utils.flop_counter import FlopCounterMode

import main as entry
from palimpsest.models.er import ER
from palimpsest.utils.run.measure.budget import kept_bytes, tell_costs
from palimpsest.utils.run.measure.flops import FlopCounter, count_flops
from palimpsest.utils.run.measure.meter import Meter
from palimpsest.utils.run.training import train
from tests import kills
from tests.models.helpers import enter, experiment, finished

LAYERS = (784 * 100, 100 * 100, 100 * 10)
FORWARD = 2 * sum(LAYERS)  # of an example
STEP = 3 * FORWARD - 2 * LAYERS[0]  # the gradient with respect to the images is not computed
MLP = ["--backbone", "mnistmlp", "--batch_size", "10"]
ARGV = ["--model", "er", "--dataset", "seq-digits", "--n_epochs", "1", "--buffer_size", "50", "--num_threads", "1"]
ARGV += ["--non_verbose", "--report", "off"]


@pytest.fixture(scope="module")
def mlp():
    layers = [torch.nn.Linear(784, 100), torch.nn.ReLU(), torch.nn.Linear(100, 100), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(100, 10))


def test_an_mlp_by_hand(mlp):
    x, y = torch.randn(10, 784), torch.randint(10, (10,))
    with FlopCounter() as forward:
        out = mlp(x)
    with FlopCounter() as backward:
        F.cross_entropy(out, y).backward()
    assert (forward.total, forward.total + backward.total) == (10 * FORWARD, 10 * STEP)
    assert pytest.approx(1_788_000, rel=0.01) == 10 * FORWARD


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_count_is_torchs_own(mode):
    x = torch.randn(2, 3, 8, 8)
    conv, attention = torch.nn.Conv2d(3, 4, 3, groups=1, padding=1), torch.nn.MultiheadAttention(8, 2)

    def work():
        with mode():
            tokens = conv(x).mean(1)
            out = attention(tokens, tokens, tokens)[0] @ tokens.transpose(1, 2)
            if out.requires_grad:
                out.sum().backward()

    with FlopCounterMode(display=False) as theirs:
        work()
    with FlopCounter() as ours:
        work()
    assert ours.total == theirs.get_total_flops() > 0


def test_long_loops_in_a_hook_are_counted_by_their_first_rounds(mlp):
    opt, x, y = torch.optim.SGD(mlp.parameters(), lr=0.1), torch.randn(10, 784), torch.randint(10, (10,))

    def fit(steps):
        for _ in range(steps):
            opt.zero_grad()
            F.cross_entropy(mlp(x), y).backward()
            opt.step()
        return "done"

    assert [count_flops(fit, n) for n in (0, 1, 3, 4, 50)] == [("done", 10 * STEP * n) for n in (0, 1, 3, 4, 50)]
    data = experiment("sgd", *MLP).dataset.task_data(0)
    net = torch.nn.Linear(64, 3)

    def look(sizes):
        for n in sizes:
            net(data.transform(data.data[:n]).flatten(1))

    for sizes in ([10], [10] * 20, [10] * 20 + [7]):
        assert count_flops(look, sizes, data=data)[1] == 2 * 64 * 3 * sum(sizes)
    look([1])  # and no trace is left
    assert not hasattr(data.transform, "__wrapped__")


def test_a_run_by_hand():
    """Two tasks of er with a batch of 10 and 10 from memory; images have 64 pixels here."""
    exp = finished("er", *MLP, "--stop_after", "2", "--n_epochs", "2", "--buffer_size", "50", "--minibatch_size", "10")
    forward = 2 * (64 * 100 + 100 * 100 + 100 * 10)
    step = 20 * (3 * forward - 2 * 64 * 100)
    costs = exp.meter.costs(exp.run.history[-1].step)
    assert costs["flops_training"] == step * exp.run.history[-1].step
    assert costs["flops_inference"] == 1000 * forward
    assert costs["cpu_seconds_training"] > 0 and 0 < costs["seconds_evaluating"] < costs["seconds_training"]
    images = exp.meter.spent["images"]
    assert images == sum(len(loader.dataset) for loader in (*exp.dataset.test_loaders, exp.dataset.test_loaders[0]))
    per_1000 = 1000 * exp.meter.spent["seconds_evaluating"] / images
    assert costs["inference_seconds_per_1000"] == pytest.approx(per_1000, abs=1e-6)


def test_the_hooks_of_a_method_are_a_part_of_the_cost():
    """EWC's Fisher information: what is done with the batches, and what is done with their sums after the last one."""
    exp = experiment("ewc", *MLP, "--n_epochs", "1")
    enter(exp.model, exp.dataset, 0)
    with FlopCounterMode(display=False) as whole:
        exp.model.meta_end_task(exp.dataset)
    sgd, ewc = (finished(model, *MLP, "--n_epochs", "1", "--stop_after", "1") for model in ("sgd", "ewc"))
    assert ewc.meter.flops(10**6) - sgd.meter.flops(10**6) == whole.get_total_flops() > 10**7


def test_counting_leaves_no_trace():
    argv = ["ewc", *MLP, "--n_epochs", "1", "--stop_after", "2"]
    counted, uncounted = finished(*argv), experiment(*argv)
    uncounted.meter = Meter()
    train(uncounted)
    for a, b in zip(counted.model.parameters(), uncounted.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert counted.meter.flops(10**4) > 0 and uncounted.meter.flops(10**4) is None


def test_the_gradient_of_a_product_has_its_usual_bits():
    x = torch.rand(8, 84, 2, generator=torch.Generator().manual_seed(0)) * 64 + 0.01
    weight = torch.rand(8, 84, generator=torch.Generator().manual_seed(1)) / 7

    def gradient(x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad((x.prod(-1) * weight).sum() + x.cumprod(-1).square().sum(), x)[0]

    usual = gradient(x)
    with FlopCounter():
        assert torch.equal(gradient(x), usual)


@pytest.mark.parametrize("call", [5, 9, 14])  # before the step of a task that is counted, after it, in the next task
def test_a_resumed_run_has_cost_what_the_whole_run_costs(tmp_path, monkeypatch, call):
    argv = [*ARGV, "--stop_after", "2", "--eval_every", "4", "--savecheck", "1", "--results_path"]
    assert entry.main([*argv, str(tmp_path / "whole")]) == 0
    calls, observe = itertools.count(1), ER.observe

    def interrupted(self, *args, **kwargs):
        if next(calls) == call:
            raise KeyboardInterrupt
        return observe(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(ER, "observe", interrupted)
        broken = [*argv, str(tmp_path / "broken"), "--resume"]
        assert entry.main(broken) == 130
    assert entry.main(broken) == 0
    whole, resumed = (
        yaml.safe_load((kills.run_folder(tmp_path / name) / "timing.yaml").read_text()) for name in ("whole", "broken")
    )
    for name in ("flops_training", "flops_inference", "bytes_buffer", "bytes_parameters"):
        assert whole[name] == resumed[name] > 0
    assert resumed["from_iteration"] > 0 and resumed["seconds_training"] > 0
    tables = [(kills.run_folder(tmp_path / name) / "points.csv").read_text() for name in ("whole", "broken")]
    assert tables[0] == tables[1]


def test_what_cannot_be_counted_has_its_reason(capsys):
    assert entry.main([*ARGV, "--disable_log", "--code_optimization", "3", "--budget_flops", "1e9"]) == 2
    assert "the operations of a compiled network cannot be counted" in capsys.readouterr().err
    meter = Meter()
    meter.load_state_dict(None)
    costs = meter.costs(10)
    assert costs["flops_training"] is None and costs["seconds_training"] is None and "older version" in meter.unknown


def test_equal_shares_of_a_budget():
    """Every task ends when its share is spent."""
    argv = ["sgd", *MLP, "--stop_after", "3"]
    step = 10 * (3 * 2 * (64 * 100 + 100 * 100 + 100 * 10) - 2 * 64 * 100)
    exp = finished(*argv, "--n_epochs", "100", "--budget_flops", str(60.9 * step))
    assert [e.step for e in exp.run.history] == [20, 40, 60] and exp.meter.flops(60) == 60 * step
    tell_costs(exp, exp.meter.costs(60))
    assert exp.run.notes["budget"].endswith("spent (98.5 %)")
    exp = finished(*argv, "--n_epochs", "1", "--budget_flops", str(200 * step))
    tell_costs(exp, exp.meter.costs(exp.run.history[-1].step))
    assert [e.step for e in exp.run.history] == [27, 54, 82]
    assert "the epochs ended first" in exp.run.notes["budget"]


def test_the_end_of_a_task_is_paid_from_its_share():
    """The Fisher information of the first task is not known before, that of the later ones is taken to be the same."""
    budget = 6e8
    exp = finished("ewc", *MLP, "--n_epochs", "50", "--stop_after", "4", "--budget_flops", str(budget))
    assert 0.98 * budget < exp.meter.flops(exp.run.history[-1].step) <= 1.01 * budget
    assert len(exp.run.history) == 4


def test_a_budget_that_no_task_can_begin_with(capsys):
    assert entry.main([*ARGV, "--disable_log", "--budget_flops", "1e3"]) == 2
    err = capsys.readouterr().err
    assert "--budget_flops 1000: 8 steps in each of 5 task(s) take 2.37e+09" in err and err.count("\n") == 1


NETWORK = 64 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10  # parameters
KEEPS = {  # bytes of an example in the buffer, and of all else
    "er": (64 + 8, 0), "derpp": (64 + 8 + 40, 0), "icarl": (64 + 8, None), "xder": (64 + 8 + 40 + 4, None),
    "lwf": (0, 4 * NETWORK), "ewc": (0, 2 * 4 * NETWORK), "sgd": (0, 0),
}  # fmt: skip


@pytest.mark.parametrize("model", KEEPS)
def test_a_buffer_gets_what_teachers_and_statistics_leave(model):
    slot, others = KEEPS[model]
    weights = ["--alpha", "0.5", "--beta", "0.5"] if model in ("derpp", "xder") else []
    argv = [model, *MLP, *weights, "--n_epochs", "1", "--label_perc", "0.2", "--budget_bytes", "300000"]
    exp = finished(*argv)
    kept = kept_bytes(exp.model)
    if others is not None:
        assert kept == others + slot * getattr(exp.args, "buffer_size", 0)
    assert kept <= 300_000 and (not slot or 300_000 - kept < slot)
    tell_costs(exp, exp.meter.costs(0))
    assert f"{kept} of --budget_bytes 300000 kept at the end" in exp.run.notes["memory"]


@pytest.mark.parametrize("argv, line", [
    (["--model", "lwf", "--budget_bytes", "70000"], f"lwf keeps {4 * NETWORK} bytes besides its network"),
    (["--model", "er", "--budget_bytes", "500", "--minibatch_size", "8"], "8 of which are the least: give 576 or more"),
    (["--model", "er", "--budget_bytes", "5000", "--buffer_size", "50"], "--buffer_size and --budget_bytes exclude"),
    (["--model", "icarl", "--budget_bytes", "75000"], "leaves no example for each of 10 classes"),
])  # fmt: skip
def test_a_budget_that_is_too_small_is_refused(argv, line, capsys):
    assert entry.main([*argv, "--dataset", "seq-digits", *MLP, "--disable_log"]) == 2
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1
