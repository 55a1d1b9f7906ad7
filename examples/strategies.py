"""Strategies of `ContinualTrainer` on split digits: five tasks of two classes each, as plain PyTorch loaders.

python examples/strategies.py ewc
"""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that an example runs from anywhere

from palimpsest.trainer import ContinualTrainer  # noqa: E402

torch.set_num_threads(1)  # a network this small is slower with more
SGD, ADAM = {"type": "sgd", "lr": 0.1}, {"type": "adam", "lr": 0.001}
# name -> the setting in which the tasks are scored, and the configuration
EXAMPLES = {
    "fine_tuning": ("task-il", {"optimizer": SGD}),  # what forgetting looks like
    "ewc": ("task-il", {"optimizer": SGD, "continual_strategy": {"ewc": {"lambda": 100.0}}}),
    "si": ("task-il", {"optimizer": SGD, "continual_strategy": {"si": {"c": 1.0}}}),
    "mas": ("task-il", {"optimizer": SGD, "continual_strategy": {"mas": {"lambda": 1.0}}}),
    "rwalk": ("task-il", {"optimizer": SGD, "continual_strategy": {"rwalk": {"lambda": 10.0}}}),
    "lwf": ("task-il", {"optimizer": SGD, "continual_strategy": {"lwf": {"alpha": 1.0, "temperature": 2.0}}}),
    "gem": ("task-il", {"optimizer": SGD, "continual_strategy": {"gem": {"memory_size": 100, "margin": 0.5}}}),
    "agem": ("task-il", {"optimizer": SGD, "continual_strategy": {"agem": {"memory_size": 100, "ref_batch": 32}}}),
    "er": ("class-il", {"optimizer": SGD, "continual_strategy": {"er": {"memory_size": 100, "batch_size": 10}}}),
    "derpp": (
        "class-il",
        {"optimizer": SGD, "continual_strategy": {"derpp": {"memory_size": 100, "alpha": 0.5, "beta": 0.5}}},
    ),
    "icarl": ("class-il", {"optimizer": SGD, "continual_strategy": {"icarl": {"memory_size": 100}}}),
    "gdumb": ("class-il", {"optimizer": SGD, "continual_strategy": {"gdumb": {"fitting_epochs": 30}}}),
    "slda": ("class-il", {"optimizer": SGD, "continual_strategy": {"slda": {}}}),
    "pnn": ("task-il", {"optimizer": ADAM, "continual_strategy": {"pnn": {}}}),
    "packnet": ("task-il", {"optimizer": ADAM, "continual_strategy": {"packnet": {"prune_percentage": 0.75}}}),
    "hat": ("task-il", {"optimizer": SGD, "continual_strategy": {"hat": {}}}),
    # A strategy joined with a small replay buffer.
    "ewc_replay": (
        "class-il",
        {"optimizer": SGD, "continual_strategy": {"ewc": {"lambda": 10.0}}, "replay": {"size": 100}},
    ),
}


def loaders(batch_size: int = 10) -> list[tuple[DataLoader, DataLoader]]:
    """(training, test) loaders of each task; images (64,) in [0, 1], labels 0 to 9."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    out = []
    for task in range(5):
        rows = (y // 2 == task).nonzero().squeeze(1)
        n = int(0.8 * len(rows))
        train, test = (TensorDataset(x[part], y[part]) for part in (rows[:n], rows[n:]))
        out.append((DataLoader(train, batch_size, shuffle=True), DataLoader(test, 100)))
    return out


def network() -> nn.Module:
    """64-100-100-10 with ReLU."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def main(name: str, num_epochs: int = 3) -> None:
    """Learn the five tasks one after the other and print what is left of each."""
    setting, config = EXAMPLES[name]
    trainer, tasks = ContinualTrainer(model=network(), config=config, setting=setting), loaders()
    for task_id, (train_loader, test_loader) in enumerate(tasks):
        task_name = f"digits {2 * task_id}, {2 * task_id + 1}"
        out = trainer.train_task(train_loader, test_loader, task_id, task_name, num_epochs)
        trainer.evaluate_all_tasks([test for _, test in tasks])
        print(f"{out['task_name']}: loss {out['epochs'][-1]['loss']:.3f}")
    for scenario, metrics in trainer.metrics().items():
        print(f"{scenario}: average accuracy {metrics['acc']:.1f} %, forgetting {metrics['forgetting']:.1f}")


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in EXAMPLES:
        sys.exit(f"usage: {sys.argv[0]} {' | '.join(EXAMPLES)}")
    main(sys.argv[1])
