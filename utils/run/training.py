"""The training loop: tasks, epochs, batches, and an evaluation after each task."""

import operator
import sys
from itertools import islice

import numpy as np

from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.contract import checked_extra, checked_rows
from palimpsest.utils.evaluation import evaluate, predictions, scenarios
from palimpsest.utils.optimise import restart_schedule, set_learning_rate
from palimpsest.utils.record import Evaluation, Experiment, Position


def train(exp: Experiment, at: Position | None = None) -> None:
    """Train over the sequence of tasks and fill `exp.run` with scores.

    Args:
        exp: method, stream, options, log and stopper.
        at: where to enter the stream; everything of `exp` must be in the state it had there. It moves along.

    Raises:
        TrainingFailed: a loss is not finite.
    """
    model, stream, args, run = exp.model, exp.dataset, exp.args, exp.run
    if at is None:
        at = Position(task=args.start_from)
        model.train()
    if args.enable_other_metrics and not run.baselines:
        stream.all_test_loaders()
        run.baselines = evaluate(model, stream, range(stream.EVAL_TASKS), trained=-1)[0]
    while at.task < last_task(args, stream):
        train_task(exp, at)
        evaluation = evaluate_run(exp, at)
        model.end_eval(stream, evaluation.scores)
        if at.task + 1 == stream.N_TASKS and model.after_stream(stream):
            evaluate_run(exp, at)
        at.leave_task()
        exp.log.end_task(at)


def train_task(exp: Experiment, at: Position) -> None:
    """Train on the task at which the stream stands, from the epoch and the batch that `at` has; `end_task` included."""
    model, stream, args, log, stopper = exp.model, exp.dataset, exp.args, exp.log, exp.stopper
    enter_task(model, stream, at.task)
    if not at.inside:
        model.meta_begin_task(stream)
        restart_schedule(model, args)
        stopper.begin_task()
    plan = batches_per_epoch(args, stream.train_loader)
    with log.progress(exp, at, plan):
        for epoch in range(at.epoch, len(plan)):
            at.epoch = epoch
            if at.batch == 0:
                model.meta_begin_epoch(epoch, stream)
                log.begin_epoch(at)
            set_learning_rate(model, args, epoch, len(plan))
            for inputs, labels, raw in islice(stream.train_loader.epoch(epoch, at.batch), plan[epoch] - at.batch):
                losses = model.meta_observe(inputs, labels, raw, epoch)
                at.move()
                log.step(losses, at)
            model.end_epoch(epoch, stream)
            at.batch = 0
            if stopper.end_epoch(exp, at):
                break
            # The last epoch's evaluation is that of the task's end.
            if args.eval_epochs and (epoch + 1) % args.eval_epochs == 0 and epoch + 1 < len(plan):
                evaluate_run(exp, at, epoch)
    stopper.end_task(model)
    model.meta_end_task(stream)


def last_task(args, stream) -> int:
    """One past the last task to train."""
    return min(args.stop_after or stream.N_TASKS, stream.N_TASKS)


def enter_task(model: ContinualModel, stream, task: int) -> None:
    """Place a stream and a method before a task, whatever was trained until then: the loaders of the task, with the
    training examples that the method wants and those that it adds, and the method's count of past tasks.
    """
    model._current_task = task
    loader = stream.enter_task(task)
    rows = model.training_rows(loader.dataset)
    if rows is not None:
        loader.keep(checked_rows(model, rows, len(loader.dataset)))
    extra = model.extra_examples()
    if extra is not None:
        loader.join(*checked_extra(model, extra, loader.dataset))


def batches_per_epoch(args, loader) -> list[int]:
    """Batches of each epoch of a task; with `--n_iters` the last epoch may be cut short. A loader of unknown length
    (of somebody's own) is read to its end.
    """
    n = operator.length_hint(loader, sys.maxsize)
    if args.fitting_mode != "iters":
        return [n] * args.n_epochs
    whole, rest = divmod(args.n_iters, n)
    return [n] * whole + [rest] * (rest > 0)


def evaluate_run(exp: Experiment, at: Position, epoch: int | None = None) -> Evaluation:
    """Score the network on the tasks so far, or on all where that is asked for; note it in the run, tell the log."""
    model, stream, run = exp.model, exp.dataset, exp.run
    trained = stream.stages[at.task][-1]
    n = stream.EVAL_TASKS if exp.args.enable_other_metrics else trained + 1
    stream.extend_test_loaders(n - 1)
    counts = {} if epoch is None and run.folder else None
    evaluation = Evaluation(at.step, trained, epoch, *evaluate(model, stream, range(n), trained, counts))
    run.history.append(evaluation)
    if epoch is None:
        run.counts = counts or {}
    if epoch is None and (shown := predictions(model, stream)):
        run.pictures.append((trained, shown))
    for name in scenarios(model, stream):
        matrix = run.matrices.setdefault(name, np.full((stream.EVAL_TASKS, stream.EVAL_TASKS), np.nan))
        if epoch is None:
            matrix[trained, :n] = evaluation.scores[name]
    exp.log.evaluated(evaluation)
    return evaluation
