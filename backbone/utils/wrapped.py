"""Anybody's network as a backbone."""

import torch
from torch import Tensor, nn

from backbone.utils.base import Backbone
from utils.errors import UserError
from utils.evaluation import eval_mode

NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


class Wrapped(Backbone):
    """A module that maps inputs to logits, seen as a `Backbone`; its own forward decides what inputs are.

    There are logits only: methods that work on features need a network of backbone/. Methods that work layer by layer
    need an `nn.Sequential`, see `chain`.

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
        return self.net(x)


def output_size(net: nn.Module, inputs: Tensor) -> int:
    """Last dimension of the network's output for a batch; leaves modes and random generators alone."""
    with eval_mode(net), torch.no_grad():
        return net(inputs).shape[-1]
