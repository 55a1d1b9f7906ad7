"""Folders of runs of several methods, for the tests of comparisons."""

from palimpsest.utils.study.comparison import files
from tests.study.runs import write_run

ENVIRONMENT = {"code": "c0de", "data": "da7a", "device": "cpu", "commit": "abcdef0123", "model_file": "models/x.py 1",
               "dataset_file": "datasets/seq_digits.py 1"}  # fmt: skip
COSTS = {"seconds": 2.0, "flops_training": 3e9, "network_bytes": 400, "method_bytes": 800, "peak_memory_bytes": 5e6}
CONFIG = {"dataset": "seq-digits", "debug_mode": False, "validation": 0.0, "lr": 0.1}


def a_run(place, model="er", seed=0, acc=70.0, digest="0", finished=True, **facts):
    """A run of seq-digits; dictionaries in `facts` add to its own."""
    whole = {"environment": ENVIRONMENT, "costs": COSTS, "config": CONFIG} | {"origins": {"lr": "command line"}}
    for name in whole:
        given = facts.pop(name, {})
        whole[name] = whole[name] | given if isinstance(given, dict) else given
    metrics = {"class-il": {"acc": acc, "forgetting": 10.0}, "task-il": {"acc": 99.0}}
    matrix = [[90.0, None], [acc, acc]]
    whole |= {"metrics": metrics, "matrices": {"class-il": matrix, "task-il": matrix}, "digest": digest} | facts
    return write_run(place, model, seed, finished, **whole)


def several(place, model, values, **facts):
    """A run per value, seeds 0, 1, ..."""
    for seed, acc in enumerate(values):
        a_run(place, model, seed, acc, **facts)


def texts_of(found):
    """All that is written as text, by the names of the files."""
    names = (*files.PRINTED.values(), "pairs.csv")
    page = files.page_of(found, [[] for _ in (*found.blocks, *found.ranks)])
    texts = {name: files.text_of(found, name) for name in names}
    return texts | {"comparison.html": page, "terminal": files.terminal(found)}


def a_study(place):
    """Two streams, two methods and the two controls."""
    for stream in ("seq-digits", "seq-fmnist"):
        config = {"config": {"dataset": stream, "lr": 0.1}, "dataset_name": stream}
        several(place, "er", [70.0, 72.0, 71.0, 75.0, 73.0], **config)
        several(place, "derpp", [74.0, 73.0, 76.0, 77.0, 74.0], **config)
        several(place, "sgd", [19.0, 19.5, 20.0, 19.2, 19.4], **config)
        several(place, "randumb", [60.0, 61.0, 62.0], **config)
