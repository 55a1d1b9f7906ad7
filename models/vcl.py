"""VCL, variational continual learning: one Gaussian posterior with a head per task, whose prior is the posterior before
the task.

    q = N(mu, diag(sigma^2)),    L = N E_q[CE] + kappa KL(q_t || q_{t-1}),    q_{-1} = N(0, sigma_p^2 I)

The weights of a head keep the original prior until its task is learned.

References: Nguyen et al. 2018, "Variational continual learning" (here without coresets); Henning et al. 2021,
arXiv 2103.01133 (PriorFocused-Exp).
"""

import torch
from torch import nn

from palimpsest.models.utils.posterior.base import Posterior, add_posterior_args
from palimpsest.models.utils.posterior.gaussian import draw, gaussian, initial, kl
from palimpsest.utils.args import add_bool, non_negative_float, positive_int


class VCL(Posterior):
    NAME = "vcl"

    @staticmethod
    def get_parser(parser):
        add_posterior_args(parser)
        add = parser.add_argument
        add("--kl_scale", type=non_negative_float, default=1.0, help="kappa, weight of the divergence from the prior")
        add("--train_sample_size", type=positive_int, default=10, help="weight samples of a training step")
        add_bool(parser, "--local_reparam", help="local reparametrisation: pre-activations drawn per example")
        add_bool(parser, "--keep_orig_init", help="means begin as weights of an ordinary network would")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.phi = nn.Parameter(initial(self.net, args.keep_orig_init).to(self.device))
        self.register_buffer("prior_mean", torch.zeros(self.net.size, device=self.device))
        self.register_buffer("prior_var", torch.full_like(self.prior_mean, args.prior_variance))

    def fit(self, inputs, labels):
        args, task = self.args, self.current_task
        mean, std = gaussian(self.phi)
        if args.local_reparam:
            outputs = self.net.local(mean, std.square(), inputs, self.head(task), args.train_sample_size)
        else:
            outputs = self.outputs(draw(mean, std, args.train_sample_size), inputs)
        each = kl(mean, std.square(), self.prior_mean, self.prior_var) * self.used_by(list(range(task + 1)))
        return {"nll": self.nll(outputs, labels), "kl": args.kl_scale * each.sum()}

    @torch.no_grad()
    def end_task(self, dataset):
        learned = self.used_by(list(range(self.current_task + 1))) > 0
        mean, std = gaussian(self.phi)
        self.prior_mean = torch.where(learned, mean, self.prior_mean)
        self.prior_var = torch.where(learned, std.square(), self.prior_var)

    def weights(self, tasks, samples, generator=None):
        return draw(*gaussian(self.phi), samples, generator).expand(len(tasks), -1, -1)
