"""Token streams: languages that are known exactly, text files, their scores and networks, what is remembered and what
forgotten.
"""

import csv
import math

import pytest
import torch
import torch.nn.functional as F

from palimpsest.backbone.gru import GRU
from palimpsest.backbone.transformer import Transformer
from palimpsest.backbone.utils.base import Backbone
from palimpsest.datasets.seq_language import N_TEST, N_TRAIN, VOCABULARY
from palimpsest.datasets.utils.scores import IGNORED, TokenLoss, TokenScore
from palimpsest.datasets.utils.task import Task, TokenTask
from palimpsest.models.sgd import SGD
from palimpsest.models.utils.fisher import fisher_diagonal
from palimpsest.utils import registry
from palimpsest.utils.check import cases
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import evaluate
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import execute
from tests.models.helpers import experiment, finished

MODELS = [m for m in registry.names("model") if {Task, TokenTask} & {*registry.load("model", m).TASKS}]
FISHER = {"ewc_on": ["--ewc_fisher", "empirical"]}  # its default asks for one label per example
pytestmark = pytest.mark.usefixtures("undrawn")


def language(*more, model="sgd"):
    return experiment(model, *more, dataset="seq-language")


class Bigrams(Backbone):
    """Logits from a table (V, C): what follows each token."""

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(table)

    def forward(self, x, returnt="out"):
        return self.table[x]


def knowing(exp, table):
    """A method around a table, as it is scored on the stream of `exp`."""
    exp.dataset.all_test_loaders()
    return SGD(Bigrams(table), exp.dataset.get_loss(), exp.args, exp.model.transform, exp.dataset)


# ---- the artificial languages


def test_every_grammar_is_one_cycle_and_no_two_are_alike():
    dataset = language("--n_tasks", "8").dataset
    grammars = [dataset.grammar(t) for t in range(8)]
    for following in grammars:
        token, seen = 0, []
        for _ in range(VOCABULARY):
            seen.append(token)
            token = int(following[token])
        assert token == 0 and sorted(seen) == list(range(VOCABULARY))
    assert len({tuple(g.tolist()) for g in grammars}) == 8
    assert torch.equal(grammars[2], language("--seed", "5").dataset.grammar(2))


def test_shift_and_mirror():
    dataset = language("--language_rules", "shift").dataset
    assert [dataset.grammar(t)[[0, 5, 31]].tolist() for t in range(3)] == [[1, 6, 0], [2, 7, 1], [0, 27, 1]]
    with pytest.raises(UserError, match="--n_tasks 4: --language_rules shift has 3"):
        language("--language_rules", "shift", "--n_tasks", "4")


@pytest.mark.parametrize("mode", ["tagged", "untagged", "multihead"])
def test_labels_are_what_the_grammar_says_and_begin_with_the_third_token(mode):
    dataset = language("--language_mode", mode).dataset
    for task in range(3):
        train, test = dataset.enter_task(task), dataset.test_loaders[task]
        assert (len(train.dataset), len(test.dataset)) == (N_TRAIN, N_TEST)
        x, y = train.dataset.data, train.dataset.targets
        assert x.shape == y.shape == (N_TRAIN, 16) and x.dtype == torch.uint8 and y.dtype == torch.int64
        first = 2 if mode == "tagged" else 1
        assert (y[:, :first] == IGNORED).all()
        offset = VOCABULARY * task if mode == "multihead" else 0
        assert torch.equal(y[:, first:], dataset.grammar(task)[x[:, first:].long()] + offset)
        assert (x[:, 0] == VOCABULARY + task).all() if mode == "tagged" else (x < VOCABULARY).all()
        inputs, labels, raw = next(iter(train))
        assert inputs.dtype == torch.int64 and torch.equal(inputs, raw.long()) and labels.shape == (32, 16)


def test_sequences_are_a_function_of_the_seed():
    a, b, c = (language("--seed", s).dataset.checksum for s in "001")
    assert a == b != c


def test_held_out_sequences_are_neither_trained_on_nor_lost():
    dataset = language("--holdout", "25").dataset
    rows = torch.cat([dataset.enter_task(1).dataset.rows, dataset.held_out_loader.dataset.rows])
    assert len(dataset.held_out_loader.dataset) == 128 and rows.sort().values.tolist() == list(range(N_TRAIN))


# ---- scores and losses


@pytest.mark.parametrize("mode", ["untagged", "multihead"])
def test_a_table_of_the_grammar_is_always_right_and_a_flat_one_has_the_perplexity_of_chance(mode):
    exp = language("--language_mode", mode)
    heads = 3 if mode == "multihead" else 1
    table = F.one_hot(exp.dataset.grammar(1), VOCABULARY).float().repeat(1, heads) * 50
    name = "task-il" if heads == 3 else "domain-il"
    scores, others = evaluate(knowing(exp, table), exp.dataset, range(3), trained=2)
    assert scores[name][1] == 100 and others["perplexity"][name][1] == pytest.approx(1)
    assert max(scores[name][0], scores[name][2]) < 20
    _, others = evaluate(knowing(exp, torch.zeros_like(table)), exp.dataset, [0], trained=2)
    assert others["perplexity"][name] == pytest.approx([32], rel=1e-5)
    if heads == 3:
        assert others["perplexity"]["class-il"] == pytest.approx([96], rel=1e-5)


def test_accuracy_and_perplexity_by_hand():
    logits = torch.tensor([[[2.0, 1, 0], [0, math.log(3), 0], [9, 0, 0]]])
    # Scored: token 1 with p = 3 / 5, right; token 2 with p = 1 / 5, wrong.
    labels, score, two = torch.tensor([[IGNORED, 1, IGNORED]]), TokenScore(), TokenScore(1, 3)
    score.add(logits, labels)
    score.add(logits, labels + (labels > 0))
    result = score.result()
    assert list(result) == ["accuracy", "perplexity"] and result["accuracy"] == 50
    assert result["perplexity"] == pytest.approx(math.exp(-(math.log(3 / 5) + math.log(1 / 5)) / 2))
    two.add(logits, labels)  # among outputs 1 and 2 alone p = 3 / 4
    assert two.result() == {"accuracy": 100, "perplexity": pytest.approx(4 / 3)}
    two.add(torch.tensor([[[0.0, 1e4, 0.0]]]), torch.tensor([[2]]))
    assert two.result()["perplexity"] == math.inf


def test_separate_heads_do_not_compete():
    exp = language("--language_mode", "multihead")
    assert exp.args.multi_head and exp.dataset.N_CLASSES == 96
    logits, labels = torch.randn(2, 16, 96), torch.randint(32, 64, (2, 16))
    labels[:, 0] = IGNORED
    expected = TokenLoss(F.cross_entropy)(logits[..., 32:64], torch.where(labels == IGNORED, labels, labels - 32))
    torch.testing.assert_close(exp.model.loss(logits, labels), expected)
    assert not language("--language_mode", "multihead", "--multi_head", "0").args.multi_head
    assert not language("--language_mode", "multihead", model="lwf").args.multi_head  # it has heads of its own


def test_perplexity_stands_beside_the_accuracy(tmp_path, capsys):
    argv = ["--model", "sgd", "--dataset", "seq-language", "--n_tasks", "2", "--n_epochs", "1", "--num_threads", "1"]
    run, _ = execute(resolve([*argv, "--results_path", str(tmp_path), "--exp_name", "x"]))
    with open(run.folder / "metrics.csv") as f:
        values = [float(row["value"]) for row in csv.DictReader(f) if row["metric"] == "perplexity"]
    assert len(values) == 3 and values[0] == run.history[0].others["perplexity"]["domain-il"][0] > 1
    assert "| perplexity " in capsys.readouterr().out
    assert b"perplexity_task02" in next(run.folder.glob("events.out.tfevents.*")).read_bytes()


# ---- text files


def write(folder, **files):
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def test_text_is_cut_into_sequences_by_position(tmp_path):
    write(tmp_path, b__1="ABCDEFGHIJ" * 3, b__2="0123456789", a__only="xy" * 50)
    dataset = experiment("sgd", "--text_path", str(tmp_path), "--sequence_length", "3", dataset="seq-text").dataset
    assert [f.name for f in dataset.folders] == ["a", "b"] and dataset.N_TASKS == 2 and dataset.SIZE == (3, 256)
    dataset.enter_task(1)
    train, test = dataset.train_loader.dataset, dataset.test_loaders[1].dataset
    # 40 bytes: 36 for training, of which 11 sequences have a byte that follows; 4 for the test.
    assert [bytes(x.tolist()).decode() for x in train.data[[0, 1, 10]]] == ["ABC", "DEF", "012"]
    assert bytes(train.targets[10].tolist()).decode() == "123" and len(train) == 11
    assert bytes(test.data[0].tolist()) == b"678" and bytes(test.targets[0].tolist()) == b"789" and len(test) == 1


def test_a_network_learns_a_text(tmp_path):
    write(tmp_path, a__1="abcdefgh" * 500, b__1="hgfedcba" * 500)
    exp = finished(
        "er", "--buffer_size", "32", "--text_path", str(tmp_path), "--sequence_length", "16", dataset="seq-text"
    )
    assert exp.run.matrices["domain-il"][1].min() > 90


def test_text_that_is_not_there_is_one_line(tmp_path):
    def refused(path, words, *more):
        with pytest.raises(UserError, match=words) as e:
            experiment("sgd", "--text_path", str(path), *more, dataset="seq-text")
        assert "\n" not in str(e.value) and str(path) in str(e.value)

    refused(tmp_path / "none", "is no folder")
    refused(tmp_path, "no sub-folder")
    (tmp_path / "a").mkdir()
    refused(tmp_path, "a holds no .txt file")
    write(tmp_path, a__1="x" * 649)
    refused(tmp_path, "a has 649 bytes: expected at least 650")
    write(tmp_path, a__1="x" * 650)
    experiment("sgd", "--text_path", str(tmp_path), dataset="seq-text")
    write(tmp_path, a__2="")
    refused(tmp_path, "2.txt is empty")
    with pytest.raises(UserError, match="--text_path is missing"):
        experiment("sgd", dataset="seq-text")


# ---- networks and methods


@pytest.mark.parametrize("net", [GRU(40, 32), Transformer((16, 40), 32)], ids=lambda n: n.NAME)
def test_networks_do_not_see_what_comes_later(net):
    x = torch.randint(0, 40, (3, 16))
    changed = x.clone()
    changed[:, 9] = (x[:, 9] + 1) % 40
    assert net(x).shape == (3, 16, 32) and net(x, "features").shape == (3, 16, 64)
    assert torch.equal(net(x), net(x.to(torch.uint8)))
    torch.testing.assert_close(net(x)[:, :9], net(changed)[:, :9])
    assert (net(x)[:, 9] != net(changed)[:, 9]).any() and (net(x)[:, 10] != net(changed)[:, 10]).any()
    torch.testing.assert_close(net(x)[:, :5], net(x[:, :5]))


def test_the_gru_is_that_of_torch():
    net, theirs = GRU(40, 32), torch.nn.GRU(32, 64, batch_first=True)
    assert sum(p.numel() for p in net.parameters()) == 22176
    mine = {"weight_ih_l0": net.input.weight, "weight_hh_l0": net.recurrent.weight,
            "bias_ih_l0": net.input.bias, "bias_hh_l0": net.recurrent.bias}  # fmt: skip
    theirs.load_state_dict(mine)
    x = torch.randint(0, 40, (3, 16))
    torch.testing.assert_close(net.features(x), theirs(net.embedding(x))[0])


@pytest.mark.parametrize("net", [GRU(8, 5, 4, 6), Transformer((4, 8), 5, 8, 1, 2)], ids=lambda n: n.NAME)
def test_fisher_information_of_sequences(net):
    x, y = torch.randint(0, 8, (5, 4)), torch.randint(0, 5, (5, 4))
    y[:, 0] = IGNORED
    total = 0
    for i in range(5):
        net.zero_grad()
        F.cross_entropy(net(x[i : i + 1])[0], y[i], reduction="sum").backward()
        total = total + net.get_grads() ** 2
    torch.testing.assert_close(fisher_diagonal(net, [(x, y)], "empirical"), total / 5)
    with pytest.raises(UserError, match="mc or empirical"):
        fisher_diagonal(net, [(x, y)], "exact")


@pytest.mark.parametrize("mode", ["tagged", "multihead"])
@pytest.mark.parametrize("model", MODELS)
def test_methods_run_on_tokens(model, mode):
    more = [*cases.required_options(model), *FISHER.get(model, [])]
    more += ["--language_mode", mode, "--n_tasks", "2", "--n_epochs", "1", "--debug_mode"]
    matrices = finished(model, *more, dataset="seq-language").run.matrices
    assert math.isfinite(matrices["task-il" if mode == "multihead" else "domain-il"][1, 1])


def test_the_methods_that_take_any_loss_are_among_them():
    assert {"sgd", "er", "derpp", "ewc_on", "joint", "ewc", "si", "mas", "gem", "agem"} <= {*MODELS}


# ---- what is remembered


def last_row(model, mode, *more):
    return finished(model, *more, "--language_mode", mode, dataset="seq-language").run.matrices["domain-il"][2] / 100


def test_languages_are_learned_forgotten_and_kept_by_replay():
    few = ["--n_epochs", "6"]
    naive, replay = last_row("sgd", "untagged", *few), last_row("er", "untagged", "--buffer_size", "60", *few)
    assert naive[0] < 0.6 and naive[2] > 0.99
    assert replay.min() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("mode, net", [("tagged", "gru"), ("untagged", "gru"), ("untagged", "transformer")])
def test_naive_replay_and_joint_training(mode, net):
    naive = last_row("sgd", mode, "--backbone", net)
    assert naive[0] < 0.6 and naive[2] > 0.99
    assert last_row("er", mode, "--buffer_size", "60", "--backbone", net).min() > 0.9
    assert last_row("joint", mode, "--backbone", net).min() > 0.99
