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

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.backbone.utils.precision import network_pass
from palimpsest.backbone.utils.resnet import SmallImageResNet
from palimpsest.utils.args import positive_int


@dataclass
class Trace:
    """What the gates did in one pass over N images: A gates, which belong to G agents.

    Attributes:
        actions: (N, A), 1 kept, 0 dropped.
        v: (N, A), the agents' vectors.
        logp: (N, G), log-probability of each agent's actions.
    """

    actions: Tensor
    v: Tensor
    logp: Tensor


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
        self.agents: Agents | None = None
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
        inputs = [conv.in_channels for block in self.layers[1] for conv in (block.conv1, block.conv2)]
        self.agents = Agents(inputs, 2 * self.nf, hidden_dim_ratio).to(self.classifier.weight)
        self.agents.train(self.training)
        self.gating = True

    @property
    def slices(self) -> list[int]:
        """First gate of each agent, and one past the last gate."""
        return [2 * self.nf * g for g in range(len(self.agents) + 1)]

    def stages(self, x: Tensor) -> list[Tensor]:
        first = self.layers[0](self.stemmed(x))
        second = self._gated_stage(first, self.thresholds(len(x)))[0] if self.gating else self.layers[1](first)
        return [first, second, second.mean((2, 3))]

    @network_pass
    def traced(self, x: Tensor, thresholds: Tensor | None = None) -> tuple[Tensor, Trace]:
        """Logits (N, num_classes) of the gated network, and what the gates did.

        Args:
            x: images, as `forward` takes them.
            thresholds: t (N, A) in place of the network's own: -inf keeps a channel whatever its v, inf drops it.
        """
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        thresholds = self.thresholds(len(x)) if thresholds is None else thresholds
        maps, actions, v = self._gated_stage(self.layers[0](self.stemmed(x)), thresholds)
        logits = self.classifier(maps.mean((2, 3)))
        logp = -F.binary_cross_entropy_with_logits(v / self.temperature, actions, reduction="none")
        return logits, Trace(actions, v, logp.view(len(x), len(self.agents), -1).sum(2))

    def thresholds(self, n: int) -> Tensor:
        """The thresholds t of n images: (n, A), drawn, in training or with `sample`, else (1, A)."""
        gates, device = self.slices[-1], self.classifier.weight.device
        drawn = self.training or self.sample
        u = torch.rand(n, gates, device=device) if drawn else torch.full((1, gates), self.inf_thresh, device=device)
        # u away from 0 and 1: no action is drawn that has a probability below 1e-7, whose log would be a spike.
        return u.logit_(1e-7 if drawn else None).mul_(self.temperature)

    def stemmed(self, x: Tensor) -> Tensor:
        channels = self.stem[0].in_channels
        return self.stem(x if x.shape[1] == channels else x.expand(-1, channels, -1, -1))

    def _gated_stage(self, x: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Maps (N, 2 nf, H, W), actions (N, A), v (N, A)."""
        turns = zip(self.agents.each(), thresholds.chunk(len(self.agents), 1), strict=True)
        actions, vs, reads = [], [], []

        def masked(y: Tensor, read: Tensor) -> Tensor:
            """relu(y a), in the place of y, with a of the agent whose turn it is: it reads `read`."""
            agent, t = next(turns)
            v, *moments = self.agents.ask(agent, read)
            vs.append(v)
            reads.append((read, *moments))
            actions.append((v >= t).to(v.dtype))
            # relu(y + log a) is relu(y a), and its gradient needs no mask of its own.
            return y.add_(actions[-1].log().unsqueeze(2).unsqueeze(3)).relu_()

        for block in self.layers[1]:
            h = masked(block.bn1(block.conv1(x)), x)
            y = block.bn2(block.conv2(h)) + (x if block.shortcut is None else block.shortcut(x))
            x = masked(y, h)
        if self.training or torch.is_grad_enabled():
            v = self.agents(*zip(*reads, strict=True))
        else:
            v = torch.cat(vs, 1)
        return x, torch.cat(actions, 1), v


class Agents(nn.Module):
    """The agents of G convolutions with C outputs each.

    What an agent keeps decides what the next one reads: they are asked one after the other. But gradients reach them
    through v alone, and no v is used before the end of the pass: there all are computed anew, at once, for the graph.
    That graph has a quarter of the small operations of one through each agent; these are most of what agents cost.

    Args:
        inputs: C_in of every agent, the channels that its convolution reads.
        o: C.
        ratio: C over the width H of the bottleneck, which is 1 at least.

    Attributes:
        weights: W^T of every agent, (C_in, C).
        gamma, beta, running_mean, running_var: as in `nn.BatchNorm2d`, (G, C).
        w1, b1, w2, b2: W1^T (G, C, H), (G, H), W2^T (G, H, C), (G, C).
    """

    EPS, MOMENTUM = 1e-5, 0.1

    def __init__(self, inputs: list[int], o: int, ratio: int):
        super().__init__()
        hidden, shape = max(1, o // ratio), (len(inputs), o)
        layers = [(nn.Linear(i, o, bias=False), nn.Linear(o, hidden), nn.Linear(hidden, o)) for i in inputs]
        convolutions, squeezes, excites = zip(*layers, strict=True)
        self.weights = nn.ParameterList(part.weight.detach().t().contiguous() for part in convolutions)
        self.gamma, self.beta = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))
        for i, layers in ((1, squeezes), (2, excites)):
            setattr(self, f"w{i}", nn.Parameter(torch.stack([layer.weight.detach().t() for layer in layers])))
            setattr(self, f"b{i}", nn.Parameter(torch.stack([layer.bias.detach() for layer in layers])))

    def __len__(self) -> int:
        return len(self.weights)

    @torch.no_grad()
    def each(self) -> list[tuple[Tensor, ...]]:
        """W^T, gamma, beta, w1, b1, w2, b2, running mean and variance of one agent after the other."""
        parts = self.gamma, self.beta, self.w1, self.b1, self.w2, self.b2, self.running_mean, self.running_var
        return list(zip(self.weights, *(part.unbind() for part in parts), strict=True))

    @torch.no_grad()
    def ask(self, agent: tuple[Tensor, ...], x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """v (N, C) of one of `each`, whose convolution reads x (N, C_in, H, W), and the moments of x that it takes: the
        mean over the pixels z of an image (N, C_in); in training, where BatchNorm has the statistics of the batch, also
        S, the mean of z z^T over all pixels (C_in, C_in).

        The statistics of W x are then the mean of W pooled and diag(W S W^T) - mean^2: W x, whole maps, need not be
        computed. In float32 that difference loses digits where maps have a mean far above their spread: at 5 beside
        0.05 v is off by some 1e-4, its gradients by 1e-3 of their size.
        """
        w, gamma, beta, w1, b1, w2, b2, mean, variance = agent
        with in_full(x):
            z, second = x.flatten(2).to(w.dtype), None
            pooled = z.mean(2)
            u = pooled @ w
            if self.training:
                second = torch.bmm(z, z.mT).sum(0).mul_(1 / (len(z) * z.shape[2]))
                mean = u.mean(0)
                variance = torch.linalg.vecdot(second @ w, w, dim=0).addcmul_(mean, mean, value=-1).clamp_(min=0)
            m = F.batch_norm(u, mean, variance, gamma, beta, eps=self.EPS)
            gate = torch.addmm(b2, torch.addmm(b1, m, w1).relu_(), w2).sigmoid_()
            return gate.mul_(m), pooled, second

    def forward(self, maps: list[Tensor], pooled: list[Tensor], second: list[Tensor | None]) -> Tensor:
        """v (N, A) of all agents, with a graph, from the maps that their convolutions read and what `ask` took of them.
        In training the running statistics follow those of the batch.
        """
        mean, variance, w = self.running_mean, self.running_var, _padded(self.weights)
        with in_full(maps[0]):
            averages, products = _Moments.apply(_padded(pooled), _padded(second) if self.training else None, *maps)
            u = averages @ w
            if self.training:
                mean = u.mean(1)
                variance = (torch.linalg.vecdot(products @ w, w, dim=1) - mean.square()).clamp(min=0)
                counts = tuple(x.numel() // x.shape[1] for x in maps)
                self.running_mean.lerp_(mean.detach(), self.MOMENTUM)
                self.running_var.lerp_(variance.detach() * _unbiased(counts, w.device, w.dtype), self.MOMENTUM)
            scale = self.gamma * (variance + self.EPS).rsqrt()
            m = torch.addcmul(self.beta.unsqueeze(1), u - mean.unsqueeze(1), scale.unsqueeze(1))
            hidden = F.relu(torch.baddbmm(self.b1.unsqueeze(1), m, self.w1))
            v = m * torch.sigmoid(torch.baddbmm(self.b2.unsqueeze(1), hidden, self.w2))
        return v.transpose(0, 1).flatten(1)


class _Moments(torch.autograd.Function):
    """Ties moments of maps, given, to the maps x (N, C, H, W) in the graph: means over the pixels of each image
    (G, N, C), means of z z^T over all pixels z (G, C, C) or None; zeros stand for channels that a map does not have.

    The gradient at the second is taken to be symmetric, as that of diag(W S W^T) is.
    """

    @staticmethod
    def forward(ctx, pooled: Tensor, second: Tensor | None, *maps: Tensor) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(*maps)
        return pooled.view_as(pooled), None if second is None else second.view_as(second)

    @staticmethod
    def backward(ctx, d_pooled: Tensor, d_second: Tensor | None) -> tuple[Tensor | None, ...]:
        found = []
        for g, x in enumerate(ctx.saved_tensors):
            n, c, pixels = (z := x.flatten(2)).shape
            d = d_pooled[g, :, :c].unsqueeze(2)
            if d_second is None:
                d = (d / pixels).expand(n, c, pixels)
            else:
                product = d_second[g, :c, :c].expand(n, -1, -1)
                d = torch.baddbmm(d, product, z.to(d.dtype), beta=1 / pixels, alpha=2 / n / pixels)
            found.append(d.to(x.dtype).view_as(x))
        return None, None, *found


def in_full(x: Tensor):
    """A block without mixed precision on the device of x. Nothing is entered where it is off: that would take time."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _padded(matrices) -> Tensor:
    """Matrices as one tensor (G, i, j), zeros behind the rows and columns of the smaller ones."""
    rows, columns = (max(m.shape[d] for m in matrices) for d in (0, 1))
    same = [
        m if m.shape == (rows, columns) else F.pad(m, (0, columns - m.shape[1], 0, rows - m.shape[0])) for m in matrices
    ]
    return torch.stack(same)


@cache
def _unbiased(counts: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """n / (n - 1) for each n, (G, 1): once per size of a batch, since numbers have to travel to the device."""
    return torch.tensor([n / max(n - 1, 1) for n in counts], dtype=dtype).to(device).unsqueeze(1)
