"""ImageNet networks from torchvision, with its pretrained weights on request."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.utils.args import add_bool
from palimpsest.utils.errors import UserError


class TorchvisionNet(Backbone):
    """A torchvision classifier with its head, dropout included, replaced by one linear layer.

    Images of one channel are repeated to three; any image size. There are no intermediate maps.

    Class attributes:
        BUILDER: torchvision's function, also the prefix of its weights.
        HEAD: attribute that holds the classifier; the features are what enters its last linear layer.

    Args:
        num_classes: logits.
        pretrained: start from ImageNet weights, torchvision's first release of them (IMAGENET1K_V1).

    Raises:
        UserError: the pretrained weights can neither be found nor fetched, or their file is damaged.
    """

    BUILDER: str
    HEAD: str = "classifier"

    @staticmethod
    def get_parser(parser):
        add_bool(parser, "--pretrained", help="start from torchvision's ImageNet weights")
        return parser

    def __init__(self, num_classes: int, pretrained: bool = False):
        super().__init__()
        # Imported here, since most networks do without it.
        from torchvision import models

        # Published results that say `pretrained=True` mean V1, whatever torchvision's newest weights are.
        weights = models.get_model_weights(self.BUILDER).IMAGENET1K_V1 if pretrained else None
        self.trunk = self._fetch(models.get_model, weights)
        head = getattr(self.trunk, self.HEAD)
        last = head if isinstance(head, nn.Linear) else head[-1]
        self.feature_dim, self.num_classes = last.in_features, num_classes
        setattr(self.trunk, self.HEAD, nn.Identity())
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def _fetch(self, build, weights) -> nn.Module:
        try:
            return build(self.BUILDER, weights=weights)
        except (OSError, EOFError, RuntimeError, UnpicklingError) as e:
            if weights is None:
                raise
            file, error = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1], type(e).__name__
            if file.exists():
                raise UserError(
                    f"the pretrained weights {file} cannot be read ({error}): delete the file to have it fetched "
                    "again, or drop --pretrained"
                ) from None
            raise UserError(
                f"the pretrained weights {file.name} could not be fetched ({error}): put the file into {file.parent}, "
                "or drop --pretrained"
            ) from None

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(num_classes, args.pretrained)

    def features(self, x: Tensor) -> Tensor:
        return self.trunk(three_channels(x))

    def stages(self, x: Tensor) -> list[Tensor]:
        return [self.features(x)]


class TorchvisionResNet(TorchvisionNet):
    """The same for torchvision's ResNets, whose four stages are the intermediate maps."""

    HEAD = "fc"

    def stages(self, x: Tensor) -> list[Tensor]:
        net = self.trunk
        out = [net.maxpool(net.relu(net.bn1(net.conv1(three_channels(x)))))]
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            out.append(layer(out[-1]))
        return [*out[1:], net.avgpool(out[-1]).flatten(1)]


def three_channels(x: Tensor) -> Tensor:
    """Images (B, 1, H, W) repeated to (B, 3, H, W), without a copy; those of three channels as they are."""
    return x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x
