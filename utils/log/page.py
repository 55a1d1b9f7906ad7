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
    text = text[text.index("<svg") :].split(">", 1)[1]
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # names that every picture has would be several times in a page
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(f"{INK}|#000000", "currentColor", text)
    left, top, width, height = _extent(picture.figure)
    box = f"{left:.1f} {top:.1f} {width:.1f} {height:.1f}"
    label = escape(picture.name.replace("_", " "))
    return Markup(f'<svg viewBox="{box}" width="{width * UNIT:.0f}" role="img" aria-label="{label}">{text}')


def _extent(figure: "Figure") -> tuple[float, float, float, float]:
    """Left, top, width and height of all that a figure shows, in its units: a legend may lie outside of it."""
    from matplotlib.backends.backend_svg import RendererSVG

    figure.set_dpi(72)
    (left, bottom), (right, top) = figure.get_tightbbox(RendererSVG(1, 1, io.StringIO())).get_points() * 72
    return left - 2, figure.get_figheight() * 72 - top - 2, right - left + 4, top - bottom + 4


def drawn(figure: "Figure", kind: str) -> bytes:
    """A figure as 'svg', or as 'png' or 'pdf' that are cut where its outermost text ends, which takes a second drawing;
    equal figures are equal bytes.
    """
    import matplotlib

    dates = {"svg": ("Date", "Creator", "Format", "Type"), "pdf": ("CreationDate",), "png": ("Software",)}[kind]
    look = {"svg.hashsalt": "palimpsest", "svg.fonttype": "none", "pdf.fonttype": 42}  # no random names inside
    more = {"facecolor": "none"} if kind == "svg" else {"dpi": 110, "bbox_inches": "tight", "pad_inches": 0.04}
    data = io.BytesIO()
    with matplotlib.rc_context(look):
        figure.savefig(data, format=kind, metadata=dict.fromkeys(dates), **more)
    return data.getvalue()


def count(n: int, what: str) -> str:
    """'1 task', '2 tasks'."""
    return f"{n} {what}" + ("" if n == 1 else "s")
