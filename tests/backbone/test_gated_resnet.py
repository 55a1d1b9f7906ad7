"""The gated ResNet: shapes, where masks act, agents, inference with dropped channels left out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.backbone.gated_resnet import Agents, GatedResNet
from palimpsest.backbone.utils.sparse_inference import SparseNet

KEEP, DROP = -torch.inf, torch.inf


def gated(nf=32, seed=0, **options):
    torch.manual_seed(seed)
    net = GatedResNet((1, 28, 28), 10, nf)
    net.add_agents(**options)
    return net


def settled(net, size=28):
    """In eval mode, with running statistics and biases that are not those of a fresh network."""
    for _ in range(5):
        net.traced(torch.rand(8, 1, size, size))
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.bias, 0, 0.2)
            nn.init.uniform_(part.weight, 0.5, 1.5)
    nn.init.normal_(net.agents.beta, 0, 0.2)
    nn.init.uniform_(net.agents.gamma, 0.5, 1.5)
    return net.eval()


def parameters(module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_shapes_and_parameter_counts():
    plain = GatedResNet((1, 28, 28), 10)
    assert parameters(plain) == 170_410
    net = gated()
    assert parameters(net) == 187_578 and net.slices == [0, 64, 128, 192, 256]
    assert [sum(p.numel() for p in agent[:7]) for agent in net.agents.each()] == [2756, 4804, 4804, 4804]
    logits, trace = net.traced(torch.rand(6, 1, 28, 28))
    assert logits.shape == (6, 10) and trace.actions.shape == trace.v.shape == (6, 256) and trace.logp.shape == (6, 4)
    assert set(trace.actions.unique().tolist()) == {0.0, 1.0}
    assert net.forward(torch.rand(6, 3, 28, 28)).shape == (6, 10)


def test_a_fresh_network_keeps_half():
    _, trace = gated().traced(torch.rand(64, 3, 28, 28))
    assert abs(trace.actions.mean().item() - 0.5) < 0.02 and 0.12 < trace.v.abs().mean() < 0.18
    first, *others = trace.logp.mean(0).tolist()
    assert -46 < first < -42 and all(-38 < logp < -29 for logp in others)


def test_narrow_networks_have_a_bottleneck_of_one_unit():
    net = gated(nf=4)
    assert net.agents.w1.shape == (4, 8, 1)
    assert net.traced(torch.rand(2, 1, 9, 12))[0].shape == (2, 10)  # oblong and odd


@pytest.mark.parametrize("training", [True, False])
def test_agents_equal_their_definition(training):
    torch.manual_seed(0)
    agents, maps = Agents([6, 9], 32, 16).train(training), [torch.rand(5, 6, 7, 9), torch.rand(5, 9, 4, 5)]
    for part in (agents.gamma, agents.beta, agents.b1, agents.b2, agents.running_mean):
        nn.init.normal_(part)
    bns = [nn.BatchNorm2d(32).train(training) for _ in maps]
    for bn, mean in zip(bns, agents.running_mean, strict=True):
        bn.running_mean.copy_(mean)

    def definition(g: int, x):
        gamma, beta, w1, b1, w2, b2 = (getattr(agents, n)[g] for n in ("gamma", "beta", "w1", "b1", "w2", "b2"))
        z, bn = F.conv2d(x, agents.weights[g].t()[:, :, None, None]), bns[g]
        m = F.batch_norm(z, bn.running_mean, bn.running_var, gamma, beta, training).mean((2, 3))
        return m * torch.sigmoid(F.linear(F.relu(F.linear(m, w1.t(), b1)), w2.t(), b2))

    theirs, mine = ([x.clone().requires_grad_() for x in maps] for _ in range(2))
    expected = torch.cat([definition(g, x) for g, x in enumerate(theirs)], 1)
    asked = [agents.ask(agent, x) for agent, x in zip(agents.each(), mine, strict=True)]
    v = agents(mine, *zip(*((pooled, second) for _, pooled, second in asked), strict=True))
    assert not any(alone.requires_grad for alone, *_ in asked)
    for found in (v, torch.cat([alone for alone, *_ in asked], 1)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for name in ("running_mean", "running_var"):
        kept = torch.stack([getattr(bn, name) for bn in bns])
        torch.testing.assert_close(getattr(agents, name), kept, atol=1e-6, rtol=1e-5)
    weights = torch.randn_like(v)
    wanted = torch.autograd.grad((expected * weights).sum(), [*theirs, *agents.parameters()])
    found = torch.autograd.grad((v * weights).sum(), [*mine, *agents.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mean, spread, off", [(0.5, 0.5, 2e-6), (2, 0.05, 2e-4), (5, 0.05, 2e-3)])
def test_digits_that_single_precision_loses(mean, spread, off):
    torch.manual_seed(0)
    agents, x = Agents([32], 64, 16), mean + spread * torch.randn(10, 32, 28, 28)
    v = agents.ask(agents.each()[0], x)[0]
    agents.double()
    assert (v - agents.ask(agents.each()[0], x.double())[0]).abs().max() < off


def test_dropped_channels_are_zero():
    net, maps = gated(nf=8), []
    for block_input in (net.layers[1][1].conv1, net.layers[1][1].conv2, net.classifier):
        block_input.register_forward_pre_hook(lambda _, given: maps.append(given[0]))
    _, trace = net.traced(torch.rand(6, 1, 28, 28))
    _, a2, a3, a4 = trace.actions.bool().split(16, 1)
    for found, actions in zip(maps, (a2, a3, a4), strict=True):
        assert not found[~actions].any() and found[actions].any()


def test_actions_at_test_time():
    net, x = settled(gated()), torch.rand(6, 1, 28, 28)
    _, trace = net.traced(x)
    # v is m times a number above 0, whose bottleneck changes nothing
    assert torch.equal(trace.actions, (trace.v >= 0).float()) and 0 < trace.actions.mean() < 1
    nn.init.normal_(net.agents.w1)
    nn.init.normal_(net.agents.b2)
    assert torch.equal(net.traced(x)[1].actions, trace.actions)
    net.inf_thresh = 0.9
    actions, v = net.traced(x)[1].actions, net.traced(x)[1].v
    assert torch.equal(actions, (v >= 0.329584).float()) and actions.mean() < trace.actions.mean()
    assert 0.15 * math.log(9) == pytest.approx(0.329584, abs=1e-6)
    net.inf_thresh = 0.0
    assert net.traced(x)[1].actions.all()
    net.inf_thresh = 1.0
    assert not net.traced(x)[1].actions.any()


def test_training_draws_with_the_probability_of_v():
    net = gated(nf=2)
    t = net.thresholds(20_000)
    v = torch.linspace(-0.3, 0.3, 16)
    kept = (v >= t).float().mean(0)
    torch.testing.assert_close(kept, torch.sigmoid(v / 0.15), atol=0.015, rtol=0)
    assert t.abs().max() <= 0.15 * 16.2  # never certain: the log-probability of an action is at least about -16


def test_without_gates_it_is_the_plain_network():
    net, plain = gated(), GatedResNet((1, 28, 28), 10)
    plain.load_state_dict(net.state_dict(), strict=False)
    x, before = torch.rand(4, 1, 28, 28), [buffer.clone() for buffer in net.agents.buffers()]
    net.gating = False
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(before, net.agents.buffers(), strict=True))
    net.gating = True
    torch.testing.assert_close(net.traced(x, torch.full((4, 256), KEEP))[0], plain(x))
    assert not all(torch.equal(a, b) for a, b in zip(before, net.agents.buffers(), strict=True))


def reached(net, loss) -> set[str]:
    """Names of the parameters that a loss has a gradient at; a gradient of zeros counts as none."""
    net.zero_grad()
    loss.backward()
    return {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}


def test_what_the_losses_reach():
    net, x, y = gated(nf=8), torch.rand(8, 1, 28, 28), torch.arange(8)
    agents = {name for name, _ in net.named_parameters() if name.startswith("agents.")}
    others = {name for name, _ in net.named_parameters()} - agents
    assert len(agents) == 10
    assert reached(net, F.cross_entropy(net.traced(x)[0], y)) == others
    beyond = {n for n in others if n.startswith(("classifier", "layers.1.1.conv2", "layers.1.1.bn2"))}
    assert len(beyond) == 5
    for loss in (lambda t: t.logp.mean(), lambda t: t.v.square().mean()):
        assert reached(net, loss(net.traced(x)[1])) == agents | others - beyond


@pytest.mark.parametrize("thresh", [0.0, 0.5, 0.65, 0.8, 1.0])
def test_leaving_dropped_channels_out_changes_no_logit(thresh):
    net, x = settled(gated(nf=16, inf_thresh=thresh)), torch.rand(6, 1, 28, 28)
    torch.testing.assert_close(SparseNet(net)(x), net(x), atol=1e-5, rtol=1e-5)


def test_leaving_out_everything_an_agent_reads_or_writes():
    net, x = settled(gated(nf=8), 9), torch.rand(5, 1, 9, 9)
    t = torch.where(torch.rand(5, 64) < 0.5, KEEP, DROP)
    for agent in range(4):  # image 0..3 loses all of one agent's channels, image 4 all of all
        t[agent, 16 * agent : 16 * agent + 16] = DROP
    t[4] = DROP
    torch.testing.assert_close(SparseNet(net)(x, t), net.traced(x, t)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(x[4:]), net(x)[4:])


def test_bytes_are_scaled():
    net, x = settled(gated(nf=4)), torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    for f in (net, lambda x: net.traced(x)[0], SparseNet(net)):
        torch.testing.assert_close(f(x), f(x.float() / 255))


def test_mixed_precision_leaves_the_agents_in_full():
    net, x = gated(nf=4), 1 + 0.1 * torch.rand(6, 4, 9, 9)
    agents, rest = net.agents, [torch.rand(6, 8, 5, 5) for _ in range(3)]
    found = []
    for mixed in (False, True):
        maps = [m.clone().requires_grad_() for m in (x, *rest)]
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            asked = [agents.ask(agent, m) for agent, m in zip(agents.each(), maps, strict=True)]
            v = agents(maps, *zip(*((pooled, second) for _, pooled, second in asked), strict=True))
        found.append([v, *torch.autograd.grad(v.square().sum(), [*maps, *agents.parameters()])])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b) and a.dtype == torch.float32


def test_running_statistics_follow_without_a_graph_too():
    net, x = gated(nf=4), torch.rand(6, 1, 9, 9)
    twin = gated(nf=4)
    torch.manual_seed(1)
    net.traced(x)
    torch.manual_seed(1)
    with torch.no_grad():
        twin.traced(x)
    assert torch.equal(net.agents.running_var, twin.agents.running_var) and (net.agents.running_var != 1).all()


def test_agents_are_as_the_network_they_are_added_to():
    net = GatedResNet((1, 8, 8), 10, 4).double().eval()
    net.add_agents()
    assert (
        not net.agents.training and net.traced(torch.rand(2, 1, 8, 8, dtype=torch.float64))[1].v.dtype == torch.float64
    )
