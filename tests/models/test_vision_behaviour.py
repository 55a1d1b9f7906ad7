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
    "ewc, lambda 1": ("--e_lambda", "1"),
    "ewc, lambda 1, shared BatchNorm": ("--e_lambda", "1", "--bn_policy", "shared"),
    "lwf": (),
    "er": ("--buffer_size", "30"),
    "balanced-ewc": (),
}
SEEDS = (0, 1, 2)


def trained(model: str, seed: int, *more: str) -> tuple[np.ndarray, np.ndarray]:
    """The score matrix (3, 3) after training and the floors (3,) of the scores, percent."""
    folder = os.environ.get("PALIMPSEST_VISION", "./data")
    options = ("--vision_items", "digits", "--base_path", folder, "--seed", str(seed), "--load_best_args", *more)
    run = finished(model, *options, dataset="seq-vision-mini").run
    return run.matrices["task-il"], np.array(run.history[-1].others["floor"]["task-il"])


@cache
def scores(name: str, seed: int) -> np.ndarray:
    """The score matrix (3, 3): a row per stage; of joint, which has one only, the last row three times."""
    matrix, _ = trained(name.partition(",")[0], seed, *METHODS[name])
    return np.tile(matrix[-1], (3, 1)) if name == "joint" else matrix


@cache
def single(task: str, seed: int) -> tuple[float, float]:
    """Score of the network that knows one task only, and the floor."""
    order = ",".join(sorted(TASKS, key=lambda name: name != task))
    matrix, floors = trained("sgd", seed, "--vision_order", order, "--stop_after", "1")
    return matrix[0, 0], floors[0]


def normalised(name: str, seed: int) -> float:
    """Mean over the tasks of (last - floor) / (single - floor)."""
    best, floors = np.transpose([single(task, seed) for task in TASKS])
    return np.mean((scores(name, seed)[-1] - floors) / (best - floors))


@pytest.mark.parametrize("seed", SEEDS)
def test_plain_training_learns_and_forgets(seed):
    found = scores("sgd", seed)
    assert found[2, 0] < found[0, 0] / 2
    assert found[1, 1] >= 70 and found[2, 2] >= 90


@pytest.mark.parametrize("seed", SEEDS)
def test_a_strong_penalty_keeps_the_weights_and_shared_statistics_lose_them_all_the_same(seed):
    kept, lost = scores("ewc, lambda 1", seed), scores("ewc, lambda 1, shared BatchNorm", seed)
    assert kept[2, 0] >= 0.9 * kept[0, 0]
    assert lost[1, 0] < lost[0, 0] / 2


def test_ewc_ends_above_plain_training():
    ahead = [normalised("ewc", seed) - normalised("sgd", seed) for seed in SEEDS]
    assert np.mean(ahead) > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_balanced_ewc_keeps_what_it_learned(seed):
    found = scores("balanced-ewc", seed)
    assert (found[-1] >= found.diagonal() - 5).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_balanced_ewc_learns_all_the_same(seed):
    own = scores("balanced-ewc", seed).diagonal()
    assert (own >= np.array([single(task, seed)[0] for task in TASKS]) - 10).all()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--models", nargs="+", choices=["single", *METHODS], default=["single", *METHODS])
    parser.add_argument("--base_path", default="./data")
    options = parser.parse_args()
    os.environ["PALIMPSEST_VISION"] = options.base_path
    print(f"{'method':<32} seg, det, cls after each stage; of single: score and floor of each", flush=True)
    for name in options.models:
        rows = []
        for seed in options.seeds:
            found = [single(task, seed) for task in TASKS] if name == "single" else scores(name, seed)
            rows.append(np.ravel(found))
            print(f"{name:<32} seed {seed}: " + " ".join(f"{v:6.1f}" for v in rows[-1]), flush=True)
        mean, std = np.mean(rows, 0), np.std(rows, 0, ddof=1) if len(rows) > 1 else np.zeros(len(rows[0]))
        print(f"{name:<32} " + " ".join(f"{m:5.1f}±{s:.1f}" for m, s in zip(mean, std, strict=True)), flush=True)


if __name__ == "__main__":
    main()
