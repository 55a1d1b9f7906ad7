"""Columns of progressive networks as Mammoth's files construct them: of any network that comes apart into layers."""

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.models.pnn import Lateral
from palimpsest.models.utils.mammoth.model import given
from palimpsest.models.utils.mammoth.stream import fresh_network

ALPHA = 0.01  # first value of the scalars of a lateral


class ColumnLateral(Lateral):
    """A lateral under a name that the checkpoints of such files may hold."""


class Column(Backbone):
    """A fresh network of the run's kind whose layers, from the second on, are also fed by the earlier columns, as in
    Rusu et al. 2016, equation 2. The earlier columns are read and not trained.

    Args:
        old_cols: the earlier columns.
        shape: (C, H, W) of an input, needed where there are earlier columns.
    """

    NAME = "column"

    def __init__(self, old_cols: list[nn.Module] | None = None, shape: tuple[int, ...] | None = None):
        super().__init__()
        self.trunk, self.laterals = fresh_network(given.stream), nn.ModuleList()
        self.num_classes, self.feature_dim = self.trunk.num_classes, self.trunk.feature_dim
        vars(self)["old_cols"] = list(old_cols or ())  # no part of this one
        if self.old_cols:
            with torch.no_grad():
                self.hidden(torch.zeros(2, *shape, device=given.device))

    @property
    def classifier(self) -> nn.Module:
        return self.trunk.classifier

    def hidden(self, x: Tensor) -> list[Tensor]:
        """What each layer says, the logits last; a lateral that is not there yet is made."""
        with torch.no_grad():
            earlier = [column.to(x.device).hidden(x) for column in self.old_cols]
        out: list[Tensor] = []
        for i, (body, activation) in enumerate([*self.trunk.chain(), (self.trunk.classifier, nn.Identity())]):
            z = body(x)
            if i and earlier:
                before = [layers[i - 1] for layers in earlier]
                if len(self.laterals) < i:
                    self.laterals.append(ColumnLateral(before, z, ALPHA).to(z.device))
                z = z + self.laterals[i - 1](before, z)
            x = activation(z)
            out.append(x)
        return out

    def stages(self, x: Tensor) -> list[Tensor]:
        return self.hidden(x)[:-1]

    def forward(self, x: Tensor, returnt: str = "out"):
        return self.hidden(x)[-1] if returnt == "out" else super().forward(x, returnt)


def mlp_column(input_size, output_size: int, old_cols: list[nn.Module] | None = None) -> Column:
    """A column of a fully connected network; `input_size` is (C, H, W)."""
    return Column(old_cols, input_size)


def resnet_column(nclasses: int, nf: int, old_cols: list[nn.Module] | None = None, x_shape=None) -> Column:
    """A column of any other network; `x_shape` is (B, C, H, W)."""
    return Column(old_cols, x_shape and tuple(x_shape[1:]))


class OtherNetwork(type):
    """`isinstance` of the class below holds for every network: files ask for a ResNet where they mean one with maps."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, Backbone)


class ResNet(Backbone, metaclass=OtherNetwork):
    """What Mammoth calls a ResNet."""
