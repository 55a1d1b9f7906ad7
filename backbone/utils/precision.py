"""Mixed precision where it belongs: in the passes of a network. What comes out is float32, so that losses, gradients
and whatever a method keeps of it are as they are without.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor

_device: str | None = None  # kind of the device whose passes are in bfloat16 now


@contextmanager
def mixed_precision(device: str) -> Iterator[None]:
    """Inside, the passes on a kind of device ('cuda', 'cpu') are in bfloat16 autocast, each of its own."""
    global _device
    before, _device = _device, device
    try:
        yield
    finally:
        _device = before


def network_pass(function: Callable) -> Callable:
    """Marks what takes inputs through a network or a part of it."""

    @wraps(function)
    def passed(*args, **kwargs):
        if _device is None or torch.is_autocast_enabled(_device):
            return function(*args, **kwargs)
        with torch.autocast(_device, torch.bfloat16):
            out = function(*args, **kwargs)
        return _in_full(out)

    return passed


def _in_full(value: Any) -> Any:
    """The same with all bfloat16 tensors as float32."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype == torch.bfloat16 else value
    if type(value) in (list, tuple):
        return type(value)(_in_full(item) for item in value)
    if type(value) is dict:
        return {name: _in_full(item) for name, item in value.items()}
    return value
