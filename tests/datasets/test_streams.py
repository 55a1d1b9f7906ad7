"""How data become tasks: class orders, permutations, rotations, splits, noise, batches; all functions of the seed."""

import subprocess
import sys

import pytest
import torch

from palimpsest.datasets.utils import sources
from palimpsest.datasets.utils.continual_dataset import stratified_mask
from palimpsest.datasets.utils.label_noise import noisy_labels
from palimpsest.datasets.utils.loaders import EvalLoader, Split, TrainLoader
from palimpsest.datasets.utils.sources import digits
from palimpsest.datasets.utils.streams import ClassIncremental, Rotated, interleave
from palimpsest.datasets.utils.transforms import rotate
from palimpsest.utils import registry
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import resolve
from tests.datasets import formats
from tests.models.helpers import experiment


def stream(name: str, *more: str, model: str = "sgd"):
    config = resolve(["--model", model, "--dataset", name, *more])
    return config.dataset_class(config.args)


def test_a_source_tells_its_streams_what_they_do_not_say():
    class Own(ClassIncremental):
        SOURCE = sources.digits
        SIZE, N_CLASSES, MEAN, STD = (1, 8, 9), 4, (0.1,), (0.2,)

    class Plain(ClassIncremental):
        SOURCE = staticmethod(lambda base_path: None)
        SIZE = (1, 2, 2)

    class Colours(Rotated):
        SOURCE = sources.cifar10

    assert (Own.SIZE, Own.N_CLASSES, Own.MEAN, Own.STD) == ((1, 8, 9), 4, (0.1,), (0.2,))
    assert (Plain.SIZE, Plain.MEAN, hasattr(Plain, "N_CLASSES")) == ((1, 2, 2), None, False)
    assert (Colours.SIZE, Colours.N_CLASSES_PER_TASK, Colours.MEAN) == ((3, 32, 32), 10, sources.cifar10.MEAN)
    turning = registry.load("dataset", "digits-360")
    assert (turning.SIZE, turning.N_CLASSES, turning.STD) == ((1, 8, 8), 9, (0.5,))


def test_class_incremental_tasks_partition_the_data():
    dataset, raw = stream("seq-digits"), digits("./data")
    rows = []
    for task in range(5):
        train, test = dataset.get_data_loaders()
        for loader in (train, test):
            assert loader.dataset.targets.unique().tolist() == [2 * task, 2 * task + 1]
        rows.append(train.dataset.rows)
    assert torch.cat(rows).sort().values.tolist() == list(range(len(raw.train_y)))
    assert sum(len(t.dataset) for t in dataset.test_loaders) == len(raw.test_y)


def test_batches_hold_network_inputs_labels_and_raw_images():
    dataset = stream("seq-digits")
    train, _ = dataset.get_data_loaders()
    inputs, labels, raw = next(iter(train))
    assert raw.dtype == torch.uint8 and inputs.dtype == torch.float32 and labels.dtype == torch.int64
    torch.testing.assert_close(inputs, (raw.float() / 255 - 0.5) / 0.5)
    torch.testing.assert_close(dataset.get_denormalization_transform()(inputs), raw.float() / 255)


def test_every_epoch_has_an_order_of_its_own_and_can_be_entered_at_any_batch():
    train, _ = stream("seq-digits").get_data_loaders()
    orders = [torch.cat([raw.flatten(1).long().sum(1) for _, _, raw in train.epoch(e)]) for e in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    assert torch.equal(orders[0].sort().values, orders[2].sort().values)
    whole, late = ([y for _, y, _ in train.epoch(3, start)] for start in (0, 4))
    assert len(late) == len(whole) - 4 and all(torch.equal(a, b) for a, b in zip(whole[4:], late, strict=True))


def test_loader_lengths():
    split = Split(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.arange(10))
    rows = torch.arange(10)

    def loader(**more):
        return TrainLoader(split, rows, 4, lambda x: x, lambda n, e: torch.arange(n), **more)

    assert [len(y) for _, y, _ in loader()] == [4, 4, 2] and len(loader()) == 3
    assert [len(y) for _, y, _ in loader(drop_last=True)] == [4, 4] and len(loader(drop_last=True)) == 2
    assert len(list(loader(max_batches=1))) == 1
    some = loader()
    some.keep(torch.tensor([1, 3]))
    assert [y.tolist() for _, y, _ in some] == [[1, 3]]
    assert [y.tolist() for _, y in EvalLoader(split, rows[:5], 3, lambda x: x)] == [[0, 1, 2], [3, 4]]


def test_two_methods_with_one_seed_see_the_same_stream():
    methods = experiment("sgd", dataset="perm-digits"), experiment("er", "--buffer_size", "50", dataset="perm-digits")
    batches = [next(exp.dataset.enter_task(1).epoch(0)) for exp in methods]
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_class_orders():
    custom = stream("seq-digits", "--custom_class_order", "9,8,7,6,5,4,3,2,1,0")
    plain, raw = stream("seq-digits"), digits("./data")
    shown = custom.task_data(0)
    assert torch.equal(shown.rows, plain.task_data(4).rows)
    assert torch.equal(shown.targets, 9 - raw.train_y[shown.rows])
    a, b, c = (stream("seq-digits", "--permute_classes", "--seed", s) for s in "001")
    assert torch.equal(a._train.targets, b._train.targets) and not torch.equal(a._train.targets, c._train.targets)
    with pytest.raises(UserError, match="name each class from 0 to 9 once"):
        stream("seq-digits", "--custom_class_order", "1,2,3")


def test_a_task_order_of_classes():
    moved, plain = stream("seq-digits", "--custom_task_order", "4,0,1,2,3"), stream("seq-digits")
    assert torch.equal(moved.task_data(0).rows, plain.task_data(4).rows)
    assert moved.task_data(0).targets.unique().tolist() == [0, 1]


def test_options_of_permuted_streams():
    plain, few = stream("perm-digits"), stream("perm-digits", "--n_tasks", "3")
    assert (plain.N_TASKS, few.N_TASKS, few.EVAL_TASKS) == (20, 3, 3)
    assert torch.equal(plain.task_data(2).data, few.task_data(2).data)
    raw = digits("./data").train_x
    first = stream("perm-digits", "--identity_first")
    assert torch.equal(first.task_data(0).data, raw) and torch.equal(first.task_data(1).data, plain.task_data(1).data)
    padded = stream("perm-digits", "--identity_first", "--pad", "2")
    assert padded.SIZE == (1, 12, 12)
    assert torch.equal(padded.task_data(0).data, torch.nn.functional.pad(raw, (2, 2, 2, 2)))
    shuffled = padded.task_data(1).data
    assert shuffled.shape == (len(raw), 1, 12, 12) and shuffled.dtype == torch.uint8
    pixels = padded.task_data(0).data.flatten(1)
    assert torch.equal(shuffled.flatten(1).sort(1).values, pixels.sort(1).values)
    assert (shuffled.flatten(1)[:, : 2 * 12] > 0).any()  # the margin is shuffled too
    net = experiment("sgd", "--pad", "2", dataset="perm-digits").model.net
    assert net.layers[0].in_features == 144


def test_the_permutations_are_what_they_were():
    """A fingerprint of the first tasks, so that published rows keep their meaning."""
    dataset = stream("perm-digits")
    weights = torch.arange(64, dtype=torch.float64)
    sums = [(dataset.task_data(t).data.flatten(1).double() @ weights).sum().item() for t in range(3)]
    assert sums == [208072461, 212646470, 224021424]
    assert dataset.cpt(0) == 10 and dataset.get_offsets(1) == (0, 10)


def test_rotation_angles_lie_in_half_a_turn_and_differ():
    dataset = stream("rot-digits")
    angles = [dataset.angle(t) for t in range(20)]
    assert all(0 <= a < 180 for a in angles) and len(set(angles)) == 20
    assert angles == [stream("rot-digits").angle(t) for t in range(20)]


def test_the_turning_stream():
    dataset, raw = stream("digits-360"), digits("./data")
    dataset.get_data_loaders()
    labels = torch.cat([y for _, y, _ in dataset.train_loader.epoch(0)])
    n = [(raw.train_y == j).sum().item() for j in range(9)]
    assert labels.bincount().tolist() == n
    # Nine stages a round, each of two neighbouring classes; the first images show classes 0 and 1 in turn.
    first = labels[: (n[0] + 5) // 6 + (n[1] + 5) // 6 - 4]
    assert set(first.tolist()) == {0, 1}
    assert (labels[1:] != labels[:-1]).float().mean() > 0.8
    again = stream("digits-360")
    assert torch.equal(again.enter_task(0).dataset.data, dataset.train_loader.dataset.data)
    assert torch.equal(again.test_loaders[0].dataset.data, dataset.test_loaders[0].dataset.data)
    joint = stream("digits-360", model="joint").enter_task(0)
    assert (torch.cat([y for _, y, _ in joint.epoch(0)])[:40] > 1).any()


def test_the_turning_stream_turns_by_the_stated_angles():
    dataset, raw = stream("digits-360"), digits("./data")
    zeros = raw.test_x[raw.test_y == 0]
    turned = rotate(zeros, torch.arange(len(zeros)) * 360 / len(zeros))
    assert torch.equal(dataset.all_test_loaders()[0].dataset.data[: len(zeros)], turned)
    shown = dataset.task_data(0)
    assert all(len(shown.data[shown.targets == j].unique(dim=0)) > 100 for j in range(9))


def test_interleave():
    assert interleave(torch.tensor([1, 2, 3, 4]), torch.tensor([9, 8])).tolist() == [1, 9, 2, 3, 8, 4]


def test_the_same_share_of_every_class_is_held_out_others_for_another_seed():
    first, other = (stream("seq-digits", "--holdout", "20", "--seed", seed) for seed in "01")
    for dataset in (first, other):
        dataset.enter_task(0)
    a, b = (dataset.held_out_loader.dataset for dataset in (first, other))
    expected = [round(0.2 * n) for n in digits("./data").train_y.bincount()[:2].tolist()]
    assert a.targets.bincount().tolist() == b.targets.bincount().tolist() == expected and not torch.equal(
        a.rows, b.rows
    )


def test_joint_is_one_task_scored_on_all():
    dataset = stream("seq-digits", "--joint")
    train, _ = dataset.get_data_loaders()
    assert dataset.N_TASKS == 1 and dataset.EVAL_TASKS == 5 and len(dataset.test_loaders) == 5
    assert len(train.dataset) == 1347 and dataset.task_classes(3) == (6, 8) and dataset.get_offsets(0) == (0, 10)
    domains = stream("perm-digits", "--joint", "--debug_mode")
    assert len(domains.get_data_loaders()[0].dataset) == 20 * 1347


def test_label_noise_by_hand():
    y = torch.arange(10).repeat(1000)
    same = noisy_labels(y, "symmetric", 0.0, 0)
    assert same is y
    flipped = noisy_labels(y, "symmetric", 0.3, 0)
    assert (flipped != y).float().mean().item() == pytest.approx(0.3, abs=0.015)
    counts = flipped[(y == 0) & (flipped != y)].bincount(minlength=10)
    assert counts[0] == 0 and counts[1:].min() > 15
    paired = noisy_labels(y, "asymmetric", 0.3, 0)
    assert (((paired - y) % 10)[paired != y] == 1).all()
    assert torch.equal(paired, noisy_labels(y, "asymmetric", 0.3, 0))


def test_held_out_labels_are_clean():
    dataset, raw = stream("seq-digits", "--validation", "20", "--noise_rate", "0.5"), digits("./data")
    dataset.enter_task(0)
    held = dataset.held_out_loader.dataset
    assert torch.equal(held.targets, raw.train_y[held.rows])


def test_few_labels():
    mask = stratified_mask(torch.tensor([0] * 100 + [1] * 10 + [2]), 0.1, 0, "labelled")
    assert [mask[:100].sum().item(), mask[100:110].sum().item(), mask[110:].sum().item()] == [10, 1, 1]
    assert 26 <= len(stream("seq-digits", "--label_perc", "0.1").enter_task(0).dataset) <= 28


def test_normalisation_choices():
    for choice, low, high in (("none", 0, 1), ("half", -1, 1)):
        dataset = stream("seq-digits", "--normalize", choice)
        inputs = next(iter(dataset.get_data_loaders()[0]))[0]
        assert inputs.min() == low and inputs.max() == high


@pytest.mark.parametrize("kind", ["seq-{}", "perm-{}", "rot-{}", "{}-360"])
@pytest.mark.parametrize("family, folder", [("mnist", "MNIST"), ("kmnist", "KMNIST"), ("fmnist", "FashionMNIST")])
def test_the_mnist_family_reads_the_official_files(kind, family, folder, tmp_path, monkeypatch):
    formats.accept_small(monkeypatch)
    formats.write_idx_family(tmp_path / folder / "raw", compress=True)
    dataset = stream(kind.format(family), "--base_path", str(tmp_path), "--batch_size", "2")
    train, test = dataset.get_data_loaders()
    inputs, labels, raw = next(iter(train))
    assert inputs.shape[1:] == (1, 28, 28) and inputs.min() >= 0 and inputs.max() <= 1 and len(test.dataset)


def test_number_of_tasks_of_cifar100(tmp_path, monkeypatch):
    formats.write_cifar(tmp_path, "CIFAR100", n_train=100, n_test=100)
    formats.accept(monkeypatch, tmp_path, "CIFAR100")
    for tasks in ("5", "10", "20"):
        dataset = stream("seq-cifar100", "--n_tasks", tasks, "--base_path", str(tmp_path))
        assert int(tasks) == dataset.N_TASKS and dataset.cpt(0) == 100 // int(tasks)
    with pytest.raises(UserError, match="invalid choice"):
        stream("seq-cifar100", "--n_tasks", "7")


@pytest.mark.parametrize("name", registry.names("dataset"))
def test_a_dataset_file_declares_what_it_must(name):
    cls = registry.load("dataset", name)
    assert registry.normalise(cls.NAME) == name
    assert {"backbone", "lr", "n_epochs", "batch_size"} <= cls.DEFAULTS.keys()
    per_task = cls.N_CLASSES_PER_TASK
    assert cls.SETTING != "class-il" or per_task * cls.N_TASKS == cls.N_CLASSES


def test_importing_one_dataset_imports_no_other_and_large_packages_on_use_only():
    code = (
        "import sys; from palimpsest.datasets import seq_mnist; from palimpsest.backbone import resnet50, mobilenet_v2;"
        "rooms = 'palimpsest.datasets.';"
        "print([n for n in sys.modules if n.startswith(rooms) and n.count('.') == 2 and not n.endswith('.utils')], "
        "[n for n in ('torchvision', 'sklearn', 'PIL', 'scipy') if n in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=registry.ROOT, check=True)
    assert out.stdout.strip() == "['palimpsest.datasets.seq_mnist'] []"


@pytest.mark.parametrize("name, options", [("perm-digits", ["--pad", "1"]), ("rot-digits", [])])
def test_test_images_of_domains_are_transformed_when_they_are_read_and_not_kept(name, options):
    dataset, raw = stream(name, *options, "--eval_batch_size", "100"), digits("./data")
    loaders = dataset.all_test_loaders()
    for task in (0, 3):
        data = loaders[task].dataset
        expected = dataset.transformed(raw.test_x, task)
        assert torch.equal(data.data, expected) and torch.equal(data.targets, raw.test_y)
        assert torch.equal(data.source.images, expected)
        image, label, stored = data[7]
        assert torch.equal(stored, expected[7]) and label == raw.test_y[7]
        assert torch.equal(image, dataset.get_normalization_transform()(expected[7]))
        first, _ = data.first()
        assert torch.equal(first, expected[:1])
        batches = [inputs for inputs, _ in loaders[task]]
        assert torch.equal(torch.cat(batches), dataset.get_normalization_transform()(expected))
        held = [t for t in vars(data.source).values() if isinstance(t, torch.Tensor)]
        assert not any(t.dtype == torch.uint8 for t in held)
    assert len({id(loader.dataset.source._split) for loader in loaders}) == 1
