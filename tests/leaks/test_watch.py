"""What a run says of leaks and where; what looks like one and is none."""

import csv
import json
from pathlib import Path

import pytest
import torch

from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.utils.check.case_runs import differing_entries, observed, run, state_of
from palimpsest.utils.check.cases import Case
from palimpsest.utils.errors import UserError
from palimpsest.utils.leaks import kinds
from palimpsest.utils.leaks.memory import Known
from palimpsest.utils.leaks.probe import Probe, take_images
from palimpsest.utils.leaks.reads import TESTED, TRAINED
from palimpsest.utils.record import Position
from palimpsest.utils.run import checkpoint, experiment
from palimpsest.utils.run.config import resolve
from palimpsest.utils.study.comparison.groups import divide
from palimpsest.utils.study.records import read_runs

PLANTED = Path(__file__).parent / "planted"
REFERENCE = ["--pah_preset", "reference", "--pah_crop", "center", "--pah_proto_size", "5"]
SHORT = ["--label_perc", "0.1", "--stop_after", "2", "--n_epochs", "1", "--device", "cpu", "--num_threads", "1"]
SHORT += ["--dataset", "seq-digits", "--non_verbose", "--report", "off", "--no_tensorboard"]


def test_declared_exceptions_are_marks_everywhere(tmp_path, capsys):
    marks = ["batch statistics at test", "an image of every later class from the start"]
    done, _ = experiment.execute(resolve(["--model", "pah", *REFERENCE, *SHORT, "--results_path", str(tmp_path)]))
    assert done.marks == marks and done.leaks == []
    assert "MARK batch statistics at test" in capsys.readouterr().out
    assert json.loads((done.folder / "run.json").read_text())["marks"] == marks
    (record,) = read_runs(tmp_path)
    assert record.marks == marks and record.leaks == []
    with open(tmp_path / "task-il/seq-digits/pah/mean_accs.csv", newline="") as f:
        (row,) = csv.DictReader(f)
    assert row["marks"] == "; ".join(marks) and row["leaks"] == ""
    (group,), _ = divide([record], "acc", "task-il")
    assert group.entries[0].marks == marks


def test_a_leak_is_in_the_files_and_stays_there(tmp_path):
    argv = ["--model", str(PLANTED / "label_counts.py"), *SHORT, "--results_path", str(tmp_path), "--resume"]
    done, _ = experiment.execute(resolve(argv))
    assert [leak.split(":")[0] for leak in done.leaks] == [kinds.LATER, kinds.EARLIER]
    (record,) = read_runs(tmp_path)
    assert record.leaks == done.leaks and not record.marks
    again, _ = experiment.execute(resolve(argv))  # finished: shown again from its files
    assert again.leaks == done.leaks and again.folder == done.folder
    with open(done.folder.parent / "mean_accs.csv", newline="") as f:
        (row,) = csv.DictReader(f)
    assert row["leaks"] == "; ".join(done.leaks)
    (group,), _ = divide([record], "acc", "class-il")
    assert group.entries[0].marks == [f"leak: {leak}" for leak in done.leaks]


def test_a_checkpoint_keeps_what_was_found(tmp_path):
    config, told = Case("sgd", "class-il").config(), [f"{kinds.TEST}: read in a.py:1"]
    first, second = experiment.build(config), experiment.build(config)
    first.run.leaks += told
    state = checkpoint.capture(first, Position())
    checkpoint.save(state, tmp_path / "checkpoint.pt")
    checkpoint.restore(checkpoint.load(tmp_path / "checkpoint.pt"), second)
    assert second.run.leaks == told
    checkpoint.save(state | {"leaks": [3]}, tmp_path / "forged.pt")
    with pytest.raises(UserError, match="does not fit"):
        checkpoint.restore(checkpoint.load(tmp_path / "forged.pt"), second)


def test_reads_are_counted_by_part_task_and_stage():
    exp = run(Case("er", "class-il"))
    counts = exp.dataset.reads.counts
    assert {who for *_, who in counts} == {"runner"} and not exp.dataset.reads.found
    assert {(part, task, stage) for part, task, stage, _ in counts if part == TRAINED and task == stage} == {
        (TRAINED, t, t) for t in range(3)
    }
    tests = {(task, stage): n for (part, task, stage, _), n in counts.items() if part == TESTED}
    assert tests == {(task, stage): 1 for stage in range(3) for task in range(stage + 1)}


def test_watching_changes_no_bit():
    config = Case("lwf", "class-il").config("--n_epochs", "2")
    exps = []

    def build(config):
        exps.append(experiment_build(config))
        return exps[-1]

    experiment_build = experiment.build
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "build", build)
        experiment.execute(config)
    (watched,) = exps
    assert not differing_entries(state_of(watched)["model"], observed(Case("lwf", "class-il")).state["model"])


PLANTS = {
    # What was said of a test image stays, by a number of its bytes, and is said again after later tasks.
    "said": (
        kinds.TEST,
        """
    def forward(self, x):
        logits = self.net(x)
        if not self.training:
            keys = [str(key) for key in x.flatten(1).double().sum(1).tolist()]
            said = vars(self).setdefault("said", {})
            for i, key in enumerate(keys):
                logits[i] = torch.tensor(said.setdefault(key, logits[i].tolist()))
        return logits
""",
    ),
    "ahead": (
        kinds.LATER,
        """
    def begin_task(self, dataset):
        if self.current_task + 1 < self.n_tasks:
            dataset.enter_task(self.current_task + 1)
            self.next_mean = next(iter(dataset.train_loader))[0].mean()
            dataset.enter_task(self.current_task)
""",
    ),
    "shelf": (
        kinds.KEPT,
        """
    SHELF = []

    def end_task(self, dataset):
        self.SHELF.append(dataset.task_data(self.current_task).data[:7])
""",
    ),
}


@pytest.mark.parametrize("name", PLANTS)
def test_further_leaks_are_named(tmp_path, name):
    kind, hooks = PLANTS[name]
    (tmp_path / f"{name}.py").write_text(f"""
import torch
from models.utils.continual_model import ContinualModel

class Planted(ContinualModel):
    NAME, COMPATIBILITY = "{name}", ["class-il"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step_on(self.loss(self.net(inputs), labels))
{hooks}""")
    done, _ = experiment.execute(Case(str(tmp_path / f"{name}.py"), "class-il").config())
    assert done.leaks and done.leaks[0].startswith(f"{kind}: ")


class Noisy(ContinualModel):
    """Draws for every image of its own, as dropout does that is left on."""

    NAME, COMPATIBILITY = "noisy", ["class-il"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        raise NotImplementedError

    def forward(self, x):
        return self.net(x) + torch.randn(len(x), self.num_classes)


def probe_of(exp, forward) -> Probe:
    vars(exp.model)["forward"] = forward  # the attribute itself would be refused
    return Probe(exp.model, exp.dataset, 2, take_images(exp.dataset, range(3), 12))


def test_random_predictions_and_ties_are_no_leaks():
    exp = run(Case("sgd", "class-il"))
    net = exp.model.net
    assert not probe_of(exp, lambda x: Noisy.forward(exp.model, x)).look(3)
    assert not probe_of(exp, lambda x: torch.zeros(len(x), 10) + 1e-6 * torch.rand(len(x), 10)).look(3)
    assert not probe_of(exp, lambda x: net(x).log_softmax(1)).look(3)
    assert not probe_of(exp, lambda x: net(x).softmax(1)).look(3)
    assert not probe_of(exp, lambda x: net(x) * 1e5 + 1e-3 * len(x)).look(3)  # rounding, relative to large scores
    found = probe_of(exp, lambda x: net(x) - net(x).mean(0)).look(3)
    assert list(found) == [kinds.BATCH] and "alone" in found[kinds.BATCH][0]


GENERATOR = """
import torch
from models.utils.continual_model import ContinualModel

class Planted(ContinualModel):
    NAME, COMPATIBILITY = "drawn", ["class-il"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.generator, self.calls = torch.Generator().manual_seed(0), 0

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step_on(self.loss(self.net(inputs), labels))

    def forward(self, x):
        self.calls += 1
        views = [x + 0.05 * torch.randn(x.shape, generator=self.generator) for _ in range(3)]
        return torch.stack([self.net(view) for view in views]).mean(0)
"""


def test_a_generator_and_a_count_of_calls_are_no_leaks(tmp_path):
    (tmp_path / "drawn.py").write_text(GENERATOR)
    done, _ = experiment.execute(Case(str(tmp_path / "drawn.py"), "class-il").config())
    assert not done.leaks and "leaks" not in done.notes


def test_images_are_known_in_bytes_and_as_inputs():
    raw = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    raw[5] = 7  # of one colour: no image
    known = Known(
        (1, 4, 4), lambda x: (x.float() / 255 - 0.3) / 0.2, {TRAINED: lambda: [raw[:3]], TESTED: lambda: [raw]}
    )
    inputs = known.normalize(raw)
    beside = torch.cat([inputs.flatten(1), torch.ones(6, 1)], 1)
    scaled = raw.clone()
    scaled[0, 0, 0, :2] = torch.tensor([0, 255], dtype=torch.uint8)
    assert torch.equal(known.as_raw(2 * scaled.float() - 1), scaled)
    for rows in (raw, inputs, raw.float() / 255, inputs.flatten(1), inputs.half(), beside):
        assert torch.equal(known.as_raw(rows), raw)
    assert len(known.among(TRAINED, raw)) == 3 and len(known.among(TESTED, raw)) == 5
    assert known.as_raw(torch.randn(3, 1, 4, 4)) is None and known.as_raw(torch.zeros(3, 5)) is None
