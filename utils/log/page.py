"""Self-contained HTML pages from the templates beside this file, and figures as pictures in them.

Nothing is fetched, every text is escaped: a page can be mailed, archived and printed. jinja2 and matplotlib are
imported only when a page is made.
"""

import io
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from palimpsest.utils.charts import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNIT = 1.4  # pixels of a unit of a picture, in which its text is 10 high: the text of the page is 14
KINDS = ("png", "pdf")  # of files of pictures, for `--figures`


class Picture(NamedTuple):
    """A figure on its way to a page: name of its file without the ending, figure, what to see in it, whether it takes
    the whole width.
    """

    name: str
    figure: Any
    caption: str
    wide: bool = False


def render(template: str, **data: Any) -> str:
    """The page that a template makes of the data; equal data are equal pages."""
    return _environment().get_template(template).render(**data)


@cache
def _environment():
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["svg"] = svg
    return environment


def svg(picture: Picture):
    """A picture as markup that lies in the page itself: its text has the page's font and, like all its ink, the colour
    of the page's text.
    """
    from markupsafe import Markup, escape

    text = drawn(picture.figure, "svg").decode()
    head, text = text[text.index("<svg") :].split(">", 1)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names that every picture has would be several times in a page
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(f"{INK}|#000000", "currentColor", text)
    box = re.search(r"[\d.]+ [\d.]+ ([\d.]+) [\d.]+", head)
    label = escape(picture.name.replace("_", " "))
    return Markup(f'<svg viewBox="{box[0]}" width="{float(box[1]) * UNIT:.0f}" role="img" aria-label="{label}">{text}')


def drawn(figure: "Figure", kind: str) -> bytes:
    """A figure as 'svg', 'png' or 'pdf', cut where its outermost text ends; equal figures are equal bytes."""
    import matplotlib

    dates = {"svg": ("Date", "Creator", "Format", "Type"), "pdf": ("CreationDate",), "png": ("Software",)}[kind]
    look = {"svg.hashsalt": "palimpsest", "svg.fonttype": "none", "pdf.fonttype": 42}  # no random names inside
    ground = {"facecolor": "none"} if kind == "svg" else {}
    data = io.BytesIO()
    with matplotlib.rc_context(look):
        margins = {"bbox_inches": "tight", "pad_inches": 0.04}
        figure.savefig(data, format=kind, dpi=110, metadata=dict.fromkeys(dates), **margins, **ground)
    return data.getvalue()


def count(n: int, what: str) -> str:
    """'1 task', '2 tasks'."""
    return f"{n} {what}" + ("" if n == 1 else "s")
