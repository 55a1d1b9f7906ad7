"""Importance of parameters from the gradients of single examples, a whole chunk of examples at a time.

A linear layer that sees one row a of an example has the gradient d a^T there, d that of its output. Sums over examples
of squares or absolute values are then one matrix product, and so are inner products of gradients; no gradient is ever
formed. Only the other parameters have their gradients worked out example by example.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from palimpsest.datasets.utils.task import ClassTask, Task
from palimpsest.utils.errors import UserError

FISHERS = ("mc", "exact", "empirical", "weighted")
HELD_GRADIENTS = 2**26  # entries of per-example gradients in memory at a time
LARGEST_CHUNK, LARGEST_FORMED = 512, 64  # examples at a time: at most, and where gradients of single ones are formed


@dataclass
class ExampleGradients:
    """The gradients of B examples.

    Attributes:
        layers: (name of the weight, name of the bias or None, d (B, out), a (B, in)) of each layer whose weight's
            gradient is d a^T and whose bias's is d.
        others: {parameter's name: (B, ...)} of all other parameters.
    """

    layers: list[tuple[str, str | None, Tensor, Tensor]]
    others: dict[str, Tensor]

    def sums(self, weights: Tensor, power: int) -> dict[str, Tensor]:
        """sum_n w_n |g_n|^power of each parameter, by its name, for weights (B,); power 1 or 2."""

        def raised(x: Tensor) -> Tensor:
            return x.abs() if power == 1 else x * x

        out = {}
        for weight, bias, d, a in self.layers:
            d = raised(d)
            out[weight] = (weights.unsqueeze(1) * d).T @ raised(a)  # |d a^T| = |d| |a|^T
            if bias:
                out[bias] = weights @ d
        for name, g in self.others.items():
            out[name] = (weights @ raised(g.reshape(len(g), -1))).view(g.shape[1:])
        return out

    def gram(self) -> Tensor:
        """(B, B) inner products <g_m, g_n> over all parameters."""
        flat = [g.reshape(len(g), -1) for g in self.others.values()]
        parts = [(d @ d.T) * ((a @ a.T) + bool(bias)) for _, bias, d, a in self.layers]
        return sum(chain(parts, (g @ g.T for g in flat)))


def rank_one_layers(net: nn.Module, x: Tensor) -> dict[nn.Module, str]:
    """The linear layers whose gradient is d a^T for an example, and their names: those that a pass enters once, with
    one row, and whose parameters are no other layer's.

    Args:
        net: in eval mode.
        x: (B, ...) inputs, of which the first is tried.
    """
    linear = {part: name for name, part in net.named_modules() if type(part) is nn.Linear}
    rows: dict[nn.Module, list[int]] = defaultdict(list)
    owners = Counter(id(p) for _, p in net.named_parameters(remove_duplicate=False))

    def note(part: nn.Module, args: tuple, out: Tensor) -> None:
        rows[part].append(out.shape[:-1].numel())

    hooks = [part.register_forward_hook(note) for part in linear]
    with torch.no_grad(), uncompiled(net):
        net(x[:1])
    for hook in hooks:
        hook.remove()
    own = {part for part in linear if all(owners[id(p)] == 1 for p in part.parameters())}
    return {part: name for part, name in linear.items() if part in own and rows[part] == [1]}


@contextmanager
def uncompiled(net: nn.Module) -> Iterator[None]:
    """Inside, a network that was compiled runs as it is written: what is compiled knows nothing of new hooks."""
    if (compiled := net._compiled_call_impl) is not None:
        net._compiled_call_impl = None
    try:
        yield
    finally:
        if compiled is not None:
            net._compiled_call_impl = compiled


def shifted_pass(
    net: nn.Module, x: Tensor, shifts: dict[nn.Module, Tensor], tensors: dict[str, Tensor] | None = None
) -> tuple[Tensor, dict[nn.Module, Tensor]]:
    """f(x), a shift by zero being added to the output of each layer, whose gradient is that of the output; and what
    entered the layers. `tensors` take the place of parameters and buffers.
    """
    entered = {}

    def shift(part: nn.Module, args: tuple, out: Tensor) -> Tensor:
        entered[part] = args[0].detach().to(part.weight.dtype)
        return out + shifts[part]

    # Before the hooks of others, which would otherwise stand between the layer and what is added.
    hooks = [part.register_forward_hook(shift, prepend=True) for part in shifts]
    try:
        with uncompiled(net):
            return functional_call(net, tensors, (x,)) if tensors else net(x), entered
    finally:
        for hook in hooks:
            hook.remove()


def rank_one_gradients(
    net: nn.Module, total: Callable[[Tensor], Tensor], x: Tensor, layers: Iterable[nn.Module]
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """(d (B, out), a (B, in)) of layers that see one row of each example: with total(f(x)) a sum over examples, the
    gradient of the n-th term in the weight is d_n a_n^T; in one pass, for a network where no example sees another.
    """
    shifts = {part: part.weight.new_zeros(len(x), part.out_features).requires_grad_() for part in layers}
    with torch.enable_grad():
        out, a = shifted_pass(net, x, shifts)
        d = torch.autograd.grad(total(out), [*shifts.values()])
    return {part: (d, a[part]) for part, d in zip(shifts, d, strict=True)}


def example_gradients(
    net: nn.Module, value: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, layers: dict[nn.Module, str]
) -> ExampleGradients:
    """The gradient of value(f(x_n), y_n) for each example by itself, at the parameters of now.

    Args:
        net: the network f, in eval mode.
        value: (output of one example, its label) -> scalar.
        x: (B, ...) inputs.
        y: (B, ...) labels.
        layers: `rank_one_layers` for such inputs.
    """
    prefixes = {part: f"{name}." if name else "" for part, name in layers.items()}
    found = {f"{prefix}{name}" for part, prefix in prefixes.items() for name, _ in part.named_parameters()}
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    others = {name: p for name, p in parameters.items() if name not in found}
    if others:
        (gradients, d), a = _one_by_one(net, value, x, y, prefixes, parameters, others)
    else:
        pairs = rank_one_gradients(net, lambda out: vmap(value)(out, y).sum(), x, layers)
        gradients, d, a = {}, *({prefixes[part]: pair[i] for part, pair in pairs.items()} for i in range(2))
    names = [(prefix, f"{prefix}bias" if part.bias is not None else None) for part, prefix in prefixes.items()]
    return ExampleGradients([(f"{prefix}weight", bias, d[prefix], a[prefix]) for prefix, bias in names], gradients)


def _one_by_one(net, value, x, y, prefixes, parameters, others) -> tuple[tuple[dict, dict], dict]:
    """(gradients (B, ...) in `others`, d (B, out) of the layers with these prefixes), a (B, in)."""
    buffers = dict(net.named_buffers())

    def of_one(others: dict[str, Tensor], shifts: dict[str, Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, dict]:
        added = {part: shifts[prefix] for part, prefix in prefixes.items()}
        out, entered = shifted_pass(net, x.unsqueeze(0), added, buffers | parameters | others)
        return value(out[0], y), {prefixes[part]: a[0] for part, a in entered.items()}

    shifts = {prefix: part.weight.new_zeros(part.out_features) for part, prefix in prefixes.items()}
    each = vmap(grad(of_one, argnums=(0, 1), has_aux=True), in_dims=(None, None, 0, 0))
    return each(others, shifts, x, y)


def in_chunks(batches: Iterable[tuple[Tensor, ...]], size: Callable[[Tensor], int]) -> Iterator[tuple[Tensor, ...]]:
    """The same examples, `size(x)` at a time whatever the size of a batch.

    Args:
        batches: (x, ...) as tensors that all have an entry for each example; those of other shapes begin a new chunk.
        size: inputs -> examples of a chunk of such inputs.
    """
    held: list[tuple[Tensor, ...]] = []

    def together() -> Iterator[tuple[Tensor, ...]]:
        n = size(held[0][0])
        yield from zip(*(torch.cat(parts).split(n) for parts in zip(*held, strict=True)), strict=True)
        held.clear()

    for batch in batches:
        if held and [part.shape[1:] for part in held[0]] != [part.shape[1:] for part in batch]:
            yield from together()
        held.append(batch)
        if sum(len(x) for x, *_ in held) >= size(batch[0]):
            yield from together()
    if held:
        yield from together()


def sum_over_gradients(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor, Tensor | None]],
    value: Callable[[Tensor, Tensor], Tensor],
    power: int,
    chunk: int | None = None,
) -> tuple[dict[str, Tensor], int]:
    """sum_n w_n |d value(f(x_n), y_n) / d theta|^power, a tensor for each parameter, by its name; and how many n.

    The network is in eval mode meanwhile: BatchNorm uses its running statistics, so that examples do not see one
    another.

    Args:
        net: the network f.
        batches: (inputs, labels, weights); weights (B,), or None for 1. Asked for lazily, in eval mode.
        value: (output of one example, its label) -> scalar.
        power: 1 or 2.
        chunk: examples at a time, whatever the size of a batch: by default 512 where no gradient is formed, else 64, or
            as many as have `HELD_GRADIENTS` entries together.
    """
    total = {name: torch.zeros_like(p, requires_grad=False) for name, p in net.named_parameters()}
    training, count, like = [part for part in net.modules() if part.training], 0, next(net.parameters())
    net.eval()
    layers: dict[torch.Size, dict[nn.Module, str]] = {}  # by the shape of an example

    def weighted() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for x, y, weights in batches:
            if x.shape[1:] not in layers:
                layers[x.shape[1:]] = rank_one_layers(net, x)
            yield x, y, like.new_ones(len(x)) if weights is None else weights

    def at_once(x: Tensor) -> int:
        never = sum(p.numel() for part in layers[x.shape[1:]] for p in part.parameters())
        formed = sum(p.numel() for p in net.parameters()) - never
        return chunk or (min(LARGEST_FORMED, max(1, HELD_GRADIENTS // formed)) if formed else LARGEST_CHUNK)

    for x, y, weights in in_chunks(weighted(), at_once):
        count += len(x)
        for name, part in example_gradients(net, value, x, y, layers[x.shape[1:]]).sums(weights, power).items():
            total[name] += part
    for part in training:
        part.training = True
    return total, count


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
        chunk: examples at a time, see `sum_over_gradients`.

    Returns:
        (P,) in the order of `net.parameters()`.

    Raises:
        UserError: 'exact' or 'weighted' for several labels per input.

    References: Kunstner et al. 2019, and van de Ven 2025 (arXiv 2502.11756), on how the kinds differ.
    """
    task, n_examples = task or ClassTask(), 0

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

    total, _ = sum_over_gradients(net, labelled(), log_likelihood, power=2, chunk=chunk)
    return torch.cat([value.flatten() for value in total.values()]) / n_examples


def check_fisher(stream, kind: str) -> None:
    """Refuse a kind of Fisher information that is not defined for the tasks of a stream.

    Raises:
        UserError: names the option.
    """
    for task in stream.pools(stream.N_TASKS):
        if kind not in task.FISHERS:
            others, name = " or ".join(task.FISHERS), task.name or task.NAME
            raise UserError(f"--ewc_fisher {kind} is not defined for the {name} tasks of {stream.NAME}: give {others}")
