"""A small convolutional network for small images: three 3x3 layers 16-32-64, global average pooling.

With GroupNorm (the default) a prediction does not depend on the other images of the batch, so training and test
behave alike.
"""

from torch import Tensor, nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.utils.args import positive_int
from palimpsest.utils.errors import UserError

NORMS = {"group": lambda c: nn.GroupNorm(4, c), "batch": nn.BatchNorm2d, "none": lambda c: nn.Identity()}


class ConvNet(Backbone):
    """Conv-norm-ReLU three times with strides 1, 2, 2, then the mean over the map; any image size from 4 x 4 on."""

    NAME = "convnet"

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--norm", choices=list(NORMS), default="group", help="normalisation of the layers")
        parser.add_argument("--width", type=positive_int, default=16,
                            help="channels of the first layer; a multiple of 4 with --norm group")  # fmt: skip
        return parser

    def __init__(self, in_size: tuple[int, int, int], num_classes: int, norm: str = "group", width: int = 16):
        super().__init__()
        self.feature_dim, self.num_classes = 4 * width, num_classes
        channels = [in_size[0], width, 2 * width, 4 * width]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=norm == "none"), NORMS[norm](o), nn.ReLU())
            for i, o, stride in zip(channels, channels[1:], (1, 2, 2), strict=False)
        )
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        if args.norm == "group" and args.width % 4:
            raise UserError(f"--width {args.width}: --norm group needs a multiple of 4: change it, or --norm")
        return cls(in_size, num_classes, args.norm, args.width)

    def stages(self, x: Tensor) -> list[Tensor]:
        out = [x]
        for layer in self.layers:
            out.append(layer(out[-1]))
        return [*out[1:], out[-1].mean((2, 3))]

    def chain(self):
        *first, last = self.layers
        return [*((layer[0], layer[1:]) for layer in first), (last[0], lambda x: last[1:](x).mean((2, 3)))]
