"""small conv"""

from torch import nn

from backbone.utils.base import Backbone


class ConvNet(Backbone):
    NAME = "convnet"

    def __init__(self, in_size, num_classes):
        super().__init__()
        c, layers = in_size[0], []
        for out, stride in ((16, 1), (32, 2), (64, 2)):
            layers += [nn.Conv2d(c, out, 3, stride, 1, bias=False), nn.GroupNorm(4, out), nn.ReLU()]
            c = out
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.feature_dim, self.num_classes = 64, num_classes
        self.classifier = nn.Linear(64, num_classes)

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(in_size, num_classes)

    def features(self, x):
        return self.body(x)
