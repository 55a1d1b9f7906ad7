"""ResNet-50 from torchvision, 7x7 stem, 2048 features (He et al. 2016)."""

from palimpsest.backbone.utils.torchvision_nets import TorchvisionResNet


class ResNet50(TorchvisionResNet):
    NAME = "resnet50"
    BUILDER = "resnet50"
