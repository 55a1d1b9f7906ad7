"""ImageNet networks from torchvision, with its pretrained weights on request."""

from urllib.error import URLError

import torch
from torch import Tensor, nn

from backbone.utils.base import Backbone
from utils.args import add_bool
from utils.errors import UserError


class TorchvisionNet(Backbone):
    """A torchvision classifier with its head replaced; images of one channel are repeated to three.

    Class attributes:
        BUILDER: torchvision's function, also the prefix of its weights.
        HEAD: attribute that holds the classifier; the features are what enters its last linear layer.
    """

    BUILDER: str
    HEAD: str

    @staticmethod
    def get_parser(parser):
        add_bool(parser, "--pretrained", help="start from torchvision's ImageNet weights")
        return parser

    def __init__(self, num_classes: int, pretrained: bool = False):
        super().__init__()
        from torchvision import models

        weights = models.get_model_weights(self.BUILDER).DEFAULT if pretrained else None
        if self.BUILDER.startswith("resnet") and pretrained:
            weights = models.get_model_weights(self.BUILDER).IMAGENET1K_V1
        self.trunk = self._fetch(models.get_model, weights)
        head = getattr(self.trunk, self.HEAD)
        last = head if isinstance(head, nn.Linear) else head[-1]
        self.feature_dim, self.num_classes = last.in_features, num_classes
        setattr(self.trunk, self.HEAD, nn.Identity())
        self.classifier = nn.Linear(self.feature_dim, num_classes)

    def _fetch(self, build, weights) -> nn.Module:
        try:
            return build(self.BUILDER, weights=weights)
        except (URLError, OSError, RuntimeError) as e:
            if weights is None:
                raise
            name, folder = weights.url.rsplit("/", 1)[-1], f"{torch.hub.get_dir()}/checkpoints"
            raise UserError(
                f"the pretrained weights {name} could not be fetched ({type(e).__name__}): put the file into {folder}, "
                "or drop --pretrained"
            ) from None

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(num_classes, args.pretrained)

    def stages(self, x: Tensor) -> list[Tensor]:
        return [self.trunk(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x)]
