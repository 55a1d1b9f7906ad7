"""The runner that puts bugs into the code: what it calls caught, and what it takes for a mistake of its table."""

import subprocess

import pytest

from benchmarks import mutants
from benchmarks.mutants import Mutation, TableError, check, chosen, mutated, try_all


@pytest.fixture
def tree(tmp_path):
    """A program of one line with one test, in a repository of its own."""
    folder = tmp_path / "tree"
    (folder / "data").mkdir(parents=True)
    (folder / "double.py").write_text("def double(x):\n    return 2 * x\n")
    (folder / "test_double.py").write_text(
        "from double import double\n\ndef test_double():\n    assert double(2) == 4\n"
    )
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def bug(old: str, new: str, tests: str = "test_double.py") -> Mutation:
    return Mutation("double.py", f"{old} becomes {new}", old, new, tests)


def test_a_bug_is_caught_where_a_test_fails_and_is_taken_out_again(tree, monkeypatch, capfd):
    monkeypatch.setattr(mutants, "LIBRARIES", ["pytest"])
    seen, unseen, broken = bug("2 * x", "3 * x"), bug("2 * x", "x**2"), bug("return 2", "retrun 2")
    assert try_all(tree, [seen, unseen, broken, seen], jobs=1) == [unseen]
    lines = [line.split() for line in capfd.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line[0] in ("caught", "NOT")] == ["caught", "NOT", "caught", "caught"]
    assert "return 2 * x" in (tree / "double.py").read_text()


def test_tests_that_fail_anyway_prove_nothing(tree, monkeypatch):
    monkeypatch.setattr(mutants, "LIBRARIES", ["pytest"])
    (tree / "test_double.py").write_text("def test_double():\n    assert False\n")
    with pytest.raises(TableError, match="fail on the unchanged tree"):
        try_all(tree, [bug("2 * x", "3 * x")], jobs=1)


def test_a_text_must_be_there_exactly_once_and_its_tests_too(tree):
    assert mutated("a b", bug("a", "c")) == "c b"
    for text in ("b", "a a"):
        with pytest.raises(TableError, match=f"occurs {text.count('a')} times, expected once"):
            mutated(text, bug("a", "c"))
    assert not check(tree, [bug("2 * x", "3 * x")])
    assert len(check(tree, [bug("3 * x", "2 * x"), bug("2 * x", "3 * x", "test_none.py")])) == 2


def test_the_table_names_what_it_is_asked_for():
    table = mutants.read()
    assert len(table) >= 100 and len({str(m) for m in table}) == len(table)
    assert {m.file for m in chosen(table, "SI path")} == {"models/si.py"}
