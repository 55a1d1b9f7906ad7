"""Who wins: the stream's defaults, the method's own, presets, stored rows, the command line."""

import pytest

from palimpsest.utils.run import config as configuration
from palimpsest.utils.run.config import resolve

METHOD = """
from models.sgd import SGD

class Picky(SGD):
    NAME = "picky"
    DEFAULTS = {"backbone": "lenet", "lr": 0.5, "optimizer": "adam", "batch_size": 9}
    PRESETS = {"style": {"a": {"level": 1, "lr": 0.2}, "b": {"level": 3}}}

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--style", choices=["none", "a", "b"], default="none", help="preset")
        parser.add_argument("--level", type=int, default=0, help="level")
        return parser
"""


@pytest.fixture
def picky(tmp_path, monkeypatch):
    """Resolve a command line of a method with defaults and presets, beside a stored row or none."""
    path = tmp_path / "picky.py"
    path.write_text(METHOD)

    def found(*more: str, row: dict | None = None, dataset: str = "seq-digits"):
        monkeypatch.setattr(configuration, "find_row", lambda *_: {"args": row})
        best = [] if row is None else ["--load_best_args"]
        return resolve(["--model", str(path), "--dataset", dataset, *best, *more])

    return found


@pytest.mark.parametrize("dataset", ["seq-digits", "perm-digits", "digits-360"])
def test_a_methods_defaults_win_over_the_streams(picky, dataset):
    plain = resolve(["--model", "sgd", "--dataset", dataset])
    own = picky(dataset=dataset)
    for option, value in {"backbone": "lenet", "lr": 0.5, "optimizer": "adam", "batch_size": 9}.items():
        assert (getattr(own.args, option), own.origins[option]) == (value, "method")
        assert getattr(plain.args, option) != value
    assert own.backbone_class.NAME == "lenet" and own.args.n_epochs == plain.args.n_epochs
    assert own.origins["n_epochs"] == "dataset"


def test_rows_and_the_command_line_win_over_a_methods_defaults(picky):
    stored = picky(row={"lr": 0.3, "backbone": "mnistmlp"})
    assert (stored.args.lr, stored.args.backbone, stored.args.batch_size) == (0.3, "mnistmlp", 9)
    given = picky("--lr", "0.4", "--backbone", "convnet", row={"lr": 0.3, "backbone": "mnistmlp"})
    assert (given.args.lr, given.args.backbone, given.origins["lr"]) == (0.4, "convnet", "command line")


@pytest.mark.parametrize("method", ["vcl", "pr_dirac"])
def test_methods_of_ours_that_need_an_optimiser_get_it_on_every_stream(method):
    for dataset in ("seq-digits", "perm-digits", "seq-gmm2d"):
        args = resolve(["--model", method, "--dataset", dataset]).args
        assert (args.optimizer, args.lr) == ("adam", 0.001)


def test_a_preset_ranks_just_below_the_place_that_names_it(picky):
    assert (picky("--style", "a").args.level, picky("--style", "a").args.lr) == (1, 0.2)
    row = picky(row={"style": "a", "level": 2}).args
    assert (row.level, row.lr) == (2, 0.2)
    assert picky("--style", "b", row={"level": 2}).args.level == 3
    both = picky("--style", "b", "--level", "4", row={"level": 2})
    assert (both.args.level, both.origins["level"]) == (4, "command line")
