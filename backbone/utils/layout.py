"""Where the channels of images lie in memory: `--channels_last`, which GPUs' convolutions in low precision prefer."""

import torch
from torch import nn

from palimpsest.utils.errors import UserError


def put_channels_last(net: nn.Module) -> nn.Module:
    """The network with the weights of its convolutions in torch's channels_last layout; a convolution takes images into
    the layout of its weights, and what follows keeps it. Shapes, names and values stay.

    Raises:
        UserError: a network without convolutions over images.
    """
    if not any(isinstance(part, nn.Conv2d) for part in net.modules()):
        name = getattr(net, "NAME", type(net).__name__)
        raise UserError(f"--channels_last: the network {name} has no convolutions over images: drop it")
    return net.to(memory_format=torch.channels_last)


def refuse_generated_weights(method: nn.Module) -> None:
    """A layout is one of weights that are kept: those that a method generates at each step have none."""
    if not any(p.dim() == 4 for p in method.parameters()):
        raise UserError(
            f"--channels_last: {method.NAME} generates the weights of the convolutions, which have no layout: drop it"
        )
