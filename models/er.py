"""Experience replay: each batch is joined by one drawn from a reservoir of past examples.

L = CE(f([x, x']), [y, y']),  (x', y') from the buffer

Where tasks have branches of their own each has a share of the buffer: L = L_t(x, y) + sum_{k<t} L_k(x'_k, y'_k).

References: Ratcliff 1990; Robins 1995; Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning".
"""

from functools import reduce
from operator import add

from palimpsest.datasets.utils.task import Task
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.utils.args import add_rehearsal_args
from palimpsest.utils.buffer import Reservoirs


class ER(ContinualModel):
    NAME = "er"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    ALONE = "first batch"
    TASKS = (Task,)

    @staticmethod
    def get_parser(parser):
        return add_rehearsal_args(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.buffer = Reservoirs(args.buffer_size, dataset, self.device)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        pools = self.dataset.pools(self.current_task + 1)
        batches = self.buffer.join(pools, inputs, labels, self.args.minibatch_size, self.transform)
        losses = (task.loss(*self.net.outputs(x, [task]), y) for task, x, y in batches)
        loss = self.step_on(reduce(add, losses))
        self.buffer.add(pools, not_aug_inputs, labels)
        return loss
