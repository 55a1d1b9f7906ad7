"""Palimpsest: train a network on a sequence of tasks and measure what it forgets.

python main.py --model pah --dataset seq-digits
"""

import errno
import os
import sys
from importlib import import_module
from pathlib import Path

import palimpsest
from palimpsest.utils import registry
from palimpsest.utils.args import STUDIES
from palimpsest.utils.config_file import as_yaml
from palimpsest.utils.console import readable_anywhere
from palimpsest.utils.errors import Stopped, TrainingFailed, UserError
from palimpsest.utils.option_types import REPORTS
from palimpsest.utils.run import config as configuration

PROGRAM = "palimpsest" if Path(sys.argv[0]).stem == "palimpsest" else "main.py"


def command() -> int:
    """What the command `palimpsest` runs."""
    return main(sys.argv[1:])


def main(argv: list[str]) -> int:
    """Run one command line; returns the exit status: 0, 1 for a run that failed or a repetition that differs, 2 for
    bad input, 128 + the number of the signal that stopped it, 141 where nobody reads the output any more.
    """
    readable_anywhere()
    try:
        choice = configuration.chosen(argv)
        if choice.version:
            print(f"palimpsest {palimpsest.__version__}")
        elif study := next((name for name in STUDIES if getattr(choice, name) is not None), None):
            return import_module(f"palimpsest.utils.study.{study}").command(argv)
        elif choice.list:
            print_list()
        elif choice.help or not argv:
            print_help(choice)
        elif choice.check:
            from palimpsest.utils.check.conformance import check_and_print

            return 0 if check_and_print(choice.check) else 1
        elif choice.predict or choice.export:
            from palimpsest.commands import use

            use(argv)
        elif choice.print_completion:
            from palimpsest.completion import completion_script

            print(completion_script(choice.print_completion))
        elif choice.print_config:
            print_config(argv)
        elif choice.report and choice.report not in REPORTS and not choice.model:
            from palimpsest.redraw import redraw

            redraw(argv)
        elif choice.rerun:
            from palimpsest.utils.run.rerun import rerun

            return 0 if rerun(choice.rerun, argv) else 1
        else:
            run(argv)
        if sys.stdout:  # None where the caller has closed it
            sys.stdout.flush()
    except UserError as e:
        print(f"{PROGRAM}: error: {e}", file=sys.stderr)
        return 2
    except TrainingFailed as e:
        print(f"{PROGRAM}: the run failed: {e}", file=sys.stderr)
        return 1
    except Stopped as e:
        print(f"{PROGRAM}: {e}", file=sys.stderr)
        return e.status
    except BrokenPipeError:
        leave_output()
        if not (choice.list or choice.help):
            what = "nobody reads the output any more; a run that was saved goes on with --resume"
            print(f"{PROGRAM}: ended, since {what}", file=sys.stderr)
        return 128 + 13
    except OSError as e:
        if e.filename or e.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        leave_output()
        what = "free some space, or send it elsewhere; a run that was saved goes on with --resume"
        print(f"{PROGRAM}: error: cannot write the output: {e.strerror}; {what}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"{PROGRAM}: interrupted; a run that had begun goes on with the same command and --resume", file=sys.stderr
        )
        return 130
    return 0


def leave_output() -> None:
    """Nobody takes the output any more, as after `| head`. What Python still has for it must not fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run(argv: list[str]) -> None:
    """arguments -> dataset -> backbone -> model -> training -> report, once per seed."""
    config = configuration.resolve(argv)
    print(configuration.describe(config), flush=True)

    from palimpsest.utils.study.seeds import perform

    perform(config, argv)


def print_config(argv: list[str]) -> None:
    """The resolved options as YAML that `--config` takes back: those that have an effect on the method."""
    config = configuration.resolve(argv)
    unused = getattr(config.model_class, "UNUSED", ())
    print(as_yaml({name: value for name, value in vars(config.args).items() if name not in unused}), end="")


def print_help(choice) -> None:
    """Options, those of the chosen files included."""
    backbone = choice.backbone
    if choice.dataset and not backbone:
        own = getattr(registry.load("model", choice.model), "DEFAULTS", {}) if choice.model else {}
        backbone = own.get("backbone") or registry.load("dataset", choice.dataset).DEFAULTS["backbone"]
    configuration.build_parser(choice, backbone).print_help()


def print_list() -> None:
    """Every name with the first line of its file, then the stored hyperparameters."""
    for kind in registry.FOLDERS:
        names = registry.names(kind)
        width = max(map(len, names))
        print(f"{kind}s:")
        for name in names:
            print(f"  {name:<{width}}  {registry.first_line(kind, name)}")
    print(f"  {registry.TIMM}NAME  {registry.first_line('backbone', registry.TIMM)}")
    from palimpsest.utils.run.best_args import list_rows

    print("stored hyperparameters (--load_best_args):")
    rows: dict[tuple[str, str], list[str]] = {}
    for model, dataset, buffer_size in list_rows():
        rows.setdefault((model, dataset), []).append("" if buffer_size is None else str(buffer_size))
    for (model, dataset), sizes in rows.items():
        print(f"  {model:<8} {dataset:<14} {'--buffer_size ' + ', '.join(sizes) if any(sizes) else ''}".rstrip())


if __name__ == "__main__":
    sys.exit(command())
