"""PF-SSGE, the prior-focused counterpart of PR-SSGE: one implicit posterior with a head per task, whose prior is what
it was before the task.

    W = g(z; phi),    L = N E_q[CE] + kappa (E_q ln q(W) - E_q ln q_{t-1}(W)),    q_{-1} = N(0, sigma_p^2 I)

Both expectations enter by scores estimated at samples of q: mean_n <s_q(W_n) - s_{t-1}(W_n), W_n>, s_{t-1} from
samples of the generator as it was. An estimated score is 0 far from its samples: a posterior that must move far does
not feel its prior.

References: Henning et al. 2021, arXiv 2103.01133 (whose code adds s_{t-1} with the opposite sign); Shi, Sun & Zhu 2018.
"""

from palimpsest.models.utils.posterior.base import add_posterior_args
from palimpsest.models.utils.posterior.implicit import ImplicitPosterior, add_generator_args
from palimpsest.models.utils.posterior.ssge import ScoreEstimate, add_ssge_args


class PFSSGE(ScoreEstimate, ImplicitPosterior):
    NAME = "pf_ssge"

    @staticmethod
    def get_parser(parser):
        return add_ssge_args(add_generator_args(add_posterior_args(parser)))

    def fit(self, inputs, labels):
        return self.terms(self.phi, inputs, labels, self.prior_phi)
