"""What a source or a stream of somebody's own gives is looked at where it enters, before anything is written."""

import re

import numpy as np
import pytest
import torch

import main as entry
from palimpsest.datasets.utils.checks import checked_data
from palimpsest.datasets.utils.loaders import Split
from palimpsest.datasets.utils.sources import RawData
from palimpsest.datasets.utils.streams import ClassIncremental, DomainIncremental, SeparateDomains
from palimpsest.datasets.utils.vectors import RegressionStream, VectorStream
from palimpsest.utils.errors import UserError
from tests.models.helpers import options


def data(**changes) -> RawData:
    """20 training and 8 test images of 4 classes; `changes` are functions of one part."""
    y = torch.arange(28) % 4
    x = torch.randint(0, 255, (28, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0, 0] = 255
    parts = {"train_x": x[:20], "train_y": y[:20], "test_x": x[20:], "test_y": y[20:]}
    return RawData(**{name: changes.get(name[-1], changes.get(name, lambda part: part))(parts[name]) for name in parts})


def refusal(raw, size=(1, 4, 4), classes=4) -> str:
    with pytest.raises(UserError) as caught:
        checked_data("mine", raw, size, classes)
    message = str(caught.value)
    assert "\n" not in message and message.startswith("mine")
    return message


@pytest.mark.parametrize(
    "convert",
    [
        {"x": torch.Tensor.numpy, "y": torch.Tensor.numpy},
        {"y": lambda y: y.to(torch.uint8)},
        {"y": lambda y: y.int().numpy().astype(np.uint16)},
        {"y": torch.Tensor.tolist},
        {"x": lambda x: np.flip(x.numpy(), -1)[..., ::-1]},  # not contiguous
    ],
)
def test_what_says_the_same_is_converted(convert):
    raw, expected = checked_data("mine", data(**convert), (1, 4, 4), 4), data()
    assert checked_data("mine", expected, (1, 4, 4), 4) is expected
    for name in ("train_x", "train_y", "test_x", "test_y"):
        part = getattr(raw, name)
        assert torch.equal(part, getattr(expected, name)) and part.dtype == getattr(expected, name).dtype
    assert raw.checksum == expected.checksum


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.Tensor.float}, "float32 from 1 to 255, expected (N, 1, 4, 4) uint8"),
        ({"x": lambda x: x / 255}, "(images * 255).round().to(torch.uint8)"),
        ({"x": lambda x: x.long() - 128}, "int64 from -127 to 127, expected"),
        ({"x": lambda x: (x > 0).to(torch.uint8)}, "uint8 from 0 to 1, expected 0 to 255"),
        (
            {"x": lambda x: x.squeeze(1)},
            "(20, 4, 4) uint8, expected (N, 1, 4, 4) uint8 from 0 to 255 with N >= 1: give",
        ),
        ({"x": lambda x: x.permute(0, 2, 3, 1)}, "permute(0, 3, 1, 2)"),
        ({"x": lambda x: x[:, :, :3]}, "(20, 1, 3, 4)"),
        ({"x": lambda x: x[:0]}, "N >= 1"),
        ({"x": lambda x: None}, "images are NoneType"),
        ({"x": lambda x: np.array(["a"] * len(x))}, "expected a torch tensor or a numpy array of numbers"),
        ({"y": lambda y: y + 1}, "labels from 1 to 4, 4 classes found and 4 declared"),
        ({"y": lambda y: y - 1}, "labels from -1 to 2"),
        ({"y": lambda y: torch.nn.functional.one_hot(y)}, "they look one-hot, give labels.argmax(1)"),
        ({"y": lambda y: y.unsqueeze(1)}, "labels.squeeze(1)"),
        ({"y": torch.Tensor.float}, "labels are (20,) float32"),
        ({"train_x": torch.Tensor.to_sparse}, "images are a torch.sparse_coo tensor"),
        ({"y": lambda y: y[1:]}, "20 images but 19 labels"),
        ({"y": lambda y: y.clamp(max=2)}, "no training image of class 3, 3 classes found and 4 declared"),
        ({"train_y": lambda y: y.clamp(max=2)}, "no training image of class 3"),
        ({"test_y": lambda y: y.clamp(max=1)}, "no test image of class 2, 3"),
        ({"test_x": torch.Tensor.float}, "mine, test: images"),
        ({"test_y": lambda y: y + 1}, "mine, test: labels from 1 to 4"),
    ],
)
def test_anything_else_says_what_was_given_and_what_is_expected(change, words):
    assert words in refusal(data(**change))


def test_more_classes_than_declared_and_no_raw_data_at_all():
    assert "labels from 0 to 3, 4 classes found and 3 declared" in refusal(data(), classes=3)
    assert "no training image of class 4" in refusal(data(), classes=5)
    assert "SOURCE returned tuple" in refusal((1, 2, 3, 4))


def stream(cls, *argv: str):
    """An object of a stream class; the options are those of sgd on seq-digits."""
    return cls(options("sgd", *argv))


class Mine(ClassIncremental):
    NAME, SOURCE, SIZE = "mine", staticmethod(lambda base_path: data()), (1, 4, 4)
    N_TASKS, N_CLASSES_PER_TASK, N_CLASSES = 2, 2, 4


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"N_TASKS": 3}, "over 3 tasks is 6 and N_CLASSES 4"),
        ({"N_CLASSES_PER_TASK": [1, 2]}, "over 2 tasks is 3 and N_CLASSES 4"),
        ({"N_CLASSES_PER_TASK": [4, 0]}, "a list of 2 numbers above 0"),
        ({"N_CLASSES_PER_TASK": [4]}, "a list of 2 numbers above 0"),
        ({"N_CLASSES_PER_TASK": 2.0}, "N_CLASSES_PER_TASK is 2.0: expected a whole number above 0"),
        ({"N_CLASSES_PER_TASK": "22"}, "N_CLASSES_PER_TASK is '22': expected"),
        ({"N_TASKS": 2.0}, "N_TASKS is 2.0: expected a whole number"),
        ({"N_TASKS": 0}, "N_TASKS is 0: expected a whole number above 0"),
        ({"N_CLASSES": 4.0}, "N_CLASSES is 4.0: expected a whole number"),
        ({"N_CLASSES": 5, "N_CLASSES_PER_TASK": [3, 2]}, "no training image of class 4"),
        ({"SIZE": (3, 4, 4)}, "images are (20, 1, 4, 4) uint8, expected (N, 3, 4, 4)"),
        ({"SIZE": 16}, "SIZE is 16: expected the shape of an example"),
        ({"SIZE": (1, 4, 4.0)}, "SIZE is (1, 4, 4.0): expected"),
        ({"MEAN": 0.5, "STD": 0.2}, "MEAN is 0.5: expected a tuple of numbers"),
        ({"MEAN": (0.5,), "STD": (0.0,)}, "STD is (0.0,): expected a tuple of numbers above 0"),
        ({"MEAN": (float("nan"),), "STD": (1.0,)}, "MEAN is (nan,): expected a tuple of numbers"),
        ({"SOURCE": "digits"}, "SOURCE is 'digits': expected a function"),
        ({"SOURCE": None}, "SOURCE is None: expected a function"),
    ],
)
def test_what_is_declared_must_fit(changes, words):
    with pytest.raises(UserError, match=re.escape(words)):
        stream(type("Mine", (Mine,), changes))


def test_counts_that_are_not_declared_are_named():
    bare = {"NAME": "bare", "SOURCE": staticmethod(lambda base_path: data()), "N_CLASSES": 4}
    with pytest.raises(UserError, match="4 classes are not 3 equal shares: set N_CLASSES_PER_TASK"):
        stream(type("Bare", (ClassIncremental,), bare | {"N_TASKS": 3}))
    with pytest.raises(UserError, match="does not set SIZE"):
        stream(type("Bare", (ClassIncremental,), bare | {"N_TASKS": 2}))


def vectors(base, x=lambda x: x, y=lambda y: y, **attributes):
    """A stream of one task, 3 numbers an example, whose parts are changed by functions."""

    def splits(self, domain):
        labels = torch.arange(12) % 2 if base is VectorStream else torch.ones(12, 2)
        return tuple(Split(x(torch.ones(12, 3)), y(labels)) for _ in range(2))

    facts = {"NAME": "v", "SETTING": "domain-il", "N_TASKS": 1, "N_CLASSES_PER_TASK": 2, "N_CLASSES": 2, "SIZE": (3,)}
    return type("V", (base,), {**facts, "_splits": splits, **attributes})


def test_vectors_and_numbers_are_looked_at_like_images():
    made = stream(vectors(VectorStream, torch.Tensor.double, torch.Tensor.numpy))
    assert made.task_data(0).data.dtype == torch.float32 and made.task_data(0).targets.dtype == torch.int64
    stream(vectors(RegressionStream, y=lambda y: y.double().numpy()))
    for base, changes, words in (
        (VectorStream, {"x": torch.Tensor.int}, "inputs are (12, 3) int32, expected (N, 3) float32"),
        (VectorStream, {"x": lambda x: x[:, :2]}, "inputs are (12, 2) float32"),
        (VectorStream, {"x": lambda x: x / 0}, "inputs hold nan or inf in 36 places"),
        (VectorStream, {"y": lambda y: y + 1}, "labels from 1 to 2"),
        (VectorStream, {"y": lambda y: y * 0}, "no training image of class 1"),
        (VectorStream, {"y": lambda y: y[1:]}, "12 inputs but labels are (11,)"),
        (RegressionStream, {"y": lambda y: y[:, :1]}, "labels are (12, 1) float32, expected (12, 2) float32"),
        (RegressionStream, {"y": lambda y: y.log() - torch.inf}, "labels hold nan or inf in 24 places"),
        (VectorStream, {"_splits": lambda self, domain: None}, "_splits gave NoneType"),
    ):
        with pytest.raises(UserError, match=re.escape(words)):
            stream(vectors(base, **changes))


def test_transforms_of_a_stream_reach_all_its_loaders():
    class Own(Mine):
        def get_transform(self):
            return lambda raw: -raw.float()

        def get_normalization_transform(self):
            return lambda raw: raw.float() + 1

    made = stream(Own)
    train, test = made.get_data_loaders()
    inputs, _, raw = next(iter(train))
    assert torch.equal(inputs, -raw.float())
    assert torch.equal(next(iter(test))[0], test.dataset.data.float() + 1)
    assert torch.equal(made.task_data(0)[0][0], made.task_data(0).data[0].float() + 1)


# ---- domains with images of their own


class Writers(SeparateDomains):
    NAME, N_TASKS, N_CLASSES, SIZE = "writers", 2, 4, (1, 4, 4)

    def domain_data(self, domain):
        return data(x=lambda x: x[domain::2], y=lambda y: y[domain::2] // 2)


def test_every_domain_has_its_own_images_and_their_labels():
    class Halves(Writers):
        def domain_data(self, domain):
            rows = slice(8 * domain, 8 * domain + 12)
            return data(train_x=lambda x: x[rows], train_y=lambda y: y[rows])

    made = stream(Halves, "--custom_task_order", "1,0")
    assert torch.equal(made.task_data(0).data, data().train_x[8:20])
    assert torch.equal(made.task_data(1).targets, data().train_y[:12])
    assert made.train_sizes == [12, 12] and [len(part.dataset) for part in made.all_test_loaders()] == [8, 8]
    held = stream(Halves, "--validation", "30")
    held.enter_task(1)
    assert held.train_sizes == [8, 8] and len(held.held_out_loader.dataset) == 4  # one of each class in each domain
    kept = {bytes(image.numpy()) for image in held.task_data(1).data}
    assert not kept & {bytes(image.numpy()) for image in held.held_out_loader.dataset.data}
    joint = stream(Halves, "--joint")
    assert joint.train_sizes == [24] and len(joint.all_test_loaders()) == 2
    assert len(stream(Halves, "--label_perc", "0.4").task_data(0)) < 12


def test_a_class_may_be_missing_in_a_domain_but_not_in_all():
    with pytest.raises(UserError, match="no training image of class 2, 3"):
        stream(Writers)


class Shifted(DomainIncremental):
    NAME, SOURCE, N_TASKS, SIZE = "shifted", staticmethod(lambda base_path: data()), 3, (1, 4, 4)
    N_CLASSES_PER_TASK = N_CLASSES = 4

    def transformed(self, images, domain):
        return images[domain::3]


def test_a_selection_of_images_keeps_their_labels():
    made, raw = stream(Shifted), data()
    for task in range(3):
        part = made.task_data(task)
        assert torch.equal(part.data, raw.train_x[task::3]) and torch.equal(part.targets, raw.train_y[task::3])
    assert made.train_sizes == [7, 7, 6] and [len(test.dataset) for test in made.all_test_loaders()] == [3, 3, 2]


@pytest.mark.parametrize(
    ("transformed", "words"),
    [
        (lambda self, images, domain: images[::2] // 2, "derive from SeparateDomains"),
        (lambda self, images, domain: images[::2, :, ::2], "expected images (N, 1, 4, 4) torch.uint8"),
        (lambda self, images, domain: images / 2, "expected images (N, 1, 4, 4) torch.uint8"),
        (lambda self, images, domain: None, "gave NoneType"),
        (lambda self, images, domain: images[:0], "task 1/3 has 0 examples"),
        (lambda self, images, domain: images[8:], "task 1/3 has no image to be scored on"),
    ],
)
def test_what_a_domain_shows_is_looked_at_before_training(transformed, words):
    with pytest.raises(UserError, match=re.escape(words)):
        stream(type("Shifted", (Shifted,), {"transformed": transformed}))


OWN = "class Own(SequentialDigits):\n    NAME = 'own'"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("class Own(ClassIncremental):\n    NAME = 'own'\n    N_TASKS = 2", "does not set DEFAULTS"),
        ("class Own(ClassIncremental):\n    NAME = 'own'\n    DEFAULTS = {'lr': 1}", "--backbone is missing"),
        ("class Own(SequentialDigits):\n    NAME = 'own'\n    SIZE = (1, 4, 4)", "expected (N, 1, 4, 4)"),
        (f"{OWN}\n    SOURCE = {{}}['frames']", "line 7: KeyError: 'frames': correct the file"),
        (f"{OWN}\n    def SOURCE(base_path):\n        return open('nothing.npz')", "line 8: FileNotFoundError"),
        (f"{OWN}\n    def SOURCE(base_path):\n        return sources.digits(1)", "line 8: TypeError"),
        (f"{OWN}\n    def get_transform(self):\n        return None", "get_transform() returns NoneType: expected"),
        (f"{OWN}\n    def get_loss(self):\n        return torch.nn.MSELoss()", "(B, 10) and labels (B,), fails: The"),
        (f"{OWN}\n    def get_loss(self):\n        return torch.nn.CrossEntropyLoss(reduction='none')", "shape (11,)"),
        (f"{OWN}\n    def get_loss(self):\n        return lambda f, y: 1.0", "gives float: expected a tensor"),
        ("class Own:\n    NAME = 'own'", "does not set SETTING, TASK, INPUT, DEFAULTS: derive it from one of"),
    ],
)
def test_a_stream_file_that_cannot_be_used_is_one_line_and_leaves_no_folder(tmp_path, capsys, body, words):
    imports = "import torch\nfrom datasets.seq_digits import SequentialDigits\nfrom datasets.utils import sources\n"
    imports += "from datasets.utils.streams import ClassIncremental"
    (tmp_path / "own.py").write_text(f"{imports}\n{body}\n")
    argv = ["--model", "sgd", "--dataset", str(tmp_path / "own.py"), "--results_path", str(tmp_path / "results")]
    assert entry.main(argv) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "results").exists()
