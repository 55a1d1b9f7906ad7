"""Equal compute and equal memory: `--budget_flops` and `--budget_bytes`."""

from typing import Any

from palimpsest.utils.record import Experiment


def tell_costs(exp: Experiment, costs: dict[str, Any]) -> None:
    """Put into the run's notes what a reader of its costs must know: why operations are unknown, and where a budget is
    not what was spent.
    """
    notes, budget, spent = exp.run.notes, exp.meter.budget, costs["flops_training"]
    if exp.meter.unknown and not exp.args.inference_only:
        notes["FLOPs"] = exp.meter.unknown
    elif budget:
        why = ""
        if spent > 1.01 * budget:
            why = ": what the method does at the end of the last task is not known before"
        elif spent < 0.9 * budget:
            why = ": the epochs ended first, --n_epochs is the most"
        notes["budget"] = f"{spent:.4g} of --budget_flops {budget:.4g} spent ({100 * spent / budget:.1f} %){why}"
