"""What a task of classes, of tokens and of numbers says about outputs, by hand; the vision tasks are in
`test_vision_scores`.
"""

import math

import pytest
import torch

from palimpsest.datasets.utils.scores import IGNORED
from palimpsest.datasets.utils.task import ClassTask, RegressionTask, TokenTask
from tests.models.helpers import FakeStream, Flat

KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)  # from (.75, .25) to (.5, .5)
SURE = torch.tensor([math.log(3), 0.0])  # p = .75, .25
HEAD = dict(low=2, high=4, whole=False)


def test_a_network_answers_several_tasks_from_one_pass():
    net, x, calls = Flat(2, 4), torch.randn(3, 1, 1, 2), []
    net.register_forward_hook(lambda *_: calls.append(1))
    stream = FakeStream(2, 2)
    old, new = net.outputs(x, stream.heads(2))
    whole = net(x)
    assert torch.equal(old, whole[:, :2]) and torch.equal(new, whole[:, 2:]) and len(calls) == 2
    (pooled,) = net.outputs(x, stream.pools(2))
    assert torch.equal(pooled, whole)


def test_labels_of_a_task_count_over_the_whole_stream():
    task, labels = ClassTask(**HEAD), torch.tensor([2, 3])
    assert task.loss(SURE.expand(2, 2), labels).item() == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert task.log_likelihood(SURE, labels[1]).item() == pytest.approx(math.log(0.25))
    logits = torch.tensor([[9.0, 0, 1, 0], [9.0, 0, 0, 1]])
    alone, among_all = task.score(), task.score(last=task)
    for score in (alone, among_all):
        score.add(logits, labels)
    assert alone.result() == {"accuracy": 100} and among_all.result() == {"accuracy": 0}


def test_tokens_that_are_not_scored_count_nowhere():
    task, logits, labels = TokenTask(**HEAD), SURE.expand(1, 3, 2), torch.tensor([[IGNORED, 2, 3]])
    expected = math.log(0.75) + math.log(0.25)
    assert task.loss(logits, labels).item() == pytest.approx(-expected / 2)
    assert task.log_likelihood(logits[0], labels[0]).item() == pytest.approx(expected)
    assert task.sample(logits, labels)[0, 0] == IGNORED


@pytest.mark.parametrize("task, shape", [(ClassTask(**HEAD), (4000,)), (TokenTask(**HEAD), (40, 100))])
def test_classes_are_drawn_as_the_network_says_and_are_as_far_apart_as_their_divergence(task, shape):
    torch.manual_seed(0)
    logits = SURE.expand(*shape, 2)
    drawn = task.sample(logits, torch.full(shape, 3))
    assert drawn.shape == shape and (drawn == 2).float().mean().item() == pytest.approx(0.75, abs=0.03)
    flat, tau = torch.zeros_like(logits), 2.0
    assert task.distance(flat, tau * logits, tau).item() == pytest.approx(tau**2 * KL, rel=1e-4)
    assert task.distance(tau * logits, flat, tau, "student").item() == pytest.approx(tau**2 * KL, rel=1e-4)


def test_numbers_have_a_gaussian_likelihood():
    torch.manual_seed(0)
    task, outputs, labels = RegressionTask(), torch.full((4000, 2), 5.0), torch.tensor([[5.0, 2.0]]).expand(4000, 2)
    assert task.loss(outputs, labels).item() == task.distance(outputs, labels, tau=2.0).item() == 4.5
    assert task.log_likelihood(outputs[0], labels[0]).item() == -4.5
    drawn = task.sample(outputs, labels)
    assert drawn.mean().item() == pytest.approx(5, abs=0.05) and drawn.std().item() == pytest.approx(1, abs=0.05)
