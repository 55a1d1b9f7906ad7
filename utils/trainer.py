"""The door for scripts and notebooks: `from utils.trainer import ContinualTrainer`."""

from palimpsest.utils.run.trainer import ContinualTrainer

__all__ = ["ContinualTrainer"]
