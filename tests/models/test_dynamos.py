"""DYNAMOS and its two controls: numbers by hand, warm-up, buffer, the sum of the terms, options."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from palimpsest.backbone.gated_resnet import _Moments
from palimpsest.models.utils.gates.losses import (
    agent_macs,
    dense_macs,
    kept_fractions,
    kept_macs,
    policy_loss,
    prototype_loss,
    reward,
    soft_jaccard,
)
from tests.models.helpers import experiment, first_batch

ACTIONS = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1, 1, 1]], dtype=torch.float32)
RIGHT = torch.tensor([True, False])
ROW = ["--buffer_size", "500", "--alpha", "0.2", "--beta", "2"]
SGD = {"nf": 4, "lr": 0.05, "batch_size": 10}
REPLAY = {**SGD, "buffer_size": 40, "alpha": 0.2, "beta": 2}


def argv(defaults=REPLAY, **changed) -> list[str]:
    """Options of a small, quick run."""
    return [token for name, value in {**defaults, **changed}.items() for token in (f"--{name}", str(value))]


# ---- formulas


def test_gradient_of_the_policy_loss_by_hand():
    v = torch.zeros(2, 8, requires_grad=True)
    logp = -F.binary_cross_entropy_with_logits(v / 0.15, ACTIONS, reduction="none").view(2, 2, 4).sum(2)
    assert logp.tolist() == [[pytest.approx(-2.772589)] * 2] * 2
    loss = policy_loss(logp, reward(kept_fractions(ACTIONS, 2), RIGHT, 0.7, 500))
    assert loss.item() == pytest.approx(-101.402237)
    loss.backward()
    size = torch.tensor([[0.033333] * 4 + [0.00208333] * 4, [84.375] * 4 + [37.5] * 4])
    torch.testing.assert_close(v.grad, torch.where(ACTIONS > 0, size, -size), rtol=2e-5, atol=0)


def test_prototype_loss_by_hand():
    def loss(v, labels, correct=None):
        v = torch.tensor(v, dtype=torch.float32)
        correct = torch.ones(len(v), dtype=torch.bool) if correct is None else torch.tensor(correct)
        return prototype_loss(v, torch.tensor(labels), correct).item()

    assert loss([[0, 0], [2, 0], [0, 2]], [0, 0, 1]) == pytest.approx(3 / 7)
    four = [[1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 3, 0], [0, 1, 1, 0]]
    assert loss(four, [0, 0, 1, 1]) == pytest.approx(3.25 / 8.5)
    assert loss(four, [1, 1, 1, 1]) == pytest.approx(10.75)
    assert loss(four, [0, 0, 1, 1], [True, True, False, False]) == 0
    with_a_wrong_one = [[0, 0], [9, 9], [2, 0], [0, 2]]
    assert loss(with_a_wrong_one, [0, 0, 0, 1], [True, False, True, True]) == pytest.approx(3 / 7)


def test_multiply_accumulates():
    assert dense_macs(32, (28, 28), 10) == 55_269_504 and dense_macs(32, (32, 32), 10) == 72_188_544
    assert agent_macs(32) == 16_384
    for k, share in [(1, 1.0003), (0.85, 0.8806), (0.7, 0.7785), (0.5, 0.6698), (0.25, 0.5781), (0, 0.5355)]:
        kept = kept_macs(torch.full((4,), k, dtype=torch.float64), 32, (28, 28), 10).item()
        assert (kept + 16_384) / 55_269_504 == pytest.approx(share, abs=5e-5)
    one_by_one = kept_macs(torch.eye(4, dtype=torch.float64), 32, (28, 28), 10) - 29_578_752
    assert one_by_one.tolist() == [3_612_672, 401_408, 0, 640]


def test_soft_jaccard():
    a, b = torch.tensor([[1.0, 1, 0], [0.5, 0.2, 0], [0, 0, 0]]), torch.tensor([[1.0, 0, 1], [0.25, 0.4, 0], [0, 0, 0]])
    torch.testing.assert_close(soft_jaccard(a, b), torch.tensor([1 / 3, 0.45 / 0.9, 1.0]))


# ---- one step


def by_the_formulas(logits, trace, labels) -> tuple:
    """CE, 0.5 PG and 0.3 P of one pass, pair by pair, with PyTorch's Bernoulli."""
    right = logits.argmax(1) == labels
    gates = [part.chunk(4, 1) for part in (trace.actions, trace.v)]
    policy = []
    for a, v in zip(*gates, strict=True):
        logp = torch.distributions.Bernoulli(torch.sigmoid(v / 0.15)).log_prob(a).sum(1)
        policy.append(logp * (0.7 - a.mean(1)) ** 2 * torch.where(right, 1.0, 500.0))
    vs, ys = trace.v[right], labels[right]
    sums = {True: 0.0, False: 0.0}
    for i in range(len(vs)):
        for j in range(i + 1, len(vs)):
            sums[bool(ys[i] == ys[j])] += (vs[i] - vs[j]).square().sum() / vs.shape[1]
    prototype = (1 + sums[True]) / (1 + sums[False]) if len(vs) > 2 else 0.0
    return F.cross_entropy(logits, labels), 0.5 * torch.stack(policy).mean(), 0.3 * prototype


def test_steps_are_those_of_the_formulas():
    exp = experiment("dynamos", *argv(minibatch_size=10), dataset="seq-digits")
    model, batch = first_batch(exp)
    for step in range(12):
        net, buffer, state = deepcopy(model.net), deepcopy(model.buffer), torch.get_rng_state()
        logits, trace = net.traced(batch[0])
        loss = sum(by_the_formulas(logits, trace, batch[1]))
        if step:
            x, y, z, v = buffer.get_data(10, transform=model.transform)
            logits, trace = net.traced(x)
            ce, policy, prototype = by_the_formulas(logits, trace, y)
            replayed = F.mse_loss(logits, z) * 0.2 + F.mse_loss(trace.v, v) * 0.2 + 2 * (ce + policy) + prototype
            loss = loss + replayed * (len(buffer) > 0)
        torch.optim.SGD(net.parameters(), 0.05).step(lambda loss=loss: loss.backward())
        torch.set_rng_state(state)
        model.meta_observe(*batch, 0)
        for mine, wanted in zip(model.net.parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)
    assert len(buffer) > 10


def test_only_right_answers_enter_the_buffer_with_what_the_step_began_with():
    model, (inputs, labels, raw) = first_batch(experiment("dynamos", *argv(batch_size=6)))
    right = torch.tensor([True, True, False, True, True, False])
    logits, traced, seen = F.one_hot(torch.where(right, labels, 9 - labels), 10).float(), model.net.traced, []
    model.net.traced = lambda x: seen.append(traced(x)) or (seen[-1][0] * 0 + logits, seen[-1][1])
    model.meta_observe(inputs, labels, raw, 0)
    assert len(model.buffer) == int(model.buffer.num_admitted) == 4
    for stored, given in zip(model.buffer.get_all_data(), (raw, labels, logits, seen[0][1].v), strict=True):
        assert torch.equal(stored, given.detach()[right])


def test_nothing_right_so_far_means_nothing_replayed():
    model, (inputs, labels, raw) = first_batch(experiment("dynamos", *argv()))
    traced = model.net.traced
    wrong = F.one_hot(9 - labels, 10).float() * 100
    model.net.traced = lambda x: ((out := traced(x))[0] + wrong, out[1])
    model.meta_observe(inputs, labels, raw, 0)
    terms = model.meta_observe(inputs, labels, raw, 0)
    assert model.buffer.is_empty()
    assert not any(terms[n] for n in ("logits", "vectors", "replay", "replay_policy", "replay_prototype"))
    assert model.buffer.examples.flatten(1).any(1).all()  # what was drawn are images all the same


def test_dynamos_sgd_has_the_terms_of_the_batch():
    model, batch = first_batch(experiment("dynamos_sgd", *argv(SGD)))
    terms = model.meta_observe(*batch, 0)
    names = ["loss", "ce", "policy", "prototype", "kept_1", "kept_2", "kept_3", "kept_4", "macs"]
    assert list(terms) == names and not hasattr(model, "buffer")
    torch.testing.assert_close(terms["loss"], terms["ce"] + terms["policy"] + terms["prototype"])


@pytest.mark.parametrize("second, passes", [([], 2), (["--second_draw"], 3)])
def test_derpp_single(second, passes):
    exp = experiment("multi-scale", *argv(), *second)
    model, (inputs, labels, raw) = first_batch(exp)
    assert model.NAME == "derpp_single" and model.net.agents is None
    model.meta_observe(inputs, labels, raw, 0)
    model.buffer.num_admitted.fill_(1)
    calls = []
    model.net.register_forward_hook(lambda _, given, out: calls.append((given[0], out.detach())))
    terms = model.meta_observe(inputs, labels, raw, 0)
    assert len(calls) == passes
    y, z = model.buffer.labels[:1].expand(10), model.buffer.logits[:1].expand(10, -1)
    expected = [F.cross_entropy(calls[0][1], labels), 0.2 * F.mse_loss(calls[1][1], z)]
    expected.append(2 * F.cross_entropy(calls[-1][1], y))
    assert [terms[n].item() for n in ("ce", "logits", "replay")] == pytest.approx(
        [e.item() for e in expected], rel=1e-5
    )
    assert terms["loss"].item() == pytest.approx(sum(expected).item(), rel=1e-5)


def test_the_matched_networks_begin_with_the_same_weights():
    plain, gates = (experiment(name, *argv()).model.net for name in ("derpp_single", "dynamos"))
    assert torch.equal(plain.get_params(), gates.get_params()[: plain.get_params().numel()])


@pytest.mark.parametrize("name", ["dynamos", "dynamos_sgd", "derpp_single"])
def test_a_batch_of_one(name):
    options = argv(SGD, batch_size=1) if name == "dynamos_sgd" else argv(batch_size=1, minibatch_size=1)
    model, batch = first_batch(experiment(name, *options))
    for _ in range(3):
        assert model.meta_observe(*batch, 0)["loss"].isfinite()


def test_the_backward_pass_is_not_in_mixed_precision(monkeypatch):
    seen, backward = [], _Moments.backward

    def watched(ctx, *d):
        seen.append(torch.is_autocast_enabled("cpu"))
        return backward(ctx, *d)

    monkeypatch.setattr(_Moments, "backward", staticmethod(watched))
    model, batch = first_batch(experiment("dynamos", *argv(), "--code_optimization", "2"))
    model.meta_observe(*batch, 0)
    assert seen == [False]


def test_weights_of_replayed_logits_and_vectors_are_two():
    options = argv(minibatch_size=10, alpha=0.7, policy_alpha=0.3)
    model, batch = first_batch(experiment("dynamos", *options, dataset="seq-digits"))
    model.meta_observe(*batch, 0)
    model.buffer.num_admitted.fill_(5)
    before, drawn, original = deepcopy(model.net), [], model.buffer.get_data
    model.buffer.get_data = lambda *a, **k: drawn.append(original(*a, **k)) or drawn[-1]
    torch.manual_seed(0)
    terms = model.meta_observe(*batch, 0)
    torch.manual_seed(0)
    before.traced(batch[0])
    x, _, z, v = drawn[0]
    logits, trace = before.traced(x)
    torch.testing.assert_close(terms["logits"], 0.7 * F.mse_loss(logits, z))
    torch.testing.assert_close(terms["vectors"], 0.3 * F.mse_loss(trace.v, v))
