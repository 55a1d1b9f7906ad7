"""What a run's numbers depend on besides its options: the device, the versions, the state of the source tree."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

from palimpsest import ROOT, __version__
from palimpsest.utils.errors import UserError
from palimpsest.utils.randomness import seed_all, seed_of

PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "scipy")


def pick_device(name: str) -> torch.device:
    """The device that `--device` names; 'auto' takes the first GPU if there is one.

    Raises:
        UserError: not a device, or not one this machine has.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdigit()):
        raise UserError(f"--device '{name}': expected auto, cpu, cuda, cuda:N or mps")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(index or 0) >= count:
        raise UserError(f"--device {name}: this machine has {count} {kind} device(s); try --device cpu")
    return torch.device(kind, int(index or 0)) if kind == "cuda" else torch.device(kind)


def prepare(args) -> torch.device:
    """Threads, kernels and global seeds as the options say; returns the device."""
    if args.num_threads:
        torch.set_num_threads(args.num_threads)
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != args.deterministic:  # setting it imports torch's compiler: 1 s
        torch.use_deterministic_algorithms(args.deterministic)
    set_products(args.precision)
    seed_all(seed_of(args, "data"))
    return pick_device(args.device)


def set_products(precision: str) -> None:
    """Whether matrix products and convolutions on a GPU may be rounded to TF32: in all of torch, for this process."""
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = precision != "fp32"  # a switch of its own, which torch leaves on


@contextmanager
def products(precision: str) -> Iterator[None]:
    """`set_products` within; afterwards as before. Also a decorator."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    set_products(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def describe(device: torch.device) -> dict[str, str]:
    """Versions, commit, device, threads, as stored with a run."""
    facts = {"python": platform.python_version(), "platform": platform.platform()}
    for package in (*PACKAGES, *({"timm"} & {*sys.modules})):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "absent"
    facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    facts["threads"] = str(torch.get_num_threads())
    facts["commit"] = _commit()
    return facts


def differences(before: dict[str, str], now: dict[str, str]) -> dict[str, tuple[str, str]]:
    """What two environments differ in: name -> (before, now)."""
    return {name: (value, now[name]) for name, value in dict(before).items() if name in now and now[name] != value}


def _commit() -> str:
    def git(*command: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *command], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != ROOT:
            return f"installed {__version__}"  # the repository around it is somebody else's
        return git("rev-parse", "HEAD") + (" (tree has changes)" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"installed {__version__}"
