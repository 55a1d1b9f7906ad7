"""Which images and labels the parts of a stream hold: training, held-out and test part, for every way of cutting."""

from collections import Counter

import pytest
import torch

from palimpsest.datasets.utils import sources, streams
from palimpsest.datasets.utils.sources import digits
from palimpsest.datasets.utils.streams import ClassIncremental
from palimpsest.utils.run.config import resolve
from tests.models.helpers import options

ORDER = [3, 0, 4, 1, 2, 9, 5, 8, 6, 7]  # its inverse is another one


class Augmented(ClassIncremental):
    """Digits that are cropped and mirrored in training."""

    NAME, SOURCE, N_TASKS = "augmented", sources.digits, 5
    AUGMENT = {"crop_padding": 2, "flip": True}
    DEFAULTS = {"backbone": "mnistmlp", "lr": 0.1, "n_epochs": 1, "batch_size": 32}


def stream(name: str, *more: str):
    config = resolve(["--model", "sgd", "--dataset", name, *more])
    return config.dataset_class(config.args)


def augmented(*more: str) -> Augmented:
    return Augmented(options("sgd", *more))


def contents(*parts) -> Counter:
    """How often each (image, label) is in some parts of a stream."""
    rows = (zip(part.data.flatten(1).tolist(), part.targets.tolist(), strict=True) for part in parts)
    return Counter((tuple(image), str(label)) for part in rows for image, label in part)


@pytest.mark.parametrize("option", ["--holdout", "--validation"])
def test_a_class_order_relabels_every_part(option):
    dataset, raw = (
        stream("seq-digits", "--custom_class_order", ",".join(map(str, ORDER)), option, "20"),
        digits("./data"),
    )
    for task in range(5):
        train = dataset.enter_task(task)
        tests = raw.train_y if option == "--validation" else raw.test_y
        for loader, labels in (
            (train, raw.train_y), (dataset.held_out_loader, raw.train_y), (dataset.test_loaders[task], tests),
        ):  # fmt: skip
            own = labels[loader.dataset.rows].tolist()
            assert set(own) == set(ORDER[2 * task : 2 * task + 2])
            assert loader.dataset.targets.tolist() == [ORDER.index(c) for c in own]


@pytest.mark.parametrize(
    "name", ["seq-digits", "perm-digits", "rot-digits", "digits-360", "seq-gmm2d", "seq-poly1d", "seq-language"]
)
def test_held_out_examples_are_scored_and_never_trained_on(name, monkeypatch):
    monkeypatch.setattr(streams, "rotate", lambda images, angles: images)  # it depends on the place in the stream
    whole, holdout, validation = stream(name), stream(name, "--holdout", "20"), stream(name, "--validation", "20")
    for task in {0, whole.N_TASKS - 1}:
        for dataset in (whole, holdout, validation):
            dataset.enter_task(task)
        train, held_out = holdout.train_loader.dataset, holdout.held_out_loader.dataset
        assert len(held_out) == pytest.approx(0.2 * len(whole.train_loader.dataset), rel=0.2, abs=1)
        assert contents(train, held_out) == contents(whole.train_loader.dataset)
        assert contents(validation.train_loader.dataset) == contents(train)
        assert contents(validation.test_loaders[task].dataset) == contents(held_out)
        assert contents(holdout.test_loaders[task].dataset) == contents(whole.test_loaders[task].dataset)


@pytest.mark.parametrize("name", ["perm-digits", "rot-digits"])
def test_training_and_test_images_of_a_task_are_of_one_domain(name):
    order, raw = [2, 0, 1, *range(3, 20)], digits("./data")
    dataset = stream(name, "--custom_task_order", ",".join(map(str, order)))
    dataset.all_test_loaders()
    for task in (0, 1, 4):
        assert torch.equal(dataset.task_data(task).data, dataset.transformed(raw.train_x, order[task]))
        assert torch.equal(dataset.test_loaders[task].dataset.data, dataset.transformed(raw.test_x, order[task]))
        assert torch.equal(dataset.test_loaders[task].dataset.targets, raw.test_y)


def test_each_class_of_the_turning_stream_turns_once_and_begins_a_sixth_later(monkeypatch):
    given = []
    monkeypatch.setattr(streams, "rotate", lambda images, angles: given.append(angles) or images)
    train = stream("digits-360").task_data(0)
    for j in range(9):
        mine = given[0][train.targets == j]  # the training images are the first to be turned
        torch.testing.assert_close(mine, (j - 1) * 60 + torch.arange(len(mine)) * 360 / len(mine))


# ---- what is drawn, and what is not


def test_only_training_images_are_augmented():
    dataset = augmented("--holdout", "20", "--eval_batch_size", "50")
    dataset.enter_task(0)
    for loader in (dataset.test_loaders[0], dataset.held_out_loader):
        inputs = torch.cat([x for x, _ in loader])
        assert torch.equal(inputs, (loader.dataset.data.float() / 255 - 0.5) / 0.5)
    data = dataset.task_data(0)
    assert torch.equal(data[3][0], (data[3][2].float() / 255 - 0.5) / 0.5)
    inputs, _, raw = next(dataset.train_loader.epoch(0))
    assert not torch.equal(inputs, (raw.float() / 255 - 0.5) / 0.5)


def test_augmentation_is_a_function_of_the_seed_and_of_its_state():
    first, again, other = augmented(), augmented(), augmented("--seed", "1")
    raw = first.task_data(0).data[:64]
    seen = first.get_transform()(raw)
    assert torch.equal(again.get_transform()(raw), seen) and not torch.equal(other.get_transform()(raw), seen)
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.get_transform()(raw), first.get_transform()(raw))


def test_every_seed_task_and_epoch_has_an_order_of_its_own():
    def order(seed: str, task: int, epoch: int) -> list[int]:
        loader = stream("perm-digits", "--seed", seed).enter_task(task)  # every task has the same labels in storage
        return torch.cat([y for _, y, _ in loader.epoch(epoch)]).tolist()

    places = [("0", 0, 0), ("0", 0, 1), ("0", 1, 0), ("1", 0, 0)]
    orders = [order(*place) for place in places]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    assert order(*places[2]) == orders[2]


def test_training_and_test_sequences_begin_with_tokens_of_their_own():
    dataset = stream("seq-language")
    dataset.all_test_loaders()
    for task in range(3):
        train, test = dataset.task_data(task).data[:, 1], dataset.test_loaders[task].dataset.data[:, 1]
        assert not torch.equal(train[: len(test)], test)
