"""The learning rate of a task, epoch by epoch."""

import math


def restart_schedule(model, args) -> None:
    """With a learning-rate schedule every task starts with a fresh optimiser; without one the optimiser goes on."""
    if args.lr_scheduler != "none" and "lr_scheduler" not in model.UNUSED:
        model.reset_optimizers()


def set_learning_rate(model, args, epoch: int, n_epochs: int) -> None:
    """The schedule is a function of the epoch, so that a run can be entered anywhere; a method that takes no
    `--lr_scheduler` has one of its own.
    """
    scheduled = args.lr_scheduler != "none" or args.lr_warmup
    if not scheduled or model.opt is None or "lr_scheduler" in model.UNUSED:
        return
    first, factor = round(args.lr_warmup * n_epochs), 1.0
    if epoch < first:  # the warm-up rises in equal steps, to 1 after it
        factor = (epoch + 1) / (first + 1)
    elif args.lr_scheduler == "multisteplr":
        factor = args.sched_multistep_lr_gamma ** sum(epoch >= m for m in args.lr_milestones)
    elif args.lr_scheduler == "cosine":
        factor = (1 + math.cos(math.pi * (epoch - first) / (n_epochs - first))) / 2
    for group in model.opt.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor
