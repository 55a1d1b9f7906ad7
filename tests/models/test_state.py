"""What a method keeps survives a kill and a resume in another process exactly, or is refused by name."""

# ruff: noqa: E501 - a row of a table is a method

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent

import pytest
import torch

from palimpsest.utils.check import case_runs, cases
from palimpsest.utils.errors import UserError
from palimpsest.utils.registry import ROOT

TEMPLATE = """
import argparse, collections, enum, functools, itertools, pathlib, random, threading, types
from copy import deepcopy
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from models.utils.continual_model import ContinualModel
from utils.buffer import Buffer

class Helper:
    count = 0
    def __init__(self, **values):
        vars(self).update(values)
    def used(self):
        return self.n

class Mlp(nn.Module):
    calls = 0
    def __init__(self, width=3):
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

class Own(torch.Tensor):
    pass

class Mode(enum.Enum):
    LOW, HIGH = 1, 2

def nothing(*_):
    return None

def half(x):
    return x / 2

def cached(x, seen=[0]):
    seen[0] += 1
    return x * seen[0]

N, TABLE, COUNT, ARRAY, GLOBAL = 0, dict(n=1), itertools.count(1), np.ones(2), torch.ones(2)

class Method(ContinualModel):
    NAME = "{name}"
    COMPATIBILITY = ["class-il"]
    seen, shared = 0, []

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
{init}

    def note(self, *_):
        self.n += 1

    def begin_task(self, dataset):
{begin}

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        global N
        flat, k = inputs.flatten(1), 1.0
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
{observe}
        (loss * k).backward()
        self.opt.step()
{after}
        return loss.detach()
"""


def method(folder: Path, name: str, **hooks: str) -> Path:
    """A method file; `hooks` are the bodies of init, begin, observe and after (the end of observe)."""
    bodies = {
        k: indent(dedent(hooks.get(k, "pass")).strip("\n"), 8 * " ") for k in ("init", "begin", "observe", "after")
    }
    path = folder / f"{name}.py"
    path.write_text(TEMPLATE.format(name=name, **bodies))
    return path


# name -> (init, begin_task, observe); `k` is a factor of the loss.
KEPT = {
    "tensor": ("self.m = None", "self.m = torch.zeros(64)", "self.m = 0.9 * self.m + flat.mean(0); k += self.m.std()"),
    "tensors in a list": ("self.a = []", "self.a.append(self.net.get_params().detach())",
                          "loss = loss + sum((self.net.get_params() - a).pow(2).sum() for a in self.a)"),
    "nested dicts": ("self.d = {}", "self.d[self.current_task] = {'n': 0, (1, 'a'): [float('inf')], b'raw': None}",
                     "for part in self.d.values(): part['n'] += 1\nk += sum(p['n'] for p in self.d.values())"),
    "deque": ("self.q = collections.deque(maxlen=3)", "", "self.q.append(loss.detach()); k += sum(self.q)"),
    "counter": ("self.c = collections.Counter()", "", "self.c.update(labels.tolist()); k += next(iter(self.c))"),
    "ordered dict": ("self.o = collections.OrderedDict()", "", "self.o[int(labels[0])] = self.o.pop(int(labels[0]), 0) + 1; k += next(iter(self.o))"),
    "default dict": ("self.d = collections.defaultdict(list)", "", "self.d[int(labels[0])].append(1.0); k += next(iter(self.d))"),
    "late default dict": ("", "self.d = collections.defaultdict(int)", "self.d['a'] += 1; k += self.d['a']"),
    "set of integers": ("self.s = set()", "", "self.s |= set(labels.tolist()); k += sum(self.s)"),
    "numpy array": ("self.h = np.zeros((2, 10), dtype=np.float32).T", "", "self.h[labels.numpy(), 1] += 1; k += float(self.h.std())"),
    "numpy scalar": ("self.t = np.float32(0)", "", "self.t = self.t + np.float32(0.1); k += float(self.t)"),
    "generators": ("self.a, self.b, self.c = torch.Generator().manual_seed(3), np.random.default_rng(3), random.Random(3)", "",
                   "k += torch.rand((), generator=self.a) + self.b.normal() ** 2 + self.c.gauss(0, 1) ** 2"),
    "late generators": ("", "self.g = [np.random.Generator(np.random.PCG64(3))]\nself.t, self.p = torch.Generator().manual_seed(3), random.Random(4)",
                        "k += sum(g.random() for g in self.g) + self.p.random() + torch.rand((), generator=self.t)"),
    "shared and spawned generators": ("self.a = np.random.default_rng(3); self.b = np.random.Generator(self.a.bit_generator)", "",
                                      "k += self.a.random() + self.b.random() + self.a.spawn(1)[0].random()"),
    "torch's generator": ("self.g = torch.default_generator", "", "k += torch.rand((), generator=self.g)"),
    "helper with a cycle": ("self.h = Helper(n=1.0, inner=Helper()); self.h.inner.up = self.h", "", "self.h.inner.up.n *= 1.01; k += self.h.used()"),
    "late helper": ("", "self.h = [Helper(n=1.0)]", "self.h[0].n *= 1.01; k += self.h[0].n"),
    "copied network": ("", "self.t = deepcopy(self.net).requires_grad_(False).eval()", "loss = loss + F.mse_loss(self.net(inputs), self.t(inputs))"),
    "late heads": ("self.heads = nn.ModuleList()", "self.heads.append(nn.Linear(64, 2)); self.opt = torch.optim.Adam(self.parameters(), lr=0.01)",
                   "loss = loss + sum(h(flat).pow(2).mean() for h in self.heads)"),
    "heads in a plain list": ("self.heads = []", "self.heads += [Mlp(2 + self.current_task)]; self.opt = torch.optim.SGD([*self.net.parameters(), *self.heads[-1].parameters()], lr=0.1)",
                              "loss = loss + sum(h(flat) for h in self.heads)"),
    "late module with batch norm": ("", "self.m = nn.Sequential(nn.BatchNorm1d(64), nn.Dropout(), Mlp())\nself.m[0].eval()", "k += self.m(flat)"),
    "optimiser of a plain tensor": ("", "self.p = torch.ones(64, requires_grad=True); self.e = torch.optim.Adam([self.p], lr=0.05)",
                                    "(self.p * flat.mean(0) - 1).pow(2).sum().backward(); self.e.step(); k += self.p.detach().std()"),
    "optimiser around another": ("self.opt = Around(self.net.parameters(), lr=0.1)", "self.opt.param_groups[0]['lr'] *= 0.7", ""),
    "attribute of an optimiser": ("", "", "self.opt.calls = getattr(self.opt, 'calls', 0) + 1; k += self.opt.calls"),
    "attribute of a parameter": ("", "self.net.classifier.weight.omega = torch.zeros(64)", "self.net.classifier.weight.omega += flat.mean(0); k += self.net.classifier.weight.omega.std()"),
    "schedules": ("self.opt = torch.optim.SGD(self.net.parameters(), lr=0.1)",
                  "r = torch.optim.lr_scheduler; self.s = r.SequentialLR(self.opt, [r.StepLR(self.opt, 3), r.ExponentialLR(self.opt, 0.9)], milestones=[5])",
                  "self.s.step()"),
    "clipped late optimiser": ("self.f = nn.Parameter(torch.ones(64))", "self.e = self.get_optimizer([self.f], lr=0.3)",
                               "self.e.zero_grad(); (9 * self.f * flat.mean(0) - 1).pow(2).sum().backward(); self.e.step(); k += self.f.detach().std()"),
    "views of parameters": ("", "self.w = self.net.classifier.weight.data; self.r = self.net.classifier.weight.detach()[1]", "k += self.w.std() + self.r.abs().mean()"),
    "names that part": ("self.a = self.b = []", "self.b = [*self.b, 1.0]", "self.a.append(0.01); k += sum(self.a) + sum(self.b)"),
    "tied weights": ("self.a, self.b = nn.Linear(64, 4), nn.Linear(64, 4)", "self.b.weight = self.a.weight",
                     "self.a.weight.data += 0.01; k += self.b(flat).detach().std()"),
    "second name of a module": ("", "self.head = self.net.classifier; self.parts = [nn.Sequential(nn.Flatten(), self.head)]", "loss = loss + self.parts[0][1].weight.abs().mean() + self.head.weight.pow(2).sum()"),
    "buffers": ("self.register_buffer('old', torch.zeros(64), persistent=False)", "self.register_buffer('means', torch.zeros(self.current_task + 1, 64))",
                "self.old += flat.mean(0); self.means[-1] += flat.mean(0); k += self.old.std() + self.means.std()"),
    "attribute of the replay buffer": ("self.buffer = Buffer(20)", "", "self.buffer.add_data(not_aug_inputs, labels=labels); self.buffer.uses = getattr(self.buffer, 'uses', 0) + 1\nk += self.buffer.uses + self.buffer.get_data(3)[1].sum()"),
    "attribute of the network": ("", "self.net.uses = 0", "self.net.uses += 1; k += self.net.uses"),
    "frozen, dropped, set to None": ("self.x, self.m = 1.0, nn.Linear(2, 2)", "self.__dict__.pop('x', None); self._modules.pop('m', None); self.net.classifier.bias = None; self.opt = self.get_optimizer()",
                                     "k += hasattr(self, 'x') + hasattr(self, 'm')"),
    "gradients that add up": ("self.e, self.h = torch.zeros(64, requires_grad=True), [nn.Linear(64, 1)]", "",
                              "((self.e - flat.mean(0)).pow(2).sum() + self.h[0](flat).mean()).backward(); k += self.e.grad.std() + self.h[0].weight.grad.std()"),
    "class, dtype, device, functions": ("self.act = F.relu", "self.kind, self.where, self.f, self.h, self.l = torch.float64, torch.device('cpu'), torch.tanh, half, list", "k += float(self.f(self.h(flat)).to(self.kind).to(self.where).std()) + self.act(flat).std() + len(self.l('ab'))"),
    "namespace": ("self.o = argparse.Namespace(n=1)", "self.p = argparse.Namespace(n=[1])", "self.o.n += 1; self.p.n[0] += 1; k += self.o.n + self.p.n[0]"),
    "run's things under other names": ("", "self.stream, self.crit = dataset, [self.loss]", "k += self.stream.N_TASKS + self.crit[0](self.net(inputs), labels).detach()"),
}  # fmt: skip
# name -> (init, begin_task, observe, what the line names)
REFUSED = {
    "option": ("", "", "self.args.lr_scale = getattr(self.args, 'lr_scale', 1) + 1; k += self.args.lr_scale", "args.lr_scale"),
    "changed option": ("", "", "self.args.optim_wd += 0.1; k += self.args.optim_wd", "args.optim_wd"),
    "attribute of the stream": ("", "", "self.dataset.x = getattr(self.dataset, 'x', 1) + 1; k += self.dataset.x", "dataset.x"),
    "private attribute of the stream": ("", "", "self.dataset._x = getattr(self.dataset, '_x', 1) + 1; k += self.dataset._x", "dataset._x"),
    "number of the stream": ("", "", "self.dataset.N_CLASSES += 1; k += self.dataset.N_CLASSES", "dataset.N_CLASSES"),
    "attribute of the loss": ("", "", "self.loss.n = getattr(self.loss, 'n', 1) + 1; k += self.loss.n", r"loss\.n"),
    "attribute of the transform": ("", "", "self.transform.n = getattr(self.transform, 'n', 1) + 1; k += self.transform.n", "transform.n"),
    "class attribute": ("", "", "Method.seen += 1; k += Method.seen", "Method.seen"),
    "list of the class": ("", "", "self.shared.append(1); k += len(self.shared)", "Method.shared"),
    "class attribute of the network": ("", "", "type(self.net).n = getattr(type(self.net), 'n', 0) + 1; k += self.net.n", r"\.n"),
    "class attribute of a helper": ("self.h = Helper()", "", "Helper.count += 1; k += self.h.count", "Helper.count"),
    "class attribute of a late module": ("", "self.m = Mlp()", "Mlp.calls += 1; k += Mlp.calls", "Mlp.calls"),
    "class attribute of the stream": ("", "", "type(self.dataset).n = getattr(type(self.dataset), 'n', 0) + 1; k += self.dataset.n", r"\.n"),
    "global number": ("", "", "N += 1; k += N", "global N"),
    "global dict": ("", "", "TABLE['n'] += 1; k += TABLE['n']", "global TABLE"),
    "global array": ("", "", "ARRAY[0] += 1; k += ARRAY[0]", "global ARRAY"),
    "global tensor": ("", "", "GLOBAL[0] += 1; k += GLOBAL[0]", "global GLOBAL"),
    "global count": ("", "", "k += next(COUNT)", "global COUNT"),
    "default argument": ("", "", "k += cached(1.0)", "cached"),
    "attribute of a function": ("", "", "half.n = getattr(half, 'n', 0) + 1; k += half.n", "half"),
    "attribute of a hook": ("", "", "Method.observe.n = getattr(Method.observe, 'n', 0) + 1; k += Method.observe.n", "Method.observe"),
    "set of texts": ("self.s = set()", "self.s |= {'a', 'b', 'cd', 'ef', 'gh'}", "k += ord(next(iter(self.s))[0])", "s"),
    "set of tuples with a text": ("", "self.s = {(i, 'a') for i in range(9)}", "k += next(iter(self.s))[0]", "s"),
    "set of tensors": ("", "self.s = set(self.net.parameters())", "k += next(iter(self.s)).numel()", "s"),
    "set in an order of its own": ("", "self.s = set(range(999)) - set(range(1, 990)); self.s |= {i * 1024 for i in range(5)}", "k += next(iter(self.s))", "s"),
    "numpy views": ("self.a = np.zeros(9)", "self.b = self.a[2:].reshape(7, 1)", "self.a += 0.1; k += self.b.sum()", "b"),
    "array over a tensor": ("self.a = torch.zeros(3)", "self.b = self.a.numpy()", "self.a += 0.1; k += float(self.b.sum())", "b"),
    "partial with a list": ("self.f = functools.partial(max, [1.0])", "self.g = functools.partial(half, torch.ones(()))", "self.f.args[0].append(self.f() * 1.1); self.g.args[0].add_(1); k += self.f() + self.g()", "f"),
    "enum": ("", "self.m = Mode.HIGH", "k += self.m.value", "m"),
    "path": ("", "self.p = pathlib.Path('a')", "k += len(self.p.name)", "p"),
    "slice": ("", "self.s = slice(1, 4)", "k += self.s.stop", "s"),
    "bound methods": ("self.h = Helper(n=1)", "self.f, self.g = self.h.used, self.get_parameters", "self.h.n += 1; k += self.f() + len(list(self.g()))", "f"),
    "lambda of constants": ("z = 3; self.f = lambda x: x * z", "", "k += self.f(1)", "f"),
    "own hook from the start": ("self.n = 0; self.net.register_forward_hook(self.note)", "", "k += self.n", "net"),
    "value with a graph that is used up": ("self.v = torch.zeros(())", "", "k += self.v.detach(); self.v = loss", "v"),
    "other bit generators": ("self.g = np.random.Generator(np.random.MT19937(3))", "", "k += self.g.random()", "g"),
    "legacy generator": ("self.g = np.random.RandomState(3)", "", "k += self.g.randn() ** 2", "g"),
    "read-only array": ("self.a = np.ones(3); self.a.flags.writeable = False", "", "k += self.a.sum()", "a"),
    "expanded tensor": ("self.a = torch.zeros(1).expand(9)", "", "k += self.a.sum()", "a"),
    "iterator": ("", "self.i = iter(range(9999))", "k += next(self.i)", "i"),
    "count": ("self.i = itertools.count()", "", "k += next(self.i)", "i"),
    "cycle": ("self.i = itertools.cycle([1, 2, 3])", "", "k += next(self.i)", "i"),
    "generator": ("", "self.g = (i for i in range(9999))", "k += next(self.g)", "g"),
    "open file": ("", "self.f = open(__file__)", "k += len(self.f.readline())", "f"),
    "thread": ("self.t = threading.Thread()", "", "", "t"),
    "lock": ("self.t = threading.Lock()", "", "", "t"),
    "lambda": ("", "self.f = lambda x: 2 * x", "k += self.f(1)", "f"),
    "closure over a list": ("n = [0]; self.f = lambda: n.append(1) or len(n)", "", "k += self.f()", "f"),
    "closure over a cell": ("n = 0\ndef f():\n    nonlocal n\n    n += 1\n    return n\nself.f = f", "", "k += self.f()", "f"),
    "closure over the network": ("net = self.net; self.f = lambda: net.classifier.weight.std()", "", "k += self.f()", "f"),
    "hidden generator": ("self.f = random.Random(3).random", "", "k += self.f()", "f"),
    "default factory": ("", "self.d = collections.defaultdict(lambda: 2)", "k += self.d[1]", "default_factory|d"),
    "patched method": ("", "self.net.features = lambda x: x.flatten(1)", "", "net"),
    "hook": ("", "self.net.register_forward_hook(nothing)", "", "net"),
    "hook taken away": ("self.net.register_forward_hook(lambda module, given, out: 2 * out)", "self.net._forward_hooks.clear()", "", "net"),
    "hook of a parameter": ("", "self.net.classifier.weight.register_hook(nothing)", "", "net.classifier.weight"),
    "hook of an optimiser": ("", "self.opt.register_step_pre_hook(lambda *_: None)", "", "opt"),
    "hook of a late module": ("", "self.m = nn.Linear(2, 2); self.m.register_forward_pre_hook(nothing)", "", "m"),
    "schedule with a lambda": ("", "self.s = torch.optim.lr_scheduler.LambdaLR(self.opt, lambda e: 0.9)", "", "lr_lambdas"),
    "tensor subclass": ("", "self.x = torch.ones(3).as_subclass(Own)", "", "x"),
    "sparse tensor": ("", "self.x = torch.eye(3).to_sparse()", "", "x"),
    "tensor on its graph": ("self.p, self.v = torch.ones(64, requires_grad=True), torch.zeros(())", "",
                            "self.v = self.v + (self.p * flat.mean(0)).sum()\nif self.task_iteration % 2:\n    self.v.backward(); k += self.p.grad.std(); self.v = torch.zeros(())", "v"),
    "array over an array's tensor": ("self.a = np.zeros(4)", "self.b = torch.from_numpy(self.a)", "self.a += 1; k += self.b.sum()", "a|b"),
    "array of objects": ("", "self.a = np.array([None, 'a'], dtype=object)", "", "a"),
    "local class": ("", "self.c = type('Local', (nn.Module,), {})()", "", "c"),
    "simple namespace": ("", "self.o = types.SimpleNamespace(n=1)", "", "o"),
}  # fmt: skip
STOP = 7  # iterations: in the midst of the second of three tasks
MORE = ["--n_epochs", "2", "--clip_grad", "0.5"]


@pytest.fixture(scope="session")  # dear: a module's is made again whenever a worker comes back to the module
def outcomes(tmp_path_factory) -> dict:
    """name -> the refusal's line, or state and scores of the undisturbed run and of the resumed one."""
    folder, out, files = tmp_path_factory.mktemp("methods"), {}, {}
    for i, (what, hooks) in enumerate((KEPT | REFUSED).items()):
        hooks = {k: v or "pass" for k, v in zip(("init", "begin", "observe"), hooks, strict=False)}
        case = cases.Case(str(method(folder, f"m{i}", **hooks)), "class-il")
        try:
            case_runs.stop_run(case, STOP, folder / f"{i}.pt", *MORE)
            exp = case_runs.run(case, *MORE)
            out[what] = case_runs.state_of(exp), case_runs.scores_of(exp)
        except Exception as e:  # noqa: BLE001 - the test of this one sees it
            out[what] = e
            continue
        files[what] = case.model, "class-il", [str(folder / f"{i}.pt")], MORE
    program = """
import json, sys
from utils.check.case_runs import continue_elsewhere
for told in json.load(open(sys.argv[1])):
    try:
        continue_elsewhere(json.dumps(told))
    except Exception as e:
        print(told[0], repr(e), file=sys.stderr)
"""
    (folder / "told.json").write_text(json.dumps(list(files.values())))
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    done = subprocess.run([sys.executable, "-c", program, str(folder / "told.json")], cwd=ROOT, capture_output=True,
                          text=True, env=os.environ | {"PYTHONHASHSEED": seed})  # fmt: skip
    for what, (*_, (file,), _) in files.items():
        end = Path(f"{file}.end")
        out[what] = out[what], torch.load(end, weights_only=True) if end.is_file() else done.stderr[-2000:]
    return out


@pytest.mark.parametrize("what", KEPT)
def test_a_run_resumed_in_another_process_is_the_same_run(what, outcomes):
    assert isinstance(outcomes[what], tuple), outcomes[what]
    (state_, scores), end = outcomes[what]
    assert not isinstance(end, str), end
    assert case_runs.differing_entries(state_, end[0]) == [] and scores == end[1]


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_not_come_back_is_refused_by_its_name(what, outcomes):
    error, name = outcomes[what], REFUSED[what][3]
    assert isinstance(error, UserError) and "\n" not in str(error), error
    assert re.search(rf"attribute '[^']*({name})[^']*'|({name}) was changed by", str(error)), error
