"""PR-BbB, posterior meta-replay with Gaussians ("explicit"): a hypernetwork makes means and deviations for every task.

    (mu_j, rho_j) = h(e_j),    q_j = N(mu_j, diag(sigma_j^2)),    sigma = softplus(rho - 2.5)
    L = N E_q[CE] + kappa KL(q_t || N(0, sigma_p^2)) + beta mean_{j<t} D(q_j^*, q_j)

q_j^* before task t. D by `--reg`: |.|^2 of (mu, rho) (mse), KL(q^* || q) (fkl), KL(q || q^*) (rkl), 2-Wasserstein
squared (w2); the heads of other tasks are left out. One weight sample is shared by a batch, `--train_sample_size` of
them are averaged; `--local_reparam` draws pre-activations per example instead (fully connected networks).

`--coreset_size` keeps so many examples of each task out of training and, after the last task, tells the posteriors
apart with them: with q_t^* the posterior as it was learned, for every t

    L_t = kappa' KL(q_t || q_t^*) + n E_q[CE on coreset examples], those of other tasks with uniform (or random) labels.

References: Henning et al. 2021, arXiv 2103.01133; Blundell et al. 2015; Kingma, Salimans & Welling 2015.
"""

import torch
import torch.nn.functional as F

from palimpsest.models.utils.posterior.base import add_posterior_args
from palimpsest.models.utils.posterior.gaussian import distance, draw, gaussian, initial, kl_to_prior
from palimpsest.models.utils.posterior.meta_replay import IN_CACHE, MetaReplay, add_meta_replay_args
from palimpsest.utils.args import add_bool, fraction, non_negative_float, non_negative_int, positive_int
from palimpsest.utils.errors import UserError
from palimpsest.utils.randomness import permutation, seed_of


class PRBBB(MetaReplay):
    NAME = "pr_bbb"

    @staticmethod
    def get_parser(parser):
        add_meta_replay_args(add_posterior_args(parser))
        add = parser.add_argument
        add("--reg", choices=["mse", "fkl", "rkl", "w2"], default="mse", help="distance between old and new posterior")
        add("--kl_scale", type=non_negative_float, default=1.0, help="kappa, weight of the divergence from the prior")
        add("--train_sample_size", type=positive_int, default=10, help="weight samples of a training step")
        add_bool(parser, "--local_reparam", help="local reparametrisation: pre-activations drawn per example")
        add("--coreset_size", type=non_negative_int, default=0, help="examples per task kept for the end, 0 for none")
        add("--coreset_iters", type=non_negative_int, default=0, help="steps with them, 0: as many as one task took")
        add("--coreset_kl_scale", type=non_negative_float, default=1.0, help="kappa', weight of staying as learned")
        add("--coreset_balance", type=fraction, default=None,
            help="share of a coreset batch from the own task; by default as it comes")  # fmt: skip
        add_bool(parser, "--coreset_random_labels", help="other tasks' examples get random labels, not uniform ones")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.coreset_size and self.regression:
            raise UserError("--coreset_size needs classes: other tasks' examples get uniform labels")
        if args.coreset_size and args.start_from and not args.loadcheck:
            raise UserError("--start_from: --coreset_size needs examples of the tasks before: add --loadcheck")
        if args.coreset_size and self.n_tasks == 1:
            raise UserError("--coreset_size tells tasks apart, here is one alone: drop it (or --joint)")
        if args.coreset_size and args.coreset_size >= (least := min(dataset.train_sizes)):
            raise UserError(f"--coreset_size {args.coreset_size}: a task has {least} examples, none is left")
        self.register_buffer("coreset_images", None)
        self.register_buffer("coreset_labels", None)

    def parameters_per_task(self):
        return 2 * self.net.size

    def initial_phi(self):
        return initial(self.net, self.args.keep_orig_init)

    def fit_phi(self, phi, inputs, labels):
        mean, std = gaussian(phi)
        outputs = self.drawn_outputs(mean, std, inputs)
        kl = kl_to_prior(mean, std.square(), self.args.prior_variance)
        kl = self.net.own_sum(kl.unsqueeze(0), self.own([self.current_task])).sum()
        return {"nll": self.nll(outputs, labels), "kl": self.args.kl_scale * kl}

    def drawn_outputs(self, mean, std, inputs, task=None):
        """Outputs (S, B, C) under weights drawn from N(mean, std^2): of the current task's head in training, or of a
        given task's, whose BatchNorm statistics stay as they are.
        """
        samples = self.args.train_sample_size
        if self.args.local_reparam:
            head = self.head(self.current_task if task is None else task)
            return self.net.local(mean, std.square(), inputs, head, samples)
        if task is not None:
            return self.net(draw(mean, std, samples), inputs, self.head(task))
        if samples * len(mean) <= IN_CACHE or self.net.n_statistics:
            return self.outputs(draw(mean, std, samples), inputs)
        return torch.cat([self.outputs(draw(mean, std, 1), inputs) for _ in range(samples)])

    def weights_of(self, phi, samples, generator=None):
        return draw(*gaussian(phi), samples, generator)

    @property
    def squares(self):
        return self.args.reg == "mse"

    def distance(self, targets, phi, tasks):
        return self.net.own_sum(distance(self.args.reg, targets, phi), self.own(tasks))

    # ---- coresets

    def _in_coreset(self, data, task):
        """Which of a task's examples (n,) are kept for the end: a function of the seed."""
        chosen = torch.zeros(len(data), dtype=torch.bool, device=data.rows.device)
        chosen[permutation(len(data), seed_of(self.args, "data"), "coreset", task)[: self.args.coreset_size]] = True
        return chosen

    def training_rows(self, data):
        if not self.args.coreset_size:
            return None
        return (~self._in_coreset(data, self.dataset.c_task)).nonzero().squeeze(1)

    def end_task(self, dataset):
        super().end_task(dataset)
        if not self.args.coreset_size:
            return
        data = dataset.task_data(self.current_task)
        rows = self._in_coreset(data, self.current_task)
        images, labels = data.data[rows].to(self.device).unsqueeze(0), data.targets[rows].to(self.device).unsqueeze(0)
        first = self.coreset_images is None
        self.coreset_images = images if first else torch.cat([self.coreset_images, images])
        self.coreset_labels = labels if first else torch.cat([self.coreset_labels, labels])
        if self.n_begun == self.n_tasks:
            self.separate_tasks(self.args.coreset_iters or self.task_iteration)
            super().end_task(dataset)

    def separate_tasks(self, steps: int) -> None:
        """The stage after the last task; one step of the optimiser per sweep over all tasks."""
        tasks = list(range(self.n_begun))
        with torch.no_grad():
            learned = self.phi(tasks)
        self.opt = self.get_optimizer(p for p in self.parameters() if p.requires_grad)  # of all tasks
        for _ in range(steps):
            self.opt.zero_grad()
            phi = self.phi(tasks)
            stay = self.net.own_sum(distance("rkl", learned, phi), self.own(tasks))
            loss = self.args.coreset_kl_scale * stay.sum()
            for task in tasks:
                loss = loss + self._coreset_loss(phi[task], task)
            loss.backward()
            self.opt.step()

    def _coreset_loss(self, phi, task):
        """n E_q[CE] on a batch of coreset examples for one task."""
        per_task, (low, high) = self.args.coreset_size, self.head(task)
        total = per_task * self.n_begun
        size = min(self.args.batch_size, total)
        if self.args.coreset_balance is None:
            rows = torch.randperm(total, device=self.device)[:size]
        else:
            n_own = max(1, round(self.args.coreset_balance * size))
            own = task * per_task + torch.randint(per_task, (n_own,), device=self.device)
            other = torch.randint(total - per_task, (size - n_own,), device=self.device)
            rows = torch.cat([own, torch.where(other < task * per_task, other, other + per_task)])
        inputs = self.normalization_transform(self.coreset_images.flatten(0, 1)[rows])
        labels = self.coreset_labels.flatten()[rows] - self.first_label(task)
        mine = rows // per_task == task
        n_classes = high - low
        labels = torch.where(mine, labels, torch.randint_like(labels, n_classes)).clamp(0, n_classes - 1)
        targets = F.one_hot(labels, n_classes).float()
        if not self.args.coreset_random_labels:
            targets = torch.where(mine.unsqueeze(1), targets, 1 / n_classes)
        mean, std = gaussian(phi)
        outputs = self.drawn_outputs(mean, std, inputs, task)
        return total * F.cross_entropy(outputs.flatten(0, 1), targets.repeat(len(outputs), 1))
