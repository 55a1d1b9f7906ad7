"""The trainer for one's own network: configuration, strategies, scores, and going on from a file."""

import runpy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from palimpsest.trainer import ContinualTrainer
from palimpsest.utils import registry
from palimpsest.utils.errors import UserError
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.trainer_config import COUNTS_CLASSES, NO_STRATEGY, names_of_strategies

SIZES = {"input_size": 64, "hidden_sizes": [32, 32], "output_size": 10}
STRATEGIES = names_of_strategies()
NEEDED = {  # options without which a method does not begin, or learns nothing in the little time that it has here
    "derpp_single": {"alpha": 0.5, "beta": 0.5}, "mer": {"beta": 0.5, "gamma": 0.5, "memory_size": 40},
    "ewc_on": {"lambda": 10, "gamma": 1.0}, "gdumb": {"fitting_epochs": 10}, "fdr": {"alpha": 0.5},
    "mas": {"lambda": 0.1}, "hat": {"lambda": 0.1}, "bic": {"bic_epochs": 20}, "lucir": {"fitting_epochs": 2},
    **dict.fromkeys(("acil", "ranpac", "gkeal", "ds_al"), {"n_features": 100}),
}  # fmt: skip
X, Y = (torch.tensor(part) for part in load_digits(return_X_y=True))
X = X.float() / 16


def digits(per_task=2, n_tasks=3):
    """(training, test) loaders of the first tasks of split digits."""
    sizes = [per_task] * n_tasks if isinstance(per_task, int) else per_task
    out, low = [], 0
    for size in sizes:
        rows = torch.isin(Y, torch.arange(low, low + size)).nonzero().squeeze(1)
        train, test = rows[: int(0.8 * len(rows))], rows[int(0.8 * len(rows)) :]
        order = torch.Generator().manual_seed(low)
        training = DataLoader(TensorDataset(X[train], Y[train]), 16, shuffle=True, generator=order)
        out.append((training, DataLoader(TensorDataset(X[test], Y[test]), 100)))
        low += size
    return out


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def config(strategy=None, replay=None, optimizer="sgd", lr=0.1, **options):
    out = {"optimizer": {"type": optimizer, "lr": lr}}
    if strategy:
        out["continual_strategy"] = {strategy: {"enabled": True, **options}}
    if replay:
        out["replay"] = replay
    return out


def trained(settings, loaders, n_epochs=1, **more):
    trainer = ContinualTrainer(model=network(), config=settings, device="cpu", **more)
    for task in range(len(loaders)):
        learn(trainer, loaders, task, n_epochs)
    return trainer


def learn(trainer, loaders, task, n_epochs):
    trainer.train_task(loaders[task][0], None, task, num_epochs=n_epochs)
    trainer.evaluate_all_tasks([test for _, test in loaders])


@pytest.mark.parametrize("strategy", [None, *STRATEGIES])
def test_each_strategy_learns_and_goes_on_from_a_file_bit_for_bit(strategy, tmp_path):
    more = NEEDED.get(strategy, {})
    n_epochs = 4 if strategy == "hat" else 1
    settings = config(strategy, {"size": 40} if strategy in (None, "ewc", "gem") else None, "adam", 0.01, **more)
    whole = trained(settings, digits(), n_epochs, setting="task-il", checkpoint_dir=tmp_path)
    R = whole.matrix("task-il")
    # These need more steps for a second task, or better features.
    least = 55 if strategy in ("er_ace", "gss", "hal", "ncm") else 75
    assert R.shape == (3, 3) and R[0, 0] > 95 and R.diagonal().mean() > least, R
    for scenario, scores in whole.R.items():
        x, y = digits()[1][1].dataset.tensors
        found = whole.predict(x.numpy(), 1 if scenario == "task-il" else None)
        assert found.classes == ([2, 3] if scenario == "task-il" else [*range(6)])
        assert 100 * float((torch.tensor(found.labels) == y).float().mean()) == pytest.approx(scores[-1][1], abs=1e-4)
    if strategy in ("pnn", "packnet", "hat"):
        assert whole.metrics()["task-il"]["forgetting"] == 0
    torch.manual_seed(123)  # whatever the new process drew before
    second = ContinualTrainer(model=network(5), config=settings, device="cpu", setting="task-il")
    second.load(tmp_path / "experiment_task1.pt")
    assert second.task_names == ["task 0", "task 1"]
    second.evaluate_all_tasks([test for _, test in digits()])
    learn(second, digits(), 2, n_epochs)
    assert second.R == whole.R
    mine, theirs = dict(second.method.named_parameters()), dict(whole.method.named_parameters())
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_replay_joins_any_loss_and_fills():
    plain, joined = (trained(config("ewc", replay), digits(), 2) for replay in (None, {"size": 60}))
    assert len(joined.method.replay_buffer) == 60
    assert set(joined.method.replay_buffer.task_labels.tolist()) == {0, 1, 2}
    assert joined.metrics()["class-il"]["acc"] > plain.metrics()["class-il"]["acc"] + 20


def test_epoch_facts_and_callbacks():
    (train, val), seen = digits(n_tasks=1)[0], []
    trainer = ContinualTrainer(model=network(), config=config("ewc"), device="cpu")
    out = trainer.train_task(train, val, 0, "zeros and ones", 2, callbacks=[lambda t, facts: seen.append((t, facts))])
    assert [facts["epoch"] for facts in out["epochs"]] == [0, 1] and out["task_name"] == "zeros and ones"
    assert set(out["epochs"][0]) == {"epoch", "loss", "ce", "val"}
    assert set(out["epochs"][0]["val"]) == {"class-il", "task-il"}
    assert seen == [(trainer, facts) for facts in out["epochs"]]
    assert out["epochs"][1]["loss"] < out["epochs"][0]["loss"]


def test_tasks_may_differ_in_their_number_of_classes():
    trainer = trained(config("lwf"), digits(per_task=[2, 3, 5]))
    assert trainer.tasks.classes == [(0, 2), (2, 5), (5, 10)]
    assert [task.high - task.low for task in trainer.tasks.heads(3)] == [2, 3, 5]


def test_a_task_that_has_every_label_makes_it_domain_il():
    torch.manual_seed(0)
    loaders = [DataLoader(TensorDataset(X[:500, torch.randperm(64)], Y[:500]), 16) for _ in range(2)]
    trainer = trained(config("si"), [(loader, loader) for loader in loaders], n_epochs=3)
    assert set(trainer.R) == {"domain-il"} and trainer.matrix()[1, 1] > 50


def test_token_sequences():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 8))
    loaders = []
    for shift in (1, 3):
        x = torch.randint(0, 8, (100, 5))
        loaders.append(DataLoader(TensorDataset(x, (x + shift) % 8), 20))
    for strategy in ("ewc", "gem", "si", "mas", "er"):
        trainer = ContinualTrainer(model=net, config=config(strategy), device="cpu")
        losses = [trainer.train_task(loader, None, t, num_epochs=2)["epochs"] for t, loader in enumerate(loaders)]
        assert losses[0][-1]["ce" if strategy != "gem" and strategy != "er" else "loss"] < 2.08


@pytest.mark.parametrize("settings, words", [
    ({"continual_strategy": {"ewc": {"enabled": True}, "si": {"enabled": True}}}, "enables ewc and si: enable one"),
    ({"continual_strategy": {"ewk": {}}}, "unknown key 'ewk'; did you mean ewc"),
    ({"continual_strategy": {"ewc": {"lamda": 1}}}, r"continual_strategy.ewc has an unknown key 'lamda'; did you"),
    ({"continual_strategy": {"ewc": {"lambda": -1}}}, "strategy.ewc.lambda .* -1: expected a number >= 0"),
    ({"continual_strategy": {"ewc": {"lambda": None}}}, "ewc.lambda .*nothing is given"),
    ({"continual_strategy": {"ewc": {"fisher": "mx"}}}, "ewc.fisher .*'mx': expected one of mc, exact"),
    ({"continual_strategy": {"ewc": {"enabled": "yes"}}}, "continual_strategy.ewc must be a dict with 'enabled'"),
    ({"continual_strategy": {"packnet": {}}, "replay": {"size": 5}}, "replay is not defined with packnet"),
    ({"continual_strategy": {"er": {}}, "replay": {"size": 5}}, "er, which keeps examples of its own"),
    ({"continual_strategy": {"pnn": {"input_size": 3}}}, "pnn needs all of input_size, hidden_sizes, output_size"),
    ({"continual_strategy": {"pnn": {**SIZES, "input_size": 3}}}, r"pnn has sizes \[3, 32, 32, 10\], the network's"),
    ({"optimizer": {"lr": 0}}, "optimizer.lr .*0: expected a number > 0"),
    ({"optimizer": 3}, "optimizer is int: expected a dict"),
    ({"scheduler": {"type": "step"}}, "scheduler.type"),
    ({"replay": {"size": 0}}, "replay.size .*0: expected an integer >= 1"),
    ({"replay": {"task_balanced": 3}}, "replay.task_balanced .*'3' is not a yes/no value"),
    ({"strategy": {}}, "config has an unknown key 'strategy'"),
])  # fmt: skip
def test_a_wrong_configuration_is_one_line_that_names_the_key(settings, words):
    with pytest.raises(UserError, match=words) as error:
        ContinualTrainer(model=network(), config=settings, device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("call, words", [
    (lambda t, d: t.train_task(d[0][0], None, 1), "task_id is 1: tasks are learned in order, the next one is 0"),
    (lambda t, d: t.train_task(d[0][0], None, 0, num_epochs=0), "num_epochs is 0"),
    (lambda t, d: t.train_task(DataLoader(TensorDataset(torch.rand(2, 64), torch.tensor([0, 12])))), "gives label 12:"),
    (lambda t, d: t.train_task([torch.rand(4, 64)], None, 0), "expected batches of .inputs, labels."),
    (lambda t, d: t.train_task([], None, 0), "gives no batch"),
    (lambda t, d: t.evaluate(d[0][1], 0), "task 0 was not learned yet"),
    (lambda t, d: t.save("x.pt"), "nothing to save"),
    (lambda t, d: t.report("folder"), "nothing to report"),
    (lambda t, d: t.load("nowhere.pt"), "nowhere.pt does not exist"),
])  # fmt: skip
def test_wrong_calls_are_one_line(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainer = ContinualTrainer(model=network(), config=config("ewc"), device="cpu")
    with pytest.raises(UserError, match=words):
        call(trainer, digits())
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_configuration_is_refused(tmp_path):
    trained(config("ewc"), digits()[:1], checkpoint_dir=tmp_path, experiment_name="a")
    other = ContinualTrainer(model=network(), config=config("ewc", **{"lambda": 5}), device="cpu")
    with pytest.raises(UserError, match="lambda None, this trainer has 5"):
        other.load(tmp_path / "a_task0.pt")
    with pytest.raises(UserError, match="config.optimizer.lr 0.1, this trainer has 0.2"):
        ContinualTrainer(model=network(), config=config("ewc", lr=0.2), device="cpu").load(tmp_path / "a_task0.pt")


@pytest.mark.parametrize("name", ["n_classes", "task_names", "R"])
@pytest.mark.parametrize("damage", ["absent", "of another kind"])
def test_a_file_of_another_trainer_is_refused(name, damage, tmp_path):
    trainer, path = trained(config("ewc"), digits(n_tasks=1)), tmp_path / "a.pt"
    trainer.save(path)
    state = checkpoint.load(path)
    state["trainer"].pop(name)
    if damage != "absent":
        state["trainer"][name] = "text"
    checkpoint.save(state | {"model": trainer.method}, path)
    fresh = ContinualTrainer(model=network(), config=config("ewc"), device="cpu")
    with pytest.raises(UserError, match=f"of another version of the trainer, without {name}: train again"):
        fresh.load(path)
    assert fresh.method is None


@pytest.mark.parametrize("setting", ["class-il", "task-il"])
def test_replay_of_old_classes_is_refused_where_a_loss_has_no_place_for_them(setting):
    settings = config("lwf", replay={"size": 20})
    trainer = ContinualTrainer(model=network(), config=settings, device="cpu", setting=setting)
    with pytest.raises(UserError, match="replay is not defined with lwf"):
        trainer.train_task(digits()[0][0])
    trainer = ContinualTrainer(model=network(), config=settings, device="cpu", setting="domain-il")
    for loader in [digits(per_task=10, n_tasks=1)[0][0]] * 2:  # one head, which is everybody's
        trainer.train_task(loader)
    assert len(trainer.method.replay_buffer) == 20


def test_the_global_generators_are_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ContinualTrainer(model=nn.Linear(2, 2), config=config("er", memory_size=5), device="cpu")
    after = torch.get_rng_state()
    torch.manual_seed(3)
    nn.Linear(2, 2)
    assert torch.equal(after, torch.get_rng_state()) and not torch.equal(before, after)


def test_the_examples_run(capsys):
    examples = runpy.run_path(str(registry.ROOT / "examples" / "strategies.py"))
    shown = {ContinualTrainer(network(), config, setting=s).strategy for s, config in examples["EXAMPLES"].values()}
    assert {"sgd", "ewc", "si", "mas", "lwf", "gem", "agem", "er", "pnn", "packnet", "icarl"} <= shown
    examples["main"]("ewc_replay", num_epochs=1)
    assert "class-il: average accuracy" in capsys.readouterr().out


def test_every_method_is_a_strategy_or_refused_with_the_reason():
    assert {*STRATEGIES} | NO_STRATEGY.keys() == {*registry.names("model")} and {*COUNTS_CLASSES} <= {*STRATEGIES}
    for name in NO_STRATEGY:
        with pytest.raises(UserError, match=f"continual_strategy.{name} is not for a Continual.*: {name} ") as error:
            ContinualTrainer(network(), config(name), device="cpu")
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="derpp_single needs alpha, beta"):
        ContinualTrainer(network(), config("derpp_single"), device="cpu")


def test_a_method_in_a_file_of_ones_own(tmp_path):
    text = (registry.ROOT / "models" / "er.py").read_text().replace('NAME = "er"', 'NAME = "mine"')
    (tmp_path / "mine.py").write_text(text)
    trainer = trained(config(str(tmp_path / "mine.py"), memory_size=20), digits(n_tasks=2))
    assert type(trainer.method).NAME == "mine" and trainer.args.buffer_size == 20
    assert trainer.matrix("task-il")[0, 0] > 80
