"""What is known at the start to go wrong later: a method, a network, a stream and options that do not fit together.

Each function that refuses something raises UserError.
"""

import warnings
from contextlib import suppress

import torch
from torch import Tensor

from palimpsest.datasets.utils.task import ClassTask, TaskStream
from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.utils.errors import UserError, one_line
from palimpsest.utils.run.training import last_task

NO_STATISTICS = "Expected more than 1 value per channel"  # torch's words for a batch that BatchNorm cannot normalise


def refuse_small_buffer(model_class: type, dataset, args) -> None:
    """A buffer that is divided among classes or tasks has a slot for each that the run comes to."""
    kind, last = getattr(model_class, "BUFFER_SHARES", ""), last_task(args, dataset)
    if not kind:
        return
    n = dataset.get_offsets(last - 1)[1] if kind == "classes" else last - (0 if args.loadcheck else args.start_from)
    if args.buffer_size < n:
        raise UserError(
            f"--buffer_size {args.buffer_size} leaves no example for each of {n} {kind}, among which "
            f"{model_class.NAME} divides it: give {n} or more"
        )


def refuse_stream_functions(dataset) -> None:
    """The transforms and the loss that a stream gives can be called, and the loss is one number."""
    for name in ("get_transform", "get_normalization_transform"):
        if not callable(given := getattr(dataset, name)()):
            raise UserError(
                f"{dataset.NAME}: {name}() returns {type(given).__name__}: expected a function of a raw batch of images"
            )
    if dataset.TASK is not ClassTask:
        return
    n, criterion = dataset.N_CLASSES, dataset.get_loss()
    logits = torch.zeros(n + 1, n, device=dataset.train_device)  # as many rows as columns could be taken for each other
    where = f"{dataset.NAME}: the loss of get_loss(), given logits (B, {n}) and labels (B,),"
    try:
        with warnings.catch_warnings(action="ignore"):
            loss = criterion(logits, torch.zeros(n + 1, dtype=torch.int64, device=logits.device))
    except (RuntimeError, ValueError, TypeError, IndexError) as e:
        raise UserError(f"{where} fails: {one_line(e)}") from None
    if not isinstance(loss, Tensor) or loss.dim():
        given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise UserError(f"{where} gives {given}: expected a tensor of one number, the mean over the batch")


def refuse_few_examples(model_class: type, dataset, args) -> None:
    """Every class of a class-IL stream has an example to train on, besides what the method holds out."""
    if dataset.SETTING != "class-il" or dataset.TASK is not ClassTask:
        return
    least = getattr(model_class, "LEAST_PER_CLASS", 1)
    for task in range(args.start_from, last_task(args, dataset)):
        low, high = dataset.get_offsets(task)
        counts = torch.bincount(dataset.task_data(task).targets - low, minlength=high - low)
        n, label = int(counts.min()), low + int(counts.argmin())
        if n < least:
            why = f"{model_class.NAME} holds one out and needs {least}" if n else "the run needs at least one"
            raise UserError(
                f"{dataset.NAME}: the class with label {label} has {n} example(s) to train on, {why}: leave the class "
                "out, keep more of it (--holdout, --validation, --label_perc, --noise_rate) or choose another method"
            )


def refuse_lone_example(model: ContinualModel, make_network, dataset: TaskStream, args) -> None:
    """No batch of one example may reach a network whose BatchNorm has a single value per channel then.

    Args:
        model: the method, before training.
        make_network: () -> a fresh network, asked only where there is such a batch.
        dataset: the stream, at the first task to train.
    """
    found = _lone_example(model, dataset, args)
    if found and not _takes_one_example(make_network, dataset):
        what, advice = found
        raise UserError(
            f"{dataset.NAME}: {what} in a batch of its own, which the BatchNorm of --backbone {args.backbone} cannot "
            f"normalise: {advice}"
        )


def _lone_example(model: ContinualModel, dataset, args) -> tuple[str, str] | None:
    """Clauses that name the first example that enters the network alone, and what to do; None where none does."""
    if args.inference_only:
        return None
    tasks = range(len(dataset.train_sizes)) if args.joint else range(args.start_from, last_task(args, dataset))
    alone = model.ALONE if dataset.MIXED else "always"
    if alone in ("first task", "first batch"):
        tasks = tasks[:1]
    for task, n in zip(tasks, model.epoch_sizes(dataset, tasks), strict=True) if alone != "never" else ():
        size = dataset.size_of_batch(task)
        n_batches = -(-n // size)
        whole = args.debug_mode or (args.fitting_mode == "iters" and args.n_iters < n_batches)
        last = n % size == 1 and not args.drop_last and not whole and alone != "first batch"
        if size == 1 or n == 1 or last:
            advice = "give --batch_size 2 or more" if size == 1 else "add --drop_last or change --batch_size"
            return f"task {task + 1}/{len(dataset.train_sizes)} has {n} examples, one of them comes", advice
    if alone == "always" and getattr(args, "minibatch_size", None) == 1:
        return "a replayed example comes", "give --minibatch_size 2 or more"
    passes = model.other_batches(dataset, last_task(args, dataset))
    lone = next((what for what, size in passes if size == 1), None)
    return lone and (f"one example of {lone} comes", "change --buffer_size or --batch_size")


def _takes_one_example(make_network, dataset) -> bool:
    """Whether a network in train mode has an answer for a batch of one."""
    net = make_network()
    dataset.shape_network(net)
    dataset.begin_stage(net, 0)
    tokens = dataset.INPUT == "tokens"
    x = torch.zeros(1, *(dataset.SIZE[:1] if tokens else dataset.SIZE), dtype=torch.int64 if tokens else torch.float32)
    with torch.no_grad(), suppress(NotImplementedError):
        try:
            net.train()(x.to(next(net.parameters()).device))
        except ValueError as e:
            return NO_STATISTICS not in str(e)
    return True
