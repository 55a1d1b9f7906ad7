"""What Hugging Face's package `datasets` reads, as an archive of image files.

That package has the name that our folder of streams has, so it works in a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from palimpsest.utils.errors import UserError
from palimpsest.utils.identity import ROOT

ABSENT = 3  # exit status of the process where the package is not there


def fetch_images(base: Path, name: str, subset: str | None, image: str | None, label: str | None) -> Path:
    """The archive of a set, made when it is not there: `train/NUMBER CLASS/*`, and `test/...` where it has such a part.

    Args:
        base: the data folder.
        name: of the hub, or a folder.
        subset: its configuration.
        image, label: columns; by default the only ones of their kinds.

    Raises:
        UserError: the package is missing, or what it says, or the columns are not clear.
    """
    if not name.strip():
        raise UserError("--dataset hf:NAME: the name is missing")
    facts = [name, subset, image, label]
    if (folder := Path(name).expanduser()).is_dir():
        name = facts[0] = str(folder.resolve())
        stats = {str(path.relative_to(folder)): path.stat() for path in sorted(folder.rglob("*")) if path.is_file()}
        facts.append([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()])
    digest = hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest()
    archive = base / "own_images" / f"{Path(name).name}-{digest}.zip"
    if not archive.is_file():
        try:
            archive.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".hf-") as staging:
                made = Path(staging, "images.zip")
                _export({"name": name, "subset": subset, "image": image, "label": label, "to": str(made)})
                os.replace(made, archive)
        except OSError as e:
            raise UserError(f"{archive}: cannot be written ({e.strerror}): give another --base_path") from None
    return archive


def _export(wanted: dict[str, str | None]) -> None:
    """Let the other process write the archive."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("hub_export.py")), json.dumps(wanted | {"root": str(ROOT)})],
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if done.returncode == ABSENT:
        raise UserError("--dataset hf:NAME needs Hugging Face's package `datasets`: pip install datasets")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise UserError(f"hf:{wanted['name']}: {said[:400]}")
