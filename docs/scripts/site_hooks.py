"""What `mkdocs build` does besides copying the pages: the pages that are made of other files, and links to these.

The API pages are read from the package as it is installed, where `palimpsest.models` lies in `palimpsest/`; in a
checkout it lies beside it.
"""

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("models", "datasets", "backbone", "utils", "main.py")
# Files outside docs/ that pages link to -> the pages that they are on the site.
OUTSIDE = {
    "README.md": "index.md",
    "benchmarks/README.md": "benchmarks.md",
    "examples/strategies.py": "examples.md",
    "examples": "examples.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
CODE = re.compile(r"(```[\s\S]*?```|`[^`\n]*`|^    .*$)", re.MULTILINE)
_copies: list[tempfile.TemporaryDirectory] = []


@event_priority(100)  # before mkdocstrings reads its configuration
def on_config(config):
    """Lay the package out as it is installed, for mkdocstrings."""
    folder = tempfile.TemporaryDirectory()
    _copies.append(folder)
    package = Path(folder.name) / "palimpsest"
    shutil.copytree(ROOT / "palimpsest", package, ignore=shutil.ignore_patterns("__pycache__"))
    for room in ROOMS:
        if (ROOT / room).is_dir():
            shutil.copytree(ROOT / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / room, package)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [folder.name]
    return config


def on_files(files, config):
    """Add the pages that are made of files outside docs/, and the reference of all options."""
    made = {name: (ROOT / name).read_text(encoding="utf-8") for name in OUTSIDE if name.endswith(".md")}
    pages = {OUTSIDE[name]: relinked(text, Path(name).parent) for name, text in made.items()}
    code = (ROOT / "examples/strategies.py").read_text(encoding="utf-8")
    pages["examples.md"] = f"# Examples of the trainer\n\n`examples/strategies.py`:\n\n```python\n{code}```\n"
    pages["reference/options.md"] = options()
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links that lead out of docs/ lead to the pages of the site; entries of a matrix, R[t][i], are no links."""
    if (ROOT / "docs" / page.file.src_uri).is_file():
        markdown = relinked(markdown, (Path("docs") / page.file.src_uri).parent)
    parts = CODE.split(markdown)
    parts[::2] = [re.sub(r"(\w\[[^\]\n]+\])\[", r"\1\\[", part) for part in parts[::2]]
    return "".join(parts)


def on_post_build(config):
    while _copies:
        _copies.pop().cleanup()


def relinked(text: str, folder: Path) -> str:
    """The text of a file in a folder (both relative to the checkout), its links as they are on the site."""

    def target(match: re.Match) -> str:
        path = (ROOT / folder / match[1]).resolve()
        inside = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""
        on_site = OUTSIDE.get(inside) or inside.removeprefix("docs/") * inside.startswith("docs/")
        depth = len(folder.parts) - 1 if folder.parts[:1] == ("docs",) else 0
        return "../" * depth + on_site if on_site else match[1]

    return LINK.sub(target, text)


def options() -> str:
    """The reference of the command line's options, from the parsers themselves."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    from palimpsest.utils import registry
    from palimpsest.utils.args import base_parser
    from palimpsest.utils.run.config import declared_options

    parts = [
        "# Options\n\nMade of the program's own option parser. `python main.py --model er --dataset seq-mnist --help` "
        "shows those of one combination. A default of a stream, of a method or of stored hyperparameters goes before "
        "the one given here: [which value wins](../run.md#which-value-wins).\n"
    ]
    for group in base_parser()._action_groups:
        if group._group_actions:
            title = {"options": "General", "positional arguments": "Arguments"}.get(group.title, group.title)
            parts.append(f"## {title[0].upper()}{title[1:]}\n\n{_table(group._group_actions)}")
    for kind in registry.FOLDERS:
        parts.append(f"## Options of one {kind}\n")
        for name in registry.names(kind):
            own = declared_options(registry.load(kind, name))
            if actions := [a for a in own._actions if not isinstance(a, argparse._HelpAction)]:
                parts.append(f"### {kind} `{name}`\n\n{registry.first_line(kind, name)}\n\n{_table(actions)}")
    return "\n".join(parts)


def _table(actions: list[argparse.Action]) -> str:
    rows = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for action in actions:
        if action.help == argparse.SUPPRESS:
            continue
        names = ", ".join(f"`{name}`" for name in action.option_strings)
        values = ", ".join(map(str, action.choices)) if action.choices else getattr(action.type, "__name__", "")
        default = "" if action.default in (None, False, argparse.SUPPRESS, []) else f"`{action.default}`"
        help_text = (action.help or "").replace("%%", "%").replace("%(default)s", str(action.default))
        cells = [names, values, "required" if action.required else default, help_text]
        rows.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
