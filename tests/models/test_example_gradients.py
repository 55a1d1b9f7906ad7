"""Sums and inner products of the gradients of single examples, against one backward pass for each, in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.backbone.mnistmlp import MNISTMLP
from palimpsest.models.utils.fisher import example_gradients, in_chunks, rank_one_layers, sum_over_gradients


class Mixed(nn.Module):
    """Layers of which only `own` and `last` have one row a of an example and a weight of their own."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3), nn.LayerNorm(12)
        self.twice, self.rows, self.own = nn.Linear(12, 12), nn.Linear(4, 4), nn.Linear(12, 12, bias=False)
        self.tied, self.last = nn.Linear(12, 12), nn.Linear(12, 3)
        self.also_tied = nn.Linear(12, 12)
        self.also_tied.weight = self.tied.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.norm(torch.tanh(self.conv(x)).flatten(1))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        x = torch.tanh(self.rows(x.view(-1, 3, 4))).flatten(1) * self.scale
        return self.last(torch.tanh(self.also_tied(torch.tanh(self.tied(torch.tanh(self.own(x)))))))


def mlp():
    return MNISTMLP((1, 4, 4), 3, hidden=5)


def examples(n=11):
    return torch.randn(n, 1, 4, 4).double(), torch.randint(0, 3, (n,)), torch.rand(n).double()


def one_by_one(net, x, y):
    """(B, P) gradients of cross-entropy."""
    rows = []
    for i in range(len(x)):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]).backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
        rows.append(torch.cat([g.flatten() for g in parts]))
    return torch.stack(rows)


@pytest.mark.parametrize("network", [mlp, Mixed])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("chunk", [None, 3])
def test_sums_are_those_of_a_loop_whatever_the_batches(network, power, chunk):
    torch.manual_seed(0)
    net, (x, y, w) = network().double(), examples()
    got, n = sum_over_gradients(
        net, zip(x.split(4), y.split(4), w.split(4), strict=True), F.cross_entropy, power, chunk
    )
    expected = (w.unsqueeze(1) * one_by_one(net, x, y).abs() ** power).sum(0)
    assert n == 11 and [*got] == [name for name, _ in net.named_parameters()]
    torch.testing.assert_close(torch.cat([part.flatten() for part in got.values()]), expected)


@pytest.mark.parametrize("network", [mlp, Mixed])
def test_inner_products_are_those_of_a_loop(network):
    torch.manual_seed(0)
    net, (x, y, _) = network().double().eval(), examples()
    g = one_by_one(net, x, y)
    got = example_gradients(net, F.cross_entropy, x, y, rank_one_layers(net, x)).gram()
    torch.testing.assert_close(got, g @ g.T)


def test_layers_whose_gradient_is_an_outer_product():
    x = torch.randn(2, 1, 4, 4)
    assert sorted(rank_one_layers(Mixed().eval(), x).values()) == ["last", "own"]
    net = mlp()
    assert [*rank_one_layers(net, x).values()] == ["layers.0", "layers.1", "classifier"]
    assert not any(part._forward_hooks for part in net.modules())


def test_a_hook_of_the_network_is_seen_by_what_is_before_it():
    torch.manual_seed(0)
    net, (x, y, w) = mlp().double(), examples()
    net.layers[0].register_forward_hook(lambda part, args, out: 3 * out)
    got, _ = sum_over_gradients(net, [(x, y, w)], F.cross_entropy, 2)
    expected = (w.unsqueeze(1) * one_by_one(net, x, y) ** 2).sum(0)
    torch.testing.assert_close(torch.cat([part.flatten() for part in got.values()]), expected)


def test_chunks_hold_the_same_examples_in_order_and_do_not_mix_shapes():
    batches = [(torch.arange(a, b), torch.zeros(b - a, width)) for a, b, width in ((0, 2, 1), (2, 5, 1), (5, 6, 2))]
    chunks = [*in_chunks(iter(batches), lambda x: 4)]
    assert [x.tolist() for x, _ in chunks] == [[0, 1, 2, 3], [4], [5]]
    assert [other.shape[1] for _, other in chunks] == [1, 1, 2]


@pytest.mark.parametrize("network", [mlp, Mixed])
def test_a_compiled_network_runs_as_it_is_written(network):
    torch.manual_seed(0)
    net, (x, y, w) = network().double(), examples()
    expected = (w.unsqueeze(1) * one_by_one(net, x, y) ** 2).sum(0)
    net.compile(backend="eager")
    compiled = net._compiled_call_impl
    for _ in range(2):
        net.train()(x)
        got, _ = sum_over_gradients(net, [(x, y, w)], F.cross_entropy, 2)
        torch.testing.assert_close(torch.cat([part.flatten() for part in got.values()]), expected)
    assert net._compiled_call_impl is compiled
