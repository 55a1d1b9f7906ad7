"""ResNet-32 for CIFAR: three stages of five basic blocks, 16-32-64 channels, parameter-free shortcuts.

Reference: He et al. 2016, section 4.2 (option A); Rebuffi et al. 2017.
"""

from palimpsest.backbone.utils.resnet import SmallImageResNet


class ResNet32(SmallImageResNet):
    NAME = "resnet32"

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(in_size, num_classes, [16, 32, 64], blocks=5, padded=True)
