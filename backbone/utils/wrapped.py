"""Anybody's network as a backbone."""

from typing import Any

import torch
from torch import Tensor, nn

from backbone.utils.base import Backbone
from utils.errors import UserError, one_line
from utils.evaluation import eval_mode

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class Wrapped(Backbone):
    """A module that maps inputs to logits, seen as a `Backbone`; its own forward decides what inputs are.

    Its output may also hold the logits, see `logits_of`. There are logits only: methods that work on features need a
    network of backbone/. Methods that work layer by layer need an `nn.Sequential`, see `chain`.

    Args:
        net: the module; its last linear layer counts as the classifier.
        num_classes: logits, the last dimension of its output.
    """

    NAME = "wrapped"

    def __init__(self, net: nn.Module, num_classes: int):
        super().__init__()
        self.net, self.num_classes = net, num_classes

    @property
    def classifier(self) -> nn.Module:
        linear = [module for module in self.net.modules() if isinstance(module, nn.Linear)]
        return linear[-1] if linear else nn.Identity()

    def chain(self):
        """For an `nn.Sequential` that ends in its classifier: a layer begins where weights are that are no
        normalisation, and its activation is what follows them.
        """
        parts = list(self.net) if isinstance(self.net, nn.Sequential) else []
        weighted = [any(True for _ in part.parameters()) and not isinstance(part, NORMS) for part in parts]
        starts = [i for i, is_start in enumerate(weighted[:-1]) if is_start]
        if not starts or parts[-1] is not self.classifier:
            raise UserError(
                f"the network {type(self.net).__name__} cannot be taken apart into layers, which this method needs: "
                "give an nn.Sequential that ends in an nn.Linear"
            )
        ends = zip([0, *starts[1:]], starts, [*starts[1:], len(parts) - 1], strict=True)
        return [(nn.Sequential(*parts[a : b + 1]), nn.Sequential(*parts[b + 1 : c])) for a, b, c in ends]

    def forward(self, x: Tensor, returnt: str = "out") -> Tensor:
        if returnt != "out":
            raise ValueError(f"returnt is '{returnt}': a network from outside gives logits only")
        return logits_of(self.net(x))


def logits_of(output: Any) -> Tensor:
    """The logits in what a network returns: a tensor; a dict or an object that has 'logits', as Hugging Face's
    `ModelOutput`; a dict of one tensor; the first entry of a tuple or list. (B,) is read as (B, 1).

    Raises:
        UserError: there are none.
    """
    if isinstance(output, dict):
        found = output.get("logits", next(iter(output.values())) if len(output) == 1 else None)
    elif isinstance(output, Tensor):
        found = output
    else:
        first = output[0] if isinstance(output, list | tuple) and output else None
        found = getattr(output, "logits", first)
    if not isinstance(found, Tensor) or found.dim() not in (1, 2, 3) or not found.is_floating_point():
        keys = f" with {', '.join(map(str, output))}" if isinstance(output, dict) else ""
        shape = f" of shape {tuple(found.shape)} and {found.dtype}" if isinstance(found, Tensor) else ""
        raise UserError(
            f"the network returns {type(output).__name__}{keys or shape}: expected logits (B, C) or (B, L, C), by "
            "themselves, under the name 'logits', or first in a tuple"
        )
    return found.unsqueeze(1) if found.dim() == 1 else found


def output_shape(net: nn.Module, inputs: Tensor) -> torch.Size:
    """Shape of the network's logits for a batch; leaves modes and random generators alone.

    Raises:
        UserError: the network cannot read the batch, or gives no logits for it.
    """
    try:
        with eval_mode(net), torch.no_grad():
            shape = logits_of(net(inputs)).shape
    except (RuntimeError, TypeError, ValueError, LookupError) as e:
        given = f"inputs {tuple(inputs.shape)} of {inputs.dtype}"
        raise UserError(f"the network fails on the loader's {given}: {type(e).__name__}: {one_line(e)}") from e
    if shape[0] != len(inputs):
        raise UserError(f"the network returns {tuple(shape)} for {len(inputs)} inputs: expected a row for each")
    return shape
