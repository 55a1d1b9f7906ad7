"""Rows whose published score is of other mathematics than the method's default set it, or say so."""

import pytest
import torch

from palimpsest.utils.run.best_args import load_rows
from tests.models.helpers import experiment


def of_dark_replay(model):
    return [row for rows in load_rows(model).values() for row in rows if "2004.07211" in row.get("source", "")]


def test_what_a_row_can_set_it_sets():
    for row in of_dark_replay("lwf"):
        assert row["args"]["kd_scale"] == "none" and row["args"]["optim_wd"] == 2 * 0.0005
    decays = [row["args"]["opt_wd"] for row in of_dark_replay("icarl")]
    assert sorted(set(decays)) == [0, 2e-5] and len(decays) == 9


@pytest.mark.parametrize("model, words", [("si", "clips every entry"), ("bic", "T^2"), ("lwf", "T^2")])
def test_what_it_cannot_set_it_says(model, words):
    rows = [row for rows in load_rows(model).values() for row in rows if "Mammoth" in row.get("source", "")]
    told = rows if model != "lwf" else of_dark_replay("lwf")
    assert told and all(words in row["note"] for row in told)


def test_a_squared_norm_in_the_loss_is_twice_as_much_weight_decay():
    """Which is what the doubled values of the rows rest on."""
    ends = []
    for more in (["--wd_reg", "0.01"], ["--optim_wd", "0.02"], ["--optim_wd", "0.01"]):
        exp = experiment("lwf_mc", "--backbone", "mnistmlp", "--optim_mom", "0", "--lr", "0.1", *more)
        exp.dataset.enter_task(0)
        exp.model.meta_begin_task(exp.dataset)
        for batch, _ in zip(exp.dataset.train_loader, range(3), strict=False):
            exp.model.meta_observe(*batch, 0)
        ends.append(exp.model.net.get_params().detach())
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)
    assert (ends[0] - ends[2]).abs().max() > 1e-4
