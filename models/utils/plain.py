"""One step of gradient descent on each batch: the body of fine-tuning and of joint training."""

from models.utils.continual_model import ContinualModel


class PlainTraining(ContinualModel):
    """L = loss(f(x), y) on the batch, and nothing else."""

    KINDS = ["classification", "language", "regression", "vision"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss
