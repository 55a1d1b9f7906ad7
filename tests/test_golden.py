"""The list of golden runs is complete, and its command tells a run that changed."""

import json
import shlex

from benchmarks import golden
from palimpsest.utils import registry

RUNS = json.loads(golden.STORED.read_text())["runs"]
STREAMS = {"class-il": "seq-digits", "domain-il": "perm-digits", "general-continual": "digits-360"}


def options_of(command: str) -> dict[str, str]:
    words = shlex.split(command)
    return dict(zip(words[::2], words[1::2], strict=False))


def test_every_method_runs_on_each_setting_it_lists_and_every_kind_of_stream_is_there():
    datasets: dict[str, set[str]] = {}
    for options in map(options_of, RUNS):
        datasets.setdefault(options["--model"].replace("-", "_"), set()).add(options["--dataset"])
    for name in registry.names("model"):
        listed = registry.load("model", name).COMPATIBILITY
        assert datasets[name] >= {stream for setting, stream in STREAMS.items() if setting in listed}, name
    assert set.union(*datasets.values()) >= {"seq-language", "seq-poly1d", "seq-vision-mini", "seq-gmm2d"}


def test_a_change_is_told():
    run = {"weights": "a", "scores": [50.0, None, 3.0]}
    assert golden.differences(run, run, exact=True) == []
    assert golden.differences(run, run | {"weights": "b"}, exact=True) == ["other weights"]
    assert golden.differences(run, run | {"weights": "b"}, exact=False) == []
    assert "differ" in golden.differences(run, run | {"scores": [50.1, None, 3.0]}, exact=True)[0]
    assert "differ" in golden.differences(run, run | {"scores": [50.0, 1.0, 3.0]}, exact=False)[0]
    assert "scores expected" in golden.differences(run, run | {"scores": []}, exact=True)[0]
    assert golden.differences(run, {"failed": "status 2: no"}, exact=True)


def test_a_run_is_what_it_was(capsys):
    assert golden.main(["--only", "er seq-poly1d", "--jobs", "1"]) == 0
    assert "1 of 1 runs as expected, 0 not" in capsys.readouterr().out
