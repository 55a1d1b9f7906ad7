"""`--dataset hf:NAME`: what Hugging Face's package gives becomes an archive that is read like any other."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from PIL import Image

from palimpsest.datasets.utils.own import hub
from palimpsest.utils.args import canonical
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from tests.models.helpers import QUIET

# The part of the package that is used: features, sets of rows, and ways to load them.
STAND_IN = """
import io, pathlib
from PIL import Image as Picture

class Image:
    def __init__(self, decode=True): pass

class ClassLabel:
    names = ["zebra", "cat/dog", "ant"]

class Value: pass

class Dataset:
    features = {"picture": Image(), "kind": ClassLabel(), "id": Value(), "coarse": Value()}
    def __init__(self, n, where): self.n, self.where = n, where
    def select_columns(self, names): self.names = names; return self
    def cast_column(self, name, feature): return self
    def iter(self, batch_size):
        for row in range(self.n):
            out = io.BytesIO()
            Picture.new("RGB", (4, 4), (60 * (row % 3) + row, 0, 0)).save(out, "BMP")
            self.where.joinpath("row.bmp").write_bytes(out.getvalue())
            image = {"bytes": out.getvalue(), "path": None} if row % 2 else {
                "bytes": None, "path": str(self.where / "row.bmp")}
            yield {self.names[0]: [image], self.names[1]: [row % 3]}

def load_dataset(name, subset):
    if name == "absent": raise FileNotFoundError("no such set\\non the hub")
    whole = {"train": Dataset(9, here), "validation": Dataset(3, here), "unsupervised": Dataset(1, here)}
    return {"parts": whole, "tests": {"test": whole["train"]}, "one": whole["train"]}[subset or "parts"]

def load_from_disk(name):
    return load_dataset(name, "one")

here = pathlib.Path(__file__).parent
"""


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """A stand-in for the package, found by the other process; the folder of the data."""
    (tmp_path / "site" / "datasets").mkdir(parents=True)
    (tmp_path / "site" / "datasets" / "__init__.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(hub.ROOT), str(tmp_path / "site")]))
    return tmp_path / "data"


def stream(base: Path, name: str, *more: str):
    argv = ["--model", "sgd", "--dataset", f"hf:{name}", "--base_path", str(base), "--image_size", "4", *more]
    return build(resolve([*argv, "--backbone", "mnistmlp", "--device", "cpu", *QUIET])).dataset


def test_classes_keep_their_numbers(package, monkeypatch):
    dataset = stream(package, "animals/three", "--classes_per_task", "1", "--class_order", "ant,zebra,cat_dog")
    assert dataset.class_names == ["zebra", "cat_dog", "ant"] and dataset.class_order == [2, 0, 1]
    reds = [dataset.task_data(t).data[:, 0, 0, 0].tolist() for t in range(3)]
    assert reds == [[122, 125, 128], [0, 3, 6], [61, 64, 67]]
    assert [len(loader.dataset) for loader in dataset.all_test_loaders()] == [1, 1, 1]
    monkeypatch.setattr(hub, "_export", lambda wanted: pytest.fail("read once more"))
    assert stream(package, "animals/three").class_names == dataset.class_names


def test_a_set_on_the_disk_without_a_test_part(package, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    dataset = stream(package, str(tmp_path / "saved"), "--classes_per_task", "3")
    assert len(dataset.task_data(0)) == 6 and len(dataset.all_test_loaders()[0].dataset) == 3
    archive, other = (hub.fetch_images(package, str(tmp_path / "saved"), *[None] * 3) for _ in range(2))
    assert archive == other
    (tmp_path / "saved" / "state.json").write_text("{ }")
    assert hub.fetch_images(package, str(tmp_path / "saved"), None, None, None) != archive


@pytest.mark.parametrize(
    "name, options, words",
    [
        ("absent", (), "hf:absent: FileNotFoundError: no such set on the hub"),
        ("set", ("--hf_subset", "tests"), "no part of the name train, but test"),
        ("set", ("--hf_label", "colour"), "--hf_label colour: no such column, it has picture, kind, id, coarse"),
        ("", (), "the name is missing"),
    ],
)
def test_what_the_package_says_is_one_line(package, name, options, words):
    with pytest.raises(UserError, match=words) as error:
        stream(package, name, *options)
    assert "\n" not in str(error.value) and not [*package.rglob("*.zip")]


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "datasets.py").write_text("raise ImportError")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(UserError, match="needs Hugging Face's package `datasets`: pip install datasets"):
        stream(tmp_path, "animals")


def test_two_spellings():
    for argv in (["--dataset", "hf:a/b:c"], ["--dataset=hf:a/b:c"]):
        assert "=".join(canonical(argv)) == "--dataset=hf=--hf_name=a/b:c"
    assert canonical(["--notes", "hf:x"]) == ["--notes", "hf:x"]


def test_the_package_itself_reads_a_folder_of_images(tmp_path, monkeypatch):
    try:
        version("datasets")
    except PackageNotFoundError:
        pytest.skip("Hugging Face's datasets is not installed")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    for name in ("ant", "bee"):
        (tmp_path / "set" / "train" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (4, 4), (10 * i, 0, 0)).save(tmp_path / "set" / "train" / name / f"{i}.png")
    dataset = stream(tmp_path, str(tmp_path / "set"))
    assert dataset.class_names == ["ant", "bee"] and len(dataset.task_data(0)) == 6
    load = f"import datasets; d = datasets.load_dataset('imagefolder', data_dir={str(tmp_path / 'set')!r}); "
    program = f"import sys; sys.path.pop(0); {load}d.save_to_disk({str(tmp_path / 'saved')!r})"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True)
    assert stream(tmp_path, str(tmp_path / "saved")).class_names == ["ant", "bee"]
