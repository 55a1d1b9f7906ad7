"""si, mas and rwalk over two whole tasks, as plain loops with PyTorch's optimiser."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from tests.models.helpers import experiment, learn_task

SMALL = ["--backbone", "mnistmlp", "--mlp_hidden_size", "8", "--ewc_update", "explicit", "--optim_mom", "0.9"]


class PlainLoop:
    """Steps on cross-entropy + strength * sum_i A_i (theta_i - c_i)^2; a subclass looks at each of them."""

    def __init__(self, exp, strength: float):
        self.net, self.strength, self.weight, self.centre = deepcopy(exp.model.net), strength, None, None
        self.opt = torch.optim.SGD(self.net.parameters(), exp.args.lr, momentum=0.9)

    def train(self, loader) -> None:
        self.begin()
        for number, (x, y, _) in enumerate(loader, start=1):
            self.opt.zero_grad()
            F.cross_entropy(self.net(x), y).backward()
            gradient, before = self.net.get_grads(), self.net.get_params().detach()
            if self.weight is not None:
                self.net.set_grads(gradient + 2 * self.strength * self.weight * (before - self.centre))
            self.opt.step()
            self.look(number, gradient, self.net.get_params().detach() - before)
        self.weight, self.centre = self.end(loader), self.net.get_params().detach()

    def begin(self) -> None:
        self.start = self.net.get_params().detach()

    def look(self, number, gradient, step) -> None:
        pass


class SI(PlainLoop):
    def begin(self):
        super().begin()
        self.path = torch.zeros_like(self.start)

    def look(self, number, gradient, step):
        self.path -= gradient * step

    def end(self, loader):
        omega = self.path.clamp(min=0) / ((self.net.get_params().detach() - self.start) ** 2 + 0.1)
        assert self.weight is None or (self.path < -1e-5).any()  # what is clamped
        return omega if self.weight is None else omega + self.weight


class MAS(PlainLoop):
    def end(self, loader):
        total, n = torch.zeros_like(self.start), 0
        for x, _, _ in loader:
            for one in x.split(1):
                self.net.zero_grad()
                self.net(one).pow(2).sum().backward()
                total += self.net.get_grads().abs()
                n += 1
        self.net.zero_grad()
        return total / n if self.weight is None else total / n + self.weight


class RWalk(PlainLoop):
    def begin(self):
        super().begin()
        if self.weight is None:
            self.fisher, self.score = torch.zeros_like(self.start), torch.zeros_like(self.start)
        self.gain, self.waypoint = torch.zeros_like(self.start), self.start

    def look(self, number, gradient, step):
        self.fisher = 0.6 * self.fisher + 0.4 * gradient**2
        self.gain = self.gain - gradient * step
        if number % 4 == 0:
            now = self.net.get_params().detach()
            self.score = self.score + self.gain.clamp(min=0) / (0.5 * self.fisher * (now - self.waypoint) ** 2 + 0.01)
            self.gain, self.waypoint = torch.zeros_like(now), now

    def end(self, loader):
        weight = self.fisher / self.fisher.max() + self.score / self.score.max()
        self.score = self.score / 2
        return weight


@pytest.mark.parametrize(
    "name, more, loop, strength",
    [
        ("si", ["--c", "2"], SI, 2.0),
        ("mas", ["--mas_lambda", "0.02"], MAS, 0.02),
        ("rwalk", ["--e_lambda", "0.3", "--alpha", "0.6", "--delta_t", "4"], RWalk, 0.3),
    ],
)
def test_two_tasks_are_those_of_a_plain_loop(name, more, loop, strength):
    exp = experiment(name, *SMALL, *more, "--batch_size", "32", "--lr", "0.05")
    plain = loop(exp, strength)
    for task in range(2):
        learn_task(exp, task)
        plain.train(exp.dataset.enter_task(task))
        assert task or len(exp.dataset.train_loader) % 4  # a part of the path is left over
        torch.testing.assert_close(exp.model.net.get_params(), plain.centre, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(exp.model.penalty.weight, plain.weight, rtol=2e-3, atol=1e-5)
        torch.testing.assert_close(exp.model.penalty.centre, plain.centre, rtol=1e-4, atol=1e-5)
    assert plain.weight.max() > 0
