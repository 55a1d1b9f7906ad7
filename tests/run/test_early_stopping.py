"""A task ends where its held-out score rises no more, as if it had been trained to its best epoch and no further."""

import pytest
import torch

from palimpsest.utils.run import stopping
from tests.models.helpers import finished

STOPPING = ["--fitting_mode", "early_stopping", "--holdout", "20"]
AT_ONCE = [*STOPPING, "--early_stopping_patience", "1", "--n_epochs", "5"]


@pytest.fixture
def scored(monkeypatch):
    """(values) -> held-out scores and losses are these, one after the other; the states of the network at each look."""

    def give(*values):
        looks = []

        def scores(model, dataset, task):
            looks.append({name: value.clone() for name, value in model.net.state_dict().items()})
            return {"accuracy": values[len(looks) - 1], "loss": values[len(looks) - 1]}

        monkeypatch.setattr(stopping, "held_out_scores", scores)
        return looks

    return give


def test_a_task_is_not_measured_by_the_best_score_of_the_one_before(scored):
    looks = scored(90, 80, 50, 40)
    finished("sgd", *AT_ONCE, "--stop_after", "2")
    assert len(looks) == 4  # two in each task


@pytest.mark.parametrize("metric, values", [("accuracy", (50, 90, 10)), ("loss", (5, 1, 9))])
def test_weights_and_statistics_are_those_of_the_best(metric, values, scored):
    looks = scored(*values)
    more = ["--backbone", "convnet", "--norm", "batch", "--width", "4", "--early_stopping_metric", metric]
    found, best = finished("sgd", *AT_ONCE, *more, "--stop_after", "1").model.net.state_dict(), looks[1]
    assert len(looks) == 3 and any("running_mean" in name for name in best)
    assert all(torch.equal(found[name], value) for name, value in best.items() if "num_batches" not in name)


def test_a_small_improvement_is_none(scored):
    looks = scored(50, 50.5)
    found = finished("sgd", *AT_ONCE, "--early_stopping_epsilon", "1", "--stop_after", "1").model.net.state_dict()
    assert len(looks) == 2 and all(torch.equal(found[name], value) for name, value in looks[0].items())


def test_real_scores():
    exp = finished("sgd", *AT_ONCE[:-1], "60", "--early_stopping_metric", "loss", "--lr", "1.0", "--stop_after", "1")
    assert exp.run.history[-1].step < 60 * 7 and exp.run.matrices["task-il"][0, 0] > 90


def test_joint_training_sees_all_classes():
    exp = finished("joint", *STOPPING[:2], "--validation", "20", "--n_epochs", "2")
    assert exp.run.matrices["class-il"][4].min() > 10


def moments(model):
    return [v for state in model.opt.state.values() for v in state.values() if isinstance(v, torch.Tensor)]


@pytest.mark.parametrize("model, optimizer, kept", [
    ("si", "sgd --optim_mom 0.9", ["penalty.weight", "penalty.centre"]),
    ("rwalk", "adam", ["penalty.weight", "penalty.centre", "fisher", "score"]),
    ("hal", "adam --buffer_size 20 --minibatch_size 4", ["phi"]),
    ("mas", "sgd --optim_mom 0.9", ["penalty.weight", "penalty.centre"]),
])  # fmt: skip
def test_nothing_is_left_of_the_epochs_after_the_best(scored, model, optimizer, kept):
    more = ["--holdout", "20", "--label_perc", "0.1", "--stop_after", "1", "--backbone", "mnistmlp", "--lr", "0.003"]
    more += ["--optimizer", *optimizer.split()]
    looks = scored(1, 2, 3, 2, 1)
    stopped = finished(model, *more, *STOPPING[:2], "--early_stopping_patience", "2", "--n_epochs", "9")
    assert len(looks) == 5
    short = finished(model, *more, "--n_epochs", "3")
    pairs = [*zip(stopped.model.parameters(), short.model.parameters(), strict=True)]
    pairs += [*zip(moments(stopped.model), moments(short.model), strict=True)]
    found, expected = stopped.model.state_dict(), short.model.state_dict()
    for a, b in [*pairs, *((found[name], expected[name]) for name in kept)]:
        torch.testing.assert_close(a, b, rtol=0, atol=0)
