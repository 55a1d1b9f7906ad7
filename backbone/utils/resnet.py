"""Residual networks for small images: 3x3 stem, no max-pooling, basic blocks (He et al. 2016)."""

import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.backbone.utils.base import Backbone, pooled_relu
from palimpsest.utils.args import positive_int


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm and a shortcut.

    Where the shape changes the shortcut is a strided 1x1 convolution with BatchNorm, or, with `padded`, every
    second pixel with zeros for the new channels (option A, without parameters).
    """

    def __init__(self, i: int, o: int, stride: int, padded: bool):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.new_channels = o - i if padded and (stride != 1 or i != o) else 0
        self.shortcut: nn.Module | None = None
        if not padded and (stride != 1 or i != o):
            self.shortcut = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.new_channels:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.new_channels))
        elif self.shortcut is not None:
            x = self.shortcut(x)
        return F.relu(out + x)


class SmallImageResNet(Backbone):
    """Stem, stages of basic blocks (the first of each later stage halves the map), global average pooling.

    Args:
        in_size: (C, H, W) of the images; any H and W.
        num_classes: logits.
        widths: channels of each stage.
        blocks: basic blocks per stage.
        padded: parameter-free shortcuts.
    """

    def __init__(self, in_size: tuple[int, int, int], num_classes: int, widths: list[int], blocks: int, padded: bool):
        super().__init__()
        self.feature_dim, self.num_classes = widths[-1], num_classes
        self.stem = nn.Sequential(
            nn.Conv2d(in_size[0], widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()
        )
        self.layers = nn.ModuleList()
        for stride, i, o in zip([1, *[2] * len(widths)], [widths[0], *widths], widths, strict=False):
            others = (BasicBlock(o, o, 1, padded) for _ in range(blocks - 1))
            self.layers.append(nn.Sequential(BasicBlock(i, o, stride, padded), *others))
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def stemmed(self, x: Tensor) -> Tensor:
        """What the first stage reads."""
        return self.stem(x)

    def stages(self, x: Tensor) -> list[Tensor]:
        out = [self.stemmed(x)]
        for layer in self.layers:
            out.append(layer(out[-1]))
        return [*out[1:], out[-1].mean((2, 3))]

    def chain(self):
        # A stage ends with a ReLU; the one here is that of the sum where a method adds something to the stage.
        first, *others, last = self.layers
        middle = [(stage, F.relu) for stage in others]
        return [(lambda x: first(self.stemmed(x)), F.relu), *middle, (last, pooled_relu)]


class ResNet18Family(SmallImageResNet):
    """Four stages of two basic blocks with f, 2f, 4f, 8f channels; f is `--num_filters`, by default `NUM_FILTERS`."""

    NUM_FILTERS: int

    @classmethod
    def get_parser(cls, parser):
        parser.add_argument("--num_filters", type=positive_int, default=cls.NUM_FILTERS, help="channels of stage 1")
        return parser

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        widths = [args.num_filters * factor for factor in (1, 2, 4, 8)]
        return cls(in_size, num_classes, widths, blocks=2, padded=False)
