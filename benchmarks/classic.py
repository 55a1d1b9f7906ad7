"""The classic methods on Fashion-MNIST (one epoch) and digits with the MLP: the tables of docs/findings/classic.md.

    python -m benchmarks.classic [--stream split|perm|digits] [--seeds 5] [method ...]

Prints a row per method with mean and standard deviation over the seeds, and the command that repeats it.
"""

import argparse
import contextlib
import io
import time

from palimpsest.utils.log.seeds import summarise_seeds
from palimpsest.utils.run.config import resolve
from palimpsest.utils.study.seeds import execute_seeds

SHARED = "--backbone mnistmlp --disable_log --non_verbose --num_threads 1"
SPLIT = f"--dataset seq-fmnist --n_epochs 1 --batch_size 10 {SHARED}"
REPLAY = "--buffer_size 500 --minibatch_size 10"
SPLIT_ROWS = {
    "sgd": "--lr 0.03",
    "ewc": "--lr 0.03 --e_lambda 100 --n_fisher 2000",
    "ewc_on": "--lr 0.03 --e_lambda 90 --gamma 1",
    "si": "--lr 0.03 --c 0.1",
    "mas": "--lr 0.03 --mas_lambda 0.1 --n_mas 2000",
    "rwalk": "--lr 0.03 --e_lambda 1",
    "lwf": "--lr 0.03 --alpha 1",
    "lwf_mc": "--lr 0.1",
    "er": f"--lr 0.1 {REPLAY}",
    "er_ace": f"--lr 0.03 {REPLAY}",
    "der": "--lr 0.03 --buffer_size 500 --minibatch_size 128 --alpha 1",
    "derpp": f"--lr 0.03 {REPLAY} --alpha 1 --beta 0.5",
    "fdr": "--lr 0.03 --buffer_size 500 --minibatch_size 128 --alpha 1",
    "mer": "--lr 0.1 --buffer_size 500 --minibatch_size 128 --beta 1 --gamma 1",
    "mir": f"--lr 0.03 {REPLAY}",
    "gss": f"--lr 0.03 {REPLAY}",
    "hal": f"--lr 0.03 {REPLAY} --beta 0.2 --gamma 0.5",
    "gem": "--lr 0.03 --buffer_size 500 --gamma 0.5",
    "agem": "--lr 0.1 --buffer_size 500 --minibatch_size 128",
    "agem_r": "--lr 0.1 --buffer_size 500 --minibatch_size 128",
    "gdumb": "--lr 0.03 --buffer_size 500 --fitting_epochs 64",
    "icarl": "--lr 0.1 --buffer_size 500 --opt_wd 0",
    "bic": "--lr 0.1 --buffer_size 500",
    "lucir": "--lr 0.03 --buffer_size 500",
    "xder": f"--lr 0.03 {REPLAY} --alpha 0.3 --beta 0.8",
    "xder_ce": f"--lr 0.03 {REPLAY} --alpha 0.3 --beta 0.8",
    "xder_rpc": f"--lr 0.03 {REPLAY} --alpha 0.3 --beta 0.8",
    "rpc": f"--lr 0.1 {REPLAY}",
    "slda": "--lr 0.03",
    "ncm": "--lr 0.03",
    "ridge": "--lr 0.03",
    "acil": "--lr 0.03 --n_features 1000",
    "ranpac": "--lr 0.03 --n_features 1000",
    "gkeal": "--lr 0.03 --n_features 1000",
    "ds_al": "--lr 0.03 --n_features 1000",
    "fecam": "--lr 0.03",
    "randumb": "--n_features 2000",
    "pnn": "--lr 0.03",
    "packnet": "--lr 0.03",
    "hat": "--lr 0.03",
    "joint": "--lr 0.03",
}
PERM = f"--dataset perm-fmnist --n_epochs 1 --stop_after 10 --batch_size 128 {SHARED}"
PERM_ROWS = {
    "sgd": "--lr 0.1",
    "ewc": "--lr 0.1 --e_lambda 30 --n_fisher 1000",
    "si": "--lr 0.1 --c 0.1",
    "mas": "--lr 0.1 --mas_lambda 0.03 --n_mas 1000",
    "lwf": "--lr 0.1 --alpha 1 --kd_scale none",
    "agem": "--lr 0.1 --buffer_size 500 --minibatch_size 128",
    "gem": "--lr 0.1 --buffer_size 500 --gamma 0.5",
    "er": "--lr 0.1 --buffer_size 500 --minibatch_size 128",
}
DIGITS = f"--dataset seq-digits --n_epochs 5 --batch_size 10 {SHARED}"
DIGITS_ROWS = {method: row.replace("--buffer_size 500", "--buffer_size 200") for method, row in SPLIT_ROWS.items()}
SEQUENTIAL = [("class-il", "acc"), ("class-il", "forgetting"), ("task-il", "acc"), ("task-il", "forgetting")]
DOMAINS = [("domain-il", "acc"), ("domain-il", "forgetting"), ("domain-il", "la")]
STREAMS = {"split": (SPLIT, SPLIT_ROWS, SEQUENTIAL), "perm": (PERM, PERM_ROWS, DOMAINS),
           "digits": (DIGITS, DIGITS_ROWS, SEQUENTIAL)}  # fmt: skip


def row(method: str, command: str, metrics: list[tuple[str, str]], seeds: int) -> str:
    """One line of the table."""
    begin, argv = time.perf_counter(), ["--model", method, *command.split(), "--seeds", *map(str, range(seeds))]
    with contextlib.redirect_stdout(io.StringIO()):
        spreads = summarise_seeds([summary for _, summary in execute_seeds(resolve(argv))])
    found = [spreads.get(scenario, {}).get(metric) for scenario, metric in metrics]
    cells = ["-" if e is None else f"{e[0]:.1f} ± {e[1]:.1f}" if seeds > 1 else f"{e[0]:.1f}" for e in found]
    return f"| `{method}` | {' | '.join(cells)} | {(time.perf_counter() - begin) / seeds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--stream", choices=STREAMS, default="split")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    shared, rows, metrics = STREAMS[args.stream]
    print(f"shared: {shared} --seeds {' '.join(map(str, range(args.seeds)))}")
    print(f"| method | {' | '.join(' '.join(m) for m in metrics)} | s a seed | options |")
    print("|---" * (len(metrics) + 3) + "|")
    for method in args.methods or rows:
        print(f"{row(method, f'{shared} {rows[method]}', metrics, args.seeds)} `{rows[method]}` |", flush=True)


if __name__ == "__main__":
    main()
