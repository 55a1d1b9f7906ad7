"""Methods with exemplars train on the union of new data and exemplars: longer epochs of batches of the usual size."""

import math
from collections import Counter

import pytest
import torch

from palimpsest.datasets.utils.loaders import Split, TrainLoader
from palimpsest.models.utils.exemplars import Exemplars
from palimpsest.utils import registry
from palimpsest.utils.run.training import train
from tests.models.helpers import experiment

METHODS = [m for m in registry.names("model") if issubclass(registry.load("model", m), Exemplars)]
SHORT = ["--buffer_size", "60", "--label_perc", "0.3", "--backbone", "mnistmlp"]


def digests(images):
    return [bytes(row.flatten().tolist()) for row in images]


def batches_of(method, tasks=2):
    """The experiment after some tasks, the raw images and labels of each batch: {(task, epoch): [...]}, and the
    buffer after each task."""
    exp, seen = experiment(method, *SHORT, "--n_epochs", "2", "--stop_after", str(tasks)), {}
    original = exp.model.observe

    def observe(inputs, labels, raw, epoch=None):
        assert len(inputs) == len(labels) == len(raw)
        seen.setdefault((exp.model.current_task, epoch), []).append((digests(raw), labels.clone()))
        return original(inputs, labels, raw, epoch=epoch)

    vars(exp.model)["observe"] = observe
    kept, end_task, buffer = [], exp.model.meta_end_task, exp.model.buffer
    vars(exp.model)["meta_end_task"] = lambda stream: (
        end_task(stream) or kept.append([f.clone() for f in buffer.get_all_data()])
    )
    train(exp)
    return exp, seen, kept


def test_which_methods():
    assert METHODS == ["bic", "icarl", "lucir"]


@pytest.mark.parametrize("method", METHODS)
def test_an_epoch_is_one_pass_over_the_union(method):
    exp, seen, kept = batches_of(method)
    images, labels = kept[0][:2]
    rows = [i for i in range(60) if method != "bic" or i % 10]  # bic holds a tenth of each class out
    exemplars = Counter(zip(digests(images[rows]), labels[rows].tolist(), strict=True))
    n = len(exp.dataset.task_data(1))
    new = n if method != "bic" else None
    for epoch in (0, 1):
        batches = seen[1, epoch]
        sizes = [len(y) for _, y in batches]
        assert set(sizes[:-1]) == {exp.args.batch_size} and 0 < sizes[-1] <= exp.args.batch_size
        assert new is None or len(sizes) == math.ceil((new + 60) / exp.args.batch_size)
        drawn = Counter(pair for raw, y in batches for pair in zip(raw, y.tolist(), strict=True))
        assert {pair: count for pair, count in drawn.items() if pair[1] < 2} == exemplars
        assert new is None or drawn.total() == new + 60
    # Mixed, and anew in every epoch.
    first, second = ([y.tolist() for _, y in seen[1, epoch]] for epoch in (0, 1))
    assert first != second and min(first[0]) < 2 <= max(first[0])
    # Exemplars do not enter the next selection as new data.
    assert Counter(kept[1][1].tolist()) == {0: 15, 1: 15, 2: 15, 3: 15}


@pytest.mark.parametrize("method", METHODS)
def test_the_first_task_has_no_more_than_its_data(method):
    exp, seen, _ = batches_of(method, 1)
    assert sum(len(y) for _, y in seen[0, 0]) <= len(exp.dataset.task_data(0))


def test_joined_examples_come_last_in_the_data_and_are_transformed_alike():
    split = Split(torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1), torch.arange(8))
    loader = TrainLoader(
        split, torch.tensor([1, 3, 5]), 2, lambda x: x.float() / 2, lambda n, e: torch.arange(n).flip(0)
    )
    loader.keep(torch.tensor([0, 2]))
    loader.join(torch.full((3, 1, 1, 1), 9, dtype=torch.uint8), torch.tensor([7, 7, 6]))
    assert loader.dataset.targets.tolist() == [1, 5, 7, 7, 6] and len(loader) == 3
    x, y, raw = map(torch.cat, zip(*loader.epoch(0), strict=True))
    assert y.tolist() == [6, 7, 7, 5, 1] and raw.flatten().tolist() == [9, 9, 9, 5, 1]
    torch.testing.assert_close(x.flatten(), torch.tensor([4.5, 4.5, 4.5, 2.5, 0.5]))
    assert split.targets.tolist() == list(range(8))
