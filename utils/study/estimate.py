"""How long a run will take, from some of its own steps."""

import time
from collections.abc import Sequence

from palimpsest.utils.errors import TrainingFailed

WARM_UP, MEASURED, PATIENCE = 5, 40, 3.0  # iterations, iterations, seconds


class _Enough(Exception):
    """The steps are measured."""


def seconds_of(argv: Sequence[str]) -> float:
    """Seconds of training of the run that a command line asks for: the time of a step, times its steps.

    The first steps of the first task are trained on this machine, and thrown away. What a method does at the ends of
    tasks and evaluation are not in it: a run takes longer, one of a method that trains at a task's end much longer.

    Raises:
        UserError: what `build` raises.
    """
    from palimpsest.utils.run.config import resolve
    from palimpsest.utils.run.experiment import build
    from palimpsest.utils.run.training import batches_per_epoch, last_task, train

    config = resolve(list(argv))
    config.args.disable_log = config.args.non_verbose = True
    exp = build(config)
    begun, steps = 0.0, 0

    def stop_when_measured(at) -> None:
        nonlocal begun, steps
        if at.step == WARM_UP:
            begun = time.perf_counter()
        elif at.step > WARM_UP:
            steps = at.step - WARM_UP
            if steps == MEASURED or time.perf_counter() - begun > PATIENCE:
                raise _Enough

    exp.log.after_step = stop_when_measured
    stream, total = exp.dataset, 0
    for task in range(config.args.start_from, last_task(config.args, stream)):
        total += sum(batches_per_epoch(config.args, stream.enter_task(task)))
    stream.enter_task(config.args.start_from)
    begun = time.perf_counter()
    try:
        train(exp)
    except _Enough:
        return (time.perf_counter() - begun) / max(steps, 1) * total
    except TrainingFailed:
        return 0.0
    return time.perf_counter() - begun  # so short that it was over before
