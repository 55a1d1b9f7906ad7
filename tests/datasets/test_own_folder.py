"""Streams over image files of one's own: what is read, how it is cut, and what is refused."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from palimpsest.datasets.utils.classes import facts_of, split_checksum
from palimpsest.datasets.utils.own import images
from palimpsest.datasets.utils.own.images import decode, load_images, statistics
from palimpsest.datasets.utils.own.tree import Tree
from palimpsest.utils.check.case_runs import differing_entries, scores_of, state_of
from palimpsest.utils.errors import UserError
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.training import train as train_run
from tests.models.helpers import QUIET, experiment, finished

CLASSES = ("ant", "bee", "cow", "dog")
SPLIT = [40, 43, 49, 91, 93, 95]
LEVEL = {name: 40 + 50 * i for i, name in enumerate(CLASSES)}  # every class is a grey of its own


def picture(level: int, size=(8, 8), mode="RGB", form="PNG") -> bytes:
    colour = (level, 255 - level, 7) if mode == "RGB" else level
    out = io.BytesIO()
    Image.new(mode, size, colour).save(out, form)
    return out.getvalue()


def write_class(folder: Path, name: str, n: int, first: int = 0, **how) -> None:
    (folder / name).mkdir(parents=True)
    for i in range(first, first + n):
        (folder / name / f"{i}.png").write_bytes(picture(LEVEL.get(name, 0) + i, **how))


def write_parts(folder: Path, train: int = 6, test: int = 2, classes=CLASSES, **how) -> Path:
    for name in classes:
        write_class(folder / "train", name, train, **how)
        write_class(folder / "test", name, test, first=train, **how)
    return folder


def packed(folder: Path, archive: Path, within: str = "") -> Path:
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(folder.rglob("*")):
            file.write(path, within + path.relative_to(folder).as_posix())
    return archive


def stream(folder, *more: str, dataset: str = "seq-folder"):
    options = ["--folder", str(folder), "--image_size", "8", "--backbone", "mnistmlp", *more]
    return experiment("sgd", *options, dataset=dataset).dataset


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return write_parts(tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("how", ["folder", "zip", "zip with one folder around", "folder in a zip"])
def test_parts_are_read_wherever_they_lie(parts, tmp_path, how):
    folder = parts
    if how != "folder":
        folder = packed(parts, tmp_path / "a.zip", within="" if how == "zip" else "all/")
    if how == "folder in a zip":
        folder = folder / "all"
    dataset = stream(folder)
    assert dataset.N_TASKS == 2 and dataset.SIZE == (3, 8, 8) and dataset.class_names == [*CLASSES]
    raw, labels = dataset.task_data(1).data, dataset.task_data(1).targets
    assert labels.tolist() == [2] * 6 + [3] * 6
    assert raw[:, 0, 0, 0].tolist() == [LEVEL["cow"] + i for i in range(6)] + [LEVEL["dog"] + i for i in range(6)]
    test = dataset.all_test_loaders()[0].dataset
    assert test.data[:, 0, 0, 0].tolist() == [46, 47, 96, 97] and test.targets.tolist() == [0, 0, 1, 1]


def test_one_folder_is_split_by_class_whatever_the_seed(tmp_path):
    for name in CLASSES[:2]:
        write_class(tmp_path, name, 10)
    write_class(tmp_path, ".hidden", 1)
    (tmp_path / "notes.txt").write_text("not an image")
    one, other = (stream(tmp_path, "--seed", seed, "--test_fraction", "0.3") for seed in "01")
    trained, tested = one.task_data(0), one.all_test_loaders()[0].dataset
    assert torch.bincount(trained.targets).tolist() == [7, 7] and torch.bincount(tested.targets).tolist() == [3, 3]
    assert torch.equal(trained.data, other.task_data(0).data)
    levels = sorted(trained.data[:, 0, 0, 0].tolist() + tested.data[:, 0, 0, 0].tolist())
    assert levels == [*range(40, 50), *range(90, 100)]
    assert sorted(tested.data[:, 0, 0, 0].tolist()) == SPLIT  # on every machine


def test_statistics_are_those_of_the_training_pixels(parts):
    dataset = stream(parts)
    pixels = torch.stack([x for t in range(2) for x in dataset.task_data(t).data]).double() / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.transpose(0, 1).flatten(1).std(1, correction=0)
    std[2] = 1 / 255  # blue is the same everywhere
    assert torch.allclose(torch.tensor(dataset.MEAN).double(), mean, atol=1e-12)
    assert torch.allclose(torch.tensor(dataset.STD).double(), std, atol=1e-12)
    given = stream(parts, "--image_mean", "0.1,0.2,0.3", "--image_std", "0.5")
    assert given.mean == [0.1, 0.2, 0.3] and given.std == (0.5, 0.5, 0.5)


def test_grey_images_stay_grey_unless_asked(tmp_path):
    write_parts(tmp_path, classes=CLASSES[:2], mode="L")
    grey, coloured = stream(tmp_path), stream(tmp_path, "--channels", "3")
    assert grey.SIZE == (1, 8, 8) and grey.AUGMENT is None
    assert coloured.SIZE == (3, 8, 8) and coloured.AUGMENT == {"crop_padding": 1, "flip": True}
    assert stream(tmp_path, "--augmentation", "crop").AUGMENT == {"crop_padding": 1, "flip": False}


@pytest.mark.parametrize(
    "options, sizes, order",
    [
        ((), [2, 2], [0, 1, 2, 3]),
        (("--classes_per_task", "3"), [3, 1], [0, 1, 2, 3]),
        (("--increment", "2"), [2, 2], [0, 1, 2, 3]),
        (("--init_cls", "2", "--increment", "1"), [2, 1, 1], [0, 1, 2, 3]),
        (("--class_order", "dog,ant,cow,bee"), [2, 2], [3, 0, 2, 1]),
        (("--class_order", "FILE"), [2, 2], [3, 2, 0, 1]),
        (("--tasks_file", "FILE"), [3, 1], [3, 2, 0, 1]),
        (("--tasks_file", "FILE", "--custom_task_order", "1,0"), [1, 3], [1, 3, 2, 0]),
        (("--custom_class_order", "3,2,1,0"), [2, 2], [3, 2, 1, 0]),
    ],
)
def test_tasks(parts, tmp_path, options, sizes, order):
    file = tmp_path / "names.txt"
    file.write_text("dog\ncow\nant\n\n\nbee\n")
    dataset = stream(parts, *(str(file) if option == "FILE" else option for option in options))
    assert [dataset.cpt(t) for t in range(dataset.N_TASKS)] == sizes and dataset.class_order == order
    seen = [dataset.task_data(t).data[:, 0, 0, 0].div(50, rounding_mode="floor").unique() for t in range(len(sizes))]
    starts = np.cumsum([0, *sizes])
    assert [{*s.tolist()} for s in seen] == [{*order[a:b]} for a, b in zip(starts, starts[1:], strict=False)]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_does_not_fit_is_read_while_one_trains(parts, tmp_path, workers):
    archive = packed(parts, tmp_path / "a.zip")
    exact = ("--image_mean", "0.5", "--image_std", "0.25", "--n_epochs", "2", "--augmentation", "crop_flip")
    more = ("--folder", str(archive), "--image_size", "8", "--backbone", "mnistmlp", "--batch_size", "5", *exact)
    held = finished("sgd", *more, dataset="seq-folder")
    read = finished("sgd", *more, "--resident_mb", "0", "--num_workers", str(workers), dataset="seq-folder")
    assert held.dataset.resident and not read.dataset.resident and read.dataset.waited > 0
    assert not differing_entries(state_of(held), state_of(read)) and scores_of(held) == scores_of(read)


def test_a_run_is_resumed_exactly_while_images_are_read(parts, tmp_path):
    more = ("--folder", str(parts), "--image_size", "8", "--backbone", "mnistmlp", "--batch_size", "4")
    more += ("--buffer_size", "8", "--n_epochs", "2", "--resident_mb", "0", "--holdout", "20")

    def made():
        return experiment("er", *more, dataset="seq-folder")

    whole, first, second = made(), made(), made()
    train_run(whole)

    class Stop(Exception):
        pass

    def stop(position):
        if position.step == 8:  # inside the second task
            checkpoint.save(checkpoint.capture(first, position), tmp_path / "c.pt")
            raise Stop

    first.log.after_step = stop
    with pytest.raises(Stop):
        train_run(first)
    train_run(second, checkpoint.restore(checkpoint.load(tmp_path / "c.pt"), second))
    assert not differing_entries(state_of(whole), state_of(second)) and scores_of(whole) == scores_of(second)


def test_domains(tmp_path):
    for name, classes in (("photo", CLASSES[:2]), ("sketch", CLASSES[:2]), ("art", CLASSES[:1])):
        write_parts(tmp_path / name, classes=classes)
    dataset = stream(tmp_path, dataset="domain-folder")
    assert (
        dataset.task_names == ["art", "photo", "sketch"] and dataset.N_CLASSES == 2 and dataset.SETTING == "domain-il"
    )
    assert [len(dataset.task_data(t)) for t in range(3)] == [6, 12, 12]
    assert dataset.notes == {"missing classes": "art (training): bee; art (test): bee"}
    other = stream(tmp_path, "--domain_order", "sketch,art,photo", dataset="domain-folder")
    assert [len(other.task_data(t)) for t in range(3)] == [12, 6, 12]
    streamed = stream(tmp_path, "--resident_mb", "0", dataset="domain-folder")
    assert torch.equal(streamed.task_data(1).data, dataset.task_data(1).data)
    assert streamed.task_data(0).targets.tolist() == dataset.task_data(0).targets.tolist()


@pytest.mark.usefixtures("undrawn")
def test_a_run_keeps_names_order_and_split(parts, tmp_path):
    more = ["--folder", str(parts), "--image_size", "8", "--backbone", "mnistmlp", "--class_order", "dog,ant,cow,bee"]
    argv = ["--model", "sgd", "--dataset", "seq-folder", *more, "--n_epochs", "1", "--device", "cpu", *QUIET[1:]]
    assert main.main([*argv, "--results_path", str(tmp_path)]) == 0
    (file,) = tmp_path.rglob("classes.json")
    facts = json.loads(file.read_text())
    assert facts["names"] == [*CLASSES] and facts["order"] == [3, 0, 2, 1] and facts["tasks"] == [[3, 0], [2, 1]]
    assert facts["input"]["size"] == [3, 8, 8] and len(facts["input"]["mean"]) == 3
    again, held_out, labelled = (
        split_checksum(experiment("sgd", *more, *options, dataset="seq-folder").dataset)
        for options in ((), ("--holdout", "20"), ("--label_perc", "0.5"))
    )
    assert facts["split"] == again and len({again, held_out, labelled}) == 3


def noisy(size) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def saved(image: Image.Image, form: str, **how) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **how)
    return out.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "WEBP", "GIF", "TIFF"])
def test_forms_of_images(form):
    assert decode(saved(noisy((9, 7)), form), 5, 3).shape == (3, 5, 5)


def test_the_shorter_side_is_resized_and_the_centre_cut_out():
    wide = Image.new("RGB", (70, 10), (255, 0, 0))
    wide.paste((0, 0, 255), (28, 0, 42, 10))
    pixels = decode(saved(wide, "PNG"), 5, 3)
    assert (pixels[2] == 255).all() and (pixels[0] == 0).all()
    same = noisy((6, 6))
    assert (decode(saved(same, "PNG"), 6, 3) == np.asarray(same).transpose(2, 0, 1)).all()


def test_what_images_hide():
    deep = Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16))
    assert (decode(saved(deep, "PNG"), 4, 1) == 0x80).all()
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (decode(saved(clear, "PNG"), 4, 3) == 255).all()
    turned = Image.new("L", (4, 4))
    turned.paste(255, (0, 0, 4, 2))  # white above; the camera was held so that it belongs to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    assert decode(saved(turned, "PNG", exif=exif), 4, 1)[0, 0].tolist() == [0, 0, 255, 255]
    with pytest.raises(ValueError, match="fractions"):
        decode(saved(Image.new("F", (4, 4)), "TIFF"), 4, 1)


def test_a_cache_is_checked_like_the_files(parts, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "CACHED_SECONDS", -1)
    tree = Tree(str(parts))

    def files(size=8):
        return images.ImageFiles(tree, sorted(tree.stamps), size, 3)

    def reload():
        load_images.cache_clear()
        return load_images(files(), tmp_path)

    first = reload()
    (kept,) = (tmp_path / "own_images").iterdir()
    monkeypatch.setattr(images.ImageFiles, "decoded", lambda self: pytest.fail("decoded once more"))
    assert torch.equal(reload(), first)
    monkeypatch.undo()
    kept.write_bytes(kept.read_bytes()[:-1] + b"\0")
    assert torch.equal(reload(), first)
    assert files(4).key != files().key
    before = files().key
    (parts / "train/ant/0.png").touch()
    tree = Tree(str(parts))
    assert files().key != before


def test_statistics_of_one_flat_channel():
    assert statistics(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)) == ((0.2,), (1 / 255,))


def broken(what: str, folder: Path) -> tuple[Path, list[str]]:
    write_parts(folder, train=2, test=1, classes=CLASSES[:2])
    more: dict[str, list[str]] = {
        "order": ["--class_order", "ant,wasp"], "twice": ["--class_order", "ant,ant"],
        "file": ["--class_order", "nothing"],
        "both": ["--class_order", "ant,bee", "--permute_classes"], "first": ["--init_cls", "1"],
        "large": ["--init_cls", "3", "--increment", "1"], "cuts": ["--classes_per_task", "1", "--increment", "1"],
        "mean": ["--image_mean", "0.5"], "std": ["--image_mean", "0.5", "--image_std", "0"],
        "device": ["--resident_mb", "0", "--data_device", "cuda"],
    }  # fmt: skip
    if what == "image":
        (folder / "train/ant/0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    elif what == "extra":
        write_class(folder / "test", "wasp", 1)
    elif what == "absent":
        write_class(folder / "train", "wasp", 1)
    elif what == "empty":
        (folder / "train/wasp").mkdir()
    elif what == "beside":
        (folder / "train/0.png").write_bytes(picture(3))
    elif what == "none":
        return folder / "train/ant", []
    elif what == "missing":
        return folder / "nowhere", []
    elif what == "one":
        for name in CLASSES[:2]:
            write_class(folder / "one", name, 1)
        return folder / "one", []
    elif what == "no zip":
        (folder / "a.zip").write_bytes(b"PK\x03\x04 and nothing else")
        return folder / "a.zip", []
    elif what == "in zip":
        return packed(folder, folder.parent / f"{folder.name}.zip") / "other", []
    return folder, more.get(what, [])


@pytest.mark.parametrize(
    "what, words",
    [
        ("image", "train/ant/0.png: cannot be read as an image"),
        ("extra", "no training image of class wasp"),
        ("absent", "no test image of class wasp"),
        ("empty", "train/wasp: no image of this class"),
        ("beside", "0.png and 0 more images lie beside"),
        ("none", "expected a sub-folder for each class"),
        ("missing", "there is no such folder or zip archive"),
        ("one", "class ant has one image: expected two or more"),
        ("no zip", "no zip archive, or damaged"),
        ("in zip", "there is no such folder in the archive"),
        ("order", "there is no class 'wasp', expected ant, bee"),
        ("twice", "class 'ant' stands there twice"),
        ("file", "neither names with commas between them nor a file"),
        ("both", "--class_order and --permute_classes exclude each other"),
        ("first", "give --increment"),
        ("large", "3 classes in the first task, there are 2"),
        ("cuts", "--classes_per_task and --increment exclude each other"),
        ("mean", "--image_mean and --image_std go together"),
        ("std", "--image_std: expected numbers above 0"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_is_written(what, words, tmp_path, capsys):
    folder, more = broken(what, tmp_path / "data")
    argv = ["--model", "sgd", "--dataset", "seq-folder", "--folder", str(folder), "--image_size", "8", *more]
    assert main.main([*argv, "--results_path", str(tmp_path / "results"), "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "results").exists()


def test_domains_that_are_none(parts, tmp_path):
    with pytest.raises(UserError, match="train and test but no domains"):
        stream(parts, dataset="domain-folder")
    write_class(tmp_path / "photo" / "train", "ant", 2)
    write_class(tmp_path / "photo" / "test", "bee", 2)
    write_class(tmp_path / "art", "ant", 2)
    with pytest.raises(UserError, match="no training image of class bee in any domain"):
        stream(tmp_path, dataset="domain-folder")
    with pytest.raises(UserError, match="there is no domain 'oil'"):
        stream(tmp_path, "--domain_order", "oil,art", dataset="domain-folder")


@pytest.mark.parametrize(
    "options, sizes", [(("--increment", "4"), [4, 4, 2]), (("--init_cls", "6", "--increment", "2"), [6, 2, 2])]
)
def test_any_stream_of_classes_is_cut_by_options(options, sizes):
    dataset = experiment("sgd", *options).dataset
    assert [dataset.cpt(t) for t in range(dataset.N_TASKS)] == sizes
    assert dataset.enter_task(2).dataset.targets.unique().tolist() == [8, 9]
    with pytest.raises(UserError, match="drop --init_cls, --increment"):
        experiment("sgd", *options, dataset="perm-digits")


@pytest.mark.parametrize("name", ["seq-digits", "perm-digits", "seq-gmm2d", "digits-360"])
def test_every_stream_says_its_classes_and_its_split(name):
    one, other = (experiment("sgd", "--seed", seed, dataset=name).dataset for seed in "01")
    facts = facts_of(one)
    assert facts["names"][:3] == ["0", "1", "2"] and facts["order"][:3] == [0, 1, 2]
    assert len(facts["tasks"]) == one.EVAL_TASKS and facts["split"] == split_checksum(other)
