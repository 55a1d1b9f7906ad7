"""`python -m benchmarks.gpu`: all of its parts end to end without a GPU, its limits, and the step that it times."""

import json

import pytest
import torch

from benchmarks import gpu, gpu_loops
from palimpsest.utils.run.trainer import Trainer

STEPS = 30


def test_all_parts_small_and_without_a_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OUT", str(tmp_path))
    assert gpu.main(["--dry"]) == 0
    out, rows = capsys.readouterr().out, json.loads((tmp_path / "gpu.json").read_text())
    assert [row["part"] for row in rows if row.get("result") == "done"] == [*gpu.PARTS]
    assert sum("runner us" in row and row["runner us"] > 0 for row in rows) == 5
    assert "2 of 2 methods ran" in out and "it/s of all" in out
    if not torch.cuda.is_available():
        assert out.count("graph us skipped: no CUDA device") == 3 and "1 skipped" in out


def test_the_whole_ends_in_six_minutes():
    assert gpu.LIMITS.keys() == gpu.PARTS.keys() and sum(gpu.LIMITS.values()) < 350


def test_a_part_without_an_end_is_stopped(monkeypatch):
    monkeypatch.setitem(gpu.LIMITS, "precision", 1)
    rows = gpu.measure("precision", dry=True)
    assert rows[-2]["result"] == "stopped after 1 s" and rows[-1]["seconds"] < 10


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert "no CUDA device here: use --dry" in capsys.readouterr().err


@pytest.mark.parametrize("method", gpu_loops.METHODS)
def test_the_bare_step_trains_and_keeps_what_it_saw(method):
    exp = gpu_loops.experiment(method, "mnistmlp", STEPS, "cpu")
    before = exp.model.net.get_params().clone()
    bare = gpu_loops.Bare(method, exp.model.net, exp, 10)
    for _ in range(STEPS):
        bare.decide()
        bare.step()
    assert not torch.equal(before, exp.model.net.get_params()) and bare.seen == 10 * STEPS
    if method == "sgd":
        return
    for i in range(0, 10 * STEPS, 37):
        same = (bare.images == bare.kept_images[i]).flatten(1).all(1).nonzero().flatten()
        assert len(same) == 1 and bare.labels[same] == bare.kept_labels[i]


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_graph_is_the_eager_loop():
    exp = gpu_loops.experiment("derpp", "mnistmlp", STEPS, "cuda")
    assert gpu_loops.largest_difference("derpp", exp.model.net, exp, 10) < 1e-5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_convolutions_of_a_trainer_are_in_float32():
    torch.backends.cudnn.allow_tf32 = True
    seen = []

    class Watched(torch.nn.Conv2d):
        def forward(self, x):
            seen.append((super().forward(x) - torch.nn.functional.conv2d(x.double(), self.weight.double())).abs().max())
            return super().forward(x)

    net = torch.nn.Sequential(Watched(64, 8, 3, bias=False), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 2))
    trainer = Trainer(net, {}, device="cuda", progress=False)
    trainer.train_task([(torch.randn(16, 64, 8, 8), torch.tensor([0, 1] * 8))])
    assert max(seen) < 1e-5 and torch.backends.cudnn.allow_tf32
