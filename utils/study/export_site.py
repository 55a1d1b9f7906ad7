"""`main.py --export_site FOLDER DIR`: the page over all runs as static files, for any web server."""

import json
import shutil
from pathlib import Path

from palimpsest.utils.args import ArgumentParser
from palimpsest.utils.atomic import file_errors, write_text
from palimpsest.utils.errors import UserError
from palimpsest.utils.study.catalogue import Catalogue
from palimpsest.utils.study.serve import PAGE, STATIC, static_files

MARK = "palimpsest_site.json"  # what a folder has that was written here: the names of its files


def command(argv: list[str]) -> int:
    """Write the site; returns the exit status 0.

    Raises:
        UserError: no such folder, or a DIR that is not a site's.
    """
    parser = ArgumentParser(prog="main.py", description="The page over all runs as static files to publish.")
    about = "FOLDER, where the runs are, and DIR, where the site goes"
    parser.add_argument("--export_site", nargs="*", metavar="FOLDER DIR", help=about)
    args = parser.parse_args(argv)
    if len(args.export_site) != 2:
        raise UserError(f"--export_site takes two folders: {about}")
    folder, target = map(Path, args.export_site)
    catalogue = Catalogue(folder, live=False)
    catalogue.refresh()
    export_site(catalogue, target)
    print(f"{len(catalogue.names())} runs of {folder}: {target / PAGE}; to look at it here:")
    print(f"  python -m http.server --bind 127.0.0.1 --directory {target}")
    return 0


def export_site(catalogue: Catalogue, target: Path) -> None:
    """Write the site into a folder that is new, empty, or was written here; what a former site had more is removed.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    before = _former(target)
    files: dict[str, bytes | Path] = {PAGE: STATIC / PAGE, "data/runs.json": catalogue.listing()[0].encode()}
    files |= {f"static/{name}": path for name, path in static_files().items()}
    for name in catalogue.names():
        files[f"data/run/{name}.json"] = json.dumps(catalogue.detail(name)).encode()
    files |= {f"runs/{name}/report.html": path for name, path in catalogue.reports()}
    with file_errors(target):
        target.mkdir(parents=True, exist_ok=True)
    # First of all: should writing end half-way, the folder is known as ours.
    write_text(target / MARK, json.dumps(sorted({*before, *files}), indent=0) + "\n")
    for name, content in files.items():
        path = target / name
        with file_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, Path):
                shutil.copyfile(content, path)
            else:
                path.write_bytes(content)
    for name in before - files.keys():
        _remove(target, name)
    write_text(target / MARK, json.dumps(sorted(files), indent=0) + "\n")


def _former(target: Path) -> set[str]:
    """The files that a site in this folder has."""
    if not target.exists():
        return set()
    if target.is_dir() and not any(target.iterdir()):
        return set()
    try:
        names = json.loads((target / MARK).read_text(encoding="utf-8"))
        if not all(isinstance(name, str) and ".." not in Path(name).parts and name[:1] != "/" for name in names):
            raise ValueError
    except (OSError, ValueError, TypeError):
        raise UserError(f"{target} holds something else than a site: give a new folder") from None
    return set(names)


def _remove(target: Path, name: str) -> None:
    """A file of a former site, and the folders that it leaves empty."""
    path = target / name
    with file_errors(path):
        path.unlink(missing_ok=True)
    for folder in path.parents:
        if folder == target or any(folder.iterdir()):
            return
        folder.rmdir()
