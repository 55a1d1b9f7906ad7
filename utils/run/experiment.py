"""One run from a resolved configuration: dataset, backbone, method, training, results."""

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import yaml

from palimpsest.backbone.utils.layout import put_channels_last, refuse_generated_weights
from palimpsest.backbone.utils.wrapped import make_network
from palimpsest.datasets.utils.classes import facts_of
from palimpsest.models.utils.contract import check_constructed
from palimpsest.models.utils.state import origin_of
from palimpsest.utils import identity, registry
from palimpsest.utils.atomic import write_text
from palimpsest.utils.buffer import Buffer
from palimpsest.utils.errors import TrainingFailed, UserError
from palimpsest.utils.log.analysis import analyse, peak_memory, report_of
from palimpsest.utils.log.events import Log, Logger
from palimpsest.utils.log.leaks import LeakWatch, declared_leaks
from palimpsest.utils.log.loggers import ConsoleLogger, make_loggers
from palimpsest.utils.log.mean_accs import write_summary
from palimpsest.utils.log.mlflow_logger import MLflowLogger, Store
from palimpsest.utils.log.report import summarise_run
from palimpsest.utils.log.wandb_logger import check_wandb
from palimpsest.utils.randomness import preserve_rng, random_state, seed_all, seed_of, set_random_state
from palimpsest.utils.record import Experiment, Position, Run
from palimpsest.utils.run import checkpoint, environment
from palimpsest.utils.run.compiling import CompiledForward
from palimpsest.utils.run.config import Config, refuse_setting
from palimpsest.utils.run.finished import RECORD, RESULT, read_record, restore_record, write_result
from palimpsest.utils.run.folders import run_folder
from palimpsest.utils.run.measure.budget import fit_buffer, tell_costs
from palimpsest.utils.run.measure.meter import OPERATIONS, Meter
from palimpsest.utils.run.measure.points import Points
from palimpsest.utils.run.refusals import (
    NO_STATISTICS,
    refuse_few_examples,
    refuse_lone_example,
    refuse_small_buffer,
    refuse_stream_functions,
)
from palimpsest.utils.run.saving import Saver, Signals
from palimpsest.utils.run.stopping import make_stopper
from palimpsest.utils.run.training import evaluate_run, last_task, train


def build(config: Config) -> Experiment:
    """Seed, read the data, make the network and the method. Writes nothing.

    Raises:
        UserError: missing data, a device that is not there, options that do not fit the stream.
    """
    args = config.args
    if args.budget_bytes:
        fit_buffer(config, build)
    device, meter, points = environment.prepare(args), Meter(args), Points(args)
    with registry.errors_of(config.dataset_class):
        dataset = config.dataset_class(args, device)
    dataset.reads.watch(config.model_class, config.backbone_class)
    refuse_stream_functions(dataset)
    refuse_setting(config.model_class, dataset)  # which an option of the stream may have decided
    for option in ("start_from", "stop_after"):
        value = getattr(args, option)
        if value is not None and value > dataset.N_TASKS - (option == "start_from"):
            raise UserError(f"--{option} {value}: {dataset.NAME} has {dataset.N_TASKS} task(s)")
    if args.stop_after is not None and args.stop_after <= args.start_from:
        raise UserError(f"--stop_after {args.stop_after} leaves nothing to train after --start_from {args.start_from}")
    refuse_small_buffer(config.model_class, dataset, args)
    refuse_few_examples(config.model_class, dataset, args)
    dataset.enter_task(args.start_from)  # a task too small for a batch is found before anything is written

    def network():
        net = make_network(config.backbone_class, args, dataset.SIZE, dataset.N_CLASSES, dataset.INPUT).to(device)
        return put_channels_last(net) if args.channels_last else net

    def method():
        backbone = network()
        compiled = CompiledForward(backbone) if args.compile else None
        model = config.model_class(backbone, dataset.get_loss(), args, dataset.get_transform(), dataset)
        check_constructed(model)
        if args.channels_last:
            refuse_generated_weights(model)
        return model, compiled

    model, compiled = _draw(method, args)
    model = model.to(device)
    if getattr(model, "opt", None) is None and any(p.requires_grad for p in model.get_parameters()):
        model.opt = model.get_optimizer()
    with preserve_rng(), dataset.reads.unwatched():
        refuse_lone_example(model, network, dataset, args)
    origin_of(model)  # notes what a freshly constructed method holds
    classes = (config.model_class, config.dataset_class, config.backbone_class)
    files = dict(zip(identity.FILES, map(identity.of_class, classes), strict=True))
    facts = environment.describe(device) | files | {"code": identity.shared_code(), "data": dataset.checksum}
    report, score, note = report_of(model, dataset, range(0)), *name_scores(dataset.tasks)
    notes = dataset.notes | report.notes | ({"score": note} if note else {})
    if args.precision == "bf16" and not getattr(model.net, "mixed", True):
        notes["mixed precision"] = f"none: {args.backbone} is no fully connected network, and its weights are generated"
    if args.precision == "bf16" and not getattr(model, "NETWORK", True):
        notes["mixed precision"] = "none: the method has no network"
    if args.debug_mode:
        notes["debug"] = "--debug_mode: one epoch of a few iterations per task; these scores are no result"
    if config.chosen_on not in ("command line", "published row", "stored row", "unknown"):
        notes["options"] = f"chosen on {config.chosen_on}"
    if args.start_from and not args.loadcheck:
        notes["start"] = f"tasks before task {args.start_from} were not trained: averages over all tasks include chance"
    run = Run(
        model_name=args.model,
        dataset_name=args.dataset,
        setting=dataset.SETTING,
        n_tasks=dataset.EVAL_TASKS,
        seed=args.seed,
        config=dict(sorted(vars(args).items())),
        origins=config.origins,
        results_path=Path(args.results_path),
        parameters=sum(p.numel() for p in model.parameters()),
        score=score,
        shares=report.shares,
        tasks={task.name: task.METRIC for task in dataset.tasks if task.name},
        notes=notes,
        environment=facts,
        published=config.row,
        chosen_on=config.chosen_on,
        trial=config.trial,
        classes=name_classes(dataset),
        marks=[*declared_leaks(model, dataset).values()],
    )
    log = Log(run, bar=not args.non_verbose)
    if compiled:
        compiled.run = run
        log.loggers.append(compiled)
    return Experiment(model, dataset, args, log, make_stopper(args), meter, points)


def _draw(method: Callable[[], tuple[Any, Any]], args) -> tuple[Any, Any]:
    """What `method()` makes, drawn from `--seed_init`; whatever is drawn later is that of a run whose only seed is
    `--seed_data`: the global generators and those of the buffers.
    """
    first, later = seed_of(args, "init"), seed_of(args, "data")
    # Drawn from the seed alone, whatever reading the data has drawn before.
    torch.manual_seed(later)
    if first == later:
        return method()
    other, state = method()[0], random_state()
    seed_all(first)
    made = method()
    set_random_state(state)
    buffers, others = ([part for part in model.modules() if isinstance(part, Buffer)] for model in (made[0], other))
    for mine, its in zip(buffers, others, strict=True):
        mine.rng = its.rng
    return made


def name_scores(tasks) -> tuple[str, str]:
    """What to call the numbers of R, and what a reader must know of them; 'score' where they are different numbers."""
    metrics, notes = ({getattr(task, name): None for task in tasks} for name in ("METRIC", "NOTE"))
    return next(iter(metrics)) if len(metrics) == 1 else "score", "; ".join(note for note in notes if note)


def name_classes(dataset) -> list[tuple[int, str]]:
    """Original label and name of every class of a stream, by its label there."""
    order = getattr(dataset, "class_order", None) or range(getattr(dataset, "N_CLASSES", 0))
    names = getattr(dataset, "class_names", None)
    return [(int(label), str(names[label] if names else label)) for label in order]


def execute(
    config: Config,
    first: Run | None = None,
    group: str | None = None,
    listeners: Sequence[Logger] = (),
    on_taken: Callable[[str], None] | None = None,
) -> tuple[Run, dict[str, dict[str, float]]]:
    """Run one experiment to its end; the run and its metrics per scenario.

    Args:
        first: the run of the first of several seeds, when this is another of them.
        group: name that the runs of several seeds share, by default that of the first one's folder.
        listeners: who is told of the run besides the loggers that the options ask for; nothing of one that is finished.
        on_taken: see `run_folder`.

    Raises:
        UserError, TrainingFailed, Stopped: see there; what was saved before is kept.
    """
    exp, start = prepare(config, first is None)
    args = exp.args
    with ExitStack() as stack:
        if not args.disable_log:
            exp.run.folder = stack.enter_context(run_folder(exp.run, args.resume, on_taken))
            exp.run.group = (group or f"seeds_{(first or exp.run).folder.name}") if args.seeds else None
            if args.resume and (exp.run.folder / RESULT).is_file():
                return _show_finished(exp)
            if args.resume:
                start = _resumed_start(exp)
        exp.log.loggers += listeners
        return _perform(exp, start)


def prepare(config: Config, alone: bool = True) -> tuple[Experiment, Position | None]:
    """All that comes before a run has its folder: what `build` makes, in the state that `--loadcheck` names.

    Args:
        alone: whether no other run of this process has tried the store of `--mlflow`.

    Raises:
        UserError: as `build`; a checkpoint that does not fit, a store that cannot be used.
    """
    with out_of_memory_explained(config.args):
        exp = build(config)
    args, start = exp.args, None
    if args.loadcheck:
        start = _loaded_start(exp)
        if args.inference_only:
            exp.run.history, exp.run.points, exp.run.matrices, exp.run.pictures = [], [], {}, []
        else:
            _refuse_start(start, args, exp.dataset)
    if args.mlflow and not args.disable_log and alone:
        Store(args, exp.run)  # one that cannot be used is an error now, and a warning later
    if args.wandb and not args.disable_log and alone:
        check_wandb()
    return exp, start


def _perform(exp: Experiment, start: Position | None) -> tuple[Run, dict[str, dict[str, float]]]:
    """Train, or score what a checkpoint holds, and write the results."""
    model, dataset, run, args = exp.model, exp.dataset, exp.run, exp.args
    if run.folder is not None:
        write_text(run.folder / "classes.json", json.dumps(facts_of(dataset)) + "\n")
    watch = LeakWatch(exp)
    loggers = exp.log.loggers = [watch, *exp.log.loggers, *make_loggers(args, run)]
    for logger in loggers:
        logger.run_started(run)
    if model.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(model.device)
    begin = time.perf_counter()
    try:
        if args.inference_only:
            at = Position(task=max(start.task - (not start.inside), 0), step=start.step)
            dataset.enter_task(at.task)
            evaluate_run(exp, at)
        else:
            _train_and_save(exp, start, watch)
    except BaseException as e:
        for logger in loggers:
            logger.run_stopped(run, e)
        raise
    run.seconds = time.perf_counter() - begin
    waited = {"seconds_waiting_for_data": round(dataset.waited, 2)} if hasattr(dataset, "waited") else {}
    costs = waited | peak_memory(model.device)  # before the look at the end, which is no part of the method's cost
    if run.history:
        watch.finish()
    costs |= exp.meter.costs(run.history[-1].step if run.history else 0)
    tell_costs(exp, costs)
    if run.folder is not None and run.history:
        with dataset.reads.unwatched():
            run.analysis = analyse(model, dataset, run.history[-1].task, run.pictures, run.counts)
        run.analysis.costs |= {name: costs[name] for name in OPERATIONS if costs[name] is not None}
    run.costs = costs_of(run, costs)
    summary = summarise_run(run)
    for logger in loggers:
        logger.run_ended(run, summary)
    if not (args.disable_log or args.inference_only):
        write_text(run.folder / "timing.yaml", yaml.safe_dump(run.costs, sort_keys=False))
        if not run.trial:
            write_summary(run, summary)
        write_result(exp)
    return run, summary


def _train_and_save(exp: Experiment, start: Position | None, watch: LeakWatch) -> None:
    with Signals().watched() as signals:
        saver = Saver(exp, signals)

        def after_step(at: Position) -> None:
            saver.after_step(at)
            watch.after_step(at)  # which may get hold of the next step: nothing of that is in a checkpoint

        def after_task(at: Position) -> None:
            watch.task_ended()
            saver.after_task(at)

        exp.log.after_step, exp.log.after_task = after_step, after_task
        try:
            with out_of_memory_explained(exp.args):
                train(exp, start)
        except TrainingFailed as e:
            kept = exp.run.folder and checkpoint.newest(exp.run.folder)[0]
            raise TrainingFailed(f"{e}; last good checkpoint: {kept}" if kept else str(e)) from None
        except ValueError as e:
            if NO_STATISTICS not in str(e):
                raise
            raise TrainingFailed(
                "BatchNorm cannot normalise a batch of one example: add --drop_last or change --batch_size"
            ) from None


def _resumed_start(exp: Experiment) -> Position | None:
    """Put the experiment where its folder's newest whole checkpoint was; None where there is none yet."""
    run = exp.run
    path, problems = checkpoint.newest(run.folder)
    for problem in problems:
        print(f"main.py: {problem}", file=sys.stderr)
    if path is None:
        if problems:
            raise UserError(f"no whole checkpoint is left in {run.folder}: move the folder away to begin anew")
        print(f"--resume: nothing saved yet, from the beginning in {run.folder}", flush=True)
        return None
    state = checkpoint.load(path)
    _refuse_other_data(state["environment"], run)
    position = checkpoint.restore(state, exp)
    run.position = position.step
    print(f"--resume: from iteration {position.step} of {path}", flush=True)
    _tell_changes(state["environment"], run)
    return position


def _loaded_start(exp: Experiment) -> Position:
    """Put the experiment where `--loadcheck` was saved, a file or the newest checkpoint of a folder."""
    path = checkpoint.find(exp.args.loadcheck)
    state = checkpoint.load(path)
    position = checkpoint.restore(state, exp, exact=False)
    print(f"--loadcheck: from iteration {position.step} of {path}", flush=True)
    _tell_changes({name: state["environment"].get(name, "unknown") for name in (*identity.FILES, "data")}, exp.run)
    exp.run.environment["checkpoint"] = f"{path.name} {checkpoint.verify(path).digest[:12]}"
    return position


def _refuse_other_data(before: dict[str, str], run: Run) -> None:
    if "data" in environment.differences(before, run.environment):
        raise UserError(
            f"the data of {run.dataset_name} are not those the run in {run.folder} began with: put them back"
        )


def _tell_changes(before: dict[str, str], run: Run) -> None:
    """Print what is not as it was; a run on which other files go on is of both from now on."""
    for name, (then, now) in environment.differences(before, run.environment).items():
        both = identity.merge_facts(str(then), now)
        if name not in identity.FILES:
            print(f"  {name} was {then}, is {now}: the numbers may differ in the last digits", flush=True)
        elif both != then:
            print(f"  {name} was {then}, is {now}: another program goes on, the results name both", flush=True)
        if name in identity.FILES:
            run.environment[name] = both


def _show_finished(exp: Experiment) -> tuple[Run, dict[str, dict[str, float]]]:
    run = exp.run
    if (run.folder / RECORD).is_file():
        before = read_record(run.folder)["environment"]
        _refuse_other_data(before, run)
        restore_record(run)
        _tell_changes(before, run)
    else:
        _resumed_start(exp)
    run.seconds = 0.0
    summary = summarise_run(run)
    print("--resume: this run is finished; drop --resume to run it again")
    # A store of runs gets what it does not have yet.
    for logger in [ConsoleLogger(), *([MLflowLogger(exp.args)] if exp.args.mlflow else [])]:
        logger.run_started(run)
        logger.run_ended(run, summary)
    return run, summary


def costs_of(run: Run, more: dict[str, Any]) -> dict[str, Any]:
    """All that a run costs; `timing.yaml` has it, apart from what two equal runs share, since clocks differ.

    `seconds` and the peak of memory are those of this process, which began at iteration `from_iteration`; what the
    meter tells in `more` is of the whole run.
    """
    ended = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts = {"ended": ended, "seconds": round(run.seconds, 2), "from_iteration": run.position or 0, **more}
    return facts | (run.analysis.costs if run.analysis else {})


@contextmanager
def out_of_memory_explained(args) -> Iterator[None]:
    """Turn a refusal of memory into one line with sizes to try: of the buffer where that was it, else of batches."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as e:
        text = str(e).lower()
        if not isinstance(e, torch.OutOfMemoryError | MemoryError) and not any(
            words in text
            for words in ("out of memory", "can't allocate memory", "not enough memory", "storage size calculation")
        ):
            raise
        # The replay buffer is allocated as a whole, or copied as one: no batch size helps there.
        steps = [(f.f_code.co_filename, f.f_code.co_name) for f, _ in traceback.walk_tb(e.__traceback__)]
        if getattr(args, "buffer_size", None) and any(
            file == Buffer.add_data.__code__.co_filename and name in ("_allocate", "get_all_data")
            for file, name in steps
        ):
            raise TrainingFailed(
                f"out of memory for the replay buffer with --buffer_size {args.buffer_size}: try --buffer_size "
                f"{max(args.buffer_size // 2, 1)} or {max(args.buffer_size // 4, 1)}"
            ) from None
        sizes = [str(size) for size in (args.batch_size // 2, args.batch_size // 4) if size]
        tries = f"--batch_size {' or '.join(sizes)}" if sizes else "a smaller network"
        if getattr(args, "minibatch_size", None):
            tries += f" with a --minibatch_size below {args.minibatch_size}"
        raise TrainingFailed(
            f"out of memory with --batch_size {args.batch_size} and --eval_batch_size {args.eval_batch_size}: "
            f"try {tries}, or --data_device cpu; if others held the memory, the same command with --resume goes on"
        ) from None


def _refuse_start(position: Position, args, dataset) -> None:
    """A checkpoint from which these options leave nothing to train, or would begin elsewhere."""
    if args.start_from and (args.start_from != position.task or position.inside):
        where = f"in the middle of task {position.task}" if position.inside else f"before task {position.task}"
        advice = "drop --start_from" if position.inside else f"use --start_from {position.task}"
        raise UserError(f"the checkpoint was saved {where}: {advice}")
    if position.task >= last_task(args, dataset):
        raise UserError(
            f"the checkpoint was saved after {position.task} task(s), nothing is left to train: --inference_only?"
        )
