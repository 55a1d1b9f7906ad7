"""What is known at the start to go wrong later is refused at the start, and only that."""

import pytest
import torch
from torch import nn

import main as entry
from palimpsest.datasets.seq_digits import SequentialDigits
from palimpsest.datasets.utils.sources import RawData
from palimpsest.models.gdumb import GDumb
from palimpsest.models.hal import HAL
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build, execute
from palimpsest.utils.run.training import train
from tests.models.helpers import QUIET, finished

DIGITS = ["--dataset", "seq-digits", "--n_epochs", "1"]
DIVIDED_BY_CLASS = {
    "icarl": [], "lucir": ["--fitting_epochs", "1"], "bic": ["--bic_epochs", "1"], "gdumb": ["--fitting_epochs", "1"],
    "xder": ["--alpha", "1", "--beta", "1", "--minibatch_size", "2"],
    "xder_ce": ["--alpha", "1", "--beta", "1", "--minibatch_size", "2"],
    "xder_rpc": ["--alpha", "1", "--beta", "1", "--minibatch_size", "2"],
}  # fmt: skip
DIVIDED_BY_TASK = {"gem": [], "agem": ["--minibatch_size", "1"], "fdr": ["--minibatch_size", "1"]}


def built(*argv: str):
    """The experiment of a command line, before training."""
    return build(resolve([*argv, *QUIET]))


def refusal(tmp_path, capsys, *argv: str) -> str:
    """The one line by which a command is refused; nothing is written."""
    assert entry.main([*argv, "--results_path", str(tmp_path / "results"), "--num_threads", "1"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("main.py: error: ") and err.count("\n") == 1 and not (tmp_path / "results").exists()
    return err


@pytest.mark.parametrize("model", [*DIVIDED_BY_CLASS, *DIVIDED_BY_TASK])
def test_a_buffer_without_a_slot_for_each_class_or_task(tmp_path, capsys, model):
    kind, n = ("classes", 10) if model in DIVIDED_BY_CLASS else ("tasks", 5)
    argv = ["--model", model, *(DIVIDED_BY_CLASS | DIVIDED_BY_TASK)[model], *DIGITS]
    err = refusal(tmp_path, capsys, *argv, "--buffer_size", str(n - 1))
    assert f"--buffer_size {n - 1} leaves no example for each of {n} {kind}" in err and f"give {n} or more" in err
    built(*argv, "--buffer_size", str(n))
    # What a run does not come to does not count.
    built(*argv, "--buffer_size", str(2 * n // 5), "--stop_after", "2")
    assert f"each of {3 * n // 5} {kind}" in refusal(
        tmp_path, capsys, *argv, "--buffer_size", str(2 * n // 5), "--stop_after", "3"
    )


def images(*sizes: int, test: int = 2) -> RawData:
    """Classes of so many training images."""
    y = torch.cat([torch.full((n,), c) for c, n in enumerate(sizes)])
    test_y = torch.arange(len(sizes)).repeat_interleave(test)
    x = torch.randint(1, 256, (len(y) + len(test_y), 1, 8, 8), dtype=torch.uint8)
    return RawData(x[: len(y)], y, x[len(y) :], test_y)


@pytest.fixture
def stream_of(monkeypatch):
    """(sizes of the classes) -> seq-digits has classes of these sizes, two a task."""

    def change(*sizes: int) -> None:
        for name, value in (
            ("SOURCE", staticmethod(lambda base_path: images(*sizes))),
            ("N_CLASSES", len(sizes)),
            ("N_TASKS", len(sizes) // 2),
            ("N_CLASSES_PER_TASK", 2),
        ):
            monkeypatch.setattr(SequentialDigits, name, value)

    return change


def test_a_class_whose_only_image_would_be_held_out(tmp_path, capsys, stream_of):
    stream_of(20, 10, 5, 1)
    argv = ["--model", "bic", "--buffer_size", "20", "--bic_epochs", "1", *DIGITS]
    assert "class with label 3 has 1 example(s) to train on, bic holds one out and needs 2" in refusal(
        tmp_path, capsys, *argv
    )
    err = refusal(tmp_path, capsys, "--model", "sgd", *DIGITS, "--holdout", "10")
    assert "10 % held out leave no example of class 3 to train on" in err
    vectors = ["--model", "sgd", "--dataset", "seq-gmm2d", "--n_iters", "1", "--holdout", "95"]
    assert "has 0 example(s) to train on, the run needs at least one" in refusal(tmp_path, capsys, *vectors)
    stream_of(20, 10, 5, 2)
    assert execute(resolve([*argv, *QUIET]))[0].history


BATCHNORM = ["--backbone", "resnet18", "--batch_size", "8"]  # 8 x 8 pixels become one


def alone(tmp_path, capsys, *argv: str) -> str:
    err = refusal(tmp_path, capsys, *DIGITS, *argv)
    assert "in a batch of its own, which the BatchNorm of --backbone resnet18 cannot normalise" in err
    return err


def test_a_last_batch_of_one_image_under_batchnorm(tmp_path, capsys, stream_of):
    stream_of(8, 8, 9, 8)
    assert "task 2/2 has 17 examples" in (err := alone(tmp_path, capsys, "--model", "sgd", *BATCHNORM))
    assert "add --drop_last or change --batch_size" in err
    assert "give --batch_size 2" in alone(tmp_path, capsys, "--model", "sgd", *BATCHNORM[:2], "--batch_size", "1")
    stream = ["--model", "sgd", *DIGITS]
    for fine in (
        [*BATCHNORM, "--drop_last"],
        [*BATCHNORM, "--stop_after", "1"],
        [*BATCHNORM, "--fitting_mode", "iters", "--n_iters", "2"],
        ["--backbone", "convnet", "--norm", "batch", "--batch_size", "1"],  # several values per channel
        ["--backbone", "mnistmlp", "--batch_size", "1"],
    ):
        built(*stream, *fine)


def test_replayed_images_keep_an_image_company(tmp_path, capsys, stream_of):
    replay, derpp = ["--buffer_size", "20"], ["--alpha", "1", "--beta", "1"]
    stream_of(8, 8, 9, 8)  # the second task
    for model in ("er", "gss", "mer --beta 1 --gamma 1"):
        built("--model", *model.split(), *replay, *DIGITS, *BATCHNORM)
    assert "task 2/2" in alone(tmp_path, capsys, "--model", "derpp", *derpp, *replay, *BATCHNORM)
    stream_of(9, 8, 8, 8)  # the first one: exemplars are chosen at its end, a reservoir begins with the first batch
    built("--model", "er", *replay, *DIGITS, *BATCHNORM)
    assert "task 1/2 has 17" in alone(tmp_path, capsys, "--model", "icarl", *replay, *BATCHNORM)
    stream_of(8, 8, 8, 8)
    err = alone(tmp_path, capsys, "--model", "derpp", *derpp, *replay, *BATCHNORM, "--minibatch_size", "1")
    assert "give --minibatch_size 2 or more" in err
    stream_of(8, 8, 8, 8, 8, 8)
    gem = ["--model", "gem", "--buffer_size", "3", *BATCHNORM]
    assert "memory of each of 2 tasks" in alone(tmp_path, capsys, *gem)
    built(*gem, *DIGITS, "--stop_after", "2")


def test_exemplars_that_leave_one_image_of_the_union_alone(tmp_path, capsys, stream_of):
    stream_of(8, 8, 8, 8)  # 16 images and 8 or 9 exemplars
    argv = ["--buffer_size", "9", *BATCHNORM]
    for model in ("icarl", "lucir"):
        built("--model", model, *argv, *DIGITS)
    stream_of(8, 8, 9, 8)
    for model in ("icarl", "lucir"):
        assert "task 2/2 has 25 examples" in alone(tmp_path, capsys, "--model", model, *argv)
        built("--model", model, *argv, *DIGITS, "--stop_after", "1")
    stream_of(10, 9, 9, 10)  # the prototype image of each class is not trained on
    for size in (8, 16):
        err = alone(tmp_path, capsys, "--model", "pah", *BATCHNORM[:2], "--batch_size", str(size))
        assert "task 1/2 has 17 examples" in err
    built("--model", "pah", *DIGITS, *BATCHNORM[:2], "--batch_size", "18")


@pytest.mark.parametrize(
    "model", ["sgd", "icarl", "lucir --fitting_epochs 1", "bic --bic_epochs 1", "pah", "pr_bbb --coreset_size 3"]
)
@pytest.mark.parametrize("more", [[], ["--start_from", "1"], ["--stop_after", "2"], ["--label_perc", "0.6"]])
def test_the_length_of_every_epoch_is_known_at_the_start(stream_of, model, more):
    if "coreset" in model and "--start_from" in more:
        pytest.skip("is refused")
    stream_of(30, 21, 20, 11, 9, 40)
    buffer = [] if model.split()[0] in ("sgd", "pah", "pr_bbb") else ["--buffer_size", "67"]
    exp = built("--model", *model.split(), *buffer, *DIGITS, "--backbone", "mnistmlp", *more)
    tasks = range(exp.args.start_from, exp.args.stop_after or 3)
    told, found, begin_task = exp.model.epoch_sizes(exp.dataset, tasks), [], exp.model.meta_begin_task
    vars(exp.model)["meta_begin_task"] = lambda stream: (
        begin_task(stream) or found.append(len(stream.train_loader.dataset))
    )
    train(exp)
    assert told == found and len(set(found)) > 1


def test_passes_through_the_memory_are_known_by_their_length(stream_of):
    stream_of(8, 3, 8, 8)
    exp = built("--model", "gdumb", "--buffer_size", "20", *DIGITS, "--batch_size", "10")
    assert isinstance(exp.model, GDumb)
    # Shares of 10 and of 5: 8 + 3, and 5 + 3 + 5 + 5, in batches of 10.
    assert [size for _, size in exp.model.other_batches(exp.dataset, 2)] == [1, 8]
    exp = built("--model", "hal", "--buffer_size", "21", *DIGITS, "--batch_size", "10")
    assert isinstance(exp.model, HAL)
    assert [size for _, size in exp.model.other_batches(exp.dataset, 2)] == [2, 1, 1]


def test_gdumb_tells_the_length_of_its_own_memory(stream_of):
    stream_of(8, 3, 8, 8)
    exp = finished("gdumb", "--buffer_size", "20", "--fitting_epochs", "1", "--n_epochs", "1", "--batch_size", "10")
    assert len(exp.model.buffer) == 18


@pytest.mark.parametrize("std, more, words", [
    (None, ["--normalize", "imagenet"], "--normalize imagenet has statistics of 3 channels, the images of seq-digits"),
    ((0.5, 0.5, 0.5), [], "STD has statistics of 3 channels"),
])  # fmt: skip
def test_statistics_of_three_channels_do_not_fit_grey_images(tmp_path, capsys, monkeypatch, std, more, words):
    if std:
        monkeypatch.setattr(SequentialDigits, "STD", std)
    assert words in refusal(tmp_path, capsys, "--model", "sgd", *DIGITS, *more)


@pytest.mark.parametrize("choice", ["half", "none", "dataset"])
def test_one_value_stands_for_all_channels(choice):
    assert finished("sgd", "--normalize", choice, "--n_epochs", "1", "--stop_after", "1").run.history


def test_a_batch_of_one_that_nobody_foresaw_is_one_line(tmp_path, capsys, monkeypatch):
    from palimpsest.models.sgd import SGD

    def lone(self, inputs, *_):
        nn.functional.batch_norm(inputs.flatten(1)[:1], None, None, training=True)

    monkeypatch.setattr(SGD, "observe", lone)
    assert entry.main(["--model", "sgd", *DIGITS, "--results_path", str(tmp_path), "--num_threads", "1"]) == 1
    err = capsys.readouterr().err
    assert "BatchNorm cannot normalise a batch of one example: add --drop_last" in err and err.count("\n") == 1


def test_a_coreset_that_would_be_a_whole_task(tmp_path, capsys, stream_of):
    stream_of(8, 8, 4, 4)
    argv = ["--model", "pr_bbb", *DIGITS, "--backbone", "mnistmlp", "--coreset_size", "8"]
    assert "--coreset_size 8: a task has 8 examples" in refusal(tmp_path, capsys, *argv)
