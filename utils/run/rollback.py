"""All or nothing: what fails or is interrupted inside leaves everything as it was.

A checkpoint is read into a fresh method and makes its tensors anew. Here the objects stay the same, since the network
is its user's, who may hold its parameters: all that is mutable and can be reached is noted, and gets its content back.
"""

import argparse
import random
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.utils.randomness import random_state, set_random_state

LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy"} - {"__main__"}
ATOMS = (type(None), bool, int, float, complex, str, bytes, type, types.ModuleType, types.FunctionType)


@contextmanager
def all_or_nothing(*roots: Any, leave: tuple[type, ...] = ()) -> Iterator[None]:
    """On an exception inside, an interrupt included, what can be reached from the roots, the global random
    generators, and whether gradients are computed, are as before.

    The content of tensors waits on the host meanwhile: the memory of all of them.

    Args:
        roots: objects.
        leave: classes whose objects are not looked into.
    """
    memory = _Memory(roots, leave)
    try:
        yield
    except BaseException:
        with _uninterrupted():
            memory.restore()
        raise


class _Memory:
    """What is reached from some objects, and what gives each its content back."""

    def __init__(self, roots: tuple, leave: tuple[type, ...]):
        self.leave, self.random = (*ATOMS, *leave), random_state()
        self.grad = torch.is_grad_enabled()  # an interrupt may come while a `no_grad` is being left
        self.seen: dict[int, Any] = {}  # an id is unique only while its object lives
        self.undo: list[Callable[[], None]] = []
        self.left: list[Any] = [*roots]
        while self.left:
            value = self.left.pop()
            if id(value) not in self.seen and not isinstance(value, self.leave):
                self.seen[id(value)] = value
                self._note(value)

    def restore(self) -> None:
        for undo in self.undo:
            undo()
        set_random_state(self.random)
        torch.set_grad_enabled(self.grad)

    def _note(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._note_tensor(value)
        elif isinstance(value, dict | list | deque | set):
            self._note_content(value)
        elif isinstance(value, tuple | frozenset):
            self.left += value
        elif isinstance(value, np.ndarray):
            if value.flags.writeable:
                copy = value.copy()
                self.undo.append(lambda: np.copyto(value, copy))
        elif (found := state_of(value)) is not None:
            state, put = found
            self.undo.append(lambda: put(state))
        if has_state(value):
            self._note_content(vars(value))

    def _note_content(self, container: dict | list | deque | set) -> None:
        parts = parts_of(container)
        self.left += parts
        self.undo.append(lambda: refill(container, parts))

    def _note_tensor(self, value: Tensor) -> None:
        # A second tensor over the same memory keeps shape and place, whatever is done to the first.
        alias, learns = value.detach(), value.requires_grad
        if value.is_leaf:
            gradient = value.grad
            self.left.append(gradient)

            def back() -> None:
                moved = (value.data_ptr(), value.shape, value.stride(), value.dtype)
                if moved != (alias.data_ptr(), alias.shape, alias.stride(), alias.dtype):
                    value.data = alias
                value.requires_grad_(learns)
                value.grad = gradient

            self.undo.append(back)
        if value.layout is not torch.strided or value.is_meta:
            return
        storage = alias.untyped_storage()
        if storage._cdata not in self.seen:
            self.seen[storage._cdata] = storage
            copy = storage.cpu() if storage.device.type != "cpu" else storage.clone()
            self.undo.append(lambda: storage.copy_(copy))


def has_state(value: Any) -> bool:
    """Whether the attributes of an object are noted: those of modules and optimisers, and of all that is not of a
    library.
    """
    if isinstance(value, nn.Module | torch.optim.Optimizer | argparse.Namespace):
        return True
    return hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in LIBRARIES


def state_of(value: Any) -> tuple[Any, Callable] | None:
    """The state of a random generator, and what puts it back; None for anything else."""
    if isinstance(value, np.random.Generator):
        bits = value.bit_generator
        return bits.state, lambda state: setattr(bits, "state", state)
    if isinstance(value, np.random.RandomState):
        return value.get_state(), value.set_state
    if isinstance(value, random.Random):
        return value.getstate(), value.setstate
    return (value.get_state(), value.set_state) if isinstance(value, torch.Generator) else None


def parts_of(container: dict | list | deque | set) -> list:
    """Its entries; of a dict each key and then its value."""
    return [part for item in container.items() for part in item] if isinstance(container, dict) else [*container]


def refill(container: dict | list | deque | set, parts: list) -> None:
    """Give a container the entries back that it had, unless it has them."""
    if [*map(id, parts_of(container))] != [*map(id, parts)]:
        container.clear()
        if isinstance(container, dict):
            container.update(zip(parts[::2], parts[1::2], strict=True))
        else:
            (container.update if isinstance(container, set) else container.extend)(parts)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """A second interrupt waits until the block is done, and is then that of the first."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    if before is None:  # not ours to change
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
