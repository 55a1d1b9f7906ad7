"""The step of averaged GEM, for both of its memories."""

from datasets.utils.task import ClassTask, RegressionTask, TokenTask
from models.utils.episodic import gradient_at
from models.utils.projection import project_one
from models.utils.rehearsal import Rehearsal


class AveragedGEM(Rehearsal):
    """g~ = g - (<g, g_ref> / <g_ref, g_ref>) g_ref  where <g, g_ref> < 0, else g.

    g_ref is the gradient of the loss on `--minibatch_size` examples of the buffer, which a subclass fills. Chaudhry et
    al. 2019, "Efficient Lifelong Learning with A-GEM", equation 11.
    """

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
