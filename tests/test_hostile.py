"""Damaged and malicious checkpoints: each is one line and status 2, and nothing is written."""

import copy
import hashlib
import io
import os
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import main as entry
from palimpsest.models.utils import state
from palimpsest.utils.buffer import Buffer
from palimpsest.utils.registry import ROOT
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build

METHOD = ["--model", "er", "--buffer_size", "50", "--n_epochs", "1", "--num_threads", "1", "--stop_after", "2"]
COMMAND = [*METHOD, "--dataset", "seq-digits", "--non_verbose"]
SECONDS = 10  # far more than a refusal takes


def refused(capsys, *argv: str) -> str:
    """The one line with which a command line is refused."""
    begin = time.perf_counter()
    status, err = entry.main(list(argv)), capsys.readouterr().err
    assert time.perf_counter() - begin < SECONDS
    assert status == 2, err
    assert err.startswith("main.py: error: ") and err.count("\n") == 1 and len(err) < 2000, err
    return err


def refused_file(capsys, folder: Path, data: bytes) -> None:
    """A checkpoint with these bytes is refused, and nothing is written beside it."""
    file = folder / "given.pt"
    file.write_bytes(data)
    refused(capsys, *COMMAND, f"--results_path={folder / 'results'}", f"--loadcheck={file}", "--inference_only")
    assert [*folder.iterdir()] == [file] and file.read_bytes() == data


def only_run(results: Path) -> Path:
    (config,) = results.glob("*/*/*/*/config.yaml")
    return config.parent


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The results folder of an undisturbed run."""
    results = tmp_path_factory.mktemp("whole")
    assert entry.main([*COMMAND, "--savecheck", "5", "--results_path", str(results)]) == 0
    return results


@pytest.fixture(scope="module")
def saved(whole) -> SimpleNamespace:
    """A checkpoint, as bytes and as what it holds."""
    path = only_run(whole) / "checkpoint.pt"
    return SimpleNamespace(data=path.read_bytes(), state=checkpoint.load(path))


# ---- damaged bytes


def signed(body: bytes, format: int = checkpoint.FORMAT, step: int = 0) -> bytes:
    """The bytes with the last line of a checkpoint and its right checksum."""
    body += checkpoint.FOOTER.format(format=format, step=step, digest="")[: -1 - 64].encode()
    return body + hashlib.sha256(body).hexdigest().encode() + b"\n"


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def archive() -> bytes:
    """A torch file of something else."""
    content = io.BytesIO()
    torch.save({"model": torch.zeros(3)}, content)
    return content.getvalue()


LENGTH = checkpoint.FOOTER_LENGTH
DAMAGE = {
    "truncated": lambda data: data[: len(data) // 3],
    "without the last line": lambda data: data[:-LENGTH],
    "without the checksum": lambda data: data[:-20] + b"\n",
    "a flipped bit": lambda data: flipped(data, len(data) // 2),
    "a flipped bit of the checksum": lambda data: flipped(data, len(data) - 9),
    "a hole": lambda data: data[:2000] + bytes(4096) + data[6096:],
    "longer": lambda data: data + b"\n#",
    "twice": lambda data: data + data,
    "empty": lambda data: b"",
    "a text": lambda data: (ROOT / "README.md").read_bytes(),
    "a pickle": lambda data: pickle.dumps([1, 2]),
    "an empty archive": lambda data: b"PK\5\6" + bytes(18),
    "another archive": lambda data: archive(),
    "nothing, signed": lambda data: signed(b""),
    "a pickle, signed": lambda data: signed(pickle.dumps([1, 2])),
    "another archive, signed": lambda data: signed(archive()),
    "a last line in capitals": lambda data: data[:-LENGTH] + data[-LENGTH:].upper(),
    "a last line backwards": lambda data: data[:-LENGTH] + data[-LENGTH:][::-1],
    "zeros for the last line": lambda data: data[:-LENGTH] + bytes(LENGTH),
    "another iteration": lambda data: data[:-LENGTH] + data[-LENGTH:].replace(b"step 0", b"step 9"),
    "an iteration below zero": lambda data: data[:-LENGTH] + data[-LENGTH:].replace(b"step ", b"step -"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_line_and_nothing_written(capsys, tmp_path, saved, damage):
    refused_file(capsys, tmp_path, DAMAGE[damage](saved.data))


@pytest.mark.parametrize("format, age", [(checkpoint.FORMAT - 1, "an older"), (99, "a newer")])
def test_a_checkpoint_of_another_version_is_told(capsys, tmp_path, saved, format, age):
    (tmp_path / "given.pt").write_bytes(signed(saved.data[: -checkpoint.FOOTER_LENGTH], format))
    err = refused(capsys, *COMMAND, "--disable_log", "--loadcheck", str(tmp_path / "given.pt"))
    assert f"{age} version (format {format}, this version reads {checkpoint.FORMAT})" in err


# ---- checkpoints that are whole and say something wrong


def nested(depth: int) -> list:
    value = []
    for _ in range(depth):
        value = [value]
    return value


def doubled(times: int) -> list:
    """A list of two lists that are the same list, and so on: few bytes, 2 ** times entries."""
    value = [0]
    for _ in range(times):
        value = [value, value]
    return value


STRUCTURES: dict[str, Callable[[dict], object]] = {
    "no model name": lambda s: s.pop("model_name"),
    "a key of another type": lambda s: s.update(options=["seed"]),
    "another seed": lambda s: s["options"].update(seed="7\nTraceback"),
    "a name of several lines": lambda s: s.update(model_name="er\nTraceback\n" * 100),
    "another network": lambda s: s["shapes"].update({"net\n.classifier.weight": [1]}),
    "scores without their data": lambda s: s["matrices"].update(
        {"class-il": torch.zeros(1).double().expand(1 << 20, 1 << 20)}
    ),
    "an environment nested deeply": lambda s: s.update(environment={"a": nested(300)}),
    "options mentioned again and again": lambda s: s["options"].update(lr=doubled(60)),
    "a set": lambda s: s["options"].update(lr={1, 2}),
    "a task that is not there": lambda s: s["position"].update(task=6),
    "a huge epoch": lambda s: s["position"].update(epoch=1 << 20000),
    "too few random numbers": lambda s: s["random"].update(python=[3, torch.zeros(4, dtype=torch.int64), None]),
    "an evaluation with text": lambda s: s["history"][0]["scores"].update({"class-il": ["good"]}),
    "a loss that is text": lambda s: s["losses"].__setitem__(0, [9, {"loss": "low"}, 0.1]),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_checkpoint_that_says_something_wrong_is_one_line_and_nothing_written(capsys, tmp_path, saved, name):
    content = io.BytesIO()
    exp = build(resolve(COMMAND))
    facts = {name: part for name, part in saved.state.items() if name not in ("model", "path", "entries")}
    facts = copy.deepcopy(facts)
    STRUCTURES[name](facts)
    state.write(facts | {"model": exp.model}, content, exp.model)
    refused_file(capsys, tmp_path, signed(content.getvalue()))


# ---- a method that is none: what the pickle of the method may say


class Call:
    """Written as a call."""


def held(part: str, name: str, value) -> Callable:
    """Puts an attribute into a part of the method, '' for the method itself."""
    return lambda model: vars(model.get_submodule(part)).update({name: value})


CALLS = {
    "os.system": (os.system, "touch trace"),
    "eval": (eval, "open('trace', 'w')"),
    "getattr": (getattr, "", "join"),
    "torch.load": (torch.load, "trace"),
    "a constructor": (torch.nn.Linear, 1, 1),
    "a class of the method": (Buffer, 10),
    "a class of os": (state.make, -1, "object", "os", "_Environ", None),
    "a class through a class": (state.make, -1, "object", "models.er", "Er.observe.__globals__", None),
    "a class that is no class": (state.make, -1, "object", "torch.nn.modules.linear", "math", None),
    "a function of torch's files": (state.make, -1, "named", "torch.load"),
    "what does not belong to the run": (state.make, -1, "named", "model"),
    "a tensor that is none": (state.make, -1, "tensor", [1], True, True, None, {}),
    "a tensor that hides": (state.make, -1, "tensor", torch.ones(1), True, True, None, {"backward": 1}),
    "another number": (state.make, -1, "object_", 1),
    "a kind of value that is none": (state.make, -1, "__import__", "os"),
    "a second self": (state.make, -1, "object", "models.er", "Er", ""),
    "an object without attributes": (state.make, -1, "object", "models.utils.snapshot", "Snapshot", None),
}  # fmt: skip
CHANGES = {
    "a method's name": held("", "observe", 1),
    "a name of Python's": held("", "__class__", 1),
    "a method of a part": held("net.classifier", "forward", 1),
    "a table of other things": held("net", "_modules", {"classifier": 1}),
    "a table that is none": held("net", "_parameters", []),
    "no method at all": None,
}


@pytest.mark.parametrize("name", [*CALLS, *CHANGES])
def test_a_method_that_is_none_is_one_line_and_runs_nothing(capsys, tmp_path, saved, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exp, content = build(resolve(COMMAND)), io.BytesIO()
    facts = {name: part for name, part in saved.state.items() if name not in ("model", "path", "entries")}
    model = exp.model
    forms = state.Origin.form
    if name in CALLS:
        model.evil = evil = Call()
        monkeypatch.setattr(state.Origin, "form", lambda self, value: (
            (("evil",), None) if value is evil else forms(self, value)))  # fmt: skip
        looks = state._Look.__init__

        def look(self, *args):
            looks(self, *args)
            self.forms[id(evil)] = CALLS[name][0], CALLS[name][1:]

        monkeypatch.setattr(state._Look, "__init__", look)
    elif CHANGES[name]:
        CHANGES[name](model)
        monkeypatch.setattr(state, "_refuse_hidden", lambda value, attributes: attributes)
        monkeypatch.setattr(state, "TABLES", {})
    state.write(facts | {"model": model if name != "no method at all" else [1]}, content, model)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    refused_file(capsys, tmp_path, signed(content.getvalue()))


class Bomb:
    """Pickled, it makes a folder when it is read."""

    def __init__(self, folder: Path):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("with_footer", [False, True])
@pytest.mark.parametrize("form", ["pickle", "archive", "old archive", "inside"])
def test_code_in_a_checkpoint_does_not_run(capsys, tmp_path, saved, form, with_footer):
    bomb, content = Bomb(tmp_path / "trace"), io.BytesIO()
    if form == "pickle":
        content.write(pickle.dumps(bomb))
    else:
        inside = saved.state | {"options": bomb} if form == "inside" else bomb
        torch.save(inside, content, _use_new_zipfile_serialization=form != "old archive")
    data = content.getvalue()
    refused_file(capsys, tmp_path, signed(data) if with_footer else data)


@pytest.mark.parametrize("kind", ["compressed", "overlapping"])
def test_a_small_checkpoint_that_would_become_a_large_one_is_refused(capsys, tmp_path, saved, kind):
    content, method = io.BytesIO(), zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(io.BytesIO(saved.data)) as whole, zipfile.ZipFile(content, "w", method) as packed:
        for entry_ in whole.infolist():
            packed.writestr(entry_.filename, whole.read(entry_))
        if kind == "compressed":
            packed.writestr("archive/data/9999", bytes(50_000_000))
        else:
            largest = max(packed.filelist, key=lambda info: info.file_size)
            for number in range(1000):
                more = copy.copy(largest)
                more.filename = f"archive/data/{9000 + number}"
                packed.filelist.append(more)
    (tmp_path / "given.pt").write_bytes(signed(content.getvalue()))
    argv = [*COMMAND, "--disable_log", "--loadcheck", str(tmp_path / "given.pt"), "--inference_only"]
    assert "compressed parts" in refused(capsys, *argv)
