"""What was learned, in use: runs from Python, predictions and exports of a run's folder."""

import argparse
import builtins
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import main as entry
import palimpsest
from palimpsest.datasets.utils.own.images import decode
from palimpsest.export import export
from palimpsest.learned import Learned
from palimpsest.utils import registry
from palimpsest.utils.check.cases import Case, cases
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.experiment import execute

SHORT = {"n_epochs": 1, "stop_after": 2, "batch_size": 64, "non_verbose": True}
FAST = ["er", "icarl", "bic", "slda", "packnet", "hyper", "pr_dirac"]
MADE = [Case(name, "class-il") for name in FAST] + [Case("ewc", "domain-il"), Case("lwf", "vision")]
REST = [case for name in registry.names("model") for case in cases(name) if case not in MADE]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """case -> (the run, its folder's method)."""
    done = {}

    def make(case):
        if case not in done:
            config = case.config(tasks=2)
            changed = vars(config.args) | {"disable_log": False, "results_path": str(tmp_path_factory.mktemp("runs"))}
            run, _ = execute(replace(config, args=argparse.Namespace(**changed)))
            done[case] = run, Learned(run.folder)
        return done[case]

    return make


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    "case",
    [*MADE, *(pytest.param(case, marks=pytest.mark.slow) for case in REST)],
    ids=lambda case: f"{case.model}-{case.setting}",
)
def test_predictions_are_those_that_were_scored(case, made):
    run, learned = made(case)
    if learned.dataset.INPUT != "images" or case.setting == "vision":
        answer = learned.predict(learned.dataset.shown(0)[0], task=0)
        assert len(answer.outputs) == len(learned.dataset.shown(0)[0]) and np.isfinite(answer.outputs).all()
        return
    known, order = run.matrices.keys(), np.array(learned.labels)
    for scenario in known:
        for task in range(learned.trained + 1):
            split, rows = learned.dataset._test_part(task, held_out=False)
            images, labels = split.images[rows], order[split.targets[rows].numpy()]
            given = task if scenario == "task-il" or "task-il" not in known and scenario != "class-il" else None
            found = learned.predict(images, given, learned.exp.args.eval_batch_size)
            assert 100 * np.mean(found.labels == labels) == pytest.approx(run.matrices[scenario][learned.trained, task])


def test_a_method_that_is_told_the_task_asks_for_it(made):
    _, learned = made(Case("packnet", "class-il"))
    with pytest.raises(UserError, match="packnet is told the task"):
        learned.predict(np.zeros((1, 8, 8), np.uint8))
    assert learned.predict(np.zeros((1, 8, 8), np.uint8), task=1).classes == [2, 3]


def test_a_run_from_python_and_its_files_from_the_command_line(tmp_path, capsys, monkeypatch):
    best = palimpsest.load_best_args("er", "seq-digits", 200)
    result = palimpsest.run(
        "er", "seq-digits", **best | SHORT, custom_class_order=[5, 1, 2, 3, 4, 0, 6, 7, 8, 9], results_path=tmp_path
    )
    assert result.scores["class-il"]["acc"] == np.nanmean(result.matrices["class-il"][1, :2])
    learned = palimpsest.load(result.folder)
    images = learned.dataset._test_part(0, held_out=False)[0].images[:3]
    for i, image in enumerate(images):
        Image.fromarray(image[0].numpy()).resize((8, 8)).save(tmp_path / f"{i}.png")
    expected = learned.predict(images)
    assert expected.classes == [5, 1, 2, 3]  # of the tasks trained, in the stream's order
    capsys.readouterr()
    assert entry.main(["--predict", str(result.folder), str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith(str(tmp_path))][:3] == expected.labels_by_name
    by_other_ways = [
        images.float() / 255,
        images.numpy() / 255,
        images.numpy(),
        images.permute(0, 2, 3, 1),
        list(images),
        images[:, 0],
    ]
    assert all(np.allclose(learned.predict(way).outputs, expected.outputs, atol=1e-6) for way in by_other_ways)
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)  # is made smaller, whatever it holds
    assert np.allclose(learned.predict(large).outputs, learned.predict(large / 255).outputs, atol=1e-5)


def test_a_file_is_read_as_the_streams_of_files_read_it(made, tmp_path):
    _, learned = made(Case("er", "class-il"))
    pixels = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = decode((tmp_path / "a.png").read_bytes(), 8, 1)
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), [tmp_path / "a.png"]):
        assert torch.equal(learned.inputs(given), learned.inputs(read[None]))
    assert learned.predict([tmp_path / "a.png"]).labels_by_name[0] in "0123"


@pytest.mark.parametrize(
    "images, message",
    [
        (np.zeros((2, 3, 8, 8), np.uint8), r"images of shape \(2, 3, 8, 8\): seq-digits takes \(N, 1, 8, 8\)"),
        (np.full((1, 8, 8), 255.0), "float images from 255 to 255: expected 0..1"),
        (np.zeros((1, 8, 8), np.int64), "images of torch.int64"),
        ("nowhere.png", "nowhere.png cannot be read as an image"),
    ],
)
def test_inputs_that_no_stream_has_are_refused(images, message, made):
    with pytest.raises(UserError, match=message):
        made(Case("er", "class-il"))[1].predict(images)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--predict", "nowhere", "a.png"], "a.png does not exist"),
        (["--predict", "."], "no images are given"),
        (["--export", "nowhere"], "nowhere does not exist"),
        (["--export", "a", "b", "c"], "got also c"),
        (["--predict", "a", "--export", "b"], "exclude each other"),
    ],
)
def test_wrong_commands_are_one_line(argv, message, capsys):
    assert entry.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_export_holds_weights_classes_and_preprocessing(made, tmp_path):
    numpy_of = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")
    _, learned = made(Case("er", "class-il"))
    files = {path.name for path in export(learned, tmp_path)}
    facts = json.loads((tmp_path / "model.json").read_text())
    weights = numpy_of.load_file(tmp_path / "weights.safetensors")
    assert all(np.array_equal(weights[k], v.numpy()) for k, v in learned.model.net.state_dict().items())
    assert [entry["label"] for entry in facts["classes"]] == [0, 1, 2, 3] and facts["input"]["size"] == [1, 8, 8]
    assert ("model.onnx" in files) == (facts["onnx"] is not None) and ("onnx_missing" in facts) == (not facts["onnx"])


@pytest.mark.parametrize(
    "case",
    [MADE[0], *(pytest.param(case, marks=pytest.mark.slow) for case in MADE[1:6] if case.model != "slda")],
    ids=lambda case: case.model,
)
def test_the_graph_says_what_the_run_says(case, made, tmp_path):
    session = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed").InferenceSession
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    _, learned = made(case)
    task = 1 if case.model in ("packnet", "hyper") else None
    export(learned, tmp_path, task)
    facts = json.loads((tmp_path / "model.json").read_text())
    assert facts["onnx"], facts["onnx_missing"]
    images = torch.randint(256, (5, *learned.dataset.SIZE), dtype=torch.uint8)
    given = learned.inputs(images).numpy()
    found = session(tmp_path / "model.onnx").run(None, {"inputs": given})[0]
    assert np.allclose(found, learned.predict(images, task).outputs, atol=1e-4)


def test_without_safetensors_the_line_names_it(made, tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *more):
        if name.startswith("safetensors"):
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match="safetensors"):
        export(made(Case("er", "class-il"))[1], tmp_path)
