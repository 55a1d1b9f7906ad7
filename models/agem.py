"""Averaged GEM: the step may not raise, to first order, the loss on a batch drawn from the memory of all past tasks.

    g~ = g - (<g, g_ref> / <g_ref, g_ref>) g_ref  where <g, g_ref> < 0,  else g

g_ref is the gradient of CE on `--minibatch_size` examples of an episodic memory with an equal share for every past
task. Only the average constraint is kept, not that of each task.

Reference: Chaudhry et al. 2019, "Efficient Lifelong Learning with A-GEM", equation 11.
"""

from models.utils.continual_model import ContinualModel
from models.utils.episodic import add_task, gradient_at
from models.utils.projection import project_one
from utils.args import add_rehearsal_args
from utils.buffer import Buffer


class AGEM(ContinualModel):
    NAME = "agem"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    KINDS = ["classification", "language", "regression"]

    @staticmethod
    def get_parser(parser):
        return add_rehearsal_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Buffer(args.buffer_size, self.device)
        self.sizes: list[int] = []  # rows of each past task, one after the other

    def end_task(self, dataset):
        self.sizes = add_task(self.buffer, self.sizes, dataset.train_loader)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        reference = None
        if not self.buffer.is_empty():
            reference = gradient_at(self, *self.buffer.get_data(self.args.minibatch_size))
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        if reference is not None:
            self.net.set_grads(project_one(self.net.get_grads(), reference))
        self.opt.step()
        return loss
