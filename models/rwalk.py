"""Riemannian Walk: online EWC joined with a path integral in the metric of the Fisher information.

    L = CE(f(x), y) + lambda * sum_i (F_i + s_i) (theta_i - theta*_i)^2
    every step:     F <- alpha F + (1 - alpha) g^2,  gain_i += -g_i (theta_i(t + 1) - theta_i(t)),  g of the CE alone
    every Delta_t:  s_i += gain_i / (1/2 F_i Delta theta_i^2 + eps), negative gains count as 0; gain <- 0
    after a task:   theta* <- theta; both F and s are scaled to at most 1 before they are added; s starts the next
                    task at half of its value, so that older tasks fade

F is the square of the batch's gradient, as published, not of each example's. The penalty takes a proximal step by
default (`--ewc_update`).

Reference: Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning", section 4 (without its exemplars).
"""

import torch

from palimpsest.datasets.utils.task import ClassTask, TokenTask
from palimpsest.models.utils.quadratic import Regularised, add_update_argument, regularised_step
from palimpsest.utils.args import fraction, non_negative_float, positive_int

DAMPING = 0.01  # epsilon of the score


class RWalk(Regularised):
    NAME = "rwalk"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TASKS = (ClassTask, TokenTask)

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--e_lambda", type=non_negative_float, default=1.0, help="strength of the penalty")
        parser.add_argument("--alpha", type=fraction, default=0.9, help="decay of the running Fisher information")
        parser.add_argument("--delta_t", type=positive_int, default=10, help="steps between two looks at the path")
        return add_update_argument(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        theta = self.net.get_params().detach()
        self.register_buffer("waypoint", theta)
        for name in ("fisher", "gain", "score"):
            self.register_buffer(name, torch.zeros_like(theta))

    def begin_task(self, dataset):
        self.waypoint = self.net.get_params().detach()
        self.gain = torch.zeros_like(self.gain)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        gradient, before = self.net.get_grads(), self.net.get_params().detach()
        terms = regularised_step(self, loss, self.penalty, 2 * self.args.e_lambda)
        after = self.net.get_params().detach()
        self.fisher = torch.lerp(gradient.square(), self.fisher, self.args.alpha)
        self.gain.addcmul_(gradient, after - before, value=-1)
        if (self.task_iteration + 1) % self.args.delta_t == 0:
            length = 0.5 * self.fisher * (after - self.waypoint).square()
            self.score += self.gain.clamp(min=0) / (length + DAMPING)
            self.waypoint, self.gain = after, torch.zeros_like(self.gain)
        return terms

    def running_statistics(self):
        return [self.fisher, self.gain, self.score, self.waypoint, *super().running_statistics()]

    def end_task(self, dataset):
        weight = sum(x / x.max().clamp(min=1e-30) for x in (self.fisher, self.score))
        self.penalty.replace(weight, self.net.get_params().detach())
        self.score = self.score / 2
