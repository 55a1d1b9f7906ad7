"""EfficientNet-B0 from torchvision, 1280 features (Tan & Le 2019)."""

from palimpsest.backbone.utils.torchvision_nets import TorchvisionNet


class EfficientNetB0(TorchvisionNet):
    NAME = "efficientnet-b0"
    BUILDER = "efficientnet_b0"
