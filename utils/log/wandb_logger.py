"""Tracking with Weights & Biases (`--wandb [PROJECT]`): options, metrics and files of a run; seeds are one group.

The package is optional and is imported here, when it is asked for. Where and how it sends is told by its own variables
(WANDB_MODE, WANDB_ENTITY, WANDB_API_KEY, ...). What fails once training has begun costs a line of warning.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from palimpsest.utils.errors import Stopped, UserError, one_line
from palimpsest.utils.log.events import Logger
from palimpsest.utils.log.formats import FILES, loss_points, plain, score_points
from palimpsest.utils.randomness import preserve_rng
from palimpsest.utils.record import Evaluation, Run, Summary


def check_wandb() -> None:
    """Raises UserError where nothing could be sent: no package, or nobody is logged in."""
    try:
        import wandb
    except ModuleNotFoundError as e:
        raise UserError(f"--wandb needs the package wandb ({one_line(e)}): pip install wandb") from None
    os.environ.setdefault("WANDB_SILENT", "true")
    if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise UserError("--wandb: nobody is logged in: run `wandb login`, or set WANDB_MODE=offline")


class WandbLogger(Logger):
    """One W&B run per run, named by method and run folder; a resumed run goes on in its own.

    Against `iteration`: `class-il/acc_task01`... and `class-il/acc_mean` at every evaluation, `loss/<term>`, `lr`; as
    its summary `class-il/acc`, `class-il/forgetting`, ... Files: those of `formats.FILES`.
    """

    def __init__(self, args: Any):
        self.project: str = args.wandb
        self.run: Any = None  # W&B's
        self.warned = False

    def run_started(self, run: Run) -> None:
        with self._tolerated():
            import wandb

            about = {"setting": run.setting, "parameters": run.parameters, "environment": run.environment}
            self.run = wandb.init(
                project=self.project,
                id=hashlib.sha256(run.folder.name.encode()).hexdigest()[:16],
                resume="allow",
                name=f"{Path(run.model_name).stem} {run.folder.name}",
                group=run.group,
                notes=run.config.get("notes"),
                config=plain(run.config | about),
                dir=str(run.results_path.resolve()),
                settings=wandb.Settings(console="off"),
            )
            self.run.define_metric("iteration")
            self.run.define_metric("*", step_metric="iteration")
            print(f"W&B: {self.run.url or Path(self.run.dir).parent}", flush=True)

    def step(self, step: int, losses: dict[str, float], lr: float) -> None:
        self._log({"iteration": step, **loss_points(losses, lr)})

    def task_evaluated(self, run: Run, evaluation: Evaluation) -> None:
        self._log({"iteration": evaluation.step, **score_points(evaluation)})

    def run_ended(self, run: Run, summary: Summary) -> None:
        if self.run is not None:
            with self._tolerated():
                for scenario, values in summary.items():
                    self.run.summary.update({f"{scenario}/{metric}": value for metric, value in values.items()})
                for path in (run.folder / name for name in FILES):
                    if path.is_file():
                        self.run.save(str(path), base_path=str(run.folder), policy="now")
                self.run.finish(exit_code=0)

    def run_stopped(self, run: Run, error: BaseException) -> None:
        if self.run is not None:
            with self._tolerated():
                if isinstance(error, Stopped):
                    self.run.mark_preempting()
                self.run.finish(exit_code=getattr(error, "status", 1))

    def _log(self, points: dict[str, float]) -> None:
        if self.run is not None:
            with self._tolerated():
                self.run.log(points)

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        """A failure inside the block is one line on stderr, once per run, and never an end."""
        try:
            with preserve_rng():
                yield
        except Exception as e:  # whatever W&B or its network layer raises
            if not self.warned:
                text = f"main.py: W&B: {one_line(e)}; the run goes on, and its folder has all numbers"
                print(text, file=sys.stderr, flush=True)
            self.warned = True
