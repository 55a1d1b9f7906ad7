"""The training loop: tasks, epochs, batches, and an evaluation after each task."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from models.utils.continual_model import ContinualModel
from utils.errors import TrainingFailed
from utils.evaluation import empty_matrix, evaluate, held_out_scores, measure, predictions, scenarios
from utils.run import Evaluation, Run
from utils.schedule import warm_up

FLUSH_EVERY = 50  # iterations between two looks at the losses; only then does the loop wait for the device


@dataclass
class Position:
    """A place in the stream: `batch` batches of `epoch` of `task` are done, `step` iterations in all; `inside` a
    task that began.

    `progress` and `stopping` are what the loop itself remembers there; `pending` and `restored` are the same as they
    come from a checkpoint.
    """

    task: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    inside: bool = False
    progress: "Progress | None" = None
    stopping: "EarlyStopping | None" = None
    pending: list[dict[str, float]] = field(default_factory=list)
    restored: dict[str, Any] | None = None


def train(
    model: ContinualModel,
    dataset,
    run: Run,
    args,
    loggers: list,
    start: Position | None = None,
    after_step: Callable[[Position], None] | None = None,
    after_task: Callable[[Position], None] | None = None,
) -> None:
    """Train over the sequence of tasks and fill `run` with scores.

    Args:
        start: where to enter the stream; the model and the dataset must be in the state they had there.
        after_step, after_task: called with the position reached (checkpoints).

    Raises:
        TrainingFailed: a loss is not finite.
    """
    at = start or Position(task=args.start_from)
    if start is None:
        model.train()
        model._current_task = at.task
    if args.enable_other_metrics and not run.baselines:
        dataset.all_test_loaders()
        run.baselines = evaluate(model, dataset, range(dataset.EVAL_TASKS), trained=-1)

    for task in range(at.task, last_task(args, dataset)):
        enter_task(model, dataset, task)
        if not at.inside:
            model.meta_begin_task(dataset)
            restart_schedule(model, args)
        stopping = EarlyStopping(model, args, at) if args.fitting_mode == "early_stopping" else None
        with Progress(args, dataset, task, run, loggers, at) as progress:
            plan = list(epochs(args, len(dataset.train_loader), at))
            for epoch, start_batch, end_batch in plan:
                if not (at.inside and epoch == at.epoch):
                    model.meta_begin_epoch(epoch, dataset)
                    progress.begin_epoch(epoch)
                set_learning_rate(model, args, epoch, n_epochs=plan[-1][0] + 1)
                batches = dataset.train_loader.epoch(epoch, start_batch)
                for batch, (inputs, labels, raw) in zip(range(start_batch, end_batch), batches, strict=False):
                    losses = model.meta_observe(inputs, labels, raw, epoch)
                    progress.add(losses, model)
                    if after_step:
                        after_step(Position(task, epoch, batch + 1, progress.step, True, progress, stopping))
                model.meta_end_epoch(epoch, dataset)
                if args.eval_epochs and (epoch + 1) % args.eval_epochs == 0:
                    score(model, dataset, run, args, loggers, task, progress.step, epoch)
                due = stopping is not None and (epoch + 1) % args.early_stopping_freq == 0
                held_out = held_out_scores(model, dataset, task) if due or progress.watches_held_out else None
                stop = due and stopping.after(held_out)
                progress.end_epoch(held_out, kept=due and stopping.waited == 0)
                if stop:
                    break
            progress.flush(model)
        if stopping:
            stopping.restore_best()
        model.meta_end_task(dataset)
        evaluation = score(model, dataset, run, args, loggers, task, progress.step)
        model.end_eval(dataset, evaluation.scores)
        if task + 1 == dataset.N_TASKS and model.after_stream(dataset):
            score(model, dataset, run, args, loggers, task, progress.step)
        at = Position(task=task + 1, step=progress.step)
        if after_task:
            after_task(at)


def last_task(args, dataset) -> int:
    """One past the last task to train."""
    return min(args.stop_after or dataset.N_TASKS, dataset.N_TASKS)


def enter_task(model: ContinualModel, dataset, task: int) -> None:
    """Set the stream to a task, with the training examples that the method wants."""
    loader = dataset.enter_task(task)
    rows = model.training_rows(loader.dataset)
    if rows is not None:
        loader.keep(rows)


def epochs(args, per_epoch: int, at: Position) -> Iterator[tuple[int, int, int]]:
    """(epoch, first batch, one past the last batch) for what is left of a task that is entered at `at`."""
    total = args.n_iters if args.fitting_mode == "iters" else args.n_epochs * per_epoch
    for epoch in range(at.epoch, -(-total // per_epoch)):
        first = at.batch if epoch == at.epoch else 0
        yield epoch, first, min(per_epoch, total - epoch * per_epoch)


def score(model, dataset, run: Run, args, loggers: list, task: int, step: int, epoch: int | None = None) -> Evaluation:
    """Evaluate, note the scores in the run, tell the loggers."""
    n = dataset.EVAL_TASKS if args.enable_other_metrics or args.joint else task + 1
    trained = dataset.EVAL_TASKS - 1 if args.joint else task
    dataset.extend_test_loaders(n - 1)
    evaluation = Evaluation(step, trained, epoch, *measure(model, dataset, range(n), trained))
    run.history.append(evaluation)
    if dataset.KIND == "vision" and epoch is None:
        run.pictures.append((trained, predictions(model, dataset)))
    for name in scenarios(model, dataset):
        matrix = run.matrices.setdefault(name, empty_matrix(dataset.EVAL_TASKS))
        if epoch is None:
            matrix[trained, :n] = evaluation.scores[name]
    for logger in loggers:
        logger.task_evaluated(run, evaluation)
    return evaluation


def restart_schedule(model: ContinualModel, args) -> None:
    """With a learning-rate schedule every task starts with a fresh optimiser; without one the optimiser goes on."""
    if args.lr_scheduler != "none" and "lr_scheduler" not in model.UNUSED:
        model.reset_optimizers()


def set_learning_rate(model: ContinualModel, args, epoch: int, n_epochs: int) -> None:
    """The schedule is a function of the epoch, so that a run can be entered anywhere; a method that takes no
    `--lr_scheduler` has one of its own.
    """
    scheduled = args.lr_scheduler != "none" or args.lr_warmup
    if not scheduled or model.opt is None or "lr_scheduler" in model.UNUSED:
        return
    first, factor = warm_up(args.lr_warmup, epoch, n_epochs)
    if epoch < first:
        pass
    elif args.lr_scheduler == "multisteplr":
        factor = args.sched_multistep_lr_gamma ** sum(epoch >= m for m in args.lr_milestones)
    elif args.lr_scheduler == "cosine":
        factor = (1 + math.cos(math.pi * (epoch - first) / (n_epochs - first))) / 2
    for group in model.opt.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


class Progress:
    """Collects losses on the device, looks at them every `FLUSH_EVERY` steps, and moves the progress bar then.

    On a vision stream it also writes `run.epochs`; the loss of an epoch is complete there once its last step was
    looked at.
    """

    def __init__(self, args, dataset, task: int, run: Run, loggers: list, at: Position):
        self.run, self.loggers, self.task, self.step = run, loggers, task, at.step
        self.pending: list = list(at.pending)
        self.watched = dataset.KIND == "vision"
        self.watches_held_out = self.watched and dataset.held_out_loader is not None
        total, left = (
            sum(end - start for _, start, end in epochs(args, len(dataset.train_loader), p)) for p in (Position(), at)
        )
        hidden = True if args.non_verbose else None  # None: hidden where stderr is no terminal
        name = f"task {task + 1}/{dataset.N_TASKS}"
        self.bar = tqdm(total=total, initial=total - left, desc=name, disable=hidden, unit="it", leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        self.bar.close()

    def begin_epoch(self, epoch: int) -> None:
        """Start the record of an epoch."""
        if self.watched:
            record = {"task": self.task, "epoch": epoch, "start": self.step, "steps": 0, "loss": 0.0, "kept": False}
            self.run.epochs.append(record)

    def end_epoch(self, held_out: dict[str, float] | None, kept: bool) -> None:
        """Note the held-out scores after the latest epoch, and whether its weights are the best so far."""
        records = [record for record in self.run.epochs if record["task"] == self.task]
        if records and held_out:
            records[-1] |= {"held_out_loss": held_out["loss"], "held_out_score": held_out["accuracy"]}
        if records and kept:
            for record in records:
                record["kept"] = record is records[-1]

    def add(self, losses, model: ContinualModel) -> None:
        """Note the result of one `observe`: tensor, float or dict with 'loss'."""
        if type(losses) is dict:
            losses = {name: v.detach() if isinstance(v, torch.Tensor) else v for name, v in losses.items()}
        elif isinstance(losses, torch.Tensor):
            losses = losses.detach()
        self.pending.append(losses)
        self.step += 1
        if len(self.pending) == FLUSH_EVERY:
            self.flush(model)

    def on_host(self) -> list[dict[str, float]]:
        """The losses since the last flush as numbers; waits for the device.

        Raises:
            TrainingFailed: one of them is not finite; names the step, the task and the terms.
        """
        rows = [losses if isinstance(losses, dict) else {"loss": losses} for losses in self.pending]
        rows = [{name: v for name, v in row.items() if v is not None} for row in rows]
        tensors = [v for row in rows for v in row.values() if isinstance(v, torch.Tensor)]
        values = iter(torch.stack([v.float() for v in tensors]).tolist() if tensors else ())
        rows = [{n: next(values) if isinstance(v, torch.Tensor) else float(v) for n, v in row.items()} for row in rows]
        for i, row in enumerate(rows):
            if not all(map(math.isfinite, row.values())):
                first = next(name for name, value in row.items() if not math.isfinite(value))
                terms = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
                raise TrainingFailed(
                    f"{first} is {row[first]} at step {self.step - len(rows) + i + 1} (task {self.task}; {terms}): "
                    "try a smaller learning rate"
                )
        return rows

    def flush(self, model: ContinualModel) -> None:
        """Bring the losses to the host; the only place where training waits for the device."""
        rows = self.on_host()
        if not rows:
            return
        names = dict.fromkeys(name for row in rows for name in row)
        means = {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}
        self.bar.update(len(rows))
        self.bar.set_postfix(loss=f"{means.get('loss', float('nan')):.3f}", refresh=False)
        self.pending = []
        if self.watched:
            self._note(rows)
        lr = model.opt.param_groups[0]["lr"] if model.opt is not None else 0.0
        self.run.losses.append((self.step, means, lr))
        for logger in self.loggers:
            logger.step(self.step, means, lr)

    def _note(self, rows: list[dict[str, float]]) -> None:
        """Take the losses of the latest steps into the mean of each one's epoch, one by one: the mean does not depend
        on when they are looked at.
        """
        for step, row in enumerate(rows, self.step - len(rows)):
            record = next((e for e in reversed(self.run.epochs) if e["start"] <= step), None)
            if record and "loss" in row:
                record["steps"] += 1
                record["loss"] += (row["loss"] - record["loss"]) / record["steps"]


class EarlyStopping:
    """Ends a task when the held-out score of the current task has not improved for a while."""

    def __init__(self, model: ContinualModel, args, at: Position):
        self.model, self.args = model, args
        self.best, self.waited, self.weights = -math.inf, 0, None
        if at.restored and at.inside:
            self.best, self.waited, weights = (at.restored[name] for name in ("best", "waited", "weights"))
            self.weights = weights and [w.to(model.device) for w in weights]

    def state_dict(self) -> dict[str, Any]:
        """Best score, evaluations since, and the weights then."""
        return {"best": self.best, "waited": self.waited, "weights": self.weights}

    def after(self, scores: dict[str, float]) -> bool:
        """Whether to stop after an epoch with these held-out scores; `waited` is 0 if they are the best so far."""
        value = scores["accuracy"] if self.args.early_stopping_metric == "accuracy" else -scores["loss"]
        if value > self.best + self.args.early_stopping_epsilon:
            self.best, self.waited = value, 0
            self.weights = [tensor.detach().clone() for tensor in self._learned()]
            return False
        self.waited += 1
        return self.waited >= self.args.early_stopping_patience

    @torch.no_grad()
    def restore_best(self) -> None:
        """Go back to the weights, and the network's running statistics, of the best score."""
        for tensor, best in zip(self._learned(), self.weights or [], strict=False):
            tensor.copy_(best)

    def _learned(self) -> list[torch.Tensor]:
        return [*self.model.parameters(), *self.model.running_statistics()]
