"""A run is what ran: files of one NAME and other content are other runs, in folders, at resume, in comparisons."""

import re

import pytest
import yaml

import main as entry
from palimpsest.utils import identity, registry
from palimpsest.utils.registry import ROOT
from palimpsest.utils.run.finished import RECORD
from palimpsest.utils.study.comparison.groups import divide
from palimpsest.utils.study.records import read_runs
from tests.models.helpers import QUIET

pytestmark = pytest.mark.usefixtures("undrawn")
SHORT = ["--stop_after", "2", "--n_epochs", "1", "--label_perc", "0.1", "--no_tensorboard", *QUIET[1:]]
SGD = ["--model", "sgd", "--dataset", "seq-digits", *SHORT]


@pytest.fixture
def run(tmp_path, capsys):
    def call(*argv, status=0):
        assert entry.main([*argv, "--results_path", str(tmp_path / "results")]) == status
        said = capsys.readouterr()
        return said.out + said.err

    call.folders = lambda: sorted((tmp_path / "results").rglob("config.yaml"))
    return call


def copy_of(kind, name, path, *changes, more=""):
    """A file of ours in another place, with changes and more; not what Python remembers of it from before."""
    text = registry.find(kind, name).read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    path.write_text(text + more)
    registry.sys.modules.pop(f"palimpsest_dropin_{kind}_{path.stem}", None)
    return str(path)


def final(text):
    return re.search(r"acc +([\d.]+)", text)[1]


def test_a_changed_copy_is_another_run(run, tmp_path):
    weak = copy_of("model", "er", tmp_path / "er.py", ("step_on(", "step_on(0 * "))
    argv = ["--dataset", "seq-digits", *SHORT, "--buffer_size", "50", "--resume"]
    first = run("--model", weak, *argv)
    assert f"{tmp_path}/er.py" in run.folders()[0].read_text()
    second = run("--model", "er", *argv)
    assert "this run is finished" not in second and len(run.folders()) == 2 and final(first) != final(second)
    for model, said in ((weak, first), ("er", second)):
        again = run("--model", model, *argv)
        assert "this run is finished" in again and final(again) == final(said)
    groups, left_out = divide(read_runs(tmp_path / "results"), "acc", "class-il")
    assert sum(len(group.entries) for group in groups) == 1 and len(left_out) == 1, "never two programs in one ranking"


@pytest.mark.parametrize("kind", ["model", "dataset", "backbone"])
def test_a_file_that_was_edited_is_told(kind, run, tmp_path):
    chosen = {"model": "sgd", "dataset": "seq_digits", "backbone": "mnistmlp"}
    name, path = chosen[kind], tmp_path / f"{chosen[kind]}.py"
    chosen[kind] = copy_of(kind, name, path)
    argv = [word for option, value in chosen.items() for word in (f"--{option}", value)] + SHORT
    run(*argv, "--resume")
    before = identity.place(yaml.safe_load(run.folders()[0].read_text())["environment"][f"{kind}_file"])
    assert before == str(path)
    copy_of(kind, name, path, more="\n# edited\n")
    said = run(*argv, "--resume")
    assert "is of other files than" in said and "this run is finished" not in said and len(run.folders()) == 2
    for folder in run.folders():  # as if both had been stopped before their last lines
        (folder.parent / "result.yaml").unlink()
    copy_of(kind, name, path, more="\n# edited once more\n")
    said = run(*argv, "--resume")
    assert f"{kind}_file was {path}" in said and "another program goes on" in said and len(run.folders()) == 2
    assert any(identity.THEN in str(record.environment) for record in read_runs(tmp_path / "results"))
    assert "this run is finished" not in run(*argv, "--resume")  # it was not this file's from its beginning


@pytest.mark.parametrize(
    "line, helper",
    [
        ("import my_split_of_identity", "my_split_of_identity.py"),
        ("from my_split_of_identity import SPLIT", "my_split_of_identity.py"),  # a number knows no module
        ("def late():\n    import my_split_of_identity", "my_split_of_identity.py"),
        ("def late():\n    from my_house_of_identity.room import SPLIT", "my_house_of_identity/room.py"),
        ("from my_house_of_identity import SPLIT", "my_house_of_identity/inner.py"),  # by a relative import there
    ],
)
def test_what_a_file_imports_beside_it_counts(line, helper, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    house, said = tmp_path / "my_house_of_identity", set()
    house.mkdir()
    (house / "__init__.py").write_text("from .inner import SPLIT\n")
    (house / "inner.py").write_text("SPLIT = 3\n")
    for text in ("SPLIT = 2\n", "SPLIT = 5\n"):
        (tmp_path / helper).write_text(text)
        for name in [name for name in registry.sys.modules if "_of_identity" in name]:
            registry.sys.modules.pop(name)
        path = copy_of("model", "sgd", tmp_path / "sgd.py", ("class SGD", f"{line}\n\n\nclass SGD"))
        said.add(identity.of_class(registry.load("model", path)))
    assert len(said) == 2 and {identity.place(fact) for fact in said} == {str(tmp_path / "sgd.py")}


def test_two_kinds_of_file_of_one_name(tmp_path):
    model = registry.load("model", copy_of("model", "sgd", tmp_path / "sgd.py"))
    (tmp_path / "net").mkdir()
    text = registry.find("backbone", "mnistmlp").read_text().replace('NAME = "mnistmlp"', 'NAME = "sgd"')
    (tmp_path / "net" / "sgd.py").write_text(text)
    network = registry.load("backbone", str(tmp_path / "net" / "sgd.py"))
    assert registry.sys.modules[model.__module__].__file__ != registry.sys.modules[network.__module__].__file__
    assert identity.of_class(registry.load("model", "sgd")).startswith("models/sgd.py ")
    assert not (ROOT / "sgd.py").exists()


def test_the_newest_run_that_can_be_gone_on_with_goes_first(run):
    assert run(*SGD, "--savecheck", "3")
    (first,) = run.folders()
    (first.parent / "result.yaml").unlink()  # stopped at its end
    run(*SGD)  # a newer one, finished
    assert f"of {first.parent}" in run(*SGD, "--resume")
    assert (first.parent / "result.yaml").is_file() and len(run.folders()) == 2
    assert "this run is finished" in run(*SGD, "--resume") and len(run.folders()) == 2


def test_finished_seeds_are_not_repeated(run):
    argv = [*SGD, "--eval_epochs", "1", "--savecheck", "no", "--seeds", "0", "1"]
    plain = run(*argv)
    assert len(run.folders()) == 2 and not list(run.folders()[0].parent.glob("*.pt"))
    again = run(*argv, "--resume")
    assert again.count("this run is finished") == 2 and len(run.folders()) == 2
    assert plain.partition("2 seeds:")[2].splitlines()[:12] == again.partition("2 seeds:")[2].splitlines()[:12]
    more = run(*argv, "2", "--resume")
    assert more.count("this run is finished") == 2 and len(run.folders()) == 3


def test_a_record_that_was_altered_is_refused(run):
    run(*SGD)
    path = run.folders()[0].with_name(RECORD)
    other_score = re.sub(r'("class-il": \[)[\d.]+', r"\g<1>99.5", path.read_text())
    for text in ("", "[]", "{}", '{"history": 3}', "\x00", other_score):
        path.write_text(text)
        assert "move the folder away" in run(*SGD, "--resume", status=2).splitlines()[-1]


def test_loadcheck_takes_a_folder(run, tmp_path):
    run(*SGD, "--savecheck", "task")
    folder = run.folders()[0].parent
    said = run(*SGD, "--loadcheck", str(folder), "--inference_only")
    assert f"of {folder / 'checkpoint_task1.pt'}" in said
    said = run(*SGD, "--loadcheck", str(tmp_path), status=2)
    assert "is a folder without a checkpoint" in said
    run(*("3" if word == "2" else word for word in SGD), "--loadcheck", str(folder))
    stored = yaml.safe_load(max(run.folders(), key=lambda p: p.stat().st_mtime_ns).read_text())
    assert stored["environment"]["checkpoint"].startswith("checkpoint_task1.pt ")


def test_shared_code_is_what_decides_on_the_numbers(monkeypatch, tmp_path):
    """An edit of the loop is another program, one of a report or a table is not."""
    for name in ("utils/run/training.py", "utils/log/report.py", "utils/study/compare.py", "utils/check/sync.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(identity, "ROOT", tmp_path)
    codes = []
    for name in (None, "utils/log/report.py", "utils/study/compare.py", "utils/check/sync.py", "utils/run/training.py"):
        if name:
            (tmp_path / name).write_text("2")
        identity.shared_code.cache_clear()
        codes.append(identity.shared_code())
    identity.shared_code.cache_clear()
    assert len(set(codes[:4])) == 1 and codes[4] != codes[0]
