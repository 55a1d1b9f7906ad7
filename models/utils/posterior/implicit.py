"""Implicit posteriors: weights are made from noise by a generator, W = g(z; phi), z ~ N(0, sigma_z^2 I). There are
samples but no density; its logarithm enters the loss by estimates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbone.utils.task_hypernetwork import ACTIVATIONS, WeightGenerator
from models.utils.posterior.base import Posterior
from models.utils.posterior.meta_replay import MetaReplay
from utils.args import non_negative_float, non_negative_int, positive_float, positive_int, width_list


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
        return self.generator(phi, self.generator.noise(samples, self.device, generator))

    def drawn(self, phi: Tensor, samples: int) -> Tensor:
        """W (S, P) of one task's phi (n,)."""
        return self.weights_of(phi.unsqueeze(0), samples)[0]


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

    def drawn(self, samples: int, phi: Tensor | None = None) -> Tensor:
        """W (S, P) of the posterior, or of another phi."""
        phi = self.phi if phi is None else phi
        return self.generator(phi.unsqueeze(0), self.generator.noise(samples, self.device))[0]

    def weights(self, tasks, samples, generator=None):
        noise = self.generator.noise(samples, self.device, generator)
        return self.generator(self.phi.unsqueeze(0), noise).expand(len(tasks), -1, -1)


def log_gaussian(weights: Tensor, mean: Tensor | float, variance: Tensor | float) -> Tensor:
    """ln N(W; mean, diag(variance)) (S,) of weights (S, P)."""
    variance = torch.as_tensor(variance, device=weights.device)
    terms = (weights - mean).square() / variance + torch.log(2 * torch.pi * variance)
    return -terms.sum(1) / 2


class Discriminator(nn.Module):
    """D(W) ~ ln q(W) - ln ref(W), learned by telling samples of q (label 1) from those of a reference (label 0).

    Mescheder, Nowozin & Geiger 2017, "Adversarial variational Bayes".

    Args:
        size: P.
        hidden, activation: of the MLP.
        batch_statistics: the mean of the batch is part of every input (2P entries).
    """

    def __init__(self, size: int, hidden: list[int], activation: str = "relu", batch_statistics: bool = False):
        super().__init__()
        self.batch_statistics, self.activation = batch_statistics, ACTIVATIONS[activation]
        widths = [size * (2 if batch_statistics else 1), *hidden, 1]
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in zip(widths, widths[1:], strict=False))
        self.reset()

    def reset(self) -> None:
        """Fresh weights."""
        for layer in self.layers:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, weights: Tensor) -> Tensor:
        """D (S,) of weights (S, P)."""
        h = torch.cat([weights, weights.mean(0).expand_as(weights)], 1) if self.batch_statistics else weights
        for layer in self.layers[:-1]:
            h = self.activation(layer(h))
        return self.layers[-1](h).squeeze(1)

    def loss(self, posterior: Tensor, reference: Tensor) -> Tensor:
        """Binary cross-entropy of samples (N, P) of either kind; summed over the kinds."""
        return F.softplus(-self(posterior.detach())).mean() + F.softplus(self(reference.detach())).mean()
