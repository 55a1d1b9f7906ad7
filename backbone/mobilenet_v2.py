"""MobileNetV2 from torchvision, 1280 features (Sandler et al. 2018)."""

from palimpsest.backbone.utils.torchvision_nets import TorchvisionNet


class MobileNetV2(TorchvisionNet):
    NAME = "mobilenet-v2"
    BUILDER = "mobilenet_v2"
