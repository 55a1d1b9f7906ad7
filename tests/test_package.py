"""The installed package lives beside other people's code; in a checkout every module has one identity."""

import importlib.util
import subprocess
import sys
import textwrap

import pytest

from palimpsest import ROOT

tomllib = pytest.importorskip("tomllib", reason="Python 3.11 reads pyproject.toml")
SCRIPT = """
import sys
from utils import hello
import utils.buffer, datasets
assert hello() == "mine" and utils.buffer.X == 1 and datasets.load_dataset() == "theirs"
import palimpsest
assert "torch" not in sys.modules
result = palimpsest.run("method.py", "seq-digits", n_epochs=1, stop_after=1, label_perc=0.2, non_verbose=True)
learned = palimpsest.load(result.folder)
images = learned.dataset._test_part(0, held_out=False)[0].images[:4]
assert learned.predict(images).classes == [0, 1] and learned.model.NAME == "method"
assert not [name for name in sys.modules if name.split(".")[0] in ("models", "backbone")]
assert palimpsest.__file__.startswith(sys.argv[1]) and palimpsest.models.__file__.startswith(sys.argv[1])
print(learned.exp.run.environment["commit"])
"""
METHOD = '''
"""A method kept outside, by the names of a checkout."""
from models.utils.continual_model import ContinualModel
from utils.buffer import Buffer


class Method(ContinualModel):
    NAME, COMPATIBILITY = "method", ["class-il"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        from utils.args import add_rehearsal_args

        assert Buffer and add_rehearsal_args
        return self.step_on(self.loss(self.net(inputs), labels))
'''


def wheel_files() -> dict[str, str]:
    """place in the wheel -> place in the checkout, as the build is told."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    return {file.name: f"palimpsest/{file.name}" for file in (ROOT / "palimpsest").glob("*.py")} | {
        place.removeprefix("palimpsest/"): source for source, place in wheel["force-include"].items()
    }


def test_an_installed_package_lives_beside_other_folders_of_the_same_names(tmp_path):
    site, script = tmp_path / "site" / "palimpsest", tmp_path / "mine" / "script.py"
    site.mkdir(parents=True)
    for place, source in wheel_files().items():
        (site / place).symlink_to(ROOT / source)
    # As if it were a copy: links to files outside would be taken for the checkout's.
    (site / "__init__.py").unlink()
    (site / "__init__.py").write_text((ROOT / "palimpsest" / "__init__.py").read_text())
    for package, text in (("utils", "hello = lambda: 'mine'"), ("datasets", "load_dataset = lambda: 'theirs'")):
        (script.parent / package).mkdir(parents=True)
        (script.parent / package / "__init__.py").write_text(text)
    (script.parent / "utils" / "buffer.py").write_text("X = 1")
    (script.parent / "method.py").write_text(METHOD)
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, script, site], cwd=script.parent, env={"PYTHONPATH": str(site.parent)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("installed ")


def test_a_module_of_a_checkout_is_one_under_both_its_names():
    code = (
        "from utils.buffer import Buffer; import models.er, palimpsest.models.er; from palimpsest.utils import buffer;"
        "assert Buffer is buffer.Buffer and models.er is palimpsest.models.er;"
        "assert models.er.__spec__.name == models.er.__name__ == 'palimpsest.models.er'"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert importlib.util.find_spec(name := "datasets.utils.own.hub_export").loader.get_code(name).co_consts


@pytest.mark.slow
def test_a_wheel_is_built_and_runs(tmp_path):
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("palimpsest-*.whl")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel],
                   check=True)  # fmt: skip
    done = subprocess.run([sys.executable, "-m", "palimpsest", "--list"], cwd=tmp_path, text=True, capture_output=True,
                          env={"PYTHONPATH": str(tmp_path / "site")})  # fmt: skip
    assert done.returncode == 0 and "seq-digits" in done.stdout and "derpp" in done.stdout, done.stderr
