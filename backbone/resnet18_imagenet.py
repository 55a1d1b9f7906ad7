"""ResNet-18 from torchvision, ImageNet's 7x7 stem and max-pooling, 512 features (He et al. 2016)."""

from palimpsest.backbone.utils.torchvision_nets import TorchvisionResNet


class ResNet18ImageNet(TorchvisionResNet):
    NAME = "resnet18-imagenet"
    BUILDER = "resnet18"
