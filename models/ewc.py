"""Elastic Weight Consolidation: parameters that mattered for past tasks are held near the values they had then.

    L = CE(f(x), y) + lambda/2 * sum_k sum_i F_ki (theta_i - theta*_ki)^2

F_k is the diagonal Fisher information of task k at its end, theta*_k the parameters there. `--ewc_mode separate`
(default) keeps one quadratic per task, merged exactly into one (the sum of quadratics is a quadratic); `online` keeps
F <- gamma F + F_k around the latest parameters only.

The penalty takes a closed-form proximal step after the task's own, which no lambda makes diverge; `--ewc_update
explicit` adds its gradient instead, as the literature does. `--ewc_fisher` says whose labels the Fisher information
is taken over: lambda does not carry over from one kind to another, nor from code without the factor 1/2 (double it).

References: Kirkpatrick et al. 2017, equation 3; Huszar 2018 (separate against merged); Schwarz et al. 2018, section
3.2 (online).
"""

from palimpsest.datasets.utils.task import Task
from palimpsest.models.utils.fisher import FISHERS, check_fisher, fisher_diagonal
from palimpsest.models.utils.quadratic import Regularised, add_update_argument, regularised_step
from palimpsest.utils.args import fraction, non_negative_float, positive_int


class EWC(Regularised):
    NAME = "ewc"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TASKS = (Task,)

    @staticmethod
    def get_parser(parser):
        add = parser.add_argument
        add("--e_lambda", type=non_negative_float, default=100.0, help="strength of the penalty")
        add("--ewc_mode", choices=["separate", "online"], default="separate", help="one quadratic per task, or one")
        add("--gamma", type=fraction, default=1.0, help="decay of the old Fisher at each task (online)")
        add("--ewc_fisher", choices=FISHERS, default="mc", help="labels: drawn, all classes, the data's, or weighted")
        add("--n_fisher", type=positive_int, help="examples of the Fisher information (default: all)")
        add("--ewc_normalize", choices=["none", "mean", "max"], default="none",
            help="divide each task's Fisher information by its mean or its largest entry")  # fmt: skip
        return add_update_argument(parser)

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        check_fisher(dataset, args.ewc_fisher)

    def end_task(self, dataset):
        *_, task = (dataset.heads if self.args.multi_head else dataset.pools)(self.current_task + 1)
        fisher = fisher_diagonal(self.net, dataset.examples(self.args.n_fisher), self.args.ewc_fisher, task)
        if self.args.ewc_normalize != "none":
            scale = fisher.mean() if self.args.ewc_normalize == "mean" else fisher.max()
            fisher = fisher / scale.clamp(min=1e-30)
        if self.args.ewc_mode == "separate":
            self.penalty.merge(fisher, self.net.get_params().detach())
        else:
            old = self.args.gamma * self.penalty.weight if self.penalty else 0
            self.penalty.replace(old + fisher, self.net.get_params().detach())

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        loss.backward()
        return regularised_step(self, loss, self.penalty, self.args.e_lambda)
