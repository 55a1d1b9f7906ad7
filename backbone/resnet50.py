"""ResNet-50 from torchvision, 7x7 stem, 2048 features (He et al. 2016)."""

from backbone.utils.torchvision_nets import TorchvisionNet


class ResNet50(TorchvisionNet):
    NAME = "resnet50"
    BUILDER = "resnet50"
    HEAD = "fc"
