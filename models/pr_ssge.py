"""PR-SSGE, posterior meta-replay with implicit posteriors: a hyper-hypernetwork makes a generator of weights for every
task, and the score of its distribution is estimated from samples.

    phi_j = h(e_j),    W = g(z; phi_j),    z ~ N(0, sigma_z^2 I)
    L = N E_q[CE] + kappa (E_q ln q(W) - E_q ln p(W)) + beta mean_{j<t} |phi_j^* - h(e_j)|^2

The gradient of E_q ln q is E_z[(dW/dphi)^T s(W)] with s = grad ln q; s is estimated by SSGE from `--num_ssge_samples`
samples and enters as the loss mean_n <s(W_n), W_n> with s held fixed, so that it is clipped like all else.

References: Henning et al. 2021, arXiv 2103.01133; Shi, Sun & Zhu 2018 (SSGE).
"""

from palimpsest.models.utils.posterior.base import add_posterior_args
from palimpsest.models.utils.posterior.implicit import ImplicitReplay, add_generator_args
from palimpsest.models.utils.posterior.meta_replay import add_meta_replay_args
from palimpsest.models.utils.posterior.ssge import ScoreEstimate, add_ssge_args


class PRSSGE(ScoreEstimate, ImplicitReplay):
    NAME = "pr_ssge"

    @staticmethod
    def get_parser(parser):
        return add_ssge_args(add_generator_args(add_meta_replay_args(add_posterior_args(parser))))

    def fit_phi(self, phi, inputs, labels):
        return self.terms(phi, inputs, labels)
