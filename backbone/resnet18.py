"""The ResNet-18 of the class-IL literature: 3x3 stem, no max-pooling, --num_filters 64.

Reference: He et al. 2016; Rebuffi et al. 2017; Lopez-Paz & Ranzato 2017.
"""

from backbone.utils.resnet import SmallImageResNet
from utils.args import positive_int


class ResNet18(SmallImageResNet):
    NAME = "resnet18"

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--num_filters", type=positive_int, default=64, help="channels of the first stage")
        return parser

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        width = args.num_filters
        return cls(in_size, num_classes, [width, 2 * width, 4 * width, 8 * width], blocks=2, padded=False)
