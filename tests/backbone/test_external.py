"""A network under weights from outside: the outputs it has under its own, for many weight vectors and heads at once."""

from functools import partial

import pytest
import torch
from torch import nn

from palimpsest.backbone.utils.external import ExternalWeights
from palimpsest.backbone.utils.resnet import SmallImageResNet
from tests.backbone.test_backbones import make as make_network

CHANNELS = (3, 8, 8)
make = partial(make_network, in_size=CHANNELS, classes=6)


def little_resnet(classes=6):
    return SmallImageResNet(CHANNELS, classes, [4, 8], blocks=1, padded=True)


def normalisations(net):
    return [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]


def randomise(net):
    """Weights, gains, biases and running statistics away from their initial values."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for layer in normalisations(net):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
    return net


def given(net, external):
    """The network's own parameters as a weight vector (1, P), gains counted from 1; its running statistics."""
    weights = net.get_params()
    weights = weights if external.centre is None else weights - external.centre
    layers = normalisations(net)
    if not layers:
        return weights.unsqueeze(0), None
    statistics = torch.cat([m.running_mean for m in layers] + [m.running_var for m in layers])
    return weights.unsqueeze(0), statistics.unsqueeze(0)


NETWORKS = [
    lambda: make("mnistmlp", mlp_hidden_size=7),
    lambda: make("convnet", width=4),
    lambda: make("convnet", width=4, norm="batch"),
    lambda: make("resnet32"),
]
IDS = ["mnistmlp", "convnet", "convnet-batchnorm", "resnet32"]


@pytest.mark.parametrize("network", NETWORKS, ids=IDS)
def test_own_parameters_from_outside_give_the_network_itself(network):
    torch.manual_seed(0)
    nets, x = [randomise(network()).eval() for _ in range(3)], torch.randn(4, *CHANNELS)
    external = ExternalWeights(nets[0])
    weights, statistics = zip(*(given(net, external) for net in nets), strict=True)
    weights, statistics = torch.cat(weights), None if statistics[0] is None else torch.cat(statistics)
    assert external.size == weights.shape[1] and not list(external.parameters()) and not external.state_dict()
    out, seen = external.apply(weights, x, None, statistics)
    torch.testing.assert_close(out, torch.stack([net(x) for net in nets]), rtol=1e-4, atol=1e-4)
    assert seen is None
    assert external.n_statistics == (0 if statistics is None else statistics.shape[1])


@pytest.mark.parametrize("network", NETWORKS[2:], ids=IDS[2:])
def test_in_training_the_statistics_are_the_batchs(network):
    torch.manual_seed(0)
    net = randomise(network()).train()
    external, x = ExternalWeights(net), torch.randn(4, *CHANNELS)
    weights, before = given(net, external)
    out, seen = external.apply(weights, x)
    torch.testing.assert_close(out[0], net(x), rtol=1e-4, atol=1e-4)  # which moves the running ones by a tenth
    after = given(net, external)[1]
    torch.testing.assert_close(before + 0.1 * (seen - before), after, rtol=1e-4, atol=1e-4)


def test_a_vector_of_zeros_has_gains_of_one():
    net = little_resnet()
    external = ExternalWeights(net)
    assert external.centre.sum() == sum(m.num_features for m in normalisations(net))
    parts = external.split(external.centre)
    assert {n for n, p in parts.items() if p.any()} == {
        f"{n}.weight" for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)
    }
    means, variances = external.initial_statistics().chunk(2)
    assert not means.any() and (variances == 1).all()


@pytest.mark.parametrize("network", [NETWORKS[0], little_resnet], ids=["mnistmlp", "resnet"])
def test_a_head_is_a_slice_of_the_outputs(network):
    external, x = ExternalWeights(network()), torch.randn(5, *CHANNELS)
    weights = torch.randn(2, external.size)
    torch.testing.assert_close(external(weights, x, (2, 5)), external(weights, x)[..., 2:5])


HEADS = {"alike": [(0, 2), (2, 4), (4, 6)], "unlike": [(0, 2), (2, 5), (5, 6)], "shared": [(0, 6)] * 3}


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("network", [NETWORKS[0], little_resnet], ids=["mnistmlp", "resnet"])
@pytest.mark.parametrize("call", [2**26, 1])
def test_posteriors_are_evaluated_on_the_heads_of_their_tasks(network, heads, call, monkeypatch):
    monkeypatch.setattr("backbone.utils.external.LARGEST_CALL", call)
    torch.manual_seed(0)
    external, x = ExternalWeights(network()), torch.randn(5, *CHANNELS)
    weights, kept = torch.randn(3, 2, external.size), None
    statistics = torch.rand(3, external.n_statistics) + 0.5 if external.n_statistics else None
    kept = weights.clone()
    for j, out in enumerate(external.evaluate(weights, x, heads, statistics)):
        given = None if statistics is None else statistics[j].expand(2, -1)
        torch.testing.assert_close(out, external(weights[j], x, heads[j], given), rtol=1e-4, atol=1e-4)
    assert torch.equal(weights, kept)


def test_what_a_task_uses_is_all_but_the_other_heads():
    external = ExternalWeights(make("mnistmlp", in_size=(2,), mlp_hidden_size=3, mlp_hidden_layers=1))
    own = torch.tensor([[1.0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0]])
    assert external.size == 2 * 3 + 3 + 3 * 6 + 6 and external.head_at == 9
    assert external.own_sum(torch.ones(2, external.size), own).tolist() == [9 + 2 * 4, 9 + 4]
    assert external.own_sum(torch.ones(2, external.size)).tolist() == [33, 33]
