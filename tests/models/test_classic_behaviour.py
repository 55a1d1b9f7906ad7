"""The classic strategies on split and permuted digits, as a table: 64-100-100-10, SGD, lr 0.1, batches of 10.

    python -m tests.models.test_classic_behaviour [--seeds 3]      prints the table
    pytest tests/models/test_classic_behaviour.py -m slow          checks what must hold of it

Images in [0, 1], the last fifth of each task, by other writers, for testing, torch's default initialisation. Split
digits: 5 tasks of 2 classes, 5 epochs, one softmax per task. Permuted digits: 5 tasks, 3 epochs, one softmax.
"""

import argparse
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from palimpsest.trainer import ContinualTrainer

SPLIT = {
    "naive": (None, {}),
    "ewc 10": ("ewc", {"lambda": 10}),
    "ewc 10 explicit": ("ewc", {"lambda": 10, "update": "explicit"}),
    "ewc 100": ("ewc", {"lambda": 100}),
    "ewc 1000": ("ewc", {"lambda": 1000}),
    "lwf": ("lwf", {"kd_scale": "none"}),
    "si 1": ("si", {"c": 1}),
    "mas 1, lr .05": ("mas", {"lambda": 1, "lr": 0.05}),
    "er 100": ("er", {"memory_size": 100, "batch_size": 10}),
    "gem, margin 0": ("gem", {"memory_size": 100, "margin": 0}),
    "gem, margin .5": ("gem", {"memory_size": 100, "margin": 0.5}),
    "agem": ("agem", {"memory_size": 100, "ref_batch": 100}),
    "pnn": ("pnn", {}),
    "packnet .75": ("packnet", {"prune_percentage": 0.75}),
    "packnet .5": ("packnet", {"prune_percentage": 0.5}),
    "hat": ("hat", {}),
}
PERMUTED = {
    name: SPLIT[name]
    for name in ("naive", "ewc 10", "ewc 100", "ewc 1000", "lwf", "mas 1, lr .05", "er 100", "gem, margin 0",
                 "gem, margin .5", "agem")
} | {"si .1": ("si", {"c": 0.1})}  # fmt: skip


def tasks_of(stream: str, seed: int):
    """(training, test) loaders of the five tasks."""
    x, y = load_digits(return_X_y=True)
    x, y, rng = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y), torch.Generator().manual_seed(1000 + seed)
    out = []
    for task in range(5):
        rows = (y // 2 == task).nonzero().squeeze(1) if stream == "split" else torch.arange(len(y))
        pixels = torch.randperm(64, generator=rng) if stream == "permuted" and task else torch.arange(64)
        n = int(0.8 * len(rows))
        train, test = (TensorDataset(x[part][:, pixels], y[part]) for part in (rows[:n], rows[n:]))
        out.append((DataLoader(train, 10, shuffle=True, generator=rng), DataLoader(test, 500)))
    return out


@cache
def results(stream: str, name: str, seeds: int = 3) -> np.ndarray:
    """ACC, BWT and LA in percent (seeds, 3)."""
    strategy, options = (SPLIT if stream == "split" else PERMUTED)[name]
    options, rows = dict(options), []
    lr = options.pop("lr", 0.1)
    for seed in range(seeds):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
        section = {strategy: {"enabled": True, **options}} if strategy else {}
        trainer = ContinualTrainer(
            model=net,
            config={"optimizer": {"type": "sgd", "lr": lr}, "continual_strategy": section},
            device="cpu",
            setting="task-il" if stream == "split" else "domain-il",
        )
        tasks = tasks_of(stream, seed)
        for task, (train, _) in enumerate(tasks):
            trainer.train_task(train, None, task, num_epochs=5 if stream == "split" else 3)
            trainer.evaluate_all_tasks([test for _, test in tasks])
        metrics = trainer.metrics()["task-il" if stream == "split" else "domain-il"]
        rows.append([metrics[key] for key in ("acc", "bwt", "la")])
    return np.array(rows)


def acc(stream: str, name: str) -> float:
    return results(stream, name)[:, 0].mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pnn", "packnet .75", "packnet .5", "hat"])
def test_weights_of_past_tasks_are_out_of_reach(name):
    assert (results("split", name)[:, 1] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gem, margin 0", "gem, margin .5", "agem", "lwf", "ewc 1000"])
def test_split_digits_against_naive(name):
    assert acc("split", name) >= acc("split", "naive") + 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["er 100", "gem, margin 0", "gem, margin .5"])
def test_permuted_digits_against_naive(name):
    assert acc("permuted", name) >= acc("permuted", "naive") + 15


@pytest.mark.slow
def test_no_strength_of_the_proximal_step_collapses():
    assert acc("permuted", "ewc 1000") > 40


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    torch.set_num_threads(1)
    print(f"{'stream':<9} {'strategy':<16} {'ACC':>12} {'BWT':>7} {'LA':>6}", flush=True)
    for stream, names in (("split", SPLIT), ("permuted", PERMUTED)):
        for name in names:
            r = results(stream, name, seeds)
            mean, std = r.mean(0), r.std(0, ddof=1)
            print(f"{stream:<9} {name:<16} {mean[0]:6.1f} ± {std[0]:4.1f} {mean[1]:6.1f} {mean[2]:6.1f}", flush=True)


if __name__ == "__main__":
    main()
