"""Checkpoints that are whole, signed and readable, and say what no run can have saved: one line, nothing written."""

import copy
import io
import math

import pytest
import torch

import main as entry
from palimpsest.models.utils import state
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.checkpoint_checks import check_method
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from tests.test_hostile import COMMAND, only_run, refused, signed


@pytest.fixture(scope="module")
def inside(tmp_path_factory):
    """The state of a run in the middle of its second task, and the method that has it."""
    results = tmp_path_factory.mktemp("inside")
    argv = [*COMMAND, "--savecheck", "3", "--results_path", str(results)]
    assert entry.main(argv) == 0
    saved = checkpoint.load(checkpoint.previous_of(only_run(results) / "checkpoint.pt"))
    assert saved["position"]["inside"] and saved["position"]["task"] == 1
    return saved


def labels(model, value):
    model.buffer[0].labels[3] = value


def weights(model, value):
    with torch.no_grad():
        next(model.parameters()).view(-1)[5] = value


POSITIONS = {
    "an epoch beyond the task": {"epoch": 1},
    "a huge epoch": {"epoch": 1 << 62},
    "a batch beyond the epoch": {"batch": 10_000},
    "a step before its own evaluations": {"step": 1},
    "a task beyond the stream": {"task": 5},
}
METHODS = {
    "a label beyond the classes": lambda m: labels(m, 10),
    "a label below zero": lambda m: labels(m, -1),
    "a weight that is nan": lambda m: weights(m, math.nan),
    "a weight that is infinite": lambda m: weights(m, -math.inf),
    "more rows than there are": lambda m: setattr(m.buffer[0], "buffer_size", 60),
    "fewer than no example": lambda m: setattr(m.buffer[0], "num_seen_examples", -3),
    "a count that is none": lambda m: setattr(m.buffer[0], "num_seen_examples", "many"),
    "a field of other rows": lambda m: setattr(m.buffer[0], "labels", m.buffer[0].labels[:20].clone()),
}


def forged(inside, position=None, change=None) -> bytes:
    exp, content = build(resolve(COMMAND)), io.BytesIO()
    checkpoint.restore(inside, exp)
    facts = {name: part for name, part in inside.items() if name not in ("model", "path", "entries")}
    facts = copy.deepcopy(facts)
    facts["position"] |= position or {}
    if change:
        change(exp.model)
    state.write(facts | {"model": exp.model}, content, exp.model)
    return signed(content.getvalue())


@pytest.mark.parametrize("name", [*POSITIONS, *METHODS])
@pytest.mark.parametrize("more", [[], ["--inference_only"]])
def test_what_no_run_can_have_saved_is_one_line_and_nothing_written(capsys, tmp_path, inside, name, more):
    file = tmp_path / "given.pt"
    file.write_bytes(forged(inside, POSITIONS.get(name), METHODS.get(name)))
    refused(capsys, *COMMAND, f"--results_path={tmp_path / 'results'}", f"--loadcheck={file}", *more)
    assert [*tmp_path.iterdir()] == [file]


def test_the_same_file_without_a_change_is_taken(tmp_path, inside):
    (tmp_path / "given.pt").write_bytes(forged(inside))
    assert entry.main([*COMMAND, "--disable_log", f"--loadcheck={tmp_path / 'given.pt'}"]) == 0


@pytest.mark.parametrize("mark, fits", [(-1, True), (0, True), (-2, False), (5, False)])
def test_rows_of_no_task_may_be_marked(inside, mark, fits):
    exp = build(resolve(COMMAND))
    checkpoint.restore(inside, exp)
    buffer = exp.model.buffer[0]
    buffer.task_labels = torch.full_like(buffer.labels, mark)
    if fits:
        check_method(exp.model, exp.dataset)
    else:
        with pytest.raises(ValueError, match="expected -1 to 4"):
            check_method(exp.model, exp.dataset)
