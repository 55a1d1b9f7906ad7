"""The formulas of der, er-ace, fdr, mer, mir, gss, hal and gdumb against numbers worked by hand or by a plain loop."""

import argparse
import math
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F

from palimpsest.models.der import DER
from palimpsest.models.derpp import DERpp
from palimpsest.models.gdumb import cutmix, learning_rate
from palimpsest.models.gss import GSS
from palimpsest.models.hal import find_anchors
from palimpsest.models.mer import MER
from palimpsest.models.mir import MIR
from tests.models.helpers import Flat, experiment, finished, first_batch, image, small

REPLAY = ["--buffer_size", "4", "--minibatch_size", "1", "--batch_size", "1"]


@pytest.mark.parametrize("cls, more", [(DER, []), (DERpp, ["--beta", "0.7"])])
def test_dark_replay_by_hand(cls, more):
    model = small(cls, *REPLAY, "--alpha", "0.3", *more)
    assert set(model.observe(image(1, 0), torch.tensor([0]), image(1, 0))) == {"loss", "ce"}
    assert not model.buffer.logits[0].any()  # logits before the step, from zero weights
    # After one step on (1, 0), label 0: z = W x + b = 2 * 0.1 * (.75, -.25, -.25, -.25).
    z = torch.tensor([0.15, -0.05, -0.05, -0.05])
    expected = {"ce": -torch.log_softmax(z / 2, 0)[1], "logits": 0.3 * z.square().mean()}
    if more:
        expected["replay"] = -0.7 * torch.log_softmax(z, 0)[0]
    terms = model.observe(image(0, 0), torch.tensor([1]), image(0, 0))
    torch.testing.assert_close(terms, {"loss": sum(expected.values()), **expected})


def test_fdr_keeps_the_outputs_of_the_tasks_end():
    exp = experiment("fdr", "--buffer_size", "20", "--alpha", "0.5", "--batch_size", "32", "--minibatch_size", "20",
                     "--backbone", "convnet", "--norm", "batch", "--width", "4")  # fmt: skip
    model, batch = first_batch(exp, task=1)
    assert model.sizes == [20] and all(part.training for part in model.net.modules())
    examples, _, stored = model.buffer.get_all_data()
    model.net.eval()
    torch.testing.assert_close(stored, model.net(model.normalization_transform(examples)))
    model.net.train()
    torch.manual_seed(0)
    model.net.set_params(model.net.get_params() + 0.05 * torch.randn_like(model.net.get_params()))
    change = torch.softmax(model.net(model.transform(examples)), 1) - torch.softmax(stored, 1)
    terms = model.meta_observe(*batch, 0)
    assert terms["distance"].item() == pytest.approx(0.5 * change.norm(dim=1).mean().item(), rel=1e-4)


def test_mer_is_replay_with_rates_of_one_and_half_a_step_with_a_half():
    rates = {r: small(MER, *REPLAY, "--beta", str(r), "--gamma", "1") for r in (1, 0.5)}
    for model in rates.values():
        model.observe(image(1, 2), torch.tensor([0]), image(1, 2))
    torch.testing.assert_close(rates[1].net.classifier.bias, torch.tensor([0.075, -0.025, -0.025, -0.025]))
    torch.testing.assert_close(rates[0.5].net.get_params(), rates[1].net.get_params() / 2)
    across = small(MER, *REPLAY, "--beta", "0.5", "--gamma", "0.5", "--batch_num", "2")
    across.observe(image(1, 2), torch.tensor([0]), image(1, 2))
    # Two half steps, the second from where the first ended, then half of the way: by a plain loop.
    net = small(MER, *REPLAY, "--beta", "1", "--gamma", "1").net
    for _ in range(2):
        net.zero_grad()
        F.cross_entropy(net(image(1, 2)), torch.tensor([0])).backward()
        net.set_params(net.get_params() - 0.5 * 0.1 * net.get_grads())
    torch.testing.assert_close(across.net.get_params(), net.get_params() / 2)


def test_mir_chooses_what_the_step_hurts_most():
    model = small(MIR, "--buffer_size", "4", "--minibatch_size", "1", "--batch_size", "1", "--subsample", "4")
    # A step towards class 0 at (1, 0) raises the loss of the same image with label 1 most.
    model.buffer.add_data(examples=image(1, 0, 0, 1, 1, 0, -1, 0), labels=torch.tensor([0, 1, 1, 1]))
    before = model.net.get_params()
    raw, labels = model.most_interfered(image(1, 0), torch.tensor([0]))
    assert raw.flatten().tolist() == [1, 0] and labels.tolist() == [1]
    assert torch.equal(before, model.net.get_params())
    net, (x, y) = model.net, model.buffer.get_all_data()
    old = F.cross_entropy(net(x), y, reduction="none")
    net.zero_grad()
    F.cross_entropy(net(image(1, 0)), torch.tensor([0])).backward()
    net.set_params(net.get_params() - 0.1 * net.get_grads())
    assert (F.cross_entropy(net(x), y, reduction="none") - old).argmax() == 2


def test_mir_does_not_choose_what_is_merely_known_worst():
    model = small(MIR, "--buffer_size", "2", "--minibatch_size", "1", "--batch_size", "1", "--subsample", "2")
    model.buffer.add_data(examples=image(0, 5, 5, 0), labels=torch.tensor([3, 1]))
    with torch.no_grad():
        model.net.classifier.weight[0, 1] = 2.0  # (0, 5) is taken for class 0, and the step does not change much of it
    raw, labels = model.most_interfered(image(1, 0), torch.tensor([0]))
    assert raw.flatten().tolist() == [5, 0] and labels.tolist() == [1]


def test_gss_scores_are_cosines_with_stored_gradients():
    model = small(GSS, "--buffer_size", "3", "--minibatch_size", "1", "--batch_size", "1")
    scores, _ = model.scores(image(1, 0), torch.tensor([0]))
    assert scores.item() == pytest.approx(0.1)
    model.buffer.add_data(examples=image(1, 0), labels=torch.tensor([0]), score=torch.tensor([0.1]))
    # The same example has cosine 1. With zero weights g = (p - onehot) x (x, 1): another label turns it, by cosine
    # (-.1875 - .1875 + .0625 + .0625) / .75 = -1/3; their mean has (1 - 1/3) / |d0 + d1| |d0| = 1 / sqrt(3).
    scores, of_batch = model.scores(image(1, 0, 1, 0), torch.tensor([0, 1]))
    assert scores.tolist() == pytest.approx([2, 2 / 3], rel=1e-4)
    assert of_batch.item() == pytest.approx(1 + 1 / math.sqrt(3), rel=1e-4)
    model.buffer.add_data(examples=image(1, 0), labels=torch.tensor([1]), score=torch.tensor([0.1]))
    scores, _ = model.scores(image(1, 0), torch.tensor([1]))
    assert scores.item() == pytest.approx(2, rel=1e-4)  # the most similar stored gradient counts


def offered(model, labels, scores, of_batch=0.5):
    """Labels in a buffer of two, scores 0.3 and 0.6, after a batch with given scores was offered."""
    model.buffer.empty()
    model.buffer.add_data(examples=image(1, 0, 0, 1), labels=torch.tensor([0, 1]), score=torch.tensor([0.3, 0.6]))
    model.scores = lambda *_: (torch.tensor(scores), torch.tensor(of_batch))
    model.select(image(*[5, 5] * len(labels)), torch.tensor(labels))
    return model.buffer.labels.clone()


def test_gss_replaces_by_score():
    torch.manual_seed(0)
    model = small(GSS, "--buffer_size", "2", "--minibatch_size", "1", "--batch_size", "1")
    taken = sum((offered(model, [3], [0.2]) == 3).float() for _ in range(1000)) / 1000
    # Row i is picked with C_i / .9 and gives way with C_i / (C_i + .2).
    expected = torch.tensor([0.3 / 0.9 * 0.3 / 0.5, 0.6 / 0.9 * 0.6 / 0.8])
    torch.testing.assert_close(taken, expected, rtol=0, atol=0.05)
    for _ in range(20):
        assert offered(model, [3], [0.2], of_batch=1.0).tolist() == [0, 1]  # a batch like what is stored
        # Both are taken for certain; where they pick one row the later of the two stays.
        assert offered(model, [2, 3], [0.0, 0.0]).tolist() in ([2, 3], [3, 2], [3, 1], [0, 3])


def test_gss_fills_the_room_first():
    model = small(GSS, "--buffer_size", "3", "--minibatch_size", "1", "--batch_size", "1", "--batch_num", "2")
    for i in range(3):
        model.observe(image(1, i, 2, i), torch.tensor([0, 1]), image(1, i, 2, i))
        assert len(model.buffer) == min(2 * i + 2, 3)
    assert model.buffer.score[0] == pytest.approx(0.1)


def test_hal_anchors_are_held_against_the_coming_step():
    exp = experiment("hal", "--buffer_size", "60", "--hal_lambda", "0.3", "--backbone", "mnistmlp", "--n_epochs", "1")
    model, batch = first_batch(exp, task=1)
    assert model.anchors.shape == (2, 1, 8, 8) and model.phi is None
    model.buffer.empty()
    net, lr, anchors = deepcopy(model.net), model.opt.param_groups[0]["lr"], model.anchors
    terms = model.meta_observe(*batch, 0)
    # By a plain loop: a step on the batch alone, then one from the same place with both gradients.
    weights = net.get_params()
    net.zero_grad()
    F.cross_entropy(net(batch[0]), batch[1]).backward()
    net.set_params(weights - lr * net.get_grads())
    later = net(anchors).detach()
    net.set_params(weights)
    term = 0.3 * (net(anchors) - later).square().mean()
    term.backward()
    torch.testing.assert_close(terms["anchors"], term, rtol=1e-4, atol=0)
    torch.testing.assert_close(model.net.get_params(), weights - lr * net.get_grads())
    net.set_params(weights)
    torch.testing.assert_close(model.phi, net.features(batch[0]).mean(0))


def test_hal_keeps_the_anchors_of_all_past_tasks():
    exp = experiment("hal", "--buffer_size", "60", "--backbone", "mnistmlp", "--n_epochs", "1")
    first = first_batch(exp, task=1)[0].anchors.clone()
    model, _ = first_batch(exp, task=2)
    assert model.anchors.shape == (4, 1, 8, 8) and torch.equal(model.anchors[:2], first)


def test_hal_beta_is_the_share_of_the_old_mean():
    exp = experiment("hal", "--buffer_size", "60", "--backbone", "mnistmlp", "--beta", "0.2")
    model, batch = first_batch(exp)
    model.buffer.empty()
    model.meta_observe(*batch, 0)
    model.buffer.empty()
    old, new = model.phi.clone(), model.net.features(batch[0]).detach().mean(0)
    model.meta_observe(*batch, 0)
    torch.testing.assert_close(model.phi, 0.2 * old + 0.8 * new)


def test_hal_anchors_climb_towards_forgetting():
    torch.manual_seed(0)
    net, tuned = Flat(2, 2), Flat(2, 2)
    net.set_params(torch.zeros(6))
    tuned.set_params(torch.tensor([1.0, 0, 0, 0, 0, 0]))  # z = (x_1, 0)
    args = argparse.Namespace(lr=0.1, gamma=0.5)
    labels, phi = torch.tensor([0, 1]), torch.tensor([2.0, 3.0])
    found = find_anchors(net, tuned, labels, phi, (1, 1, 2), args).flatten(1)
    # CE_tuned climbs against x_1 for label 0 and along it for label 1; the features are the image itself, so at the top
    # d CE / d x_1 = 2 gamma (x_1 - phi_1) with d CE / d x_1 = sigmoid(x_1) - [y = 0], and x_2 = phi_2.
    slope = torch.sigmoid(found[:, 0]) - torch.tensor([1.0, 0.0])
    torch.testing.assert_close(found[:, 0], phi[0] + slope, rtol=0, atol=1e-3)
    torch.testing.assert_close(found[:, 1], torch.tensor([3.0, 3.0]), rtol=0, atol=1e-3)


def test_gdumb_memory_is_balanced_and_the_fit_begins_afresh():
    exp = finished("gdumb", "--buffer_size", "30", "--fitting_epochs", "3", "--stop_after", "3")
    assert exp.model.sizes == [5] * 6 and exp.model.buffer.labels[:30].bincount().tolist() == [5] * 6
    model, learned = exp.model, exp.model.net.get_params()
    torch.manual_seed(1)
    model.fit()
    once = model.net.get_params()
    model.net.set_params(torch.zeros_like(once))
    torch.manual_seed(1)
    model.fit()
    assert torch.equal(once, model.net.get_params()) and not torch.equal(once, learned)


def test_gdumb_learning_rate():
    rates = [learning_rate(epoch, 1.0, 0.0) for epoch in range(8)]
    half = math.sqrt(0.5)
    assert rates == pytest.approx([0.1, 1, 1, 0.5, 1, (1 + half) / 2, 0.5, (1 - half) / 2])


def test_cutmix_shares_are_the_areas():
    torch.manual_seed(0)
    x = torch.zeros(2, 1, 10, 10)
    x[1] = 1
    for _ in range(20):
        mixed, other, share = cutmix(x, torch.tensor([0, 1]), 1.0)
        if other.tolist() == [1, 0]:
            assert mixed[0].mean().item() == pytest.approx(1 - share, abs=1e-6)
