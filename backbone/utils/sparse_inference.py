"""The gated network at inference, one image at a time, with what the gates drop left out of the computation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.backbone.gated_resnet import GatedResNet


class SparseNet:
    """A gated network as it is now: BatchNorm is folded into the convolutions, an agent pools before its 1x1
    convolution, and a convolution gathers the weights of the channels that are kept, on both of its sides.

    Its logits are those of the network in eval mode up to rounding. To be made anew once the network has changed.

    Args:
        net: in eval mode, with agents.
    """

    @torch.no_grad()
    def __init__(self, net: GatedResNet):
        self.net = net
        self.stem = _folded(net.stem[0], net.stem[1])
        self.plain = [(_folded(b.conv1, b.bn1), _folded(b.conv2, b.bn2)) for b in net.layers[0]]
        self.blocks = [
            (_folded(b.conv1, b.bn1), _folded(b.conv2, b.bn2), b.conv1.stride[0], b.shortcut and _folded(*b.shortcut))
            for b in net.layers[1]
        ]
        self.agents = [list(agent) for agent in net.agents.each()]
        for agent in self.agents:
            w, gamma, beta, *bottleneck, mean, variance = agent
            scale = gamma * (variance + net.agents.EPS).rsqrt()
            agent[:] = w * scale, beta - mean * scale, *bottleneck

    @torch.no_grad()
    def __call__(self, x: Tensor, thresholds: Tensor | None = None) -> Tensor:
        """Logits (N, num_classes) of images (N, C, H, W), as the network takes them, one after the other.

        Args:
            thresholds: t (N, A) in place of the network's own.
        """
        x = x.float() / 255 if x.dtype == torch.uint8 else x
        t = (self.net.thresholds(len(x)) if thresholds is None else thresholds).expand(len(x), -1)
        return torch.cat([self._one(image, own) for image, own in zip(x.split(1), t, strict=True)])

    def _one(self, x: Tensor, thresholds: Tensor) -> Tensor:
        channels = self.stem[0].shape[1]
        x = F.relu_(F.conv2d(x.expand(-1, channels, -1, -1), *self.stem, padding=1))
        for first, second in self.plain:
            h = F.relu_(F.conv2d(x, *first, padding=1))
            x = F.relu_(F.conv2d(h, *second, padding=1).add_(x))
        kept = torch.arange(x.shape[1], device=x.device)
        agents = zip(self.agents, thresholds.chunk(len(self.agents)), strict=True)
        for first, second, stride, shortcut in self.blocks:
            middle = self._kept(x, kept, *next(agents))
            h = F.relu_(_convolved(x, *first, kept, middle, stride))
            last = self._kept(h, middle, *next(agents))
            y = _convolved(h, *second, middle, last)
            x = y.add_(_scattered(x, kept, last, len(first[1])) if shortcut is None else
                       _convolved(x, *shortcut, kept, last, stride)).relu_()  # fmt: skip
            kept = last
        classifier = self.net.classifier
        return F.linear(x.mean((2, 3)), classifier.weight.index_select(1, kept), classifier.bias)

    def _kept(self, x: Tensor, inputs: Tensor, agent: list[Tensor], threshold: Tensor) -> Tensor:
        """Indices of the channels that an agent keeps, from the maps x (1, k, H, W) of the channels `inputs`."""
        w, bias, w1, b1, w2, b2 = agent
        m = torch.addmm(bias, x.mean((2, 3)), w.index_select(0, inputs))
        v = m * torch.sigmoid(torch.addmm(b2, F.relu(torch.addmm(b1, m, w1)), w2))
        return (v[0] >= threshold).nonzero().squeeze(1)


def _folded(conv: nn.Conv2d, bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution with the BatchNorm of eval mode in it."""
    scale = bn.weight * (bn.running_var + bn.eps).rsqrt()
    return conv.weight * scale.view(-1, 1, 1, 1), bn.bias - bn.running_mean * scale


def _convolved(x: Tensor, weight: Tensor, bias: Tensor, inputs: Tensor, outputs: Tensor, stride: int = 1) -> Tensor:
    """The channels `outputs` of a convolution of maps of which x (1, k, H, W) are the channels `inputs`."""
    bias = bias.index_select(0, outputs)
    if not len(inputs) or not len(outputs):  # nothing to read, or nothing to write
        height, width = ((n - 1) // stride + 1 for n in x.shape[2:])
        return bias.view(1, -1, 1, 1).repeat(1, 1, height, width)
    # Each of the two that is all there is need not be gathered.
    weight = weight if len(outputs) == len(weight) else weight.index_select(0, outputs)
    weight = weight if len(inputs) == weight.shape[1] else weight.index_select(1, inputs)
    return F.conv2d(x, weight, bias, stride, padding=weight.shape[2] // 2)


def _scattered(x: Tensor, inputs: Tensor, outputs: Tensor, channels: int) -> Tensor:
    """The channels `outputs` of maps with `channels` channels, of which x are the channels `inputs`, the others 0."""
    return x.new_zeros(1, channels, *x.shape[2:]).index_copy_(1, inputs, x).index_select(1, outputs)
