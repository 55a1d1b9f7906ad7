"""MLP"""

from torch import nn

from backbone.utils.base import Backbone


class MNISTMLP(Backbone):
    NAME = "mnistmlp"

    def __init__(self, in_size, num_classes, hidden=100):
        super().__init__()
        d = in_size[0] * in_size[1] * in_size[2]
        self.input_size, self.feature_dim, self.num_classes = in_size, hidden, num_classes
        self.body = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.classifier = nn.Linear(hidden, num_classes)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.xavier_uniform_(m.weight)

    @classmethod
    def from_args(cls, args, in_size, num_classes):
        return cls(in_size, num_classes)

    def features(self, x):
        return self.body(x.flatten(1))
