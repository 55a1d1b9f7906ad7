"""Which class asymmetric label noise takes another for: the literature's map where there is one."""

import torch

from palimpsest.datasets.seq_cifar10 import SequentialCIFAR10
from palimpsest.datasets.utils.label_noise import CONFUSED_WITH, SUPER_CLASSES, noisy_labels
from palimpsest.datasets.utils.source_files import RawData
from tests.models.helpers import options

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def taken_for(targets, source):
    """class -> what all its labels become at rate 1."""
    found = noisy_labels(targets, "asymmetric", 1.0, 0, source)
    return {int(c): int(found[targets == c].unique()) for c in targets.unique()}


def test_cifar10_has_the_published_map():
    found = {CIFAR10[a]: CIFAR10[b] for a, b in taken_for(torch.arange(10).repeat(3), "CIFAR10").items() if a != b}
    assert found == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}


def test_cifar100_stays_within_super_classes():
    """Their members are pinned by name: sea animals, trees, people."""
    assert [SUPER_CLASSES.count(g) for g in range(20)] == [5] * 20
    found = taken_for(torch.arange(100), "CIFAR100")
    for circle in ([4, 30, 55, 72, 95], [47, 52, 56, 59, 96], [2, 11, 35, 46, 98], [8, 13, 48, 58, 90]):
        assert [found[c] for c in circle] == circle[1:] + circle[:1]
    assert sorted(found.values()) == list(range(100)) and all(
        SUPER_CLASSES[a] == SUPER_CLASSES[b] for a, b in found.items()
    )


def test_elsewhere_the_next_class():
    assert taken_for(torch.arange(10), "MNIST") == {c: (c + 1) % 10 for c in range(10)}
    assert set(CONFUSED_WITH) == {"CIFAR10", "CIFAR100"}


def test_the_stream_asks_for_the_map_of_its_source(monkeypatch):
    """Half of the labels, on raw classes: the class order comes after."""
    labels = torch.arange(10).repeat(400)
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[..., 0, 0] = 255
    raw = RawData(image.expand(4000, -1, -1, -1), labels, image.expand(10, -1, -1, -1), torch.arange(10))
    monkeypatch.setattr(type(SequentialCIFAR10.SOURCE), "__call__", lambda self, base: raw)
    args = ["--noise_type", "asymmetric", "--noise_rate", "0.5", "--permute_classes"]
    read = SequentialCIFAR10(options("sgd", *args, dataset="seq-cifar10"))._read().train_y
    for c, wrong in enumerate(CONFUSED_WITH["CIFAR10"]):
        of_c = read[labels == c].bincount(minlength=10)
        assert of_c[c] + (of_c[wrong] if wrong != c else 0) == 400
        assert wrong == c or 150 < of_c[wrong] < 250
