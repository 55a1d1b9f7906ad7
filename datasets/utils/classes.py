"""The classes of a stream: their names, how many each task has, and what a run's folder keeps of them."""

import hashlib
from typing import Any

import numpy as np
from torch import Tensor

from palimpsest.utils.errors import UserError

DIGITS = tuple("0123456789")
KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl",
    "boy", "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee",
    "clock", "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant",
    "flatfish", "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower",
    "leopard", "lion", "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom",
    "oak_tree", "orange", "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate",
    "poppy", "porcupine", "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark",
    "shrew", "skunk", "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower",
    "sweet_pepper", "table", "tank", "telephone", "television", "tiger", "tractor", "train", "trout", "tulip",
    "turtle", "wardrobe", "whale", "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip


def class_shares(n: int, first: int, step: int) -> list[int]:
    """Classes of each task: `first`, then `step` each, the last task with what is left."""
    if first > n:
        raise UserError(f"{first} classes in the first task, there are {n}: give a smaller number")
    rest = n - first
    return [first, *[step] * (rest // step), *([rest % step] if rest % step else [])]


def chosen_shares(args: Any, n: int) -> list[int] | None:
    """The same as `--init_cls` and `--increment` say, None without them."""
    if args.init_cls and not args.increment:
        raise UserError("--init_cls says how many classes the first task has: give --increment, for the others")
    return class_shares(n, args.init_cls or args.increment, args.increment) if args.increment else None


def facts_of(stream: Any) -> dict[str, Any]:
    """What `classes.json` of a run's folder says, of a built stream.

    names: of the original labels; order: the original label of every output; tasks: the original labels of each task
    that is scored; task_names, where tasks have names; input: size, mean and std of the network's inputs, and how the
    columns of a table became them; split: SHA-256 of rows and labels of all training and test parts. Where each task
    has a branch and classes of its own, tasks has their names, and there is no order.
    """
    if any(task.name for task in stream.tasks):
        facts = {"tasks": {task.name: [*task.class_names] for task in stream.tasks}}
    else:
        names = stream.class_names or [str(c) for c in range(stream.N_CLASSES)]
        tasks = [stream.class_order[slice(*stream.task_classes(t))] for t in range(stream.EVAL_TASKS)]
        facts = {"names": [*names], "order": stream.class_order, "tasks": tasks}
    if stream.task_names:
        facts["task_names"] = [stream.task_names[t] for t in stream.args.custom_task_order or range(stream.EVAL_TASKS)]
    facts["input"] = {"size": [*stream.SIZE], "mean": _numbers(stream.mean), "std": _numbers(stream.std)}
    if hasattr(stream, "columns"):
        facts["input"]["columns"] = stream.columns
    return facts | {"split": split_checksum(stream)}


def split_checksum(stream: Any) -> str:
    """SHA-256, 64 hexadecimal digits, over which examples each task trains and tests on, and their labels."""
    digest, kept = hashlib.sha256(), getattr(stream, "_kept", None)
    if isinstance(kept, Tensor):  # rows count among those that are left
        digest.update(kept.numpy())
    for task in range(stream.EVAL_TASKS):
        for part in stream.split_parts(task):
            for values in part:
                digest.update(_bytes(values))
    return digest.hexdigest()


def _bytes(values: Any) -> bytes:
    if isinstance(values, Tensor):
        values = values.cpu() if values.is_floating_point() else values.cpu().long()
        return np.ascontiguousarray(values.numpy()).tobytes()
    return repr(values).encode()


def _numbers(values: Any) -> list[float] | None:
    return None if values is None else [*map(float, values)]
