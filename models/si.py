"""Synaptic Intelligence: a parameter is important by how much its own movement lowered the loss.

    L = CE(f(x), y) + c * sum_i Omega_i (theta_i - theta*_i)^2
    at each step:     omega_i += -g_i * (theta_i(t + 1) - theta_i(t)),  g the gradient of the CE alone
    after each task:  Omega_i += omega_i / ((theta_i - theta_i^start)^2 + xi),  omega <- 0,  theta* <- theta

The movement is the real one, whatever the optimiser, clipping and the penalty made of the gradient. Omega is clamped
at 0 where an entry's path went uphill, as a negative penalty would be without a minimum. The penalty takes a proximal
step by default (`--ewc_update`).

Reference: Zenke et al. 2017, "Continual Learning Through Synaptic Intelligence", equations 3-5.
"""

import torch

from palimpsest.datasets.utils.task import ClassTask, RegressionTask, TokenTask
from palimpsest.models.utils.quadratic import Regularised, add_update_argument, regularised_step
from palimpsest.utils.args import non_negative_float, positive_float


class SI(Regularised):
    NAME = "si"
    SEARCH = {"c": {"log": [0.05, 5.0]}}  # what --tune tries besides the learning rate
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TASKS = (ClassTask, TokenTask, RegressionTask)

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--c", type=non_negative_float, default=0.1, help="strength of the penalty")
        parser.add_argument("--xi", type=positive_float, default=0.1, help="damping of the importance")
        return add_update_argument(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        theta = self.net.get_params().detach()
        self.register_buffer("path", torch.zeros_like(theta))  # omega
        self.register_buffer("start", theta)

    def begin_task(self, dataset):
        self.start = self.net.get_params().detach()
        self.path = torch.zeros_like(self.start)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        loss = self.backward_on(inputs, labels)
        gradient, before = self.net.get_grads(), self.net.get_params().detach()
        terms = regularised_step(self, loss, self.penalty, 2 * self.args.c)
        self.path.addcmul_(gradient, self.net.get_params().detach() - before, value=-1)
        return terms

    def running_statistics(self):
        return [self.path, *super().running_statistics()]

    def end_task(self, dataset):
        theta = self.net.get_params().detach()
        omega = self.path.clamp(min=0) / ((theta - self.start).square() + self.args.xi)
        self.penalty.replace(omega + self.penalty.weight if self.penalty else omega, theta)
