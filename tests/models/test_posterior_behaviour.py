"""What posterior methods do on small real and artificial streams, as published figures and closed forms lead to expect.

`python -m tests.models.test_posterior_behaviour [name ...]` prints the table of docs/findings/posterior.md; the
assertions on it are marked slow.
"""

import sys

import numpy as np
import pytest

from palimpsest.utils.log.report import summarise_run
from tests.models.helpers import finished

GMM = ["--lr", "0.001", "--val_sample_size", "100", "--clip_grad", "1"]
GAUSSIAN = ["--local_reparam", "--hnet_arch", "50,50", "--hnet_act", "sigmoid", "--hnet_init", "gauss"]
DIGITS = ["--backbone", "mnistmlp", "--mlp_hidden_size", "50", "--hnet_arch", "50", "--cond_emb_size", "16",
          "--n_iters", "600", "--batch_size", "64", "--fitting_mode", "iters", "--lr", "0.001"]  # fmt: skip
DIGITS_BBB = [*DIGITS, "--train_sample_size", "5", "--kl_scale", "0.001", "--reg", "w2"]
POLY = ["--lr", "0.002", "--n_iters", "3000", "--hnet_arch", "50,50", "--val_sample_size", "100"]
RUNS = {
    "gmm pr_bbb": ("pr_bbb", "seq-gmm2d", [*GMM, *GAUSSIAN, "--beta", "0.1", "--reg", "w2"]),
    "gmm pr_bbb, beta 0": ("pr_bbb", "seq-gmm2d", [*GMM, *GAUSSIAN, "--beta", "0", "--reg", "w2"]),
    "gmm pr_dirac": ("pr_dirac", "seq-gmm2d", ["--lr", "0.001", "--n_iters", "1500", "--hnet_arch", "10,10",
                                               "--cond_emb_size", "2", "--beta", "0.01"]),
    "gmm pr_ssge": ("pr_ssge", "seq-gmm2d", [*GMM, "--n_iters", "2500", "--hnet_arch", "100,100", "--cond_emb_size",
                                             "8", "--imp_arch", "10,10", "--latent_dim", "32", "--beta", "0.1",
                                             "--num_ssge_samples", "50"]),
    "poly1d pr_bbb": ("pr_bbb", "seq-poly1d", [*POLY, "--beta", "1", "--reg", "fkl", "--local_reparam",
                                               "--keep_orig_init"]),
    "poly1d pr_dirac": ("pr_dirac", "seq-poly1d", [*POLY[:2], "--n_iters", "2000", "--hnet_arch", "50,50", "--beta",
                                                   "0.1"]),
    "poly1d pr_dirac, beta 0": ("pr_dirac", "seq-poly1d", [*POLY[:2], "--n_iters", "2000", "--hnet_arch", "50,50",
                                                           "--beta", "0"]),
    "digits pr_dirac": ("pr_dirac", "seq-digits", [*DIGITS, "--beta", "1"]),
    "digits pr_dirac, beta 0": ("pr_dirac", "seq-digits", [*DIGITS, "--beta", "0"]),
    "digits pr_bbb": ("pr_bbb", "seq-digits", [*DIGITS_BBB, "--beta", "10"]),
    "digits pr_bbb, beta 0": ("pr_bbb", "seq-digits", [*DIGITS_BBB, "--beta", "0"]),
}  # fmt: skip


def measured(name: str, seed: int) -> dict[str, float]:
    """TGiven during and final, TInfer by the three criteria, share of tasks inferred (percent); for regression mean
    squared errors during and final instead.
    """
    method, stream, options = RUNS[name]
    exp = finished(method, *options, "--seed", str(seed), dataset=stream)
    summary, last = summarise_run(exp.run), exp.run.history[-1]
    others = {metric: np.mean(next(iter(values.values()))) for metric, values in last.others.items()}
    if stream == "seq-poly1d":
        ends = [e for e in exp.run.history if e.epoch is None]
        during = np.mean([e.others["mse"]["task-il"][e.task] for e in ends])
        final = [float(v) for v in last.others["mse"]["task-il"]]
        return {"mse during": during, "mse final": np.mean(final), "mse worst": max(final),
                "mse first two": np.mean(final[:2]),
                "tasks inferred": others.get("task_inference_ent", np.nan)}  # fmt: skip
    return {
        "TG during": summary["task-il"]["la"], "TG final": summary["task-il"]["acc"],
        "TI ent": summary["class-il"]["acc"], "TI conf": others["accuracy_conf"],
        "TI agree": others.get("accuracy_agree", np.nan), "tasks inferred": others["task_inference_ent"],
    }  # fmt: skip


def over_seeds(name: str, seeds: int = 3) -> dict[str, np.ndarray]:
    """Every figure of a run for each seed (n,)."""
    found = [measured(name, seed) for seed in range(seeds)]
    return {key: np.array([row[key] for row in found]) for key in found[0]}


@pytest.mark.slow
def test_mixtures():
    """Nothing is forgotten under the regulariser; the uncertainty of a distribution tells tasks better than a point."""
    gaussian, point, free = (over_seeds(name) for name in ("gmm pr_bbb", "gmm pr_dirac", "gmm pr_bbb, beta 0"))
    assert gaussian["TG final"].min() >= 99
    assert point["TG final"].min() >= 99
    assert gaussian["TI agree"].mean() >= 70
    assert gaussian["TI ent"].mean() > point["TI ent"].mean()
    assert free["TG final"].mean() <= gaussian["TG final"].mean() - 5


@pytest.mark.slow
def test_mixtures_with_implicit_posteriors():
    found = over_seeds("gmm pr_ssge")
    assert found["TG final"].min() >= 99
    assert found["TI ent"].mean() >= 60


@pytest.mark.slow
def test_regression():
    gaussian, point, free = (over_seeds(n) for n in ("poly1d pr_bbb", "poly1d pr_dirac", "poly1d pr_dirac, beta 0"))
    assert gaussian["mse worst"].max() <= 0.1
    assert gaussian["tasks inferred"].min() >= 80
    assert free["mse first two"].mean() >= 10 * point["mse first two"].mean()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["pr_dirac", "pr_bbb"])
def test_digits(method):
    kept, free = over_seeds(f"digits {method}"), over_seeds(f"digits {method}, beta 0")
    assert kept["TG final"].mean() >= 97.5
    drop, free_drop = (found["TG during"].mean() - found["TG final"].mean() for found in (kept, free))
    assert drop <= 1
    assert free_drop > drop


def main(names: list[str]) -> None:
    for name in names or RUNS:
        found = over_seeds(name)
        each = {key: " ".join(f"{x:.3g}" for x in v) for key, v in found.items()}
        cells = [f"{key} {v.mean():.4g} ± {v.std(ddof=1):.2g} ({each[key]})" for key, v in found.items()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
