"""What single methods do in one go, beside the loop that it replaces: same numbers, CPU time, ratio.

    OMP_NUM_THREADS=1 python -m benchmarks.methods [--repeats 5] [--only WORD]

Both are run in one process, in turns, and the median of each is printed. They must agree to 1e-5 of the largest entry;
the status is 1 where they do not.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.backbone.mnistmlp import MNISTMLP
from palimpsest.datasets.utils.task import ClassTask, sum_of_distances
from palimpsest.models.utils.episodic import gradient_at, gradients_at
from palimpsest.models.utils.fisher import example_gradients, fisher_diagonal, rank_one_layers, sum_over_gradients
from palimpsest.models.utils.quadratic import Quadratic
from palimpsest.models.xder import supcon
from palimpsest.utils.evaluation import eval_mode
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import enter_task

Item = tuple[str, Callable[[], Tensor], Callable[[], Tensor], float]  # name, loop, in one go, units of one call
TOLERANCE = 1e-5
SHORTEST = 0.05  # seconds of one measurement, which holds as many calls


def method(name: str, *more: str):
    """A method on Fashion-MNIST or digits with its first task entered."""
    exp = build(resolve(["--model", name, "--backbone", "mnistmlp", "--device", "cpu", "--disable_log", *more]))
    enter_task(exp.model, exp.dataset, 0)
    exp.model.meta_begin_task(exp.dataset)
    return exp.model


def images(n: int) -> tuple[Tensor, Tensor]:
    """n random images of 28x28 and labels of 10 classes."""
    return torch.rand(n, 1, 28, 28), torch.randint(0, 10, (n,))


def each_gradient(net, value: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor):
    """The gradient (P,) of every example, one after the other."""
    for i in range(len(x)):
        net.zero_grad()
        value(net(x[i : i + 1])[0], y[i]).backward()
        yield net.get_grads()


def importance() -> list[Item]:
    """Per example, in batches of 10: the Fisher information over the data's labels, and MAS."""
    net, (x, y) = MNISTMLP((1, 28, 28), 10).eval(), images(500)
    batches = [*zip(x.split(10), y.split(10), strict=True)]

    def squared_norm(out: Tensor, _) -> Tensor:
        return out.pow(2).sum()

    def mas() -> Tensor:
        total, n = sum_over_gradients(net, ((*batch, None) for batch in batches), squared_norm, power=1)
        return torch.cat([part.flatten() for part in total.values()]) / n

    def log_p(out: Tensor, label: Tensor) -> Tensor:
        return torch.log_softmax(out, 0)[label]

    return [
        ("Fisher information, an example", lambda: sum(g * g for g in each_gradient(net, log_p, x, y)) / 500,
         lambda: fisher_diagonal(net, batches, "empirical"), 500),
        ("importance of MAS, an example", lambda: sum(g.abs() for g in each_gradient(net, squared_norm, x, y)) / 500,
         mas, 500),
    ]  # fmt: skip


def penalty() -> list[Item]:
    """The proximal step by one flat vector."""
    net, one = MNISTMLP((1, 28, 28), 10), Quadratic()
    start = net.get_params().detach()
    one.replace(torch.rand(len(start)), start + 0.01)

    def flat() -> Tensor:
        net.set_params(start)
        for _ in range(20):
            scaled = one.weight * 0.1
            net.set_params(torch.lerp(net.get_params().detach(), one.centre, scaled / (1 + scaled)))
        return net.get_params().detach()

    def at_once() -> Tensor:
        net.set_params(start)
        for _ in range(20):
            one.contract(net, 1.0, 0.1)
        return net.get_params().detach()

    return [("proximal step (ewc, si, mas, rwalk)", flat, at_once, 20)]


def gss() -> list[Item]:
    """Inner products of 10 new gradients and 10 stored ones."""
    net, (x, y) = MNISTMLP((1, 28, 28), 10).eval(), images(20)

    def loop() -> Tensor:
        g = torch.stack([*each_gradient(net, F.cross_entropy, x, y)])
        return g @ g.T

    return [("gss, 20 gradients", loop,
             lambda: example_gradients(net, F.cross_entropy, x, y, rank_one_layers(net, x)).gram(), 1)]  # fmt: skip


def gem() -> list[Item]:
    """Gradients at the memories of 49 tasks."""
    model = method("gem", "--dataset", "seq-fmnist", "--buffer_size", "490")
    memories = [images(10) for _ in range(49)]
    x, y = zip(*memories, strict=True)
    return [("gem, 49 memories of 10", lambda: torch.stack([gradient_at(model, *memory) for memory in memories]),
             lambda: gradients_at(model, x, y), 1)]  # fmt: skip


def heads() -> list[Item]:
    """lwf at 49 old heads, xder at 49 future ones: losses and their gradients in the outputs."""
    net, (x, _) = MNISTMLP((1, 28, 28), 100), images(10)
    tasks = [ClassTask(2 * t, 2 * t + 2, whole=False) for t in range(49)]
    features, taught = net.features(x).detach(), torch.randn(10, 100)
    old, labels = [task.part(taught) for task in tasks], torch.arange(10) % 2
    weight = net.classifier.weight
    net.features = lambda x: features  # a network in front costs both the same

    def gradient(loss: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(loss, weight)
        return torch.cat((loss.detach().view(1), found.flatten()))

    def lwf_loop() -> Tensor:
        whole = net(x)
        return gradient(sum(task.distance(task.part(whole), f, 2.0) for task, f in zip(tasks, old, strict=True)))

    def lwf() -> Tensor:
        return gradient(sum_of_distances(tasks, net.outputs(x, tasks), old, 2.0))

    def xder_loop() -> Tensor:
        return gradient(sum(supcon(head.unsqueeze(0), labels, 5.0) for head in net(x).split(2, dim=1)).sum())

    def xder() -> Tensor:
        return gradient(supcon(torch.stack(net(x).split(2, dim=1)), labels, 5.0).sum())

    return [("lwf, 49 old heads", lwf_loop, lwf, 1), ("xder, 50 future heads", xder_loop, xder, 1)]


def posterior() -> list[Item]:
    """An evaluation of pr_bbb, 20 batches of 100."""
    model = method("pr_bbb", "--dataset", "seq-digits", "--val_sample_size", "10")
    batches = [torch.rand(100, 1, 8, 8) for _ in range(20)]

    def anew() -> Tensor:
        with torch.no_grad():
            return torch.cat([model.sampled_outputs(x)[0].flatten() for x in batches])

    def once() -> Tensor:
        with eval_mode(model):
            return anew()

    return [("pr_bbb, a batch of an evaluation", anew, once, 20)]


def measure(loop: Callable[[], Tensor], ours: Callable[[], Tensor], repeats: int) -> tuple[float, float, float]:
    """Median CPU seconds of both, and how far apart they are, in units of the largest entry."""
    expected, found = loop(), ours()
    apart = float((expected - found).abs().max() / expected.abs().max())
    seconds: tuple[list[float], list[float]] = [], []
    for repeat in range(repeats + 1):
        for taken, function in zip(seconds, (loop, ours), strict=True):
            calls = max(1, int(SHORTEST / taken[0])) if repeat else 1
            begin = time.process_time()
            for _ in range(calls):
                function()
            taken.append((time.process_time() - begin) / calls)
    return statistics.median(seconds[0][1:]), statistics.median(seconds[1][1:]), apart


def main() -> int:
    """Print the table; 1 where two do not agree."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", metavar="WORD", help="rows that have this word")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wrong = 0
    print("| | loop, us | at once, us | ratio | apart |\n|---|---|---|---|---|")
    for group in (importance, penalty, gss, gem, heads, posterior):
        for name, loop, ours, units in group():
            if options.only in name:
                a, b, apart = measure(loop, ours, options.repeats)
                wrong += not apart <= TOLERANCE
                print(
                    f"| {name} | {a / units * 1e6:.0f} | {b / units * 1e6:.0f} | {a / b:.1f} | {apart:.0e} |",
                    flush=True,
                )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
