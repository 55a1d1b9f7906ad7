"""What somebody meant who gives an option that does not exist: names that other programs use, and near ones."""

import difflib
import re
from collections.abc import Iterable

# Options that scripts written for other runners carry, and what to do about each.
WANDB = "use --wandb PROJECT, and W&B's own variables for the rest: WANDB_ENTITY, WANDB_MODE=offline"
REPLACED = {
    **dict.fromkeys(
        ("use_wandb", "wandb_entity", "wandb_project", "wandb_mode", "wandb_group", "entity", "project"), WANDB
    ),
    **dict.fromkeys(("nowand", "no_wandb", "nowandb"), "W&B is told nothing without --wandb: drop the option"),
    "wandb_name": "a run is named by its folder: use --exp_name",
    "dataset_config": "give the options in the file of --config FILE, or one by one",
    "ignore_other_metrics": "backward transfer and forgetting are always computed: drop it",
    **dict.fromkeys(
        ("distributed", "gpus", "num_gpus", "world_size"),
        "a run uses one device (--device cuda:N): start one process per seed or per setting instead",
    ),
    "num_filters_resnet": "use --num_filters",
    **dict.fromkeys(
        ("num_workers", "workers", "n_workers"),
        "the data live on the device as bytes and need no loader processes: drop the option",
    ),
    **dict.fromkeys(
        ("amp", "fp16", "bf16", "half", "mixed_precision"),
        "use --precision bf16: bfloat16 in the network's passes, with no loss to scale",
    ),
    **dict.fromkeys(("tf32", "allow_tf32"), "use --precision tf32"),
    "torch_compile": "use --compile",
    "conf_jobnum": "every run has its own folder: drop the option",
    **dict.fromkeys(("verbose", "quiet"), "runs tell what they do: use --non_verbose for less"),
    **dict.fromkeys(("trials", "space"), "it goes with --tune, which chooses options; a sweep has it in its file"),
    **dict.fromkeys(("launcher", "profile", "retry_failed", "final"), "it goes with --sweep FILE.yaml"),
    "within": "it goes with --compare FOLDER",
    "rows": "it goes with --reproduce TABLE",
    **dict.fromkeys(("n_seeds", "num_seeds", "repeat", "n_runs"), "name the seeds, as --seeds 0 1 2"),
}
# What other programs call an option -> what it is called here, of several the first that the run has.
MEANT = {
    ("learning_rate", "learningrate", "base_lr", "lr_init", "step_size"): ("lr", "lr_backbone"),
    ("epochs", "epoch", "num_epochs", "max_epochs", "nepochs", "num_train_epochs", "train_epochs"): ("n_epochs",),
    ("iters", "iterations", "num_iters", "steps", "n_steps", "max_steps", "num_steps"): ("n_iters",),
    ("batch", "bs", "train_batch_size", "train_bs", "batchsize", "train_mb_size"): ("batch_size",),
    ("test_batch_size", "val_batch_size", "eval_bs", "eval_mb_size"): ("eval_batch_size",),
    ("replay_batch_size", "mem_batch_size", "batch_size_mem", "minibatch", "buffer_batch_size"): ("minibatch_size",),
    ("buffer", "buf_size", "memory_size", "mem_size", "memory", "replay_size", "n_memories", "rehearsal_size",
     "exemplars", "num_exemplars"): ("buffer_size",),
    ("weight_decay", "wd", "l2"): ("optim_wd", "pah_wd"),
    ("momentum", "mom"): ("optim_mom",),
    ("nesterov",): ("optim_nesterov",),
    ("optim", "opt"): ("optimizer",),
    ("scheduler", "lr_schedule", "schedule"): ("lr_scheduler",),
    ("milestones", "lr_steps", "decay_epochs"): ("lr_milestones",),
    ("lr_decay", "lr_gamma", "lr_factor"): ("sched_multistep_lr_gamma",),
    ("warmup", "warmup_ratio"): ("lr_warmup",),
    ("grad_clip", "clip", "max_grad_norm", "gradient_clip", "clip_norm"): ("clip_grad",),
    ("method", "strategy", "approach", "algorithm", "algo", "agent"): ("model",),
    ("data", "benchmark", "scenario", "stream", "task", "experiment"): ("dataset",),
    ("network", "net", "arch", "architecture"): ("backbone",),
    ("gpu", "gpu_id", "cuda", "gpus_id", "device_id"): ("device",),
    ("random_seed", "manual_seed", "rng_seed"): ("seed",),
    ("data_dir", "data_root", "root", "dataset_path", "datapath", "dataroot"): ("base_path",),
    ("output_dir", "out_dir", "outdir", "output", "log_dir", "logdir", "save_dir", "results_dir", "log_path",
     "result_path", "output_path"): ("results_path",),
    ("name", "experiment_name", "run_name", "tag", "exp"): ("exp_name",),
    ("debug", "dry_run", "smoke_test", "fast_dev_run"): ("debug_mode",),
    ("config_file", "cfg", "yaml", "yaml_file", "conf"): ("config",),
    ("optimizer_args", "opt_args", "optim_kwargs", "optimizer_kwargs"): ("optim_args",),
    ("scheduler_args", "lr_scheduler_args", "sched_kwargs", "scheduler_kwargs"): ("sched_args",),
    ("load", "checkpoint", "ckpt", "ckpt_path", "resume_from", "load_checkpoint", "pretrained_path"): ("loadcheck",),
    ("save", "save_checkpoint", "save_model", "save_models"): ("savecheck",),
    ("continue", "restart", "auto_resume"): ("resume",),
    ("eval_only", "eval", "test_only", "test", "evaluate", "inference"): ("inference_only",),
    ("val_split", "val_size", "validation_split"): ("validation",),
    ("class_order", "classes_order"): ("custom_class_order",),
    ("task_order",): ("custom_task_order",),
    ("shuffle_classes", "random_class_order"): ("permute_classes",),
    ("best_args", "best", "use_best_args"): ("load_best_args",),
    ("early_stop", "patience", "early_stopping"): ("early_stopping_patience",),
    ("augmentation", "data_augmentation", "data_aug"): ("augment",),
    ("num_tasks", "tasks", "ntasks", "n_experiences"): ("n_tasks",),
    ("threads", "n_threads", "cpu_threads"): ("num_threads",),
    ("noise", "label_noise"): ("noise_rate",),
}  # fmt: skip
SYNONYMS = {name: here for names, here in MEANT.items() for name in names}


def explain_unknown(tokens: list[str], options: Iterable[str], unused: Iterable[str] = ()) -> str:
    """One line about all the arguments nobody declared.

    Args:
        tokens: what the parser left over.
        options: the names that exist, with their dashes.
        unused: names without dashes of options that have no effect on the chosen method: none is proposed.
    """
    known = [option[2:] for option in options if option.startswith("--") and option[2:] not in set(unused)]
    told: list[str] = []
    unknown = False
    for token in tokens:
        name = token.partition("=")[0].removeprefix("--")
        if token.startswith("--"):
            unknown = True
            if name in REPLACED:
                told.append(f"--{name} does not exist: {REPLACED[name]}")
            else:
                meant = _meant(name, known)
                told.append(f"unknown option --{name}" + (f"; did you mean --{meant}?" if meant else ""))
        elif token.startswith("-") and token[1:2].isalpha():
            unknown = True
            meant = _meant(name[1:], known)
            told.append(f"stray argument '{token}': options have two dashes" + (f", as --{meant}" if meant else ""))
        elif not unknown:  # behind an unknown option it is that one's value
            told.append(f"stray argument '{token}': every value follows an option, as --lr 0.1")
    return "; ".join(told) + (" (--help shows all)" if unknown else "")


def _meant(name: str, known: list[str]) -> str | None:
    """The option that a wrong name most likely means, None where there is no telling."""
    if name in known:
        return name
    if (lower := name.lower()) != name:
        return _meant(lower, known)
    if here := next((option for option in SYNONYMS.get(name, ()) if option in known), None):
        return here
    words = set(name.split("_"))
    holding = [option for option in known if words <= set(option.split("_"))]
    if len(holding) == 1:
        return holding[0]
    # A slip of the pen in `epochs` means `n_epochs`.
    short = {re.sub("^(n|num|optim)_", "", option): option for option in reversed(known)} | {o: o for o in known}
    close = difflib.get_close_matches(name, short, n=1, cutoff=0.72)
    return short[close[0]] if close else None


def means_choice(tokens: Iterable[str], kinds: Iterable[str]) -> list[str]:
    """The arguments that another program would read as one of `kinds` ('model', 'dataset'), explained."""
    names = [token.partition("=")[0] for token in tokens if token.startswith("--")]
    asked = {kind: [name for name in names if kind in SYNONYMS.get(name[2:], ())] for kind in kinds}
    return [explain_unknown([name], [f"--{kind}"]) for kind, found in asked.items() for name in found]
