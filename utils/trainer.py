"""The door for scripts and notebooks: `from utils.trainer import ContinualTrainer`."""

from utils.run.trainer import ContinualTrainer

__all__ = ["ContinualTrainer"]
