"""Importance of parameters from per-example gradients, a whole chunk of examples at a time."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parameters_to_vector

from palimpsest.datasets.utils.task import ClassTask, Task
from palimpsest.utils.errors import UserError

FISHERS = ("mc", "exact", "empirical", "weighted")
HELD_GRADIENTS = 2**26  # entries of per-example gradients in memory at a time


def per_example_gradients(
    net: nn.Module, value: Callable[[Tensor, Tensor], Tensor]
) -> Callable[[Tensor, Tensor], dict[str, Tensor]]:
    """A function (inputs (B, ...), labels (B, ...)) -> {parameter's name: (B, ...)}, the gradient of
    value(f(x_n), y_n) for each example by itself, at the parameters of now; for a network in eval mode.

    Args:
        net: the network f.
        value: (output of one example, its label) -> scalar.
    """
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def of_one(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return value(functional_call(net, (params, buffers), (x.unsqueeze(0),))[0], y)

    return partial(vmap(grad(of_one), in_dims=(None, 0, 0)), parameters)


def sum_over_gradients(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    value: Callable[[Tensor, Tensor], Tensor],
    power: int,
    chunk: int = 64,
) -> dict[str, Tensor]:
    """sum_n w_n |d value(f(x_n), y_n) / d theta|^power, one tensor for each parameter, by its name.

    The network is in eval mode meanwhile: BatchNorm uses its running statistics, so that examples do not see one
    another.

    Args:
        net: the network f.
        batches: (inputs, labels, weights); weights (B,), or None for 1. Asked for lazily, in eval mode.
        value: (output of one example, its label) -> scalar.
        power: 1 or 2.
        chunk: examples whose gradients are held at a time (memory: chunk * parameters).
    """
    gradients_of = per_example_gradients(net, value)
    total = {name: torch.zeros_like(p, requires_grad=False) for name, p in net.named_parameters()}
    training = [part for part in net.modules() if part.training]
    net.eval()
    for inputs, labels, weights in batches:
        weights = torch.ones(len(inputs), device=inputs.device) if weights is None else weights
        for x, y, w in zip(inputs.split(chunk), labels.split(chunk), weights.split(chunk), strict=True):
            for name, g in gradients_of(x, y).items():
                g = g.reshape(len(x), -1)
                total[name] += (w @ (g.abs() if power == 1 else g * g)).view_as(total[name])
    for part in training:
        part.training = True
    return total


def fisher_diagonal(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    kind: str = "mc",
    task: Task | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Diagonal of the Fisher information of p(y | x): the mean over the inputs of E_y (d log p(y | x) / d theta)^2.

    Where an input has several labels (the tokens of a sequence), log p is the sum over its labelled positions.

    Args:
        net: the network.
        batches: (inputs, labels) pairs, labels (B,) or (B, L).
        kind: which y. 'exact': all classes, weighted by the network's own p, one backward pass per class; 'mc': one
            y drawn from p, an unbiased estimate of the same; 'empirical': the data's own label; 'weighted': the
            data's own label, its square weighted by p(y | x) (no Fisher information, but what the code behind many
            published hyperparameters computes).
        task: what the outputs mean: its part of them, labels drawn from p, and log p; a softmax over all by default.
        chunk: examples whose gradients are held at a time; by default 64, fewer for a large network.

    Returns:
        (P,) in the order of `net.parameters()`.

    Raises:
        UserError: 'exact' or 'weighted' for several labels per input.

    References: Kunstner et al. 2019, and van de Ven 2025 (arXiv 2502.11756), on how the kinds differ.
    """
    task, n_examples = task or ClassTask(), 0
    chunk = chunk or max(1, min(64, HELD_GRADIENTS // sum(p.numel() for p in net.parameters())))

    def labelled() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        nonlocal n_examples
        for x, y in batches:
            n_examples += len(x)
            with torch.no_grad():
                outputs = None if kind == "empirical" else task.part(net(x))
            if kind == "empirical":
                yield x, y, None
            elif kind == "mc":
                yield x, task.sample(outputs, y), None
            elif kind not in task.FISHERS or y.dim() > 1:
                raise UserError(f"the '{kind}' Fisher information needs one label per input: use mc or empirical")
            elif kind == "weighted":
                yield x, y, torch.softmax(outputs, dim=-1).gather(1, task.position(y).unsqueeze(1)).squeeze(1)
            else:
                for c, p in enumerate(torch.softmax(outputs, dim=-1).unbind(1)):
                    yield x, task.class_at(torch.full_like(y, c)), p

    def log_likelihood(output: Tensor, y: Tensor) -> Tensor:
        return task.log_likelihood(task.part(output), y)

    total = sum_over_gradients(net, labelled(), log_likelihood, power=2, chunk=chunk)
    return parameters_to_vector(total.values()) / n_examples


def check_fisher(stream, kind: str) -> None:
    """Refuse a kind of Fisher information that is not defined for the tasks of a stream.

    Raises:
        UserError: names the option.
    """
    for task in stream.pools(stream.N_TASKS):
        if kind not in task.FISHERS:
            others, name = " or ".join(task.FISHERS), task.name or task.NAME
            raise UserError(f"--ewc_fisher {kind} is not defined for the {name} tasks of {stream.NAME}: give {others}")
