"""Pieces of a self-contained HTML page: nothing is fetched, plots are embedded, every text is escaped."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE = """
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; color: #222;
  background: #fff; max-width: 1000px; margin: 2em auto; padding: 0 1.2em; }
h1 { font-size: 1.5em; margin: 0; } h2 { font-size: 1.15em; margin: 2em 0 .5em; border-bottom: 1px solid #ddd; }
p { margin: .4em 0; } .dim, small { color: #666; } small { display: block; font-size: .85em; line-height: 1.35; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .28em .9em .28em 0; border-bottom: 1px solid #eee;
  overflow-wrap: anywhere; }
th { font-weight: 600; overflow-wrap: normal; border-bottom: 1px solid #bbb; }
td:first-child { overflow-wrap: break-word; }
td.n, th.n { text-align: right; white-space: nowrap; overflow-wrap: normal; }
table.dense { font-size: .87em; } td small { max-width: 34em; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 1em; align-items: start; }
img { max-width: 100%; height: auto; } .plots .wide { grid-column: 1 / -1; max-width: min(100%, 820px); }
@media print { body { margin: 0; max-width: none; font-size: 11px; }
  img, tr { break-inside: avoid; } h2 { break-after: avoid; }
  .plots { grid-template-columns: 1fr 1fr; } .scroll { overflow: visible; } }
"""


def page(title: str, headline: str, parts: list[str]) -> str:
    """The whole page: a title, a line below it, and sections."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n<p class=dim>{escape(headline)}</p>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    """A heading (plain text) over a body (HTML)."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[Any]], texts: int | None = None, dense: bool = False) -> str:
    """An HTML table; a cell is a value or a pair (value, small print below).

    Args:
        texts: how many columns at the left are text; those after them are numbers. By default all are text.
    """

    def line(cells: Iterable[Any], tag: str) -> str:
        out = []
        for k, cell in enumerate(cells):
            text, small = cell if isinstance(cell, tuple) else (cell, "")
            small = f"<small>{escape(small)}</small>" if small else ""
            number = texts is not None and k >= texts
            out.append(f"<{tag}{' class=n' if number else ''}>{escape(text)}{small}</{tag}>")
        return f"<tr>{''.join(out)}</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return (
        f'<div class="scroll"><table{" class=dense" if dense else ""}>\n<thead>{line(head, "th")}</thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def escape(value: Any) -> str:
    """A value as text that no browser takes for markup."""
    return html.escape(str(value))


def images(figures: Iterable[tuple["Figure", str, bool]]) -> str:
    """Figures side by side, embedded as SVG: (figure, what it shows, whether it takes the whole width)."""
    out = []
    for figure, alt, wide in figures:
        source = base64.b64encode(drawn(figure, "svg")).decode("ascii")
        shape = " class=wide" if wide else ""
        out.append(f'<img{shape} src="data:image/svg+xml;base64,{source}" alt="{escape(alt)}">')
    return f'<div class="plots">{"".join(out)}</div>'


def drawn(figure: "Figure", kind: str) -> bytes:
    """A figure as 'svg' or 'png'; equal figures are equal bytes."""
    import matplotlib

    data = io.BytesIO()
    # Neither the date nor random names inside.
    with matplotlib.rc_context({"svg.hashsalt": "palimpsest"}):
        figure.savefig(data, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else {"Software": None})
    figure.set_layout_engine(None)  # it stays as it is laid out now: a third of the time for drawing it once more
    return data.getvalue()


def count(n: int, what: str) -> str:
    """'1 task', '2 tasks'."""
    return f"{n} {what}" + ("" if n == 1 else "s")
