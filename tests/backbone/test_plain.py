"""A plain nn.Module of somebody's own as --backbone."""

import re

import pytest
import torch
from torch import nn

import main as entry
from palimpsest.backbone.utils.wrapped import make_network
from palimpsest.utils.check import conformance
from palimpsest.utils.errors import UserError
from tests.models.helpers import Command, experiment, finished

SHORT = ["--n_epochs", "1", "--stop_after", "2"]
FILE = """
from torch import nn

class MyCNN(nn.Module):
    NAME = "my_cnn"

    def __init__(self, num_classes=10):
        super().__init__()
        self.f = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x):
        return self.fc(self.f(x))
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "my_cnn.py"
    file.write_text(FILE)
    return str(file)


REPLAY = "--buffer_size 20 --minibatch_size 5"
METHODS = [
    f"er {REPLAY}", f"derpp --alpha 1 --beta 1 {REPLAY}", "ewc --e_lambda 1", "lwf", "icarl --buffer_size 20",
    "lucir --buffer_size 20 --fitting_epochs 1", "slda", f"hal {REPLAY}", f"xder --alpha 1 --beta 1 {REPLAY}",
    f"xder_rpc --alpha 1 --beta 1 {REPLAY}", "packnet", "pah", "vcl",
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_methods_run_with_it(path, method):
    scores = finished(*method.split(), *SHORT, "--backbone", path).run.history[-1].scores["task-il"]
    assert len(scores) == 2 and scores[0] > 60


def test_a_network_without_features_is_one_line(tmp_path):
    layers = "self.f = nn.Flatten()\n        self.fc = nn.Linear(64, num_classes)"
    file = tmp_path / "my_cnn.py"
    file.write_text(re.sub(r"self\.f = .*?\n\s+self\.fc = [^\n]*", layers, FILE, flags=re.S))
    with pytest.raises(UserError, match="the network of pah has nothing to train besides its classifier"):
        experiment("pah", "--backbone", str(file))


@pytest.mark.parametrize("method", ["hat", "pnn"])
def test_what_it_cannot_do_is_one_line_at_the_start(path, method, capsys, tmp_path):
    results = tmp_path / "results"
    argv = ["--model", method, "--dataset", "seq-digits", *SHORT, "--backbone", path, "--results_path", str(results)]
    assert entry.main(argv) == 2
    err = capsys.readouterr().err
    assert "which this method needs" in err and err.count("\n") == 1 and not results.exists()


def test_a_stopped_run_goes_on(path):
    argv = ["--buffer_size", "40", "--backbone", path, "--stop_after", "2", "--debug_mode"]
    conformance.resumes_exactly(Command("er", *argv, dataset="seq-digits"), elsewhere=False)


class Conv(nn.Module):
    NAME = "conv"

    def __init__(self, in_channels, n_classes, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(in_channels, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(width, n_classes)

    def forward(self, x):
        return self.head(self.body(x))


def made(cls):
    return make_network(cls, None, (3, 8, 8), 7)


def test_its_parameters_are_filled_by_their_names():
    net = made(Conv)
    x = torch.rand(5, 3, 8, 8)
    assert net(x).shape == (5, 7) and net.feature_dim == 4 and net.num_classes == 7 and net.input_size is None
    logits, features = net(x, "both")
    assert torch.equal(net.classifier(features), logits) and torch.equal(net.features(x), features)
    assert [name for name, _ in net.named_parameters()][-1] == "net.head.bias"
    torch.manual_seed(1)
    expected = Conv(3, 7).state_dict()
    torch.manual_seed(1)
    again = made(Conv).net.state_dict()
    assert all(torch.equal(expected[name], again[name]) for name in expected)


def test_a_new_classifier_takes_the_place_of_the_old_one():
    net = made(Conv)
    net.classifier = nn.Linear(4, 2)
    assert net(torch.rand(5, 3, 8, 8)).shape == (5, 2) and net.net.head is net.classifier


def test_features_need_logits_that_the_classifier_gives():
    softened = type("Softened", (Conv,), {"forward": lambda self, x: torch.log_softmax(Conv.forward(self, x), 1)})
    with pytest.raises(UserError, match="no features that one linear classifier reads"):
        made(softened).features(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (
            type("Odd", (Conv,), {"__init__": lambda self, depth, num_classes: None}),
            "Odd(depth) is not known here: name them num_classes",
        ),
        (type("Silent", (nn.Module,), {"NAME": "silent"}), "has no parameters"),
        (type("Plain", (), {"NAME": "plain"}), "Plain is no torch.nn.Module"),
        (type("Flat", (Conv,), {"forward": lambda self, x: self.body(x)}), "is (2, 4), expected (2, 7)"),
        (type("Wide", (Conv,), {"forward": lambda self, x: self.head(x)}), "cannot read inputs (2, 3, 8, 8)"),
    ],
)
def test_a_network_that_does_not_fit_is_one_line(cls, words):
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        made(cls)
    assert "\n" not in str(caught.value)


def test_the_file_with_no_class_of_its_name_is_named(tmp_path):
    (tmp_path / "other.py").write_text(FILE)
    with pytest.raises(UserError, match="defines no class with NAME = 'other'"):
        experiment("sgd", "--backbone", str(tmp_path / "other.py"))
