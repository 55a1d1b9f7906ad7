"""One step of gradient descent on each batch: the body of fine-tuning and of joint training."""

from palimpsest.datasets.utils.task import Task
from palimpsest.models.utils.continual_model import ContinualModel


class PlainTraining(ContinualModel):
    """L = loss(f(x), y) on the batch, and nothing else."""

    TASKS = (Task,)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return self.step_on(self.loss(self.net(inputs), labels))
