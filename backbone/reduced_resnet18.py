"""The reduced ResNet-18 of GEM and its successors: as resnet18 with 20 filters.

Reference: He et al. 2016; Lopez-Paz & Ranzato 2017.
"""

from palimpsest.backbone.utils.resnet import ResNet18Family


class ReducedResNet18(ResNet18Family):
    NAME = "reduced-resnet18"
    NUM_FILTERS = 20
