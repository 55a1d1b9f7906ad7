"""PR-Dirac, posterior meta-replay with point masses: a hypernetwork makes one weight vector per task.

    W_j = h(e_j),    L = N CE(f(x; W_t), y) + beta mean_{j<t} |m_j (W_j^* - h(e_j))|^2

W_j^* = h(e_j) before task t; m_j leaves out the heads of other tasks. The task is inferred from the entropy of the
prediction (HNET+ENT). `--beta 0` is fine-tuning, `--no_hnet` the same without a hypernetwork, `--separate` trains a
network per task.

References: von Oswald et al. 2020, "Continual learning with hypernetworks"; Henning et al. 2021, arXiv 2103.01133.
"""

from palimpsest.models.utils.posterior.base import add_posterior_args
from palimpsest.models.utils.posterior.meta_replay import MetaReplay, add_meta_replay_args


class PRDirac(MetaReplay):
    NAME = "pr_dirac"
    samples = 1

    @staticmethod
    def get_parser(parser):
        return add_meta_replay_args(add_posterior_args(parser, samples=False, prior=False))

    def fit_phi(self, phi, inputs, labels):
        return {"nll": self.nll(self.outputs(phi.unsqueeze(0), inputs), labels)}

    def weights_of(self, phi, samples, generator=None):
        return phi.unsqueeze(1)
