"""Levels of precision: what runs in bfloat16 is the network's passes, for every method, and nothing else."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from palimpsest.backbone.utils import precision
from palimpsest.models.utils.state import describe
from palimpsest.utils import registry
from palimpsest.utils.check import case_runs
from palimpsest.utils.check.cases import Case, cases
from palimpsest.utils.check.sync import SyncDetector
from palimpsest.utils.run.compiling import CompiledForward

METHODS = registry.names("model")


def first(name):
    return cases(name)[0]


class Passes:
    """Notes in which precision matrix products are computed in training steps, and backward passes run."""

    def __init__(self, monkeypatch):
        self.products, self.backward, self.stored = set(), set(), []
        for owner, function in ((nn.functional, "linear"), (torch, "baddbmm"), (nn.Conv2d, "_conv_forward")):
            self.watch(monkeypatch, owner, function)
        for owner, function in ((Tensor, "backward"), (torch.autograd, "grad")):
            original = getattr(owner, function)

            def noted(*args, original=original, **kwargs):
                self.backward.add(torch.is_autocast_enabled("cpu"))
                return original(*args, **kwargs)

            monkeypatch.setattr(owner, function, noted)

    def watch(self, monkeypatch, owner, function):
        original = getattr(owner, function)

        def noted(*args, **kwargs):
            out = original(*args, **kwargs)
            if precision._device:
                self.products.add(out.dtype)
            return out

        monkeypatch.setattr(owner, function, noted)


@pytest.mark.parametrize("name", METHODS)
def test_level_2_of_every_method(name, monkeypatch):
    passes = Passes(monkeypatch)
    try:
        exp = case_runs.run(first(name), "--precision", "bf16", "--n_epochs", "1", share=0.1, tasks=2)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert True not in passes.backward
    low = [
        n for n, v in describe(exp.model).items() if isinstance(v, Tensor) and v.dtype in (torch.bfloat16, torch.half)
    ]
    assert not low
    assert (torch.bfloat16 in passes.products) == ("mixed precision" not in exp.run.notes)


@pytest.mark.parametrize("name", ["plain_replay", "gradient_cone"])
def test_level_2_of_files_written_for_mammoth(name, monkeypatch):
    passes, case = Passes(monkeypatch), Case(str(Path(__file__).parent / "mammoth_style" / f"{name}.py"), "class-il")
    losses = []
    monkeypatch.setattr(nn.functional, "cross_entropy", noted_types(nn.functional.cross_entropy, losses))
    try:
        case_runs.run(case, "--precision", "bf16", "--n_epochs", "1", share=0.1, tasks=2)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert passes.backward == {False} and torch.bfloat16 in passes.products
    assert losses and {*losses} == {torch.float32}


def noted_types(function, seen: list):
    """A function that notes the type of its first argument."""

    def noted(first, *args, **kwargs):
        seen.append(first.dtype)
        return function(first, *args, **kwargs)

    return noted


def test_generated_weights_of_a_fully_connected_network_are_mixed(monkeypatch):
    passes, case = Passes(monkeypatch), Case("pr_bbb", "domain-il")
    try:
        exp = case_runs.run(case, "--precision", "bf16", "--n_epochs", "1", share=0.1)
    finally:
        case_runs.build(first("sgd").config())
    assert torch.bfloat16 in passes.products and passes.backward == {False}
    assert "mixed precision" not in exp.run.notes


def test_logits_in_the_buffer_keep_their_type_and_evaluation_is_as_without():
    exp = case_runs.run(first("derpp"), "--precision", "bf16", "--n_epochs", "1", share=0.1, tasks=2)
    torch.set_float32_matmul_precision("highest")
    assert exp.model.buffer.logits.dtype == torch.float32
    x = exp.dataset.get_normalization_transform()(exp.dataset.test_loaders[0].dataset.data[:8])
    with torch.no_grad():
        full = exp.model.predict(x, 0)
        with precision.mixed_precision("cpu"):
            mixed = exp.model.predict(x, 0)
    assert mixed.dtype == full.dtype == torch.float32
    assert 0 < (mixed - full).abs().max() < 0.1 * full.abs().max()


def test_what_leaves_a_pass_is_float32_whatever_its_shape():
    @precision.network_pass
    def answers(x):
        y = x @ x
        return y, [y, {"a": y}], y.long(), "text"

    x = torch.randn(3, 3)
    assert answers(x)[0].dtype == torch.float32
    with precision.mixed_precision("cpu"):
        y, (z, named), whole, text = answers(x)
        assert not torch.is_autocast_enabled("cpu")
    assert y.dtype == z.dtype == named["a"].dtype == torch.float32 and whole.dtype == torch.int64 and text == "text"
    assert torch.equal(y, y.bfloat16().float()) and not torch.equal(y, x @ x)
    with pytest.raises(ZeroDivisionError), precision.mixed_precision("cpu"):
        precision.network_pass(lambda: 1 / 0)()
    assert precision._device is None


@pytest.mark.parametrize("level, tf32, products", [("0", False, "highest"), ("1", True, "high"), ("2", True, "high")])
def test_levels_set_both_switches_of_tf32(level, tf32, products):
    try:
        case_runs.build(first("sgd").config("--code_optimization", level))
        assert torch.backends.cudnn.allow_tf32 is tf32 and torch.backends.cuda.matmul.allow_tf32 is tf32
        assert torch.get_float32_matmul_precision() == products
    finally:
        case_runs.build(first("sgd").config())


@pytest.mark.parametrize("name, compiled", [
    ("er", True), ("lwf", True), ("pah", False), ("hyper", False), ("lucir", False), ("hat", False), ("vcl", False),
])  # fmt: skip
def test_level_3_says_where_nothing_is_compiled(name, compiled, monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # whether it is called is what matters here
    try:
        exp = case_runs.run(first(name), "--code_optimization", "3", "--n_epochs", "1", share=0.1, tasks=1)
    finally:
        case_runs.build(first("sgd").config())
    (watch,) = exp.log.loggers
    assert isinstance(watch, CompiledForward) and watch.used == compiled
    watch.step(1, {}, 0.1)  # said once
    said = capsys.readouterr().err
    assert said.count("nothing is compiled") == (not compiled) == ("compile" in exp.run.notes)


def test_numbers_copied_to_the_device_are_noticed():
    calls, x = [], torch.ones(3)

    def watched():
        torch.tensor(1.0, device=x.device), torch.as_tensor(2.0, device="cpu"), x.new_tensor(3.0)
        x.new_full((), 4.0), torch.as_tensor(x, device=x.device), torch.full((2,), 5.0, device=x.device)

    with SyncDetector(calls):
        watched()
    assert [call.split(" ")[0] for call in calls] == ["tensor", "as_tensor", "new_tensor"]
    assert all(" of numbers at " in call for call in calls)
