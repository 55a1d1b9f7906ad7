"""Every method can begin at a later task, with nothing learned before it; or refuses at the start in one line."""

import pytest
import torch

from palimpsest.utils import registry
from palimpsest.utils.check import cases
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import train
from tests.models.helpers import enter, experiment

# One case is enough where a method's settings do not differ in what it keeps: the first that has tasks to skip.
FIRST = {
    model: case
    for model in registry.names("model")
    if not registry.load("model", model).JOINT
    for case in reversed(cases.cases(model))
    if case.setting in ("class-il", "domain-il")
}


@pytest.mark.parametrize("model", FIRST)
def test_starting_later(model):
    few = {"share": 0.06, "tasks": 2}
    exp = build(FIRST[model].config("--start_from", "1", "--n_epochs", "1", **few))
    train(exp)
    assert all(torch.isfinite(p).all() for p in exp.model.parameters())


def test_er_ace_replays_from_the_second_batch_on():
    """The first batch finds an empty buffer; nothing is said of old classes."""
    exp = experiment("er_ace", "--start_from", "1", "--buffer_size", "20", "--minibatch_size", "4", "--n_epochs", "1")
    model = enter(exp.model, exp.dataset, 1)
    terms = [model.meta_observe(*batch, 0) for batch, _ in zip(exp.dataset.train_loader, range(2), strict=False)]
    assert ["replay" in t for t in terms] == [False, True]


def test_a_method_that_needs_the_past_says_so():
    (case,) = cases.cases("balanced_ewc")
    with pytest.raises(UserError, match="--start_from.*--loadcheck"):
        build(case.config("--start_from", "1"))
    with pytest.raises(UserError, match="--start_from: --coreset_size.*--loadcheck"):
        experiment("pr_bbb", "--coreset_size", "3", "--start_from", "1")
