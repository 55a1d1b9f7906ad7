"""The look at the network at a run's end: what it finds, and that it leaves no trace."""

import json
import re
from copy import deepcopy

import numpy as np
import pytest
import torch
import yaml

import main as entry
from palimpsest.utils import panels
from palimpsest.utils.evaluation import evaluate
from palimpsest.utils.log import analysis
from palimpsest.utils.log.analysis import analyse, costs
from palimpsest.utils.panels import Report
from palimpsest.utils.randomness import random_state
from palimpsest.utils.registry import load
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.finished import load_run
from tests.models.helpers import experiment, finished, small

SHORT = ["--n_epochs", "1", "--stop_after", "3", "--lr", "0.05"]
ER = ["--buffer_size", "50"]


@pytest.fixture(scope="module")
def er():
    return finished("er", *SHORT, *ER)


def test_confusion_is_that_of_the_class_il_score(er):
    counts = analyse(er.model, er.dataset, 2).confusion
    found: dict = {}
    evaluate(er.model, er.dataset, range(3), 1, found)  # of three tasks two are trained: the third is not counted
    assert found["class-il"].confusion.shape == (4, 4) and [*found["task-il"].tasks] == [0, 1]
    hits, totals = found["task-il"].tasks[1]
    assert totals.sum() == totals[2:4].sum() == len(er.dataset.test_loaders[1].dataset)
    assert 100 * hits.sum() / totals.sum() == pytest.approx(er.run.matrices["task-il"][2, 1])
    assert counts.shape == (6, 6)
    for task in range(3):
        low, high = er.dataset.task_classes(task)
        rows = counts[low:high]
        assert rows.sum() == len(er.dataset.test_loaders[task].dataset)
        hits = np.trace(rows[:, low:high])
        assert 100 * hits / rows.sum() == pytest.approx(er.run.matrices["class-il"][2, task])


def test_the_look_leaves_no_trace(er):
    er.model.train()
    before = checkpoint.fingerprint([er.model.state_dict(), random_state(), er.dataset.state_dict()])
    first, again = analyse(er.model, er.dataset, 2), analyse(er.model, er.dataset, 2)
    assert checkpoint.fingerprint([er.model.state_dict(), random_state(), er.dataset.state_dict()]) == before
    assert all(part.training for part in er.model.modules())
    assert (first.confusion == again.confusion).all()


def test_costs_by_hand():
    model = small(load("model", "er"), *ER)  # a linear classifier of 2 inputs and 4 classes
    zeros = dict.fromkeys(("bytes_buffer", "bytes_teachers", "bytes_statistics"), 0)
    assert costs(model) == {"parameters": 12, "bytes_parameters": 48, **zeros}
    model.buffer[0].add_data(
        examples=torch.zeros(3, 1, 1, 2, dtype=torch.uint8), labels=torch.zeros(3, dtype=torch.int64)
    )
    model.note = torch.zeros(5)  # a plain attribute is remembered, so it counts
    model.net(torch.ones(1, 2)).sum().backward()
    model.opt = torch.optim.Adam(model.net.parameters())
    model.opt.step()  # gradients and the optimiser's moments do not
    kept = {"bytes_buffer": 500, "bytes_statistics": 20}
    assert costs(model) == {"parameters": 12, "bytes_parameters": 48, **zeros, **kept}
    model = small(load("model", "lwf"))
    model.teacher.take(model.net)  # a teacher is a cost, and so is a copy under any other name
    assert costs(model) == {"parameters": 24, "bytes_parameters": 48, **zeros, "bytes_teachers": 48}
    model.before = deepcopy(model.net).requires_grad_(False)
    model.own = torch.nn.Linear(1, 2)  # trained beside the network
    assert costs(model) == {"parameters": 40, "bytes_parameters": 64, **zeros, "bytes_teachers": 96}


def test_importance_over_powers_of_ten():
    model = small(load("model", "ewc_on"), "--e_lambda", "1", "--gamma", "1")
    assert not analysis.report_of(model, None, range(0)).panels
    model.penalty.replace(torch.tensor([0.0, 1e-3, 1e-1, 0.0]), torch.zeros(4))
    (panel,) = analysis.report_of(model, None, range(1)).panels
    counts, edges, zeros = panel.data.values()
    assert counts[[0, -1]].tolist() == [1, 1] and counts.sum() == 2
    assert edges[[0, -1]] == pytest.approx([-3, -1]) and zeros == 0.5
    assert panels.importance(torch.zeros(4)).data["zeros"] == 1


def test_what_is_something_else_under_the_name_report():
    model = small(load("model", "sgd"))
    for other in (7, lambda: "mine", lambda dataset, tasks: {"w": 1}):
        vars(model)["report"] = other
        assert analysis.report_of(model, None, range(1)) == Report()


@pytest.mark.parametrize("dataset", ["perm-digits", "digits-360"])
def test_streams_of_other_settings_have_no_confusion_of_tasks(dataset):
    exp = experiment("sgd", "--n_epochs", "1", dataset=dataset)
    assert analyse(exp.model, exp.dataset, 0).confusion is None


def test_a_run_leaves_its_costs_and_its_page(tmp_path, undrawn, capsys):
    argv = ["--model", "er", "--dataset", "seq-digits", *SHORT, *ER, "--num_threads", "1", "--results_path"]
    assert entry.main([*argv, str(tmp_path / "a")]) == 0
    (folder,) = (tmp_path / "a").glob("*/*/*/2*")
    facts = yaml.safe_load((folder / "timing.yaml").read_text())
    assert facts["bytes_buffer"] == 50 * (64 + 8) and facts["bytes_parameters"] > 10_000
    assert facts["bytes_teachers"] == facts["bytes_statistics"] == 0
    assert facts["seconds"] > 0 and facts["peak_memory_bytes"] > 1 << 20 and facts["from_iteration"] == 0
    assert 'aria-label="confusion"' in (folder / "report.html").read_text() and not (folder / "plots").exists()
    # Resumed when it had trained everything and not yet told so: the same page.
    assert entry.main([*argv, str(tmp_path / "b"), "--resume"]) == 0
    (folder,) = (tmp_path / "b").glob("*/*/*/2*")
    page = (folder / "report.html").read_bytes()
    (folder / "result.yaml").unlink(), (folder / "report.html").unlink()
    assert entry.main([*argv, str(tmp_path / "b"), "--resume"]) == 0
    assert (folder / "report.html").read_bytes() == page
    facts = yaml.safe_load((folder / "timing.yaml").read_text())
    assert facts["from_iteration"] > 0
    # Drawn later, from what the folder holds: the same page once more.
    (folder / "report.html").unlink()
    assert entry.main(["--report", str(folder), "--figures", "png"]) == 0
    assert (folder / "report.html").read_bytes() == page
    assert {"confusion.png", "loss.png"} <= {p.name for p in (folder / "plots").iterdir()}
    # A panel of a record that names anything else to call than a picture of ours is not drawn.
    record = json.loads((folder / "record.json").read_text())
    record["report"]["analysis"]["panels"] = [
        {"name": "x", "shows": "x", "draw": draw, "data": {"command": "exit 1"}, "wide": False}
        for draw in ("os:system", "palimpsest.utils.log.plots:os.system", "subprocess:getoutput")
    ]
    (folder / "record.json").write_text(json.dumps(record))
    assert load_run(folder).analysis.panels == []
    for name, line in (("nowhere", "no such folder"), (".", "no folder of a finished run")):
        assert entry.main(["--report", str(tmp_path / name)]) == 2
        assert line in capsys.readouterr().err


def test_the_page_of_several_seeds_is_drawn_again(tmp_path, undrawn):
    argv = ["--model", "sgd", "--dataset", "seq-digits", "--n_epochs", "1", "--stop_after", "2", "--num_threads", "1"]
    argv += ["--seeds", "0", "1", "--report", "off", "--non_verbose", "--results_path", str(tmp_path)]
    assert entry.main(argv) == 0 and not [*tmp_path.rglob("report.html")]
    (summary,) = tmp_path.rglob("summary.json")
    facts = json.loads(summary.read_text())
    for name in facts["runs"]:
        assert entry.main(["--report", str(summary.parents[1] / name)]) == 0
    assert entry.main(["--report", str(summary.parent)]) == 0
    told = (summary.parent / "report.html").read_text()
    assert f"{facts['metrics']['class-il']['acc']['mean']:.2f}" in told
    for link in re.findall(r'href="([^"]*)"', told):
        assert (summary.parent / link).is_file()
