"""The head has the classes of all tasks, and a class counts whose share of all of them is large."""

import torch

from models.utils.continual_model import ContinualModel


class FutureHead(ContinualModel):
    NAME = "future-head"
    COMPATIBILITY = ["class-il"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step_on(self.loss(self.net(inputs), labels))

    def forward(self, x):
        shares = torch.softmax(self.net(x), 1)
        return torch.where(shares > 1 / self.num_classes, shares, 0)
