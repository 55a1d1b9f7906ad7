"""LeNet for small grey images: two 5 x 5 convolutions, each with 2 x 2 max pooling, and one hidden layer; ReLU.

`--lenet large` (default): 20 and 50 channels, 500 units, 431,080 weights on MNIST; `small`: 10, 20 and 50, 21,840.

References: LeCun et al. 1998; Henning et al. 2021, arXiv 2103.01133 (these sizes).
"""

import torch.nn.functional as F
from torch import nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.utils.errors import UserError

WIDTHS = {"large": (20, 50, 500), "small": (10, 20, 50)}


class LeNet(Backbone):
    NAME = "lenet"

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--lenet", choices=sorted(WIDTHS), default="large", help="channels and units")
        return parser

    def __init__(self, in_size: tuple[int, int, int], num_classes: int, kind: str = "large"):
        super().__init__()
        first, second, hidden = WIDTHS[kind]
        height, width = (((n - 4) // 2 - 4) // 2 for n in in_size[1:])
        if min(height, width) < 1:
            raise UserError(f"lenet needs images of 16 x 16 pixels or more, these are {in_size[1]} x {in_size[2]}")
        self.input_size, self.feature_dim, self.num_classes = in_size, hidden, num_classes
        self.conv1, self.conv2 = nn.Conv2d(in_size[0], first, 5), nn.Conv2d(first, second, 5)
        self.hidden = nn.Linear(second * height * width, hidden)
        self.classifier = nn.Linear(hidden, num_classes)

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(in_size, num_classes, args.lenet)

    def chain(self):
        return [
            (self.conv1, lambda x: F.max_pool2d(F.relu(x), 2)),
            (self.conv2, lambda x: F.max_pool2d(F.relu(x), 2)),
            (lambda x: self.hidden(x.flatten(1)), F.relu),
        ]
