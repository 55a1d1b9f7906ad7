"""--precision, --compile, --channels_last, and the levels that name combinations of the first two."""

import pytest
import torch
import yaml
from torch import nn

import main as entry
from palimpsest.models.utils.state import describe
from palimpsest.utils import registry
from palimpsest.utils.check import case_runs
from palimpsest.utils.check.cases import cases
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import from_stored, resolve
from palimpsest.utils.run.environment import products
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.folders import digest
from palimpsest.utils.run.trainer import Trainer

DIGITS = ["--model", "derpp", "--dataset", "seq-digits", "--buffer_size", "50", "--alpha", ".5", "--beta", ".5"]
DIGITS += ["--device", "cpu", "--num_threads", "1", "--n_epochs", "1", "--non_verbose"]


@pytest.fixture(autouse=True)
def products_as_before():
    with products("fp32"):
        yield


def facts(*options):
    args = resolve([*DIGITS, *options]).args
    return args.precision, args.compile, args.code_optimization


@pytest.mark.parametrize("options, expected", [
    ("", ("fp32", False, 0)),
    ("--code_optimization 1", ("tf32", False, 1)),
    ("--code_optimization 2", ("bf16", False, 2)),
    ("--code_optimization 3", ("bf16", True, 3)),
    ("--precision bf16", ("bf16", False, 2)),
    ("--precision bf16 --compile", ("bf16", True, 3)),
    ("--compile", ("fp32", True, 0)),
    ("--code_optimization 1 --compile", ("tf32", True, 1)),
    ("--code_optimization 2 --precision bf16 --compile 0", ("bf16", False, 2)),
])  # fmt: skip
def test_levels_are_names_of_combinations(options, expected):
    assert facts(*options.split()) == expected


@pytest.mark.parametrize("options", [
    "--code_optimization 1 --precision bf16", "--code_optimization 0 --precision tf32",
    "--code_optimization 3 --compile 0",
])  # fmt: skip
def test_a_level_and_what_contradicts_it_are_refused(options, capsys):
    assert entry.main([*DIGITS, "--disable_log", *options.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("main.py: error: --code_optimization") and said.count("\n") == 1


@pytest.mark.parametrize("stored, given, expected", [
    ({"code_optimization": 3}, "", ("bf16", True, 3)),
    ({"code_optimization": 3}, "--precision fp32", ("fp32", True, 0)),
    ({"code_optimization": 3}, "--compile 0", ("bf16", False, 2)),
    ({"precision": "bf16", "compile": True, "code_optimization": 3}, "--code_optimization 1", ("tf32", False, 1)),
    ({"precision": "tf32", "compile": True, "code_optimization": 1}, "", ("tf32", True, 1)),
])  # fmt: skip
def test_a_file_gives_way_to_the_command_line_fact_by_fact(stored, given, expected, tmp_path):
    (tmp_path / "o.yaml").write_text(yaml.safe_dump(stored))
    assert facts("--config", str(tmp_path / "o.yaml"), *given.split()) == expected


def test_a_stored_run_from_before_there_was_a_precision():
    options = {k: v for k, v in vars(resolve([*DIGITS, "--code_optimization", "2"]).args).items()}
    old = {k: v for k, v in options.items() if k not in ("precision", "compile", "channels_last")}
    for said in (old, options):
        args = from_stored(said, [], "config.yaml").args
        assert (args.precision, args.compile, args.code_optimization) == ("bf16", False, 2)


def test_one_run_has_one_name_and_the_name_it_had_before():
    def named(*options):
        run = build(resolve([*DIGITS, "--disable_log", *options])).run
        run.config = {k: v for k, v in run.config.items() if k not in hidden}
        return digest(run)

    hidden = ()
    plain, level = named(), named("--code_optimization", "2")
    assert level == named("--precision", "bf16") != plain
    assert len({plain, level, named("--compile"), named("--precision", "tf32", "--compile"),
                named("--channels_last")}) == 5  # fmt: skip
    hidden = ("precision", "compile", "channels_last")
    assert (plain, level) == (named(), named("--code_optimization", "2"))


def test_bf16_is_level_2_bit_for_bit_and_near_fp32():
    def trained(*options):
        case = cases("derpp")[0]
        return describe(case_runs.run(case, "--n_epochs", "1", *options, share=0.1, tasks=2).model)

    def flat(state):
        return torch.cat([v.flatten() for k, v in state.items() if k.startswith("net.") and k.endswith("weight")])

    one, other, full = trained("--precision", "bf16"), trained("--code_optimization", "2"), trained()
    assert one.keys() == other.keys() == full.keys()
    for name, value in one.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other[name]), name
    assert one["buffer.logits"].dtype == torch.float32
    apart = (flat(one) - flat(full)).norm() / flat(full).norm()
    assert 0 < apart < 0.02


def test_a_loss_in_bf16_is_that_in_fp32_within_its_digits():
    losses = {}
    for precision in ("fp32", "bf16"):
        exp = case_runs.build(cases("er")[0].config("--precision", precision))
        exp.model.train()
        x = exp.dataset.get_normalization_transform()(exp.dataset.test_loaders[0].dataset.data[:32])
        with exp.model.training_precision():
            out = exp.model.net(x)
            loss = exp.model.loss(out, torch.zeros(32, dtype=torch.int64))
        assert out.dtype == loss.dtype == torch.float32
        losses[precision] = loss.item()
    assert losses["bf16"] != losses["fp32"] and losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)


def test_a_trainer_computes_in_fp32_and_leaves_the_switches():
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            seen.append((torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()))
            return super().forward(x)

    trainer = Trainer(Watched(4, 2), {}, device="cpu", progress=False)
    batch = torch.randn(8, 4), torch.tensor([0, 1] * 4)
    trainer.train_task([batch])
    trainer.evaluate([batch], 0)
    assert {*seen} == {(False, "highest")} and len(seen) >= 2
    assert torch.backends.cudnn.allow_tf32 and torch.get_float32_matmul_precision() == "high"


def test_what_torch_cannot_compile_ends_in_one_line(monkeypatch, capsys):
    from torch._dynamo.exc import BackendCompilerFailed

    def fails(*args, **kwargs):
        raise BackendCompilerFailed(lambda: None, RuntimeError("no\ncompiler"), [])

    monkeypatch.setattr(torch, "compile", lambda function, **_: fails)
    assert entry.main([*DIGITS, "--disable_log", "--compile"]) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
    assert "--compile: torch cannot compile this network here" in line and "no compiler" in line


# ---- channels_last

LAST = ["--channels_last"]  # the network of the stream is convnet


@pytest.mark.parametrize("options", ["--backbone mnistmlp", "--model pr_bbb --dataset perm-digits --backbone convnet"])
def test_channels_last_is_refused_without_convolutions(options, capsys):
    begin = DIGITS if "--model" not in options else DIGITS[10:]
    assert entry.main([*begin, "--disable_log", "--channels_last", *options.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("main.py: error: --channels_last") and said.count("\n") == 1


def test_all_maps_of_a_network_are_channels_last():
    exp = build(resolve([*DIGITS, "--disable_log", "--backbone", "reduced_resnet18", "--channels_last"]))
    seen, net = [], exp.model.net.train()
    for part in net.modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _, __, out: seen.append(out))
    net(torch.randn(4, *exp.dataset.SIZE))
    assert len(seen) > 15 and all(out.is_contiguous(memory_format=torch.channels_last) for out in seen)


def test_weights_as_drawn_and_nearly_as_trained():
    plain, last = (build(resolve([*DIGITS, "--disable_log", *options])).model.net for options in ([], LAST))
    for (name, p), (other, q) in zip(plain.named_parameters(), last.named_parameters(), strict=True):
        assert name == other and torch.equal(p, q)
    x = torch.randn(4, 1, 8, 8)
    assert torch.allclose(plain(x), last(x), atol=1e-5)


def test_a_stopped_run_goes_on_in_its_layout():
    case, options = cases("derpp")[0], ("--channels_last", "--n_epochs", "1")
    whole, resumed = case_runs.run(case, *options), case_runs.resumed_run(case, 5, *options)
    assert not case_runs.differing_ends(case_runs.Ended.of(whole), case_runs.Ended.of(resumed))
    weights = [p for p in resumed.model.net.parameters() if p.dim() == 4 and p.shape[1] > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


@pytest.mark.parametrize("name", [name for name in registry.names("model") if cases(name)[0].setting == "class-il"])
def test_channels_last_of_every_method(name):
    """Whatever takes a network's weights apart does so in any layout."""
    try:
        exp = case_runs.run(cases(name)[0], "--channels_last", "--n_epochs", "1", share=0.1, tasks=2)
    except UserError as e:
        assert "generates the weights" in str(e)
    else:
        assert exp.run.history
