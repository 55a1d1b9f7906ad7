"""Nearest class mean, the means of all classes computed anew from the training data of all tasks so far."""

import torch

from models.utils.continual_model import ContinualModel


class OldMeans(ContinualModel):
    NAME = "old-means"
    COMPATIBILITY = ["class-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.register_buffer("means", torch.zeros(self.num_classes, backbone.feature_dim))

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step_on(self.loss(self.net(inputs), labels))

    @torch.no_grad()
    def end_task(self, dataset):
        for task in range(self.current_task + 1):
            data = dataset.task_data(task)
            features = self.net.features(self.normalization_transform(data.data)).flatten(1)
            for c in data.targets.unique().tolist():
                self.means[c] = features[data.targets == c].mean(0)

    def forward(self, x):
        distance = torch.cdist(self.net.features(x).flatten(1), self.means)
        return -distance.masked_fill(self.means.abs().sum(1) == 0, 1e6)
