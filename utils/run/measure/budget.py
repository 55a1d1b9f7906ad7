"""Equal compute and equal memory: `--budget_flops`, see `Meter`, and `--budget_bytes`.

The bytes of a budget are those that a method keeps besides its network and the optimiser: teachers and statistics come
first, the replay buffer gets the rest. How much they are shows a trial before the run, of three tasks with a few
examples each.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

import torch

from palimpsest.utils.errors import UserError
from palimpsest.utils.log.analysis import costs
from palimpsest.utils.optimise import restart_schedule
from palimpsest.utils.record import Experiment
from palimpsest.utils.run.config import Config
from palimpsest.utils.run.layers import shorten
from palimpsest.utils.run.training import enter_task, last_task

TASKS, EXAMPLES, STEPS = 3, 64, 2  # of the trial; examples and steps of each task


def fit_buffer(config: Config, build: Callable[[Config], Experiment]) -> None:
    """Set `--buffer_size` to what `--budget_bytes` leaves for the buffer.

    Args:
        build: makes an experiment of a configuration.

    Raises:
        UserError: the budget is too small for what the method keeps, or its memory does not grow with --buffer_size.
    """
    args, name, budget = config.args, config.model_class.NAME, config.args.budget_bytes

    def trial(**options: Any) -> int:
        short = vars(args) | {"budget_bytes": None, "budget_flops": None, "eval_every": None} | options
        shorten(short)
        return _kept_by_trial(build(replace(config, args=argparse.Namespace(**short))))

    if not hasattr(args, "buffer_size"):
        if (kept := trial()) > budget:
            raise UserError(f"--budget_bytes {budget}: {name} keeps {kept} bytes besides its network: give as many")
        return
    # Some methods have a number beside every slot: what is kept is a line in the number of slots.
    n = args.buffer_size
    small = trial()
    per_slot = (trial(buffer_size=2 * n) - small) / n
    others, least = small - n * per_slot, getattr(args, "minibatch_size", None) or 1
    if per_slot <= 0:
        raise UserError(f"--budget_bytes: {name} keeps its examples elsewhere than in a Buffer: give --buffer_size")
    args.buffer_size = int((budget - others) // per_slot)
    if args.buffer_size < least:
        raise UserError(
            f"--budget_bytes {budget}: {name} keeps {others:.0f} bytes besides network and buffer, and {per_slot:g} an "
            f"example, {least} of which are the least: give {math.ceil(others + least * per_slot)} or more"
        )


def kept_bytes(model) -> int:
    """All that a method keeps besides its network: buffers, teachers, statistics."""
    return sum(costs(model)[name] for name in ("bytes_buffer", "bytes_teachers", "bytes_statistics"))


def _kept_by_trial(exp: Experiment) -> int:
    """What is kept at the run's end, or whenever it is most."""
    model, stream, args, found = exp.model.train(), exp.dataset, exp.args, []
    last = last_task(args, stream)
    for task in range(args.start_from, min(args.start_from + TASKS, last)):
        enter_task(model, stream, task)
        loader = stream.train_loader
        if hasattr(loader, "keep"):
            loader.keep(torch.arange(len(loader.dataset))[:: max(len(loader.dataset) // EXAMPLES, 1)])
        model.meta_begin_task(stream)
        restart_schedule(model, args)
        model.meta_begin_epoch(0, stream)
        for batch in islice(loader.epoch(0), STEPS):
            model.meta_observe(*batch, 0)
        model.end_epoch(0, stream)
        found.append(kept_bytes(model))
        model.meta_end_task(stream)
        found.append(kept_bytes(model))
    growth = found[-1] - found[-3] if len(found) == 2 * TASKS else 0  # of a task
    return max(found) + max(growth, 0) * (last - args.start_from - TASKS)


def tell_costs(exp: Experiment, spent: dict[str, Any]) -> None:
    """Put into the run's notes what a reader of its costs must know: why operations are unknown, and how what was spent
    compares to a budget.
    """
    notes, args, flops = exp.run.notes, exp.args, spent["flops_training"]
    if exp.meter.unknown and not args.inference_only:
        notes["FLOPs"] = exp.meter.unknown
    elif budget := args.budget_flops:
        why = ""
        if flops > 1.01 * budget:
            why = ": what the method does at the end of the last task is not known before"
        elif flops < 0.9 * budget:
            why = ": the epochs ended first, --n_epochs is the most"
        notes["budget"] = f"{flops:.4g} of --budget_flops {budget:.4g} spent ({100 * flops / budget:.1f} %){why}"
    if budget := args.budget_bytes:
        kept = kept_bytes(exp.model)
        notes["memory"] = f"{kept} of --budget_bytes {budget} kept at the end ({100 * kept / budget:.1f} %)"
