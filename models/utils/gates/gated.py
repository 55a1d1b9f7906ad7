"""What the methods with gates share: their options, the warm-up without gates, the terms of one pass, inference.

Reference: Varma, Arani, Zonooz 2023, "Dynamically Modular and Sparse General Continual Learning".
"""

from torch import Tensor

from palimpsest.backbone.gated_resnet import GatedResNet, Trace, in_full
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.gates.losses import (
    dense_macs,
    kept_fractions,
    kept_macs,
    policy_loss,
    prototype_loss,
    reward,
)
from palimpsest.utils.args import add_bool, fraction, non_negative_float, number, positive_float, positive_int
from palimpsest.utils.errors import UserError

WARMUP = 10  # epochs, or iterations where a task has one epoch and in a stream without tasks


def add_gate_args(parser):
    """Options of the gates and of their losses."""
    add = parser.add_argument
    add("--policy_penalty", type=number(float, high=0), default=-500.0,
        help="factor on the reward of wrong answers, which is negative already: written with a minus, used without",
    )  # fmt: skip
    add("--reward_weight", type=non_negative_float, default=0.5, help="weight of the policy loss")
    add("--keep_ratio", type=fraction, default=0.7, help="share of its channels that an agent is rewarded for keeping")
    add("--prototype_loss", type=non_negative_float, default=0.3, help="weight of the prototype loss")
    add("--temperature", type=positive_float, default=0.15, help="T of the keep probability sigmoid(v / T)")
    add("--hidden_dim_ratio", type=positive_int, default=16, help="channels over the width of an agent's bottleneck")
    add_bool(parser, "--warmup",
             help="begin without gates and replay: 10 epochs, or 10 iterations where tasks have one epoch")  # fmt: skip
    add("--infer_mode", choices=["threshold", "sample"], default="threshold", help="actions at test time")
    add("--inf_thresh", type=fraction, default=0.5, help="keep probability from which a channel is kept at test time")
    add_bool(parser, "--sparse_infer", help="predict one image at a time, dropped channels left out of the computation")
    return parser


class GatedModel(ContinualModel):
    """A method on the gated ResNet."""

    DEFAULTS = {"backbone": GatedResNet.NAME}

    def __init__(self, backbone, loss, args, transform, dataset=None):
        if not isinstance(backbone, GatedResNet):
            raise UserError(f"{self.NAME} needs channels that can be gated: drop --backbone, or use {GatedResNet.NAME}")
        backbone.add_agents(args.temperature, args.hidden_dim_ratio, args.inf_thresh, args.infer_mode == "sample")
        super().__init__(backbone, loss, args, transform, dataset)
        self.image_size = dataset.SIZE[1:]
        # One count over the whole run, so that a task too short for the warm-up does not start it anew.
        self.count = 0
        by_iterations = args.fitting_mode == "iters" or dataset.SETTING == "general-continual"
        self.counts_epochs = args.n_epochs > 1 and not by_iterations
        if args.warmup and self.counts_epochs and args.n_epochs <= WARMUP:
            raise UserError(
                f"--warmup trains {WARMUP} epochs without gates, a task has --n_epochs {args.n_epochs}: use one epoch "
                f"(then it is {WARMUP} iterations) or more than {WARMUP}, or --warmup 0"
            )
        if args.warmup and args.fitting_mode == "early_stopping":
            raise UserError(
                "--warmup with --fitting_mode early_stopping: the best epoch may be one without gates: drop one of them"
            )
        self.net.gating = not args.warmup

    def end_epoch(self, epoch, dataset):
        self.count += self.counts_epochs

    def end_task(self, dataset):
        last = min(self.args.stop_after or self.n_tasks, self.n_tasks) - 1
        if self.current_task == last and not self.net.gating and not self.args.debug_mode:
            raise UserError(f"the run is over before the {WARMUP} iterations of --warmup are: use --warmup 0")

    def forward(self, x):
        if self.args.sparse_infer and not self.training and self.net.gating:
            from palimpsest.backbone.utils.sparse_inference import SparseNet

            return SparseNet(self.net)(x)
        return self.net(x)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        if self.warming_up():
            return self.step_on({"ce": self.loss(self.net(inputs), labels)})
        logits, trace = self.net.traced(inputs)
        losses = self.step_on(self.pass_terms(logits, trace, labels) | self.replayed_terms())
        self.store(not_aug_inputs, labels, logits.detach(), trace.v.detach())
        return losses | self.kept(trace)

    def replayed_terms(self) -> dict[str, Tensor]:
        """Weighted losses on a draw from a buffer; none without one."""
        return {}

    def store(self, raw: Tensor, labels: Tensor, logits: Tensor, vectors: Tensor) -> None:
        """Keep what a method with a buffer replays: images, labels (B,), logits (B, C) and agents' vectors (B, A)."""

    def warming_up(self) -> bool:
        """Whether this iteration is one without gates; counts it."""
        self.net.gating = not self.args.warmup or self.count >= WARMUP
        self.count += not self.counts_epochs
        return not self.net.gating

    def pass_terms(self, logits: Tensor, trace: Trace, labels: Tensor) -> dict[str, Tensor]:
        """The weighted losses of one pass: ce, policy, prototype."""
        args, correct = self.args, logits.detach().argmax(1) == labels
        kept = kept_fractions(trace.actions, trace.logp.shape[1])
        rewards = reward(kept, correct, args.keep_ratio, abs(args.policy_penalty))
        return {
            "ce": self.loss(logits, labels),
            "policy": args.reward_weight * policy_loss(trace.logp, rewards),
            "prototype": args.prototype_loss * prototype_loss(trace.v, labels, correct),
        }

    def step_on(self, loss):
        with in_full(loss["ce"]):  # the agents' variance is a difference of near numbers, and so is its gradient
            return super().step_on(loss)

    def kept(self, trace: Trace) -> dict[str, Tensor]:
        """For the log, means over the batch: share of channels that each agent kept, and of the multiply-accumulates of
        the network without gates that they leave, the agents' own not counted.
        """
        kept = kept_fractions(trace.actions, trace.logp.shape[1])
        shape = self.net.nf, self.image_size, self.num_classes
        macs = kept_macs(kept, *shape).mean() / dense_macs(*shape)
        return {f"kept_{g}": k for g, k in enumerate(kept.mean(0).unbind(), start=1)} | {"macs": macs}

    def report(self, dataset, tasks):
        report = super().report(dataset, tasks)
        report.shares = ("kept_1", "kept_2", "kept_3", "kept_4", "macs")
        if tasks and self.net.gating:
            from palimpsest.models.utils.gates.analysis import gate_analysis, gate_numbers, gate_panels

            found = gate_analysis(self, dataset, tasks)
            report.numbers = gate_numbers(found)
            report.show(*gate_panels(found))
        return report
