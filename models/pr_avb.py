"""PR-AVB, posterior meta-replay with implicit posteriors whose density ratio a discriminator learns.

    phi_j = h(e_j),    W = g(z; phi_j),    z ~ N(0, sigma_z^2 I)
    L = N E_q[CE] + kappa E_q[D(W) + ln alpha(W) - ln p(W)] + beta mean_{j<t} |phi_j^* - h(e_j)|^2

D tells samples of q from those of alpha = N(m, diag(s^2)), a Gaussian with the moments of q (adaptive contrast), so
that D = ln q - ln alpha at its optimum. It is trained `--num_dis_steps` steps before each step of the method, by an
optimiser of its own, and begins afresh with every task. `--no_adaptive_contrast`: D is against the prior itself.

References: Henning et al. 2021, arXiv 2103.01133; Mescheder, Nowozin & Geiger 2017, sections 2 and 3.
"""

from palimpsest.models.utils.posterior.adversary import Adversary, add_discriminator_args
from palimpsest.models.utils.posterior.base import add_posterior_args
from palimpsest.models.utils.posterior.implicit import ImplicitReplay, add_generator_args
from palimpsest.models.utils.posterior.meta_replay import add_meta_replay_args
from palimpsest.utils.args import add_bool


class PRAVB(Adversary, ImplicitReplay):
    NAME = "pr_avb"

    @staticmethod
    def get_parser(parser):
        add_discriminator_args(add_generator_args(add_meta_replay_args(add_posterior_args(parser))))
        add_bool(parser, "--adaptive_contrast", default=True, help="contrast with a Gaussian that has the same moments")
        return parser

    def fit_phi(self, phi, inputs, labels):
        contrast = self.args.adaptive_contrast
        dis, moments = self.train_discriminator(phi, contrast)
        weights, for_kl = self.training_weights(phi)
        nll = self.nll(self.outputs(weights, inputs), labels)
        return {"nll": nll, "kl": self.args.kl_scale * self.divergence(for_kl, contrast, moments), "dis": dis}
