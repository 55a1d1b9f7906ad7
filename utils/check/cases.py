"""A method on the small stream of one of its settings, in a short run: what the conformance checks are done on."""

import functools
import shutil
import tempfile
from dataclasses import dataclass
from multiprocessing.util import Finalize

from palimpsest.utils import registry
from palimpsest.utils.errors import UserError
from palimpsest.utils.run.config import Config, declared_options, refuse_setting, resolve

# The stream of each setting; of those with the task given the one of unlike vision tasks is a case of its own.
STREAMS = {
    "class-il": "seq-digits", "domain-il": "perm-digits", "general-continual": "digits-360",
    "vision": "seq-vision-mini",
}  # fmt: skip
# Score (percent) on a task just learned that a method must exceed; chance is 50, 10, 11, and 15 on average.
LEARNED = {"class-il": 75.0, "domain-il": 50.0, "general-continual": 14.0, "vision": 35.0}
PLACEHOLDERS = {
    "buffer_size": "100", "minibatch_size": "16", "fitting_epochs": "30", "nf": "16",
    "imp_arch": "", "latent_dim": "2", "full_support_perturbation": "0", "hnet_arch": "10",
    "train_sample_size": "2", "num_kl_samples": "2", "num_ssge_samples": "8",
    "finetune_steps": "10", "probe_size": "8", "n_features": "100",
    "kl_scale": "0.001", "prior_variance": "0.01",  # few examples do not outweigh a wide prior
}  # fmt: skip


class Failure(AssertionError):
    """A method breaks the contract; the message tells its author how."""


class Interrupted(Exception):
    """Raised by a check to stop a run in the middle."""


@dataclass(frozen=True)
class Case:
    """A method (name or path) on the small stream of one of `STREAMS`."""

    model: str
    setting: str

    def config(self, *more: str, share: float = 0.2, tasks: int = 3) -> Config:
        """A short run: the first tasks of the stream (`tasks` of class-IL), a share of their examples."""
        stream = STREAMS[self.setting]
        argv = ["--model", self.model, "--dataset", stream, "--disable_log", "--non_verbose", "--num_threads", "1"]
        argv += required_options(self.model)
        if self.setting == "vision":
            argv += ["--base_path", vision_folder(), "--vision_items", "digits", "--vision_size", "32"]
            argv += ["--vision_subset", str(round(100 * share)), "--seg_classes", "binary"]
            # A test that brings its own of these has the last word.
            argv += [a for o, v in (("--batch_size", "8"), ("--n_epochs", "1")) if o not in more for a in (o, v)]
            return resolve([*argv, "--device", "cpu", *more])
        argv += ["--label_perc", str(share)]
        if self.setting != "class-il" and "backbone" not in getattr(registry.load("model", self.model), "DEFAULTS", {}):
            argv += ["--backbone", "mnistmlp"]  # where convolutions make sense they are tested; this one is quicker
        if not registry.load("model", self.model).JOINT:
            argv += {"class-il": ["--stop_after", str(tasks)], "domain-il": ["--stop_after", "2"]}.get(self.setting, [])
        elif self.setting == "domain-il" and "--n_epochs" not in more:
            argv += ["--n_epochs", "2"]  # all twenty tasks at once
        return resolve([*argv, "--device", "cpu", *more])


@functools.cache
def vision_folder() -> str:
    """Where the files of the vision stream are made, once per process."""
    folder = tempfile.mkdtemp(prefix="vision-")
    Finalize(None, shutil.rmtree, (folder, True), exitpriority=0)  # unlike atexit, at the end of a forked process too
    return folder


def cases(model: str) -> list[Case]:
    """One case per setting that the method can be run in."""
    cls, out = registry.load("model", model), []
    for setting, stream in STREAMS.items():
        try:
            refuse_setting(cls, registry.load("dataset", stream))
        except UserError:
            continue
        out.append(Case(model, setting))
    return out


def required_options(model: str) -> list[str]:
    """Mild values for the options that a method, or the network it brings, requires or that take long: a buffer of 100,
    1 for other integers, 0.5 for numbers.
    """
    argv, cls = [], registry.load("model", model)
    own = getattr(cls, "DEFAULTS", {}).get("backbone")
    sources = [cls, *([registry.load("backbone", own)] if own else [])]
    for action in (action for source in sources for action in declared_options(source)._actions):
        if action.required or action.dest in PLACEHOLDERS:
            value = PLACEHOLDERS.get(action.dest, "1" if getattr(action.type, "__name__", "") == "int" else "0.5")
            argv += [action.option_strings[0], value]
    return argv
