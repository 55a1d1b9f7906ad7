"""Damaged and malicious configurations and results: each is one line and status 2, and nothing is written."""

import copy
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from palimpsest.utils.config_file import CHECKSUM
from tests import test_hostile
from tests.test_hostile import DAMAGE, contents, only_run, refused

whole = test_hostile.whole  # a fixture


def with_checksum(text: str) -> bytes:
    return f"{text}{CHECKSUM}{hashlib.sha256(text.encode()).hexdigest()}\n".encode()


def option(name: str, value) -> Callable[[dict], str]:
    """The configuration with one option changed."""
    return lambda facts: yaml.safe_dump(facts | {"options": facts["options"] | {name: value}})


def more(text: str) -> Callable[[dict], str]:
    return lambda facts: yaml.safe_dump(facts) + text


def without(section: str, name: str | None = None) -> Callable[[dict], str]:
    def change(facts: dict) -> str:
        facts = copy.deepcopy(facts)
        facts.pop(section) if name is None else facts[section].pop(name)
        return yaml.safe_dump(facts)

    return change


def aliases() -> str:
    """Each line merges the one before it nine times."""
    lines = [f"  a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)]
    return "bomb:\n  a0: &a0 {x: 1}\n" + "".join(lines)


CONFIGURATIONS = {
    "aliases": more(aliases()),
    "a python object": more("bomb: !!python/object/apply:os.mkdir [trace]\n"),
    "a key that is a list": more("? [1, 2]\n: 3\n"),
    "a date that is none": more("day: 2024-13-45\n"),
    "a number that is none": more("data: !!int x\n"),
    "nested deeply": more("bomb: " + "[" * 5000 + "]" * 5000 + "\n"),
    "very large": more("bomb: " + "x" * (1 << 21) + "\n"),
    "control characters": more("bomb: \x01\x02\n"),
    "only a list": lambda facts: "[1, 2]\n",
    "nothing": lambda facts: "",
    "no options": without("options"),
    "origins that are a list": lambda facts: yaml.safe_dump(facts | {"origins": [1]}),
    "environment that is deep": lambda facts: yaml.safe_dump(facts | {"environment": {"a": {"b": 1}}}),
    "no model": without("options", "model"),
    "no learning rate": without("options", "lr"),
    "a file as model": option("model", "../../evil.py"),
    "a model of two lines": option("model", "er\nTraceback"),
    "a file as dataset": option("dataset", "../../evil.py"),
    "a file as backbone": option("backbone", "evil.py"),
    "a number as model": option("model", 5),
    "a method that does not fit": option("model", "pah"),
    "an unknown option of two lines": option("evil\nTraceback", 1),
    "an option of two lines that is a dict": option("lr\nTraceback", {"a": 1}),
    "an option that is a list of lists": option("lr_milestones", [[1]]),
    "a list for a number": option("lr", [0.1, 0.2]),
    "text for a number": option("lr", "fast\nTraceback"),
    "yes for a count": option("batch_size", True),
    "yes for a number": option("lr", True),
    "text for yes or no": option("joint", "perhaps"),
    "nothing for a number": option("eval_batch_size", None),
    "a place for a name": option("exp_name", "../../x"),
    "a choice that is none": option("optimizer", "evil\nTraceback"),
    "not a number": option("lr", float("nan")),
    "a huge number": lambda facts: yaml.safe_dump(facts).replace("  seed: 0", "  seed: 0x" + "f" * 20000),
    "tasks that are not there": option("stop_after", 99),
    "a checkpoint that is none": option("loadcheck", "/etc/passwd"),
    "an order of classes that is none": option("custom_class_order", [0, 0, "x"]),
}


def rerun_refused(capsys, tmp_path: Path, whole: Path, data: bytes) -> str:
    folder = tmp_path / "run"
    shutil.copytree(only_run(whole), folder)
    (folder / "config.yaml").write_bytes(data)
    before = contents(tmp_path)
    err = refused(capsys, "--rerun", str(folder), "--results_path", str(tmp_path / "results"))
    assert contents(tmp_path) == before and not (tmp_path / "results").exists()
    return err


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "longer", "empty"])
def test_a_damaged_configuration_is_one_line_and_nothing_written(capsys, tmp_path, whole, damage):
    data = (only_run(whole) / "config.yaml").read_bytes()
    rerun_refused(capsys, tmp_path, whole, DAMAGE[damage](data))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_that_says_something_wrong_is_one_line_and_nothing_written(
    capsys, tmp_path, whole, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    facts = yaml.safe_load((only_run(whole) / "config.yaml").read_bytes())
    rerun_refused(capsys, tmp_path, whole, with_checksum(CONFIGURATIONS[name](facts)))


@pytest.mark.parametrize("name, text", [
    ("metrics.csv", "step,value\n1\n"),
    ("metrics.csv", "step,value\n1,2,3,4\n"),
    ("metrics.csv", "a\0b\n\""),
    ("result.yaml", "? [1]\n: 2\n"),
    ("result.yaml", "1: 2\n"),
    ("result.yaml", aliases()),
])  # fmt: skip
def test_results_that_are_none_are_found_before_a_run_is_repeated(capsys, tmp_path, whole, name, text):
    folder = tmp_path / "run"
    shutil.copytree(only_run(whole), folder)
    (folder / name).write_text(text)
    assert name in refused(capsys, "--rerun", str(folder), "--results_path", str(tmp_path / "results"))
    assert not (tmp_path / "results").exists()
