"""Which value wins, where it came from, and how options are spelt."""

import pytest

from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import from_stored, resolve
from tests.models.helpers import options

BASE = ["--model", "er", "--dataset", "seq-mnist", "--buffer_size", "500"]


def test_precedence_and_origins():
    plain = resolve(BASE)
    assert (plain.args.lr, plain.origins["lr"]) == (0.03, "dataset")
    assert (plain.args.optimizer, plain.origins["optimizer"]) == ("sgd", "default")
    best = resolve([*BASE, "--load_best_args"])
    assert (best.args.lr, best.origins["lr"]) == (0.1, "best_args")
    assert best.row["published"]["class-il"] == {"acc": 86.12, "std": 1.89}
    own = resolve([*BASE, "--load_best_args", "--lr", "0.07"])
    assert (own.args.lr, own.origins["lr"]) == (0.07, "command line")
    assert resolve([*BASE, "--model_config", "best"]).args.lr == 0.1


def test_minibatch_size_is_its_own():
    assert options("er", "--buffer_size", "99", "--batch_size", "7").minibatch_size == 7
    assert options("er", "--buffer_size", "99", "--batch_size", "7", "--minibatch_size", "5").minibatch_size == 5


def test_presets_rank_below_the_place_that_names_them():
    config = resolve(["--model", "pah", "--dataset", "seq-mnist", "--load_best_args", "--pah_w_sp", "0.2"])
    assert config.origins["pah_leak"] == "preset reference" and config.args.pah_w_sp == 0.2
    assert config.args.n_epochs == 15 and config.origins["n_epochs"] == "best_args"
    assert config.args.backbone == "mobilenet-v2" and config.origins["backbone"] == "best_args"


def test_the_backbone_comes_from_the_dataset_unless_it_is_named():
    assert resolve(BASE).args.backbone == "mnistmlp" and resolve(BASE).origins["backbone"] == "dataset"
    named = resolve([*BASE, "--backbone", "convnet", "--norm", "batch"])
    assert named.args.backbone == "convnet" and named.args.norm == "batch"
    assert named.origins["backbone"] == "command line"
    with pytest.raises(UserError, match="unknown option --norm"):
        resolve([*BASE, "--norm", "batch"])


def test_aliases():
    args = options("sgd", "--data-path", "a", "--save-path", "b")
    assert (args.base_path, args.results_path) == ("a", "b")


def test_joint_is_an_option_and_a_method():
    assert options("sgd", "--joint").joint and options("joint").joint and not options("sgd").joint


def test_a_boolean_that_is_on_can_be_turned_off():
    assert options("sgd").csv_log and not options("sgd", "--no-csv_log").csv_log
    assert not options("sgd", "--tensorboard", "0").tensorboard
    with pytest.raises(UserError, match="given twice"):
        options("sgd", "--csv_log", "--no_csv_log")


def test_lists_come_back_from_a_stored_run():
    argv = ["--model", "sgd", "--dataset", "seq-vision-mini", "--task_batch_sizes", "8,4,2"]
    stored = vars(resolve(argv).args)
    args = from_stored(stored, [], "config.yaml").args
    assert args.task_batch_sizes == [8, 4, 2] and args.n_iters is None
    with pytest.raises(UserError, match="expected integers"):
        from_stored({**stored, "task_batch_sizes": 0.1}, [], "config.yaml")


def test_a_method_may_not_redefine_an_option(tmp_path):
    path = tmp_path / "clash.py"
    path.write_text(
        "from models.utils.continual_model import ContinualModel\n"
        "class Clash(ContinualModel):\n    NAME = 'clash'\n    COMPATIBILITY = ['class-il']\n"
        "    @staticmethod\n    def get_parser(parser):\n"
        "        parser.add_argument('--lr', type=float, help='x')\n        return parser\n"
    )
    with pytest.raises(UserError, match="declares --lr, which exists already"):
        resolve(["--model", str(path), "--dataset", "seq-digits"])


def test_a_file_without_its_class_is_named(tmp_path):
    path = tmp_path / "odd.py"
    path.write_text("class Odd:\n    NAME = 'even'\n")
    with pytest.raises(UserError, match="defines no class with NAME = 'odd'.*'even'"):
        resolve(["--model", str(path), "--dataset", "seq-digits"])
