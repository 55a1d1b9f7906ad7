"""Every stored row against the runner that has to take it: names, options, values and the files' own shape."""

import pytest
import yaml

from utils import registry
from utils.run.best_args import FOLDER, list_rows, load_rows
from utils.run.config import resolve

FILES = sorted(FOLDER.glob("*.yaml"))
LITERATURE = ("sgd", "joint", "er", "derpp", "ewc_on", "lwf")


def scalars(value):
    """All values at the leaves."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from scalars(part)
    else:
        yield value


def is_numeric(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_number_is_read_as_text(path):
    leaves = list(scalars(yaml.safe_load(path.read_text(encoding="utf-8"))))
    assert leaves and not [v for v in leaves if isinstance(v, str) and is_numeric(v)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_open_with_a_comment_and_keep_to_the_line(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ") and max(map(len, lines)) <= 120


def test_every_file_belongs_to_a_method_and_every_row_to_a_dataset():
    assert {path.stem for path in FILES} <= {*registry.names("model")}
    assert {dataset for _, dataset, _ in list_rows()} <= {*registry.names("dataset")}


@pytest.mark.parametrize(("method", "dataset", "buffer_size"), list_rows())
def test_the_runner_takes_the_row_as_it_is(method, dataset, buffer_size):
    size = [] if buffer_size is None else ["--buffer_size", str(buffer_size)]
    config = resolve(["--model", method, "--dataset", dataset, "--load_best_args", *size])
    stored = config.row["args"]
    assert {name: getattr(config.args, name) for name in stored} == stored
    assert {config.origins[name] for name in stored if name != "buffer_size"} == {"best_args"}


def published_rows(method):
    """Dataset -> rows that have scores of the literature; all but those that were chosen here must have some."""
    rows = {dataset: [r for r in rows if "published" in r] for dataset, rows in load_rows(method).items()}
    left = [row for each in load_rows(method).values() for row in each if "published" not in row]
    assert all(row["source"].startswith("chosen here") for row in left)
    return {dataset: each for dataset, each in rows.items() if each}


@pytest.mark.parametrize("method", LITERATURE)
def test_published_scores_belong_to_the_setting_of_the_dataset(method):
    for dataset, rows in published_rows(method).items():
        setting = registry.load("dataset", dataset).SETTING
        for row in rows:
            assert setting in row["published"], dataset
            assert all(0 < scores["acc"] < 100 for scores in row["published"].values())


@pytest.mark.parametrize("method", LITERATURE)
def test_seq_cifar100_follows_the_protocol_of_xder(method):
    for row in load_rows(method).get("seq-cifar100", []):
        args = row["args"]
        assert (args["n_epochs"], args["batch_size"], args.get("minibatch_size", 32)) == (50, 32, 32)
        assert (args["lr_scheduler"], args["lr_milestones"]) == ("multisteplr", [35, 45])
        assert args["sched_multistep_lr_gamma"] == 0.2
        assert ("minibatch_size" in args) == ("buffer_size" in row)
        assert "X-DER protocol" in row["note"]


@pytest.mark.parametrize("method", ["er", "derpp"])
def test_larger_buffers_were_published_with_higher_scores(method):
    for rows in published_rows(method).values():
        rows = sorted(rows, key=lambda row: row["buffer_size"])
        for scenario in rows[0]["published"]:
            scores = [row["published"][scenario]["acc"] for row in rows]
            assert scores == sorted(scores)
