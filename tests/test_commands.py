"""Every command of README and the pages: those of main.py are parsed, and run where they can run here.

A command is a line of a `sh` block, or an indented line that begins with a program's name.
"""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import main as entry
from palimpsest.utils.args import STUDIES
from palimpsest.utils.registry import ROOT, find
from palimpsest.utils.run.config import resolve
from palimpsest.utils.study.tune import make_parser, read_plan

pytestmark = pytest.mark.usefixtures("undrawn")
PAGES = ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
PROGRAMS = ("python", "palimpsest", "pip", "mlflow", "tensorboard", "mkdocs", "ruff", "srun")
BASE = "--model er --dataset seq-digits --buffer_size 100"  # what `...` stands for
SHORT = [["--debug_mode"], ["--non_verbose"], ["--num_threads", "1"]]

# Why a command is not run: words that it has -> the reason. Those of main.py are parsed all the same.
CANNOT_RUN = {
    "METHOD": "a pattern, no command",
    "mnist": "the data must be downloaded",
    "cifar": "the data must be downloaded",
    "--vision_items": "three seeds of the vision stream take minutes; docs/vision.md has one, which runs",
    "--mlflow": "an optional package; tests/utils/log has its own tests",
    "--wandb": "an optional package; tests/utils has its own tests",
    "--serve": "a server; tests/study has its own tests",
    "http.server": "a server",
    "--check": "test_docs.py runs the checks on the example",
    "photos.zip": "somebody's own data; tests/datasets/test_own_folder.py has its like, as for the next five",
    "pacs.zip": "somebody's own data",
    "wine.csv": "somebody's own data",
    "diabetes.csv": "somebody's own data",
    "hf:": "a package and data that must be downloaded",
    "seq_spoken.py": "sound files; test_docs.py runs the page's example on a few",
    "srun": "a Slurm cluster",
    "--reproduce": "minutes; tests/study/test_reproduce.py runs two rows",
    "--sweep": "minutes; the page's file is checked by --dry_run, and tests/study/test_sweep.py runs small ones",
    "pip": "would change this environment",
    "python3 -m venv": "would change this environment",
    "mlflow ui": "a server",
    "mkdocs": "test_site.py builds the site",
    "ruff": "a check of its own",
    "python -m pytest": "these tests",
    "python -m tests.": "measures for minutes",
    "python -m benchmarks.": "measures for minutes; test_mutants.py and test_golden.py have short ones",
    "docs/scripts/": "test_site.py runs the scripts",
}
FAST = ("README.md", "docs/use.md")  # of these pages all, of the others the first
SLOW = ("--seeds", "--model pah", "--model pr_", "--export", "seq-vision-mini")  # seconds each


def commands() -> dict[str, list[str]]:
    """Page -> its commands, each once over all pages."""
    found, seen = {}, set()
    for page in PAGES:
        text = re.sub(r" \\\n\s*", " ", (ROOT / page).read_text())
        blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
        lines = "\n".join(blocks).splitlines() + re.findall(r"^    (\S.*)$", text, re.M)
        lines = [re.split(r"\s{3,}|  #", line)[0] for line in lines if line.split()[:1] and is_command(line)]
        found[page] = [line for line in dict.fromkeys(lines) if line not in seen]
        seen |= set(lines)
    return found


def is_command(line: str) -> bool:
    first = line.split()[0]
    return first in PROGRAMS or first.startswith("python3")


def argv_of(command: str) -> list[str] | None:
    """What main.py is given; None for other programs."""
    match = re.search(r"(?:python main\.py|\bpalimpsest) ([^>]*)", command.partition("||")[0])
    return shlex.split(match[1].replace("...", BASE).replace("[options]", "")) if match else None


def reason(command: str) -> str | None:
    """Why it is not run."""
    return next((why for words, why in CANNOT_RUN.items() if words in command), None)


COMMANDS = commands()
EVERY = [command for page in COMMANDS.values() for command in page]
RUN = []
for page, lines in COMMANDS.items():
    can = [line for line in lines if not reason(line)]
    chosen = can if page in FAST else can[:1]
    for line in can:
        slow = line not in chosen or any(words in line for words in SLOW)
        RUN.append(pytest.param(line, marks=pytest.mark.slow if slow else ()))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the files that pages call path/to/..., my_texts and my_images, and the folder of a run in it."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "path/to").mkdir(parents=True)
    for page, name in (
        ("add_a_method.md", "my_method.py"),
        ("add_a_dataset.md", "seq_shapes.py"),
        ("add_a_network.md", "small_net.py"),
        ("own_data.md", "../../seq_spoken.py"),
    ):
        block = re.search(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)[1]
        (folder / "path/to" / name).write_text(block)
    for page, names in (("study.md", ["sweep.yaml", "paper.yaml"]), ("cluster.md", ["gpu.yaml"])):
        blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / page).read_text(), re.S)
        for name, block in zip(names, blocks, strict=False):
            (folder / name).write_text(block)
    for language, alphabet in (("1_first", "abcdefg "), ("2_second", "hijklmn ")):
        (folder / "my_texts" / language).mkdir(parents=True)
        for name in "abcd":
            (folder / "my_texts" / language / f"{name}.txt").write_text(alphabet * 200)
    (folder / "my_run.yaml").write_text("{model: er, dataset: seq-digits, buffer_size: 100}")
    (folder / "my_images").mkdir()
    Image.new("L", (20, 20), 90).save(folder / "my_images" / "a.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert entry.main([*BASE.split(), *sum(SHORT, []), "--stop_after", "2", "--savecheck", "task"]) == 0
    return folder, next(folder.glob("results/class-il/seq-digits/er/*/checkpoint_task1.pt")).parent


def filled(command: str, run: Path) -> list[str]:
    """The command with the names of real files."""
    words = []
    for word in argv_of(command):
        if word == "FILE":
            word = str(run / "checkpoint_task1.pt")
        words.append(str(run) if word == "FOLDER" else word.replace("FOLDER", run.name))
    return words


@pytest.mark.parametrize("command", [c for c in EVERY if argv_of(c) and "METHOD" not in c])
def test_it_parses(command, place, monkeypatch, capsys):
    folder, run = place
    monkeypatch.chdir(folder)
    argv = filled(command, run)
    if "--tune" in argv:
        assert read_plan(make_parser().parse_known_args(argv)[0], argv).trials
    elif {"--model", "--config"} & set(argv) and "--help" not in argv:
        assert resolve(argv).args.model
    elif "--sweep" in argv:
        assert entry.main([*argv, *{"--dry_run"} - {*argv}]) == 0
    elif "--check" in argv:
        name = argv[argv.index("--check") + 1]
        assert name == "my_method" or find("model", name).is_file()
    else:
        others = {"--list", "--help", "--rerun", "--predict", "--export", "--report", "--print_completion"}
        assert {*others, *(f"--{name}" for name in STUDIES)} & set(argv)


@pytest.mark.parametrize("command", RUN, ids=str)
def test_it_runs(command, place, monkeypatch, capsys):
    folder, run = place
    monkeypatch.chdir(folder)
    argv = filled(command, run)
    if "--compare" in argv and "--help" not in argv:  # it leaves debug runs out
        for model in ("sgd", "er --buffer_size 200", "derpp --buffer_size 200 --alpha 0.5 --beta 0.5"):
            start = f"--model {model} --dataset seq-digits --n_epochs 1 --stop_after 1 --non_verbose --report off"
            assert entry.main(start.split()) == 0
    if "--model" in argv and "--help" not in argv:
        argv += [word for option in SHORT if option[0] not in argv for word in option]
    assert entry.main(argv) == 0, capsys.readouterr().err


@pytest.mark.parametrize("command", [c for c in EVERY if c.startswith("python -m ")])
def test_its_module_is_there(command):
    assert importlib.util.find_spec(command.split()[2])


def test_every_command_is_known():
    assert len(EVERY) > 50
    unknown = [c for c in EVERY if not argv_of(c) and not reason(c)]
    assert not unknown
    unused = [words for words in CANNOT_RUN if not any(words in command for command in EVERY)]
    assert not unused
