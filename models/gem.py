"""Gradient Episodic Memory: the step may not raise, to first order, the loss on any past task's memory.

    g~ = argmin 1/2 ||g~ - g||^2  subject to  <g~, g_k> >= 0 for all k < t,  g_k the gradient of CE on task k's memory

solved exactly in its dual (`models/utils/projection.py`), with the margin gamma. The memory of a past task is an
equal share of the buffer, taken when the task ends; the current task's is no constraint and is not kept.

`--gem_eps` regularises the dual in units of the Gram matrix's mean diagonal; `--gem_eps_abs 1e-3` is the published
absolute value, which switches the constraints off where gradients are small.

Reference: Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory for Continual Learning", equations 6-11.
"""

from palimpsest.datasets.utils.task import ClassTask, RegressionTask, TokenTask
from palimpsest.models.utils.episodic import EpisodicMemory, gradients_at
from palimpsest.models.utils.projection import project
from palimpsest.utils.args import add_rehearsal_args, non_negative_float


class GEM(EpisodicMemory):
    NAME = "gem"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TASKS = (ClassTask, TokenTask, RegressionTask)
    WAITS = "the projection is solved on the host"

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser, minibatch=False)
        parser.add_argument("--gamma", type=non_negative_float, default=0.5, help="margin: least weight of a past task")
        parser.add_argument("--gem_eps", type=non_negative_float, default=1e-10, help="relative regulariser")
        parser.add_argument("--gem_eps_abs", type=non_negative_float, help="absolute regulariser instead")
        return parser

    def other_batches(self, dataset, n_tasks):
        for t in range(1, n_tasks):
            yield f"the memory of each of {t} tasks", self.args.buffer_size // t

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        if self.sizes:
            images, past_labels = (rows.split(self.sizes) for rows in self.buffer.get_all_data())
            past = gradients_at(self, [self.transform(x) for x in images], past_labels)
        loss = self.backward_on(inputs, labels)
        if self.sizes:
            relative = self.args.gem_eps_abs is None
            eps = self.args.gem_eps if relative else self.args.gem_eps_abs
            gradient = self.net.get_grads()
            allowed = project(gradient, past, self.args.gamma, eps, relative)
            if allowed is not gradient:
                self.net.set_grads(allowed)
        self.opt.step()
        return loss
