"""Random numbers as functions of (seed, name): nothing here depends on what was drawn before.

A stream's permutations, class orders and the order of the batches come from here, so two methods with one seed see
the same data in the same order, and a run can be re-entered at any step. The global generators, from which dropout and
methods draw, are saved and set as a whole.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derive(seed: int, *names) -> int:
    """A 63-bit seed for one named purpose, e.g. derive(0, 'order', task, epoch)."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def seed_of(args: Any, purpose: str) -> int:
    """The seed of one part of a run.

    Args:
        args: resolved options.
        purpose: 'init' (the network's first weights, what a method draws as it is made, what it adds for a new task),
            'order' (classes and tasks: their order, permutations of pixels, angles) or 'data' (everything else: order
            of batches, augmentation, held-out parts, label noise, replay, dropout).

    Returns:
        `--seed_<purpose>`, or `--seed` where it is not given.
    """
    own = getattr(args, f"seed_{purpose}", None)
    return args.seed if own is None else own


def generator(seed: int, *names, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh torch generator for one named purpose."""
    return torch.Generator(device=device).manual_seed(derive(seed, *names))


def permutation(n: int, seed: int, *names) -> torch.Tensor:
    """A random permutation of 0..n-1, int64 on the CPU."""
    return torch.randperm(n, generator=generator(seed, *names))


def seed_all(seed: int) -> None:
    """Seed the global generators of torch, of every device, of numpy and of Python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - methods written elsewhere draw from it
    torch.manual_seed(seed)


def random_state() -> dict[str, Any]:
    """The states of the global generators of torch, numpy and Python as tensors and plain values."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - methods written elsewhere draw from it
    state = {"torch": torch.get_rng_state(), "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest]}
    version, internal, gauss = random.getstate()
    state["python"] = [version, torch.tensor(internal, dtype=torch.int64), gauss]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Set what `random_state` returned."""
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextmanager
def preserve_rng() -> Iterator[None]:
    """Whatever is drawn inside, the global generators are afterwards where they were."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
