"""What a method keeps as plain attributes survives a kill and a resume exactly, or is refused by name; a checkpoint
that was tampered with is refused and runs nothing.
"""

from copy import deepcopy
from pathlib import Path
from textwrap import dedent, indent

import pytest
import torch
from torch import nn

from models.utils.continual_model import ContinualModel
from tests.models.helpers import FakeStream, Flat, options
from utils import checkpoint, conformance
from utils.errors import UserError
from utils.run import Position

REFUSED = (UserError, ValueError, KeyError)
HEADER = """
import collections
import itertools
import random
from copy import deepcopy

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.utils.continual_model import ContinualModel


class Helper:
    def __init__(self, **values):
        vars(self).update(values)


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(64, width)

    def forward(self, x):
        return self.inner(x).relu().mean()


class Around(torch.optim.Optimizer):
    def __init__(self, params, **options):
        super().__init__(params, options)
        self.base = torch.optim.SGD(self.param_groups, momentum=0.9, **options)
        self.param_groups, self.steps = self.base.param_groups, 0

    def step(self, closure=None):
        self.steps += 1
        if self.steps % 3:
            self.base.step()
"""
BODY = """

class Method(ContinualModel):
    NAME = "{name}"
    COMPATIBILITY = ["class-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
{init}

    def begin_task(self, dataset):
{begin}

    def end_task(self, dataset):
{end}

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        flat = inputs.flatten(1)
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
{observe}
        loss.backward()
        self.opt.step()
{after}
        return loss.detach()
"""


def method(folder: Path, observe="pass", init="pass", begin="pass", end="pass", after="pass", name="kept") -> Path:
    """A method file; the arguments are the bodies of its hooks, `after` that of the end of observe."""
    hooks = {"init": init, "begin": begin, "end": end, "observe": observe, "after": after}
    path = folder / f"{name}.py"
    path.write_text(
        HEADER + BODY.format(name=name, **{k: indent(dedent(v).strip("\n"), 8 * " ") for k, v in hooks.items()})
    )
    return path


def resume_and_compare(path: Path, *more: str) -> None:
    """Compare a run with the same run stopped in the middle of the second of three tasks."""
    case, more = conformance.Case(str(path), "class-il"), ("--n_epochs", "1", *more)
    exp = conformance.run(case, *more)
    whole, ends = conformance.state_of(exp), [evaluation.step for evaluation in exp.run.history]
    resumed = conformance.resumed_run(case, (ends[0] + ends[1]) // 2, *more)
    assert conformance.differing_entries(whole, conformance.state_of(resumed)) == []
    assert resumed.run.history == exp.run.history


def learned(attribute: str, of: str) -> str:
    """Code that steps `attribute`, an optimiser, on a loss of the output of `of`."""
    return f"self.{attribute}.zero_grad(); {of}.backward(); self.{attribute}.step()"


KEPT = {
    "tensor": {
        "init": "self.mean = None",
        "begin": "self.mean = torch.zeros(64)",
        "observe": "self.mean = 0.9 * self.mean + 0.1 * flat.mean(0); loss = loss * (1 + self.mean.std())",
    },
    "list_of_tensors": {
        "init": "self.anchors = []",
        "end": "self.anchors.append(self.net.get_params())",
        "observe": """
            for anchor in self.anchors:
                loss = loss + 0.1 * (torch.cat([p.reshape(-1) for p in self.net.parameters()]) - anchor).pow(2).sum()
        """,
    },
    "nested_dict": {
        "init": "self.seen = {}",
        "begin": "self.seen[self.current_task] = {'n': 0, 'classes': (0, [1]), b'raw': None, (1, 'a'): float('inf')}",
        "observe": """
            for part in self.seen.values():
                part["n"] += 1
            loss = loss * (1 + 0.001 * sum(part["n"] for part in self.seen.values()))
        """,
    },
    "deque_counter_and_set": {
        "init": "self.last, self.counts, self.met = collections.deque(maxlen=3), collections.Counter(), set()",
        "observe": """
            self.last.append(loss.detach())
            self.counts.update(labels.tolist())
            self.met |= {(int(label), "label") for label in labels}
            loss = loss * (1 + torch.stack(list(self.last)).mean()) * (1 + 1e-3 * self.counts.most_common(1)[0][1])
            loss = loss * (1 + 0.1 * len(self.met))
        """,
    },
    "ordered_and_default_dict": {
        "init": """
            self.order = collections.OrderedDict()
            self.lists, self.more, self.kind = collections.defaultdict(list), collections.defaultdict(list), list
        """,
        "observe": """
            label = int(labels[0])
            self.lists[label].append(loss.detach())
            self.more[-label].append(1.0)
            self.order[label] = self.order.pop(label, 0) + 1
            loss = loss * (1 + self.lists[label][0]) * (1 + 0.1 * next(iter(self.order)))
            loss = loss * len(self.kind((1, 2))) + 0.01 * len(self.more) * loss
        """,
    },
    "numpy_array_and_scalar": {
        "init": "self.histogram, self.total = np.zeros((2, 10), dtype=np.float32).T, np.float64(0)",
        "observe": """
            self.histogram[labels.numpy(), 1] += 1
            self.total = self.total + np.float64(0.125)
            loss = loss * float(1 + 0.001 * self.histogram.std() + 0.01 * self.total)
        """,
    },
    "random_generators": {
        "init": """
            self.a, self.b = torch.Generator().manual_seed(3), np.random.default_rng(3)
            self.c, self.d = np.random.RandomState(3), random.Random(3)
        """,
        "observe": """
            self.d.gauss(0, 1)
            loss = loss * (1 + torch.rand((), generator=self.a)) * (1 + self.b.random())
            loss = loss * (1 + self.c.randn() ** 2) * (1 + self.d.gauss(0, 1) ** 2)
        """,
    },
    "random_generators_made_late": {
        "init": "self.e = np.random.default_rng(3)",
        "begin": """
            self.a, self.b = torch.Generator().manual_seed(3), np.random.Generator(np.random.MT19937(3))
            self.c, self.d, self.e = np.random.RandomState(3), random.Random(3), np.random.Generator(np.random.SFC64(3))
        """,
        "observe": """
            loss = loss * (1 + torch.rand((), generator=self.a)) * (1 + self.b.random()) * (1 + self.e.random())
            loss = loss * (1 + self.c.randn() ** 2) * (1 + self.d.gauss(0, 1) ** 2)
        """,
    },
    "helper_object": {
        "init": """
            self.helper = Helper(scale=1.0, history=[], inner=Helper(best=None))
            self.helper.inner.up = self.helper
        """,
        "observe": """
            self.helper.history.append(float(loss.detach()))
            self.helper.inner.best = min(self.helper.inner.up.history)
            self.helper.scale *= 1.001
            loss = loss * self.helper.scale + self.helper.inner.best * loss
        """,
    },
    "copied_network": {
        "init": "self.teacher = None",
        "begin": """
            self.teacher = deepcopy(self.net).eval()
            for p in self.teacher.parameters():
                p.requires_grad = False
        """,
        "observe": "loss = loss + F.mse_loss(self.net(inputs), self.teacher(inputs))",
    },
    "copied_networks_in_a_list": {
        "init": "self.teachers = []",
        "begin": "self.teachers.append(deepcopy(self.net).requires_grad_(False))",
        "observe": """
            for teacher in self.teachers:
                loss = loss + F.mse_loss(self.net(inputs), teacher(inputs))
        """,
    },
    "copied_state_dict": {
        "init": "self.best = None",
        "end": "self.best = deepcopy(self.net.state_dict())",
        "observe": """
            if self.best is not None:
                loss = loss + 0.1 * sum((p - self.best[n]).pow(2).sum() for n, p in self.net.named_parameters())
        """,
    },
    "late_heads": {
        "init": "self.heads = nn.ModuleList()",
        "begin": """
            self.heads.append(nn.Linear(64, 2))
            self.plain = nn.Linear(64, 3, bias=False)
            self.opt = torch.optim.SGD([*self.net.parameters(), *self.heads.parameters()], lr=0.1, momentum=0.5)
        """,
        "observe": "loss = loss + sum(h(flat).pow(2).mean() for h in self.heads) + self.plain(flat).pow(2).mean()",
    },
    "late_heads_in_a_list_with_their_optimiser": {
        "init": "self.heads = []",
        "begin": """
            self.heads.append(nn.Linear(64, 2, bias=False))
            parameters = [p for head in self.heads for p in head.parameters()]
            self.opt = torch.optim.Adam([*self.net.parameters(), *parameters], lr=0.01)
        """,
        "observe": "loss = loss + sum((h(flat) - 1).pow(2).mean() for h in self.heads)",
    },
    "late_module_of_its_own_class": {
        "init": "self.first = Mlp(3)",
        "begin": "self.second = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), Mlp(5 + self.current_task))",
        "observe": "loss = loss * (1 + self.second(flat)) * (1 + self.first(flat))",
    },
    "late_optimiser_over_a_plain_tensor": {
        "begin": """
            prompt = torch.ones(64, requires_grad=True)
            self.extra = torch.optim.Adam([prompt], lr=0.05)
            self.prompt = prompt
        """,
        "observe": learned("extra", "(self.prompt * flat.mean(0) - 1).pow(2).sum()")
        + "\nloss = loss * (1 + self.prompt.detach().std())",
    },
    "late_optimiser_that_takes_more_parameters": {
        "init": "self.factors = nn.ParameterList()",
        "begin": """
            self.factors.append(nn.Parameter(torch.ones(64)))
            if self.current_task == 0:
                self.extra = torch.optim.SGD([self.factors[0]], lr=0.3, momentum=0.9)
            else:
                self.extra.add_param_group({"params": [self.factors[-1]]})
        """,
        "observe": learned("extra", "sum((f * flat.mean(0) - 1).pow(2).mean() for f in self.factors)")
        + "\nloss = loss * (1 + sum(f.detach().std() for f in self.factors))",
    },
    "optimiser_around_another": {
        "init": "self.opt = Around(self.net.parameters(), lr=0.1)",
        "begin": "self.opt.param_groups[0]['lr'] *= 0.7",
    },
    "attributes_of_parameters": {
        "begin": "self.net.classifier.weight.importance = torch.zeros(64)",
        "observe": """
            self.net.classifier.weight.importance += 0.1 * flat.mean(0)
            loss = loss * (1 + self.net.classifier.weight.importance.std())
        """,
    },
    "late_learning_rate_schedule": {
        "begin": """
            self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)
            self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.opt, T_max=7)
        """,
        "after": "self.schedule.step()",
    },
    "chained_learning_rate_schedules": {
        "init": "self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)",
        "begin": """
            rates = torch.optim.lr_scheduler
            parts = [rates.StepLR(self.opt, 3), rates.ExponentialLR(self.opt, 0.9)]
            self.schedule = rates.SequentialLR(self.opt, parts, milestones=[5])
        """,
        "after": "self.schedule.step()",
    },
    "another_kind_of_main_optimiser": {
        "begin": "self.opt = torch.optim.RMSprop(self.net.parameters(), lr=0.003)",
    },
    "references_to_parameters": {
        "init": "self.watched = []",
        "begin": "self.watched = [p for p in self.net.parameters() if p.dim() == 2]; self.head = self.watched[-1]",
        "observe": "loss = loss + 0.01 * sum(w.pow(2).sum() for w in self.watched) + self.head.abs().mean()",
    },
    "views_of_parameters": {
        "begin": "self.weight = self.net.classifier.weight.data; self.row = self.net.classifier.weight.detach()[1]",
        "observe": "loss = loss * (1 + self.weight.std() + self.row.abs().mean())",
    },
    "two_names_of_one_tensor": {
        "begin": "self.a = torch.zeros(4); self.b = self.a.detach(); self.c = self.a[1:3]; self.d = [self.a]",
        "observe": "self.a += 0.01; loss = loss * (1 + self.b.sum() + self.c.sum() + self.d[0].sum())",
    },
    "two_names_of_one_list_that_part": {
        "init": "self.a = self.b = []",
        "begin": "self.b = list(self.b) + [1.0]",
        "observe": "self.a.append(0.01); loss = loss * (1 + sum(self.a) + sum(self.b))",
    },
    "two_names_of_one_dict_that_meet": {
        "init": "self.a, self.b = {}, {}",
        "begin": "self.a = self.b",
        "observe": "self.a['n'] = self.a.get('n', 0) + 0.01; loss = loss * (1 + self.b['n'])",
    },
    "keys_shared_between_dicts": {
        "begin": """
            keys = [(task, "key") for task in range(3)]
            self.a = {key: 1.0 + key[0] for key in keys}
            self.b = {key: 2.0 + key[0] for key in keys}
        """,
        "observe": "loss = loss * sum(v * self.b[k] for k, v in self.a.items())",
    },
    "functions_as_keys": {
        "init": "self.weights = {torch.tanh: 1.0, torch.sigmoid: 1.0}",
        "observe": """
            for function in self.weights:
                self.weights[function] *= 1.01
                loss = loss + self.weights[function] * function(loss)
        """,
    },
    "non_persistent_buffer": {
        "init": "self.net.register_buffer('old', torch.zeros(64), persistent=False)",
        "observe": "self.net.old += 0.1 * flat.mean(0); loss = loss * (1 + self.net.old.std())",
    },
    "non_persistent_buffer_registered_late": {
        "begin": "self.register_buffer('late', torch.zeros(64 + self.current_task), persistent=False)",
        "observe": "self.late += 0.1 * flat.mean(); loss = loss * (1 + self.late.mean().abs())",
    },
    "buffer_that_grows": {
        "begin": "self.register_buffer('means', torch.zeros(self.current_task + 1, 64))",
        "observe": "self.means[-1] += 0.1 * flat.mean(0); loss = loss * (1 + self.means.std())",
    },
    "frozen_parameters": {
        "begin": """
            if self.current_task == 1:
                next(iter(self.net.parameters())).requires_grad_(False)
        """,
    },
    "eval_flags": {
        "init": "self.drop = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(64))",
        "begin": "self.drop[self.current_task % 2].eval()",
        "observe": "loss = loss * (1 + self.drop(flat).pow(2).mean())",
    },
    "accumulated_gradients": {
        "init": "self.extra = nn.Parameter(torch.zeros(64)); self.count = 0",
        "observe": """
            (self.extra - flat.mean(0)).pow(2).sum().backward()
            self.count += 1
            if self.count % 4 == 0:
                self.extra.data -= 0.1 * self.extra.grad
                self.extra.grad = None
            loss = loss * (1 + self.extra.detach().std())
        """,
    },
    "accumulated_gradients_of_a_plain_tensor": {
        "init": "self.extra, self.held = torch.zeros(64, requires_grad=True), [nn.Linear(64, 1)]",
        "observe": """
            ((self.extra - flat.mean(0)).pow(2).sum() + self.held[0](flat).mean()).backward()
            loss = loss * (1 + self.extra.grad.std() + self.held[0].weight.grad.std())
        """,
    },
    "parameter_set_to_none": {
        "begin": "self.net.classifier.bias = None; self.opt = self.get_optimizer()",
        "after": "assert self.net.classifier.bias is None",
    },
    "weights_tied_late": {
        "init": "self.a, self.b = nn.Linear(64, 4), nn.Linear(64, 4)",
        "begin": "self.b.weight = self.a.weight; self.extra = torch.optim.SGD([self.a.weight], lr=0.1)",
        "observe": learned("extra", "(self.a(flat) - 1).pow(2).mean()")
        + "\nloss = loss + self.b(flat).detach().std() * loss",
    },
    "module_under_a_second_name": {
        "begin": "self.head = self.net.classifier; self.parts = nn.Sequential(nn.Flatten(), self.net.classifier)",
        "observe": "loss = loss + 0.1 * self.head.weight.pow(2).sum() + self.parts[1].weight.abs().mean()",
    },
    "module_of_the_network_within_a_plain_list": {
        "init": "self.parts = []",
        "begin": "self.parts = [nn.Sequential(nn.Flatten(), self.net.classifier)]",
        "observe": "loss = loss + self.parts[0][1].weight.pow(2).mean()",
    },
    "second_name_of_what_the_runner_gave": {
        "begin": "self.stream, self.criterion = dataset, [self.loss]",
        "observe": "loss = loss * self.stream.N_TASKS + self.criterion[0](self.net(inputs), labels)",
    },
    "attribute_dropped": {
        "init": "self.extra, self.net.extra = 1.0, 1.0",
        "begin": "vars(self).pop('extra', None); vars(self.net).pop('extra', None)",
        "observe": "loss = loss * (1 + hasattr(self, 'extra') + hasattr(self.net, 'extra'))",
    },
    "module_dropped": {
        "init": "self.extra = nn.Linear(2, 2)",
        "end": "vars(self)['_modules'].pop('extra', None)",
        "observe": "loss = loss * (1 + hasattr(self, 'extra'))",
    },
    "class_and_dtype_and_device": {
        "begin": "self.kind, self.where = torch.float64, torch.device('cpu')",
        "observe": "loss = loss * flat.to(self.kind).to(self.where).std().float()",
    },
}


@pytest.mark.filterwarnings("ignore:Seems like:UserWarning")
@pytest.mark.parametrize("what", KEPT)
def test_a_resumed_run_is_the_same_run(what, tmp_path):
    resume_and_compare(method(tmp_path, **KEPT[what], name=what))


def test_a_late_optimiser_of_the_runner_clips_gradients_after_a_resume_too(tmp_path):
    path = method(
        tmp_path,
        init="self.factor = nn.Parameter(torch.ones(64))",
        begin="self.extra = self.get_optimizer([self.factor], lr=0.3)",
        observe=learned("extra", "(9 * self.factor * flat.mean(0) - 1).pow(2).sum()")
        + "\nloss = loss * (1 + self.factor.detach().std())",
    )
    resume_and_compare(path, "--clip_grad", "0.01")


def test_the_whole_check_passes_on_a_method_of_plain_attributes(tmp_path):
    path = method(tmp_path, **KEPT["copied_networks_in_a_list"], name="suite")
    conformance.resumes_exactly(conformance.Case(str(path), "class-il"))


def test_the_check_sees_what_is_forgotten(tmp_path):
    path = method(tmp_path, observe="count[0] += 1; loss = loss * count[0] ** 0.5", name="forgetful")
    path.write_text(path.read_text() + "\ncount = [0]\n")
    with pytest.raises(conformance.Failure, match="resumed"):
        conformance.resumes_exactly(conformance.Case(str(path), "class-il"))


# ---- refusals

REFUSALS = {
    "a generator": ("begin", "self.stream = (i for i in range(9))", "stream"),
    "an iterator": ("begin", "self.batches = iter([1, 2])", "batches"),
    "an open file": ("begin", "self.log = open(__file__)", "log"),
    "a count": ("init", "self.ids = itertools.count()", "ids"),
    "a lambda": ("begin", "self.scale = lambda x: 2 * x", "scale"),
    "a lambda in place of another": ("begin", "self.chosen = lambda x: 3 * x", "chosen"),
    "a lambda in a dict": ("begin", "self.table = {'a': [lambda x: x]}", r"table\['a'\]\[0\]"),
    "a bound method of another object": ("begin", "self.bound = self.other.forward", "bound"),
    "a patched method": ("begin", "self.net.features = lambda x: x.flatten(1)", "net.features"),
    "a helper": ("begin", "self.helper = Helper(a=1)", "helper"),
    "a helper in a list": ("begin", "self.helpers.append(Helper(a=1))", r"helpers\[1\]"),
    "a helper's iterator": ("begin", "self.helpers[0].it = iter([])", r"helpers\[0\].it"),
    "a forward hook": ("begin", "self.net.register_forward_hook(print_nothing)", "net"),
    "a forward hook on a part": ("begin", "self.net.classifier.register_forward_pre_hook(print_nothing)", "classifier"),
    "a forward hook in a list": ("begin", "self.held[0].register_forward_hook(print_nothing)", r"held\[0\]"),
    "a hook that is taken away": ("begin", "self.other._forward_hooks.clear()", "other"),
    "a gradient hook": ("begin", "self.net.classifier.weight.register_hook(print_nothing)", "net.classifier.weight"),
    "an optimiser's hook": ("begin", "self.opt.register_step_pre_hook(print_nothing)", "opt"),
    "an optimiser of one's own": ("begin", "self.extra = Own(self.net.parameters(), lr=0.1)", "extra"),
    "a schedule with a function": (
        "begin",
        "self.schedule = torch.optim.lr_scheduler.LambdaLR(self.opt, lambda e: 0.9)",
        r"schedule.lr_lambdas\[0\]",
    ),
    "a sparse tensor": ("begin", "self.sparse = torch.eye(3).to_sparse()", "sparse"),
    "an array within another": ("begin", "self.a = np.zeros(4); self.b = self.a[1:]", "b"),
    "tensors over one piece of memory": ("begin", "x = torch.zeros(9); self.a, self.b = x[1:5], x[4:]", "b"),
    "an array of objects": ("begin", "self.objects = np.array([None, 'a'], dtype=object)", "objects"),
    "a default dict": ("begin", "self.counts = collections.defaultdict(int)", "counts"),
    "a late module of a local class": (
        "begin",
        "self.local = type('Local', (nn.Module,), {})()",
        "local",
    ),
}
EXTRA = """

def print_nothing(*_):
    return None


class Own(torch.optim.SGD):
    pass
"""


@pytest.mark.parametrize("what", REFUSALS)
def test_what_cannot_be_kept_is_refused_by_name(what, tmp_path):
    hook, code, name = REFUSALS[what]
    init = """
        self.chosen, self.helpers, self.held = (lambda x: x), [Helper(a=0)], [nn.Linear(2, 2)]
        self.other = nn.Linear(2, 2)
        self.bound = self.net.classifier.forward
        self.other.register_forward_hook(print_nothing)
    """
    bodies = {"init": dedent(init), "begin": "pass"}
    bodies[hook] += "\n" + code
    path = method(tmp_path, **bodies, name="refused")
    path.write_text(path.read_text() + EXTRA)
    exp = conformance.build(conformance.Case(str(path), "class-il").config("--n_epochs", "1"))
    if hook == "begin":
        checkpoint.capture(exp, Position())
    exp.dataset.enter_task(0)
    exp.model.meta_begin_task(exp.dataset)
    with pytest.raises(UserError, match=rf"attribute '[^']*{name}.* of refused .* cannot be kept") as e:
        checkpoint.capture(exp, Position())
    assert "\n" not in str(e.value)


# ---- hostile states


class Helper:
    """A plain object of a method."""

    def __init__(self):
        self.value = 1

    def used(self):
        return self.value


class Keeper(ContinualModel):
    """A method with a little of everything."""

    NAME = "keeper"
    COMPATIBILITY = ["class-il"]

    def __init__(self, *args):
        super().__init__(*args)
        self.counts, self.helper, self.rows = {"a": 1}, Helper(), [torch.zeros(2)]

    def observe(self, inputs, labels, not_aug_inputs):
        return 0.0


def keeper() -> Keeper:
    model = Keeper(Flat(4, 4), nn.functional.cross_entropy, options("sgd"), None, FakeStream())
    model.memory  # noqa: B018 - as the runner does after construction
    return model


def tampered(change) -> Keeper:
    """A fresh method into which a state was loaded that `change` has altered."""
    saved = keeper()
    saved.counts["b"], saved.head = 2, nn.Linear(4, 2)
    state = deepcopy(saved.state_dict())
    change(state["_extra_state"])
    model = keeper()
    model.load_state_dict(state)
    return model


def node(**content) -> dict:
    return {"is": content.pop("kind"), **content}


def attribute(name: str, value, module: str = ""):
    def change(state):
        state["attributes"].setdefault(module, {})[name] = value

    return change


def helper_attribute(name: str):
    return lambda state: state["attributes"][""]["helper"]["attributes"].append([name, 1])


def late_module(name: str, **content):
    return lambda state: state["modules"].append([name, {"is": "module", **content}])


def shell(module: str, name: str, children=()) -> dict:
    return {"class": [module, name], "children": list(children), "empty": [], "empty buffers": []}


LINEAR = shell("torch.nn.modules.linear", "Linear")
HOSTILE = {
    "a method's name": attribute("observe", 1),
    "a hook's name": attribute("begin_task", node(kind="list", items=[])),
    "forward of the network": attribute("forward", 1, "net"),
    "a name of Python's": attribute("__class__", 1),
    "the dict of Python's": attribute("__dict__", node(kind="dict", items=[])),
    "a table of torch's": attribute("_forward_hooks", node(kind="OrderedDict", items=[])),
    "the list of modules": attribute("_modules", node(kind="dict", items=[])),
    "a helper's method": helper_attribute("used"),
    "a helper's class": helper_attribute("__class__"),
    "an unknown kind": attribute("counts", node(kind="code", data="print()")),
    "a kind that is a method of the reader": attribute("counts", node(kind="attach", data=1)),
    "a kind of Python's": attribute("counts", node(kind="__init__")),
    "no kind": attribute("counts", {"data": 1}),
    "a reference to nothing": attribute("counts", node(kind="reference", to="nowhere")),
    "a reference to no tensor": attribute("counts", node(kind="reference", to="tensor net.nothing")),
    "a reference to no module": attribute("counts", node(kind="reference", to="module net.nothing")),
    "an object of another class": attribute("helper", node(kind="object", **{"class": "Popen"}, attributes=[])),
    "a new object": attribute("other", node(kind="object", **{"class": "Helper"}, attributes=[])),
    "a schedule that is none": attribute("other", node(kind="object", **{"class": "Counter"}, attributes=[])),
    "a schedule that is a module": attribute("other", node(kind="object", **{"class": "warnings"}, attributes=[])),
    "an optimiser that is none": attribute(
        "other", node(kind="optimizer", **{"class": "lr_scheduler"}, params=[], options=[], state=[])
    ),
    "an unknown generator": attribute("other", node(kind="numpy generator", **{"class": "bytes"}, state=1)),
    "a dtype that is none": attribute("other", node(kind="dtype", name="load")),
    "a module of os": late_module("evil", shell=shell("os", "system")),
    "a class that is no module": late_module("evil", shell=shell("torch.nn.modules.module", "OrderedDict")),
    "a class of this file": late_module("evil", shell=shell(__name__, "Helper")),
    "a dotted class": late_module("evil", shell=shell("torch.nn.modules.linear", "Linear.forward")),
    "a class within": late_module("evil", shell=shell("torch.nn.modules.linear", "Linear", [["a", shell("os", "x")]])),
    "a child with a method's name": late_module("evil", shell=shell(*LINEAR["class"], [["forward", LINEAR]])),
    "a module with a method's name": late_module("observe", shell=LINEAR),
    "a module with a name of Python's": late_module("net.__class__", shell=LINEAR),
    "a copy of nothing": late_module("evil", like="nothing"),
    "other shapes": lambda state: state["shapes"].update({"net.classifier.weight": [1, 1]}),
    "no attributes": lambda state: state.pop("attributes"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_state_is_refused(what):
    with pytest.raises(REFUSED):
        tampered(HOSTILE[what])


def test_an_untouched_state_is_accepted():
    model = tampered(lambda state: None)
    assert model.counts == {"a": 1, "b": 2} and isinstance(model.head, nn.Linear)
    assert type(model) is Keeper and model.observe(None, None, None) == 0.0


def test_a_hostile_parameter_name_is_refused():
    state = deepcopy(keeper().state_dict())
    state["observe"] = torch.zeros(2)
    state["_extra_state"]["parameters"].append("observe")
    with pytest.raises(REFUSED):
        keeper().load_state_dict(state)


def test_a_checkpoint_with_a_hostile_state_ends_in_one_line(tmp_path):
    case = conformance.Case("sgd", "class-il")
    first, second = conformance.build(case.config()), conformance.build(case.config())
    state = checkpoint.capture(first, Position())
    state["model"]["_extra_state"]["attributes"][""]["observe"] = {"is": "list", "items": []}
    checkpoint.save(state, tmp_path / "a.pt")
    with pytest.raises(UserError, match="observe"):
        checkpoint.restore(checkpoint.load(tmp_path / "a.pt"), second)
    assert "observe" not in vars(second.model)
