"""Time per iteration of the runner against a hand-written loop that does the same arithmetic, in one process.

python -m benchmarks.overhead [--iterations 1000] [--repeats 5]

Both loops gather uint8 images by index, scale them, replay from a reservoir of 500, and step SGD on an MLP
784-100-100-10. The runner's time is that of `utils.run.training.train` over one task without the evaluation at its end.
The two alternate; the ratio printed is the median over the repeats.
"""

import argparse
import statistics
import time
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.utils.record import Evaluation
from palimpsest.utils.run import training
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build

METHODS = {"sgd": "", "er": "--buffer_size 500", "derpp": "--buffer_size 500 --alpha 1.0 --beta 0.5"}


def runner_seconds(method: str, batch_size: int, iterations: int, dataset: str) -> float:
    """Seconds per iteration of the runner's own loop."""
    command = (
        f"--model {method} --dataset {dataset} --backbone mnistmlp --lr 0.1 --batch_size {batch_size} --device cpu "
        f"--fitting_mode iters --n_iters {iterations} --stop_after 1 --disable_log --non_verbose --num_threads 1"
    )
    exp = build(resolve([*command.split(), *METHODS[method].split()]))
    nothing = Evaluation(0, 0, None, {})
    with mock.patch.object(training, "evaluate_run", return_value=nothing):
        begin = time.perf_counter()
        training.train(exp)
        return (time.perf_counter() - begin) / iterations


def bare_seconds(method: str, batch_size: int, iterations: int, images, labels) -> float:
    """Seconds per iteration of a loop that knows nothing of tasks, methods or logs."""
    torch.manual_seed(0)
    pixels = images[0].numel()
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(pixels, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10)
    )
    opt = torch.optim.SGD(net.parameters(), lr=0.1)
    stored_x = torch.zeros(500, *images.shape[1:], dtype=torch.uint8)
    stored_y, stored_z = torch.zeros(500, dtype=torch.int64), torch.zeros(500, 10)
    seen = step = 0
    begin = time.perf_counter()
    while step < iterations:
        for index in torch.randperm(len(images)).split(batch_size):
            raw, y = images[index], labels[index]
            x = raw.float() / 255
            opt.zero_grad()
            replay = method != "sgd" and seen > 0
            if method == "er" and replay:
                rows = torch.randperm(min(seen, 500))[:batch_size]
                loss = F.cross_entropy(
                    net(torch.cat([x, stored_x[rows].float() / 255])), torch.cat([y, stored_y[rows]])
                )
            else:
                logits = net(x)
                loss = F.cross_entropy(logits, y)
                if method == "derpp" and replay:
                    rows = torch.randperm(min(seen, 500))[:batch_size]
                    loss = loss + F.mse_loss(net(stored_x[rows].float() / 255), stored_z[rows])
                    rows = torch.randperm(min(seen, 500))[:batch_size]
                    loss = loss + 0.5 * F.cross_entropy(net(stored_x[rows].float() / 255), stored_y[rows])
            loss.backward()
            opt.step()
            if method != "sgd":
                place = torch.arange(seen, seen + len(y))
                draw = torch.where(place < 500, place, (torch.rand(len(y)) * (place + 1)).long())
                keep = draw < 500
                stored_x[draw[keep]], stored_y[draw[keep]] = raw[keep], y[keep]
                if method == "derpp":
                    stored_z[draw[keep]] = logits.detach()[keep]
                seen += len(y)
            step += 1
            if step == iterations:
                break
    return (time.perf_counter() - begin) / iterations


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--iterations", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dataset", default="seq-fmnist")
    options = parser.parse_args()
    torch.set_num_threads(1)
    exp = build(resolve(["--model", "sgd", "--dataset", options.dataset, "--num_threads", "1", "--device", "cpu"]))
    data = exp.dataset.task_data(0)
    images, labels = data.data, data.targets
    print("| method | batch | runner it/s | bare it/s | time ratio (median) | lowest | highest |")
    print("|---|---|---|---|---|---|---|")
    for method in METHODS:
        for batch_size in (10, 32, 128):
            ours, bare = [], []
            for repeat in range(options.repeats + 1):
                a = runner_seconds(method, batch_size, options.iterations, options.dataset)
                b = bare_seconds(method, batch_size, options.iterations, images, labels)
                if repeat:  # the first pair warms up
                    ours.append(a)
                    bare.append(b)
            ratios = [a / b for a, b in zip(ours, bare, strict=True)]
            print(
                f"| {method} | {batch_size} | {1 / statistics.median(ours):.0f} | {1 / statistics.median(bare):.0f} "
                f"| {statistics.median(ratios):.2f} | {min(ratios):.2f} | {max(ratios):.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
