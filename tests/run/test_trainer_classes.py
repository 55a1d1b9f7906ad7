"""The classes of a task may be any of the network's outputs, in any order of the tasks."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from palimpsest.datasets.utils.continual_dataset import MultiHeadLoss
from palimpsest.datasets.utils.task import ClassTask
from palimpsest.trainer import ContinualTrainer
from palimpsest.utils.errors import UserError
from palimpsest.utils.log import plots
from palimpsest.utils.run.trainer_config import COUNTS_CLASSES
from tests.run.test_trainer import NEEDED, STRATEGIES, X, Y, config

IN_ANY_ORDER = [strategy for strategy in STRATEGIES if strategy not in COUNTS_CLASSES]
SETS = [{0, 5}, {1, 2}, {4, 9}]


def loaders(sets, rename=lambda y: y, every=1):
    out = []
    for task, classes in enumerate(sets):
        rows = torch.isin(Y, torch.tensor(sorted(classes))).nonzero().squeeze(1)[::every]
        order = torch.Generator().manual_seed(task)
        out.append(DataLoader(TensorDataset(X[rows], rename(Y[rows])), 32, shuffle=True, generator=order))
    return out


def network(rows=None):
    """64-24-10; `rows`: the units of the last layer in this order."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    for p in net[2].parameters() if rows else ():
        p.data = p.data[rows]
    return net


def trained(net, data, strategy, setting, classes=None, **more):
    options = NEEDED.get(strategy, {}) | ({"n_fisher": 50} if strategy == "ewc" else {})
    trainer = ContinualTrainer(net, config(strategy, **options), setting=setting, device="cpu", **more)
    torch.manual_seed(1)
    for task, loader in enumerate(data):
        trainer.train_task(loader, classes=classes and classes[task])
        trainer.evaluate_all_tasks(data)
    return trainer


@pytest.mark.parametrize(
    "strategy, setting",
    [*((strategy, "task-il") for strategy in (None, *IN_ANY_ORDER)), (None, "class-il"), ("mas", "class-il")],
)
def test_any_classes_are_learned_as_renamed_ones(strategy, setting):
    """Outputs have no order: with labels and units renamed to 0, 1, 2, ... everything is the same."""
    renamed = [0, 5, 1, 2, 4, 9, 3, 7, 8, 6]  # the class that stands at each place
    where = torch.tensor(renamed).argsort()
    mine = trained(network(), loaders(SETS, every=3), strategy, setting)
    plain = trained(network(renamed), loaders(SETS, lambda y: where[y], every=3), strategy, setting)
    assert mine.tasks.classes == [frozenset({0, 5}), (1, 3), frozenset({4, 9})]
    assert plain.tasks.classes == [(0, 2), (2, 4), (4, 6)] and type(plain.tasks.tasks[0]) is ClassTask
    for scenario, R in plain.R.items():
        for row, expected in zip(mine.R[scenario], R, strict=True):
            assert row == pytest.approx(expected, abs=0.6), (scenario, row, expected)
    assert torch.allclose(mine.net[0].weight, plain.net[0].weight, atol=2e-3)
    assert torch.allclose(mine.net[2].weight[renamed], plain.net[2].weight, atol=2e-3)


def watch(monkeypatch, name):
    """What stands at the axes and in the legend of the figures that a function draws from now on."""
    texts, drawn = set(), getattr(plots, name)

    def look(*args, **more):
        figure = drawn(*args, **more)
        axes = figure.axes[0]
        legend = axes.get_legend().get_texts() if axes.get_legend() else ()
        texts.update(text.get_text() for text in (*axes.get_xticklabels(), *axes.get_yticklabels(), *legend))
        return figure

    monkeypatch.setattr(plots, name, look)
    return texts


@pytest.mark.parametrize("strategy", ["ewc", "packnet", "pnn"])
def test_class_sets_are_saved_and_reported(strategy, tmp_path, monkeypatch):
    whole = trained(network(), loaders(SETS), strategy, "task-il", checkpoint_dir=tmp_path)
    second = ContinualTrainer(network(), whole.config, setting="task-il", device="cpu")
    second.load(tmp_path / "experiment_task1.pt")
    second.evaluate_all_tasks(loaders(SETS))
    second.train_task(loaders(SETS)[2], task_name="swans")
    second.evaluate_all_tasks(loaders(SETS))
    assert second.R == whole.R and second.tasks.classes == whole.tasks.classes
    if strategy == "ewc":
        named = {name: watch(monkeypatch, name) for name in ("accuracy_curves", "accuracy_matrix")}
        text = second.report(tmp_path / "report", figures="png").read_text()
        assert all({"task 0", "task 1", "swans"} <= texts for texts in named.values()), named
        words = ("What each task lost", "each row one true class", "importance", "task-il")
        assert not [word for word in words if word not in text]
        assert len(list((tmp_path / "report" / "plots").glob("*.png"))) > 5


def test_scores_are_those_of_the_outputs():
    trainer, data = trained(network(), loaders(SETS), "er", "class-il"), loaders(SETS)
    with torch.no_grad():
        for task, classes in enumerate(SETS):
            x, y = data[task].dataset.tensors
            logits = trainer.net(x)
            for scenario, among in (("class-il", sorted(set().union(*SETS))), ("task-il", sorted(classes))):
                answers = torch.tensor(among)[logits[:, among].argmax(1)]
                assert trainer.R[scenario][-1][task] == pytest.approx(100 * float((answers == y).float().mean()))
    assert trainer.R["class-il"][-1][0] > 40


def test_classes_may_be_declared_and_ranges_out_of_order():
    sets = [{6, 7}, {0, 1}, {3, 8}]
    found = trained(network(), loaders(sets), None, "class-il")
    declared = trained(network(), loaders(sets), None, "class-il", classes=[(6, 8), range(0, 2), frozenset({8, 3})])
    assert found.tasks.classes == declared.tasks.classes == [(6, 8), (0, 2), frozenset({3, 8})]
    for trainer in (found, declared):
        R = trainer.matrix("task-il")
        assert R[0, 0] > 90 and R[1, 1] > 90 and trainer.matrix("class-il")[2, 2] > 40


@pytest.mark.parametrize("classes, words", [
    ([0, 5], r"classes is \[0, 5\]: expected a tuple \(first, one past the last\), or a set"),
    ((0, 5), "task 0 has label 5 besides its classes"),
    ({0, 1}, "task 0 has label 5 besides"),
    ({0.5}, "expected integers"),
    (set(), "the network's 10 outputs stand for labels 0 to 9"),
    ((0, 11), "the network's 10 outputs stand for labels 0 to 9"),
    ((3, 3), "the network's 10 outputs"),
    (5, "classes is 5: expected a tuple"),
])  # fmt: skip
def test_declared_classes_that_do_not_fit(classes, words):
    trainer = ContinualTrainer(network(), {}, device="cpu")
    with pytest.raises(UserError, match=words):
        trainer.train_task(loaders(SETS)[0], classes=classes)
    trainer.train_task(loaders(SETS)[0], classes={0, 5})


@pytest.mark.parametrize("setting", [None, "class-il", "task-il"])
def test_a_class_is_of_one_task(setting):
    trainer = ContinualTrainer(network(), {}, setting=setting, device="cpu")
    first, second, third = loaders([{0, 5}, {4, 5}, {1, 2}])
    trainer.train_task(first)
    for classes in (None, {4, 5}):
        with pytest.raises(UserError, match="task 1 has label 5, which an earlier task has.*'domain-il'"):
            trainer.train_task(second, classes=classes)
    trainer.train_task(third)
    with pytest.raises(UserError, match="has labels 1, 2, none of the task's labels 0, 5"):
        trainer.evaluate_all_tasks([third, first])


def test_domain_tasks_may_have_some_of_the_classes():
    trainer = trained(network(), loaders([{0, 5}, {4, 5}]), "lwf", "domain-il")
    assert set(trainer.R) == {"domain-il"} and trainer.matrix()[1, 1] > 60


def test_sequences_have_ranges_in_order():
    net = nn.Sequential(nn.Embedding(8, 8), nn.Linear(8, 8))
    x = torch.randint(0, 2, (40, 5))
    trainer = ContinualTrainer(net, {}, setting="class-il", device="cpu")
    with pytest.raises(UserError, match="labels of sequences go on where those of the task before end, at 0"):
        trainer.train_task([(x, x * 3)])
    trainer.train_task([(x, x)])
    trainer.train_task([(x, x + 2)])


def test_heads_of_any_classes():
    torch.manual_seed(0)
    logits, y = torch.randn(6, 5), torch.tensor([0, 3, 1, 4, 2, 3])
    loss = MultiHeadLoss([frozenset({0, 3}), frozenset({1, 4}), frozenset({2})], torch.device("cpu"))
    expected = 0.0
    for row, label in zip(logits, y, strict=True):
        own = next(s for s in ([0, 3], [1, 4], [2]) if label in s)
        expected -= torch.log_softmax(row[own], 0)[own.index(label)] / 6
    assert torch.allclose(loss(logits, y), expected)
    assert torch.equal(loss.others, MultiHeadLoss([(0, 5)], "cpu").others ^ loss.others)
    plain = MultiHeadLoss([(0, 2), (2, 5), frozenset()], "cpu").others
    assert torch.equal(plain, MultiHeadLoss([(0, 2), (2, 5)], "cpu").others) and plain[0].tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("strategy", COUNTS_CLASSES)
def test_who_counts_classes_asks_for_their_order(strategy):
    trainer = ContinualTrainer(network(), config(strategy, **NEEDED.get(strategy, {})), device="cpu")
    with pytest.raises(UserError, match=f"{strategy} counts the classes seen: number the labels 0, 1, 2"):
        trainer.train_task(loaders(SETS)[0])
    assert trainer.method is None
