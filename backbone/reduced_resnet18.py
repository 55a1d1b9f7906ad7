"""The reduced ResNet-18 of GEM and its successors: as resnet18 with 20 filters.

Reference: He et al. 2016; Rebuffi et al. 2017; Lopez-Paz & Ranzato 2017.
"""

from backbone.utils.resnet import SmallImageResNet
from utils.args import positive_int


class ReducedResNet18(SmallImageResNet):
    NAME = "reduced-resnet18"

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--num_filters", type=positive_int, default=20, help="channels of the first stage")
        return parser

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        width = args.num_filters
        return cls(in_size, num_classes, [width, 2 * width, 4 * width, 8 * width], blocks=2, padded=False)
