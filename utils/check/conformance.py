"""What every method must do, checked on small embedded streams; `python main.py --check my_method` runs it on a
dropped-in file.

Each check is a function of a `Case` (a method on a stream); it returns nothing when the method passes and raises
`Failure` with a sentence for its author otherwise. The tests run the same functions over every file of models/.
"""

import argparse
import inspect
import math
import traceback
from collections.abc import Callable

from palimpsest.utils import registry
from palimpsest.utils.check.case_runs import (
    Ended,
    differing_ends,
    differing_entries,
    looked_at,
    observed,
    resumed_end,
    run,
    state_of,
)
from palimpsest.utils.check.cases import LEARNED, STREAMS, Case, Failure, cases
from palimpsest.utils.check.leaks import LEAKS, marks_of
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import evaluate
from palimpsest.utils.run.best_args import check_rows, load_rows
from palimpsest.utils.run.config import declared_options

# ---- the checks


def options_are_documented(case: Case) -> None:
    """Every option has a help text, and the stored rows name options that exist."""
    cls = registry.load("model", case.model)
    for action in declared_options(cls)._actions:
        if action.option_strings and not isinstance(action, argparse._HelpAction) and not action.help:
            raise Failure(f"{action.option_strings[0]} has no help text: say what it means and in which unit")
    names = {*vars(case.config().args)}
    for dataset, rows in load_rows(cls.NAME).items():
        backbones = {row["args"].get("backbone") for row in rows} - {None}
        for kind, name in [("dataset", dataset), *(("backbone", b) for b in backbones)]:
            names |= {action.dest for action in declared_options(registry.load(kind, name))._actions}
    problems = check_rows(load_rows(cls.NAME), names)
    if problems:
        raise Failure("best_args: " + "; ".join(problems))


def other_settings_are_refused(case: Case) -> None:
    """A setting that COMPATIBILITY does not list ends in one line, not in a run."""
    allowed = {c.setting for c in cases(case.model)}
    for setting in STREAMS.keys() - allowed:
        try:
            Case(case.model, setting).config()
        except UserError:
            continue
        raise Failure(f"COMPATIBILITY does not list {setting}, yet the method was accepted there")


def learns(case: Case) -> None:
    """A task that was just learned is known well above chance, and every loss is finite."""
    several = case.setting in ("class-il", "vision")
    name = "task-il" if several else case.setting
    # Most methods need few epochs and half of the examples; the others get more.
    more = 0.5 if case.setting == "vision" else 1
    attempts = [(["--n_epochs", "3"], 0.5, 2), (["--n_epochs", "8"], more, 3)] if several else [([], 1, 3)]
    for epochs, share, tasks in attempts:
        exp = run(case, *epochs, share=share, tasks=tasks)
        matrix = exp.run.matrices[name]
        scores = matrix[-1] if exp.model.JOINT else [row[t] for t, row in enumerate(matrix) if not math.isnan(row[0])]
        learned = sum(scores) / len(scores)
        if learned >= LEARNED[case.setting]:
            return
    raise Failure(
        f"after learning a task its {name} score is {learned:.1f} % on {STREAMS[case.setting]}, expected at "
        f"least {LEARNED[case.setting]:.0f} %: does observe step the optimiser, and on the right labels?"
    )


def same_seed_same_result(case: Case) -> None:
    """The same command twice gives the same scores and weights, bit for bit."""
    first = observed(case)
    if not differing_ends(first, looked_at(case)):
        return  # and so did a run that was looked at more often
    differing = differing_ends(first, Ended.of(run(case, "--n_epochs", "2")))
    if differing:
        raise Failure(
            f"two runs with one seed ended with different {', '.join(differing[:3])}: "
            "draw random numbers from torch, which the run has seeded"
        )


def observe_never_waits(case: Case) -> None:
    """Nothing in observe asks for a value of a tensor: no .item(), .cpu(), `if tensor`, boolean-mask indexing,
    nonzero, unless the method says in `WAITS` why it must.
    """
    found = observed(case)
    if found.waits and not found.exp.model.WAITS:
        raise Failure(
            f"observe waits for the device in {found.waits[0]}: "
            "keep values as tensors (return the loss itself, not loss.item())"
        )


def resumes_exactly(case: Case, elsewhere: bool = True) -> None:
    """Stopped again and again, each time saved, restored in another process and continued, a run ends as if it had
    never stopped.
    """
    undisturbed = observed(case)
    ends = [evaluation["step"] for evaluation in undisturbed.scores]
    total = ends[-1]
    # The first iteration, the middle of things, a task's last iteration (its end_task is run by the second process),
    # and the place between two tasks (its begin_task is).
    steps = sorted({1, total // 2 + 1, ends[0], -ends[0]}, key=lambda step: (abs(step), step < 0))
    state, scores = resumed_end(case, steps, elsewhere, "--n_epochs", "2")
    differing = differing_entries(undisturbed.state, state)
    if differing or differing_entries(undisturbed.scores, scores):
        what, stops = ", ".join(differing[:3]) or "its scores", ", ".join(str(abs(step)) for step in steps)
        raise Failure(
            f"stopped at iterations {stops} of {total} and resumed, the run differs in {what}: what the method "
            "remembers must be in its attributes, not in globals, closures or files"
        )


def looking_changes_nothing(case: Case) -> None:
    """How often the run is evaluated or saved changes neither what is learned nor the scores."""
    differing = differing_ends(observed(case), looked_at(case))
    if differing:
        raise Failure(f"evaluating and saving more often changed {', '.join(differing[:3])}")


def evaluation_leaves_no_trace(case: Case) -> None:
    """Evaluating changes nothing the method remembers, and leaves it in training mode."""
    exp = observed(case).exp
    before = state_of(exp)
    evaluate(exp.model, exp.dataset, range(len(exp.dataset.test_loaders)), trained=0)
    differing = differing_entries(before, state_of(exp))
    if differing:
        raise Failure(
            f"evaluation changed {', '.join(differing[:3])}: forward must not modify what the method remembers"
        )
    if not exp.model.training:
        raise Failure("evaluation left the method in eval mode")


def the_stream_is_left_alone(case: Case) -> None:
    """observe modifies neither its inputs nor the stream's data."""
    found = observed(case)
    if found.overwritten:
        raise Failure("observe changes the tensors it is given in place: clone them first")
    if found.stream_changed:
        raise Failure("the method changed the stream's data")


def losses_are_reported(case: Case) -> None:
    """observe returns the loss: a 0-d tensor, a float, or a dict with 'loss'."""
    if given := observed(case).no_losses:
        raise Failure(f"observe returned {given[0]}: return the loss as a 0-d tensor, a float, or a dict with 'loss'")


def every_term_reaches_a_weight(case: Case) -> None:
    """Every term of the loss reaches a weight."""
    if places := observed(case).loose_terms:
        raise Failure(
            f"the loss has a term that reaches no weight, added in {places[0]}: nothing learns from it; is something "
            "in it detached, computed under no_grad, or of a copy of the network?"
        )


CHECKS: list[Callable[[Case], None]] = [
    options_are_documented,
    other_settings_are_refused,
    losses_are_reported,
    every_term_reaches_a_weight,
    learns,
    same_seed_same_result,
    observe_never_waits,
    evaluation_leaves_no_trace,
    the_stream_is_left_alone,
    looking_changes_nothing,
    resumes_exactly,
]


def check_and_print(model: str) -> bool:
    """Run every check on every setting of a method and print a line each; whether all passed."""
    registry.load("model", model)
    failed = 0
    for case in cases(model):
        print(f"{registry.load('model', model).NAME} on {STREAMS[case.setting]} ({case.setting})")
        for check in (*CHECKS, *LEAKS):
            problem = problem_with(case, check)
            failed += problem is not None
            title = inspect.getdoc(check).split("\n", 1)[0]
            print(f"  pass  {title}" if problem is None else f"  FAIL  {title}\n        {problem}")
        for kind, mark in marks_of(case).items():
            print(f"  mark  {mark} ({kind}): declared by the method, stands in every table")
    print("every check passed" if not failed else f"{failed} check(s) failed")
    return not failed


def problem_with(case: Case, check: Callable[[Case], None]) -> str | None:
    """What a check finds wrong, None if nothing; the author's own error with the place where it happened."""
    try:
        check(case)
    except (UserError, Failure) as e:
        return str(e)
    except Exception as e:  # noqa: BLE001
        frame = traceback.extract_tb(e.__traceback__)[-1]
        return f"{type(e).__name__}: {e} ({frame.filename}:{frame.lineno})"
    return None
