"""The trainer where scripts of a checkout look for it; `palimpsest.trainer` is the same."""

from palimpsest.trainer import ContinualTrainer

__all__ = ["ContinualTrainer"]
