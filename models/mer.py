"""Meta-Experience Replay: Reptile steps within and across batches of replayed and new examples.

    for each of `--batch_num` batches, the new examples joined by a draw from the buffer:
        theta_0 <- theta;  theta <- theta - lr dCE/dtheta;  theta <- theta_0 + beta (theta - theta_0)
    theta <- theta_A + gamma (theta - theta_A),  theta_A the parameters before the first batch

One step per batch, as the code behind the stored hyperparameters has it, where the paper's algorithm 1 takes one per
example. With beta = gamma = 1 and one batch this is experience replay. The published base batch is one example:
`--batch_size 1`.

Reference: Riemer et al. 2019, "Learning to Learn without Forgetting by Maximizing Transfer and Minimizing
Interference", algorithms 1 and 6.
"""

import torch

from palimpsest.models.utils.rehearsal import Rehearsal
from palimpsest.utils.args import add_rehearsal_args, fraction, positive_int


class MER(Rehearsal):
    NAME = "mer"
    COMPATIBILITY = ["class-il", "domain-il", "task-il", "general-continual"]
    ALONE = "first batch"

    @staticmethod
    def get_parser(parser):
        add_rehearsal_args(parser)
        parser.add_argument("--beta", type=fraction, required=True, help="Reptile rate within a batch")
        parser.add_argument("--gamma", type=fraction, required=True, help="Reptile rate across batches")
        parser.add_argument("--batch_num", type=positive_int, default=1, help="batches drawn per step")
        return parser

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        before_all, losses = self.net.get_params().detach(), []
        for _ in range(self.args.batch_num):
            x, y = inputs, labels
            if not self.buffer.is_empty():
                replayed, replayed_labels = self.draw()
                x, y = torch.cat((replayed, x)), torch.cat((replayed_labels, y))
            before = self.net.get_params().detach()
            losses.append(self.step_on(self.loss(self.net(x), y)).detach())
            self.net.set_params(torch.lerp(before, self.net.get_params().detach(), self.args.beta))
        self.net.set_params(torch.lerp(before_all, self.net.get_params().detach(), self.args.gamma))
        self.buffer.add_data(examples=not_aug_inputs, labels=labels)
        return torch.stack(losses).mean()
