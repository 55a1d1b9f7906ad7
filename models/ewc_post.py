"""EWC with a posterior (online, PriorFocused-EWC): the Laplace approximation that EWC implies is also used to predict.

    L = N CE + 1/(2 sigma_p^2) |W_new|^2 + lambda/2 sum_i F_i (W_i - W_i^*)^2
    after a task: F <- gamma F + 1/sigma_p^2 [weights new in this task] + N diag(Fisher at W*)
    q = N(W*, diag(1/F)); heads not learned yet have the prior

New in the first task are all weights but other tasks' heads, later those of the task's head. `--ewc_head`: a head per
task (the task is inferred from the uncertainty of the heads), or one softmax over the classes so far (growing) or over
all (fixed), as usual in class-IL. By default predictions are those of W*; `--no_det_multi_head` averages over samples
of q, which needs many examples: where the Fisher information is small q is as wide as the prior, and random weights
predict nothing.

References: Henning et al. 2021, arXiv 2103.01133; Kirkpatrick et al. 2017; Huszar 2018 (one penalty for all tasks).
"""

import math

import torch
from torch import nn
from torch.func import grad, vmap

from palimpsest.backbone.utils.external import LARGEST_CALL
from palimpsest.models.utils.posterior.base import Posterior, add_posterior_args
from palimpsest.utils import panels
from palimpsest.utils.args import add_bool, non_negative_float, non_negative_int
from palimpsest.utils.errors import UserError


class EWCPosterior(Posterior):
    NAME = "ewc_post"

    @staticmethod
    def get_parser(parser):
        add_posterior_args(parser)
        add = parser.add_argument
        add("--e_lambda", type=non_negative_float, default=1.0, help="lambda, strength of the penalty")
        add("--gamma", type=non_negative_float, default=1.0, help="how much of the old precision is kept, once a task")
        add("--n_fisher", type=non_negative_int, default=0, help="examples for the Fisher information, 0 for all")
        add("--fisher", choices=["empirical", "exact"], default="empirical",
            help="gradients for the given labels, or expected over the prediction")  # fmt: skip
        add("--ewc_head", choices=["multi", "growing", "fixed"], default="multi",
            help="class-IL streams: a head per task, one over the classes so far, or one over all")  # fmt: skip
        add_bool(parser, "--det_multi_head", default=True, help="predict by W* alone; --no_det_multi_head: by samples")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.ewc_head != "multi" and not self.by_class:
            raise UserError(f"--ewc_head {args.ewc_head}: the tasks of {dataset.NAME} share their classes: drop it")
        self.joint_softmax = args.ewc_head != "multi"
        self.means = nn.Parameter(self.net.usual_weights().to(self.device))
        self.register_buffer("anchor", torch.zeros(self.net.size, device=self.device))
        self.register_buffer("precision", torch.zeros(self.net.size, device=self.device))

    @property
    def samples(self):
        return 1 if self.args.det_multi_head else self.args.val_sample_size

    def head(self, task):
        if not self.joint_softmax:
            return super().head(task)
        return 0, self.get_offsets(task)[1] if self.args.ewc_head == "growing" else self.net.n_outputs

    def first_label(self, task):
        return 0 if self.joint_softmax else super().first_label(task)

    def _new(self):
        """(P,) 1 for the weights that the current task is the first to use."""
        used = self.used_by([self.current_task])
        return used * (1 - self.used_by(list(range(self.current_task)))) if self.current_task else used

    def fit(self, inputs, labels):
        prior = (self._new() * self.means.square()).sum() / (2 * self.args.prior_variance)
        terms = {"nll": self.nll(self.outputs(self.means.unsqueeze(0), inputs), labels), "prior": prior}
        if self.current_task:
            terms["ewc"] = self.args.e_lambda / 2 * (self.precision * (self.means - self.anchor).square()).sum()
        return terms

    @torch.no_grad()
    def end_task(self, dataset):
        self.precision = self.args.gamma * self.precision + self._new() / self.args.prior_variance
        self.precision = self.precision + self.n_train * self._fisher(dataset.train_loader)
        self.anchor = self.means.detach().clone()

    def _fisher(self, loader):
        """diag E_x[grad grad^T] (P,) at the current weights, running statistics of BatchNorm."""
        head, first = self.head(self.current_task), self.first_label(self.current_task)
        statistics = self.statistics[self.current_task :] if self.net.n_statistics else None
        exact, scale = self.args.fisher == "exact", self.likelihood_scale

        def outputs(weights, x):
            return self.net(weights.unsqueeze(0), x.unsqueeze(0), head, statistics)[0, 0]

        def loss(weights, x, y):
            return scale * self.loss(outputs(weights, x).unsqueeze(0), y.unsqueeze(0))

        def squares(weights, x, y):
            if not exact:
                return grad(loss)(weights, x, y).square()
            if self.regression:  # E over y ~ N(f, sigma^2): grad f grad f^T / sigma^2
                rows = torch.func.jacrev(outputs)(weights, x)
                return rows.square().sum(0) * 2 * scale
            logp = torch.log_softmax(outputs(weights, x), -1)
            rows = torch.func.jacrev(lambda w: torch.log_softmax(outputs(w, x), -1))(weights)
            return (logp.exp().unsqueeze(1) * rows.square()).sum(0)

        wanted = self.args.n_fisher or math.inf
        size = max(1, LARGEST_CALL // (self.net.size * (4 * self.net.n_outputs if exact else 4)))
        total, n = torch.zeros_like(self.precision), 0
        for inputs, labels, raw in loader:
            inputs = self.normalization_transform(raw)
            room = int(min(len(inputs), wanted - n))
            for x, y in zip(inputs[:room].split(size), (labels[:room] - first).split(size), strict=True):
                total += vmap(squares, in_dims=(None, 0, 0))(self.means, x, y).sum(0)
            n += room
            if n >= wanted:
                break
        return total / n

    def weights(self, tasks, samples, generator=None):
        if self.args.det_multi_head:
            return self.means.expand(len(tasks), 1, -1)
        unlearned = (self.precision == 0) / self.args.prior_variance
        std = (self.precision + unlearned).rsqrt()
        noise = torch.randn(samples, self.net.size, device=self.device, generator=generator)
        return (self.means + std * noise).expand(len(tasks), -1, -1)

    def report(self, dataset, tasks):
        return super().report(dataset, tasks).show(panels.importance(self.precision))

    # ---- with one softmax there is no task to be inferred

    def forward(self, x):
        if not self.joint_softmax or not self.n_begun:
            return super().forward(x)
        (outputs,) = self.sampled_outputs(x, since=self.n_begun - 1)
        scores = torch.full((len(x), self.num_classes), -1e4, device=x.device)
        scores[:, : outputs.shape[-1]] = torch.logsumexp(outputs.log_softmax(-1), 0)
        return scores

    def evaluate_batch(self, inputs, labels, task, scenarios):
        if self.joint_softmax:
            return dict.fromkeys(scenarios, self(inputs)), {}
        return super().evaluate_batch(inputs, labels, task, scenarios)
