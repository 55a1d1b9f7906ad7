"""Split digits for the examples: five tasks of two classes each, as plain PyTorch loaders."""

import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that an example runs from anywhere

from utils.run.trainer import ContinualTrainer  # noqa: E402

torch.set_num_threads(1)  # a network this small is slower with more


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


def learn(trainer: ContinualTrainer, num_epochs: int = 3) -> None:
    """Learn the five tasks one after the other and print what is left of each."""
    tasks = loaders()
    for task_id, (train_loader, test_loader) in enumerate(tasks):
        out = trainer.train_task(
            train_loader, test_loader, task_id, f"digits {2 * task_id}, {2 * task_id + 1}", num_epochs
        )
        trainer.evaluate_all_tasks([test for _, test in tasks])
        print(f"{out['task_name']}: loss {out['epochs'][-1]['loss']:.3f}")
    for scenario, metrics in trainer.metrics().items():
        print(f"{scenario}: average accuracy {metrics['acc']:.1f} %, forgetting {metrics['forgetting']:.1f}")
