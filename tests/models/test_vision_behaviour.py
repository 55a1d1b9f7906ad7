"""Methods on segmentation, detection and classification in turn: what is learned in each stage and what is left.

    python -m tests.models.test_vision_behaviour [--seeds 3] [--models sgd ...] [--base_path FOLDER]    prints the table
    pytest tests/models/test_vision_behaviour.py -m slow          checks what must hold of it

seq-vision-mini with digits at 96 pixels, the small trunk from scratch, the stored settings of each method. `single` is
the network that is trained on one task alone, for as many steps.
"""

import argparse
import os
from functools import cache

import numpy as np
import pytest

from tests.models.helpers import finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200)]

TASKS = ("seg", "det", "cls")
METHODS = {
    "sgd": (),
    "joint": (),
    "ewc": (),
    "lwf": (),
    "er": ("--buffer_size", "30"),
    "balanced-ewc": (),
    "balanced-ewc, shared BatchNorm": ("--bn_policy", "shared"),
}
SEEDS = (0, 1, 2)


def trained(model: str, seed: int, *more: str) -> np.ndarray:
    """The score matrix (3, 3) after training, percent."""
    folder = os.environ.get("PALIMPSEST_VISION", "./data")
    options = ("--vision_items", "digits", "--base_path", folder, "--seed", str(seed), "--load_best_args", *more)
    return finished(model, *options, dataset="seq-vision-mini").run.matrices["task-il"]


@cache
def scores(name: str, seed: int) -> np.ndarray:
    """Own-stage and last score of each task, (2, 3); of joint, which has no stages, the last twice."""
    matrix = trained(name.partition(",")[0], seed, *METHODS[name])
    return np.stack([matrix[-1] if name == "joint" else matrix.diagonal(), matrix[-1]])


@cache
def single(task: str, seed: int) -> float:
    """Score of the network that knows one task only."""
    order = ",".join(sorted(TASKS, key=lambda name: name != task))
    return trained("sgd", seed, "--vision_order", order, "--stop_after", "1")[0, 0]


@pytest.mark.parametrize("seed", SEEDS)
def test_plain_training_forgets(seed):
    own, last = scores("sgd", seed)
    assert last[0] < own[0] / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_balanced_ewc_keeps_what_it_learned(seed):
    own, last = scores("balanced-ewc", seed)
    assert (last >= own - 5).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_balanced_ewc_learns_all_the_same(seed):
    own, _ = scores("balanced-ewc", seed)
    assert (own >= np.array([single(task, seed) for task in TASKS]) - 10).all()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--models", nargs="+", choices=["single", *METHODS], default=["single", *METHODS])
    parser.add_argument("--base_path", default="./data")
    options = parser.parse_args()
    os.environ["PALIMPSEST_VISION"] = options.base_path
    print(f"{'method':<32} own stage: seg, det, cls; at the end: seg, det, cls", flush=True)
    for name in options.models:
        rows = []
        for seed in options.seeds:
            found = [[single(task, seed) for task in TASKS]] if name == "single" else scores(name, seed)
            rows.append(np.ravel(found))
            print(f"{name:<32} seed {seed}: " + " ".join(f"{v:6.1f}" for v in rows[-1]), flush=True)
        mean, std = np.mean(rows, 0), np.std(rows, 0, ddof=1) if len(rows) > 1 else np.zeros(len(rows[0]))
        print(f"{name:<32} " + " ".join(f"{m:5.1f}±{s:.1f}" for m, s in zip(mean, std, strict=True)), flush=True)


if __name__ == "__main__":
    main()
