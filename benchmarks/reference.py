"""An independent implementation of five methods on Split Fashion-MNIST, and the runner beside it.

python -m benchmarks.reference [--seeds 0 1 2 3 4] [--methods sgd er derpp ewc_on joint]

The reference half shares no code with the runner: it reads the files itself, inserts into the reservoir one example
at a time, computes the Fisher information one example at a time, and evaluates by plain loops. Its random numbers
are its own, so the two halves agree in distribution, not digit by digit. Protocol: 5 tasks x 2 classes, MLP
784-100-100-10, 1 epoch, batch 10, SGD lr 0.1, buffer 500, minibatch 10.
"""

import argparse
import contextlib
import copy
import gzip
import io
import random
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn

OPTIONS = {
    "sgd": [],
    "joint": [],
    "er": ["--buffer_size", "500", "--minibatch_size", "10"],
    "derpp": ["--buffer_size", "500", "--minibatch_size", "10", "--alpha", "0.5", "--beta", "0.5"],
    "ewc_on": ["--e_lambda", "10", "--gamma", "1.0", "--ewc_update", "explicit"],
}


def read(folder: Path) -> tuple[torch.Tensor, ...]:
    """Train images and labels, test images and labels."""

    def idx(name: str, offset: int) -> np.ndarray:
        return np.frombuffer(gzip.decompress((folder / name).read_bytes()), np.uint8, offset=offset)

    out = []
    for part in ("train", "t10k"):
        out.append(torch.from_numpy(idx(f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 784).copy()).float() / 255)
        out.append(torch.from_numpy(idx(f"{part}-labels-idx1-ubyte.gz", 8).astype(np.int64)))
    return tuple(out)


def reference_run(method: str, seed: int, data: tuple[torch.Tensor, ...]) -> dict[str, float]:
    """Final class-IL and task-IL accuracy and their forgetting (percent) of one seed."""
    train_x, train_y, test_x, test_y = data
    torch.manual_seed(1000 + seed)
    random.seed(1000 + seed)
    layers = [nn.Linear(784, 100), nn.Linear(100, 100), nn.Linear(100, 10)]
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    memory, seen = [], 0
    fisher = anchor = None
    cil, til = np.full((5, 5), np.nan), np.full((5, 5), np.nan)

    def sgd_step(loss):
        net.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in net.parameters():
                p -= 0.1 * p.grad

    def ce(x, y):
        return -torch.log_softmax(net(x), 1)[torch.arange(len(y)), y].mean()

    tasks = [list(range(10))] if method == "joint" else [[2 * t, 2 * t + 1] for t in range(5)]
    for t, classes in enumerate(tasks):
        rows = [i for i, y in enumerate(train_y.tolist()) if y in classes]
        random.shuffle(rows)
        for start in range(0, len(rows), 10):
            batch = rows[start : start + 10]
            x, y = train_x[batch], train_y[batch]
            logits = None
            if method == "er" and memory:
                old = random.sample(memory, min(10, len(memory)))
                bx, by = torch.stack([m[0] for m in old]), torch.stack([m[1] for m in old])
                loss = ce(torch.cat([x, bx]), torch.cat([y, by]))
            elif method == "derpp":
                logits = net(x)
                loss = -torch.log_softmax(logits, 1)[torch.arange(len(y)), y].mean()
                if memory:
                    old = random.sample(memory, min(10, len(memory)))
                    gap = net(torch.stack([m[0] for m in old])) - torch.stack([m[2] for m in old])
                    loss = loss + 0.5 * (gap**2).mean()
                    old = random.sample(memory, min(10, len(memory)))
                    loss = loss + 0.5 * ce(torch.stack([m[0] for m in old]), torch.stack([m[1] for m in old]))
            else:
                loss = ce(x, y)
            if fisher is not None:
                loss = loss + 10 * sum(
                    (f * (p - a) ** 2).sum() for f, p, a in zip(fisher, net.parameters(), anchor, strict=True)
                )
            sgd_step(loss)
            if method in ("er", "derpp"):
                for k in range(len(batch)):
                    item = (x[k], y[k], None if logits is None else logits[k].detach().clone())
                    if len(memory) < 500:
                        memory.append(item)
                    else:
                        place = random.randint(0, seen)
                        if place < 500:
                            memory[place] = item
                    seen += 1
        if method == "ewc_on":
            new = [torch.zeros_like(p) for p in net.parameters()]
            for i in rows:
                net.zero_grad()
                log_p = torch.log_softmax(net(train_x[i : i + 1]), 1)[0, train_y[i]]
                log_p.backward()
                for f, p in zip(new, net.parameters(), strict=True):
                    f += log_p.detach().exp() * p.grad**2
            new = [f / len(rows) for f in new]
            fisher = new if fisher is None else [a + b for a, b in zip(fisher, new, strict=True)]
            anchor = copy.deepcopy([p.detach() for p in net.parameters()])
        last = 4 if method == "joint" else t
        with torch.no_grad():
            for j in range(last + 1):
                mask = (test_y == 2 * j) | (test_y == 2 * j + 1)
                scores, truth = net(test_x[mask]), test_y[mask]
                cil[last, j] = 100 * (scores[:, : 2 * last + 2].argmax(1) == truth).float().mean().item()
                til[last, j] = 100 * (scores[:, 2 * j : 2 * j + 2].argmax(1) + 2 * j == truth).float().mean().item()
    out = {}
    for name, r in (("class-il", cil), ("task-il", til)):
        out[f"{name} acc"] = r[4].mean()
        if method != "joint":
            out[f"{name} forgetting"] = np.mean([r[i:, i].max() - r[4, i] for i in range(4)])
    return out


def runner_run(method: str, seed: int) -> dict[str, float]:
    """The same figures from the runner."""
    from palimpsest.utils.run.config import resolve
    from palimpsest.utils.run.experiment import execute

    argv = ["--model", method, "--dataset", "seq-fmnist", "--lr", "0.1", "--batch_size", "10", "--n_epochs", "1"]
    argv += ["--seed", str(seed), "--disable_log", "--non_verbose", "--num_threads", "1", *OPTIONS[method]]
    with contextlib.redirect_stdout(io.StringIO()):
        _, summary = execute(resolve(argv))
    return {f"{s} {m}": v for s, values in summary.items() for m, v in values.items() if m in ("acc", "forgetting")}


def main() -> None:
    """Print mean and standard deviation of both halves and Welch's p."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = read(options.data)
    print("| method | figure | runner | independent | Welch p |\n|---|---|---|---|---|")
    for method in options.methods:
        ours = [runner_run(method, s) for s in options.seeds]
        theirs = [reference_run(method, s, data) for s in options.seeds]
        for figure in theirs[0]:
            a, b = (np.array([r[figure] for r in rs]) for rs in (ours, theirs))
            p = stats.ttest_ind(a, b, equal_var=False).pvalue
            print(
                f"| {method} | {figure} | {a.mean():.2f} ± {a.std(ddof=1):.2f} | {b.mean():.2f} ± {b.std(ddof=1):.2f} "
                f"| {p:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
