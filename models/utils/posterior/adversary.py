"""What methods share whose density ratio is learned by a discriminator (adversarial variational Bayes).

Reference: Mescheder, Nowozin & Geiger 2017, "Adversarial variational Bayes".
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from palimpsest.backbone.utils.task_hypernetwork import ACTIVATIONS, MLP
from palimpsest.utils.args import add_bool, positive_float, positive_int
from palimpsest.utils.option_types import width_list

AC_SAMPLES = 100  # for the moments of the contrast


def add_discriminator_args(parser):
    """Options of the discriminator."""
    add = parser.add_argument
    add("--dis_arch", type=width_list, default=[10, 10], help="hidden widths of the discriminator")
    add("--dis_act", choices=sorted(ACTIVATIONS), default="sigmoid", help="its activation")
    add("--dis_lr", type=positive_float, default=None, help="its learning rate; by default the method's")
    add("--dis_batch_size", type=positive_int, default=32, help="samples of either kind in a step of it")
    add("--num_dis_steps", type=positive_int, default=1, help="steps of it before each step of the method")
    add_bool(parser, "--use_batchstats", help="it also reads the mean of the batch")
    return parser


class Discriminator(MLP):
    """D(W) ~ ln q(W) - ln ref(W), learned by telling samples of q (label 1) from those of a reference (label 0).

    Args:
        size: P.
        hidden, activation: of the MLP.
        batch_statistics: the mean of the batch is part of every input (2P entries).
    """

    def __init__(self, size: int, hidden: list[int], activation: str, batch_statistics: bool):
        super().__init__([size * (2 if batch_statistics else 1), *hidden, 1], activation)
        self.batch_statistics = batch_statistics

    def forward(self, weights: Tensor) -> Tensor:
        """D (S,) of weights (S, P)."""
        h = torch.cat([weights, weights.mean(0).expand_as(weights)], 1) if self.batch_statistics else weights
        return self.layers[-1](self.before_last(h)).squeeze(1)

    def loss(self, posterior: Tensor, reference: Tensor) -> Tensor:
        """Binary cross-entropy of samples (N, P) of either kind, summed over the kinds."""
        return F.softplus(-self(posterior)).mean() + F.softplus(self(reference)).mean()


class Adversary:
    """Adds a discriminator with its optimiser, and the divergence that it estimates, to a method with a `generator`."""

    NO_TERMS = ("dis",)

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        options = self.args
        self.discriminator = Discriminator(
            self.net.size, options.dis_arch, options.dis_act, options.use_batchstats
        ).to(self.device)  # fmt: skip
        self.dis_opt = self._dis_optimizer()

    def _dis_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.discriminator.parameters(), lr=self.args.dis_lr or self.args.lr)

    def get_parameters(self):
        """All but the discriminator's, which has an optimiser of its own."""
        adversary = {id(p) for p in self.discriminator.parameters()} if "discriminator" in self._modules else set()
        return [p for p in super().get_parameters() if id(p) not in adversary]

    def begin_task(self, dataset):
        super().begin_task(dataset)
        self.discriminator.reset()
        self.dis_opt = self._dis_optimizer()

    def train_discriminator(self, phi: Tensor, contrast: bool, prior_phi: Tensor | None = None) -> tuple[Tensor, tuple]:
        """Steps of the discriminator on samples of the posterior phi (n,) and of its reference.

        Args:
            contrast: the reference is the Gaussian alpha with the moments of q (adaptive contrast); else the prior p.
            prior_phi: (n,) what generates samples of p; None where p = N(0, sigma_p^2 I).

        Returns:
            The last loss, 2 ln 2 where q is not told from its reference; mean and deviation (P,) of alpha, or 0 and 1.
        """
        args, draw, fixed = self.args, self.generator.draw, phi.detach()
        mean, std = self._moments(fixed) if contrast else (0.0, 1.0)
        n, scale = args.dis_batch_size, 1.0 if contrast else args.prior_variance**0.5
        for _ in range(args.num_dis_steps):
            with torch.no_grad():  # alpha is a standard Gaussian in units of its deviations
                samples = (draw(fixed, n) - mean) / std
                reference = scale * torch.randn_like(samples) if prior_phi is None else draw(prior_phi, n)
            self.dis_opt.zero_grad()
            loss = self.discriminator.loss(samples, reference)
            loss.backward()
            self.dis_opt.step()
        return loss.detach(), (mean, std)

    def training_weights(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Samples (S, P) of q for the likelihood and for the divergence, the same ones where as many are wanted."""
        weights, n = self.generator.draw(phi, self.args.train_sample_size), self.args.num_kl_samples
        return weights, weights if n == len(weights) else self.generator.draw(phi, n)

    def divergence(self, weights: Tensor, contrast: bool, moments: tuple) -> Tensor:
        """KL(q || p) estimated on weights (S, P) of q: E_q[D + ln alpha - ln p] by a contrast, else E_q[D]."""
        mean, std = moments
        ratio = self.discriminator((weights - mean) / std)
        if contrast:
            ratio = ratio + log_gaussian(weights, mean, std.square())
            prior = log_gaussian(weights, 0.0, self.args.prior_variance)
            ratio = ratio - prior
        return ratio.mean()

    @torch.no_grad()
    def _moments(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (P,) of the posterior phi, from samples."""
        samples = self.generator.draw(phi, AC_SAMPLES)
        share = samples.new_full((AC_SAMPLES,), 1 / AC_SAMPLES)  # products are faster than reductions over rows
        mean = share @ samples
        variance = share @ (samples - mean).square() * AC_SAMPLES / (AC_SAMPLES - 1)
        return mean, variance.sqrt().clamp(min=1e-6)


def log_gaussian(weights: Tensor, mean: Tensor | float, variance: Tensor | float) -> Tensor:
    """ln N(W; mean, diag(variance)) (S,) of weights (S, P)."""
    if not isinstance(variance, Tensor):
        variance = weights.new_full((), variance)  # made on the device: a copy from the host would wait for it
    terms = (weights - mean).square() / variance + torch.log(2 * torch.pi * variance)
    return -terms.sum(1) / 2
