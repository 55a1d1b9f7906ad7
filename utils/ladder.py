"""How a run computes: the precision of its products, and whether its network is compiled; and the levels of
`--code_optimization`, which are names for combinations of the two.
"""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from palimpsest.utils.errors import UserError

PRECISIONS = ("fp32", "tf32", "bf16")  # each has the savings of those before it
LEVELS = (("fp32", False), ("tf32", False), ("bf16", False), ("bf16", True))  # (precision, compile)


def split_level(values: dict[str, Any]) -> dict[str, Any]:
    """A layer of options in which a level is joined by what it stands for. `--compile` may be added to any level.

    Raises:
        UserError: the layer has a level and what contradicts it.
    """
    level = values.get("code_optimization")
    if level is None:
        return values
    precision, compiled = LEVELS[level]
    if values.get("precision", precision) != precision or compiled and not values.get("compile", True):
        told = f"--precision {precision}{' --compile' if compiled else ''}"
        raise UserError(f"--code_optimization {level} is a name for {told}, and another one is given: drop one of them")
    return {"precision": precision, "compile": compiled, **values}


def name_level(args: Namespace, origins: dict[str, str]) -> None:
    """Give settled options the highest level that they have all of."""
    level = level_of(vars(args))
    if args.code_optimization != level:
        decisive = "compile" if level == len(LEVELS) - 1 and origins["precision"] == "default" else "precision"
        args.code_optimization, origins["code_optimization"] = level, origins[decisive]


def level_of(options: dict[str, Any]) -> int:
    """The highest level whose precision and compilation the options have."""
    precision = PRECISIONS.index(options["precision"])
    return len(LEVELS) - 1 if options["compile"] and options["precision"] == "bf16" else precision


def distinct(options: dict[str, Any]) -> dict[str, Any]:
    """The options without those that say no more than the level does, so that a run is the same run under either name,
    and the same as before it had others than the level.
    """
    said = options.get("code_optimization")
    if said not in range(len(LEVELS)) or "precision" not in options:
        return options
    implied = dict(zip(("precision", "compile"), LEVELS[said], strict=True)) | {"channels_last": False}
    return {name: v for name, v in options.items() if name not in implied or implied[name] != v}


def set_products(precision: str) -> None:
    """Whether matrix products and convolutions on a GPU may be rounded to TF32: in all of torch, for this process."""
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"  # a switch of its own, which torch leaves on


@contextmanager
def products(precision: str) -> Iterator[None]:
    """`set_products` within; afterwards as before. Also a decorator."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_products(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
