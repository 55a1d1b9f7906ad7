"""What is said of options that do not exist, and of those that are missing."""

import pytest

from palimpsest.models.pah import PAH
from palimpsest.utils.errors import UserError
from palimpsest.utils.hints import MEANT, REPLACED
from palimpsest.utils.run.config import build_parser, chosen, resolve

SGD = ["--model", "sgd", "--dataset", "seq-digits"]
ER = ["--model", "er", "--dataset", "seq-digits", "--buffer_size", "20"]


def said(argv):
    with pytest.raises(UserError) as error:
        resolve(argv)
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    ("given", "meant"),
    [("learning_rate", "lr"), ("learning-rate", "lr"), ("epochs", "n_epochs"), ("num_epochs", "n_epochs"),
     ("momentum", "optim_mom"), ("weight-decay", "optim_wd"), ("memory_size", "buffer_size"), ("gpu", "device"),
     ("data_dir", "base_path"), ("debug", "debug_mode"), ("checkpoint", "loadcheck"), ("eposhs", "n_epochs"),
     ("bufer_size", "buffer_size"), ("nesterov", "optim_nesterov"), ("seedd", "seed"),
     ("LR", "lr"), ("Learning_Rate", "lr"), ("noise", "noise_rate")],
)  # fmt: skip
def test_what_was_meant(given, meant):
    assert f"--{given.replace('-', '_')}; did you mean --{meant}?" in said([*ER, f"--{given}", "3"])
    assert f"did you mean --{meant}?" in said([*ER, f"--{given}=3"])


@pytest.mark.parametrize("name", ["wandb_project", "entity", "dataset_config", "nowand", "gpus", "amp", "tf32"])
def test_what_there_is_not(name):
    text = said([*SGD, f"--{name}", "x"])
    assert text.startswith(f"--{name} does not exist: {REPLACED[name]}") and "did you mean" not in text


@pytest.mark.parametrize("name", ["foo", "zzz_top", "buffer"])  # sgd has no buffer
def test_no_hint_is_better_than_a_wrong_one(name):
    assert said([*SGD, f"--{name}", "3"]) == f"unknown option --{name} (--help shows all)"


def test_no_option_is_proposed_that_the_method_refuses():
    argv = ["--model", "pah", "--dataset", "seq-digits"]
    for given in ("learning_rate", "momentum", "optim", "grad_clip", "weight_decay"):
        text = said([*argv, f"--{given}", "1"])
        assert not any(f"did you mean --{name}?" in text for name in PAH.UNUSED), text


def test_the_names_here_exist():
    parser = build_parser(chosen(ER), "mnistmlp")
    known = {option[2:] for option in parser._option_string_actions} | {"pah_wd", "lr_backbone", "n_tasks"}
    assert {option for here in MEANT.values() for option in here} <= known
    assert not {name for names in MEANT for name in names} & known | REPLACED.keys() & known


def test_all_that_is_wrong_is_told_at_once():
    text = said([*SGD, "--learning_rate", "1", "--epochs", "2", "--use_wandb", "-lr", "3"])
    assert all(part in text for part in ("--lr?", "--n_epochs?", "WANDB_MODE", "two dashes, as --lr"))
    text = said(["--model", "derpp", "--dataset", "seq-digits"])
    assert all(f"--{name} is missing" in text for name in ("buffer_size", "alpha", "beta"))
    text = said(["--model", "derpp", "--beta", "1"])
    assert all(f"--{name} is missing" in text for name in ("dataset", "buffer_size", "alpha"))
    assert "--beta is" not in text
    text = said(["--method", "er", "--data", "seq-digits"])
    assert all(f"--{name} is missing" in text for name in ("model", "dataset"))
    assert "--method; did you mean --model?" in text and "--data; did you mean --dataset?" in text
