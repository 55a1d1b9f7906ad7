"""The training loop: tasks, epochs, batches, and an evaluation after each task."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tqdm import tqdm

from models.utils.continual_model import ContinualModel
from utils.errors import TrainingFailed
from utils.evaluation import empty_matrix, evaluate, held_out_scores, scenarios
from utils.run import Evaluation, Run

FLUSH_EVERY = 50  # iterations between two looks at the losses; only then does the loop wait for the device


@dataclass
class Position:
    """A place in the stream: `batch` batches of `epoch` of `task` are done, `step` iterations in all; `inside` a
    task that began.
    """

    task: int = 0
    epoch: int = 0
    batch: int = 0
    step: int = 0
    inside: bool = False


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
    model.train()
    model._current_task = at.task
    if args.enable_other_metrics and at.step == 0:
        dataset.all_test_loaders()
        run.baselines = evaluate(model, dataset, range(dataset.EVAL_TASKS), trained=-1)

    for task in range(at.task, last_task(args, dataset)):
        enter_task(model, dataset, task)
        if not at.inside:
            model.meta_begin_task(dataset)
            restart_schedule(model, args)
        stopping = EarlyStopping(model, dataset, args) if args.fitting_mode == "early_stopping" else None
        with Progress(args, dataset, task, run, loggers, at.step) as progress:
            plan = list(epochs(args, len(dataset.train_loader), at))
            for epoch, start_batch, end_batch in plan:
                if not (at.inside and epoch == at.epoch):
                    model.meta_begin_epoch(epoch, dataset)
                set_learning_rate(model, args, epoch, n_epochs=plan[-1][0] + 1)
                batches = dataset.train_loader.epoch(epoch, start_batch)
                for batch, (inputs, labels, raw) in zip(range(start_batch, end_batch), batches, strict=False):
                    losses = model.meta_observe(inputs, labels, raw, epoch)
                    progress.add(losses, model)
                    if after_step:
                        after_step(Position(task, epoch, batch + 1, progress.step, inside=True))
                model.meta_end_epoch(epoch, dataset)
                if args.eval_epochs and (epoch + 1) % args.eval_epochs == 0:
                    score(model, dataset, run, args, loggers, task, progress.step, epoch)
                if stopping and stopping.after(epoch, task):
                    break
            progress.flush(model)
        if stopping:
            stopping.restore_best()
        model.meta_end_task(dataset)
        evaluation = score(model, dataset, run, args, loggers, task, progress.step)
        model.end_eval(dataset, evaluation.scores)
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
    evaluation = Evaluation(step, trained, epoch, evaluate(model, dataset, range(n), trained))
    run.history.append(evaluation)
    for name in scenarios(model, dataset):
        matrix = run.matrices.setdefault(name, empty_matrix(dataset.EVAL_TASKS))
        if epoch is None:
            matrix[trained, :n] = evaluation.scores[name]
    for logger in loggers:
        logger.task_evaluated(run, evaluation)
    return evaluation


def restart_schedule(model: ContinualModel, args) -> None:
    """With a learning-rate schedule every task starts with a fresh optimiser; without one the optimiser goes on."""
    if args.lr_scheduler != "none":
        model.reset_optimizers()


def set_learning_rate(model: ContinualModel, args, epoch: int, n_epochs: int) -> None:
    """The schedule is a function of the epoch, so that a run can be entered anywhere."""
    if args.lr_scheduler == "none" or model.opt is None:
        return
    if args.lr_scheduler == "multisteplr":
        factor = args.sched_multistep_lr_gamma ** sum(epoch >= m for m in args.lr_milestones)
    else:
        factor = (1 + math.cos(math.pi * epoch / n_epochs)) / 2
    for group in model.opt.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


class Progress:
    """Collects losses on the device, looks at them every `FLUSH_EVERY` steps, and moves the progress bar then."""

    def __init__(self, args, dataset, task: int, run: Run, loggers: list, step: int):
        self.run, self.loggers, self.task, self.step = run, loggers, task, step
        self.pending: list = []
        total = sum(end - start for _, start, end in epochs(args, len(dataset.train_loader), Position()))
        hidden = True if args.non_verbose else None  # None: hidden where stderr is no terminal
        self.bar = tqdm(total=total, desc=f"task {task + 1}/{dataset.N_TASKS}", disable=hidden, unit="it", leave=False)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc) -> None:
        self.bar.close()

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

    def flush(self, model: ContinualModel) -> None:
        """Bring the losses to the host; the only place where training waits for the device."""
        if not self.pending:
            return
        rows = [losses if isinstance(losses, dict) else {"loss": losses} for losses in self.pending]
        means = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            present = [(i, row[name]) for i, row in enumerate(rows) if row.get(name) is not None]
            values = torch.stack(
                [torch.as_tensor(v, dtype=torch.float32, device=model.device) for _, v in present]
            ).cpu()
            means[name] = values.mean().item()
            if not math.isfinite(means[name]):
                bad = present[int((~values.isfinite()).nonzero()[0])][0]
                step = self.step - len(rows) + bad + 1
                raise TrainingFailed(
                    f"{name} is {values[~values.isfinite()][0].item()} at step {step} (task {self.task}): "
                    "lower --lr, or use --clip_grad"
                )
        self.bar.update(len(self.pending))
        self.bar.set_postfix(loss=f"{means.get('loss', float('nan')):.3f}", refresh=False)
        self.pending = []
        self.run.losses.append((self.step, means))
        lr = model.opt.param_groups[0]["lr"] if model.opt is not None else 0.0
        for logger in self.loggers:
            logger.step(self.step, means, lr)


class EarlyStopping:
    """Ends a task when the held-out score of the current task has not improved for a while."""

    def __init__(self, model: ContinualModel, dataset, args):
        self.model, self.dataset, self.args = model, dataset, args
        self.best, self.waited, self.weights = -math.inf, 0, None

    def after(self, epoch: int, task: int) -> bool:
        """Whether to stop after this epoch."""
        if (epoch + 1) % self.args.early_stopping_freq:
            return False
        scores = held_out_scores(self.model, self.dataset, task)
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
        return [*self.model.parameters(), *self.model.net.buffers()]
