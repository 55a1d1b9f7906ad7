"""Implicit posteriors: weights are made from noise by a generator, W = g(z; phi), z ~ N(0, sigma_z^2 I). There are
samples but no density; its logarithm enters the loss by estimates.
"""

import torch
from torch import nn

from palimpsest.backbone.utils.task_hypernetwork import ACTIVATIONS, WeightGenerator
from palimpsest.models.utils.posterior.base import Posterior
from palimpsest.models.utils.posterior.meta_replay import MetaReplay
from palimpsest.utils.args import non_negative_float, non_negative_int, positive_float, positive_int
from palimpsest.utils.option_types import width_list


def add_generator_args(parser):
    """Options of the weight generator and of the samples."""
    add = parser.add_argument
    add("--imp_arch", type=width_list, default=[10, 10], help="hidden widths of the weight generator")
    add("--imp_act", choices=sorted(ACTIVATIONS), default="relu", help="its activation")
    add("--imp_chunk_size", type=non_negative_int, default=0, help="its outputs per chunk, 0: all weights in one call")
    add("--imp_chunk_emb_size", type=positive_int, default=32, help="entries of its chunk embeddings")
    add("--latent_dim", type=positive_int, default=8, help="entries of z that the generator reads")
    add("--latent_std", type=positive_float, default=1.0, help="standard deviation of z")
    add("--full_support_perturbation", type=non_negative_float, default=0.02,
        help="noise added to the weights generated, for full support; 0 for none")  # fmt: skip
    add("--kl_scale", type=non_negative_float, default=1.0, help="kappa, weight of the divergence from the prior")
    add("--train_sample_size", type=positive_int, default=10, help="weight samples of a training step")
    add("--num_kl_samples", type=positive_int, default=10, help="weight samples for the divergence")
    return parser


def generator_from(args, net) -> WeightGenerator:
    """The generator that the options describe, for all weights of a network."""
    return WeightGenerator(
        net.size, args.imp_arch, args.latent_dim, args.latent_std, args.imp_act,
        args.imp_chunk_size, args.imp_chunk_emb_size, args.full_support_perturbation,
    )  # fmt: skip


class ImplicitReplay(MetaReplay):
    """Meta-replay of implicit posteriors: a hyper-hypernetwork makes the weights phi_j of each task's generator."""

    def parameters_per_task(self):
        self.generator = generator_from(self.args, self.net)
        return self.generator.size

    def initial_phi(self):
        return self.generator.usual_weights()

    def generated_shapes(self):
        return self.generator.shapes

    def distance(self, targets, phi, tasks):
        """All weights of the generator belong to the task, whatever heads they make."""
        return (targets - phi).square().sum(1)

    def classifier_rows(self):
        return torch.full((self.n_phi,), -1, device=self.device)

    def weights_of(self, phi, samples, generator=None):
        return self.generator.draw(phi, samples, generator)


class ImplicitPosterior(Posterior):
    """One implicit posterior for all tasks, with a head per task; its prior is what it was before the task.

    Attributes:
        phi: weights of the generator.
        prior_phi: the same before the current task; None during the first task, whose prior is Gaussian.
    """

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.generator = generator_from(args, self.net)
        self.phi = nn.Parameter(self.generator.usual_weights().to(self.device))
        self.register_buffer("prior_phi", None)

    def begin_task(self, dataset):
        super().begin_task(dataset)
        if self.current_task > 0:
            self.prior_phi = self.phi.detach().clone()

    def weights(self, tasks, samples, generator=None):
        return self.generator.draw(self.phi, samples, generator).expand(len(tasks), -1, -1)
