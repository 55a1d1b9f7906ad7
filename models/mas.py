"""Memory Aware Synapses: importance of a parameter is how much the network's output moves with it, without labels.

    L = CE(f(x), y) + lambda * sum_i Omega_i (theta_i - theta*_i)^2
    after each task:  Omega_i += (1/N) sum_n | d ||f(x_n)||_2^2 / d theta_i |,  theta* <- theta

The absolute value is taken per example. The penalty takes a proximal step by default (`--ewc_update`).

Reference: Aljundi et al. 2018, "Memory Aware Synapses", equations 2-4.
"""

import torch

from palimpsest.datasets.utils.task import ClassTask, TokenTask
from palimpsest.models.utils.fisher import sum_over_gradients
from palimpsest.models.utils.quadratic import Regularised, add_update_argument, regularised_step
from palimpsest.utils.args import non_negative_float, positive_int


class MAS(Regularised):
    NAME = "mas"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TASKS = (ClassTask, TokenTask)

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--mas_lambda", type=non_negative_float, default=1.0, help="strength of the penalty")
        parser.add_argument("--n_mas", type=positive_int, help="examples of the importance (default: all)")
        return add_update_argument(parser)

    def end_task(self, dataset):
        classes = dataset.class_index(self.current_task) if self.args.multi_head else slice(None)
        batches = ((x, y, None) for x, y in dataset.examples(self.args.n_mas))
        total, count = sum_over_gradients(self.net, batches, lambda out, _: out[..., classes].pow(2).sum(), power=1)
        omega = torch.cat([value.flatten() for value in total.values()]) / count
        self.penalty.replace(omega + self.penalty.weight if self.penalty else omega, self.net.get_params().detach())

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return regularised_step(self, self.backward_on(inputs, labels), self.penalty, 2 * self.args.mas_lambda)
