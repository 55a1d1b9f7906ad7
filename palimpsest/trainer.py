"""A programmable trainer over one's own tasks: `from palimpsest.trainer import ContinualTrainer`."""

from palimpsest.utils.run.trainer import ContinualTrainer

__all__ = ["ContinualTrainer"]
