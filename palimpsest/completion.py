"""Completion of the command line by the shell: a script that `--print_completion bash` or `zsh` prints once."""

import argparse
from contextlib import suppress

from palimpsest.backbone.utils.timm_nets import TimmNet
from palimpsest.utils import registry
from palimpsest.utils.args import ArgumentParser, base_parser
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import declared_options

FILES = ("config", "loadcheck", "pretrained_path", "predict", "export", "rerun")
FOLDERS = ("base_path", "results_path")


def completion_script(shell: str) -> str:
    """The script, in which stand the options of every method, stream and network, so that pressing Tab starts no
    Python.

    Args:
        shell: one that shtab knows, as bash or zsh.

    Raises:
        UserError: shtab is not installed, or knows no such shell.
    """
    try:
        import shtab
    except ImportError:
        raise UserError("--print_completion needs the package shtab: pip install 'palimpsest[completion]'") from None
    if shell not in shtab.SUPPORTED_SHELLS:
        raise UserError(f"--print_completion {shell}: expected one of {', '.join(shtab.SUPPORTED_SHELLS)}")
    parser = base_parser()
    parser.prog = "palimpsest"
    for kind in registry.FOLDERS:
        for name in registry.names(kind):
            with suppress(UserError):  # one file that cannot be read hides no others
                _add(parser, declared_options(registry.load(kind, name)))
    _add(parser, declared_options(TimmNet))
    for action in parser._actions:
        action.help = (action.help or "").partition("\n")[0]
        if action.dest in registry.FOLDERS:
            action.choices = registry.names(action.dest)
        elif action.dest == "check":
            action.choices = registry.names("model")
        elif action.dest in FILES:
            action.complete = shtab.FILE
        elif action.dest in FOLDERS:
            action.complete = shtab.DIRECTORY
    return shtab.complete(parser, shell)


def _add(parser: ArgumentParser, own: ArgumentParser) -> None:
    """The options of one file; of those that several files declare the first."""
    for action in own._actions:
        if not isinstance(action, argparse._HelpAction):
            with suppress(argparse.ArgumentError):
                parser._add_action(action)
