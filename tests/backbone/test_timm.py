"""Networks of timm as --backbone timm:NAME: with timm itself where it is installed, and with a small stand-in."""

import re
import sys
import types
from enum import Enum
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import main as entry
import palimpsest
from palimpsest.models.er import ER
from palimpsest.models.utils import state
from palimpsest.utils import registry
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from tests.kills import at_call, run_folder
from tests.models.helpers import QUIET

DIGITS = ["--model", "sgd", "--dataset", "seq-digits", "--n_epochs", "1", "--stop_after", "2"]


class Layout(str, Enum):
    FLAT = "flat"


class Pooled(nn.Module):
    """What timm makes of a network's name, in small: any size of images."""

    def __init__(self, in_chans, img_size=None):
        super().__init__()
        self.stem, self.layout, self.size = nn.Conv2d(in_chans, 6, 3, padding=1), Layout.FLAT, img_size

    def forward_features(self, x):
        if self.size and tuple(x.shape[2:]) != tuple(self.size):
            raise AssertionError(f"images {tuple(x.shape[2:])}, not {self.size}")
        return torch.relu(self.stem(x))

    def forward_head(self, x, pre_logits=False):
        assert pre_logits, "the classifier is not timm's"
        return x if self.layout != "flat" else x.mean((2, 3))


class Maps(Pooled):
    def forward_head(self, x, pre_logits=False):
        return x


def create_model(name, pretrained=False, num_classes=1000, in_chans=3, pretrained_cfg_overlay=None, **more):
    assert num_classes == 0
    if "img_size" in more and name != "tied_net":
        raise TypeError("__init__() got an unexpected keyword argument 'img_size'")
    if in_chans == 7:
        raise TypeError("seven channels")
    net = (Maps if name == "maps_net" else Pooled)(in_chans, **more)
    if pretrained:
        if not pretrained_cfg_overlay:
            raise ConnectionError("no\nway out")
        net.load_state_dict(torch.load(pretrained_cfg_overlay["file"]), strict=False)
    return net


@pytest.fixture
def stand_in(monkeypatch):
    timm, models = types.ModuleType("timm"), types.ModuleType("timm.models")
    names = ["small_net", "tied_net", "maps_net"]
    timm.create_model, timm.list_models, timm.is_model = create_model, lambda: names, names.__contains__
    models.load_state_dict = lambda path, weights_only: torch.load(path, weights_only=weights_only)
    timm.models = models
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.models", models)
    registry.importlib.import_module("palimpsest.backbone.utils.timm_nets").timm_class.cache_clear()


def test_without_the_package_it_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert entry.main([*DIGITS, "--backbone", "timm:absent_net", "--results_path", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert "--backbone timm:absent_net needs the package timm" in err and "pip install 'palimpsest[networks]'" in err
    assert err.count("\n") == 1 and not (tmp_path / "r").exists()


def test_the_stream_decides_classes_channels_and_size(stand_in):
    net = registry.load("backbone", "timm:Small-Net")((1, 8, 8), 10)
    x = torch.rand(3, 1, 8, 8)
    logits, features = net(x, "both")
    assert net.NAME == "timm:small_net" and net.trunk.stem.in_channels == 1 and net.input_size is None
    assert logits.shape == (3, 10) and features.shape == (3, 6) and net.feature_dim == 6
    assert torch.equal(net.classifier(features), logits) and torch.equal(net(x), logits)
    assert [name for name, _ in net.named_parameters()][-1] == "classifier.bias"
    tied = registry.load("backbone", "timm:tied_net")((3, 8, 16), 4)
    assert tied.trunk.size == (8, 16) and tied.input_size == (3, 8, 16)


@pytest.mark.parametrize(("given", "words"), [
    ("timm:smal_net", "unknown network 'smal_net' of timm; did you mean small_net?"),
    ("timm:maps_net", "has no features (B, F) before its classifier, but (2, 6, 8, 8)"),
    ("timm:small_net --pretrained", "could not be fetched (ConnectionError: no way out): give --pretrained_path FILE"),
    ("timm:small_net --pretrained_path nothing.pt", "--pretrained_path nothing.pt does not exist"),
    ("timm:small_net --model hat", "cannot be taken apart into layers, which this method needs"),
])  # fmt: skip
def test_what_is_impossible_is_one_line_at_the_start(stand_in, given, words, capsys, tmp_path):
    argv = [*(DIGITS[2:] if "--model" in given else DIGITS), "--backbone", *given.split()]
    assert entry.main([*argv, "--results_path", str(tmp_path / "r")]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1 and not (tmp_path / "r").exists()


def test_weights_from_a_file_are_all_there_and_run_no_code(stand_in, tmp_path):
    made = registry.load("backbone", "timm:small_net")
    wanted = Pooled(1).state_dict()
    torch.save(wanted, tmp_path / "whole.pt")
    net = made((1, 8, 8), 10, path=str(tmp_path / "whole.pt"))
    assert all(torch.equal(net.trunk.state_dict()[name], wanted[name]) for name in wanted)
    torch.save({"stem.weight": wanted["stem.weight"]}, tmp_path / "part.pt")
    with pytest.raises(UserError, match=re.escape("part.pt lacks 1 weights of timm:small_net, stem.bias among them")):
        made((1, 8, 8), 10, path=str(tmp_path / "part.pt"))
    torch.save(wanted | {"code": Path("x")}, tmp_path / "code.pt")
    with pytest.raises(UserError, match="code.pt holds no weights of timm:small_net: UnpicklingError"):
        made((1, 8, 8), 10, path=str(tmp_path / "code.pt"))
    with pytest.raises(UserError, match="cannot be made for images .*: TypeError: seven channels"):
        made((7, 8, 8), 10)


def test_a_stopped_run_goes_on_is_repeated_and_loaded(stand_in, tmp_path, capsys):
    torch.save(Pooled(1).state_dict(), weights := tmp_path / "w.pt")
    argv = ["--model", "er", "--buffer_size", "20", "--minibatch_size", "5", "--backbone", "timm:small-net"]
    argv += [
        *DIGITS[2:],
        "--pretrained_path",
        str(weights),
        "--num_threads",
        "1",
        "--non_verbose",
        "--tensorboard",
        "0",
    ]
    argv += ["--savecheck", "7", "--resume", "--results_path"]
    assert entry.main([*argv, str(tmp_path / "whole")]) == 0
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, ER, 15, lambda loss: loss * torch.nan)
        assert entry.main([*argv, str(tmp_path / "stopped")]) == 1
    capsys.readouterr()
    assert entry.main([*argv, str(tmp_path / "stopped")]) == 0
    assert re.search(r"--resume: from iteration [1-9]", capsys.readouterr().out)
    whole, stopped = (run_folder(tmp_path / name) for name in ("whole", "stopped"))
    assert (whole / "result.yaml").read_text() == (stopped / "result.yaml").read_text()
    assert entry.main(["--rerun", str(whole), "--results_path", str(tmp_path / "again")]) == 0
    weights.unlink()  # what was learned does without them
    probabilities = palimpsest.load(whole).predict(np.zeros((2, 8, 8), np.uint8)).probabilities
    assert probabilities.sum(1) == pytest.approx(1)


def test_listed_and_offered_to_no_stream_of_words(stand_in, capsys):
    assert entry.main(["--list"]) == 0 and "timm:NAME" in capsys.readouterr().out
    with pytest.raises(UserError, match="backbone 'timm:small_net' reads images but dataset 'seq-text' holds tokens"):
        resolve(["--model", "sgd", "--dataset", "seq-text", "--backbone", "timm:small_net"])


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_timm_itself(name):
    pytest.importorskip("timm", reason="needs timm, the extra 'networks'")
    net = registry.load("backbone", f"timm:{name}")((3, 32, 32), 5)
    logits, features = net(torch.rand(2, 3, 32, 32), "both")
    assert logits.shape == (2, 5) and features.shape == (2, net.feature_dim)
    assert (net.input_size is None) == (not name.startswith("vit"))


def test_a_method_around_timm_itself_can_be_kept():
    pytest.importorskip("timm", reason="needs timm, the extra 'networks'")
    exp = build(resolve([*DIGITS, *QUIET, "--backbone", "timm:resnet10t"]))
    state.check(exp.model)
