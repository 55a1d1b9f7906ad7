"""The list of golden runs is complete, and its command tells a run that changed."""

import json
import shlex
from pathlib import Path

import pytest

from benchmarks import golden
from utils import registry

RUNS = json.loads(golden.STORED.read_text())["runs"]
STREAMS = {"class-il": "seq-digits", "domain-il": "perm-digits", "general-continual": "digits-360"}


def options_of(command: str) -> dict[str, str]:
    words = shlex.split(command)
    return dict(zip(words[::2], words[1::2], strict=False))


@pytest.mark.parametrize("name", registry.names("model"))
def test_every_method_runs_on_each_setting_it_lists(name):
    cls = registry.load("model", name)
    here = {o["--dataset"] for o in map(options_of, RUNS) if o["--model"].replace("-", "_") == name}
    wanted = {stream for setting, stream in STREAMS.items() if setting in cls.COMPATIBILITY}
    assert here and wanted <= here


def test_every_stream_kind_and_every_file_name_is_known():
    assert {o["--dataset"] for o in map(options_of, RUNS)} >= {*STREAMS.values(), "seq-language", "seq-poly1d",
                                                               "seq-vision-mini", "seq-gmm2d"}  # fmt: skip
    assert len(RUNS) >= 60 and all(run["weights"] and run["scores"] for run in RUNS.values())


def test_a_change_is_told():
    run = {"weights": "a", "scores": [50.0, None, 3.0]}
    assert golden.differences(run, run, exact=True) == []
    assert golden.differences(run, run | {"weights": "b"}, exact=True) == ["other weights"]
    assert golden.differences(run, run | {"weights": "b"}, exact=False) == []
    assert "differ" in golden.differences(run, run | {"scores": [50.1, None, 3.0]}, exact=True)[0]
    assert "differ" in golden.differences(run, run | {"scores": [50.0, 1.0, 3.0]}, exact=False)[0]
    assert "scores expected" in golden.differences(run, run | {"scores": []}, exact=True)[0]
    assert golden.differences(run, {"failed": "status 2: no"}, exact=True)


def test_two_runs_are_what_they_were(tmp_path):
    commands = [c for c in RUNS if c.startswith(("--model er --dataset seq-poly1d", "--model sgd --dataset perm-"))]
    found = golden.run_all(Path(golden.HERE.parent), commands, jobs=1)
    stored = json.loads(golden.STORED.read_text())
    exact = golden.environment() == stored["environment"]
    assert len(found) == 2
    assert [golden.differences(stored["runs"][c], run, exact) for c, run in found.items()] == [[], []]
