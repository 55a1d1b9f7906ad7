"""PF-SSGE, the prior-focused counterpart of PR-SSGE: one implicit posterior with a head per task, whose prior is what
it was before the task.

    W = g(z; phi),    L = N E_q[CE] + kappa (E_q ln q(W) - E_q ln q_{t-1}(W)),    q_{-1} = N(0, sigma_p^2 I)

Both expectations enter by scores estimated at samples of q: mean_n <s_q(W_n) - s_{t-1}(W_n), W_n>, s_{t-1} from
samples of the generator as it was. An estimated score is 0 far from its samples: a posterior that must move far does
not feel its prior.

References: Henning et al. 2021, arXiv 2103.01133 (whose code adds s_{t-1} with the opposite sign); Shi, Sun & Zhu 2018.
"""

from models.utils.posterior.base import add_posterior_args
from models.utils.posterior.implicit import ImplicitPosterior, add_generator_args
from models.utils.posterior.score_estimate import SSGE_WAITS, ScoreEstimate, add_ssge_args
from models.utils.posterior.ssge import surrogate


class PFSSGE(ScoreEstimate, ImplicitPosterior):
    NAME = "pf_ssge"
    WAITS = SSGE_WAITS

    @staticmethod
    def get_parser(parser):
        return add_ssge_args(add_generator_args(add_posterior_args(parser)))

    def fit(self, inputs, labels):
        args = self.args
        weights = self.drawn(args.train_sample_size)
        extra = self.drawn(max(0, args.num_ssge_samples - len(weights)), self.phi.detach())
        score = self.estimated_score(weights, extra)
        if self.current_task == 0:
            prior = self.drawn(args.num_kl_samples).square().sum(1).mean() / (2 * args.prior_variance)
        else:
            before = self.drawn(args.num_ssge_samples, self.prior_phi)
            prior = -surrogate(weights, self.score_at(weights, before))
        return {
            "nll": self.nll(self.outputs(weights, inputs), labels),
            "prior": args.kl_scale * prior,
            "entropy": args.kl_scale * surrogate(weights, score),
            "score": score.norm(dim=1).mean(),
        }
