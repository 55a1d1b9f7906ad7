"""Columns of progressive networks as Mammoth's files construct them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.utils.base import Backbone
from utils.errors import UserError

HIDDEN = 100


class MLPColumn(Backbone):
    """Two hidden layers of 100 units; what follows the first is also fed by the earlier columns, each layer through an
    adapter U f(V a h) as in Rusu et al. 2016, equation 2. The earlier columns are read and not trained.

    Args:
        input_size: numbers of an input, or its shape.
        output_size: logits.
        old_cols: the earlier columns.
    """

    NAME = "mnistmlp-pnn"

    def __init__(self, input_size: int | tuple[int, ...], output_size: int, old_cols: list[nn.Module] | None = None):
        super().__init__()
        self.input_size, self.output_size, self.num_classes = input_size, output_size, output_size
        vars(self)["old_cols"] = earlier = list(old_cols or ())  # no part of this one
        widths = [input_size if isinstance(input_size, int) else math.prod(input_size), HIDDEN, HIDDEN]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, widths[1:], strict=False))
        self.classifier, self.feature_dim = nn.Linear(HIDDEN, output_size), HIDDEN
        self.scales, self.squeeze, self.out = nn.ParameterList(), nn.ModuleList(), nn.ModuleList()
        for width in (HIDDEN, output_size) if earlier else ():
            self.scales.append(nn.Parameter(torch.full((len(earlier),), 0.01)))
            self.squeeze.append(nn.Linear(len(earlier) * HIDDEN, HIDDEN))
            self.out.append(nn.Linear(HIDDEN, width, bias=False))

    def stages(self, x: Tensor) -> list[Tensor]:
        hidden = self._earlier(x)
        first = F.relu(self.layers[0](x.flatten(1)))
        return [first, F.relu(self.layers[1](first) + self._lateral(hidden, 0))]

    def forward(self, x: Tensor, returnt: str = "out"):
        if returnt != "out":
            return super().forward(x, returnt)
        return self.classifier(self.stages(x)[-1]) + self._lateral(self._earlier(x), 1)

    @torch.no_grad()
    def _earlier(self, x: Tensor) -> list[list[Tensor]]:
        return [column.to(x.device).stages(x) for column in self.old_cols]

    def _lateral(self, hidden: list[list[Tensor]], i: int) -> Tensor | float:
        """What the earlier columns' i-th layers add to the next layer."""
        if not hidden:
            return 0.0
        scaled = [a * h[i] for a, h in zip(self.scales[i].unbind(), hidden, strict=True)]
        return self.out[i](F.relu(self.squeeze[i](torch.cat(scaled, 1))))


def resnet_column(*_) -> None:
    """
    Raises:
        UserError: residual columns are not here.
    """
    raise UserError("progressive columns of a residual network are not here: use --backbone mnistmlp, or --model pnn")
