"""A call of the trainer that is stopped or fails leaves everything as it was, and can be made again."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from palimpsest.models.utils.state import describe
from palimpsest.trainer import ContinualTrainer
from palimpsest.utils.errors import TrainingFailed, UserError
from palimpsest.utils.randomness import random_state
from palimpsest.utils.run.checkpoint import fingerprint
from palimpsest.utils.run.trainer_config import COUNTS_CLASSES
from tests.run.test_trainer import NEEDED, STRATEGIES


class Broken(Exception):
    pass


def loaders(n=3):
    """Loaders of two classes each, 64 examples, shuffled by a generator of their own."""
    rng, out = torch.Generator().manual_seed(1), []
    for task in range(n):
        y = torch.randint(2 * task, 2 * task + 2, (64,), generator=rng)
        x = torch.randn(64, 10, generator=rng) + 4 * nn.functional.one_hot(y, 10)
        own = torch.Generator().manual_seed(task)
        out.append(DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=own if task else None))
    return out


def trainer_of(strategy, **more):
    torch.manual_seed(0), np.random.seed(0), random.seed(0)  # noqa: NPY002
    net = nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12) if strategy != "hat" else nn.Identity(), nn.ReLU(),
                        nn.Dropout(0.2), nn.Linear(12, 6))  # fmt: skip
    config = {"optimizer": {"type": "adam", "lr": 0.01}}
    if strategy:
        config["continual_strategy"] = {strategy: NEEDED.get(strategy, {})}
    if strategy in (None, "ewc", "si"):
        config["replay"] = {"size": 20}
    return ContinualTrainer(net, config, setting="task-il", device="cpu", **more)


def state_of(trainer):
    """Everything that a trainer is, as one text."""
    method = trainer.method and describe(trainer.method)
    net = {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}
    modes = [(name, part.training) for name, part in trainer.net.named_modules()]
    learns = [p.requires_grad for p in trainer.net.parameters()]
    classes = trainer.tasks and trainer.tasks.classes
    rest = [trainer.step, trainer.task_names, trainer.R, vars(trainer.args), len(classes or ())]
    return fingerprint([method, net, modes, learns, rest, random_state()])


def stop_at(what, when):
    """A callback that raises after epoch `when`, with noise in the state before."""

    def callback(trainer, facts):
        if facts["epoch"] == when:
            torch.rand(3), np.random.rand(), random.random()  # noqa: NPY002
            raise what

    return callback


def learn(trainer, data, task):
    trainer.train_task(data[task], None, task, num_epochs=2)
    trainer.evaluate_all_tasks(data)


def try_in_vain(trainer, data, task, what, when):
    """A task that is stopped, after which all is as before."""
    before, orders = state_of(trainer), [d.generator.get_state() for d in data[1:]]
    with pytest.raises(what):
        trainer.train_task(data[task], None, num_epochs=2, callbacks=[stop_at(what, when)])
    assert state_of(trainer) == before
    assert all(torch.equal(d.generator.get_state(), order) for d, order in zip(data[1:], orders, strict=True))


@pytest.mark.parametrize("strategy", [None, *STRATEGIES])
def test_a_stopped_task_is_learned_again_here_and_by_who_loads_the_trainer(strategy, tmp_path):
    whole, data = trainer_of(strategy), loaders(2)
    learn(whole, data, 0)
    learn(whole, data, 1)
    parts, data = trainer_of(strategy), loaders(2)
    held = list(parts.net.parameters())
    try_in_vain(parts, data, 0, Broken, 0)
    learn(parts, data, 0)
    for _ in range(1 + (strategy is None)):
        try_in_vain(parts, data, 1, KeyboardInterrupt, 1)
    parts.save(tmp_path / "one.pt")
    learn(parts, data, 1)
    if strategy not in ("lucir", "rpc"):  # which put a classifier of their own in place of the last layer
        assert all(a is b for a, b in zip(held, parts.net.parameters(), strict=True))
    assert parts.R == whole.R and state_of(parts) == state_of(whole)
    again, data = trainer_of(strategy), loaders(2)
    first = 0 if strategy in COUNTS_CLASSES else 1
    try_in_vain(again, data, first, Broken, 0)  # what is loaded must not depend on what was tried before
    again.load(tmp_path / "one.pt")
    learn(again, data, 1)
    assert again.R == whole.R and state_of(again) == state_of(whole)


def breaking(loader, at, what=Broken):
    class Breaks:
        passes, batch_size = 0, 16

        def __len__(self):
            return len(loader)

        def __iter__(self):
            Breaks.passes += 1
            for i, batch in enumerate(loader):
                if Breaks.passes == at and i == 2:
                    raise what
                yield batch

    return Breaks()


def fails(*_):
    raise Broken


@pytest.mark.parametrize("strategy, task", [("ewc", 0), ("packnet", 1), ("hat", 1)])
@pytest.mark.parametrize(
    "call",
    [
        lambda t, data, k: t.train_task(breaking(data[k], 1 + (k == 0)), num_epochs=2),  # the labels are looked for
        lambda t, data, k: t.train_task(breaking(data[k], 2 + (k == 0)), num_epochs=2),
        lambda t, data, k: t.train_task(breaking(data[k], 3, KeyboardInterrupt), num_epochs=2),
        # In the pass of the Fisher information, or of the retraining.
        lambda t, data, k: t.train_task(breaking(data[k], 3 + (k == 0)), num_epochs=1 + (t.strategy == "hat")),
        lambda t, data, k: t.train_task(data[k], breaking(data[k], 2), num_epochs=2),
        lambda t, data, k: t.train_task(data[k], num_epochs=2, loss_fn=fails),
        lambda t, data, k: t.train_task(data[k], loss_fn=lambda logits, labels: logits.sum() * torch.nan),
        lambda t, data, k: t.train_task(data[k], [], num_epochs=2),
        lambda t, data, k: t.train_task(data[k], num_epochs=2, classes=(2 * k, 2 * k + 1)),
        lambda t, data, k: t.train_task(data[k], num_epochs=1, callbacks=[lambda t, _: t.train_task(data[k])]),
        lambda t, data, k: t.train_task(data[k], num_epochs=1, callbacks=[lambda t, _: t.save("half.pt")]),
    ],
)
def test_whatever_fails_leaves_nothing_behind(call, strategy, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer, data = trainer_of(strategy), loaders()
    if task:
        learn(trainer, data, 0)
    before = state_of(trainer)
    with pytest.raises((Broken, KeyboardInterrupt, UserError, TrainingFailed)):
        call(trainer, data, task)
    assert state_of(trainer) == before and not list(tmp_path.iterdir())
    learn(trainer, data, task)
    with pytest.raises(UserError, match="next one is"):
        trainer.train_task(data[task], None, task)


def test_an_interrupt_while_no_grad_is_left_does_not_switch_gradients_off():
    trainer, data = trainer_of("ewc"), loaders()

    def interrupted(logits, labels):
        torch.set_grad_enabled(False)  # what `no_grad` had not yet undone
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            trainer.train_task(data[0], loss_fn=interrupted)
        assert torch.is_grad_enabled()
        learn(trainer, data, 0)
    finally:
        torch.set_grad_enabled(True)


def test_a_network_that_no_checkpoint_can_keep_is_given_back_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.utils.spectral_norm(nn.Linear(10, 8)), nn.ReLU(), nn.Linear(8, 6))
    net.register_buffer("mean", torch.zeros(1).expand(4))  # of which all entries are one number
    calls = net.seen = {"n": [0]}
    net[1].register_forward_hook(lambda *_: calls["n"].__setitem__(0, calls["n"][0] + 1))
    trainer = ContinualTrainer(net, {"optimizer": {"lr": 0.1}}, device="cpu")
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(Broken):
        trainer.train_task(loaders(1)[0], num_epochs=1, callbacks=[stop_at(Broken, 0)])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items()) and calls == {"n": [0]}
    trainer.train_task(loaders(1)[0], num_epochs=1)
    assert calls["n"][0] > 0 and not torch.equal(net[2].weight, before["2.weight"])


def test_a_file_that_does_not_fit_leaves_the_trainer_as_before(tmp_path):
    data, other, trainer = loaders(), trainer_of("ewc"), trainer_of("ewc")
    other.net[4] = nn.Linear(12, 8)
    learn(other, data, 0)
    other.save(tmp_path / "other.pt")
    learn(trainer, data, 0)
    before = state_of(trainer)
    with pytest.raises(UserError, match="of another network"):
        trainer.load(tmp_path / "other.pt")
    assert state_of(trainer) == before
    learn(trainer, data, 1)


def test_a_stopped_evaluation_changes_nothing():
    trainer, data = trainer_of("lwf"), loaders()
    learn(trainer, data, 0)
    learn(trainer, data, 1)
    trainer.method.train()
    before, used = state_of(trainer), dict(trainer.tasks.test_loaders)
    with pytest.raises(KeyboardInterrupt):
        trainer.evaluate_all_tasks([data[0], breaking(data[1], 1, KeyboardInterrupt)])
    assert state_of(trainer) == before and trainer.tasks.test_loaders == used


def test_a_folder_that_cannot_be_written_is_found_before_training(tmp_path):
    (tmp_path / "file").touch()
    trainer, seen = trainer_of("ewc", checkpoint_dir=tmp_path / "file"), []
    with pytest.raises(UserError, match="cannot write"):
        trainer.train_task(loaders(1)[0], callbacks=[lambda *a: seen.append(a)])
    assert not seen and trainer.method is None


def test_a_generator_is_not_lost_by_a_stop():
    batches = list(loaders(1)[0])
    first, given = trainer_of("ewc"), iter(batches)
    with pytest.raises(Broken):
        first.train_task(given, num_epochs=2, callbacks=[stop_at(Broken, 0)])
    first.train_task(given, num_epochs=2)
    second = trainer_of("ewc")
    second.train_task(batches, num_epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True))
    failing = iter(breaking(batches, 1))
    with pytest.raises(Broken):
        first.train_task(failing)
    with pytest.raises(UserError, match="make a new one"):
        first.train_task(failing)
