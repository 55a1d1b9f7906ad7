"""PR-Radial, posterior meta-replay with radial posteriors: the distance of a weight tensor from its mean is Gaussian in
one dimension, not in many.

    W = mu + sigma (eps / |eps|) r,    eps ~ N(0, I), r ~ N(0, 1), both per tensor;    (mu_j, rho_j) = h(e_j)
    L = N E_q[CE] + kappa (- sum ln sigma - E_q ln p(W)) + beta mean_{j<t} |m_j (phi_j^* - h(e_j))|^2

The middle term is KL(q || N(0, sigma_p^2)) up to a constant, its expectation over `--num_kl_samples` samples. There is
no closed form of a divergence between two radial posteriors, so the regulariser is on (mu, rho).

References: Farquhar, Osborne & Gal 2020, "Radial Bayesian neural networks"; Henning et al. 2021, arXiv 2103.01133.
"""

import torch

from palimpsest.models.utils.posterior.base import add_posterior_args
from palimpsest.models.utils.posterior.gaussian import gaussian, initial
from palimpsest.models.utils.posterior.meta_replay import MetaReplay, add_meta_replay_args
from palimpsest.utils.args import non_negative_float, positive_int


class PRRadial(MetaReplay):
    NAME = "pr_radial"

    @staticmethod
    def get_parser(parser):
        add_meta_replay_args(add_posterior_args(parser))
        add = parser.add_argument
        add("--kl_scale", type=non_negative_float, default=1.0, help="kappa, weight of the divergence from the prior")
        add("--num_kl_samples", type=positive_int, default=1, help="weight samples for that divergence")
        add("--train_sample_size", type=positive_int, default=10, help="weight samples of a training step")
        return parser

    def parameters_per_task(self):
        return 2 * self.net.size

    def initial_phi(self):
        return initial(self.net, self.args.keep_orig_init)

    def fit_phi(self, phi, inputs, labels):
        args, own = self.args, self.own([self.current_task])
        mean, std = gaussian(phi)
        outputs = self.outputs(self.draw(mean, std, args.train_sample_size), inputs)
        prior = self.draw(mean, std, args.num_kl_samples).square().mean(0) / (2 * args.prior_variance)
        kl = self.net.own_sum((prior - std.log()).unsqueeze(0), own).sum()
        return {"nll": self.nll(outputs, labels), "kl": args.kl_scale * kl}

    def draw(self, mean, std, samples, generator=None):
        """W (..., S, P), the same noise for all leading dimensions of mean and std (..., P)."""
        noise = torch.randn(samples, self.net.size, device=mean.device, generator=generator)
        lengths = torch.randn(samples, len(self.net.sizes), device=mean.device, generator=generator)
        parts = zip(noise.split(self.net.sizes, 1), lengths.split(1, 1), strict=True)
        directions = torch.cat([part / part.norm(dim=1, keepdim=True) * r for part, r in parts], 1)
        return mean.unsqueeze(-2) + std.unsqueeze(-2) * directions

    def weights_of(self, phi, samples, generator=None):
        return self.draw(*gaussian(phi), samples, generator)
