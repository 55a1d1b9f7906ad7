"""What is made of the pages: the tutorial's notebook, the site, the picture of README; and words that must agree."""

import contextlib
import importlib.util
import json
import re

import pytest

from palimpsest.utils import metrics
from palimpsest.utils.registry import ROOT, names

DOCS = ROOT / "docs"
NEAR = 15  # points by which another processor's or library's run may differ


def script(name: str):
    """A file of docs/scripts as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]


def words(text: str) -> str:
    return re.sub(r"-?\d+\.?\d*|\s+", "", text)


def test_the_notebook_is_the_page():
    assert (DOCS / "tutorial.ipynb").read_text() == script("tutorial").notebook((DOCS / "tutorial.md").read_text())
    cells = json.loads((DOCS / "tutorial.ipynb").read_text())["cells"]
    assert sum(cell["cell_type"] == "code" for cell in cells) == (DOCS / "tutorial.md").read_text().count("```python")


def test_the_notebook_runs_and_prints_what_the_page_says(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    stored = [printed(cell) for cell in book.cells]
    nbclient.NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    drawn = 0
    for cell, expected in zip(book.cells, stored, strict=True):
        found = printed(cell)
        assert words(found) == words(expected)
        assert numbers(found) == pytest.approx(numbers(expected), abs=NEAR)
        drawn += any("image/png" in output.get("data", {}) for output in cell.get("outputs", ()))
    assert drawn == (DOCS / "tutorial.md").read_text().count("](pictures/")


def printed(cell) -> str:
    return "".join(output["text"] for output in cell.get("outputs", ()) if output.get("name") == "stdout")


def test_running_the_tutorial_puts_in_what_it_prints(tmp_path, monkeypatch):
    tutorial = script("tutorial")
    monkeypatch.setattr(tutorial, "DOCS", tmp_path)
    (tmp_path / "pictures").mkdir()
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nprint(1 + 1)\n"
    page = f"A\n\n```python\n{code}```\n\n![a line](pictures/a.svg)\n"
    renewed = tutorial.run(page)
    assert renewed == page.replace("\n\n!", "\n\n```text\n2\n```\n\n!") == tutorial.run(renewed)
    assert "<svg" in (tmp_path / "pictures/a.svg").read_text()
    text, cell = tutorial.cells(renewed)
    assert text["source"] == ["A"] and "".join(cell["source"]) == code.strip() and cell["outputs"][0]["text"] == ["2\n"]


def test_the_picture_of_forgetting(tmp_path):
    for method, last in (("sgd", "0.0,99.0"), ("er", "96.0,98.0")):
        folder = tmp_path / "class-il" / "seq-digits" / method / "run"
        folder.mkdir(parents=True)
        rows = ["scenario,after_task,task_0,task_1", "class-il,0,100.0,", f"class-il,1,{last}", "task-il,0,100.0,"]
        (folder / "accuracy_matrix.csv").write_text("\n".join(rows))
    script("forgetting").main(str(tmp_path), str(tmp_path / "picture.svg"))
    picture = (tmp_path / "picture.svg").read_text()
    assert "50 % right at the end" in picture and "97 % right at the end" in picture
    assert max(path.stat().st_size for path in (DOCS / "pictures").iterdir()) < 60_000
    with pytest.raises(SystemExit, match="no run of sgd"):
        script("forgetting").main(str(tmp_path / "nowhere"), "picture.svg")


def test_the_site_builds(tmp_path):
    for package in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(package, reason="the site needs pip install '.[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    config = load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path))
    build(config)
    options = (tmp_path / "reference/options/index.html").read_text()
    assert "--buffer_size" in options and "--pah_w_sm" in options and "--mlp_hidden_size" in options
    for page, name in (
        ("python", "predict"),
        ("trainer", "train_task"),
        ("method", "observe"),
        ("metrics", "summarise"),
    ):
        assert name in (tmp_path / "reference" / page / "index.html").read_text()
    assert (tmp_path / "tutorial.ipynb").is_file() and not (tmp_path / "scripts").exists()
    assert [next(iter(part)) for part in config["nav"]][1:] == ["Tutorial", "How-to", "Reference", "Findings"]


def test_the_glossary_has_every_metric_with_its_formula():
    page = " ".join((DOCS / "glossary.md").read_text().replace("`", "").split())
    for metric in metrics.METRICS.values():
        formula = re.split(r":| \(De Lange", metric.formula.replace("`", ""))[0].strip()
        assert f"({metric.name}, {metric.better})" in page and formula in page, metric.name
    for name in re.findall(r"`([a-z]+_?[a-z]*)`", (DOCS / "glossary.md").read_text().split("## Parts")[0]):
        assert name in {*names("model"), *metrics.METRICS, "begin_task", "end_task", "explicit"}, name


def test_how_to_cite_is_valid():
    import yaml

    from palimpsest import __version__

    facts = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    required = {"cff-version", "message", "title", "authors"}  # of the schema of version 1.2.0
    known = required | {"type", "abstract", "version", "date-released", "license", "keywords"}
    assert required <= facts.keys() <= known and facts["version"] == __version__
    assert f"## {__version__} - {facts['date-released']}" in (ROOT / "CHANGELOG.md").read_text()
    with contextlib.suppress(ImportError):
        from cffconvert import Citation

        Citation((ROOT / "CITATION.cff").read_text()).validate()
