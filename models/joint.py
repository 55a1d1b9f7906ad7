"""Joint training: one pass of the usual epochs over the data of all tasks together (upper bound).

L = CE(f(x), y),  (x, y) from all tasks
"""

from models.utils.continual_model import ContinualModel


class Joint(ContinualModel):
    NAME = "joint"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    KINDS = ["classification", "language", "regression", "vision"]
    JOINT = True

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        self.opt.step()
        return loss
