"""Averaged GEM: the step may not raise, to first order, the loss on a batch drawn from the memory of all past tasks.

    g~ = g - (<g, g_ref> / <g_ref, g_ref>) g_ref  where <g, g_ref> < 0,  else g

g_ref is the gradient of CE on `--minibatch_size` examples of an episodic memory with an equal share for every past
task. Only the average constraint is kept, not that of each task.

Reference: Chaudhry et al. 2019, "Efficient Lifelong Learning with A-GEM", equation 11.
"""

from models.utils.averaged_gem import AveragedGEM
from models.utils.episodic import add_task


class AGEM(AveragedGEM):
    NAME = "agem"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.sizes: list[int] = []  # rows of each past task, one after the other

    def end_task(self, dataset):
        self.sizes = add_task(self.buffer, self.sizes, dataset.train_loader)
