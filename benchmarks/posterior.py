"""Training steps of posterior meta-replay beside one written as loops over tasks and samples.

    python -m benchmarks.posterior [--repeats 5]

Both do the same: `pr_bbb` with the squared error of (mu, rho) as its regulariser, S weight samples, Adam. The loop
calls the hypernetwork once per task, handles each weight tensor by itself and runs the network once per sample. Prints
milliseconds per step at the first and the tenth task, and the ratio; the two are measured in turns, the fastest of each
counts.
"""

import argparse
import shlex
import time

import torch
import torch.nn.functional as F
from torch import nn

from palimpsest.models.pr_bbb import PRBBB
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import enter_task

COMMON = "--model pr-bbb --disable_log --non_verbose --num_threads 1 --kl_scale 0.001 --beta 1"
CHUNKED = (
    f"{COMMON} --dataset perm-fmnist --pad 2 --identity_first --n_tasks 10 --backbone mnistmlp --mlp_hidden_size 1000 "
    "--batch_size 128 --hnet_arch '' --cond_emb_size 64 --chunk_size 32000 --chunk_emb_size 32 --use_cond_chunk_embs"
)
CASES = {
    "seq-gmm2d, 10-10, full hypernetwork 50-50, S = 10": (
        f"{COMMON} --dataset seq-gmm2d --hnet_arch 50,50 --cond_emb_size 32 --train_sample_size 10", 200),
    "perm-fmnist, 1000-1000, chunks of 32000, mse, S = 1": (f"{CHUNKED} --train_sample_size 1", 3),
    "perm-fmnist, 1000-1000, chunks of 32000, mse, S = 10": (f"{CHUNKED} --train_sample_size 10", 2),
}  # fmt: skip


class Naive:
    """The same training step as loops, with the model's own weights copied."""

    def __init__(self, model: PRBBB, tasks: int):
        hyper, self.model, self.tasks = model.hyper, model, tasks
        self.layers = [nn.Linear(layer.in_features, layer.out_features) for layer in hyper.layers]
        for mine, layer in zip(self.layers, hyper.layers, strict=True):
            mine.load_state_dict(layer.state_dict())
        self.embeddings = [nn.Parameter(e.detach().clone()) for e in hyper.embeddings]
        self.chunks = [nn.Parameter(c.detach().clone()) for c in hyper.chunk_embeddings]
        parameters = [p for layer in self.layers for p in layer.parameters()] + self.embeddings + self.chunks
        self.opt = torch.optim.Adam(parameters, lr=model.args.lr)
        with torch.no_grad():
            self.targets = [[w.clone() for w in self.hypernetwork(j)] for j in range(tasks - 1)]

    def hypernetwork(self, task: int) -> list[torch.Tensor]:
        """Weight tensors of a task: means, then rhos."""
        h, hyper = self.embeddings[task].unsqueeze(0), self.model.hyper
        if hyper.chunk:
            chunks = self.chunks[task if hyper.conditional else 0]
            h = torch.cat([h.expand(len(chunks), -1), chunks], 1)
        for layer in self.layers[:-1]:
            h = hyper.activation(layer(h))
        flat = self.layers[-1](h).flatten()[: hyper.outputs]
        shapes = list(self.model.net.shapes.values()) * 2
        return [p.view(s) for p, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]

    def distance(self, m_old, rho_old, m_new, rho_new) -> torch.Tensor:
        """Of one weight tensor."""
        if self.model.args.reg == "mse":
            return (m_old - m_new).square().sum() + (rho_old - rho_new).square().sum()
        v_old, v_new = (F.softplus(rho - 2.5).square() for rho in (rho_old, rho_new))
        return 0.5 * ((v_old + (m_old - m_new).square()) / v_new - 1 + v_new.log() - v_old.log()).sum()

    def step(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        model, args, t = self.model, self.model.args, self.tasks - 1
        self.opt.zero_grad()
        tensors = self.hypernetwork(t)
        n = len(tensors) // 2
        means, stds = tensors[:n], [F.softplus(rho - 2.5) for rho in tensors[n:]]
        low, high = model.head(t)
        nll = 0.0
        for _ in range(args.train_sample_size):
            weights = [m + s * torch.randn_like(s) for m, s in zip(means, stds, strict=True)]
            h = x.flatten(1)
            for i in range(0, n - 2, 2):
                h = torch.relu(F.linear(h, weights[i], weights[i + 1]))
            out = F.linear(h, weights[-2], weights[-1])[:, low:high]
            nll = nll + F.cross_entropy(out, y)
        loss = model.n_train * nll / args.train_sample_size
        for m, s in zip(means, stds, strict=True):
            v = s.square()
            loss = loss + args.kl_scale * 0.5 * (m.square() + v - 1 - v.log()).sum()
        regulariser = 0.0
        for j in range(t):
            own = model.own([j])[0].bool() if model.multi else []
            before, now = self.targets[j], self.hypernetwork(j)
            for i in range(n):
                parts = before[i], before[n + i], now[i], now[n + i]
                if len(now[i]) == len(own):
                    parts = tuple(part[own] for part in parts)
                regulariser = regulariser + self.distance(*parts)
        if t:
            loss = loss + args.beta * regulariser / t
        loss.backward()
        self.opt.step()
        return loss


def at_task(command: str, task: int) -> tuple[PRBBB, tuple]:
    """The method in training on its `task`-th task (from 1), the earlier ones begun but not trained."""
    exp = build(resolve(shlex.split(command)))
    model, dataset = exp.model, exp.dataset
    model.train()
    model._current_task = 0
    enter_task(model, dataset, 0)
    model.meta_begin_task(dataset)
    inputs, labels, raw = next(iter(dataset.train_loader))
    while model.n_begun < task:
        model.add_task()
        model.n_begun += 1
    model._current_task = task - 1
    model.multi, model.by_class = model.multi and not model.by_class, False  # more tasks than the stream may have
    if task > 1:
        model.previous.take(model.hyper)
        model._rows = model._rows_of_chunks() if model.hyper.chunk else None
    with torch.no_grad():
        model.targets = model.phi(list(range(task - 1))) if task > 1 else None
    model.reset_optimizers()
    return model, (inputs, labels, raw)


def seconds(step, steps: int) -> float:
    """Per call."""
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    for name, (command, steps) in CASES.items():
        for task in (1, 10):
            torch.manual_seed(0)
            model, batch = at_task(command, task)
            naive = Naive(model, task)
            ours = lambda: model.meta_observe(*batch, 0)  # noqa: B023, E731 - called within this turn
            loops = lambda: naive.step(*batch[:2])  # noqa: B023, E731
            seconds(ours, 2), seconds(loops, 2)
            times = [(seconds(ours, steps), seconds(loops, steps)) for _ in range(repeats)]
            a, b = (min(column) for column in zip(*times, strict=True))
            print(f"{name}, task {task}: {1e3 * a:.2f} ms, as loops {1e3 * b:.2f} ms, {b / a:.2f} times", flush=True)


if __name__ == "__main__":
    main()
