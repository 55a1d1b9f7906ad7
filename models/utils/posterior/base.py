"""Methods that learn a distribution over a network's weights: the network without weights of its own, one head per
task, prediction by averaging over samples, and the task told from which posterior is certain.

For every task j so far there is a posterior q_j (prior-focused methods: one posterior with a head per task). With S
samples, p_j(y|x) = mean_s p(y|x, W_s), W_s ~ q_j. TGiven, the runner's task-IL: predict by p_j of the true task.
TInfer, the runner's class-IL (or domain-IL): predict by p_j of the task inferred, argmin_j of the entropy of p_j.

Reference: Henning et al. 2021, "Posterior meta-replay for continual learning", arXiv 2103.01133.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.external import LARGEST_CALL, ExternalWeights
from palimpsest.datasets.utils.task import ClassTask, RegressionTask
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.posterior import view as posterior_view
from palimpsest.models.utils.posterior.task_inference import CRITERIA, mean_log_probabilities, uncertainties
from palimpsest.utils.args import positive_float, positive_int
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import eval_mode, kept_in_evaluation

EVALUATION_SEED = 2147483647  # the same noise for every posterior and every batch
BN_MOMENTUM = 0.1


@dataclass
class Look:
    """What all posteriors say about a batch.

    Attributes:
        means: of every task j, ln p_j (B, C_j); in regression the mean over samples (B, D).
        uncertainty: criterion -> (J, B), the task of the smallest value is inferred; nan where it is not defined.
        spread: in regression the standard deviation over samples of every task (B, D), else None.
    """

    means: list[Tensor]
    uncertainty: dict[str, Tensor]
    spread: list[Tensor] | None = None

    def inferred(self, criterion: str) -> Tensor:
        """Task (B,) by a criterion; the newest one where it tells nothing."""
        values = self.uncertainty[criterion]
        newest = len(values) - 1
        return torch.where(values.isnan().any(0), newest, values.argmin(0))


def add_posterior_args(parser, samples: bool = True, prior: bool = True):
    """Options of all methods with a posterior."""
    add = parser.add_argument
    add("--heads", choices=["multi", "single"], default="multi",
        help="domain-IL streams: a head per task, as the paper has it, or one for all")  # fmt: skip
    if prior:
        add("--prior_variance", type=positive_float, default=1.0, help="variance of the Gaussian prior of a weight")
    if samples:
        add("--val_sample_size", type=positive_int, default=10,
            help="weight samples per posterior in evaluation; published figures are with 100")  # fmt: skip
    return parser


class Posterior(ContinualModel):
    """Base of the methods with a posterior over weights.

    A subclass defines `fit` and `weights`, and makes its parameters in `__init__` or `add_task`.

    Class attributes:
        NO_TERMS: what `fit` returns to be logged, not as a term of the loss.
        joint_softmax: the classes of all tasks compete in one softmax, so that there is no task to be inferred.

    Attributes:
        net: the network without weights, see `ExternalWeights`.
        n_begun: tasks begun so far, each with a head and with BatchNorm statistics of its own.
        n_train: examples of the current task: losses are those of the whole task, N times the mean of a batch.
        curves: task -> mean and spread (2, n) over the stream's `plot_inputs` right after it was learned (regression).
    """

    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    TASKS = (ClassTask, RegressionTask)
    DEFAULTS = {"optimizer": "adam", "lr": 0.001}
    UNUSED = ("multi_head",)
    INFERS_TASK = True
    NO_TERMS: tuple[str, ...] = ()
    joint_softmax = False
    n_begun = 0

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.regression = dataset.TASK is RegressionTask
        self.by_class = dataset.SETTING == "class-il"
        if self.by_class and args.heads == "single":
            raise UserError(f"--heads single: the tasks of {dataset.NAME} have heads of their own: drop it")
        if self.by_class and min(dataset.cpt(t) for t in range(dataset.N_TASKS)) < 2:
            raise UserError(f"{self.NAME}: a task of one class is always certain, so no task can be inferred")
        self.multi = self.by_class or (not self.regression and args.heads == "multi")
        if self.multi and not self.by_class:
            outputs = dataset.N_TASKS * dataset.N_CLASSES
            backbone.classifier = nn.Linear(backbone.feature_dim, outputs, device=self.device)
        self.net = ExternalWeights(backbone).to(self.device)
        if getattr(args, "local_reparam", False) and self.net.plain_layers is None:
            raise UserError(
                f"--local_reparam needs a fully connected network, not {args.backbone}: --backbone mnistmlp"
            )
        self.n_begun, self.n_train = 0, 0
        self.curves: dict[int, Tensor] = {}
        # -ln p(y|x) is the loss, or for a Gaussian likelihood the squared error over 2 sigma^2
        self.likelihood_scale = 1 / (2 * dataset.SIGMA**2) if self.regression else 1.0
        self.register_buffer("statistics", None)

    # ---- what a method writes

    def fit(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of the loss on the current task."""
        raise NotImplementedError

    def weights(self, tasks: list[int], samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Weights (J, S, P) drawn from the posteriors of these tasks, the same noise for each of them."""
        raise NotImplementedError

    # ---- learning

    def get_parameters(self):
        """All parameters of the method; the network has none of its own."""
        return (p for p in self.parameters() if p.requires_grad)

    def begin_task(self, dataset):
        self.n_train = len(dataset.train_loader.dataset)
        self.make_tasks(self.current_task + 1)
        self.reset_optimizers()

    def make_tasks(self, n: int) -> None:
        """What the first n tasks need; those before `--start_from` are made, not trained."""
        while self.n_begun < n:
            self.add_task()
            self.n_begun += 1
            if self.net.n_statistics:
                fresh = self.net.initial_statistics().to(self.device).unsqueeze(0)
                self.statistics = fresh if self.statistics is None else torch.cat([self.statistics, fresh])

    def meta_end_task(self, dataset):
        super().meta_end_task(dataset)
        if self.regression and hasattr(dataset, "plot_inputs"):
            with eval_mode(self):
                task = self.current_task - 1
                self.curves[task] = posterior_view.curve(self, dataset.plot_inputs())[task].clone()

    def running_statistics(self):
        return () if self.statistics is None else (self.statistics,)

    def add_task(self) -> None:
        """Make what a new task needs."""

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        self.opt.zero_grad()
        terms = self.fit(inputs, labels)
        loss = sum(value for name, value in terms.items() if name not in self.NO_TERMS)
        loss.backward()
        self.opt.step()
        return {"loss": loss, **terms}

    def head(self, task: int) -> tuple[int, int]:
        """First output of the network that belongs to a task, and one past its last."""
        if not self.multi:
            return 0, self.net.n_outputs
        if self.by_class:
            return self.get_offsets(task)
        return task * self.num_classes, (task + 1) * self.num_classes

    def own(self, tasks: list[int]) -> Tensor | None:
        """(K, outputs) 1 for those of each task's head, else 0; None where the head is shared."""
        if not self.multi:
            return None
        outputs = torch.arange(self.net.n_outputs, device=self.device)
        # Compared with numbers: a tensor of them would have to be copied from the host.
        return torch.stack([(outputs >= low) & (outputs < high) for low, high in map(self.head, tasks)]).float()

    def used_by(self, tasks: list[int]) -> Tensor:
        """(P,) 1 for the weights that any of these tasks uses: all but the classifier rows of other heads."""
        used = torch.ones(self.net.size, device=self.device)
        if self.multi:
            rows = self.own(tasks).amax(0)
            for part in self.net.head_parts(used):
                part.mul_(rows.view(-1, *[1] * (part.dim() - 1)))
        return used

    def outputs(self, weights: Tensor, inputs: Tensor) -> Tensor:
        """Outputs (S, B, C) of the current task's head under weights (S, P), in training."""
        out, seen = self.net.apply(weights, inputs, self.head(self.current_task))
        if seen is not None:
            with torch.no_grad():
                self.statistics[self.current_task].lerp_(seen.mean(0), BN_MOMENTUM)
        return out

    def nll(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """-E_q ln p(D|W) of the whole task, estimated by outputs (S, B, C) on a batch."""
        labels = labels - self.first_label(self.current_task)
        every = labels.repeat(len(outputs), *[1] * (labels.dim() - 1))
        return self.n_train * self.likelihood_scale * self.loss(outputs.flatten(0, 1), every)

    def first_label(self, task: int) -> int:
        """Label of the first output of a task's head."""
        return self.get_offsets(task)[0] if self.by_class else 0

    # ---- prediction

    @property
    def samples(self) -> int:
        """Weight samples per posterior in evaluation."""
        return self.args.val_sample_size

    @torch.no_grad()
    def sampled_outputs(self, x: Tensor, since: int = 0) -> list[Tensor]:
        """Outputs (S, B, C_j) of the head of every task j so far, beginning with task `since`, under the posterior of
        that task; as many posteriors at a time as there is room for samples of.
        """
        out, together = [], max(1, LARGEST_CALL // (self.samples * self.net.size))
        for first in range(since, self.n_begun, together):
            tasks = list(range(first, min(first + together, self.n_begun)))
            weights = self._evaluated_weights(tasks)
            statistics = None if self.statistics is None else self.statistics[first : first + together]
            out += self.net.evaluate(weights, x, [self.head(t) for t in tasks], statistics)
        return out

    def _evaluated_weights(self, tasks: list[int]) -> Tensor:
        """(J, S, P) by which these tasks are evaluated: of the same noise for every batch, so they are drawn once in an
        evaluation where there is room for those of all tasks.
        """
        kept, key = kept_in_evaluation(self), (tasks[0], tasks[-1])
        if kept is not None and key in kept:
            return kept[key]
        noise = torch.Generator(self.device).manual_seed(EVALUATION_SEED)
        weights = self.weights(tasks, self.samples, noise)
        if kept is not None and self.n_begun * self.samples * self.net.size <= LARGEST_CALL:
            kept[key] = weights
        return weights

    def look(self, x: Tensor) -> Look:
        """What every posterior so far says about inputs; at least one task has begun."""
        outputs = self.sampled_outputs(x)
        if self.regression:
            means, spread = [o.mean(0) for o in outputs], [o.std(0, correction=0) for o in outputs]
            total = torch.stack([s.mean(-1) for s in spread])
            total = total if len(outputs[0]) > 1 else torch.full_like(total, torch.nan)
            return Look(means, dict.fromkeys(CRITERIA, total), spread)
        each = [mean_log_probabilities(o) for o in outputs]
        by_task = [uncertainties(*e) for e in each]
        return Look([mean for mean, _ in each], {c: torch.stack([u[c] for u in by_task]) for c in CRITERIA})

    def predicted(self, look: Look, task: Tensor) -> Tensor:
        """What the stream's score reads (B, C) when every input (B,) is taken to be of a given task.

        On a class-IL stream ln p_j - b [j != task] for every head j, with b so large that the task's best class wins:
        masking the classes of other tasks then leaves ln p_j. In float32 without loss, since b is small.
        """
        if not self.by_class:
            means = torch.stack(look.means)
            return means.gather(0, task.view(1, -1, 1).expand(1, -1, means.shape[-1]))[0].float()
        bound = 1 + math.log(max(mean.shape[-1] for mean in look.means))
        scores = torch.full((len(task), self.num_classes), -3 * bound, device=self.device)
        for j, mean in enumerate(look.means):
            low, high = self.head(j)
            scores[:, low:high] = mean.clamp(min=-60.0) - bound * (task != j).unsqueeze(1)
        return scores

    def forward(self, x):
        """The prediction with the task inferred; all equal before the first task."""
        if not self.n_begun:
            return torch.zeros(len(x), self.num_classes, device=x.device)
        look = self.look(x)
        return self.predicted(look, look.inferred("ent"))

    def evaluate_batch(self, inputs, labels, task, scenarios):
        if not self.n_begun:
            return super().evaluate_batch(inputs, labels, task, scenarios)
        look = self.look(inputs)
        inferred = {criterion: look.inferred(criterion) for criterion in CRITERIA}
        outputs = dict.fromkeys(scenarios, self.predicted(look, inferred[CRITERIA[0]]))
        known = min(task, self.n_begun - 1)
        if not self.by_class and "task-il" in outputs:
            outputs["task-il"] = self.predicted(look, torch.full_like(inferred["ent"], known))
        return outputs, self._besides(look, inferred, labels, task, scenarios)

    def _besides(self, look: Look, inferred: dict, labels: Tensor, task: int, scenarios: list[str]) -> dict:
        """Sums over a batch of: scores with the task inferred by the other criteria, how often each criterion finds the
        task, and the negative log-likelihood (nats) of the mean prediction with the task given.
        """
        main, last, more = scenarios[0], scenarios[-1], {}
        for criterion in self.criteria:
            more[f"task_inference_{criterion}"] = main, (inferred[criterion] == task).sum() * 100.0
            if criterion != "ent":
                right = (self.predicted(look, inferred[criterion]).argmax(1) == labels).sum() * 100.0
                more[f"accuracy_{criterion}"] = main, right
        if not self.regression and task < self.n_begun:
            log_p = look.means[task].gather(1, (labels - self.first_label(task)).unsqueeze(1))
            more["nll"] = last, -log_p.double().sum()
        return more

    @property
    def criteria(self) -> tuple[str, ...]:
        """Criteria of task inference that say something: a single sample cannot disagree with itself, in regression
        all are the spread of the samples, and a single task (`--joint`) is no choice.
        """
        if self.n_tasks == 1:
            return ()
        if self.regression:
            return CRITERIA[:1] if self.samples > 1 else ()
        return CRITERIA if self.samples > 1 else CRITERIA[:2]

    def report(self, dataset, tasks):
        report = super().report(dataset, tasks)
        if not self.joint_softmax and self.n_tasks > 1:
            spread = "the spread of the predictions" if self.criteria else "the newest task: a point has no spread"
            what = spread if self.regression else "the entropy of the mean prediction"
            report.notes["TGiven, TInfer"] = f"task-IL; {self.dataset.SETTING}, by {what}"
        if tasks and self.n_begun and not self.args.joint:
            report.numbers, panels = posterior_view.numbers_and_panels(self, dataset, tasks)
            report.show(*panels)
        return report
