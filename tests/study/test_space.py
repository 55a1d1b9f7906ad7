"""Search spaces in the options' own names."""

import optuna
import pytest
import yaml

from palimpsest.utils.errors import UserError
from palimpsest.utils.run import config as configuration
from palimpsest.utils.study.space import as_argv, options_of, read_space

ARGV = ["--model", "er", "--dataset", "seq-digits"]
SPACE = """
lr: {log: [1e-3, 0.1]}
optim-mom: {uniform: [0, 0.9]}
buffer_size: {log_int: [100, 1000]}
n_epochs: {int: [1, 3]}
augment: [true, false]
lr_milestones: [[3, 4], [2]]
batch_size: 16
"""


@pytest.fixture(scope="module")
def options():
    return options_of(ARGV)


@pytest.fixture
def trial():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()


def test_a_suggestion_is_a_command_line(options, trial):
    space = read_space(yaml.safe_load(SPACE), options)
    values = space.suggest(trial)
    args = configuration.resolve([*ARGV, *as_argv(values, options)]).args
    assert 0.001 <= args.lr <= 0.1 and args.lr == values["lr"]  # not a digit is lost
    assert 0 <= args.optim_mom <= 0.9 and 100 <= args.buffer_size <= 1000 and args.n_epochs in (1, 2, 3)
    assert args.lr_milestones in ([3, 4], [2]) and args.augment is values["augment"] and args.batch_size == 16
    assert space.suggest(trial) == values  # of one trial always the same


def test_values_in_the_logarithm(options):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = read_space({"lr": {"log": [0.001, 0.1]}}, options)
    below = sum(space.suggest(study.ask())["lr"] < 0.01 for _ in range(200))
    assert 70 < below < 130  # half of them, where a uniform draw has 9 %


def test_grid(options):
    space = read_space({"buffer_size": [200, 500], "n_epochs": {"int": [1, 3]}}, options)
    grid = space.grid()
    assert len(grid) == 6 and grid[:2] == [{"buffer_size": 200, "n_epochs": 1}, {"buffer_size": 200, "n_epochs": 2}]
    assert space.grid(["n_epochs", "lr"]) == [{"n_epochs": 1}, {"n_epochs": 2}, {"n_epochs": 3}]
    assert read_space({}, options).grid() == [{}]
    with pytest.raises(UserError, match="--lr has no list of values"):
        read_space({"lr": {"log": [0.1, 1]}}, options).grid()


@pytest.mark.parametrize(
    "mapping, message",
    [
        ({"epochs": [1]}, "did you mean --n_epochs"),
        ({"alpha": [1]}, "unknown option --alpha"),  # der's, not er's
        ({"lr": [0.1, -1]}, "--lr to an impossible value: -1"),
        ({"lr": {"uniform": [-1, 1]}}, "--lr to an impossible value: -1"),
        ({"n_epochs": {"uniform": [1, 2]}}, "'1.0': expected an integer"),
        ({"n_epochs": {"int": [1.5, 2]}}, "ends of int are whole numbers"),
        ({"lr": {"log": [0, 1]}}, "log begins above 0"),
        ({"lr": {"log": [1, 0.1]}}, "from a lower to a higher number"),
        ({"lr": {"log": [0.1]}}, "log has two ends, as"),
        ({"lr": {"log": ["a", "b"]}}, "the ends of log are numbers"),
        ({"lr": {"normal": [0, 1]}}, "expected one of uniform, log, int or log_int"),
        ({"lr": {"log": [0.1, 1], "int": [1, 2]}}, "expected one of uniform, log, int or log_int"),
        ({"lr": ["1e-3", 0.001]}, "a value is given twice"),
        ({"lr": []}, "a value is missing"),
        ({"lr": [None]}, "a value is missing"),
        ({"lr": [{"a": 1}]}, "is no value of an option"),
        ({"lr": [float("inf")]}, "is no value of an option"),
        ({"fitting_mode": ["ever"]}, "expected one of epochs, iters"),
        ({"optim_mom": [0.1], "optim-mom": [0.2]}, "gives optim_mom twice"),
        ({"seed": [1, 2]}, "given by the key 'seeds'"),
        ({"model": ["er"]}, "given by the key 'model'"),
        ({"results_path": ["a", "b"]}, "no number of a run depends on"),
        ({"list": [1]}, "for the command line"),
        ([1], "expected lines as"),
        (None, "expected lines as"),
        ({1: [1]}, "expected lines as"),
    ],
)
def test_what_is_refused(options, mapping, message):
    with pytest.raises(UserError, match=message) as e:
        read_space(mapping, options, "grid.yaml: space")
    assert str(e.value).startswith("grid.yaml: space") and "\n" not in str(e.value)


def test_options_of_what_is_chosen():
    assert "alpha" in options_of(["--model", "derpp", "--dataset", "seq-digits"])
    assert "no_augment" not in options_of(ARGV)
    with pytest.raises(UserError, match="did you mean er"):
        options_of(["--model", "err"])


def test_flags_and_lists_on_a_command_line(options):
    values = {
        "debug_mode": True,
        "resume": False,
        "notes": "-x",
        "optim_args": {"betas": [0.9, 0.99]},
        "clip_grad": None,
    }
    argv = as_argv(values, options)
    assert argv == ["--debug_mode", "1", "--resume", "0", "--notes=-x", "--optim_args", "betas=0.9,0.99"]
    assert as_argv({"list": True, "help": False}, options) == ["--list"]
