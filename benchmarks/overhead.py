"""Time per iteration of the runner against a tight hand-written loop that does the same arithmetic, in one process.

python -m benchmarks.overhead [--iterations 1000] [--repeats 5] [--methods er derpp] [--batch_sizes 10 128]

The hand-written loop leaves nothing on the table: rows are gathered by `index_select`, images scaled in place, and the
buffer decides on the host, with numpy, what is written and drawn, so that a batch it rejects costs nothing. Both train
an MLP 784-100-100-10 with SGD on the first two tasks, with a buffer of 500; the second is timed, its evaluation and
what the method does between tasks left out. The two take turns, and the ratio is that of neighbouring turns.
"""

import argparse
import re
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.utils.record import Evaluation
from palimpsest.utils.run import training
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build

BUFFER = 500
ALPHA, BETA, STRENGTH, LR = 1.0, 0.5, 100.0, 0.1
METHODS = {
    "sgd": "",
    "er": f"--buffer_size {BUFFER}",
    "derpp": f"--buffer_size {BUFFER} --alpha {ALPHA} --beta {BETA}",
    "ewc": f"--e_lambda {STRENGTH} --n_fisher 200",
    "agem": f"--buffer_size {BUFFER}",
}


class Turn:
    """Clocks and memory of one loop, from `begin` to `end`.

    Attributes:
        wall, cpu: seconds.
        memory: MiB by which the process grew at most; nan where the system does not tell.
    """

    def begin(self) -> None:
        reset = Path("/proc/self/clear_refs")
        if reset.exists():
            reset.write_text("5")  # the peak of resident memory starts anew
        self.before = _resident("VmRSS")
        self.since = time.perf_counter(), time.process_time()

    def end(self) -> None:
        self.wall, self.cpu = time.perf_counter() - self.since[0], time.process_time() - self.since[1]
        self.memory = _resident("VmHWM") - self.before


def _resident(name: str) -> float:
    """A figure of this process in MiB."""
    status = Path("/proc/self/status")
    found = re.search(rf"^{name}:\s*(\d+) kB", status.read_text(), re.M) if status.exists() else None
    return int(found[1]) / 1024 if found else float("nan")


def run_ours(method: str, batch_size: int, iterations: int, dataset: str) -> Turn:
    """The runner's own loop."""
    command = (
        f"--model {method} --dataset {dataset} --backbone mnistmlp --lr {LR} --batch_size {batch_size} --device cpu "
        f"--fitting_mode iters --n_iters {iterations} --stop_after 2 --disable_log --non_verbose --num_threads 1"
    )
    replayed = f" --minibatch_size {batch_size}" if "buffer" in METHODS[method] else ""
    exp, turn = build(resolve((command + replayed + " " + METHODS[method]).split())), Turn()
    within_budget = exp.meter.within_budget

    def timed(batches, at):
        """All batches of a task, which may take several epochs: the clock stands between them."""
        if at.task == 1 and at.epoch == 0:
            turn.begin()
        yield from within_budget(batches, at)
        if at.task == 1:
            turn.end()

    exp.meter.within_budget = timed
    with mock.patch.object(training, "evaluate_run", return_value=Evaluation(0, 0, None, {})):
        training.train(exp)
    return turn


class Memory:
    """A reservoir of rows, decided on the host."""

    def __init__(self, *like: Tensor):
        self.stored = [torch.zeros(BUFFER, *rows.shape[1:], dtype=rows.dtype) for rows in like]
        self.seen, self.rng = 0, np.random.default_rng(0)

    def add(self, *rows: Tensor) -> None:
        n = len(rows[0])
        place = np.arange(self.seen, self.seen + n)
        slots = np.where(place < BUFFER, place, (self.rng.random(n) * (place + 1)).astype(np.int64))
        self.seen += n
        kept = {slot: item for item, slot in enumerate(slots.tolist()) if slot < BUFFER}
        if kept:
            slots, items = torch.tensor([*kept]), torch.tensor([*kept.values()])
            for stored, new in zip(self.stored, rows, strict=True):
                stored.index_copy_(0, slots, new.index_select(0, items))

    def draw(self, size: int) -> list[Tensor]:
        rows = torch.from_numpy(self.rng.permutation(min(self.seen, BUFFER))[:size])
        return [stored.index_select(0, rows) for stored in self.stored]


def scaled(raw: Tensor) -> Tensor:
    return raw.float().div_(255)


class Bare:
    """A loop that knows nothing of tasks, methods or logs; one function a method."""

    def __init__(self, method: str, batch_size: int):
        torch.manual_seed(0)
        self.size = batch_size
        layers = nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
        self.net = nn.Sequential(nn.Flatten(), *layers)
        self.params = [*self.net.parameters()]
        self.opt = torch.optim.SGD(self.params, lr=LR)
        self.memory: Memory | None = None
        self.step: Callable[[Tensor, Tensor], Tensor] = getattr(self, method)

    def train(self, images: Tensor, labels: Tensor, rows: Tensor, iterations: int) -> None:
        for raw, y in self.batches(images, labels, rows, iterations):
            self.step(raw, y)

    def batches(self, images: Tensor, labels: Tensor, rows: Tensor, iterations: int) -> Iterator[tuple[Tensor, Tensor]]:
        while iterations > 0:
            for index in rows[torch.randperm(len(rows))].split(self.size)[:iterations]:
                yield images.index_select(0, index), labels.index_select(0, index)
                iterations -= 1

    def between(self, images: Tensor, labels: Tensor, rows: Tensor) -> None:
        """What stands in for the end of the first task: agem's memory, ewc's quadratic."""
        if self.step == self.agem:
            self.memory = Memory(images, labels)
            self.memory.add(images[rows[:BUFFER]], labels[rows[:BUFFER]])
        self.centre = [p.detach().clone() for p in self.params]
        weight = [torch.rand_like(p) for p in self.params]
        self.share = [LR * STRENGTH * w / (1 + LR * STRENGTH * w) for w in weight]
        self.flat_centre = torch.cat([c.flatten() for c in self.centre])
        self.flat_weight = torch.cat([w.flatten() for w in weight])

    def descend(self, loss: Tensor) -> Tensor:
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        return loss

    def sgd(self, raw: Tensor, y: Tensor) -> Tensor:
        return self.descend(F.cross_entropy(self.net(scaled(raw)), y))

    def er(self, raw: Tensor, y: Tensor) -> Tensor:
        self.memory = self.memory or Memory(raw, y)
        x, labels = scaled(raw), y
        if self.memory.seen:
            old, old_labels = self.memory.draw(self.size)
            x, labels = torch.cat((x, scaled(old))), torch.cat((y, old_labels))
        loss = self.descend(F.cross_entropy(self.net(x), labels))
        self.memory.add(raw, y)
        return loss

    def derpp(self, raw: Tensor, y: Tensor) -> Tensor:
        logits = self.net(scaled(raw))
        self.memory = self.memory or Memory(raw, y, logits)
        loss = F.cross_entropy(logits, y)
        if self.memory.seen:
            old, _, stored = self.memory.draw(self.size)
            loss = loss + ALPHA * F.mse_loss(self.net(scaled(old)), stored)
            old, old_labels, _ = self.memory.draw(self.size)
            loss = loss + BETA * F.cross_entropy(self.net(scaled(old)), old_labels)
        self.memory.add(raw, y, logits.detach())
        return self.descend(loss)

    def ewc(self, raw: Tensor, y: Tensor) -> Tensor:
        if not hasattr(self, "share"):
            return self.sgd(raw, y)
        with torch.no_grad():
            drift = torch.cat([p.flatten() for p in self.params]) - self.flat_centre
            penalty = 0.5 * STRENGTH * (self.flat_weight * drift).dot(drift)
        loss = self.sgd(raw, y)
        with torch.no_grad():
            torch._foreach_lerp_(self.params, self.centre, self.share)
        return loss + penalty

    def agem(self, raw: Tensor, y: Tensor) -> Tensor:
        if self.memory is None:
            return self.sgd(raw, y)
        old, old_labels = self.memory.draw(self.size)
        reference = self.gradient(old, old_labels)
        loss = F.cross_entropy(self.net(scaled(raw)), y)
        self.opt.zero_grad()
        loss.backward()
        mine = torch.cat([p.grad.flatten() for p in self.params])
        dot = mine.dot(reference)
        mine = mine - torch.where(dot < 0, dot / reference.dot(reference), 0.0) * reference
        for p, part in zip(self.params, mine.split([p.numel() for p in self.params]), strict=True):
            p.grad = part.view_as(p)
        self.opt.step()
        return loss

    def gradient(self, raw: Tensor, y: Tensor) -> Tensor:
        parts = torch.autograd.grad(F.cross_entropy(self.net(scaled(raw)), y), self.params)
        return torch.cat([part.flatten() for part in parts])


def run_bare(method: str, batch_size: int, iterations: int, tasks: list[tuple[Tensor, ...]]) -> Turn:
    """The hand-written loop."""
    loop, turn = Bare(method, batch_size), Turn()
    loop.train(*tasks[0], iterations)
    loop.between(*tasks[0])
    turn.begin()
    loop.train(*tasks[1], iterations)
    turn.end()
    return turn


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dataset", default="seq-fmnist", help="of images 28 x 28")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[10, 128])
    options = parser.parse_args()
    torch.set_num_threads(1)
    exp = build(resolve(["--model", "sgd", "--dataset", options.dataset, "--num_threads", "1", "--device", "cpu"]))
    data = [exp.dataset.task_data(task) for task in (0, 1)]
    tasks = [(d.source.images, d.source.targets, d.rows) for d in data]  # all images, and which of them are the task's
    print("| method | batch | ours, CPU us | bare, CPU us | ratio of CPU time (lowest to highest) | of wall time "
          "| memory, MiB: ours, bare |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for method in options.methods:
        for batch_size in options.batch_sizes:
            pairs = []
            for repeat in range(options.repeats + 1):
                ours = run_ours(method, batch_size, options.iterations, options.dataset)
                pair = ours, run_bare(method, batch_size, options.iterations, tasks)
                pairs += [pair] if repeat else []  # the first one warms up
            print(_row(method, batch_size, options.iterations, pairs), flush=True)


def _row(method: str, batch_size: int, iterations: int, pairs: list[tuple[Turn, Turn]]) -> str:
    cpu, wall = (sorted(getattr(a, c) / getattr(b, c) for a, b in pairs) for c in ("cpu", "wall"))
    each = [statistics.median(turn.cpu for turn in turns) / iterations * 1e6 for turns in zip(*pairs, strict=True)]
    peak = [max(turn.memory for turn in turns) for turns in zip(*pairs, strict=True)]
    return (
        f"| {method} | {batch_size} | {each[0]:.0f} | {each[1]:.0f} | {statistics.median(cpu):.2f} "
        f"({cpu[0]:.2f} to {cpu[-1]:.2f}) | {statistics.median(wall):.2f} | {peak[0]:.1f}, {peak[1]:.1f} |"
    )


if __name__ == "__main__":
    main()
