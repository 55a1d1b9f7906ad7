"""What values the options take: each type turns the text of a command line into a value, or says what was expected."""

import argparse
import math
import re
from collections.abc import Callable
from urllib.parse import urlsplit


def boolean(text: str) -> bool:
    """`1/0`, `true/false`, `yes/no`."""
    value = str(text).lower()
    if value in ("1", "true", "yes"):
        return True
    if value in ("0", "false", "no"):
        return False
    raise argparse.ArgumentTypeError(f"'{text}' is not a yes/no value: give 1 or 0, or the option alone for yes")


def number(kind: type, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False) -> Callable:
    """An argparse type: a finite int or float within [low, high], or (low, high] with `open_low`."""

    def convert(text: str):
        expected = f"{'an integer' if kind is int else 'a number'} {'>' if open_low else '>='} {low:g}"
        if high < math.inf:
            expected += f" and <= {high:g}"
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}': expected {expected}") from None
        if not (low < value if open_low else low <= value) or value > high or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
        return value

    convert.__name__ = kind.__name__
    return convert


positive_float = number(float, 0, open_low=True)
non_negative_float = number(float, 0)
positive_int = number(int, 1)
non_negative_int = number(int, 0)
seed_int = number(int, 0, 2**63 - 1)
fraction = number(float, 0, 1)


REPORTS = ("end", "live", "off")  # when report.html is written


def report_moment(text: str) -> str:
    """`end`, `live` or `off`; a folder, whose report is drawn alone, is no option of a run."""
    if text not in REPORTS:
        raise argparse.ArgumentTypeError(f"'{text}': expected end, live or off, or a folder and no other option")
    return text


def save_moment(text: str) -> str | int:
    """`task`, `last`, `no`, or a number of iterations."""
    if text in ("task", "last", "no"):
        return text
    try:
        return positive_int(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}': expected task, last, no, or a number of iterations") from None


def interval(text: str) -> str | int:
    """A number of iterations, or `auto`."""
    if text == "auto":
        return text
    try:
        return positive_int(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}': expected a number of iterations, or auto") from None


def store_uri(text: str) -> str:
    """The address of a tracking store, without a secret: it is stored and shown with every run."""
    if urlsplit(text).password is not None or "password=" in text.lower():
        raise argparse.ArgumentTypeError(
            "this URI holds a password, which config.yaml would show: use MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or the password file of the database"
        )
    return text


def _parts(text: str) -> list[str]:
    """The parts of a list with commas, spaces or both between them, in brackets or not."""
    inner = str(text).strip("[]() ")
    return re.split(r"\s*,\s*|\s+", inner)


def int_list(text: str) -> list[int]:
    """`3,1,2` as a list of integers; `3, 1, 2` and `3 1 2` are the same."""
    try:
        return [int(part) for part in _parts(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}': expected integers separated by commas, as 3,1,2") from None


def name_list(text: str) -> str:
    """`det, seg, cls` as `det,seg,cls`."""
    return ",".join(_parts(text))


def width_list(text: str) -> list[int]:
    """Widths of layers: `100,100`, all above 0, and nothing as the empty list."""
    widths = int_list(text) if str(text).strip("[]() ") else []
    if min(widths, default=1) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': a layer has at least one unit")
    return widths


LISTS = (int_list, width_list, name_list)  # types of which one value is a list
