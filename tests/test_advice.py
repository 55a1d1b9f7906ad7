"""Advice names what was the cause: the buffer, the batch, the statistics."""

import pytest
import torch

import main as entry
from palimpsest.utils.buffer import Buffer

ARGV = ["--dataset", "seq-digits", "--n_epochs", "1", "--label_perc", "0.1", "--stop_after", "1", "--num_threads", "1"]
ARGV += ["--non_verbose", "--disable_log"]


def refused(capsys, status: int, *argv: str) -> str:
    given, err = entry.main([*argv, *ARGV]), capsys.readouterr().err
    assert given == status and err.startswith("main.py: ") and err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("size", [10**13, 10**18])
@pytest.mark.parametrize("method", ["er", "der"])
def test_a_buffer_that_does_not_fit_is_named(capsys, method, size):
    own = ["--alpha", "0.5"] if method == "der" else []
    err = refused(capsys, 1, "--model", method, *own, "--buffer_size", str(size))
    assert f"--buffer_size {size}: try --buffer_size {size // 2} or {size // 4}" in err and "--batch_size" not in err


def test_a_batch_that_does_not_fit_is_named_also_where_there_is_a_buffer(capsys, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Buffer, "add_data", refuse)
    err = refused(capsys, 1, "--model", "er", "--buffer_size", "50")
    assert "--batch_size 16 or 8" in err and "try --buffer_size" not in err


def test_statistics_of_three_channels_do_not_fit_grey_images(capsys):
    err = refused(capsys, 2, "--model", "sgd", "--normalize", "imagenet")
    assert "--normalize imagenet has statistics of 3 channels, the images of seq-digits have 1" in err


def test_statistics_of_a_stream_that_do_not_fit_its_own_images(capsys, monkeypatch):
    from palimpsest.datasets.seq_digits import SequentialDigits

    monkeypatch.setattr(SequentialDigits, "STD", (0.5, 0.5, 0.5))
    assert "STD has statistics of 3 channels" in refused(capsys, 2, "--model", "sgd")


@pytest.mark.parametrize("choice", ["half", "none", "dataset"])
def test_one_value_stands_for_all_channels(choice):
    assert entry.main(["--model", "sgd", "--normalize", choice, *ARGV]) == 0
