"""`--seed_init`, `--seed_order`, `--seed_data`: each changes its part of a run and nothing else."""

import pytest
import torch

from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build, execute
from palimpsest.utils.run.layers import with_seed
from tests.models.helpers import QUIET

ER = [
    "--model",
    "er",
    "--dataset",
    "seq-digits",
    "--buffer_size",
    "50",
    "--permute_classes",
    "--validation",
    "20",
    *QUIET,
]


def facts(*argv):
    """What each of the three seeds decides, before training."""
    exp = build(resolve([*ER, *argv]))
    weights = torch.cat([p.detach().flatten() for p in exp.model.net.parameters()])
    exp.dataset.enter_task(0)
    data = exp.dataset.train_loader.order(100, 0), exp.model.buffer[0].rng.bit_generator.state["state"]
    drawn = torch.get_rng_state()
    return {
        "init": weights.tolist(),
        "order": exp.dataset.class_order,
        "data": [data[0].tolist(), data[1], drawn.tolist()],
    }


@pytest.mark.parametrize("part", ["init", "order", "data"])
def test_a_part_changes_alone_and_is_that_of_a_run_with_this_seed(part):
    plain, other, mixed = facts("--seed", "1"), facts("--seed", "7"), facts("--seed", "1", f"--seed_{part}", "7")
    assert all(plain[name] != other[name] for name in plain)
    assert mixed == plain | {part: other[part]}


def test_a_stream_of_domains_is_drawn_by_the_order(undrawn):
    def angles(*argv):
        exp = build(resolve(["--model", "sgd", "--dataset", "rot-digits", *QUIET, *argv]))
        return [exp.dataset.angle(domain) for domain in range(3)]

    assert angles("--seed_order", "3") == angles("--seed", "3") != angles() == angles("--seed_data", "3")


def test_all_three_are_the_seed(undrawn):
    argv = [*ER, "--stop_after", "2", "--debug_mode"]
    whole, parts = (
        execute(resolve([*argv, *seeds]))[0]
        for seeds in (["--seed", "5"], ["--seed", "9", "--seed_init", "5", "--seed_order", "5", "--seed_data", "5"])
    )
    assert whole.history == parts.history and whole.losses == parts.losses
    half = execute(resolve([*argv, "--seed", "5", "--seed_init", "6"]))[0]
    assert half.losses != whole.losses


def test_one_run_has_one_configuration():
    assert resolve([*ER, "--seed", "4", "--seed_data", "4"]).args.seed_data is None
    args = resolve([*ER, "--seeds", "0", "4", "--seed_data", "4"]).args
    assert [with_seed(args, seed).seed_data for seed in args.seeds] == [4, None]
    three = [word for part in ("init", "order", "data") for word in (f"--seed_{part}", "1")]
    with pytest.raises(UserError, match="nothing to change"):
        resolve([*ER, "--seeds", "0", "1", *three])
