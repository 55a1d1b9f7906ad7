"""Posterior meta-replay: one hypernetwork holds the parameters phi_j = h(e_j) of the posterior of every task, and old
ones are kept by a regulariser on its outputs.

    L = N E_q[-ln p(batch|W)] [+ kappa KL-part] + beta R,    R = mean_{j in J} D(phi_j before the task, phi_j now)

All losses are of the whole task (N examples), so beta has a meaning only together with N. J are all earlier tasks or a
random subset. Gradients flow to the hypernetwork and to all embeddings; every task begins with a fresh optimiser.

Reference: Henning et al. 2021, arXiv 2103.01133; von Oswald et al. 2020, arXiv 1906.00695 (the regulariser).
"""

import random

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.task_hypernetwork import ACTIVATIONS, TaskHypernetwork
from palimpsest.models.utils.posterior.base import Posterior
from palimpsest.models.utils.snapshot import Snapshot
from palimpsest.utils.args import (
    add_bool,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from palimpsest.utils.errors import UserError
from palimpsest.utils.option_types import width_list

IN_CACHE = 2**22  # weights generated in one call where there are more tasks to regularise
MEAN_VARIANCE, RHO_VARIANCE = 0.003, 0.083  # of fresh outputs under --hnet_init gauss


def add_meta_replay_args(parser):
    """Options of the hypernetwork and of the regulariser."""
    add = parser.add_argument
    add("--beta", type=non_negative_float, default=0.01, help="strength of the regulariser; 0 is fine-tuning")
    add("--reg_targets", choices=["stored", "online"], default="stored",
        help="keep the old outputs, or a copy of the hypernetwork to compute them from")  # fmt: skip
    add("--hnet_reg_batch_size", type=non_negative_int, default=0,
        help="regularise the outputs of so many random earlier tasks at a step, 0 for all")  # fmt: skip
    add("--hnet_arch", type=width_list, default=[50, 50], help="hidden widths of the hypernetwork, '' for none")
    add("--hnet_act", choices=sorted(ACTIVATIONS), default="relu", help="its activation")
    add("--cond_emb_size", type=positive_int, default=32, help="entries of a task embedding")
    add("--std_normal_temb", type=positive_float, default=1.0, help="standard deviation of fresh task embeddings")
    add("--chunk_size", type=non_negative_int, default=0, help="outputs of a chunk; 0: all weights in one call")
    add("--chunk_emb_size", type=positive_int, default=32, help="entries of a chunk embedding")
    add("--std_normal_emb", type=positive_float, default=1.0, help="standard deviation of fresh chunk embeddings")
    add_bool(parser, "--use_cond_chunk_embs", help="every task has chunk embeddings of its own")
    add("--hnet_init", choices=["xavier", "hyperfan", "gauss"], default="xavier",
        help="initialisation: plain, by the variance of the generated network, or of the outputs")  # fmt: skip
    add_bool(parser, "--keep_orig_init",
        help="with --hnet_init gauss or --no_hnet: means begin as weights of an ordinary network would")  # fmt: skip
    add_bool(parser, "--init_with_prev_emb", help="a task's embedding begins as a copy of the previous one")
    add_bool(parser, "--hnet", default=True, help="--no_hnet: no hypernetwork; one set of parameters, fine-tuned")
    add_bool(parser, "--separate", help="a fresh set of parameters, or a fresh hypernetwork, for every task (SP)")
    return parser


class MetaReplay(Posterior):
    """Base of the pr_* methods: phi_j from a shared hypernetwork, or one set per task (`--separate`), or a single set
    (`--no_hnet`), and the regulariser.

    A subclass defines `fit_phi` and `weights_of`.

    Attributes:
        squares: whether the distance is the sum of squares, for which there is a shorter way.
        hyper: the shared hypernetwork, or None.
        hypers: one per task under `--separate`.
        free: without hypernetworks, phi of each task, or a single one.
        targets: (t, n) phi_j before the current task, or None.
        learned: (t, n) phi_j right after task j was learned, for the drift.
        drift: ||phi_j now - phi_j after task j|| of every task ended.
    """

    squares = True

    def __init__(self, backbone, loss, args, transform, dataset=None):
        if args.hnet and args.hnet_init == "gauss" and args.chunk_size and args.keep_orig_init:
            raise UserError("--keep_orig_init with --hnet_init gauss needs a hypernetwork without chunks: drop one")
        super().__init__(backbone, loss, args, transform, dataset)
        self.n_phi = self.parameters_per_task()
        self.hyper, self.hypers, self.free = None, nn.ModuleList(), nn.ParameterList()
        if args.hnet and args.separate:
            self.hypers.extend(self._hypernetwork() for _ in range(self.n_tasks))
        elif args.hnet:
            self.hyper = self._hypernetwork()
        self.previous = Snapshot() if self.hyper is not None else None
        self.register_buffer("targets", None)
        self.register_buffer("learned", None)
        self.drift: list[float] = []
        self._rows = None

    # ---- what a method writes

    def parameters_per_task(self) -> int:
        """n, entries of phi."""
        return self.net.size

    def initial_phi(self) -> Tensor:
        """phi (n,) without a hypernetwork."""
        return self.net.usual_weights()

    def generated_shapes(self) -> list[torch.Size]:
        """Shapes of the tensors at the beginning of phi that are weights of a network, for initialisations."""
        return list(self.net.shapes.values())

    def fit_phi(self, phi: Tensor, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of the loss on the current task, whose phi is (n,)."""
        raise NotImplementedError

    def weights_of(self, phi: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Weights (J, S, P) drawn from posteriors phi (J, n)."""
        raise NotImplementedError

    def distance(self, targets: Tensor, phi: Tensor, tasks: list[int]) -> Tensor:
        """How far the posteriors (K, n) of these tasks are from their targets, (K,); by default sum of squares, the
        other tasks' heads left out.
        """
        squares = (targets - phi).square().unflatten(1, (-1, self.net.size)).sum(1)
        return self.net.own_sum(squares, self.own(tasks))

    # ---- phi

    def phi(self, tasks: list[int]) -> Tensor:
        """(K, n) of these tasks."""
        if self.hyper is not None:
            return self.hyper(tasks)
        if self.hypers:
            return torch.cat([self.hypers[t]([0]) for t in tasks])
        return torch.stack([self.free[t if self.args.separate else 0] for t in tasks])

    def weights(self, tasks, samples, generator=None):
        return self.weights_of(self.phi(tasks), samples, generator)

    def _hypernetwork(self) -> TaskHypernetwork:
        args = self.args
        hyper = TaskHypernetwork(
            self.n_phi, args.hnet_arch, args.cond_emb_size, args.hnet_act, args.chunk_size, args.chunk_emb_size,
            args.use_cond_chunk_embs, args.std_normal_temb, args.std_normal_emb,
        )  # fmt: skip
        if args.hnet_init == "hyperfan":
            hyper.initialise_hyperfan(self.generated_shapes())
        elif args.hnet_init == "gauss":
            n = sum(shape.numel() for shape in self.generated_shapes())
            hyper.initialise_gauss([(n, MEAN_VARIANCE), (self.n_phi - n, RHO_VARIANCE)])
            if args.keep_orig_init:
                hyper.initialise_hyperfan(self.generated_shapes())
        return hyper.to(self.device)

    # ---- learning

    def get_parameters(self):
        """Under `--separate` those of the current task alone."""
        if self.args.separate and self.n_begun:
            return self.hypers[self.n_begun - 1].parameters() if self.hypers else [self.free[-1]]
        return super().get_parameters()

    def begin_task(self, dataset):
        self.make_tasks(self.current_task)
        if self._regularised:
            if self.args.reg_targets == "stored":
                with torch.no_grad():
                    self.targets = self.phi(list(range(self.current_task)))
            if self.args.reg_targets == "online" or (self.squares and self.args.chunk_size):
                self.previous.take(self.hyper)
            if self.squares and self.args.chunk_size and self._rows is None:
                self._rows = self._rows_of_chunks()
        super().begin_task(dataset)

    def add_task(self):
        if self.hyper is not None:
            self.hyper.add_task(like_previous=self.args.init_with_prev_emb)
        elif self.hypers:
            self.hypers[self.n_begun].add_task()
        elif self.args.separate or not self.n_begun:
            self.free.append(nn.Parameter(self.initial_phi().to(self.device)))

    @property
    def _regularised(self) -> bool:
        return self.hyper is not None and self.current_task > 0 and self.args.beta > 0

    def fit(self, inputs, labels):
        t, wanted = self.current_task, self.args.hnet_reg_batch_size
        old = list(range(t)) if self._regularised else []
        if wanted and len(old) > wanted:
            old = random.sample(old, wanted)
        hyper = self.hyper
        algebraic = (
            old and self.squares and hyper.chunk and len(old) * hyper.n_chunks > 4 * hyper.layers[-1].in_features
        )
        together = (len(old) + 1) * self.n_phi <= IN_CACHE and not algebraic
        tasks = [t, *old] if together else [t]
        # split, not two slices: its gradient is one copy
        phi, others = self.phi(tasks).split([1, len(tasks) - 1])
        terms = self.fit_phi(phi.squeeze(0), inputs, labels)
        if algebraic:
            terms["reg"] = self.args.beta / len(old) * self.squared_change(old)
        elif old and together:
            terms["reg"] = self.args.beta * self.distance(self._targets(old), others, old).mean()
        elif old:
            terms["reg"] = self._regularise_in_parts(old)
        return terms

    def squared_change(self, tasks: list[int]) -> Tensor:
        """sum_j |phi_j^* - h(e_j)|^2 over these tasks, the other tasks' heads left out: by algebra for the chunks that
        count as a whole, the others one by one.
        """
        hyper, before = self.hyper, self.previous.copy
        whole, partly, rows = self._rows
        total = hyper.squared_change(before, tasks, whole)
        with torch.no_grad():
            target, own = before.chunks(tasks, partly), self.own(tasks)
            counted = (rows == -1).float().expand(len(tasks), -1, -1)
            if own is not None:
                counted = torch.where(rows >= 0, own[:, rows.clamp(min=0)], counted)
        return total + ((hyper.chunks(tasks, partly) - target).square() * counted).sum()

    def _rows_of_chunks(self) -> tuple[Tensor, Tensor, Tensor]:
        """Chunks all of whose outputs belong to every task (W,), the others (V,), and of these (V, chunk) the row of
        the classifier an output belongs to, -1 for a shared one, -2 for one that is cut off.
        """
        rows = self.classifier_rows()
        rows = torch.cat([rows, rows.new_full((self.hyper.n_chunks * self.hyper.chunk - len(rows),), -2)])
        rows = rows.view(self.hyper.n_chunks, -1)
        shared = (rows == -1).all(1)
        return shared.nonzero().squeeze(1), (~shared).nonzero().squeeze(1), rows[~shared]

    def classifier_rows(self) -> Tensor:
        """For every entry of phi (n,) the output of the network whose classifier weights it makes, -1 for others."""
        rows = torch.full((self.net.size,), -1, device=self.device)
        if self.multi:
            for part in self.net.head_parts(rows):
                part.copy_(torch.arange(self.net.n_outputs, device=self.device).view(-1, *[1] * (part.dim() - 1)))
        return rows.repeat(self.n_phi // self.net.size)

    def _regularise_in_parts(self, tasks: list[int]) -> Tensor:
        """The regulariser's value; its gradients are added to the parameters' at once, a few tasks at a time, so that
        what has been generated need not leave the cache.
        """
        size, total = max(1, IN_CACHE // self.n_phi), 0.0
        for first in range(0, len(tasks), size):
            part = tasks[first : first + size]
            value = self.args.beta / len(tasks) * self.distance(self._targets(part), self.phi(part), part).sum()
            value.backward()
            total = total + value.detach()
        return total

    def _targets(self, tasks: list[int]) -> Tensor:
        if self.args.reg_targets == "online":
            with torch.no_grad():
                return self.previous.copy(tasks)
        return self.targets if len(tasks) == len(self.targets) else torch.stack([self.targets[t] for t in tasks])

    def end_task(self, dataset):
        if self.hyper is None or self.args.reg_targets == "online":  # what is kept there is O(1) in the tasks
            return
        with torch.no_grad():
            phi = self.phi(list(range(self.n_begun)))
            self.learned = phi if self.learned is None else torch.cat([self.learned, phi[len(self.learned) :]])
            self.drift = (phi - self.learned).norm(dim=1).tolist()

    def _besides(self, look, inferred, labels, task, scenarios):
        more = super()._besides(look, inferred, labels, task, scenarios)
        if task < len(self.drift):
            more["drift"] = scenarios[-1], torch.full((), self.drift[task] * len(labels), device=self.device)
        return more
