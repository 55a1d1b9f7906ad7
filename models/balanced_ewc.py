"""Balanced EWC: a trunk shared by unlike vision tasks is held by a quadratic penalty, kept images and distillation.

    L = L_t(f_t(x), y) / s_t + lambda/2 sum_k sum_i (F~_ki + delta) (theta_i - theta*_ki)^2
    s_k: mean of L_k over the steps of the first epoch of stage k (those so far, during it)
    F~_k = F_k / mean(F_k) over the shared parameters;  F_k: Fisher information of task k's summed log-likelihood

Divided by s the losses of tasks compare: a focal loss and its gradients are tens of times smaller than those of masks.
Replayed masks would drown it, and the penalty would freeze the trunk, being stronger in Adam's metric the smaller the
gradients are.

The quadratics of all old tasks are merged exactly into one, which takes a proximal step after the task's own, in Adam's
metric where that is the optimiser; delta is a penalty on plain drift. Branches belong to their tasks and do not move
afterwards, unless `--replay_weight` or `--distill_weight` adds to L the losses of at most 10 kept images of each old
task, or what the old branches said about the new images before, both over s_k.

After the last task, where the criterion is missed on the images kept to be scored, a fine-tuning on those kept to train
on weighs the losses by max(0, target - value), and ends with the weights of the smallest worst shortfall.

References: Kirkpatrick et al. 2017, equation 3; Huszar 2018 (several tasks); Schwarz et al. 2018 (normalisation).
"""

import math

import torch

from palimpsest.backbone.utils.batchnorm import batchnorm_mode
from palimpsest.datasets.utils.vision.data import equally_spaced
from palimpsest.datasets.utils.vision.kinds import VisionTask
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.fisher import fisher_diagonal
from palimpsest.models.utils.kept_images import raw_images, select_exemplars
from palimpsest.models.utils.quadratic import Quadratic, add_update_argument, refuse_proximal, regularised_step
from palimpsest.models.utils.snapshot import Snapshot
from palimpsest.utils import panels
from palimpsest.utils.args import add_bool, non_negative_float, number, positive_float, positive_int
from palimpsest.utils.criterion import READINGS, target
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import held_out_scores


class BalancedEWC(ContinualModel):
    NAME = "balanced-ewc"
    COMPATIBILITY = ["task-il"]
    TASKS = (VisionTask,)
    DEFAULTS = {"clip_grad": 1.0}
    KEEPS_IMAGES = True

    @staticmethod
    def get_parser(parser):
        add = parser.add_argument
        add("--e_lambda", type=non_negative_float, default=0.01, help="strength of the penalty, lambda")
        add("--drift", type=non_negative_float, default=0.01, help="penalty delta on plain drift")
        add("--n_fisher", type=positive_int, help="images of the Fisher information (default: all)")
        told = "images of each task kept to be scored: held-out ones, or training images"
        add("--probe_size", type=number(int, 1, 64), default=64, help=told)
        add("--replay_per_task", type=number(int, 0, 10), default=10, help="images of each task kept to train on")
        add("--replay_weight", type=non_negative_float, default=0.0, help="weight of their losses in later tasks")
        add("--distill_weight", type=non_negative_float, default=0.0, help="weight of what the old branches said")
        add_bool(parser, "--balance_losses", default=True, help="divide a task's losses by their mean at its beginning")
        add("--softmax_temp", type=positive_float, default=2.0, help="temperature of the distillation")
        add("--tolerance", type=positive_float, default=5.0, help="what a task may lose, in points or percent")
        add("--criterion", choices=READINGS, default="absolute", help="points of the score, or percent of it")
        add_bool(parser, "--finetune", default=True, help="fine-tune on the kept images where a target is missed")
        add("--finetune_steps", type=positive_int, default=100, help="steps of it at most")
        add_update_argument(parser)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if args.ewc_update == "prox":
            refuse_proximal(self.opt)
        if args.start_from and not args.loadcheck:
            raise UserError("--start_from: balanced-ewc needs what the tasks before left: add --loadcheck")
        self.penalty = Quadratic()  # of all old tasks
        self.teacher = Snapshot()
        for name in ("loss_sums", "loss_steps"):  # of each task's first epoch
            self.register_buffer(name, torch.zeros(len(dataset.tasks), device=self.device))
        self.probes: list[list] = []  # task -> [(raw images, labels)], scored only
        self.replay: list[tuple] = []  # task -> (raw images, labels), trained on
        self.bases: list[float] = []  # score on the probe at the end of the own stage
        self.finetuned = False
        self.postponed = False  # whether the caller asks for the fine-tuning

    # ---- a stage

    def begin_task(self, dataset):
        if self.args.distill_weight and self.current_task:
            self.teacher.take(self.net)

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        own = self.loss(self.net(inputs), labels)
        if not epoch:
            self.loss_sums[self.current_task] += own.detach()
            self.loss_steps[self.current_task] += 1
        terms = {"task": own / self.scale(self.current_task)}
        past = self.dataset.tasks[: self.current_task]
        if past and (self.teacher or (self.args.replay_weight and self.replay)):
            losses, said = self.remembered(past, inputs)
            if losses:
                terms["replay"] = self.args.replay_weight * sum(losses) / len(losses)
            if said:
                terms["distilled"] = self.args.distill_weight * sum(said)
        loss = sum(terms.values())
        loss.backward()
        held = regularised_step(self, loss, self.penalty, self.args.e_lambda)
        return {"loss": held["loss"], **terms} | {name: held[name] for name in ("penalty",) if name in held}

    def scale(self, task: int) -> torch.Tensor | float:
        """What the losses of a task are divided by, s_k."""
        if not self.args.balance_losses:
            return 1.0
        steps = self.loss_steps[task]
        return torch.where(steps > 0, (self.loss_sums[task] / steps).clamp(min=1e-8), 1.0)

    def remembered(self, tasks, inputs=None) -> tuple[list, list]:
        """Of each task the loss on its kept images; and with new images, where there is a teacher, how far its branch
        is from what it said before the stage, on those and on the kept ones. Both over s_k, and with running
        statistics: a few images, or another task's, are no batch to normalise by.
        """
        losses, said, teacher = [], [], None if inputs is None else self.teacher.copy
        replayed = self.replay and (self.args.replay_weight or inputs is None)
        with batchnorm_mode(self.net, False), batchnorm_mode(teacher or self.net, False):
            for k, task in enumerate(tasks):
                x, y = self.unpacked(self.replay[k]) if replayed else (inputs[:0], None)
                n, x = len(x), torch.cat((x, inputs)) if teacher else x
                outputs = self.net(x, task.name)
                if n:
                    losses.append(task.loss(outputs[:n], y) / self.scale(k))
                if teacher:
                    with torch.no_grad():
                        taught = teacher(x, task.name)
                    said.append(task.distance(outputs, taught, self.args.softmax_temp) / self.scale(k))
        return losses, said

    def end_task(self, dataset):
        t = self.current_task
        fisher = fisher_diagonal(self.net, dataset.examples(self.args.n_fisher), "mc", dataset.tasks[t])
        self.penalty.merge(normalised(fisher, self.net.shared(), self.args.drift), self.net.get_params().detach())
        self.keep_images(dataset, t)
        self.bases = [*self.bases, self.value(t)]

    # ---- what is kept of a task

    def keep_images(self, dataset, task: int) -> None:
        """Images to score, held-out ones where there are any, and images to train on, which show all classes."""
        part, chosen = dataset.task_data(task), []

        def kept(rows) -> tuple:
            raw, labels = raw_images(part, rows, dataset.train_device)
            return raw, labels.byte() if dataset.tasks[task].MASKED else labels

        if n := self.args.replay_per_task:
            shown = torch.cat([dataset.tasks[task].presence(labels) for _, labels in dataset.examples(task=task)])
            chosen = select_exemplars(shown, n)
            self.replay = [*self.replay, kept(chosen)]
        if self.args.finetune:
            if dataset.held_out_loader is not None and not self.args.validation:  # by which the method is judged
                part, chosen = dataset.held_out_loader.dataset, []
            left = [row for row in range(len(part)) if row not in chosen]
            rows, size = [left[i] for i in equally_spaced(len(left), self.args.probe_size)], self.args.eval_batch_size
            self.probes = [*self.probes, [kept(rows[i : i + size]) for i in range(0, len(rows), size)]]

    def unpacked(self, kept: tuple) -> tuple:
        """(inputs, labels) of kept (raw images, labels); masks are kept in bytes."""
        raw, labels = kept
        masks = isinstance(labels, torch.Tensor) and labels.dtype == torch.uint8
        return self.normalization_transform(raw), labels.long() if masks else labels

    def value(self, task: int) -> float:
        """Score of a task on its probe, percent."""
        if not (self.probes and self.probes[task]):  # with few images none is left beside those to train on
            return math.nan
        return held_out_scores(self, self.dataset, task, map(self.unpacked, self.probes[task]))["accuracy"]

    # ---- the last stage

    def after_stream(self, dataset):
        if self.args.finetune and not self.postponed:
            self.finetune(dataset)
        return self.finetuned

    def shortfalls(self, dataset) -> list[float]:
        """max(0, target - value) of each task on its probe."""
        goals = [target(base, self.args.tolerance, self.args.criterion) for base in self.bases]
        return [max(0.0, goal - self.value(k)) for k, goal in enumerate(goals)]

    def finetune(self, dataset) -> None:
        """Train on the kept images of the tasks that miss their target, the others held by the penalty."""
        missing = self.shortfalls(dataset)
        if not any(missing) or not self.replay:
            return
        self.finetuned = True
        self.reset_optimizers()
        for group in self.opt.param_groups:
            group["lr"] = self.args.lr / 10
        best, weights = max(missing), {k: v.clone() for k, v in self.net.state_dict().items()}
        for step in range(1, self.args.finetune_steps + 1):
            self.opt.zero_grad()
            losses, _ = self.remembered(dataset.tasks)
            loss = sum(m / sum(missing) * part for m, part in zip(missing, losses, strict=True) if m)
            loss.backward()
            regularised_step(self, loss, self.penalty, self.args.e_lambda)
            if step % 10 and step < self.args.finetune_steps:
                continue
            missing = self.shortfalls(dataset)
            if max(missing) < best:
                best, weights = max(missing), {k: v.clone() for k, v in self.net.state_dict().items()}
            if not any(missing):
                break
        self.net.load_state_dict(weights)

    # ---- the report

    def report(self, dataset, tasks):
        args, report = self.args, super().report(dataset, tasks)
        notes = report.notes
        notes["kept images"] = f"of each task at most {args.replay_per_task} to train on"
        if args.finetune:
            notes["kept images"] += f", at most {args.probe_size} to be scored"
            notes["fine-tuning"] = "on the kept images alone, after the last task was scored; it is scored again then"
        notes["penalty"] = (
            f"lambda {args.e_lambda:g}, Fisher information of drawn labels summed over outputs, divided by its mean "
            f"over shared parameters, + {args.drift:g}"
        )
        report.numbers["fine-tuned at the end"] = float(self.finetuned)
        return report.show(panels.importance(self.penalty.weight))


def normalised(fisher: torch.Tensor, shared: torch.Tensor, drift: float) -> torch.Tensor:
    """F / mean(F) + drift over the shared parameters (P,) bool; 0 for those that are one task's own."""
    fisher = torch.where(shared, fisher, 0.0)
    mean = fisher.sum() / shared.sum()
    return torch.where(shared, fisher / mean.clamp(min=1e-30) + drift, 0.0)
