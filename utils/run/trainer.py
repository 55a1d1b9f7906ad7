"""Continual learning of one's own network on one's own loaders, from a script or a notebook: docs/trainer.md has an
example.

The strategies are the method files of models/; this module translates a configuration into their options.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from palimpsest.backbone.utils.base import Backbone
from palimpsest.backbone.utils.wrapped import Wrapped, output_shape
from palimpsest.datasets.utils.given import GivenLoader, GivenTasks, kind_of
from palimpsest.datasets.utils.given_batches import ReadOnce, read_inputs, repeatable, split_batch
from palimpsest.datasets.utils.task import ClassTask
from palimpsest.models.utils.contract import check_constructed
from palimpsest.models.utils.state import Origin, origin_of
from palimpsest.utils import registry
from palimpsest.utils.atomic import file_errors
from palimpsest.utils.buffer import Buffer
from palimpsest.utils.errors import UserError
from palimpsest.utils.evaluation import evaluate, scenarios
from palimpsest.utils.log.analysis import analyse
from palimpsest.utils.log.events import Log
from palimpsest.utils.log.report import summarise_run, write_report
from palimpsest.utils.metrics import summarise
from palimpsest.utils.randomness import derive, preserve_rng, seed_all
from palimpsest.utils.record import Experiment, Position, Run
from palimpsest.utils.run import checkpoint
from palimpsest.utils.run.config import refuse_setting
from palimpsest.utils.run.environment import pick_device, products
from palimpsest.utils.run.measure.meter import Meter
from palimpsest.utils.run.measure.points import Points
from palimpsest.utils.run.rollback import all_or_nothing
from palimpsest.utils.run.stopping import Stopper
from palimpsest.utils.run.trainer_config import COUNTS_CLASSES, build_network, flat, read_config
from palimpsest.utils.run.trainer_log import Epochs, MeanLosses
from palimpsest.utils.run.training import train_task as run_task

SETTINGS = ("class-il", "task-il", "domain-il", "regression")
FACTS = {"n_classes": int, "task_names": list, "R": dict}  # what a checkpoint says of the trainer
LEFT = (GivenLoader, ReadOnce, Origin)  # the data, and what a method was when it was made


class Trainer:
    """Trains a network on one task after the other with one strategy.

    Args:
        model: any module that maps inputs to logits (B, C), or (B, L, C) for sequences, by themselves or in a dict, an
            object or a tuple, see `backbone.utils.wrapped.logits_of`; its parameters are trained in place. None for
            'pnn' given by its sizes.
        config: 'optimizer' (type, lr, weight_decay, momentum, nesterov, clip_grad), 'scheduler' (type, milestones,
            gamma), 'continual_strategy' ({name: {'enabled': bool, option: value}}, at most one enabled), 'replay'
            (size, batch_size, task_balanced, every), 'early_stopping' (patience, metric, epsilon, freq; {} for their
            defaults). Keys of a strategy are its command-line options.
        device: 'auto', 'cpu', 'cuda', 'cuda:N', 'mps'.
        experiment_name: stands in the checkpoints and in their names.
        checkpoint_dir: a checkpoint is written there after each task; nothing is written without it.
        setting: 'class-il', 'task-il', 'domain-il' or 'regression'; from the labels of the first task by default, see
            `GivenTasks`.
        n_tasks: number of tasks, for strategies that share something out beforehand (packnet's equal_share).
        seed: of everything random while a task is learned, but for loaders that have generators of their own; by
            default the global generators are used as they are. They are not moved by a trainer that has a seed.
        class_names: label -> name, or the names of labels 0, 1, 2, ...; for predictions and exports.
        progress: whether a bar is shown while a task is learned, where stderr is a terminal.

    Attributes:
        method: the method (a `ContinualModel`), from the first task on.
        R: scenario -> score matrix in percent, a row per call of `evaluate_all_tasks`.

    Raises:
        UserError: a configuration that cannot be; the line names the key.
    """

    def __init__(
        self,
        model: nn.Module | None,
        config: dict[str, Any],
        device: str = "auto",
        experiment_name: str = "experiment",
        checkpoint_dir: str | Path | None = None,
        setting: str | None = None,
        n_tasks: int | None = None,
        seed: int | None = None,
        progress: bool = True,
        class_names: Sequence[str] | dict[int, str] | None = None,
    ):
        if seed is not None and (type(seed) is not int or seed < 0):
            raise UserError(f"seed is {seed!r}: expected an integer of at least 0, or None")
        if setting not in (None, *SETTINGS):
            raise UserError(f"setting is {setting!r}: expected one of {', '.join(SETTINGS)}")
        self.config, self.device = config, pick_device(device)
        self.strategy, self.args, self.replay = read_config(config)
        self._replays_as_many = getattr(self.args, "minibatch_size", 0) is None  # as the task's batches have
        self.net = build_network(model, self.strategy, config).to(self.device)
        self.experiment_name = experiment_name
        self.checkpoint_dir = None if checkpoint_dir is None else Path(checkpoint_dir)
        self.setting, self.n_tasks, self.seed, self.progress = setting, n_tasks, seed, progress
        self.args.seed = seed or 0
        self.class_names = _names(class_names)
        self.method = None
        self.tasks: GivenTasks | None = None
        self.task_names: list[str] = []
        self.R: dict[str, list[list[float]]] = {}
        self.step = 0
        self._training, self._kept = False, None

    @products("fp32")
    def train_task(
        self,
        train_loader: Iterable,
        val_loader: Iterable | None = None,
        task_id: int | None = None,
        task_name: str | None = None,
        num_epochs: int = 1,
        loss_fn: Callable[[Tensor, Tensor], Tensor] | None = None,
        callbacks: Sequence[Callable[["Trainer", dict], None]] = (),
        classes: tuple[int, int] | Set[int] | None = None,
    ) -> dict[str, Any]:
        """Learn the next task.

        An exception, an interrupt among them, leaves the trainer as before the call, the generators of the loader and
        the global ones included: the same call can be made again.

        Args:
            train_loader: batches (inputs, labels), see `datasets.utils.given_batches`. An iterator is kept in memory.
            val_loader: scored after each epoch, never trained on; early stopping looks at it.
            task_id: the tasks' count so far; checked, since tasks come in order.
            task_name: for the record and the pictures.
            num_epochs: passes over the loader.
            loss_fn: (logits, labels) -> scalar; cross-entropy by default, the mean squared error for a regression.
            callbacks: called after each epoch with the trainer and the epoch's facts.
            classes: the task's first label, and one past its last, or a set of labels; by default found by a pass over
                the loader.

        Returns:
            {'task_id', 'task_name', 'epochs': [{'epoch', 'loss', every other term, 'val': {scenario: percent}}]}; with
            early stopping also 'val_loss', and 'kept' of the epochs that were the best so far: the weights of the last
            of them are those at the end.

        Raises:
            UserError: loaders, labels or numbers that do not fit.
            TrainingFailed: a loss is not finite.
        """
        self._refuse_inside("train_task")
        if type(num_epochs) is not int or num_epochs < 1:
            raise UserError(f"num_epochs is {num_epochs}: expected an integer of at least 1")
        if isinstance(train_loader, Iterator):
            if self._kept is None or self._kept.source is not train_loader:
                self._kept = repeatable(train_loader)
            train_loader = self._kept  # what an interrupted call has read is not lost
        if val_loader is None and self.args.fitting_mode == "early_stopping":
            raise UserError("config: early_stopping looks at val_loader, which train_task was not given")
        if self.checkpoint_dir:
            _make_folder(self.checkpoint_dir)

        def tell(facts: dict) -> None:
            for callback in callbacks:
                callback(self, facts)

        with all_or_nothing(self, loss_fn, *_generators(train_loader), leave=LEFT):
            self._training = True
            score = None if val_loader is None else lambda task: self.evaluate(val_loader, task)
            epochs = Epochs(self.args, score, tell)
            with self._seeded():
                out = self._train_task(
                    train_loader, val_loader, task_id, task_name, num_epochs, loss_fn, classes, epochs
                )
            self._training = False
            if self.checkpoint_dir:
                self.save(self.checkpoint_dir / f"{self.experiment_name}_task{out['task_id']}.pt")
        self._kept = None
        return out

    @contextmanager
    def _seeded(self) -> Iterator[None]:
        """Within: the global generators are those of the seed and the task, where there is a seed."""
        if self.seed is None:
            yield
            return
        with preserve_rng():
            seed_all(derive(self.seed, "task", self._learned()))
            yield

    def _train_task(
        self, train_loader, val_loader, task_id, task_name, num_epochs, loss_fn, classes, epochs
    ) -> dict[str, Any]:
        done = self._learned()
        if task_id is not None and task_id != done:
            raise UserError(f"task_id is {task_id}: tasks are learned in order, the next one is {done}")
        self._prepare(train_loader)
        inputs, shape = self.tasks.add_task(train_loader, classes, self._with_replay), self.tasks.N_CLASSES
        if done and (found := output_shape(self.net, inputs)[-1]) != shape:
            raise UserError(f"the network has {found} outputs for the loader of task {done}: it had {shape} before")
        method, tasks, args = self.method, self.tasks, self.args
        refuse_setting(type(method), tasks)
        if method.COMPATIBILITY == ["task-il"] and tasks.SETTING == "domain-il":
            raise UserError(f"{self.strategy} gives every task outputs of its own: all tasks have the same labels here")
        if self.replay and self.strategy == "lwf" and tasks.SETTING == "class-il":
            raise UserError("config: replay is not defined with lwf, whose loss has no place for old classes: drop it")
        if not tasks.in_order and self.strategy in COUNTS_CLASSES:
            raise UserError(
                f"{self.strategy} counts the classes seen: number the labels 0, 1, 2, ... in the order of the tasks"
            )
        method.n_tasks = tasks.N_TASKS
        tasks.loss_fn = loss_fn
        args.n_epochs, args.batch_size = num_epochs, tasks.train_loader.batch_size
        if self._replays_as_many:
            args.minibatch_size = args.batch_size
        method.train()
        tasks.held_out_loader = None if val_loader is None else tasks.test_loader(val_loader, done)
        log = MeanLosses(self._run(), self.progress, self._store)
        at = Position(task=done, step=self.step)
        run_task(Experiment(method, tasks, args, log, epochs, Meter(), Points()), at)
        self._new = None
        self.task_names.append(task_name or f"task {done}")
        return {"task_id": done, "task_name": self.task_names[-1], "epochs": epochs.facts}

    def _with_replay(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The batch, joined by one of old examples where the configuration asks for replay."""
        self._new = inputs, labels
        if not self.replay or self.method.replay_buffer.is_empty() or self.step % self.replay["every"]:
            return inputs, labels
        size = self.replay["batch_size"] or len(inputs)
        old_inputs, old_labels, _ = self.method.replay_buffer.get_data(size, balanced=self.replay["task_balanced"])
        return torch.cat((inputs, old_inputs)), torch.cat((labels, old_labels))

    def _store(self) -> None:
        """After a step: the new part of the batch goes into the replay buffer."""
        if self.replay:
            inputs, labels = self._new
            task_labels = torch.full((len(inputs),), self._learned() - 1, device=inputs.device)
            self.method.replay_buffer.add_data(inputs, labels=labels, task_labels=task_labels)
        self.step += 1

    @products("fp32")
    def evaluate(self, loader: Iterable, task_id: int) -> dict[str, float]:
        """Score in percent on a learned task, per scenario: class-IL and task-IL together, or domain-IL.

        Raises:
            UserError: the task was not learned yet, or the loader gives nothing of it.
        """
        learned = self._learned()
        if not 0 <= task_id < learned:
            raise UserError(f"task {task_id} was not learned yet: {learned} task(s) were")
        loaders, before = self.tasks.test_loaders, dict(self.tasks.test_loaders)
        loaders[task_id] = self.tasks.test_loader(loader, task_id)
        try:
            scores, _ = evaluate(self.method, self.tasks, [task_id], trained=learned - 1)
        except BaseException:
            self.tasks.test_loaders = before
            raise
        return {scenario: values[0] for scenario, values in scores.items()}

    def evaluate_all_tasks(self, loaders: Sequence[Iterable]) -> dict[str, list[float]]:
        """Scores on every learned task, one loader each in the order of the tasks; fills the row of R."""
        learned = self._learned()
        if len(loaders) < learned:
            raise UserError(f"{len(loaders)} loaders for {learned} learned tasks: give one for each")
        rows = [self.evaluate(loader, task) for task, loader in enumerate(loaders[:learned])]
        out = {scenario: [row[scenario] for row in rows] for scenario in scenarios(self.method, self.tasks)}
        for scenario, row in out.items():
            R = self.R.setdefault(scenario, [])
            del R[learned - 1 :]
            R += [[]] * (learned - 1 - len(R)) + [row]
        return out

    def matrix(self, scenario: str | None = None) -> np.ndarray:
        """Score matrix R (T, T), R[i, j] on task j after task i, nan where not evaluated; the first scenario's."""
        rows = self.R.get(scenario or next(iter(self.R), ""), [])
        R = np.full((len(rows), len(rows)), np.nan)
        for i, row in enumerate(rows):
            R[i, : len(row)] = row
        return R

    def metrics(self) -> dict[str, dict[str, float]]:
        """Scenario -> every metric that is defined for its matrix (see `utils.metrics`)."""
        return {scenario: summarise(self.matrix(scenario)) for scenario in self.R}

    def compute_forgetting(self, scenario: str | None = None) -> float:
        """Mean forgetting (Chaudhry et al. 2018) in percent points; nan before the second task."""
        return summarise(self.matrix(scenario)).get("forgetting_chaudhry", float("nan"))

    def report(self, folder: str | Path, figures: str | None = None) -> Path:
        """Write report.html into a folder: metrics, matrix, forgetting, confusion, and what the strategy has to show.
        Needs `evaluate_all_tasks` after each task.

        Args:
            folder: it is made where it does not exist.
            figures: 'png' or 'pdf' for files of the pictures as well, in its folder plots.

        Raises:
            UserError: nothing was evaluated yet, or the folder cannot be written.
        """
        if not self.R:
            raise UserError("nothing to report: call evaluate_all_tasks after each task")
        run, folder = self._run(), Path(folder)
        run.matrices = {scenario: self.matrix(scenario) for scenario in self.R}
        run.parameters = sum(p.numel() for p in self.method.parameters())
        run.analysis = analyse(self.method, self.tasks, self._learned() - 1)
        run.dataset_name, run.folder, run.seconds = self.experiment_name, folder, 0.0
        run.score, run.task_names = self.tasks.TASK.METRIC, self.task_names
        run.config["figures"] = figures
        _make_folder(folder)
        return write_report(run, summarise_run(run))

    def save(self, path: str | Path) -> None:
        """Write everything the trainer remembers, atomically: network, strategy, optimiser, replay buffer, random
        generators, scores.

        Raises:
            UserError: before the first task, inside of one, or the file cannot be written.
        """
        self.learned_tasks("save")
        state = checkpoint.capture(self._experiment(), Position(task=self._learned(), step=self.step))
        names = {"task_names": self.task_names, "class_names": [[*pair] for pair in self.class_names.items()]}
        state["trainer"] = {"n_classes": self.tasks.N_CLASSES, "R": self.R, **names}
        _make_folder(Path(path).parent)
        checkpoint.save(state, Path(path))

    def load(self, path: str | Path) -> None:
        """Go on where the trainer that wrote the file was; network and configuration must be the same as its.

        Raises:
            UserError: the file is damaged, or of another network or configuration; the trainer is then as before.
        """
        self._refuse_inside("load")
        state = checkpoint.load(path)
        facts = state.get("trainer")
        if not isinstance(facts, dict):
            raise UserError(f"checkpoint {path} is of main.py: open it with --loadcheck")
        if other := [name for name, kind in FACTS.items() if not isinstance(facts.get(name), kind)]:
            raise UserError(f"checkpoint {path} is of another version of the trainer, without {other[0]}: train again")
        for name, mine in self._run().config.items():
            saved = state["options"].get(name)
            if saved != str(mine):
                raise UserError(f"checkpoint {path} was written with {name} {saved}, this trainer has {mine}")
        with all_or_nothing(self, leave=LEFT):
            self._make(facts["n_classes"])
            self.step = checkpoint.restore(state, self._experiment()).step
            self.task_names, self.R = facts["task_names"], facts["R"]
            self.class_names = self.class_names or {int(c): name for c, name in facts.get("class_names", ())}

    save_checkpoint, load_checkpoint = save, load

    def learned_tasks(self, call: str) -> int:
        """How many tasks were learned.

        Raises:
            UserError: none, or one is being learned; names what was called.
        """
        self._refuse_inside(call)
        if not self._learned():
            raise UserError(f"nothing to {call}: no task was learned yet")
        return self._learned()

    def _learned(self) -> int:
        """Tasks learned so far, the one in training included."""
        return len(self.tasks.classes) if self.tasks else 0

    def _refuse_inside(self, call: str) -> None:
        if self._training:
            raise UserError(f"{call} inside train_task, as from a callback: call it when the task is learned")

    def _experiment(self) -> Experiment:
        return Experiment(self.method, self.tasks, self.args, Log(self._run()), Stopper(), Meter(), Points())

    def _run(self) -> Run:
        """The trainer as the checkpoint's code sees it."""
        config = {f"config.{key}": value for key, value in flat(self.config).items()} | {"setting": self.setting}
        config |= {} if self.seed is None else {"seed": self.seed}
        return Run(
            model_name=self.strategy,
            dataset_name=GivenTasks.NAME,
            setting=self.tasks.SETTING if self.tasks else "given",
            n_tasks=self._learned() or 1,
            seed=self.seed or 0,
            config=config,
            origins={},
            results_path=Path(),
        )

    def _prepare(self, loader: Iterable) -> None:
        """Make the method at the first task, when the number of outputs can be seen."""
        if self.method is None:
            batch = next(iter(repeatable(loader)), None)
            if batch is None:
                raise UserError("the loader of task 0 gives no batch")
            shape = output_shape(self.net, read_inputs(split_batch(batch)[0], self.device, self._dtype))
            self._make(shape[-1], kind_of(self.setting, shape, batch))

    @property
    def _dtype(self) -> torch.dtype:
        """Of the network's weights."""
        return next((p.dtype for p in self.net.parameters() if p.is_floating_point()), torch.get_default_dtype())

    def _make(self, n_classes: int, kind: str = ClassTask.NAME) -> None:
        cls = registry.load("model", self.strategy)
        heads = "multi_head" not in cls.UNUSED
        setting = "domain-il" if self.setting is None and kind != ClassTask.NAME else self.setting
        self.tasks = GivenTasks(setting, n_classes, self.n_tasks, self.device, self._dtype, heads, kind)
        if self.tasks.SETTING:
            refuse_setting(cls, self.tasks)
        self.args.multi_head = self.tasks.multi_head
        backbone = self.net if isinstance(self.net, Backbone) else Wrapped(self.net, n_classes)
        method = cls(backbone, self.tasks.get_loss(), self.args, self.tasks.get_transform(), self.tasks)
        check_constructed(method)
        if self.replay:
            method.replay_buffer = Buffer(self.replay["size"], self.device)
        self.method = method.to(self.device)
        origin_of(self.method, free=("n_epochs", "batch_size", "minibatch_size"))


def _names(given: Sequence[str] | dict[int, str] | None) -> dict[int, str]:
    """Label -> name."""
    if isinstance(given, str) or not isinstance(given, Sequence | dict | None):
        raise UserError(f"class_names is {given!r}: expected a list of names, or a dict {{label: name}}")
    named = given if isinstance(given, dict) else dict(enumerate(given or ()))
    if bad := [label for label, name in named.items() if type(label) is not int or not isinstance(name, str)]:
        raise UserError(f"class_names has {bad[0]!r}: {named[bad[0]]!r}: expected integers as labels, texts as names")
    return dict(named)


def _make_folder(path: Path) -> None:
    with file_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def _generators(loader: Iterable) -> list[torch.Generator]:
    """Those from which a DataLoader draws its order."""
    samplers = getattr(loader, "sampler", None), getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    found = [getattr(part, "generator", None) for part in (loader, *samplers)]
    return [part for part in found if isinstance(part, torch.Generator)]
