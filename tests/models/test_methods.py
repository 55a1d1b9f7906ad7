"""The formulas of sgd, er, derpp, lwf, joint, hyper against numbers worked by hand or by a plain loop."""

import math

import pytest
import torch
import torch.nn.functional as F

from palimpsest.backbone.utils.batchnorm import batchnorm_mode
from palimpsest.datasets.utils.task import ClassTask, sum_of_distances
from palimpsest.models.er import ER
from palimpsest.models.lwf import LwF
from palimpsest.models.sgd import SGD
from tests.models.helpers import Flat, enter, experiment, finished, first_batch, image, small


def test_sgd_step_by_hand():
    model = small(SGD)
    loss = model.observe(image(1, 2), torch.tensor([0]), None)
    assert loss.item() == pytest.approx(math.log(4))
    # dL/dz = softmax - onehot = (-.75, .25, .25, .25); weights move by -lr * dz x^T, biases by -lr * dz.
    torch.testing.assert_close(model.net.classifier.weight[:2], torch.tensor([[0.075, 0.15], [-0.025, -0.05]]))
    torch.testing.assert_close(model.net.classifier.bias, torch.tensor([0.075, -0.025, -0.025, -0.025]))


def test_er_joins_the_batches():
    model = small(ER, "--buffer_size", "4", "--minibatch_size", "1", "--batch_size", "1")
    model.observe(image(1, 0), torch.tensor([0]), image(1, 0))
    weights = model.net.get_params()
    loss = model.observe(image(0, 1), torch.tensor([1]), image(0, 1))
    net = Flat(2, 4)
    net.set_params(weights)
    expected = F.cross_entropy(net(torch.cat([image(0, 1), image(1, 0)])), torch.tensor([1, 0]))
    torch.testing.assert_close(loss, expected)
    assert model.buffer[0].labels[:2].tolist() == [0, 1]


@pytest.mark.parametrize("method, more", [("er", []), ("derpp", ["--alpha", "1", "--beta", "1"])])
def test_stored_rows_are_pairs_of_the_stream(method, more):
    exp = finished(method, "--buffer_size", "60", *more, "--n_epochs", "1", "--stop_after", "2")
    split = exp.dataset._train
    truth = {bytes(x.flatten().tolist()): int(y) for x, y in zip(split.images, split.targets, strict=True)}
    buffer = exp.model.buffer[0] if method == "er" else exp.model.buffer
    examples, labels, *_ = buffer.get_all_data()
    assert all(truth[bytes(x.flatten().tolist())] == int(y) for x, y in zip(examples, labels, strict=True))


def test_derpp_replays_labels_and_logits_of_their_own_draws():
    exp = experiment("derpp", "--buffer_size", "60", "--alpha", "0.3", "--beta", "0.7")
    model, batch = first_batch(exp)
    model.meta_observe(*batch, 0)
    draws, original = [], model.buffer.get_data
    model.buffer.get_data = lambda *a, **k: draws.append(original(*a, **k)) or draws[-1]
    before = model.net.get_params()
    terms = model.meta_observe(*batch, 0)
    model.net.set_params(before)
    (x1, _, z1), (x2, y2, _) = draws
    torch.testing.assert_close(terms["logits"], 0.3 * F.mse_loss(model.net(x1), z1))
    torch.testing.assert_close(terms["replay"], 0.7 * F.cross_entropy(model.net(x2), y2))


@pytest.mark.parametrize("scale, factor", [("T2", 4), ("none", 1)])
def test_lwf_terms_by_hand(scale, factor):
    model = small(LwF, "--alpha", "2", "--softmax_temp", "2", "--kd_scale", scale, n_tasks=3)
    bias = model.net.classifier.bias
    with torch.no_grad():
        bias.copy_(torch.tensor([0.0, 0, 1, -1, 0, 0]))
    enter(model, model.dataset, 2)
    with torch.no_grad():
        bias[:2] = torch.tensor([2.0, 0])
        bias[4:] = torch.tensor([1.0, -1])
    before = bias.detach().clone()
    terms = model.observe(image(0, 0), torch.tensor([5]), None)
    assert terms["ce"].item() == pytest.approx(math.log(1 + math.exp(2)), rel=1e-5)
    # Only task 0 differs, and has a softmax of its own: teacher (1/2, 1/2), student softmax(1, 0) = (.731059, .268941).
    assert terms["kd"].item() == pytest.approx(factor * 2 * 0.120115, rel=1e-4)
    moved = (bias.detach() - before)[:2] / 0.1
    torch.testing.assert_close(moved, factor * torch.tensor([-0.231059, 0.231059]), rtol=1e-4, atol=0)
    assert all(p.grad is None for p in model.teacher.parameters())


@pytest.mark.parametrize("width", [2, 3])
def test_distances_of_many_heads_are_those_of_a_loop(width):
    # Two heads of 2 outputs and one of `width`, then what no head asks for.
    torch.manual_seed(0)
    net = Flat(3, 4 + width + 1).double()
    tasks = [ClassTask(0, 2, whole=False), ClassTask(2, 4, whole=False), ClassTask(4, 4 + width, whole=False)]
    x, taught = torch.randn(5, 1, 1, 3).double(), torch.randn(5, 5 + width).double()
    expected = sum(task.distance(task.part(net(x)), task.part(taught), 2.0) for task in tasks)
    expected.backward()
    gradients = net.get_grads()
    net.zero_grad()
    outputs = net.outputs(x, tasks)
    assert [part.shape[1] for part in outputs] == [2, 2, width]
    got = sum_of_distances(tasks, outputs, [task.part(taught) for task in tasks], 2.0)
    got.backward()
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(net.get_grads(), gradients)


def test_outputs_of_tasks_that_are_no_neighbours():
    net, x = Flat(3, 6), torch.randn(2, 1, 1, 3)
    tasks = [ClassTask(4, 6, whole=False), ClassTask(0, 2, whole=False)]
    for got, task in zip(net.outputs(x, tasks), tasks, strict=True):
        assert torch.equal(got, net(x)[:, task.low : task.high])


def test_lwf_without_distillation_is_multi_head_fine_tuning():
    a = finished("lwf", "--alpha", "0", "--stop_after", "2", "--n_epochs", "2")
    assert all(set(terms) == {"loss", "ce"} for _, terms, _ in a.run.losses)
    untouched = a.model.net.classifier.weight[4:]
    fresh = experiment("lwf", "--alpha", "0").model.net.classifier.weight[4:]
    assert torch.equal(untouched, fresh)  # heads of tasks that were not trained have no gradient


def test_joint_trains_once_on_everything():
    exp = finished("joint", "--n_epochs", "2")
    assert len(exp.dataset.train_loader.dataset) == 1347
    matrix = exp.run.matrices["class-il"]
    assert torch.tensor(matrix[:4]).isnan().all() and not torch.tensor(matrix[4]).isnan().any()


def test_batchnorm_mode_leaves_statistics_and_modes_alone():
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2))
    x = torch.randn(8, 2) * 3 + 1
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with batchnorm_mode(net, batch_statistics=True):
        torch.testing.assert_close(net(x).mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    with batchnorm_mode(net, batch_statistics=False):
        torch.testing.assert_close(net(x), x / math.sqrt(1 + 1e-5))
    assert net[0].training and net[0].track_running_stats
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_hyper_fine_tuning_has_no_distillation():
    exp = finished("hyper", "--hyper_w", "0", "--hyper_embedding", "32", "--stop_after", "2", "--n_epochs", "1")
    assert all("kd" not in terms for _, terms, _ in exp.run.losses)
    assert [e.shape for e in exp.model.embeddings] == [(32,), (32,)]
