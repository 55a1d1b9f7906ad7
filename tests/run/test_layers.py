"""Options that exclude each other, set by any two layers of a configuration: the higher one's group holds."""

import itertools

import pytest

from palimpsest.datasets.seq_digits import SequentialDigits
from palimpsest.models.sgd import SGD
from palimpsest.utils.args import base_parser
from palimpsest.utils.run import config as configuration
from tests.models.helpers import experiment

LAYERS = ("dataset", "method", "best_args", "command line")  # lowest first
ORDER = [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
# What is taken together -> the settings that a layer may hold.
GROUPS = {
    ("fitting_mode", "n_iters"): [
        {"n_epochs": 3},
        {"fitting_mode": "epochs"},
        {"fitting_mode": "epochs", "n_epochs": 4},
        {"fitting_mode": "iters", "n_iters": 7},
        {"fitting_mode": "iters", "n_iters": 8, "n_epochs": 9},
        {"fitting_mode": "early_stopping", "holdout": 10},
    ],
    ("validation", "holdout"): [{"validation": 10}, {"holdout": 20}],
    ("permute_classes", "custom_class_order"): [{"permute_classes": True}, {"custom_class_order": ORDER}],
    ("optimizer", "optim_nesterov"): [
        {"optimizer": "adam"},
        {"optimizer": "sgd", "optim_mom": 0.9, "optim_nesterov": True},
        {"optimizer": "sgd", "optim_mom": 0},
    ],
    ("lr_scheduler", "lr_milestones"): [
        {"lr_scheduler": "cosine"},
        {"lr_scheduler": "none"},
        {"lr_scheduler": "multisteplr", "lr_milestones": [3, 5]},
    ],
}
DEFAULTS = {action.dest: action.default for action in base_parser()._actions}


def resolve(monkeypatch, layers, *more):
    """The options that these settings give, each layer's on its place."""
    own = {"fitting_mode": "epochs"} | layers.get("dataset", {})
    monkeypatch.setattr(SequentialDigits, "DEFAULTS", SequentialDigits.DEFAULTS | own)
    monkeypatch.setattr(SGD, "DEFAULTS", layers.get("method", {}))
    monkeypatch.setattr(configuration, "find_row", lambda *_: {"args": layers["best_args"]})
    argv = ["--model", "sgd", "--dataset", "seq-digits", *more]
    argv += ["--load_best_args"] if "best_args" in layers else []
    for name, value in layers.get("command line", {}).items():
        apart = name == "lr_milestones"
        parts = value if isinstance(value, list) else [value]
        argv += [f"--{name}", *(map(str, parts) if apart else [",".join(map(str, parts))])]
    return configuration.resolve(argv)


@pytest.mark.parametrize(("low", "high"), list(itertools.combinations(LAYERS, 2)))
@pytest.mark.parametrize("group", GROUPS)
def test_the_higher_of_two_layers_decides_its_group(low, high, group):
    for below, above in itertools.product(GROUPS[group], repeat=2):
        with pytest.MonkeyPatch.context() as patch:
            config = resolve(patch, {low: below, high: above})
        for name in group:
            assert getattr(config.args, name) == above.get(name, DEFAULTS[name]), (name, below, above)
        for name, value in above.items():
            assert getattr(config.args, name) == value and config.origins[name] == high
        if "n_epochs" in below and "n_epochs" not in above:
            assert config.args.n_epochs == below["n_epochs"]  # which no other option makes void


def test_settings_of_different_groups_do_not_touch_each_other(monkeypatch):
    layers = {"dataset": {"fitting_mode": "iters", "n_iters": 7}, "method": {"lr_scheduler": "cosine"},
              "best_args": {"permute_classes": True, "holdout": 20}, "command line": {"optimizer": "adam"}}  # fmt: skip
    args = resolve(monkeypatch, layers).args
    assert all(getattr(args, name) == value for layer in layers.values() for name, value in layer.items())


@pytest.mark.parametrize("place", ["dataset", "method", "best_args"])
def test_options_of_a_network_that_is_not_used_are_void_in_every_layer(place, monkeypatch):
    layers = {place: {"backbone": "resnet18", "num_filters": 8}}
    assert resolve(monkeypatch, layers).args.num_filters == 8
    other = resolve(monkeypatch, layers, "--backbone", "mnistmlp").args
    assert other.backbone == "mnistmlp" and not hasattr(other, "num_filters")


@pytest.mark.parametrize("stream", ["seq-poly1d", "seq-language"])
def test_a_stored_row_and_a_number_of_epochs_on_a_stream_by_iterations(stream, monkeypatch):
    row = {"args": {"lr": 0.01, "fitting_mode": "iters", "n_iters": 9}}
    monkeypatch.setattr(configuration, "find_row", lambda *_: row)
    argv = ["--model", "sgd", "--dataset", stream, "--load_best_args"]
    args = configuration.resolve([*argv, "--n_epochs", "2"]).args
    assert (args.fitting_mode, args.n_iters, args.n_epochs) == ("epochs", None, 2)
    args = configuration.resolve([*argv, "--fitting_mode", "iters", "--n_iters", "4"]).args
    assert (args.fitting_mode, args.n_iters) == ("iters", 4)


@pytest.mark.parametrize("stream", ["seq-digits", "seq-poly1d", "digits-360", "seq-language", "rot-digits"])
def test_debug_mode_is_one_short_epoch_of_every_kind_of_stream(stream):
    exp = experiment("sgd", "--debug_mode", "--lr", "0.01", "--eval_epochs", "1", dataset=stream)
    assert (exp.args.n_epochs, exp.args.n_iters, exp.args.fitting_mode) == (1, None, "epochs")
    assert 1 <= len(exp.dataset.train_loader) <= 5
    assert "--debug_mode: one epoch" in exp.run.notes["debug"]


def test_debug_mode_shortens_what_a_method_adds():
    argv = ["--model", "lucir", "--dataset", "seq-digits", "--buffer_size", "50", "--fitting_epochs", "9"]
    assert configuration.resolve(argv).args.fitting_epochs == 9
    config = configuration.resolve([*argv, "--debug_mode", "--fitting_mode", "iters", "--n_iters", "99"])
    assert config.args.fitting_epochs == 1 and config.origins["fitting_epochs"] == "debug_mode"
    assert (config.args.fitting_mode, config.args.n_iters, config.args.n_epochs) == ("epochs", None, 1)
