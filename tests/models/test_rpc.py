"""Replay with a fixed simplex classifier: its directions, its step, and what it keeps."""

import torch
import torch.nn.functional as F

from palimpsest.models.utils.polytope import Polytope
from tests.models.helpers import clones, experiment, finished, first_batch, learn_task

BUFFER = ["--buffer_size", "20", "--minibatch_size", "4", "--backbone", "mnistmlp", "--label_perc", "0.2"]


def test_directions_are_fixed_and_equally_far_apart():
    exp = finished("rpc", *BUFFER, "--n_epochs", "1", "--stop_after", "2")
    p = exp.model.net.classifier.vertices
    torch.testing.assert_close(p.T @ p, torch.eye(10) + (torch.eye(10) - 1) / 9)
    assert torch.equal(p, Polytope(2, 10).vertices)
    trained = {id(q) for group in exp.model.opt.param_groups for q in group["params"]}
    assert trained == {id(q) for q in exp.model.net.parameters()} and id(p) not in trained


def test_the_step_is_that_of_replay_over_all_classes():
    """The first task is trained alone; the second is joined by a draw from the first's examples."""
    exp = experiment("rpc", *BUFFER, "--optim_mom", "0", "--lr", "0.1")
    model, (x, y, raw) = first_batch(exp)
    expected = F.cross_entropy(model.net(x), y)
    torch.testing.assert_close(model.observe(x, y, raw), expected)
    assert model.buffer.is_empty()
    learn_task(exp, 0)
    model, (x, y, raw) = first_batch(exp, task=1)
    draws, original = [], model.draw
    model.draw = lambda: draws.append(original()) or draws[-1]
    before, named = clones(model.net.parameters()), list(model.net.parameters())
    loss = model.observe(x, y, raw)
    after = clones(named)
    with torch.no_grad():
        for parameter, value in zip(named, before, strict=True):
            parameter.copy_(value)
    ((replayed, replayed_labels),) = draws
    assert len(replayed) == 4 and set(replayed_labels.tolist()) <= {0, 1}
    net = model.net
    phi = net.features(torch.cat((x, replayed))).flatten(1)
    logits = F.linear(phi, net.classifier.inner.weight, net.classifier.inner.bias) @ net.classifier.vertices
    expected = F.cross_entropy(logits, torch.cat((y, replayed_labels)))
    torch.testing.assert_close(loss, expected)
    for parameter, value, gradient in zip(before, after, torch.autograd.grad(expected, named), strict=True):
        torch.testing.assert_close(value, parameter - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_the_buffer_is_balanced_and_random():
    exp = finished("rpc", *BUFFER, "--n_epochs", "1", "--stop_after", "3")
    examples, labels = exp.model.buffer.get_all_data()
    assert labels.bincount().tolist() == [3] * 6  # 20 rows for 6 classes
    own = exp.dataset.task_data(2)
    stored = {bytes(e.flatten().tolist()) for e in examples[labels == 4]}
    of_class = [bytes(e.flatten().tolist()) for e in own.data[own.targets == 4]]
    assert len(stored) == 3 and stored <= set(of_class) and stored != set(of_class[:3])
