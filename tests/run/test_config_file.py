"""`--config FILE` and `--print_config`: a layer of options from a YAML file, and a file that says them all."""

import re

import pytest
import yaml

import main as entry
from palimpsest.utils.config_file import as_yaml
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import resolve
from tests.kills import run_folder
from tests.models.helpers import QUIET


@pytest.fixture
def file(tmp_path):
    """A function that writes a file and gives `--config` and its path."""

    def write(text):
        path = tmp_path / "mine.yaml"
        path.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
        return ["--config", str(path)]

    return write


MINE = """
model: er
dataset: seq-mnist
buffer-size: 500
lr: 5e-2              # YAML reads a text here
optim_args: {dampening: 0.25}
custom_class_order: [3, 1, 2, 0, 4, 5, 6, 7, 8, 9]
augment: no
notes: null
"""


def test_a_file_of_ones_own(file):
    config = resolve(file(MINE))
    args = config.args
    assert (args.model, args.dataset, args.buffer_size, args.lr, args.augment) == ("er", "seq-mnist", 500, 0.05, False)
    assert args.optim_args == ["dampening=0.25"] and args.custom_class_order[:3] == [3, 1, 2] and args.notes is None
    assert {config.origins[n] for n in ("model", "lr", "buffer_size", "augment")} == {"config file"}
    assert config.origins["notes"] == "default" and config.origins["batch_size"] == "dataset"
    assert not hasattr(args, "config") and not hasattr(args, "print_config")


def test_it_ranks_below_the_command_line_and_above_the_stored_row(file):
    argv = [*file("model: er\ndataset: seq-mnist\nbuffer_size: 500\nload_best_args: true\nn_epochs: 3"), "--lr", "0.07"]
    config = resolve(argv)
    assert config.row["published"]["class-il"]["acc"] == 86.12  # found by the file's buffer size
    assert (config.args.lr, config.origins["lr"]) == (0.07, "command line")
    assert (config.args.n_epochs, config.origins["n_epochs"]) == (3, "config file")
    assert config.origins["minibatch_size"] in ("best_args", "batch_size")
    assert resolve(argv[:-2]).args.lr == 0.1
    given = [*file("lr: 0.2\nbuffer_size: 500"), "--model", "er", "--dataset", "seq-mnist", "--load_best_args"]
    assert (resolve(given).args.lr, resolve(given).origins["lr"]) == (0.2, "config file")


def test_what_excludes_each_other_is_taken_from_the_higher_place(file):
    base = "model: sgd\ndataset: seq-digits\n"
    args = resolve([*file(base + "holdout: 20\npermute_classes: true"), "--validation", "10"]).args
    assert (args.validation, args.holdout, args.permute_classes) == (10, 0, True)
    both = base + "optimizer: rmsprop\noptim_mom: 0.9\noptim_args: [alpha=0.5]\nlr_scheduler: steplr\n"
    both += "sched_args: [step_size=2]"
    args = resolve([*file(both), "--optimizer", "adam", "--lr_scheduler", "cosine"]).args
    assert (args.optim_args, args.optim_mom, args.sched_args) == ([], 0.0, [])
    args = resolve([*file(both), "--optimizer", "RMSprop"]).args
    assert (args.optim_args, args.optim_mom, args.sched_args) == (["alpha=0.5"], 0.9, ["step_size=2"])
    own = base + "optimizer: adam\noptim_wd: 0.1\noptim_args: [eps=1e-4]"
    args = resolve([*file(own), "--optimizer", "adamw"]).args
    assert (args.optim_wd, args.optim_args) == (0.1, [])


def test_the_network_of_the_file_and_presets_that_it_names(file):
    net = file("model: sgd\ndataset: seq-digits\nbackbone: convnet\nwidth: 8")
    assert (resolve(net).args.width, resolve(net).origins["backbone"]) == (8, "config file")
    assert not hasattr(resolve([*net, "--backbone", "mnistmlp"]).args, "width")
    config = resolve(file("model: pah\ndataset: seq-mnist\npah_preset: reference\npah_w_sp: 0.2"))
    assert config.origins["pah_leak"] == "preset reference" and config.args.pah_w_sp == 0.2


@pytest.mark.parametrize(("text", "words"), [
    ("model: sgd\ndataset: seq-digits\nlearning-rate: 1", "unknown option --learning_rate; did you mean --lr?"),
    ("model: er\ndataset: seq-digits\nbufer_size: 20", "unknown option --bufer_size; did you mean --buffer_size?"),
    ("model: err\ndataset: seq-digits", "unknown model 'err'; did you mean er?"),
    ("model: sgd\ndataset: seq-digits\nlr: fast", "mine.yaml sets --lr to an impossible value: 'fast'"),
    ("model: sgd\ndataset: seq-digits\noptimizer: adamm", "sets --optimizer to an impossible value: 'adamm'"),
    ("model: pah\ndataset: seq-digits\noptim_wd: 0.1", "'optim_wd' has no effect on pah: drop it"),
    ("model: sgd\ndataset: seq-digits\nlist: true", "'list' is for the command line: drop it"),
    ("model: sgd\ndataset: seq-digits\nno_augment: true", "unknown option --no_augment"),
    ("n-epochs: 3\nn_epochs: 4", "gives an option twice, with - and with _"),
    ("lr: 3\nlr: 4", "mine.yaml, line 2: 'lr' appears twice"),
    ("- lr\n- 3", "holds no options: expected lines as 'model: er'"),
    ("x: " + "y" * 200_000, "holds no options"),
    ("lr: 3", "--model is missing"),
    ("a: [", "mine.yaml, line 1: "),
])  # fmt: skip
def test_what_is_wrong_in_it_is_one_line(file, capsys, text, words):
    assert entry.main(file(text)) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1, err


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="--config .*nothing.yaml cannot be read: No such file"):
        resolve(["--config", str(tmp_path / "nothing.yaml")])


@pytest.mark.parametrize("argv", [
    "er --buffer_size 50 --optimizer muon --sched_args gamma=0.9 --lr_scheduler exponentiallr",
    "pah --pah_preset reference --seeds 0 1", "joint --savecheck no --mlflow", "lucir --buffer_size 50 --debug_mode",
    "sgd --permute_classes --fitting_mode iters --n_iters 7 --no_csv_log --backbone mnistmlp --optim_args dampening=0",
    "er --buffer_size 200 --load_best_args",
])  # fmt: skip
def test_a_printed_configuration_is_taken_back(argv, file, capsys):
    argv = ["--dataset", "seq-mnist", "--model", *argv.split()]
    assert entry.main([*argv, "--print_config"]) == 0
    printed, wanted = capsys.readouterr().out, resolve(argv)
    back = resolve(file(printed))
    assert vars(back.args) == vars(wanted.args)
    assert {back.origins[name] for name in yaml.safe_load(printed)} <= {"config file", "method", "debug_mode"}


def test_print_config_prints_no_option_without_effect_and_writes_nothing(capsys, tmp_path):
    argv = ["--model", "pah", "--dataset", "seq-digits", "--results_path", str(tmp_path / "results"), "--print_config"]
    assert entry.main(argv) == 0
    out = capsys.readouterr().out
    assert out.startswith("model: pah\ndataset: seq-digits\nbackbone: ") and not re.search(
        "^(lr|help|config):", out, re.M
    )
    assert not (tmp_path / "results").exists()
    assert entry.main([*argv, "--lr", "1"]) == 2


def test_the_configuration_of_a_run_repeats_it(tmp_path, capsys):
    argv = ["--model", "hyper", "--dataset", "seq-digits", "--debug_mode", "--stop_after", "1", *QUIET[1:]]
    assert entry.main([*argv, "--tensorboard", "0", "--results_path", str(tmp_path / "one")]) == 0
    folder = run_folder(tmp_path / "one")
    more = ["--config", str(folder / "config.yaml"), "--results_path"]
    assert entry.main([*more, str(tmp_path / "two")]) == 0
    assert "config file" in capsys.readouterr().out
    assert (folder / "result.yaml").read_text() == (run_folder(tmp_path / "two") / "result.yaml").read_text()
    with pytest.raises(UserError, match="unknown option --hyper_embedding"):
        resolve([*more, "x", "--model", "sgd"])


def test_as_yaml_begins_with_what_is_trained():
    text = as_yaml({"lr": 0.1, "dataset": "d", "notes": None, "model": "m", "savecheck": "no"})
    assert text == "model: m\ndataset: d\nlr: 0.1\nsavecheck: 'no'\n"
