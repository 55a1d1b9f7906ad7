"""The ResNet-18 of the class-IL literature: 3x3 stem, no max-pooling, --num_filters 64.

Reference: He et al. 2016; Rebuffi et al. 2017.
"""

from palimpsest.backbone.utils.resnet import ResNet18Family


class ResNet18(ResNet18Family):
    NAME = "resnet18"
    NUM_FILTERS = 64
