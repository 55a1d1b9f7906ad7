"""Text for whatever reads it: a console that is not UTF-8 gets plain letters in place of what it has none for."""

import codecs
import sys

PLAIN = {"±": "+-", "×": "x", "→": "->", "–": "-", "—": "-", "…": "...", "·": ".", "≥": ">=", "≤": "<=", "²": "^2"}


def readable_anywhere() -> None:
    """Let no character end a run: what stdout and stderr cannot show is spelt out."""
    codecs.register_error("plain", _spelt_out)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # one that a program put in its place may be none of Python's
            stream.reconfigure(errors="plain")


def _spelt_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end
