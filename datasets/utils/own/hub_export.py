"""A program that writes the images of a set of Hugging Face's into an archive; started by `hub.py`, never imported."""

import io
import json
import sys
import zipfile
from pathlib import Path

ABSENT, BATCH = 3, 256


def main(wanted: dict) -> None:
    """Write `wanted["to"]`; ends with a line on stderr where that cannot be done."""
    # The folder of streams of this program must not be found under the name `datasets`.
    hidden = {Path(wanted["root"]).resolve(), Path(__file__).resolve().parent, Path.cwd()}
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() not in hidden]
    try:
        import datasets
    except ImportError:
        sys.exit(ABSENT)
    try:
        parts = load(datasets, wanted)
        with zipfile.ZipFile(wanted["to"], "w") as archive:
            for ours, part in parts.items():
                write(datasets, archive, ours, part, wanted)
    except Exception as e:
        sys.exit(" ".join(f"{type(e).__name__}: {e}".split())[:400])


def load(datasets, wanted: dict) -> dict:
    """Our name of a part -> their set; the test part is left out where there is none."""
    folder = Path(wanted["name"])
    if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
        found = datasets.load_from_disk(wanted["name"])
    else:
        found = datasets.load_dataset(wanted["name"], wanted["subset"])
    found = {"train": found} if isinstance(found, datasets.Dataset) else dict(found)
    if "train" not in found:
        raise ValueError(f"no part of the name train, but {', '.join(found)}")
    test = found.get("test") or found.get("validation")
    return {"train": found["train"]} | ({"test": test} if test is not None else {})


def column(part, kind: type, wanted: dict, option: str) -> str:
    """The column that the option names, or the only one of its kind."""
    if name := wanted[option]:
        if name not in part.features:
            raise ValueError(f"--hf_{option} {name}: no such column, it has {', '.join(part.features)}")
        return name
    fitting = [name for name, feature in part.features.items() if isinstance(feature, kind)]
    if len(fitting) != 1:
        found = f"columns {', '.join(fitting)}" if fitting else f"none among {', '.join(part.features)}"
        raise ValueError(f"expected one column of the kind {kind.__name__}, found {found}: name it with --hf_{option}")
    return fitting[0]


def write(datasets, archive: zipfile.ZipFile, ours: str, part, wanted: dict) -> None:
    """The images of a part: files as they are, arrays as PNG."""
    image, label = column(part, datasets.Image, wanted, "image"), column(part, datasets.ClassLabel, wanted, "label")
    names = getattr(part.features[label], "names", None)
    part = part.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
    row = 0
    for batch in part.iter(batch_size=BATCH):
        for picture, y in zip(batch[image], batch[label], strict=True):
            if not isinstance(y, int) or y < 0:
                raise ValueError(f"{ours}, row {row}: the label is {y!r}, expected a whole number from 0 on")
            content = picture["bytes"] if picture["bytes"] is not None else Path(picture["path"]).read_bytes()
            name = (names[y] if names else str(y)).replace("/", "_")
            archive.writestr(f"{ours}/{y:05d} {name}/{row:08d}{ending(content)}", content)
            row += 1


def ending(content: bytes) -> str:
    """By which our reader knows that it is an image."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        return f".{image.format.lower()}"


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
