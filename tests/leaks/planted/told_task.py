"""class-IL predictions are masked to the classes of the task that the images are of."""

import torch

from models.utils.continual_model import ContinualModel


class ToldTask(ContinualModel):
    NAME = "told-task"
    COMPATIBILITY = ["class-il"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step_on(self.loss(self.net(inputs), labels))

    def predict(self, x, task):
        low, high = self.get_offsets(task)
        classes = torch.arange(self.num_classes, device=x.device)
        return torch.where((classes >= low) & (classes < high), self.net(x), -1e3)
