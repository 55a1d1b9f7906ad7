"""A network whose weights come from outside: many weight vectors at once, each applied to the same batch.

What Bayesian methods and hypernetworks need: the weights of a network as one flat vector (P,), in the order of
`parameters()`; S of them are evaluated in one call. The classifier comes last and is cut to the outputs wanted.
"""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from palimpsest.backbone.utils.base import Backbone
from palimpsest.backbone.utils.precision import network_pass
from palimpsest.utils.errors import UserError

LARGEST_CALL = 2**26  # weights in one call, or activations: beyond this, several calls
WIDEST = 4  # entries of a layer, in multiples of those of the inputs: a guess


class ExternalWeights(nn.Module):
    """The structure of a backbone without its weights; has no parameters of its own.

    A fully connected backbone (one that has `plain_layers`) runs as batched matrix products, any other one through
    `torch.func`. The gains of normalisation layers are counted from 1, so that a prior around 0 is one around a network
    that normalises.

    Args:
        net: the backbone; its own weights are dropped.

    Attributes:
        size: P, weights of the network.
        shapes: name -> shape of every tensor, in the order of the flat vector.
        n_outputs, feature_dim: rows and columns of the classifier.
        head_at: where the classifier begins in the flat vector.
        mixed: whether autocast reaches the network: torch's vmap keeps the layers of others in float32.
        n_statistics: entries of the running statistics of all BatchNorm layers (0 without any): all means, then all
            variances.
    """

    def __init__(self, net: Backbone):
        super().__init__()
        template = deepcopy(net).to("meta")
        self.plain_layers, self.mixed = template.plain_layers, template.plain_layers is not None
        self.statistics_of = _externalise_batchnorm(template)
        names = [name for name, _ in template.named_parameters()]
        self.head = f"{net.head_name}."
        if not names[-1].startswith(self.head):
            name = type(getattr(net, "net", net)).__name__
            raise UserError(f"the network {name} does not end in its classifier, which this method needs")
        self._template = (template,)  # only its structure is used: it is no child
        self.shapes = {name: parameter.shape for name, parameter in template.named_parameters()}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.size = sum(self.sizes)
        self.n_outputs, self.feature_dim = self.shapes[f"{self.head}weight"]
        self.head_at = sum(shape.numel() for name, shape in self.shapes.items() if not name.startswith(self.head))
        self.n_statistics = 2 * sum(self.statistics_of.values())
        gains = [len(shape) == 1 and name.endswith("weight") for name, shape in self.shapes.items()]
        centre = [torch.full((size,), float(gain)) for size, gain in zip(self.sizes, gains, strict=True)]
        self.register_buffer("centre", torch.cat(centre) if any(gains) else None, persistent=False)

    # ---- the network

    def forward(
        self, weights: Tensor, x: Tensor, head: tuple[int, int] | None = None, statistics: Tensor | None = None
    ) -> Tensor:
        """Outputs (S, B, C) of S networks.

        Args:
            weights: (S, P).
            x: (B, ...) inputs, the same for all.
            head: (first output, one past the last), all by default.
            statistics: (S, n_statistics) running statistics to normalise with; None: those of the batch.
        """
        return self.apply(weights, x, head, statistics)[0]

    @network_pass
    def apply(
        self, weights: Tensor, x: Tensor, head: tuple[int, int] | None = None, statistics: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As `forward`, and the batch's statistics (S, n_statistics) of the BatchNorm layers where `statistics` is
        None and there are such layers.
        """
        if x.dtype == torch.uint8:
            x = x.float() / 255
        if self.centre is not None:
            weights = weights + self.centre
        parts = self._parts(weights, head)
        if self.plain_layers is not None:
            return self._plain(parts, x), None
        template = self._template[0].train(statistics is None)
        if statistics is not None:
            names = [f"{layer}.running_{kind}" for kind in ("mean", "var") for layer in self.statistics_of]
            parts |= zip(names, statistics.split(2 * list(self.statistics_of.values()), -1), strict=True)
        if statistics is not None or not self.statistics_of:
            return vmap(lambda p: functional_call(template, p, (x,)))(parts), None

        def with_statistics(p):
            out = functional_call(template, p, (x,))
            layers = [layer for layer in template.modules() if isinstance(layer, ExternalBatchNorm)]
            means, variances = zip(*(layer.seen for layer in layers), strict=True)
            for layer in layers:  # what belongs to this call must not stay in the state
                layer.seen = None
            return out, torch.cat(means + variances)

        return vmap(with_statistics)(parts)

    def initial_statistics(self) -> Tensor:
        """(n_statistics,): means 0, variances 1."""
        return torch.cat([torch.zeros(self.n_statistics // 2), torch.ones(self.n_statistics // 2)])

    def _plain(self, parts: dict[str, Tensor], x: Tensor) -> Tensor:
        h = x.flatten(1).expand(len(parts[f"{self.head}weight"]), -1, -1)
        for name in self.plain_layers:
            h = torch.baddbmm(parts[f"{name}.bias"].unsqueeze(1), h, parts[f"{name}.weight"].transpose(1, 2))
            if name != "classifier":
                h = torch.relu(h)
        return h

    @network_pass
    def local(self, mean: Tensor, variance: Tensor, x: Tensor, head: tuple[int, int], samples: int) -> Tensor:
        """Outputs (S, B, C) by the local reparametrisation trick: every pre-activation is drawn for every example.

        For fully connected networks. Weights are N(mean, diag(variance)), both (P,); a pre-activation is
        N(x m^T + m_b, x^2 v^T + v_b).
        Kingma, Salimans & Welling 2015, eq. 6.
        """
        means, variances = self._parts(mean.unsqueeze(0), head), self._parts(variance.unsqueeze(0), head)
        h = x.flatten(1).expand(samples, -1, -1)
        for name in self.plain_layers:
            weight, bias = f"{name}.weight", f"{name}.bias"
            m = F.linear(h, means[weight][0], means[bias][0])
            v = F.linear(h.square(), variances[weight][0], variances[bias][0])
            h = m + v.clamp(min=1e-16).sqrt() * torch.randn_like(m)
            if name != "classifier":
                h = torch.relu(h)
        return h

    def evaluate(
        self, weights: Tensor, x: Tensor, heads: list[tuple[int, int]], statistics: Tensor | None = None
    ) -> list[Tensor]:
        """Outputs of J posteriors with S weights each, as many networks in a call as memory allows.

        Args:
            weights: (J, S, P).
            heads: (first output, one past the last) of each of the J.
            statistics: (J, n_statistics), or None.

        Returns:
            J tensors (S, B, C_j).
        """
        samples = weights.shape[1]
        if len(heads) == 1 or len({high - low for low, high in heads}) > 1:
            each = [None] * len(heads) if statistics is None else statistics.unsqueeze(1).expand(-1, samples, -1)
            return [self._in_parts(w, x, head, s) for w, head, s in zip(weights, heads, each, strict=True)]
        moved, width = self._with_heads_first(weights, heads).flatten(0, 1), heads[0][1] - heads[0][0]
        given = None if statistics is None else statistics.repeat_interleave(samples, 0)
        return list(self._in_parts(moved, x, (0, width), given).unflatten(0, (len(heads), samples)))

    def _in_parts(self, weights: Tensor, x: Tensor, head: tuple[int, int], statistics: Tensor | None) -> Tensor:
        """As `forward`, so many networks at a time that neither their weights nor their activations, a multiple of the
        inputs, fill the memory.
        """
        most = max(1, LARGEST_CALL // max(self.size, WIDEST * x.numel()))
        groups = weights.split(most)
        given = [None] * len(groups) if statistics is None else statistics.split(most)
        return torch.cat([self(w, x, head, s) for w, s in zip(groups, given, strict=True)])

    def _with_heads_first(self, weights: Tensor, heads: list[tuple[int, int]]) -> Tensor:
        """The same weights (J, S, P) with the head of each of the J in the first rows of its classifier."""
        if all(low == 0 for low, _ in heads):
            return weights
        weights = weights.clone()
        for part in self.head_parts(weights):  # views
            for j, (low, high) in enumerate(heads):
                part[j, :, : high - low] = part[j, :, low:high].clone()
        return weights

    # ---- the flat vector

    def split(self, weights: Tensor) -> dict[str, Tensor]:
        """Views of (..., P) by name, (..., *shape)."""
        pieces = weights.split(self.sizes, -1)
        return {n: p.unflatten(-1, s) for (n, s), p in zip(self.shapes.items(), pieces, strict=True)}

    def head_parts(self, values: Tensor) -> list[Tensor]:
        """Views of the classifier's weight (..., C, F) and bias (..., C) in values (..., P)."""
        return [part for name, part in self.split(values).items() if name.startswith(self.head)]

    def own_sum(self, values: Tensor, own: Tensor | None = None) -> Tensor:
        """Sum over the weights that a task uses: all but the classifier rows of other tasks' heads.

        Args:
            values: (K, P), one number per weight.
            own: (K, C) 1 for the outputs of the task's head, else 0; None: all.

        Returns:
            (K,).
        """
        if own is None:
            return values.sum(-1)
        rows = self.n_outputs * self.feature_dim
        shared, weight, bias = values.split([self.head_at, rows, self.size - self.head_at - rows], -1)
        total = shared.sum(-1) + (weight.unflatten(-1, (self.n_outputs, -1)).sum(-1) * own).sum(-1)
        return total + (bias * own).sum(-1) if bias.shape[-1] else total

    def usual_weights(self) -> Tensor:
        """(P,) a fresh draw as the network itself would be initialised: Xavier-uniform matrices and kernels, the rest 0
        (gains are counted from 1).
        """
        return torch.cat([
            (nn.init.xavier_uniform_(torch.empty(shape)) if len(shape) > 1 else torch.zeros(shape)).flatten()
            for shape in self.shapes.values()
        ])  # fmt: skip

    def _parts(self, weights: Tensor, head: tuple[int, int] | None) -> dict[str, Tensor]:
        parts = self.split(weights)
        if head is not None and head != (0, self.n_outputs):
            for name in parts:
                if name.startswith(self.head):
                    parts[name] = parts[name][:, head[0] : head[1]]
        return parts


class ExternalBatchNorm(nn.Module):
    """BatchNorm that changes nothing: in train mode it normalises by the batch and notes the batch's statistics in
    `seen`, in eval mode by the running ones it is given from outside.
    """

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm):
        super().__init__()
        self.eps, self.seen = layer.eps, None
        self.weight, self.bias = layer.weight, layer.bias
        self.register_buffer("running_mean", layer.running_mean)
        self.register_buffer("running_var", layer.running_var)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        dims = [d for d in range(x.dim()) if d != 1]
        n = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x.detach(), dims, correction=min(1, n - 1))
        self.seen = mean, variance
        return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)


def _externalise_batchnorm(net: nn.Module) -> dict[str, int]:
    """Replace the BatchNorm layers of `net`; their names and channels, in the order of `modules()`."""
    found = {n: m for n, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    for name, layer in found.items():
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, ExternalBatchNorm(layer))
    return {name: layer.num_features for name, layer in found.items()}
