"""DYNAMOS and its two controls: numbers by hand, warm-up, buffer, the sum of the terms, options."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from backbone.gated_resnet import _Moments
from models.utils.gates import gated
from models.utils.gates.losses import (
    agent_macs,
    dense_macs,
    kept_fractions,
    kept_macs,
    policy_loss,
    prototype_loss,
    reward,
    soft_jaccard,
)
from tests.models.helpers import experiment, finished, first_batch
from utils.errors import TrainingFailed

ACTIONS = torch.tensor([[1, 1, 0, 0, 1, 1, 1, 0], [1, 0, 0, 0, 1, 1, 1, 1]], dtype=torch.float32)
RIGHT = torch.tensor([True, False])
ROW = ["--buffer_size", "500", "--alpha", "0.2", "--beta", "2"]
SGD = {"nf": 4, "lr": 0.05, "batch_size": 10}
REPLAY = {**SGD, "buffer_size": 40, "alpha": 0.2, "beta": 2}


def argv(defaults=REPLAY, **changed) -> list[str]:
    """Options of a small, quick run."""
    return [token for name, value in {**defaults, **changed}.items() for token in (f"--{name}", str(value))]


# ---- formulas


def test_reward_by_hand():
    kept = kept_fractions(ACTIONS, 2)
    assert kept.tolist() == [[0.5, 0.75], [0.25, 1]]
    expected = torch.tensor([[-0.04, -0.0025], [-101.25, -45]])
    torch.testing.assert_close(reward(kept, RIGHT, 0.7, 500), expected)
    best = reward(torch.tensor([[45 / 64]]), RIGHT[:1], 0.7, 500)
    assert best.item() == pytest.approx(-9.766e-6, rel=1e-3)


def test_policy_loss_by_hand():
    rewards = reward(kept_fractions(ACTIONS, 2), RIGHT, 0.7, 500)
    assert policy_loss(torch.tensor([[-2, -1], [-1.5, -0.5]]), rewards).item() == pytest.approx(-43.614375)
    logits = torch.tensor([[2.0, 1, 0], [0, 1, 3]])
    assert F.cross_entropy(logits, torch.tensor([0, 1])).item() == pytest.approx(1.288726, abs=1e-6)


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


def test_the_prototype_loss_leaves_wrong_images_alone():
    v = torch.rand(5, 8, requires_grad=True)
    correct = torch.tensor([True, True, False, True, False])
    prototype_loss(v, torch.tensor([0, 0, 0, 1, 1]), correct).backward()
    assert v.grad[correct].any(1).all() and not v.grad[~correct].any()
    v.grad = None
    prototype_loss(v, torch.tensor([0, 0, 0, 1, 1]), torch.tensor([True, True, False, False, False])).backward()
    assert not v.grad.any()


def test_the_expected_reward_of_independent_gates():
    torch.manual_seed(0)
    for p in (0.5, 0.7):
        kept = torch.distributions.Binomial(64, p).sample((200_000, 1)) / 64
        found = reward(kept, torch.ones(len(kept), dtype=torch.bool), 0.7, 500).mean().item()
        assert found == pytest.approx(-((0.7 - p) ** 2 + p * (1 - p) / 64), abs=1e-4)


def test_multiply_accumulates():
    assert dense_macs(32, (28, 28), 10) == 55_269_504 and dense_macs(32, (32, 32), 10) == 72_188_544
    pooled, full = (agent_macs(32, (28, 28), pooled=pooled) for pooled in (True, False))
    assert (pooled, full) == (16_384, 4_016_128) and agent_macs(32, (32, 32), pooled=False) == 5_244_928
    for k, coded, ours in [
        (1, 1.0727, 1.0003), (0.85, 0.9529, 0.8806), (0.7, 0.8509, 0.7785), (0.5, 0.7422, 0.6698),
        (0.25, 0.6505, 0.5781), (0, 0.6078, 0.5355),
    ]:  # fmt: skip
        kept = kept_macs(torch.full((4,), k, dtype=torch.float64), 32, (28, 28), 10).item()
        assert (kept + full) / 55_269_504 == pytest.approx(coded, abs=5e-5)
        assert (kept + pooled) / 55_269_504 == pytest.approx(ours, abs=5e-5)
        if k == 0.7:
            assert (round(kept + pooled), round(kept + full)) == (43_026_696, 47_026_440)
    one_by_one = [
        kept_macs(torch.eye(4, dtype=torch.float64)[i], 32, (28, 28), 10).item() - 29_578_752 for i in range(4)
    ]
    assert one_by_one == [3_612_672, 401_408, 0, 640]


def test_soft_jaccard():
    a, b = torch.tensor([[1.0, 1, 0], [0.5, 0.2, 0], [0, 0, 0]]), torch.tensor([[1.0, 0, 1], [0.25, 0.4, 0], [0, 0, 0]])
    torch.testing.assert_close(soft_jaccard(a, b), torch.tensor([1 / 3, 0.45 / 0.9, 1.0]))


# ---- one step


def test_the_total(monkeypatch):
    monkeypatch.setattr(gated, "policy_loss", lambda *_: torch.tensor(1.0))
    monkeypatch.setattr(gated, "prototype_loss", lambda *_: torch.tensor(1.0))
    monkeypatch.setattr("torch.nn.functional.mse_loss", lambda a, b: (a - b).square().mean() * 0 + 1)
    exp = experiment("dynamos", *ROW, "--batch_size", "10", dataset="seq-fmnist")
    model, batch = first_batch(exp)
    model.loss = lambda logits, labels: logits.sum() * 0 + 1
    model.meta_observe(*batch, 0)
    model.buffer.num_admitted.fill_(10)
    terms = {name: round(value.item(), 6) for name, value in model.meta_observe(*batch, 0).items()}
    kept = {name: terms.pop(name) for name in ("kept_1", "kept_2", "kept_3", "kept_4", "macs")}
    assert terms == {
        "loss": 5.5, "ce": 1, "policy": 0.5, "prototype": 0.3, "logits": 0.2, "vectors": 0.2, "replay": 2,
        "replay_policy": 1, "replay_prototype": 0.3,
    }  # fmt: skip
    assert all(0.2 < value < 1 for value in kept.values())


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


def test_what_is_stored_is_what_the_step_began_with():
    model, (inputs, labels, raw) = first_batch(experiment("dynamos", *argv()))
    seen, traced = [], model.net.traced

    def watched(*args):
        seen.append(traced(*args))
        return seen[-1]

    model.net.traced = watched
    for _ in range(12):
        seen.clear()
        before = int(model.buffer.num_admitted)
        model.meta_observe(inputs, labels, raw, 0)
    logits, trace = seen[0]
    right = logits.argmax(1) == labels
    n = int(right.sum())
    assert int(model.buffer.num_admitted) == before + n and n > 0
    stored = model.buffer.get_all_data()
    if before + n <= 40:
        for rows, given in zip(stored, (raw, labels, logits, trace.v), strict=True):
            assert torch.equal(rows[before : before + n], given.detach()[right])


def test_only_right_answers_enter_the_buffer():
    model, (inputs, labels, raw) = first_batch(experiment("dynamos", *argv(batch_size=6)))
    right = torch.tensor([True, True, False, True, True, False])
    logits = F.one_hot(torch.where(right, labels, 9 - labels), 10).float()
    traced = model.net.traced
    model.net.traced = lambda x: ((out := traced(x))[0] * 0 + logits, out[1])
    model.meta_observe(inputs, labels, raw, 0)
    assert len(model.buffer) == int(model.buffer.num_admitted) == 4
    examples, stored_labels, *_ = model.buffer.get_all_data()
    assert torch.equal(examples, raw[right]) and torch.equal(stored_labels, labels[right])


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


def test_a_loss_that_is_not_finite_ends_the_run():
    with pytest.raises(TrainingFailed, match="is nan|is inf|is -inf"):
        finished("dynamos", *argv(lr="1e30", stop_after=1))


def test_the_backward_pass_is_not_in_mixed_precision(monkeypatch):
    seen, backward = [], _Moments.backward

    def watched(ctx, *d):
        seen.append(torch.is_autocast_enabled("cpu"))
        return backward(ctx, *d)

    monkeypatch.setattr(_Moments, "backward", staticmethod(watched))
    model, batch = first_batch(experiment("dynamos", *argv(), "--code_optimization", "2"))
    model.meta_observe(*batch, 0)
    assert seen == [False]
