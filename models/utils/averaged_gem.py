"""The step of averaged GEM, for both of its memories."""

from palimpsest.datasets.utils.task import ClassTask, RegressionTask, TokenTask
from palimpsest.models.utils.episodic import gradient_at
from palimpsest.models.utils.projection import project_one
from palimpsest.models.utils.rehearsal import Rehearsal


class AveragedGEM(Rehearsal):
    """What `agem` and `agem_r` have in common; their files have the formula. A subclass fills the buffer."""

    TASKS = (ClassTask, TokenTask, RegressionTask)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        reference = None if self.buffer.is_empty() else gradient_at(self, *self.draw())
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        if reference is not None:
            self.net.set_grads(project_one(self.net.get_grads(), reference))
        self.opt.step()
        return loss
