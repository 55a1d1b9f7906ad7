"""Random numbers as functions of (seed, name): nothing here depends on what was drawn before.

A stream's permutations, class orders and the order of the batches come from here, so two methods with one seed see
the same data in the same order, and a run can be re-entered at any step.
"""

import hashlib

import torch


def derive(seed: int, *names) -> int:
    """A 63-bit seed for one named purpose, e.g. derive(0, 'order', task, epoch)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator for one named purpose."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def permutation(n: int, seed: int, *names) -> torch.Tensor:
    """A random permutation of 0..n-1, int64 on the CPU."""
    return torch.randperm(n, generator=generator(seed, *names))
