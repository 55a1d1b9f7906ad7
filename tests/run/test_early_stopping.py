"""A task that goes back to its best epoch ends as if it had been trained to that epoch and no further."""

import pytest
import torch

from palimpsest.utils.run.stopping import EarlyStopping
from palimpsest.utils.run.training import train
from tests.models.helpers import experiment

REST = ["--holdout", "20", "--label_perc", "0.1", "--stop_after", "1", "--backbone", "mnistmlp"]
BEST = 3


@pytest.fixture
def best_epoch(monkeypatch):
    """Held-out scores that rise until epoch `BEST` and fall from there."""

    def scores(model, stream, task):
        scores.asked += 1
        return {"accuracy": float(-abs(scores.asked - BEST)), "loss": 0.0}

    scores.asked = 0
    monkeypatch.setattr("utils.run.stopping.held_out_scores", scores)


def moments(model):
    return [v for state in model.opt.state.values() for v in state.values() if isinstance(v, torch.Tensor)]


def after_first_task(model, *more):
    exp = experiment(model, *REST, *more)
    train(exp)
    return exp


@pytest.mark.parametrize(
    "model, kept",
    [
        ("si", ["penalty.weight", "penalty.centre"]),
        ("rwalk", ["penalty.weight", "penalty.centre", "fisher", "score"]),
        ("hal", ["phi"]),
        ("mas", ["penalty.weight", "penalty.centre"]),
        ("sgd", []),
    ],
)
@pytest.mark.parametrize("optimizer", [["--optimizer", "sgd", "--optim_mom", "0.9"], ["--optimizer", "adam"]])
def test_nothing_is_left_of_the_epochs_after_the_best(best_epoch, model, kept, optimizer):
    more = [*optimizer, "--lr", "0.003", *(["--buffer_size", "20", "--minibatch_size", "4"] if model == "hal" else [])]
    stopped = after_first_task(model, *more, "--fitting_mode", "early_stopping", "--early_stopping_patience", "2",
                               "--n_epochs", "9")  # fmt: skip
    assert isinstance(stopped.stopper, EarlyStopping) and stopped.stopper.waited == 2
    short = after_first_task(model, *more, "--n_epochs", str(BEST))
    pairs = [*zip(stopped.model.parameters(), short.model.parameters(), strict=True)]
    pairs += [*zip(moments(stopped.model), moments(short.model), strict=True)]
    found, expected = stopped.model.state_dict(), short.model.state_dict()
    pairs += [(found[name], expected[name]) for name in kept]
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=0, atol=0)
