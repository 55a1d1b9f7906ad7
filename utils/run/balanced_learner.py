"""Balanced EWC stage by stage from Python: the runner's own pieces, in the order that the caller wants; docs/vision.md
has an example.

It writes neither a report nor checkpoints; `main.py --model balanced-ewc` does.
"""

from dataclasses import replace
from types import SimpleNamespace

from palimpsest.utils.criterion import Verdict, of_run
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import evaluate
from palimpsest.utils.record import Position
from palimpsest.utils.run.config import resolve
from palimpsest.utils.run.experiment import build
from palimpsest.utils.run.training import evaluate_run, train


class BalancedContinualLearner:
    """A stream of vision tasks, a network and `models.balanced_ewc`.

    Args:
        model: a `BalancedMultiTaskModel`, whose trunk is trained; its branches are made afresh, with the outputs that
            the stream's tasks have. None: the network that the options describe.
        learning_rate: `--lr`.
        dataset: name of the stream.
        options: any option of `main.py --model balanced-ewc`, by name.

    Attributes:
        model, dataset, record: the method, the stream, and the scores so far, see `utils.record.Run`.

    Raises:
        UserError: an unknown option, an impossible value, data that are missing, a network of another `bn_policy`.
    """

    def __init__(self, model=None, learning_rate: float = 2e-4, dataset: str = "seq-vision-mini", **options):
        options = {"enable_other_metrics": True, "non_verbose": True} | options
        argv = ["--model", "balanced-ewc", "--dataset", dataset, "--lr", str(learning_rate), "--disable_log"]
        for name, value in options.items():
            argv += [f"--{name}", str(int(value) if isinstance(value, bool) else value)]
        config = resolve(argv)
        if model is not None:
            if "bn_policy" in options and options["bn_policy"] != model.bn_policy:
                raise UserError(f"bn_policy {options['bn_policy']!r}: the network has {model.bn_policy!r}: drop one")
            config = replace(config, backbone_class=SimpleNamespace(from_args=lambda *_: model))
        self.exp = exp = build(config)
        self.model, self.dataset, self.record, self.args = exp.model, exp.dataset, exp.run, exp.args
        self.model.postponed = True  # the last stage is a step of its own here

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks in the order of the stream."""
        return [task.name for task in self.dataset.tasks]

    def train_stage(self, task: str) -> dict[str, float]:
        """Train on the next task of the stream; `evaluate_all()` afterwards.

        Raises:
            UserError: `task` is not the next one.
            TrainingFailed: a loss is not finite.
        """
        done = self.model._current_task
        if task not in self.tasks[done : done + 1]:
            following = self.tasks[done] if done < len(self.tasks) else "none: all are trained"
            raise UserError(f"train_stage({task!r}): the next task is {following}; vision_order sets the order")
        self.args.stop_after = done + 1
        train(self.exp, self._end_of(done) if done else None)
        return self.evaluate_all()

    def _end_of(self, task: int) -> Position:
        return Position(task=task, step=self.record.history[-1].step)

    def evaluate_all(self) -> dict[str, float]:
        """Test score of every task, percent; those not trained yet included."""
        self.dataset.all_test_loaders()
        n = len(self.tasks)
        scores, _ = evaluate(self.model, self.dataset, range(n), min(self.model._current_task, n - 1))
        return dict(zip(self.tasks, scores["task-il"], strict=True))

    def check_forgetting(self) -> list[Verdict]:
        """Whether each task trained so far still scores what its own stage reached, less the tolerance."""
        return of_run(self.record)

    def finetune_if_needed(self) -> bool:
        """After the last stage: fine-tune where a target is missed on the images kept to be scored; whether it was.

        Raises:
            UserError: not all tasks are trained, or no images were kept.
        """
        if self.model._current_task < len(self.tasks) or not self.model.probes:
            raise UserError("finetune_if_needed() needs all stages trained, and finetune=True (the default)")
        self.model.finetune(self.dataset)
        if self.model.finetuned:
            evaluate_run(self.exp, self._end_of(len(self.tasks) - 1))
        return self.model.finetuned

    def run(self) -> list[Verdict]:
        """Every stage that is left, the fine-tuning if needed (not with `finetune=False`), and `check_forgetting()`."""
        for task in self.tasks[self.model._current_task :]:
            self.train_stage(task)
        if self.args.finetune:
            self.finetune_if_needed()
        return self.check_forgetting()
