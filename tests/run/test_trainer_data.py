"""What loaders and networks of others give to the trainer: read as it is meant, or refused in one line."""

import collections
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset

from palimpsest.datasets.utils.given import GivenLoader
from palimpsest.trainer import ContinualTrainer
from palimpsest.utils.errors import UserError
from tests.run.test_trainer import NEEDED, STRATEGIES

X, Y = (t[:60] for t in (torch.randn(60, 6, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2))
X = X + 4 * nn.functional.one_hot(Y, 6)


def batches(x=X, y=Y, form=lambda x, y: (x, y)):
    return [form(x[i : i + 20], y[i : i + 20]) for i in range(0, len(x), 20)]


def net(out=4, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, out))


def trainer_of(network=None, strategy=None, setting=None, lr=0.1, **options):
    config = {"optimizer": {"lr": lr}}
    if strategy:
        config["continual_strategy"] = {strategy: options}
    return ContinualTrainer(network or net(), config, setting=setting, device="cpu")


def weights_after(loader, network=None):
    trainer = trainer_of(network)
    torch.manual_seed(1)
    trainer.train_task(loader, num_epochs=2)
    assert trainer.evaluate(loader, 0)["class-il"] > 80
    return torch.cat([p.flatten() for p in trainer.net.parameters()])


@functools.cache
def plain_weights(backwards=False):
    return weights_after(batches(form=lambda x, y: (x.flip(0), y.flip(0)) if backwards else (x, y)))


@pytest.mark.parametrize("form", [
    lambda x, y: (x, y.to(torch.uint8)),
    lambda x, y: (x, y.float()),
    lambda x, y: (x, y.bool()),
    lambda x, y: (x, y[:, None].double()),
    lambda x, y: [x, y, "more", None],
    lambda x, y: (x.double(), y),
    lambda x, y: (x.numpy(), y.numpy()),
    lambda x, y: (x.numpy().astype(np.float64), y.numpy().astype(np.int32)),
    lambda x, y: (x.numpy()[::-1], y.numpy()[::-1].copy()[:, None]),
    lambda x, y: (x.tolist(), y.tolist()),
    lambda x, y: ([*x], [*y]),
    collections.namedtuple("Batch", "inputs labels"),
])  # fmt: skip
def test_other_forms_of_a_batch_train_the_same(form):
    inputs = form(X, Y)[0]
    backwards = isinstance(inputs, np.ndarray) and inputs.strides[0] < 0
    assert torch.equal(weights_after(batches(form=form)), plain_weights(backwards))


@pytest.mark.parametrize("strategy", ["ewc", "gem", "packnet"])
def test_iterators_are_gone_through_as_often_as_needed(strategy):
    def trained(make):
        trainer = trainer_of(strategy=strategy)
        torch.manual_seed(1)
        facts = trainer.train_task(make(), make(), num_epochs=2)["epochs"]
        assert len(facts) == 2 and all(max(fact["val"].values()) > 20 for fact in facts)
        loader = make()
        assert trainer.evaluate_all_tasks([loader]) == trainer.evaluate_all_tasks([loader])
        return torch.cat([p.flatten() for p in trainer.net.parameters()])

    assert torch.equal(trained(lambda: zip(X.split(20), Y.split(20), strict=True)), trained(batches))


class Answers(nn.Module):
    """A network that wraps its logits."""

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


class ModelOutput(collections.OrderedDict):
    """As Hugging Face has it: a dict, entries of which are attributes too."""

    def __getattr__(self, name):
        return self[name]


@pytest.mark.parametrize("wrap", [
    lambda f: ModelOutput(loss=f.sum(), logits=f, hidden_states=(f,)),
    lambda f: {"features": f * 2, "logits": f},
    lambda f: {"out": f},
    lambda f: (f, f * 3),
    lambda f: [f],
    lambda f: SimpleNamespace(logits=f, aux=None),
    lambda f: collections.namedtuple("Aux", "aux_logits logits")(f * 2, f),
])  # fmt: skip
def test_logits_in_other_outputs(wrap):
    assert torch.equal(weights_after(batches(), Answers(wrap)), plain_weights())


@pytest.mark.parametrize("strategy", ["lwf", "ewc", "derpp"])  # a copy, a gradient of each example, stored outputs
def test_a_strategy_on_another_output(strategy):
    trainer = trainer_of(Answers(lambda f: ModelOutput(loss=f.sum(), logits=f)), strategy)
    for task in range(2):
        trainer.train_task(batches(y=Y + 2 * task), num_epochs=2)
    assert trainer.evaluate(batches(y=Y + 2), 1)["task-il"] > 80


@pytest.mark.parametrize("wrap, words", [
    (lambda f: {"a": f, "b": f}, "returns dict with a, b: expected logits"),
    (lambda f: None, "returns NoneType"),
    (lambda f: "text", "returns str"),
    (lambda f: f.argmax(1), "of shape .20,. and torch.int64"),
    (lambda f: f[:, :, None, None], "expected logits .B, C. or .B, L, C."),
    (lambda f: f[:3], r"returns \(3, 4\) for 20 inputs"),
])  # fmt: skip
def test_outputs_that_are_no_logits(wrap, words):
    with pytest.raises(UserError, match=words) as error:
        trainer_of(Answers(wrap)).train_task(batches())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("loader, words", [
    (lambda: batches(form=lambda x, y: (x, y + 0.5)), "labels are float32 with fractions: .*'regression'"),
    (lambda: batches(form=lambda x, y: (x, nn.functional.one_hot(y, 4))), r"labels have shape \(20, 4\): expected"),
    (lambda: batches(form=lambda x, y: (x, nn.functional.one_hot(y, 4).float())), r"labels have shape \(20, 4\)"),
    (lambda: batches(form=lambda x, y: (x, y - 1)), "gives label -1: the network's 4 outputs"),
    (lambda: batches(form=lambda x, y: (x, y * 0 - 100)), "gives label -100"),
    (lambda: batches(form=lambda x, y: (x, 3 * y + 1)), "label 4: the network's 4 outputs stand for labels 0 to 3"),
    (lambda: batches(form=lambda x, y: (x, y[:19])), "20 inputs with 19 labels"),
    (lambda: batches(form=lambda x, y: (x, ["a"] * 20)), "labels are list: expected a tensor or an array of numbers"),
    (lambda: batches(form=lambda x, y: (x.numpy().astype(object), y)), "inputs are ndarray"),
    (lambda: batches(form=lambda x, y: ({"ids": x}, y)), "inputs are dict"),
    (lambda: batches(form=lambda x, y: {"pixels": x, "labels": y}), "gives dict with pixels, labels: expected batches"),
    (lambda: batches(form=lambda x, y: (x[:, :5], y)), r"network fails on the loader's inputs \(20, 5\)"),
    (lambda: batches(form=lambda x, y: (x.to(torch.uint8), y)), "network fails on the loader's inputs .* torch.uint8"),
    (lambda: [*batches(), (X[:0], Y[:0])], "a batch of no examples"),
    (lambda: TensorDataset(X, Y), "expected batches of them, as a DataLoader"),
    (lambda: (X, Y), "gives Tensor: expected batches"),
    (lambda: None, "the loader is a NoneType"),
    (lambda: {"train": batches()}, "the loader is a dict"),
    (lambda: [], "gives no batch"),
    (lambda: iter(()), "gives no batch"),
    (lambda: DataLoader(TensorDataset(X, Y), 64, drop_last=True), "gives no batch"),
])  # fmt: skip
def test_what_cannot_be_read_is_one_line(loader, words):
    for strategy in (None, "gem"):
        trainer = trainer_of(strategy=strategy)
        with pytest.raises(UserError, match=words) as error:
            trainer.train_task(loader())
        assert "\n" not in str(error.value)
        trainer.train_task(batches())
    if "network fails" in words or "no batch" in words:
        return
    with pytest.raises(UserError, match=words):  # the boundary is the same where a task is scored
        trainer.evaluate(loader(), 0)


@pytest.mark.parametrize("loader, words", [
    (lambda: [], "gives no example: there is no score"),
    (lambda: batches(y=Y + 2), "has labels 2, 3, none of the task's labels 0, 1: are the loaders in the order"),
])  # fmt: skip
def test_there_is_no_score_without_examples_of_the_task(loader, words):
    trainer = trainer_of()
    with pytest.raises(UserError, match=words):
        trainer.train_task(batches(), loader())
    trainer.train_task(batches())
    with pytest.raises(UserError, match=words):
        trainer.evaluate_all_tasks([loader()])
    assert trainer.R == {} and trainer.evaluate(batches(), 0)["class-il"] > 50


def test_tokens_need_a_label_that_is_scored():
    tokens = torch.randint(0, 4, (40, 5), generator=torch.Generator().manual_seed(0))
    trainer = trainer_of(nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 4)))
    trainer.train_task([(tokens.int(), tokens.int())], num_epochs=2)
    assert set(trainer.evaluate([(tokens, tokens)], 0)) == {"domain-il"}
    with pytest.raises(UserError, match="no label that is scored"):
        trainer.evaluate([(tokens, tokens * 0 - 100)], 0)
    with pytest.raises(UserError, match="label -1: .*or -100 where none is scored"):
        trainer.evaluate([(tokens, tokens - 1)], 0)
    with pytest.raises(UserError, match=r"expected \(B, L\), a class number per position"):
        trainer.evaluate([(tokens, tokens[:, 0])], 0)


@pytest.mark.parametrize("loss_fn, words", [
    (nn.CrossEntropyLoss(reduction="none"), r"loss_fn returns shape \(20,\)"),
    (lambda f, y: 1.0, "loss_fn returns float"),
])  # fmt: skip
def test_a_loss_is_one_number(loss_fn, words):
    with pytest.raises(UserError, match=words):
        trainer_of().train_task(batches(), loss_fn=loss_fn)


REGRESSION = ["ewc", "lwf", "er", "gem", "agem", "si", None]


@pytest.mark.parametrize("strategy, y, setting", [
    *((strategy, X[:, :2], None) for strategy in REGRESSION),
    ("ewc", X[:, 0], None), ("ewc", X[:, :1].double(), None),
    ("ewc", X[:, :1].numpy(), "regression"), ("ewc", X[:, :1].round().int(), "regression"),
])  # fmt: skip
def test_a_regression_is_scored_by_r2(strategy, y, setting):
    trainer = trainer_of(net(2 if y.shape[1:] == (2,) else 1), strategy, setting, lr=0.02)
    for _ in range(2):
        trainer.train_task(batches(y=y), num_epochs=30, loss_fn=nn.MSELoss() if setting is None else None)
        scores = trainer.evaluate_all_tasks([batches(y=y)] * 2)
    with torch.no_grad():
        targets = torch.as_tensor(y).double().reshape(60, -1)
        errors = (trainer.net(X) - targets).square().sum() / (targets - targets.mean(0)).square().sum()
    assert scores == {"domain-il": [pytest.approx(100 * (1 - float(errors)), abs=1e-3)] * 2} and errors < 0.5


def test_a_network_of_one_number_per_example():
    network = nn.Sequential(*net(1), nn.Flatten(0))
    trainer = trainer_of(network, "ewc", lr=0.02)
    trainer.train_task(batches(y=X[:, 0]), num_epochs=30)
    assert trainer.evaluate(batches(y=X[:, 0]), 0)["domain-il"] > 50


@pytest.mark.parametrize("strategy", sorted({*STRATEGIES} - {*REGRESSION, "agem_r", "sgd"}))
def test_a_strategy_without_regression_says_so(strategy):
    with pytest.raises(UserError, match=f"'{strategy}' is for classification"):
        trainer_of(net(1), strategy, "regression", **NEEDED.get(strategy, {})).train_task(batches(y=X[:, 0]))


def test_what_does_not_fit_a_regression():
    with pytest.raises(UserError, match=r"labels have shape \(20, 1\): expected \(20, 4\), a number per output"):
        trainer_of(setting="regression").train_task(batches())
    with pytest.raises(UserError, match="a regression has none"):
        trainer_of(net(1), setting="regression").train_task(batches(), classes=(0, 1))
    with pytest.raises(UserError, match="labels are nan or infinite"):
        trainer_of(net(1), setting="regression").train_task(batches(y=X[:, 0] / 0))
    with pytest.raises(UserError, match="setting is 'regress': expected one of"):
        trainer_of(setting="regress")


class Endless(IterableDataset):
    """Examples that come one by one, nobody knows how many."""

    def __iter__(self):
        return iter(zip(X[:40], Y[:40], strict=True))


@pytest.mark.parametrize("strategy", sorted({*STRATEGIES} - {"hat"}))
def test_a_loader_of_unknown_length(strategy):
    trainer = trainer_of(strategy=strategy, setting="task-il", **NEEDED.get(strategy, {}))
    trainer.train_task(DataLoader(Endless(), 16))
    assert trainer.step == 3


def test_a_strategy_that_needs_the_length_says_so():
    with pytest.raises(UserError, match="give a loader of known length"):
        trainer_of(strategy="hat", setting="task-il").train_task(DataLoader(Endless(), 16))


class Grouped(Dataset):
    """A data set whose items are batches."""

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return X[20 * i : 20 * i + 20], Y[20 * i : 20 * i + 20]


@pytest.mark.parametrize("loader", [
    lambda: batches(),
    lambda: iter(batches()),
    lambda: DataLoader(Grouped(), batch_size=None),
    lambda: DataLoader(TensorDataset(X, Y), batch_sampler=BatchSampler(range(60), 20, drop_last=False)),
    lambda: DataLoader(TensorDataset(X, Y), batch_size=20),
])  # fmt: skip
@pytest.mark.parametrize("classes", [None, (0, 2)])
@pytest.mark.parametrize("strategy", ["er", "derpp", "agem"])
def test_a_replayed_batch_is_as_large_as_the_loaders(strategy, classes, loader):
    network = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))  # which one example would not pass
    trainer = trainer_of(network, strategy)
    trainer.train_task(loader(), classes=classes)
    trainer.train_task(batches(y=Y + 2))
    assert trainer.args.minibatch_size == 20


def test_what_is_replayed_follows_each_loader_before_and_after_a_file(tmp_path):
    whole, second = (trainer_of(nn.Linear(6, 4), "er") for _ in range(2))
    second.net.load_state_dict(whole.net.state_dict())
    whole.train_task(batches())
    whole.save(tmp_path / "a.pt")
    second.load(tmp_path / "a.pt")
    for trainer in (whole, second):
        torch.manual_seed(4)
        trainer.train_task([(X[:30], Y[:30] + 2), (X[30:], Y[30:] + 2)])
    assert whole.args.minibatch_size == second.args.minibatch_size == 30
    assert torch.equal(whole.net.weight, second.net.weight)


def test_examples_are_chosen_and_joined():
    """What icarl, lucir and bic do to the loader of a task."""
    loader = GivenLoader(DataLoader(TensorDataset(X, torch.arange(60)), 20), lambda batch, look: tuple(batch))
    assert loader.chosen is None and len(loader) == 3 and len(loader.dataset) == 60
    loader.keep(torch.arange(50))
    loader.join(X[:7], torch.arange(100, 107))
    torch.manual_seed(0)
    inputs, labels, raw = (torch.cat(parts) for parts in zip(*loader.epoch(0), strict=True))
    assert sorted(labels.tolist()) == [*range(50), *range(100, 107)] and labels.tolist() != sorted(labels.tolist())
    assert torch.equal(inputs, raw) and torch.equal(inputs, X[torch.where(labels < 100, labels, labels - 100)])
    assert [len(y) for _, y, _ in loader.epoch(1)] == [20, 20, 17] and len(loader) == 3
    assert sum(len(y) for _, y, _ in loader) == 60  # a pass of a method's own is through the task's examples
