"""What an evaluation leaves behind, which is nothing, and what a task begins with and goes back to."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.datasets.utils.scores import TokenScore
from palimpsest.models.sgd import SGD
from palimpsest.utils.evaluation import evaluate, held_out_scores
from palimpsest.utils.log.analysis import costs
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from tests.models.helpers import experiment, finished, first_batch, image, small


def test_an_evaluation_leaves_modes_and_random_numbers_as_they_were(monkeypatch):
    exp = experiment("sgd")
    model = exp.model.train()
    model.part = nn.Dropout().eval()  # as a frozen teacher

    def predict(self, x, task):
        assert not model.training and not model.net.training
        return torch.rand(len(x), 10) + np.random.rand() + random.random()  # noqa: NPY002

    monkeypatch.setattr(type(model), "predict", predict)
    exp.dataset.all_test_loaders()
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    evaluate(model, exp.dataset, range(2), trained=1)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before[1:]  # noqa: NPY002
    assert model.training and model.net.training and not model.part.training


def test_the_held_out_loss_is_the_mean_over_examples():
    exp = experiment("sgd", "--holdout", "20", "--eval_batch_size", "7")
    model, _ = first_batch(exp)
    data = exp.dataset.held_out_loader.dataset
    assert len(data) % 7
    logits = model.net((data.data.float() / 255 - 0.5) / 0.5)[:, :2]
    found = held_out_scores(model, exp.dataset, 0)
    assert found["loss"] == pytest.approx(F.cross_entropy(logits, data.targets).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(100 * (logits.argmax(1) == data.targets).double().mean().item())


def test_tokens_of_the_first_class_are_scored_and_ignored_ones_are_not():
    score = TokenScore()
    score.add(torch.tensor([[[2.0, 0], [2.0, 0], [0.0, 2]]]), torch.tensor([[0, 1, -100]]))
    assert score.result()["accuracy"] == 50


# ---- the loop


def test_a_step_has_the_gradients_of_its_batch_alone():
    model = small(SGD)
    model.observe(image(1, 2), torch.tensor([0]), None)
    before = model.net.get_params()
    model.observe(image(-1, 3), torch.tensor([1]), None)
    net = small(SGD).net
    net.set_params(before)
    F.cross_entropy(net(image(-1, 3)), torch.tensor([1])).backward()
    torch.testing.assert_close(model.net.get_params(), before - 0.1 * net.get_grads())


def test_the_stream_is_over_once_after_its_last_task(monkeypatch):
    seen = []
    monkeypatch.setattr(SGD, "after_stream", lambda self, dataset: seen.append(self.current_task) or True)
    exp = finished("sgd", "--n_epochs", "1")
    assert seen == [5] and [e.task for e in exp.run.history] == [0, 1, 2, 3, 4, 4]
    assert not seen.clear() and finished("sgd", "--n_epochs", "1", "--stop_after", "2") and not seen


def test_a_schedule_begins_each_task_with_a_fresh_optimiser(monkeypatch):
    made, reset = [], SGD.reset_optimizers
    monkeypatch.setattr(SGD, "reset_optimizers", lambda self: made.append(reset(self)))
    finished("sgd", "--n_epochs", "1", "--stop_after", "2")
    assert not made
    exp = finished("sgd", "--n_epochs", "2", "--stop_after", "2", "--lr_scheduler", "cosine", "--optim_mom", "0.9")
    assert len(made) == 2 and exp.model.opt.param_groups[0]["initial_lr"] == exp.args.lr


def test_the_network_is_drawn_from_the_seed_whatever_the_data_drew(monkeypatch):
    config = resolve(["--model", "sgd", "--dataset", "seq-digits", "--disable_log"])
    first = build(config).model.net.get_params()
    read = config.dataset_class._prepare
    monkeypatch.setattr(config.dataset_class, "_prepare", lambda self: (torch.rand(3), read(self)))
    assert torch.equal(build(config).model.net.get_params(), first)


def test_memory_that_two_names_share_is_counted_once():
    model = experiment("sgd").model
    before, tensor = costs(model)["bytes_statistics"], torch.zeros(1000)
    model.register_buffer("one", tensor)
    model.register_buffer("two", tensor.view(10, 100))
    assert costs(model)["bytes_statistics"] == before + 4000
