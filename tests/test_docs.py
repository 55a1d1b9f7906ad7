"""The examples of the documentation run as they stand there."""

import contextlib
import io
import re
import zipfile
from itertools import product

import numpy as np
import pytest
from scipy.io import wavfile

from palimpsest.utils.check import cases, conformance
from palimpsest.utils.registry import ROOT, names
from tests.models.helpers import finished


def example(page: str, name: str, tmp_path):
    block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S).group(1)
    path = tmp_path / name
    path.write_text(block)
    return str(path)


def test_the_example_method(tmp_path):
    case = cases.Case(example("add_a_method.md", "my_method.py", tmp_path), "class-il")
    for check in conformance.CHECKS[:-1]:
        check(case)
    conformance.resumes_exactly(case, elsewhere=False)


def test_the_example_dataset(tmp_path):
    exp = finished("sgd", dataset=example("add_a_dataset.md", "seq_shapes.py", tmp_path))
    assert exp.run.matrices["class-il"].shape == (4, 4)


def test_the_example_of_own_data(tmp_path):
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "spoken-digits.zip", "w") as archive:
        for digit, take in product(range(10), (3, 7, 8)):
            wav = io.BytesIO()
            tone = np.sin(np.arange(3000) * (digit + 1) / 5) + rng.normal(0, 0.01, 3000)
            wavfile.write(wav, 8000, (8000 * tone).astype(np.int16))
            archive.writestr(f"{digit}/speaker0_{take:02d}.wav", wav.getvalue())
    more = ["--base_path", str(tmp_path), "--backbone", "mnistmlp", "--n_epochs", "1"]
    exp = finished("sgd", *more, dataset=example("own_data.md", "seq_spoken.py", tmp_path))
    assert exp.dataset.train_sizes == [4] * 5 and len(exp.dataset.test_loaders[0].dataset) == 2
    first, second = exp.dataset.task_data(0).data[[0, 2]].float().mean((1, 3))  # brightness by height
    assert first.argmax() > second.argmax()  # low tones are at the bottom


def test_every_method_is_in_the_table():
    table = (ROOT / "docs" / "methods.md").read_text()
    assert all(f"| `{name}` |" in table for name in names("model"))


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", page.read_text()):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)", path.read_text(), re.M)
                anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in anchors, f"{page.name}: {target}#{anchor}"


def test_the_example_of_the_trainer(tmp_path, monkeypatch, capsys):
    first, *others = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "trainer.md").read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(first, "trainer.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "'acc'" in printed and "['zero', 'one'," in printed and (tmp_path / "trainer.pt").is_file()
    for package in ("onnxruntime", "onnxscript", "safetensors"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    for block in others:
        exec(compile(block, "trainer.md", "exec"), names)
    scores = {name: names[name].metrics() for name in ("pnn", "packnet", "icarl")}
    assert scores["pnn"]["task-il"]["forgetting"] == scores["packnet"]["task-il"]["forgetting"] == 0
    assert scores["icarl"]["class-il"]["acc"] > 60


@pytest.fixture(scope="module")
def used(tmp_path_factory, undrawn):
    """The names of the first example of docs/use.md after it ran, its folder, and the examples."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "use.md").read_text(), re.S)
    names, folder = {}, tmp_path_factory.mktemp("use")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        patch.chdir(folder)
        exec(compile(blocks[0], "use.md", "exec"), names)
    return names, folder, blocks


def test_the_example_of_using_a_run(used):
    names, _, _ = used
    assert (names["found"].labels == [0, 1, 2, 3]).mean() >= 0.5 and names["found"].probabilities.shape == (4, 10)
    assert names["result"].scores["class-il"]["acc"] > 60
    assert names["result"].folder == names["learned"].folder


@pytest.mark.slow
def test_the_examples_of_an_export(used, monkeypatch, capsys):
    for package in ("onnxruntime", "onnxscript", "safetensors"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    from palimpsest.export import export

    names, folder, blocks = used
    monkeypatch.chdir(folder)
    export(names["learned"], "export")
    exec(compile(blocks[1], "use.md", "exec"), {})
    assert re.fullmatch(r"\['\d', '\d'\]\n", capsys.readouterr().out)
    exec(compile(blocks[2], "use.md", "exec"), {"net": names["learned"].model.net})
