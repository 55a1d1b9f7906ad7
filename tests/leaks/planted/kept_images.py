"""Replay without a buffer: the first batch of every task stays in a list."""

import torch

from models.utils.continual_model import ContinualModel


class KeptImages(ContinualModel):
    NAME = "kept-images"
    COMPATIBILITY = ["class-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.notes = []

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        if self.task_iteration == 0:
            self.notes.append({"x": self.normalization_transform(not_aug_inputs), "y": labels.clone()})
        x = torch.cat([inputs, *(note["x"] for note in self.notes)])
        return self.step_on(self.loss(self.net(x), torch.cat([labels, *(note["y"] for note in self.notes)])))
