"""Online Elastic Weight Consolidation: parameters that mattered for past tasks are held near their last values.

L = CE(f(x), y) + lambda * sum_i F_i (theta_i - theta*_i)^2
after each task:  F <- gamma * F + F_task,  theta* <- theta

F_task is the diagonal Fisher information of the task's data, exact per example. `--ewc_fisher weighted` (default)
weights the squared gradient of each example by p(y | x), as the code behind the stored hyperparameters does;
`empirical` gives every example weight 1. There is no factor 1/2 in the penalty, as in that code.

References: Kirkpatrick et al. 2017; Schwarz et al. 2018, "Progress & Compress", section 3.2.
"""

from models.utils.continual_model import ContinualModel
from models.utils.fisher import fisher_diagonal
from utils.args import fraction, non_negative_float


class EWCOnline(ContinualModel):
    NAME = "ewc_on"
    COMPATIBILITY = ["class-il", "domain-il", "task-il"]

    @staticmethod
    def get_parser(parser):
        parser.add_argument("--e_lambda", type=non_negative_float, required=True, help="strength of the penalty")
        parser.add_argument("--gamma", type=fraction, required=True, help="decay of the old Fisher at each task")
        parser.add_argument(
            "--ewc_fisher",
            choices=["weighted", "empirical"],
            default="weighted",
            help="weight of an example's squared gradient: p(y|x), or 1",
        )
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.register_buffer("fisher", None)
        self.register_buffer("anchor", None)

    def end_task(self, dataset):
        batches = ((inputs, labels) for inputs, labels, _ in dataset.train_loader)
        new = fisher_diagonal(self.net, batches, weight_by_probability=self.args.ewc_fisher == "weighted")
        self.fisher = new if self.fisher is None else self.args.gamma * self.fisher + new
        self.anchor = self.net.get_params()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        loss = self.loss(self.net(inputs), labels)
        terms = {"ce": loss.detach()}
        loss.backward()
        if self.anchor is not None:
            drift = self.net.get_params() - self.anchor
            pull = self.fisher * drift
            terms["penalty"] = self.args.e_lambda * pull.dot(drift)
            # The penalty's gradient in closed form: no second graph over all parameters.
            self.net.set_grads(self.net.get_grads() + 2 * self.args.e_lambda * pull)
        self.opt.step()
        # Values to log only: the step was taken with the gradients put together above.
        return {"loss": sum(terms.values()), **terms}
