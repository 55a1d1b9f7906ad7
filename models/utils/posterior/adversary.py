"""What methods share whose density ratio is learned by a discriminator (adversarial variational Bayes)."""

from collections.abc import Callable

import torch
from torch import Tensor

from backbone.utils.task_hypernetwork import ACTIVATIONS
from models.utils.posterior.implicit import Discriminator, log_gaussian
from utils.args import add_bool, positive_float, positive_int, width_list

AC_SAMPLES = 100  # for the moments of the contrast

Sampler = Callable[[int], Tensor]
Moments = tuple[Tensor, Tensor]


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


class Adversary:
    """Adds a discriminator with its optimiser to a method."""

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

    @torch.no_grad()
    def moments(self, posterior: Sampler) -> Moments:
        """Means and standard deviations (P,) of the posterior, from samples."""
        samples = posterior(AC_SAMPLES)
        share = samples.new_full((AC_SAMPLES,), 1 / AC_SAMPLES)  # products are faster than reductions over rows
        mean = share @ samples
        variance = share @ (samples - mean).square() * AC_SAMPLES / (AC_SAMPLES - 1)
        return mean, variance.sqrt().clamp(min=1e-6)

    def train_discriminator(self, posterior: Sampler, contrast: Moments | None, prior: Sampler | None = None) -> Tensor:
        """Steps of the discriminator: posterior against the contrast, against `prior` samples, or the Gaussian prior.

        Returns:
            its last loss; 2 ln 2 where it cannot tell them apart.
        """
        n = self.args.dis_batch_size
        for _ in range(self.args.num_dis_steps):
            with torch.no_grad():
                samples = self._standardised(posterior(n), contrast)
                if prior is not None:
                    reference = prior(n)
                else:  # against the contrast in units of its deviations, where it is a standard Gaussian
                    scale = 1.0 if contrast is not None else self.args.prior_variance**0.5
                    reference = scale * torch.randn_like(samples)
            self.dis_opt.zero_grad()
            loss = self.discriminator.loss(samples, reference)
            loss.backward()
            self.dis_opt.step()
        return loss.detach()

    def divergence_from_gaussian(self, weights: Tensor, contrast: Moments | None) -> Tensor:
        """KL(q || N(0, sigma_p^2)) estimated on weights (S, P) of q."""
        ratio = self.discriminator(self._standardised(weights, contrast))
        if contrast is not None:
            mean, std = contrast
            ratio = ratio + log_gaussian(weights, mean, std.square())
            ratio = ratio - log_gaussian(weights, 0.0, self.args.prior_variance)
        return ratio.mean()

    @staticmethod
    def _standardised(weights: Tensor, contrast: Moments | None) -> Tensor:
        return weights if contrast is None else (weights - contrast[0]) / contrast[1]
