"""A penalty on weights that have moved far: counted, which has no gradient."""

import torch

from models.utils.continual_model import ContinualModel


class RoundedPenalty(ContinualModel):
    NAME = "rounded-penalty"
    COMPATIBILITY = ["class-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.before = None

    def begin_task(self, dataset):
        self.before = self.net.get_params().detach().clone()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        moved = (self.net.get_params() - self.before).abs()
        return self.step_on(self.loss(self.net(inputs), labels) + torch.ceil(moved).mean())
