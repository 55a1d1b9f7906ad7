"""Per-example squared gradients, a whole chunk of examples at a time."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap


def fisher_diagonal(
    net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], weight_by_probability: bool, chunk: int = 64
) -> Tensor:
    """Mean over the examples of the squared gradient of log p(y | x), one entry per parameter.

    F = (1/N) * sum_n w_n * (d log p(y_n | x_n) / d theta)^2, with w_n = 1 (empirical Fisher) or w_n = p(y_n | x_n).

    The network is put in eval mode meanwhile: BatchNorm uses its running statistics, so that examples do not see
        one another.

    Args:
        net: network with logits as output.
        batches: (inputs, labels) pairs.
        weight_by_probability: weight each example by the probability it gives its own label.
        chunk: examples whose gradients are held at a time (memory: chunk * parameters).

    Returns:
        (P,) in the order of `net.parameters()`.
    """
    was_training = net.training
    net.eval()
    names = [name for name, _ in net.named_parameters()]
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def log_likelihood(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(net, (params, buffers), (x.unsqueeze(0),))
        return torch.log_softmax(logits, dim=1)[0].gather(0, y.unsqueeze(0)).squeeze(0)

    per_example = vmap(grad_and_value(log_likelihood), in_dims=(None, 0, 0))
    total, count = {name: torch.zeros_like(p) for name, p in parameters.items()}, 0
    for inputs, labels in batches:
        for x, y in zip(inputs.split(chunk), labels.split(chunk), strict=True):
            gradients, value = per_example(parameters, x, y)
            weight = value.exp() if weight_by_probability else torch.ones_like(value)
            for name in names:
                g = gradients[name].flatten(1)
                total[name] += torch.einsum("n,np,np->p", weight, g, g).view_as(total[name])
            count += len(x)
    net.train(was_training)
    return torch.cat([total[name].flatten() for name in names]) / count
