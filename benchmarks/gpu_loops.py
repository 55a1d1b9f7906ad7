"""One step of sgd, er and derpp in three ways: the runner's loop, a bare eager loop, and one CUDA graph.

The bare loop and the graph run the very same step. Which images are trained on, replayed and overwritten is decided on
the host by numpy and goes to the device in one vector; row `CAPACITY` of the buffer takes what is not kept.
"""

import copy
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.utils.record import Experiment, Position
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.environment import products
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import train_task

STREAM = Path(__file__).with_name("noise_images.py")
CAPACITY = 500
METHODS = {
    "sgd": [], "er": ["--buffer_size", str(CAPACITY)],
    "derpp": ["--buffer_size", str(CAPACITY), "--alpha", "1.0", "--beta", "0.5"],
}  # fmt: skip
NETWORKS = {"mnistmlp": 10, "resnet18": 32}  # and the size of their batches
AHEAD = 64  # steps that the host may be ahead of the device
CHECKED = 20  # steps after which weights of the graph are held against those of the eager loop


def experiment(method: str, network: str, iterations: int, device: str, *more: str) -> Experiment:
    """Two tasks of so many iterations of the runner."""
    argv = ["--model", method, "--dataset", str(STREAM), "--backbone", network, "--device", device, "--disable_log"]
    argv += ["--batch_size", str(NETWORKS[network]), "--fitting_mode", "iters", "--n_iters", str(iterations)]
    return build(resolve([*argv, "--stop_after", "2", "--non_verbose", *METHODS[method], *more]))


def wait(device: str) -> None:
    """Until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def runner_seconds(exp: Experiment, iterations: int, device: str) -> float:
    """Seconds of an iteration of the runner in its second task; the first one warms up."""
    exp.log.loggers.clear()
    exp.model.train()
    at = Position()
    train_task(exp, at)
    at.leave_task()
    wait(device)
    begin = time.perf_counter()
    train_task(exp, at)
    wait(device)
    return (time.perf_counter() - begin) / iterations


class Bare:
    """The step, and what it reads and writes.

    Args:
        method: of `METHODS`.
        net: trained in place.
        exp: whose images and labels are used.
        size: of a batch and of a replayed one.
        bf16: the passes in bfloat16 autocast.
    """

    def __init__(self, method: str, net: torch.nn.Module, exp: Experiment, size: int, bf16: bool = False):
        self.method, self.net, self.size, self.bf16 = method, net.train(), size, bf16
        data = exp.dataset.task_data(0)
        self.images, self.labels = data.data, data.targets
        self.device = self.images.device
        self.opt = torch.optim.SGD(net.parameters(), lr=0.03)
        kept = CAPACITY + 1
        self.kept_images = torch.zeros(kept, *self.images.shape[1:], dtype=torch.uint8, device=self.device)
        self.kept_labels = torch.zeros(kept, dtype=torch.int64, device=self.device)
        self.kept_logits = torch.zeros(kept, 10, device=self.device)
        self.rng, self.seen, self.order = np.random.default_rng(0), 0, np.zeros(0, np.int64)
        self.rows = torch.zeros(4 * size, dtype=torch.int64, device=self.device)
        on_gpu = self.device.type == "cuda"
        # Copies wait in the device's queue, so that a vector is written again only when its copy is done.
        self.pinned = [torch.zeros(4 * size, dtype=torch.int64, pin_memory=on_gpu) for _ in range(AHEAD)]
        self.copied = [torch.cuda.Event() if on_gpu else None for _ in range(AHEAD)]
        self.turn = 0

    def decide(self) -> None:
        """The next step's rows: the batch, two draws from the buffer, and where the batch is kept."""
        if len(self.order) < self.size:
            self.order = self.rng.permutation(len(self.images))
        batch, self.order = self.order[: self.size], self.order[self.size :]
        held = max(min(self.seen, CAPACITY), 1)
        draws = self.rng.integers(held, size=2 * self.size)
        place = np.arange(self.seen, self.seen + self.size)
        slots = np.where(place < CAPACITY, place, self.rng.integers(place + 1))
        slots = np.minimum(slots, CAPACITY)
        later = slots[:, None] == slots  # of two rows for one place the last one stays
        slots[np.triu(later, 1).any(1)] = CAPACITY
        self.seen += self.size
        pinned, copied = self.pinned[self.turn % AHEAD], self.copied[self.turn % AHEAD]
        if copied and self.turn >= AHEAD:
            copied.synchronize()
        pinned.copy_(torch.from_numpy(np.concatenate([batch, draws, slots])))
        self.rows.copy_(pinned, non_blocking=True)
        if copied:
            copied.record()
        self.turn += 1

    def step(self) -> None:
        """The arithmetic of one iteration on the rows decided."""
        batch, first, second, slots = self.rows.split(self.size)
        raw, y = self.images.index_select(0, batch), self.labels.index_select(0, batch)
        self.opt.zero_grad(set_to_none=True)
        if self.method == "er":
            x = torch.cat([raw, self.kept_images.index_select(0, first)])
            y_all = torch.cat([y, self.kept_labels.index_select(0, first)])
            loss = F.cross_entropy(self.logits(x), y_all)
        else:
            out = self.logits(raw)
            loss = F.cross_entropy(out, y)
        if self.method == "derpp":
            old = self.logits(self.kept_images.index_select(0, first))
            loss = loss + F.mse_loss(old, self.kept_logits.index_select(0, first))
            old = self.logits(self.kept_images.index_select(0, second))
            loss = loss + 0.5 * F.cross_entropy(old, self.kept_labels.index_select(0, second))
        loss.backward()
        self.opt.step()
        if self.method != "sgd":
            self.kept_images.index_copy_(0, slots, raw)
            self.kept_labels.index_copy_(0, slots, y)
        if self.method == "derpp":
            self.kept_logits.index_copy_(0, slots, out.detach())

    def logits(self, raw: Tensor) -> Tensor:
        """float32, whatever the passes are in."""
        x = raw.float().div_(255)
        low = torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if self.bf16 else nullcontext()
        with low:
            return self.net(x).float()

    def captured(self) -> torch.cuda.CUDAGraph:
        """The step as a graph; the steps that warm it up are real ones."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.decide()
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph


def bare_seconds(bare: Bare, iterations: int, graph: bool, device: str) -> float:
    """Seconds of an iteration of the bare loop, eager or replayed."""
    once = bare.captured().replay if graph else bare.step
    for _ in range(10):
        bare.decide()
        once()
    wait(device)
    begin = time.perf_counter()
    for _ in range(iterations):
        bare.decide()
        once()
    wait(device)
    return (time.perf_counter() - begin) / iterations


def largest_difference(method: str, net: torch.nn.Module, exp: Experiment, size: int) -> float:
    """Between the weights of both ways after the same steps, in units of the largest weight."""
    eager, replayed = (Bare(method, copy.deepcopy(net), exp, size) for _ in range(2))
    graph = replayed.captured()
    for step in range(CHECKED):
        eager.decide()
        eager.step()
        if step >= 3:
            replayed.decide()
            graph.replay()
    wait("cuda")
    pairs = zip(eager.net.parameters(), replayed.net.parameters(), strict=True)
    return max(((a - b).abs().max() / b.abs().max().clamp(min=1e-8)).item() for a, b in pairs)


def compare(method: str, network: str, iterations: int, device: str) -> dict:
    """Microseconds of an iteration in the three ways, peak MiB of the runner."""
    size = NETWORKS[network]
    out = {"part": "loops", "method": method, "network": network, "batch": size}
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    exp = experiment(method, network, iterations, device)
    net = copy.deepcopy(exp.model.net)
    out["runner us"] = 1e6 * runner_seconds(exp, iterations, device)
    if device == "cuda":
        out["peak MiB"] = torch.cuda.max_memory_allocated() / 2**20
    with products("fp32"):
        out["bare us"] = 1e6 * bare_seconds(Bare(method, copy.deepcopy(net), exp, size), iterations, False, device)
        if device != "cuda":
            return out | {"graph us": "skipped: no CUDA device"}
        out["graph us"] = 1e6 * bare_seconds(Bare(method, copy.deepcopy(net), exp, size), iterations, True, device)
        out["graph apart"] = largest_difference(method, net, exp, size)
    if network == "resnet18":
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        bare = Bare(method, last, exp, size, bf16=True)
        with products("bf16"):
            out["graph bf16 channels_last us"] = 1e6 * bare_seconds(bare, iterations, True, device)
    return out
