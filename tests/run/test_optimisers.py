"""Optimisers and schedules of PyTorch by name: what they are given, what is refused, and that they are resumed."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler

from palimpsest.models.ewc import EWC
from palimpsest.models.utils.quadratic import step_sizes
from palimpsest.utils.check import case_runs, cases
from palimpsest.utils.errors import UserError
from palimpsest.utils.optimise import eager, literal, optimizer_class, scheduled, set_learning_rate
from palimpsest.utils.run.config import from_stored, resolve
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.trainer_config import read_config
from tests.models.helpers import experiment, options, small

ROOT = Path(__file__).parents[2]
NAMES = [n for n, c in vars(torch.optim).items() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)]
NAMES = sorted({*NAMES} - {"Optimizer", "LBFGS", "SparseAdam", "SGD", "Adam", "AdamW"})
MATRIX = """
from torch import nn

class Matrix(nn.Module):
    NAME = "matrix"

    def __init__(self, num_classes):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes, bias=False))

    def forward(self, x):
        return self.net(x)
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network of one matrix, which every optimiser can train."""
    path = tmp_path_factory.mktemp("net") / "matrix.py"
    path.write_text(MATRIX)
    return str(path)


@pytest.mark.parametrize("name", [*NAMES, "SGD dampening=0.5", "Adam amsgrad=true", "AdamW betas=0.8,0.9 fused=false"])
def test_every_optimiser_trains_and_is_resumed_exactly(name, network):
    name, *given = name.split()
    more = ["--backbone", network, "--optimizer", name, "--lr", "0.01", "--clip_grad", "5"]
    more += ["--optim_mom", "0.9"] if name == "SGD" else []
    more += ["--optim_args", *given] if given else []
    case = cases.Case("er", "class-il")
    whole = case_runs.run(case, *more)
    assert type(whole.model.opt).__name__ == name
    total = whole.run.history[-1].step
    resumed = case_runs.resumed_run(case, total - 2, *more)
    assert not case_runs.differing_entries(case_runs.state_of(whole), case_runs.state_of(resumed))
    assert whole.run.history == resumed.run.history


@pytest.mark.parametrize(("given", "words"), [
    ("--optimizer rprp", "'rprp': expected one of sgd, adam, adamw, adadelta, "),
    ("--optimizer L-BFGS", "'lbfgs' .* asks for the loss several times in a step"),
    ("--optimizer sparse_adam", "'sparseadam' .* sparse gradients only"),
    ("--optimizer rprop --optim_wd 0.1", "--optim_wd has no effect with --optimizer rprop"),
    ("--optimizer adagrad --optim_mom 0.1", "--optim_mom has no effect with --optimizer adagrad"),
    ("--optimizer adam --optim_args lr=1", "--optim_args lr=1: give --lr"),
    ("--optim_args nesterov=true", "give --optim_nesterov"),
    ("--optim_args eps=1", "SGD has no 'eps', but dampening"),
    ("--optim_args dampening=0.3 dampening=0.2", "gives dampening twice"),
    ("--optim_args dampening", "'dampening': expected key=value"),
    ("--optimizer rmsprop --optim_args alpha=much", "--optimizer rmsprop alpha=much: "),
    ("--optimizer adam --optim_args betas=0.9,1.5", "Invalid beta parameter at index 1"),
    ("--optimizer nadam --optim_args differentiable=true", "--optimizer nadam differentiable=true: "),
    ("--lr_scheduler foo", "'foo': expected one of none, multisteplr, cosine, constantlr"),
    ("--lr_scheduler ReduceLROnPlateau", "it follows a score, not the epochs"),
    ("--lr_scheduler LambdaLR", "takes a function of Python"),
    ("--lr_scheduler SequentialLR", "is made of other schedules"),
    ("--lr_scheduler StepLR", "needs step_size: add --sched_args step_size="),
    ("--lr_scheduler StepLR --sched_args step_size=0", "steplr step_size=0: integer modulo by zero"),
    ("--lr_scheduler StepLR --sched_args step_size=2 gamma=-1", "the learning rate of epoch 2 is -"),
    ("--lr_scheduler exponential_lr --sched_args gama=0.3", "ExponentialLR has no 'gama', but gamma"),
    ("--lr_scheduler OneCycleLR --sched_args max_lr=1 total_steps=3", "total steps is 3"),
    ("--lr_scheduler CyclicLR --sched_args base_lr=0 max_lr=1 --optimizer rprop", "must support momentum"),
    ("--lr_scheduler cosine --sched_args T_max=3", "'cosine' has options of its own"),
])  # fmt: skip
def test_what_is_impossible_is_one_line_at_the_start(given, words):
    argv = ["--model", "sgd", "--dataset", "seq-digits", "--n_epochs", "5", *given.split()]
    with pytest.raises(UserError, match=words) as caught:
        resolve(argv)
    assert "\n" not in str(caught.value)


def test_an_optimiser_that_the_network_does_not_suit_is_one_line():
    with pytest.raises(UserError, match="--optimizer muon: .*2D"):
        experiment("sgd", "--optimizer", "muon")


def test_names_are_spelt_freely_and_ours_stay():
    args = options("sgd", "--optimizer", "Adam-W", "--lr_scheduler", "Multi_Step_LR", "--lr_milestones", "2")
    assert (args.optimizer, args.lr_scheduler, args.optim_wd) == ("adamw", "multisteplr", 0.0)
    opt = experiment("sgd", "--optimizer", "Adam-W").model.opt
    assert type(opt) is eager.AdamW and isinstance(opt, torch.optim.AdamW)
    assert opt.defaults["weight_decay"] == 0 and opt.defaults["fused"]


def test_weight_decay_and_momentum_of_others_are_their_own_unless_given():
    config = resolve(["--model", "sgd", "--dataset", "seq-digits", "--optimizer", "muon"])
    assert (config.args.optim_wd, config.args.optim_mom) == (0.1, 0.95)
    assert config.origins["optim_wd"] == config.origins["optim_mom"] == "torch.optim"
    given = ["--optim_wd", "0", "--optim_mom", "0.5", "--optim_args", "centered=true", "alpha=0.9"]
    config = resolve(["--model", "sgd", "--dataset", "seq-digits", "--optimizer", "rmsprop", *given])
    opt = build(config).model.opt
    wanted = {"weight_decay": 0, "momentum": 0.5, "centered": True, "alpha": 0.9}
    assert {name: opt.defaults[name] for name in wanted} == wanted
    assert from_stored(vars(config.args), [], "config.yaml").args.optim_args == ["centered=true", "alpha=0.9"]


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.parametrize("differentiable", [False, True])
def test_ours_are_those_of_torch_bit_for_bit(name, differentiable):
    ends = []
    for module in (eager, torch.optim):
        torch.manual_seed(0)
        given = {"momentum": 0.9, "nesterov": True} if name == "SGD" else {}
        net, norms = torch.nn.Linear(5, 3), []
        if differentiable:  # whose parameters must not be leaves
            params = [p.clone() for p in net.parameters()]
        else:
            params = [*net.parameters()]
        opt = getattr(module, name)(params, lr=0.1, weight_decay=0.01, differentiable=differentiable, **given)
        opt.register_step_pre_hook(lambda opt, *_, norms=norms: norms.append(opt.param_groups[0]["params"][0].norm()))
        for step in range(5):
            opt.zero_grad()
            assert all(p.grad is None for p in params)
            for p in params:
                p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(step))
            opt.step()
        assert len(norms) == 5 and all(p.requires_grad for p in params)
        states = opt.state_dict()["state"].values()
        ends.append([*params, *(v for state in states for v in state.values() if isinstance(v, torch.Tensor))])
    assert len(ends[0]) > 2 and all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    if differentiable:
        assert ends[0][0].grad_fn.name() == ends[1][0].grad_fn.name() != "CloneBackward0"


def test_a_run_does_not_import_the_compiler(tmp_path):
    command = "--model er --dataset seq-digits --buffer_size 20 --minibatch_size 9 --label_perc 0.05 --n_epochs 1"
    argv = [*command.split(), "--device", "cpu", "--results_path", str(tmp_path)]
    program = f"import sys, main; assert main.main({argv}) == 0; print('torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"


def test_literals():
    texts = ["3", "1e-7", "True", "none", "word", "0.9,0.99", "(none, 1e-3)", "[1]"]
    assert [*map(literal, texts)] == [3, 1e-7, True, None, "word", (0.9, 0.99), (None, 1e-3), (1,)]
    assert optimizer_class("r-adam") is torch.optim.RAdam


def test_icarl_needs_an_optimiser_with_weight_decay():
    with pytest.raises(UserError, match="rprop has no weight decay: give --opt_wd 0"):
        experiment("icarl", "--buffer_size", "20", "--optimizer", "rprop")
    experiment("icarl", "--buffer_size", "20", "--optimizer", "rprop", "--opt_wd", "0")


def test_a_trainer_takes_them_too():
    config = {"optimizer": {"type": "RMSprop", "lr": 0.1, "args": {"alpha": 0.9}}}
    args = read_config(config | {"scheduler": {"type": "StepLR", "args": {"step_size": 2}}})[1]
    assert (args.optimizer, args.optim_args, args.sched_args) == ("rmsprop", ["alpha=0.9"], ["step_size=2"])
    assert read_config({"optimizer": {"type": "muon"}})[1].optim_mom == 0.95
    with pytest.raises(UserError, match="RMSprop has no 'alfa'"):
        read_config({"optimizer": {"type": "RMSprop", "args": {"alfa": 0.9}}})


# ---- the proximal step


@pytest.mark.parametrize("given", ["--optimizer rmsprop", "--optim_args maximize=true"])
def test_the_proximal_step_refuses_at_the_start_what_it_does_not_know(given):
    with pytest.raises(UserError, match="no proximal step is known for .*: give --ewc_update explicit"):
        small(EWC, *given.split())
    small(EWC, *given.split(), "--ewc_update", "explicit")


DAMPED = "--optim_mom 0.9 --optim_args dampening=0.5"


@pytest.mark.parametrize("given", [DAMPED, "--optimizer adam --optim_args amsgrad=true betas=0.9,0.5"])
def test_the_proximal_step_knows_dampening_and_amsgrad(given):
    model = small(EWC, *given.split())
    for scale in (3.0, *[1.0] * 200):  # the largest second moment of Adam is that of the first steps
        before = model.net.get_params()
        for p in model.net.parameters():
            p.grad = torch.full_like(p, scale)
        model.opt.step()
    moved = (before - model.net.get_params()).mean()
    torch.testing.assert_close(torch.as_tensor(step_sizes(model.opt, model.net)).mean(), moved, rtol=1e-3, atol=0)


# ---- schedules

SCHEDULES = {
    "StepLR": {"step_size": 2, "gamma": 0.5}, "ExponentialLR": {"gamma": 0.7}, "LinearLR": {"total_iters": 3},
    "ConstantLR": {}, "PolynomialLR": {"power": 2}, "CosineAnnealingLR": {"T_max": 4, "eta_min": 0.01},
    "CosineAnnealingWarmRestarts": {"T_0": 2}, "OneCycleLR": {"max_lr": 1, "total_steps": 20},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 1, "step_size_up": 3},
}  # fmt: skip
REFUSED = {"LRScheduler", "ReduceLROnPlateau", "LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}


def test_the_table_of_schedules_is_whole():
    base = lr_scheduler.LRScheduler
    found = {n for n, c in vars(lr_scheduler).items() if isinstance(c, type) and issubclass(c, base) and n[0] != "_"}
    assert found == SCHEDULES.keys() | REFUSED | {"MultiStepLR"}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_schedule_is_what_pytorch_makes_of_it(name, optimizer):
    given = ["--sched_args", *(f"{k}={v}" for k, v in SCHEDULES[name].items())] if SCHEDULES[name] else []
    model = small(EWC, "--optimizer", optimizer, "--optim_mom", "0.9", "--lr_scheduler", name, *given)
    twin = small(EWC, "--optimizer", optimizer, "--optim_mom", "0.9").opt
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimiser
        schedule = getattr(lr_scheduler, name)(twin, **SCHEDULES[name])
        for epoch in range(8):
            set_learning_rate(model, model.args, epoch, 8)
            mine, theirs = model.opt.param_groups[0], twin.param_groups[0]
            assert all(mine.get(part) == theirs.get(part) for part in ("lr", "momentum", "betas")), epoch
            schedule.step()
    set_learning_rate(model, model.args, 3, 8)  # entered anywhere
    again = mine["lr"]
    set_learning_rate(model, model.args, 3, 8)
    assert mine["lr"] == again == scheduled(model.args, model.opt.param_groups, 4)[3][0]["lr"]


def test_the_schedule_begins_after_the_warm_up():
    model = small(EWC, "--lr_warmup", "0.5", "--lr_scheduler", "ExponentialLR", "--sched_args", "gamma=0.5")
    rates = []
    for epoch in range(6):
        set_learning_rate(model, model.args, epoch, 6)
        rates.append(model.opt.param_groups[0]["lr"])
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.05, 0.025])


def test_a_run_with_a_schedule_of_pytorch_restarts_it_per_task_and_is_resumed_exactly():
    more = ["--n_epochs", "3", "--lr_scheduler", "OneCycleLR", "--sched_args", "max_lr=0.1", "total_steps=3"]
    more += ["--optim_mom", "0.9"]
    case = cases.Case("er", "class-il")
    whole = case_runs.run(case, *more)
    total = whole.run.history[-1].step
    for step in (total // 2, total - 3):
        resumed = case_runs.resumed_run(case, step, *more)
        assert not case_runs.differing_entries(case_runs.state_of(whole), case_runs.state_of(resumed))
        assert whole.run.history == resumed.run.history
    group = whole.model.opt.param_groups[0]
    assert group["lr"] == pytest.approx(4e-7) and group["momentum"] == 0.95  # of the last epoch
