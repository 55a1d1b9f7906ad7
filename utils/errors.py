"""The ways a run ends before its end that are not defects of ours."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Bad input: an unknown name, an impossible value, missing data, a full disk, a method that does not fit.

    `main.py` prints the message as one line on stderr and exits with status 2. The message says what was wrong,
    what was expected and what to do. A defect of ours is never a UserError: it keeps its traceback.
    """


def one_line(error: Exception) -> str:
    """The message of an error that may quote what a file says, in one line; of a long one, 250 characters at its
    beginning and, since the cause of a network's failure comes last, at its end.
    """
    text = " ".join(str(error).split())
    return text if len(text) <= 505 else f"{text[:250]} ... {text[-250:]}"


class TrainingFailed(Exception):
    """Training cannot go on (a loss that is not finite, no memory left); shown as one line, exit status 1."""


class Stopped(Exception):
    """A signal ended the run; exit status 128 + its number.

    Args:
        number: of the signal.
        file: the checkpoint that was written, None under `--disable_log`.
        step: iterations done.
    """

    def __init__(self, number: int, file: Path | None, step: int):
        self.status = 128 + number
        kept = f"{file}; the same command with --resume goes on" if file else "nothing kept (--disable_log)"
        super().__init__(f"stopped by {signal.Signals(number).name} after iteration {step}: {kept}")


@contextmanager
def signals_handled(numbers: Iterable[int], handler: Callable | signal.Handlers) -> Iterator[None]:
    """Within: these signals go to the handler. Elsewhere than in the main thread, where Python has none, nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, kept in before.items():
            signal.signal(number, kept)
