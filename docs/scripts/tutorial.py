"""The notebook docs/tutorial.ipynb from docs/tutorial.md, so that the two say the same.

python docs/scripts/tutorial.py          write the notebook
python docs/scripts/tutorial.py --run    run the code first, and put what it prints and draws into the page

A block of Python may be followed by a block of text, what it prints, and by a picture, what it draws. In the notebook
both come from running the cell.
"""

import contextlib
import io
import json
import os
import re
import sys
from pathlib import Path

DOCS = Path(__file__).parents[1]
PAGE, NOTEBOOK = DOCS / "tutorial.md", DOCS / "tutorial.ipynb"
CELL = re.compile(
    r"```python\n(?P<code>.*?)```\n"
    r"(?:\n```text\n(?P<printed>.*?)```\n)?"
    r"(?:\n!\[(?P<caption>[^\]]*)\]\((?P<picture>pictures/[^)]+)\)\n)?",
    re.DOTALL,
)
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def cells(page: str) -> list[dict]:
    """The page as cells of a notebook: text, and code with what it prints."""
    found, at = [], 0
    for match in CELL.finditer(page):
        found += _text(page[at : match.start()])
        printed = match["printed"] or ""
        outputs = [{"name": "stdout", "output_type": "stream", "text": _lines(printed)}] if printed else []
        found.append({"cell_type": "code", "execution_count": None, "outputs": outputs, "source": match["code"]})
        at = match.end()
    found += _text(page[at:])
    for number, cell in enumerate(found):
        cell |= {"id": f"cell-{number}", "metadata": {}, "source": _lines(cell["source"].strip("\n"))}
    return found


def notebook(page: str) -> str:
    """The file's content."""
    content = {"cells": cells(page), "metadata": {"kernelspec": KERNEL}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def run(page: str) -> str:
    """The page with what its code prints now; the pictures are written."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "palimpsest", "svg.fonttype": "none"})
    from matplotlib import pyplot

    names: dict = {}

    def renewed(match: re.Match) -> str:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(match["code"], "tutorial.md", "exec"), names)
        block = f"```python\n{match['code']}```\n"
        if printed.getvalue():
            block += f"\n```text\n{printed.getvalue()}```\n"
        if match["picture"]:
            pyplot.savefig(DOCS / match["picture"], format="svg", facecolor="white", metadata={"Date": None})
            block += f"\n![{match['caption']}]({match['picture']})\n"
        pyplot.close("all")
        return block

    return CELL.sub(renewed, page)


def _text(part: str) -> list[dict]:
    return [{"cell_type": "markdown", "source": part}] if part.strip() else []


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    if "--run" in sys.argv:
        sys.path.insert(0, str(DOCS.parent))  # without an installed package, too
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        PAGE.write_text(run(PAGE.read_text()))
    NOTEBOOK.write_text(notebook(PAGE.read_text()))
