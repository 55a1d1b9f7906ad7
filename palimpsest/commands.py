"""`main.py --predict RUN FILES...` and `main.py --export RUN [FOLDER]`."""

from pathlib import Path

from palimpsest.datasets.utils.own.tree import IMAGES
from palimpsest.learned import Learned, Predictions
from palimpsest.utils.args import ArgumentParser
from palimpsest.utils.errors import UserError

SHOWN = 3  # classes in a line


def use(argv: list[str]) -> None:
    """Predict or export, as the options say.

    Raises:
        UserError: no such run or files; a run whose method has to be told the task.
    """
    parser = ArgumentParser(prog="main.py", add_help=False)
    parser.add_argument("--predict", nargs="+", metavar=("RUN", "FILE"))
    parser.add_argument("--export", nargs="+", metavar=("RUN", "FOLDER"))
    parser.add_argument("--task", type=int, help="of the images, where it is known")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--base_path")
    args = parser.parse_args(argv)
    if args.predict and args.export:
        raise UserError("--predict and --export exclude each other: give one")
    run, *rest = args.predict or args.export
    if args.export:
        if len(rest) > 1:
            raise UserError(f"--export takes a run's folder and the folder to write, got also {' '.join(rest[1:])}")
        from palimpsest.export import export

        learned = Learned(run, args.device, args.base_path)
        for path in export(learned, rest[0] if rest else learned.folder / "export", args.task):
            print(path)
        return
    files = [file for name in rest for file in _files(Path(name))]
    if not files:
        raise UserError("--predict RUN FILES...: no images are given")
    learned = Learned(run, args.device, args.base_path)
    if learned.dataset.INPUT != "images":
        raise UserError(f"--predict reads images, {learned.dataset.NAME} holds {learned.dataset.INPUT}: use Python's")
    _print(files, learned.predict(files, args.task))


def _files(path: Path) -> list[Path]:
    """A file, or the images in a folder."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGES)
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    return [path]


def _print(files: list[Path], found: Predictions) -> None:
    """A line for each file: the likeliest classes with their probabilities."""
    width = max(len(str(file)) for file in files)
    if not found.names:
        for file, values in zip(files, found.outputs, strict=True):
            print(f"{file!s:<{width}}  {' '.join(f'{value:.4g}' for value in values.ravel())}")
        return
    for file, row in zip(files, found.probabilities, strict=True):
        best = row.argsort()[::-1][:SHOWN]
        print(f"{file!s:<{width}}  " + "  ".join(f"{found.names[i]} {row[i]:.2f}" for i in best))
