"""Finds the calls of a method's `observe` that would make the training loop wait for the device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from palimpsest.utils.leaks.terms import caller


class SyncDetector(TorchFunctionMode):
    """Notes every call that would wait for a GPU, wherever the tensors live now; the optimisers' own bookkeeping is
    left out. A tensor made of Python numbers on a device waits, too: they are copied from the host.
    """

    NAMES = {
        "item", "tolist", "numpy", "cpu", "nonzero", "masked_select", "unique", "equal", "allclose", "argwhere",
        "is_nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__",
    }  # fmt: skip

    def __init__(self, calls: list[str]):
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", str(func))
        by_mask = name == "__getitem__" and _has_mask(args[1])
        to_host = name == "to" and any(isinstance(a, str) and a == "cpu" for a in (*args[1:], *(kwargs or {}).values()))
        numbers = name == "new_tensor" or (
            name in ("tensor", "as_tensor", "asarray") and "device" in (kwargs or {}) and not _is_tensor(args, kwargs)
        )
        if name in self.NAMES or by_mask or to_host or numbers:
            place = caller()
            if place:
                what = "boolean-mask indexing" if by_mask else f"{name} of numbers" if numbers else name
                self.calls.append(f"{what} at {place}")
        return func(*args, **(kwargs or {}))


def _is_tensor(args, kwargs) -> bool:
    return isinstance(args[0] if args else kwargs.get("data"), Tensor)


def _has_mask(index) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(p, Tensor) and p.dtype == torch.bool for p in parts)


@contextmanager
def cuda_waits_are_errors() -> Iterator[None]:
    """On a GPU: any synchronisation raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
