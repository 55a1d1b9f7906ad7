"""Online EWC as the code behind the published hyperparameters has it; `ewc` is the textbook form.

L = CE(f(x), y) + lambda * sum_i F_i (theta_i - theta*_i)^2
after each task:  F <- gamma * F + F_task,  theta* <- theta

There is no factor 1/2 in the penalty, and `--ewc_fisher weighted` (default) weights the squared gradient of each
example by p(y | x); `empirical` gives every example weight 1. `--ewc_update explicit` is the published step.

References: Kirkpatrick et al. 2017; Schwarz et al. 2018, "Progress & Compress", section 3.2.
"""

from palimpsest.datasets.utils.task import ClassTask, TokenTask
from palimpsest.models.utils.fisher import check_fisher, fisher_diagonal
from palimpsest.models.utils.quadratic import Regularised, add_update_argument, regularised_step
from palimpsest.utils.args import fraction, non_negative_float


class EWCOnline(Regularised):
    NAME = "ewc_on"
    SEARCH = {"e_lambda": {"log": [1.0, 1000.0]}}  # what --tune tries besides the learning rate
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TASKS = (ClassTask, TokenTask)

    @staticmethod
    def get_parser(parser):
        add = parser.add_argument
        add("--e_lambda", type=non_negative_float, required=True, help="strength of the penalty")
        add("--gamma", type=fraction, required=True, help="decay of the old Fisher at each task")
        add("--ewc_fisher", choices=["weighted", "empirical"], default="weighted",
            help="weight of an example's squared gradient: p(y|x), or 1")  # fmt: skip
        return add_update_argument(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        check_fisher(dataset, args.ewc_fisher)

    def end_task(self, dataset):
        *_, task = (dataset.heads if self.args.multi_head else dataset.pools)(self.current_task + 1)
        new = fisher_diagonal(self.net, dataset.examples(), self.args.ewc_fisher, task)
        old = self.args.gamma * self.penalty.weight if self.penalty else 0
        self.penalty.replace(old + new, self.net.get_params().detach())

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        return regularised_step(self, self.backward_on(inputs, labels), self.penalty, 2 * self.args.e_lambda)
