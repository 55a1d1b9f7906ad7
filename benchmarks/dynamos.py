"""What the gates of DYNAMOS cost in training, and what they save at inference.

    python -m benchmarks.dynamos [--steps 60] [--repeats 5] [--images 200] [--train 400]

Training: `observe` of dynamos against derpp_single, the same network and replay without gates, step by step in turns on
one thread; the ratio is the median over pairs of neighbouring steps, of processor time, which other programs disturb
less than the clock. Inference: the network without gates, with masks, and with dropped channels left out, by batch
size; first trained for a while, so that the gates keep what they keep. Its share of kept channels is printed beside.
"""

import argparse
import statistics
import time

import torch

from palimpsest.backbone.utils.sparse_inference import SparseNet
from palimpsest.models.utils.gates.losses import dense_macs, kept_fractions, kept_macs
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import enter_task

OPTIONS = "--buffer_size 500 --alpha 0.2 --beta 2 --lr 0.07 --num_threads 1 --device cpu --disable_log --non_verbose"


class Steps:
    """A method in its first task, one step at a time."""

    def __init__(self, method: str, dataset: str, batch_size: int):
        argv = ["--model", method, "--dataset", dataset, "--batch_size", str(batch_size), *OPTIONS.split()]
        exp = build(resolve(argv))
        self.model, self.dataset = exp.model, exp.dataset
        enter_task(exp.model, exp.dataset, 0)
        exp.model.meta_begin_task(exp.dataset)
        self.batches = self.endless()

    def endless(self):
        """Batches of the task, over and over."""
        epoch = 0
        while True:
            yield from self.dataset.train_loader.epoch(epoch)
            epoch += 1

    def seconds(self) -> float:
        """Processor time of one step."""
        batch = next(self.batches)
        begin = time.process_time()
        self.model.meta_observe(*batch, 0)
        return time.process_time() - begin


def training(dataset: str, batch_size: int, steps: int, repeats: int) -> tuple[float, float, list[float]]:
    """Milliseconds of a step without and with gates, and the ratio of each repeat."""
    plain, gated = Steps("derpp_single", dataset, batch_size), Steps("dynamos", dataset, batch_size)
    for _ in range(10):
        plain.seconds(), gated.seconds()
    all_pairs, ratios = [], []
    for _ in range(repeats):
        pairs = [(plain.seconds(), gated.seconds()) for _ in range(steps)]
        ratios.append(statistics.median(b / a for a, b in pairs))
        all_pairs += pairs
    return *(1000 * statistics.median(column) for column in zip(*all_pairs, strict=True)), ratios


@torch.no_grad()
def inference(steps: Steps, images: int) -> list[tuple[str, int, float]]:
    """(path, batch size, milliseconds per image)."""
    steps.dataset.extend_test_loaders(0)
    x = next(iter(steps.dataset.test_loaders[0]))[0][:images]
    net = steps.model.net.eval()
    _, trace = net.traced(x)
    kept = kept_fractions(trace.actions, len(net.agents))
    shape = net.nf, tuple(x.shape[2:]), net.num_classes
    macs = kept_macs(kept, *shape).mean().item() / dense_macs(*shape)
    each = ", ".join(f"{k:.2f}" for k in kept.mean(0).tolist())
    print(f"kept by the agents: {each}; multiply-accumulates of the plain network that remain: {macs:.2f}")
    sparse = SparseNet(net)
    logits = net(x)
    largest, scale = (sparse(x) - logits).abs().max().item(), logits.abs().max().item()
    print(f"largest difference of a logit, masked and left out: {largest:.1e}, of logits up to {scale:.1f}")

    def plain(x):
        net.gating = False
        out = net(x)
        net.gating = True
        return out

    rows = [
        ("plain", plain, 1),
        ("masked", net, 1),
        ("left out", sparse, 1),
        ("plain", plain, 256),
        ("masked", net, 256),
    ]
    times = {(name, size): [] for name, _, size in rows}
    for repeat in range(6):
        for name, run, size in rows:
            begin = time.perf_counter()
            for part in x.split(size):
                run(part)
            if repeat:  # the first warms up
                times[name, size].append(time.perf_counter() - begin)
    return [(name, size, 1000 * min(t) / len(x)) for (name, size), t in times.items()]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--train", type=int, default=400, help="steps before inference is timed")
    parser.add_argument("--dataset", default="seq-fmnist")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| batch | derpp_single ms | dynamos ms | ratio (median) | lowest | highest |")
    print("|---|---|---|---|---|---|")
    for batch_size in (10, 16):
        plain, gated, ratios = training(options.dataset, batch_size, options.steps, options.repeats)
        print(
            f"| {batch_size} | {plain:.1f} | {gated:.1f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} "
            f"| {max(ratios):.2f} |",
            flush=True,
        )
    steps = Steps("dynamos", options.dataset, 10)
    for _ in range(options.train):
        steps.seconds()
    rows = inference(steps, options.images)
    print("| path | batch | ms per image | against plain |")
    print("|---|---|---|---|")
    base = {size: ms for name, size, ms in rows if name == "plain"}
    for name, size, ms in rows:
        print(f"| {name} | {size} | {ms:.3f} | {ms / base[size]:.2f} |")


if __name__ == "__main__":
    main()
