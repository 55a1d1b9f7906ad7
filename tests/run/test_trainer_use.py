"""What one does with a trainer: a seed, early stopping, a bar, predictions, exports."""

import json
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from palimpsest.trainer import ContinualTrainer
from palimpsest.utils.errors import UserError
from tests.run.test_trainer import config, digits, network, trained

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def taught():
    """strategy -> a trainer that has learned two tasks."""
    done = {}

    def make(strategy):
        if strategy not in done:
            settings = config(strategy)
            done[strategy] = trained(settings, digits(n_tasks=2), setting="task-il", seed=0, class_names=NAMES)
        return done[strategy]

    return make


def test_an_export_is_reloaded_by_others(taught, tmp_path):
    load_file = pytest.importorskip("safetensors.torch", reason="safetensors is not installed").load_file
    trainer, task, x = taught("packnet"), 1, digits(n_tasks=1)[0][1].dataset.tensors[0][:7]
    files = {path.name for path in trainer.export(tmp_path / "out", task)}
    expected = trainer.predict(x, task)
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert [row["name"] for row in facts["classes"]] == [NAMES[c] for c in expected.classes]
    assert facts["method"] == "packnet" and facts["input"]["size"] == [64]
    net = network(7)
    net.load_state_dict(load_file(tmp_path / "out" / "weights.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), trainer.net.parameters(), strict=True))
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    assert "model.onnx" in files, facts
    session = runtime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert np.allclose(session.run(None, {"inputs": x.numpy()})[0], expected.outputs, atol=1e-5)


def test_any_classes_sequences_and_numbers_are_predicted():
    sets = ContinualTrainer(network(), config(), class_names={5: "five"}, device="cpu")
    sets.train_task([(torch.rand(20, 64), torch.tensor([0, 5] * 10))])
    found = sets.predict(torch.rand(3, 64))
    assert found.classes == [0, 5] and found.names == ["0", "five"] and found.outputs.shape == (3, 2)
    tokens = ContinualTrainer(nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8)), config(), device="cpu")
    tokens.train_task([(torch.arange(40).view(8, 5) % 8, torch.arange(40).view(8, 5) % 8)], num_epochs=60)
    assert tokens.predict([[1, 2, 3]]).labels.tolist() == [[1, 2, 3]]
    assert tokens.predict([[1, 2, 3]]).probabilities.sum(-1) == pytest.approx(np.ones((1, 3)))


def test_a_file_brings_names_and_predictions(taught, tmp_path):
    taught("ewc").save(tmp_path / "a.pt")
    second = ContinualTrainer(network(1), config("ewc"), setting="task-il", seed=0, device="cpu")
    second.load(tmp_path / "a.pt")
    x = digits(n_tasks=1)[0][1].dataset.tensors[0]
    mine, theirs = second.predict(x), taught("ewc").predict(x)
    assert np.array_equal(mine.outputs, theirs.outputs) and mine.names == theirs.names == NAMES[:4]
    with pytest.raises(UserError, match="written with seed 0, this trainer has 1"):
        ContinualTrainer(network(), config("ewc"), setting="task-il", seed=1, device="cpu").load(tmp_path / "a.pt")


@pytest.mark.parametrize("call, words", [
    (lambda t, new: new.predict(torch.rand(1, 64)), "nothing to predict: no task was learned yet"),
    (lambda t, new: new.export("folder"), "nothing to export: no task was learned yet"),
    (lambda t, new: t("ewc").predict(torch.rand(64)), r"inputs of shape \(64,\): expected \(N, 64\)"),
    (lambda t, new: t("ewc").predict(torch.rand(2, 63)), r"the network fails on the loader's inputs \(1, 63\)"),
    (lambda t, new: t("ewc").predict("a.png"), "inputs are str: expected a tensor or an array"),
    (lambda t, new: t("ewc").predict(torch.rand(1, 64), 2), r"task 2 was not learned yet: 2 task\(s\) were"),
    (lambda t, new: t("packnet").predict(torch.rand(1, 64)), "packnet is told the task"),
    (lambda t, new: ContinualTrainer(network(), {}, seed=-1), "seed is -1: expected an integer of at least 0"),
    (lambda t, new: ContinualTrainer(network(), {}, class_names="ab"), "class_names is 'ab': expected a list"),
    (lambda t, new: ContinualTrainer(network(), {}, class_names={"a": 1}), "class_names has 'a': 1"),
    (lambda t, new: ContinualTrainer(network(), {"early_stopping": {"patience": 0}}), "early_stopping.patience"),
    (lambda t, new: ContinualTrainer(network(), {"early_stopping": {}}).train_task([]), "early_stopping looks at val_"),
])  # fmt: skip
def test_wrong_uses_are_one_line(call, words, taught):
    with pytest.raises(UserError, match=words) as error:
        call(taught, ContinualTrainer(network(), {}, device="cpu"))
    assert "\n" not in str(error.value)


def test_a_seed_decides_all_and_moves_nothing():
    def weights(seed, noise):
        torch.manual_seed(noise)
        x, y = digits(n_tasks=1)[0][0].dataset.tensors
        net = nn.Sequential(nn.Dropout(0.2), network())
        torch.manual_seed(noise)
        trainer = ContinualTrainer(net, config("er"), seed=seed, device="cpu")
        before = torch.get_rng_state()
        trainer.train_task(DataLoader(TensorDataset(x, y), 16, shuffle=True))
        trainer.train_task([(x, y + 2)])
        assert torch.equal(torch.get_rng_state(), before) == (seed is not None)
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    assert torch.equal(weights(3, 0), weights(3, 1)) and not torch.equal(weights(3, 0), weights(4, 0))
    assert not torch.equal(weights(None, 0), weights(None, 1))


def test_early_stopping_goes_back_to_the_best_epoch():
    x, y = torch.eye(4).repeat(5, 1), torch.arange(20) % 4
    seen = []
    net = nn.Linear(4, 4)
    settings = {"optimizer": {"lr": 0.5}, "early_stopping": {"patience": 2, "metric": "loss"}}
    trainer = ContinualTrainer(net, settings, device="cpu")

    def note(trainer, facts):
        seen.append(net.weight.detach().clone())

    # The validation labels are others: the longer one trains the worse it gets.
    epochs = trainer.train_task([(x, y)], [(x, (y + 1) % 4)], num_epochs=9, callbacks=[note])["epochs"]
    assert [facts["kept"] for facts in epochs] == [True, False, False] and len(seen) == 3
    assert epochs[0]["val_loss"] < epochs[1]["val_loss"] < epochs[2]["val_loss"]
    assert torch.equal(net.weight, seen[0]) and not torch.equal(seen[0], seen[2])
    with torch.no_grad():
        loss = nn.functional.cross_entropy(net(x), (y + 1) % 4)
    assert epochs[0]["val_loss"] == pytest.approx(float(loss))
    rising = ContinualTrainer(nn.Linear(4, 4), settings, device="cpu")
    assert len(rising.train_task([(x, y)], [(x, y)], num_epochs=9)["epochs"]) == 9


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_shown_where_someone_looks(progress, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    trainer = ContinualTrainer(nn.Linear(4, 4), {}, progress=progress, device="cpu")
    trainer.train_task([(torch.eye(4), torch.arange(4))] * 3, num_epochs=2)
    assert ("6/6" in capsys.readouterr().err) == progress


def test_diabetes_cut_in_two():
    x, y = (torch.tensor(part, dtype=torch.float32) for part in load_diabetes(return_X_y=True))
    x, y = x / x.std(0), (y - y.mean()) / y.std()
    old = x[:, 0] > 0  # age
    loaders = [DataLoader(TensorDataset(x[rows], y[rows]), 20) for rows in (~old, old)]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
    trainer = ContinualTrainer(net, config("er", lr=0.01), seed=0, device="cpu")
    for task, loader in enumerate(loaders):
        trainer.train_task(loader, task_id=task, num_epochs=20, loss_fn=nn.MSELoss())
        trainer.evaluate_all_tasks(loaders)
    assert trainer.tasks.setting == "domain-il" and trainer.matrix().diagonal().min() > 40
    found = trainer.predict(x)
    assert found.outputs.shape == (len(x), 1) and found.classes == [] and found.labels is found.outputs
    rest = ((found.outputs[:, 0] - y.numpy())[~old] ** 2).mean() / y[~old].var(correction=0).item()
    assert trainer.R["domain-il"][-1][0] == pytest.approx(100 * (1 - rest), abs=1e-2)
