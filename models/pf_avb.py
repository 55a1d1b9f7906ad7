"""PF-AVB, the prior-focused counterpart of PR-AVB: one implicit posterior with a head per task, whose prior is what it
was before the task.

    W = g(z; phi),    L = N E_q[CE] + kappa KL(q || q_{t-1}),    q_{-1} = N(0, sigma_p^2 I)

In the first task the divergence is estimated as in PR-AVB, by adaptive contrast. Later D tells samples of q from those
of the generator as it was before the task, and the divergence is E_q[D].

References: Henning et al. 2021, arXiv 2103.01133; Mescheder, Nowozin & Geiger 2017.
"""

from palimpsest.models.utils.posterior.adversary import Adversary, add_discriminator_args
from palimpsest.models.utils.posterior.base import add_posterior_args
from palimpsest.models.utils.posterior.implicit import ImplicitPosterior, add_generator_args


class PFAVB(Adversary, ImplicitPosterior):
    NAME = "pf_avb"

    @staticmethod
    def get_parser(parser):
        return add_discriminator_args(add_generator_args(add_posterior_args(parser)))

    def fit(self, inputs, labels):
        contrast = self.prior_phi is None
        dis, moments = self.train_discriminator(self.phi, contrast, self.prior_phi)
        weights, for_kl = self.training_weights(self.phi)
        kl = self.args.kl_scale * self.divergence(for_kl, contrast, moments)
        return {"nll": self.nll(self.outputs(weights, inputs), labels), "kl": kl, "dis": dis}
