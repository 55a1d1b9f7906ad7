"""What a dropped-in file sets, returns and imports: what is wrong is one line that names it, and status 2."""

import re
import sys

import pytest
import torch

import main as entry
from palimpsest.models.utils.contract import loss_problem
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import train

METHOD = '''"""A method."""
import torch
from models.utils.continual_model import ContinualModel
{top}

class Mine(ContinualModel):
    NAME = "{name}"
    COMPATIBILITY = ["class-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        {init}

    def observe(self, inputs, labels, not_aug_inputs):
        loss = self.step_on(self.loss(self.net(inputs), labels))
        return {returned}

    def end_task(self, dataset):
        {end}

    {more}
'''
OPTIONS = ["--dataset", "seq-digits", "--n_epochs", "1", "--lr", "0.1", "--label_perc", "0.1", "--stop_after", "2"]
OPTIONS += ["--backbone", "mnistmlp", "--disable_log", "--non_verbose", "--num_threads", "1"]


@pytest.fixture
def method(tmp_path):
    """Writes a method file; returns its command line."""

    def write(name="mine", top="", init="pass", returned="loss", end="pass", more=""):
        text = METHOD.format(name=name, top=top, init=init, returned=returned, end=end, more=more)
        (tmp_path / f"{name}.py").write_text(text)
        return ["--model", str(tmp_path / f"{name}.py"), *OPTIONS]

    return write


def refused(capsys, argv) -> str:
    status, err = entry.main(argv), capsys.readouterr().err
    assert status == 2 and err.startswith("main.py: error: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("name", ["predict", "observe", "train", "parameters", "buffers", "type", "_origin"])
@pytest.mark.parametrize("place", ["init", "end"])
def test_an_attribute_that_hides_what_the_runner_calls_is_refused_with_its_line(capsys, method, name, place):
    err = refused(capsys, method(**{place: f"self.{name} = []"}))
    assert f"mine sets self.{name}," in err and re.search(r"mine\.py, line \d+:", err)


def test_counts_of_ones_own_change_nothing_for_the_runner(method):
    names, ends = ["current_task", "task_iteration", "epoch_iteration", "n_seen_classes", "n_past_classes"], []
    names += ["n_classes_current_task", "n_remaining_classes", "memory"]
    own = ["; ".join(f"self.{name} {change}" for name in names) for change in ("= 7", "+= 1")]
    for i, (init, end) in enumerate([("pass", "pass"), own]):
        exp = build(resolve(method(f"mine{i}", init=init, end=end)))
        train(exp)
        ends.append((exp.run.matrices["class-il"].tolist(), [p.tolist() for p in exp.model.parameters()]))
    assert str(ends[0]) == str(ends[1])
    assert {getattr(exp.model, name) for name in names} == {9} and exp.model._current_task == 2


@pytest.mark.parametrize(
    "left, said", [("self.net = None", "self.net as None"), ("self.opt = 'sgd'", "self.opt as str 'sgd'")]
)
def test_what_a_constructor_leaves_is_looked_at(capsys, method, left, said):
    assert said in refused(capsys, method(init=left))


LOSSES = {
    "None": "None",
    "loss.view(1)": "a tensor of shape (1,)",
    "(loss, 1)": "tuple (",
    "'low'": "str 'low'",
    "True": "bool True",
    "loss.detach().numpy()": "an array of shape ()",
    "{'ce': loss}": "a dict without 'loss' (ce)",
    "{'loss': None}": "a dict whose 'loss' is None",
    "{'loss': loss, 'name': 'x'}": "a dict whose 'name' is str 'x'",
    "{'loss': loss, 'each': loss.expand(3)}": "a dict whose 'each' is a tensor of shape (3,)",
    "{'loss': loss, 3: loss}": "a dict with the key 3, which is no name",
}


@pytest.mark.parametrize("returned", LOSSES)
def test_what_is_no_loss_is_refused_in_the_run_with_the_words_of_the_check(capsys, method, returned):
    assert f"observe of mine returned {LOSSES[returned]}" in refused(capsys, method(returned=returned))
    said = loss_problem(eval(returned, {"loss": torch.tensor(1.5)}))
    assert said.startswith(LOSSES[returned])


@pytest.mark.parametrize("returned", ["loss", "loss.item()", "0", "{'loss': loss, 'penalty': None, 'x': 1.5}"])
def test_a_loss_in_any_of_its_forms_is_accepted(method, returned):
    assert entry.main(method(returned=returned)) == 0


IMPORTS = {
    "import not_there": "line 4: No module named 'not_there'",
    "from utils.not_there import x": "line 4: No module named 'utils.not_there'",
    "from models.utils.continual_model import NotThere": "line 4: cannot import name 'NotThere'",
    "from . import er": "line 4: attempted relative import",
    "x = 1 +": "line 4: invalid syntax",
    "x = not_there": "line 4: NameError: name 'not_there'",
    "raise SystemExit(3)": "line 4: SystemExit: 3",
}


@pytest.mark.parametrize("top", IMPORTS)
@pytest.mark.parametrize("kind", ["model", "dataset", "backbone"])
def test_a_file_that_cannot_be_imported_is_told_with_its_line(capsys, method, kind, top):
    argv = ["--model", "sgd", *OPTIONS]
    argv = argv[: argv.index(f"--{kind}")] + argv[argv.index(f"--{kind}") + 2 :]
    argv += [f"--{kind}", method(top=top)[1]]
    for _ in range(2):  # half a module is not found at the second look
        err = refused(capsys, argv)
        # A name that only Mammoth has is told by what reads its files.
        assert "mine.py" in err and (IMPORTS[top] in err or "which is not here" in err)


def test_an_import_that_fails_in_a_second_file_names_both(capsys, method, tmp_path, monkeypatch):
    (tmp_path / "second_file_of_mine.py").write_text("import not_there\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    err = refused(capsys, method(top="import second_file_of_mine"))
    assert "second_file_of_mine.py, line 1 (imported by mine.py): No module named 'not_there'" in err


def test_a_class_that_does_not_say_what_it_supports_is_one_line(capsys, method, tmp_path):
    argv, file = method(), tmp_path / "mine.py"
    text = file.read_text()
    file.write_text(text.replace('COMPATIBILITY = ["class-il"]', ""))
    assert "COMPATIBILITY = None" in refused(capsys, argv)
    (tmp_path / "other.py").write_text("class Other:\n    NAME = 'other'\n    COMPATIBILITY = ['class-il']\n")
    assert "'other' is no ContinualModel" in refused(capsys, [argv[0], str(tmp_path / "other.py"), *argv[2:]])


EXTRA = "def extra_examples(self): return {}"
ROWS = "def training_rows(self, data): return {}"
FORWARD = "def forward(self, x): return {}"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (FORWARD.format("None"), "predicts NoneType for 91 examples: expected logits (B, classes)"),
        (FORWARD.format("self.net(x).argmax(1)"), "predicts (91,) for 91 examples"),
        (FORWARD.format("self.net(x)[:9]"), "predicts (9, 10) for 91 examples"),
        (FORWARD.format("self.net(x)[:, :1]"), "predicts (91, 1): expected a column for each of 2 classes"),
        (ROWS.format("[0, 1]"), "training_rows of mine returned list [0, 1]: expected positions (k,) int64"),
        (ROWS.format("torch.arange(3.0)"), "returned a tensor of shape (3,): expected"),
        (ROWS.format("torch.arange(10000)"), "a tensor of shape (10000,), from 0 to 9999: expected"),
        (ROWS.format("torch.arange(3) - 1"), "from -1 to 1: expected"),
        (ROWS.format("torch.arange(0)"), "a tensor of shape (0,): expected"),
        (ROWS.format("torch.ones(len(data), dtype=torch.bool)"), "expected positions"),
        (EXTRA.format("torch.zeros(3, 1, 8, 8), torch.zeros(3)"),
         "extra_examples of mine returned (3, 1, 8, 8) torch.float32 and (3,) torch.float32: expected (n, 1, 8, 8) "
         "torch.uint8 and (n,) torch.int64, as many of both"),
        (EXTRA.format("torch.zeros(3, 1, 8, 8).byte(), torch.zeros(2).long()"), "and (2,) torch.int64: expected"),
        (EXTRA.format("torch.zeros(3, 8, 8).byte(), torch.zeros(3).long()"), "returned (3, 8, 8) torch.uint8"),
        (EXTRA.format("torch.zeros(3, 1, 8, 8).byte()"), "returned (3, 1, 8, 8) torch.uint8 and None: expected"),
        (EXTRA.format("[]"), "returned list [] and None: expected"),
    ],
)  # fmt: skip
def test_what_hooks_return_is_looked_at(capsys, method, more, said):
    assert said in refused(capsys, method(more=more))


def test_a_method_may_predict_among_the_classes_seen_alone(method):
    exp = build(resolve(method(more=FORWARD.format("self.net(x)[:, : 2 * (self.current_task + 1)]"))))
    train(exp)
    assert len(exp.run.history) == 2
