"""Terms of a loss that reach no weight are found, however they enter it; those that do reach one are left alone."""

import copy

import pytest
import torch
from torch import nn

from palimpsest.utils.leaks.terms import LooseTerms, trained_by

SUMS = {
    "plus": lambda a, b: a + 0.1 * b,
    "in place": lambda a, b: a.clone().add_(b),
    "alpha": lambda a, b: torch.add(a, b, alpha=0.1),
    "sum": lambda a, b: sum([a, 0.1 * b]),
    "mean of two": lambda a, b: (a + b) / 2,
    "stack": lambda a, b: torch.stack([a, b]).sum(),
    "cat": lambda a, b: torch.cat([a.view(1), b.view(1)]).mean(),
    "weights": lambda a, b: torch.stack([a, b]) @ torch.tensor([1.0, 0.1]),
    "lerp": lambda a, b: torch.lerp(a, b, 0.1),
    "addcmul": lambda a, b: torch.addcmul(a, b, torch.tensor(0.1)),
}


class Method(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.teacher = copy.deepcopy(self.net)


def penalty(method, whose: str):
    part = method.teacher if whose == "copy" else method.net
    with torch.set_grad_enabled(whose != "no_grad"):
        weight = part.weight.detach() if whose == "detached" else part.weight
        return (weight - 1).square().sum()


def places(step, method) -> list[str]:
    with LooseTerms(trained_by(method)) as terms:
        step()
    return terms.places()


@pytest.mark.parametrize("join", SUMS.values(), ids=SUMS)
@pytest.mark.parametrize("whose", ["detached", "no_grad", "copy", "network"])
def test_a_term_is_found_however_it_enters(join, whose):
    method = Method()
    found = places(lambda: join(method.net(torch.ones(4, 3)).square().sum(), penalty(method, whose)).backward(), method)
    assert bool(found) == (whose != "network")
    assert all(place.startswith("test_terms.py") for place in found)


@pytest.mark.parametrize(
    "gradient",
    [
        torch.autograd.backward,
        lambda loss: torch.autograd.backward((loss,)),
        lambda loss: torch.autograd.grad(loss, loss.weights),
        lambda loss: torch.autograd.grad(outputs=[loss], inputs=loss.weights),
        lambda loss: loss.backward(inputs=loss.weights),
    ],
)
def test_a_term_is_found_whatever_takes_the_gradient(gradient):
    method = Method()

    def step():
        loss = method.net(torch.ones(4, 3)).square().sum() + penalty(method, "detached")
        loss.weights = list(method.net.parameters())
        gradient(loss)

    assert len(places(step, method)) == 1


@pytest.mark.parametrize(
    "loss",
    [
        lambda net, x: (net(x).softmax(1) * (net(x).log_softmax(1) - net(x).detach().log_softmax(1))).sum(),  # KL
        lambda net, x: torch.relu(torch.tensor(5.0) - net(x).sum()),  # a margin: the constant decides
        lambda net, x: (net(x).sum() + torch.tensor(1.0)) * net.bias.sum(),  # a factor of something trained
        lambda net, x: net(x).sum() + torch.tensor(0.0),  # a term that there is not yet
        lambda net, x: net(x).sum() * net(x).sum().detach(),
        lambda net, x: (net(x) + torch.tensor(2 * torch.pi).log()).mean(),  # a density's normaliser
    ],
)
def test_constants_that_matter_are_left_alone(loss):
    method = Method()
    assert not places(lambda: loss(method.net, torch.ones(4, 3)).backward(), method)


def test_what_another_optimiser_of_the_method_trains_is_a_weight():
    method = Method()
    method.opt = torch.optim.SGD(method.teacher.parameters(), lr=0.1)
    assert not places(lambda: (penalty(method, "network") + penalty(method, "copy")).backward(), method)


def test_a_gradient_of_the_input_alone_is_no_loss():
    method, x = Method(), torch.ones(3, requires_grad=True)
    assert not places(lambda: (x.sum() + torch.tensor(1.0)).backward(), method)
