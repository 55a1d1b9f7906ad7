"""Continual learning of one's own network: `from palimpsest.trainer import ContinualTrainer`."""

from palimpsest.utils.run.trainer import Trainer


class ContinualTrainer(Trainer):
    """x"""
