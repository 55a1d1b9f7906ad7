"""A table of one's own: what its columns become, how its rows are cut into tasks, and what is refused."""

import json
from pathlib import Path

import pytest
import torch

import main
from palimpsest.datasets.utils.task import RegressionTask
from palimpsest.utils.errors import UserError
from tests.models.helpers import QUIET, experiment, finished

HEADER = "size,colour,place,kind"


def rows(n: int = 20) -> list[str]:
    """`n` rows of four kinds: size tells the kind; two colours, two places."""
    return [f"{10 * (i % 4) + i // 4},{'red' if i % 3 else 'blue'},{'ab'[i // 4 % 2]},k{i % 4}" for i in range(n)]


def write(path: Path, lines: list[str], header: str = HEADER) -> str:
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def stream(file: str, *more: str, label: str = "kind"):
    return experiment("sgd", "--csv", file, "--label", label, *more, dataset="seq-csv").dataset


@pytest.fixture
def table(tmp_path) -> str:
    return write(tmp_path / "a.csv", rows())


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_columns_become_numbers(tmp_path, separator):
    lines = [line.replace(",", separator) for line in rows()]
    file = write(tmp_path / "a.csv", ["", *lines], "\ufeff" + HEADER.replace(",", separator))
    dataset = stream(file)
    assert dataset.SIZE == (5,) and dataset.class_names == ["k0", "k1", "k2", "k3"] and dataset.N_TASKS == 2
    train, test = (torch.cat([dataset._parts[t][i].images for t in range(2)]) for i in (0, 1))
    assert len(train) == 16 and len(test) == 4  # one of five rows of each kind
    assert abs(train[:, 0].mean()) < 1e-6 and abs(train[:, 0].std(correction=0) - 1) < 1e-6
    assert [c["name"] for c in dataset.columns] == ["size", "colour", "place"]
    assert dataset.columns[1]["categories"] == ["blue", "red"] and dataset.columns[2]["categories"] == ["a", "b"]
    both = torch.cat((train, test))[:, 1:]
    assert (both.view(-1, 2, 2).sum(2) == 1).all()
    sizes = torch.cat((train, test))[:, 0] * dataset.columns[0]["std"] + dataset.columns[0]["mean"]
    assert sorted(sizes.round().int().tolist()) == sorted(int(line.split(separator)[0]) for line in lines)


def test_a_split_column_and_categories_that_training_does_not_have(tmp_path):
    lines = [f"{line},{'test' if i >= 16 else 'Train'}" for i, line in enumerate(rows())]
    lines[17] = "1,green,b,k1,test"
    dataset = stream(write(tmp_path / "a.csv", lines, HEADER + ",part"), "--split", "part")
    train, test = dataset._parts[0]
    assert len(train.images) == 8 and len(test.images) == 2
    assert test.images[1, 1:3].tolist() == [0, 0] and test.images[1, 4] == 1
    lines[18] += "ing"
    with pytest.raises(UserError, match="line 20, column part: 'testing', expected train or test"):
        stream(write(tmp_path / "a.csv", lines, HEADER + ",part"), "--split", "part")


@pytest.mark.parametrize(
    "options, tasks",
    [
        ((), [[0, 1], [2, 3]]),
        (("--classes_per_task", "1", "--class_order", "k3,k0,k1,k2"), [[3], [0], [1], [2]]),
        (("--init_cls", "3", "--increment", "1", "--class_order", "k3,k0,k1,k2"), [[3, 0, 1], [2]]),
        (("--increment", "3", "--custom_task_order", "1,0"), [[3], [0, 1, 2]]),
    ],
)
def test_classes_are_cut_into_tasks(table, options, tasks):
    dataset = stream(table, *options)
    assert dataset.class_order == sum(tasks, []) and dataset.SETTING == "class-il"
    about = dataset.columns[0]
    for t, classes in enumerate(tasks):
        data = dataset.task_data(t)
        kinds = [size // 10 for size in (data.data[:, 0] * about["std"] + about["mean"]).round().int().tolist()]
        assert [dataset.class_order[y] for y in data.targets.tolist()] == kinds and {*kinds} == {*classes}


def test_a_column_of_tasks(table):
    dataset = stream(table, "--task", "place")
    assert dataset.SETTING == "domain-il" and dataset.task_names == ["a", "b"] and dataset.SIZE == (3,)
    assert [len(dataset.task_data(t)) for t in range(2)] == [8, 4]  # of three and two rows of a kind one is for testing
    scores = finished("er", "--buffer_size", "16", "--csv", table, "--label", "kind", "--task", "place",
                      "--categories", "size", dataset="seq-csv").run  # fmt: skip
    assert scores.setting == "domain-il" and scores.matrices["domain-il"].shape == (2, 2)


def test_a_regression(tmp_path):
    lines = [f"{i % 7},{i % 5},{3 * (i % 7) - 2 * (i % 5) + 100}" for i in range(90)]
    file = write(tmp_path / "a.csv", lines, "a,b,y")
    run = finished("er", "--buffer_size", "60", "--csv", file, "--label", "y", "--regression", "--n_tasks", "3",
                   "--lr", "0.01", "--n_epochs", "30", dataset="seq-csv")  # fmt: skip
    dataset = run.dataset
    assert dataset.TASK is RegressionTask and dataset.N_TASKS == 3 and dataset.class_names == ["y"]
    labels = torch.cat([dataset.task_data(t).targets for t in range(3)])
    assert labels.shape == (72, 1) and abs(labels.mean()) < 1e-6 and abs(labels.std(correction=0) - 1) < 1e-6
    assert run.run.matrices["domain-il"][2].min() > 90
    assert stream(file, "--regression", label="y").N_TASKS == 5
    by_column = stream(file, "--regression", "--task", "b", label="y")
    assert by_column.task_names == ["0", "1", "2", "3", "4"] and by_column.SIZE == (1,)


def test_methods_of_classes_refuse_a_regression(tmp_path):
    file = write(tmp_path / "a.csv", [f"{i},{i}" for i in range(20)], "a,y")
    with pytest.raises(UserError, match="'icarl' is for classification but the tasks of 'seq-csv' are regression"):
        experiment("icarl", "--buffer_size", "9", "--csv", file, "--label", "y", "--regression", dataset="seq-csv")


@pytest.mark.usefixtures("undrawn")
def test_a_run_keeps_how_columns_were_made(table, tmp_path):
    argv = ["--model", "sgd", "--dataset", "seq-csv", "--csv", table, "--label", "kind", "--n_epochs", "1", *QUIET[1:]]
    assert main.main([*argv, "--results_path", str(tmp_path / "r"), "--device", "cpu"]) == 0
    (file,) = (tmp_path / "r").rglob("classes.json")
    facts = json.loads(file.read_text())
    assert facts["names"] == ["k0", "k1", "k2", "k3"] and facts["tasks"] == [[0, 1], [2, 3]]
    assert [*facts["input"]["columns"][0]] == ["name", "mean", "std"]


WRONG = {
    "gap": (["3,,a,k1"], (), "line 22, column colour: a missing value ('')"),
    "unknown": (["3,NA,a,k1"], (), "line 22, column colour: a missing value ('NA')"),
    "short": (["3,red,k1"], (), "line 22: 3 values, expected 4"),
    "infinite": (["inf,red,a,k1"], (), "line 22, column size: no finite number"),
    "alone": (["3,red,a,k9"], (), "line 22: the only row of k9"),
    "label": ([], ("--label", "kinds"), "--label kinds: "),
    "task": ([], ("--task", "when"), "--task when: "),
    "drop": ([], ("--drop_columns", "id"), "--drop_columns id: "),
    "category": ([], ("--categories", "id"), "has no column 'id'"),
    "text": ([], ("--regression",), "the label kind of"),
    "order": ([], ("--class_order", "k0,k1"), "class 'k2' is missing"),
    "parts": ([], ("--n_tasks", "3"), "--n_tasks cuts the table of a --regression"),
    "idle": ([], ("--task", "place", "--classes_per_task", "2"), "--classes_per_task: every task has all labels here"),
    "nothing": ([], ("--drop_columns", "size,colour,place"), "no column is left"),
    "permuted": ([], ("--permute_classes",), "--permute_classes has no meaning"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_one_line_before_anything_is_written(what, tmp_path, capsys):
    more, options, words = WRONG[what]
    argv = ["--model", "sgd", "--dataset", "seq-csv", "--csv", write(tmp_path / "a.csv", rows() + more), *options]
    argv += [] if "--label" in options else ["--label", "kind"]
    assert main.main([*argv, "--results_path", str(tmp_path / "results"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "results").exists()


def test_files_that_are_no_table(tmp_path):
    with pytest.raises(UserError, match="no rows"):
        stream(write(tmp_path / "a.csv", []))
    with pytest.raises(UserError, match="names the column 'size' twice"):
        stream(write(tmp_path / "a.csv", rows(), "size,size,place,kind"))
    with pytest.raises(UserError, match="cannot be read as a CSV file"):
        stream(str(tmp_path / "nowhere.csv"))
    (tmp_path / "a.csv").write_bytes(b"a,b\n\xff\xfe,1\n")
    with pytest.raises(UserError, match="cannot be read as a CSV file in UTF-8"):
        stream(str(tmp_path / "a.csv"))
    texts = [f"{line},a text of row {i}" for i, line in enumerate(rows(60))]
    file = write(tmp_path / "a.csv", texts, HEADER + ",a remark")
    with pytest.raises(UserError, match="column a remark has 48 different texts in 60 rows"):
        stream(file)
    assert stream(file, "--drop_columns", "a remark, place").SIZE == (3,)
