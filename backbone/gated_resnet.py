"""The small ResNet of DYNAMOS: two stages of two basic blocks. In its gated form every convolution of the second stage
has an agent that keeps or drops each output channel, for each image apart.

An agent reads the input x of its convolution:

    m = spatial mean of BN(W x)                         W a 1x1 convolution to the C channels that are gated
    v = m * sigmoid(W2 relu(W1 m + b1) + b2)            one number per channel
    a = 1[v >= t],  t = T logit(u), u ~ U(0, 1)         in training: a ~ Bernoulli(p), p = sigmoid(v / T)
                    t = T logit(tau)                    in evaluation: a = 1[p >= tau]

    h = relu(BN(conv1(x)) a_1),  y = relu(BN(conv2(h)) a_2 + shortcut(x) a_2)

A dropped channel is exactly 0, shortcut included. The mask is a constant to the gradient, which reaches the agents
through v and log p alone. Without agents, or with `gating` off, this is the plain network.

Reference: Varma, Arani, Zonooz 2023, "Dynamically Modular and Sparse General Continual Learning".
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.utils.resnet import SmallImageResNet
from utils.args import positive_int


@dataclass
class Trace:
    """What the gates did in one pass over N images: A gates, which belong to G agents.

    Attributes:
        actions: (N, A), 1 kept, 0 dropped.
        v: (N, A), the agents' vectors.
        logp: (N, G), log-probability of each agent's actions.
        slices: G + 1 places, the first gate of each agent and one past the last.
    """

    actions: Tensor
    v: Tensor
    logp: Tensor
    slices: list[int]


class GatedResNet(SmallImageResNet):
    """Plain until `add_agents` is called; `gating` then says whether the gates are used.

    Grey images are repeated to three channels.

    Args:
        in_size: (C, H, W) of the images; any H and W.
        num_classes: logits.
        nf: channels of the first stage; the second has twice as many.
    """

    NAME = "gated-resnet"

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--nf", type=positive_int, default=32, help="channels of the first of two stages")
        return parser

    def __init__(self, in_size: tuple[int, int, int], num_classes: int, nf: int = 32):
        channels = 3 if in_size[0] == 1 else in_size[0]
        super().__init__((channels, *in_size[1:]), num_classes, [nf, 2 * nf], blocks=2, padded=False)
        self.nf = nf
        self.agents = nn.ModuleList()
        self.gating = False

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(in_size, num_classes, args.nf)

    def add_agents(
        self, temperature: float = 0.15, hidden_dim_ratio: int = 16, inf_thresh: float = 0.5, sample: bool = False
    ) -> None:
        """Turn the plain network into the gated one, with the weights it has.

        Args:
            temperature: T.
            hidden_dim_ratio: C over the width of an agent's bottleneck.
            inf_thresh: tau, in [0, 1].
            sample: draw the actions in evaluation too.
        """
        self.temperature, self.inf_thresh, self.sample = temperature, inf_thresh, sample
        convolutions = [conv for block in self.layers[1] for conv in (block.conv1, block.conv2)]
        self.agents.extend(Agent(c.in_channels, c.out_channels, hidden_dim_ratio) for c in convolutions)
        self.agents.to(self.classifier.weight.device)
        self.gating = True

    @property
    def slices(self) -> list[int]:
        """First gate of each agent, and one past the last gate."""
        return list(accumulate((agent.bn.num_features for agent in self.agents), initial=0))

    def stages(self, x: Tensor) -> list[Tensor]:
        first = self._first_stage(x)
        second = self._gated_stage(first, self.thresholds(len(x)))[0] if self.gating else self.layers[1](first)
        return [first, second, second.mean((2, 3))]

    def traced(self, x: Tensor, thresholds: Tensor | None = None) -> tuple[Tensor, Trace]:
        """Logits (N, num_classes) of the gated network, and what the gates did.

        Args:
            x: images, as `forward` takes them.
            thresholds: t (N, A) in place of the network's own: -inf keeps a channel whatever its v, inf drops it.
        """
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        thresholds = self.thresholds(len(x)) if thresholds is None else thresholds
        maps, actions, v = self._gated_stage(self._first_stage(x), thresholds)
        logits = self.classifier(maps.mean((2, 3)))
        logp = -F.binary_cross_entropy_with_logits(v / self.temperature, actions, reduction="none")
        return logits, Trace(actions, v, logp.view(len(x), len(self.agents), -1).sum(2), self.slices)

    def thresholds(self, n: int) -> Tensor:
        """The thresholds t of n images: (n, A), drawn, in training or with `sample`, else (1, A)."""
        gates, device = self.slices[-1], self.classifier.weight.device
        drawn = self.training or self.sample
        u = torch.rand(n, gates, device=device) if drawn else torch.full((1, gates), self.inf_thresh, device=device)
        # u away from 0 and 1: no action is drawn that has a probability below 1e-7, whose log would be a spike.
        return u.logit_(1e-7 if drawn else None).mul_(self.temperature)

    def _first_stage(self, x: Tensor) -> Tensor:
        channels = self.stem[0].in_channels
        return self.layers[0](self.stem(x if x.shape[1] == channels else x.expand(-1, channels, -1, -1)))

    def _gated_stage(self, x: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (N, 2 nf, H, W), actions (N, A), v (N, A)."""
        agents = zip(self.agents, thresholds.chunk(len(self.agents), 1), strict=True)
        actions, vs = [], []

        def masked(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
            vs.append(v)
            actions.append((v.detach() >= t).to(v.dtype))
            # relu(x + log a) is relu(x a), and its gradient needs no mask of its own.
            return x.add_(actions[-1].log().unsqueeze(2).unsqueeze(3)).relu_()

        for block in self.layers[1]:
            (first, t1), (second, t2) = next(agents), next(agents)
            h = masked(block.bn1(block.conv1(x)), first(x), t1)
            y = block.bn2(block.conv2(h)) + (x if block.shortcut is None else block.shortcut(x))
            x = masked(y, second(h), t2)
        return x, torch.cat(actions, 1), torch.cat(vs, 1)


class Agent(nn.Module):
    """The vector v (N, C) of a convolution with C outputs, from its input (N, C_in, H, W).

    Args:
        i, o: C_in and C.
        ratio: C over the width of the bottleneck, which is 1 at least.
    """

    def __init__(self, i: int, o: int, ratio: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(i, o, 1, bias=False), nn.BatchNorm2d(o)
        hidden = max(1, o // ratio)
        self.squeeze, self.excite = nn.Linear(o, hidden), nn.Linear(hidden, o)

    def forward(self, x: Tensor) -> Tensor:
        bn, w = self.bn, self.conv.weight.flatten(1)
        if self.training:
            with torch.autocast(x.device.type, enabled=False):
                m, mean, variance = _PooledNorm.apply(x.to(w.dtype), w, bn.weight, bn.bias, bn.eps)
            n = x.numel() // x.shape[1]
            bn.running_mean.lerp_(mean, bn.momentum)
            bn.running_var.mul_(1 - bn.momentum).add_(variance, alpha=bn.momentum * n / max(n - 1, 1))
        else:
            u = x.mean((2, 3)) @ w.t()
            m = F.batch_norm(u, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        return m * torch.sigmoid(self.excite(F.relu(self.squeeze(m))))


class _PooledNorm(torch.autograd.Function):
    """The spatial mean m (N, C) of BatchNorm(W x) by batch statistics, and these statistics (C,), without computing
    W x: with z the n pixels of x over the whole batch, S = sum z z^T / n, and u the means of W x over an image,

        mu = mean(u),   Var = diag(W S W^T) - mu^2,   m = beta + gamma r (u - mu),   r = (Var + eps)^-1/2

    It saves most of an agent's cost: S is one product forward and one backward, and no map is normalised.
    """

    @staticmethod
    def forward(ctx, x: Tensor, w: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        z = x.flatten(2)
        n = len(z) * z.shape[2]
        pooled = z.mean(2)
        u = pooled @ w.t()
        mu = u.mean(0)
        s = torch.bmm(z, z.transpose(1, 2).contiguous()).sum(0)  # the copy is worth its time
        ws = torch.addmm(w, w, s, beta=0, alpha=1 / n)  # W S
        variance = torch.linalg.vecdot(ws, w).addcmul_(mu, mu, value=-1).clamp_(min=0)
        ctx.save_for_backward(x, w, gamma, pooled, u, mu, ws, variance)
        ctx.mark_non_differentiable(mu, variance)
        ctx.eps = eps
        return F.batch_norm(u, mu, variance, gamma, beta, eps=eps), mu, variance

    @staticmethod
    def backward(ctx, d: Tensor, *_):
        x, w, gamma, pooled, u, mu, ws, variance = ctx.saved_tensors
        z = x.flatten(2)
        n = len(z) * z.shape[2]
        d_u, d_gamma, d_beta = torch.ops.aten.native_batch_norm_backward(
            d, u, gamma, mu, variance, None, None, False, ctx.eps, [True, True, True]
        )  # as if mu and Var were constants
        d_2var = (gamma / (variance + ctx.eps) * d_gamma).neg_().unsqueeze(1)  # twice the gradient at Var
        d_u.sub_(torch.addcmul(d_u.sum(0), d_2var.squeeze(1), mu), alpha=1 / len(z))  # of mu, which is a mean of u
        d_w = torch.addmm(d_2var * ws, d_u.t(), pooled)
        d_s, d_pooled = w.t() @ (d_2var * w), d_u @ w
        d_x = torch.baddbmm(d_pooled.unsqueeze(2), d_s.expand(len(z), -1, -1), z, beta=1 / z.shape[2], alpha=1 / n)
        return d_x.view_as(x), d_w, d_gamma, d_beta, None
