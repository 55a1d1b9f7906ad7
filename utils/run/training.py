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
        with exp.meter.clock("training"):
            train_task(exp, at)
        evaluate_task(exp, at)
        if at.task + 1 == stream.N_TASKS and exp.meter.hook(model.after_stream, stream):
            evaluate_task(exp, at, again=True)
        at.leave_task()
        exp.log.end_task(at)


def train_task(exp: Experiment, at: Position) -> None:
    """Train on the task at which the stream stands, from the epoch and the batch that `at` has; `end_task` included."""
    model, stream, args, log, stopper, meter = exp.model, exp.dataset, exp.args, exp.log, exp.stopper, exp.meter
    enter_task(model, stream, at.task)
    if not at.inside:
        meter.hook(model.meta_begin_task, stream)
        restart_schedule(model, args)
        stopper.begin_task()
    plan = batches_per_epoch(args, stream.train_loader)
    meter.begin_task(at, plan, tasks_left=last_task(args, stream) - at.task)
    with log.progress(exp, at, plan):
        for epoch in range(at.epoch, len(plan)):
            at.epoch = epoch
            if at.batch == 0:
                meter.hook(model.meta_begin_epoch, epoch, stream)
                log.begin_epoch(at)
            set_learning_rate(model, args, epoch, len(plan))
            batches = islice(stream.train_loader.epoch(epoch, at.batch), plan[epoch] - at.batch)
            for inputs, labels, raw in meter.within_budget(batches, at):
                losses = meter.step(model, at, inputs, labels, raw)
                at.move()
                if exp.points.due(exp, at):
                    exp.points.evaluate(exp, at, epoch)
                log.step(losses, at)
            meter.hook(model.end_epoch, epoch, stream)
            at.batch = 0
            if stopper.end_epoch(exp, at) or meter.is_spent(at):
                break
            # The last epoch's evaluation is that of the task's end.
            if args.eval_epochs and (epoch + 1) % args.eval_epochs == 0 and epoch + 1 < len(plan):
                evaluate_run(exp, at, epoch)
    stopper.end_task(model)
    meter.end_task(at, model.meta_end_task, stream, data=stream.train_loader.dataset)


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


def evaluate_task(exp: Experiment, at: Position, again: bool = False) -> None:
    """The evaluations at a task's end: that on the subset, where it is on, and the whole one, of every task or of every
    `--eval_tasks`-th and the last.

    Args:
        again: the method changed its network after the first one, which it was told of.
    """
    if exp.points.on:
        exp.points.evaluate(exp, at)
    if (at.task + 1) % exp.args.eval_tasks == 0 or at.task + 1 == last_task(exp.args, exp.dataset):
        evaluation = evaluate_run(exp, at)
        if not again:
            exp.model.end_eval(exp.dataset, evaluation.scores)


def evaluate_run(exp: Experiment, at: Position, epoch: int | None = None) -> Evaluation:
    """Score the network on the tasks so far, or on all where that is asked for; note it in the run, tell the log."""
    model, stream, run = exp.model, exp.dataset, exp.run
    trained = stream.stages[at.task][-1]
    n = stream.EVAL_TASKS if exp.args.enable_other_metrics else trained + 1
    stream.extend_test_loaders(n - 1)
    counts = {} if epoch is None and run.folder else None
    with exp.meter.evaluation() as around:
        found = evaluate(model, stream, range(n), trained, counts, around)
    evaluation = Evaluation(at.step, trained, epoch, *found)
    run.history.append(evaluation)
    run.costs = exp.meter.costs(at.step)
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
