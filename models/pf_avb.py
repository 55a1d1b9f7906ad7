"""PF-AVB, the prior-focused counterpart of PR-AVB: one implicit posterior with a head per task, whose prior is what it
was before the task.

    W = g(z; phi),    L = N E_q[CE] + kappa KL(q || q_{t-1}),    q_{-1} = N(0, sigma_p^2 I)

In the first task the divergence is estimated as in PR-AVB, by adaptive contrast. Later D tells samples of q from those
of the generator as it was before the task, and the divergence is E_q[D].

References: Henning et al. 2021, arXiv 2103.01133; Mescheder, Nowozin & Geiger 2017.
"""

from models.utils.posterior.adversary import Adversary, add_discriminator_args
from models.utils.posterior.base import add_posterior_args
from models.utils.posterior.implicit import ImplicitPosterior, add_generator_args


class PFAVB(Adversary, ImplicitPosterior):
    NAME = "pf_avb"

    @staticmethod
    def get_parser(parser):
        return add_discriminator_args(add_generator_args(add_posterior_args(parser)))

    def fit(self, inputs, labels):
        args = self.args
        fixed = self.phi.detach()
        contrast = prior = None
        if self.current_task == 0:
            contrast = self.moments(lambda n: self.drawn(n, fixed))
        else:
            prior = lambda n: self.drawn(n, self.prior_phi)  # noqa: E731 - as the other sampler
        dis = self.train_discriminator(lambda n: self.drawn(n, fixed), contrast, prior)
        weights = self.drawn(args.train_sample_size)
        kl_weights = weights if args.num_kl_samples == len(weights) else self.drawn(args.num_kl_samples)
        if self.current_task == 0:
            kl = self.divergence_from_gaussian(kl_weights, contrast)
        else:
            kl = self.discriminator(kl_weights).mean()
        return {"nll": self.nll(self.outputs(weights, inputs), labels), "kl": args.kl_scale * kl, "dis": dis}
