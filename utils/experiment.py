"""One run from a resolved configuration: dataset, backbone, method, training, results."""

import argparse
import hashlib
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

import torch

from models.utils.continual_model import ContinualModel
from utils import checkpoint, environment
from utils.config import Config
from utils.errors import UserError
from utils.loggers import make_loggers
from utils.mean_accs import write_summary
from utils.report import summarise_run, summarise_seeds, write_seeds_report
from utils.run import Run
from utils.training import Position, last_task, score, train


@dataclass
class Experiment:
    """Everything a run is made of, built and not yet started."""

    model: ContinualModel
    dataset: object
    run: Run
    args: object


def build(config: Config) -> Experiment:
    """Seed, read the data, make the network and the method. Writes nothing.

    Raises:
        UserError: missing data, a device that is not there, options that do not fit the stream.
    """
    args = config.args
    device = environment.prepare(args)
    dataset = config.dataset_class(args, device)
    for option in ("start_from", "stop_after"):
        value = getattr(args, option)
        if value is not None and value > dataset.N_TASKS - (option == "start_from"):
            raise UserError(f"--{option} {value}: {dataset.NAME} has {dataset.N_TASKS} task(s)")
    if args.stop_after is not None and args.stop_after <= args.start_from:
        raise UserError(f"--stop_after {args.stop_after} leaves nothing to train after --start_from {args.start_from}")
    dataset.enter_task(args.start_from)  # a task too small for a batch is found before anything is written
    # The network is drawn from the seed alone, whatever reading the data has drawn before.
    torch.manual_seed(args.seed)
    backbone = config.backbone_class.from_args(args, dataset.SIZE, dataset.N_CLASSES).to(device)
    if args.code_optimization >= 3:
        backbone.compile()
    model = config.model_class(backbone, dataset.get_loss(), args, dataset.get_transform(), dataset).to(device)
    if getattr(model, "opt", None) is None and any(p.requires_grad for p in model.get_parameters()):
        model.opt = model.get_optimizer()
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
        notes=model.evaluation_notes() | _start_note(args),
        environment=environment.describe(device),
        published=config.row,
    )
    return Experiment(model, dataset, run, args)


def execute(config: Config) -> tuple[Run, dict[str, dict[str, float]]]:
    """Run one experiment to its end; the run and its metrics per scenario."""
    exp = build(config)
    model, dataset, run, args = exp.model, exp.dataset, exp.run, exp.args
    start = None
    if args.loadcheck:
        state = checkpoint.load(args.loadcheck, model.device)
        position = checkpoint.restore(state, model, dataset, run)
        start = _loaded_start(position, args, dataset)
        if args.inference_only:
            run.history, run.matrices = [], {}
    if not args.disable_log:
        run.folder = make_folder(run, args)
    loggers = make_loggers(args, run)
    for logger in loggers:
        logger.run_started(run)
    begin = time.perf_counter()
    if args.inference_only:
        trained = max(position.task - (not position.inside), 0)
        dataset.enter_task(trained)
        score(model, dataset, run, args, loggers, trained, position.step)
    else:
        train(model, dataset, run, args, loggers, start, after_task=_saver(exp))
    run.seconds = time.perf_counter() - begin
    summary = summarise_run(run)
    for logger in loggers:
        logger.run_ended(run, summary)
    if not args.disable_log and not args.inference_only:
        write_summary(run, summary)
    return run, summary


def _start_note(args) -> dict[str, str]:
    if args.start_from == 0 or args.loadcheck:
        return {}
    return {"start": f"tasks before task {args.start_from} were not trained: averages over all tasks include chance"}


def make_folder(run: Run, args) -> Path:
    """results/<setting>/<dataset>/<model>/<run id>/, made now; the id is the time, the seed and a digest of the
    options.
    """
    digest = hashlib.blake2b(repr(sorted(run.config.items())).encode(), digest_size=4).hexdigest()
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S-%f")[:-3]
    name = "_".join(part for part in (args.exp_name, stamp, f"seed{run.seed}", digest) if part)
    folder = run.results_path / run.setting / run.dataset_name / Path(run.model_name).stem / name
    try:
        folder.mkdir(parents=True)
    except OSError as e:
        raise UserError(
            f"cannot make the run's folder under {args.results_path}: {e.strerror}; give another --results_path"
        ) from None
    return folder


def _loaded_start(position: Position, args, dataset) -> Position:
    if args.inference_only:
        return position
    if args.start_from not in (0, position.task) or position.inside:
        raise UserError(f"the checkpoint was saved before task {position.task}: use --start_from {position.task}")
    if position.task >= last_task(args, dataset):
        raise UserError(
            f"the checkpoint was saved after {position.task} task(s), nothing is left to train: --inference_only?"
        )
    return position


def _saver(exp: Experiment):
    """What to do after each task: keep a checkpoint, if one was asked for."""
    args, run = exp.args, exp.run
    if not args.savecheck or run.folder is None:
        return None

    def save(position: Position) -> None:
        suffix = f"_task{position.task - 1}" if args.savecheck == "task" else ""
        name = f"{args.ckpt_name or 'checkpoint'}{suffix}.pt"
        checkpoint.save(checkpoint.capture(exp.model, exp.dataset, run, position), run.folder / name)

    return save


def execute_seeds(config: Config) -> dict[str, dict[str, tuple[float, float, float, int]]]:
    """The same experiment once per seed of `--seeds`, then mean, standard deviation and 95 % interval of every metric.

    Returns:
        scenario -> metric -> (mean, standard deviation, half width of the 95 % interval, number of seeds).
    """
    runs, summaries = [], []
    for seed in config.args.seeds:
        args = argparse.Namespace(**{**vars(config.args), "seed": seed})
        print(f"seed {seed}", flush=True)
        run, summary = execute(replace(config, args=args))
        runs.append(run)
        summaries.append(summary)
    table = summarise_seeds(summaries)
    print(f"{len(runs)} seeds: mean, standard deviation, 95 % interval")
    for scenario, values in table.items():
        for metric, (mean, std, half, n) in values.items():
            print(
                f"  {scenario:<18} {metric:<20} {mean:8.2f} ± {std:.2f}  [{mean - half:.2f}, {mean + half:.2f}]  n={n}"
            )
    if runs[0].folder is not None:
        folder = runs[0].folder.parent / f"seeds_{runs[0].folder.name}"
        print(f"report over seeds: {write_seeds_report(folder, runs, table)}")
    return table
