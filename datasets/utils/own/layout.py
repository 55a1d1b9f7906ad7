"""Which file is of which class, and in which part: `train/CLASS/*` and `test/CLASS/*`, or `CLASS/*` and a split."""

from collections.abc import Sequence
from dataclasses import dataclass

from palimpsest.datasets.utils.own.tree import Folder
from palimpsest.utils.errors import UserError
from palimpsest.utils.randomness import permutation

TEST = ("test", "val")  # names of the test part, the first that there is
SPLIT_SEED = 0  # of every run: another test set would be another benchmark


@dataclass
class Parts:
    """Names of the images of every class, of both parts; a class may be missing in one of them."""

    train: dict[str, list[str]]
    test: dict[str, list[str]]

    def classes(self) -> list[str]:
        """Sorted names."""
        return sorted({*self.train, *self.test})


def read_parts(folder: Folder, test_fraction: float) -> Parts:
    """Training and test images of a folder.

    Args:
        folder: has `train` and `test` (or `val`), in any case of letters, else a sub-folder for each class.
        test_fraction: share of every class that is for testing where there is no folder of that name; at least one
            image, and never all of them.

    Raises:
        UserError: no class, a class without an image, one with too few to be split, images that lie beside the
            classes' folders.
    """
    named = {name.lower(): below for name, below in folder.folders.items()}
    train = named.get("train")
    test = next((named[name] for name in TEST if name in named), None) if train else None
    classes = _classes(train or folder)
    if test:
        return Parts(classes, _classes(test))
    split = {name: _split(name, images, folder.path, test_fraction) for name, images in classes.items()}
    return Parts(*({name: pair[i] for name, pair in split.items()} for i in (0, 1)))


def _classes(folder: Folder) -> dict[str, list[str]]:
    if folder.images:
        raise UserError(
            f"{folder.path}: {folder.images[0].rsplit('/', 1)[-1]} and {len(folder.images) - 1} more images lie beside "
            "the classes: expected a sub-folder for each class"
        )
    classes = {name: below.all_images() for name, below in sorted(folder.folders.items())}
    if not any(classes.values()):
        raise UserError(f"{folder.path}: no images: expected CLASS/*.png, or train/CLASS/*.png and test/CLASS/*.png")
    if empty := [name for name, images in classes.items() if not images]:
        raise UserError(f"{folder.path}/{empty[0]}: no image of this class: add some, or remove the folder")
    return classes


def _split(name: str, images: list[str], where: str, fraction: float) -> tuple[list[str], list[str]]:
    if len(images) < 2:
        raise UserError(f"{where}: class {name} has one image: expected two or more, one of them for testing")
    count = min(max(1, round(fraction * len(images))), len(images) - 1)
    order = permutation(len(images), SPLIT_SEED, "test part", name).tolist()
    return tuple([images[i] for i in sorted(rows)] for rows in (order[count:], order[:count]))


def read_names(text: str, option: str) -> list[list[str]]:
    """Names that an option gives: `a,b,c`, or a file of one name per line.

    Returns:
        groups of names: those of a file are divided by blank lines, others are one group.
    """
    try:
        with open(text, encoding="utf-8-sig") as file:
            lines = [line.strip() for line in file]
    except (OSError, ValueError) as e:
        if "," not in text:
            raise UserError(f"{option} {text}: neither names with commas between them nor a file ({e})") from None
        return [[name.strip() for name in text.split(",")]]
    groups: list[list[str]] = [[]]
    for line in lines:
        if line:
            groups[-1].append(line)
        elif groups[-1]:
            groups.append([])
    return [group for group in groups if group]


def numbers_of(names: Sequence[str], known: Sequence[str], option: str, what: str) -> list[int]:
    """Positions of `names` among `known`; each of them must be there once."""
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"{option}: there is no {what} '{unknown[0]}', expected {shortened(known)}")
    if twice := [name for name in known if names.count(name) != 1]:
        how = "is missing" if twice[0] not in names else "stands there twice"
        raise UserError(f"{option}: {what} '{twice[0]}' {how}: name each {what} once")
    return [known.index(name) for name in names]


def shortened(names: Sequence[str]) -> str:
    """For messages."""
    return ", ".join(map(str, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
