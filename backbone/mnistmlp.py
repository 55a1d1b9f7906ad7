"""The fully connected network of the class-IL literature on MNIST: 784-100-100, ReLU, Xavier weights, zero biases.

Reference: Lopez-Paz & Ranzato 2017; Riemer et al. 2019; Buzzega et al. 2020.
"""

import math

import torch.nn.functional as F
from torch import nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.utils.args import positive_int


class MNISTMLP(Backbone):
    """Flatten, then `layers` hidden layers of `hidden` units with ReLU; images of any size, or vectors."""

    NAME = "mnistmlp"
    INPUT = ("images", "vectors")

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--mlp_hidden_size", type=positive_int, default=100, help="units of a hidden layer")
        parser.add_argument("--mlp_hidden_layers", type=positive_int, default=2, help="number of hidden layers")
        return parser

    def __init__(self, in_size: tuple[int, ...], num_classes: int, hidden: int = 100, layers: int = 2):
        super().__init__()
        self.input_size, self.feature_dim, self.num_classes = in_size, hidden, num_classes
        widths = [math.prod(in_size)] + [hidden] * layers
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, widths[1:], strict=False))
        self.classifier = nn.Linear(hidden, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)
                nn.init.zeros_(m.bias)

    @property
    def plain_layers(self) -> list[str]:
        return [*(f"layers.{i}" for i in range(len(self.layers))), "classifier"]

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(in_size, num_classes, args.mlp_hidden_size, args.mlp_hidden_layers)

    def chain(self):
        first, *others = self.layers  # F.relu and not nn.ReLU: on a network this small every module call shows
        return [(lambda x: first(x.flatten(1)), F.relu), *((layer, F.relu) for layer in others)]
