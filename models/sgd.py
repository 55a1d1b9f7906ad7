"""Fine-tuning: each task is learned by plain gradient descent, nothing is done against forgetting (lower bound).

L = CE(f(x), y)
"""

from models.utils.continual_model import ContinualModel


class SGD(ContinualModel):
    NAME = "sgd"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    KINDS = ["classification", "language", "regression", "vision"]

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss
