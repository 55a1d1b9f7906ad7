"""What PAH and its controls do on split digits: 5 tasks x 2 classes, 15 epochs, GroupNorm network, means over seeds.

The bands come from independent measurements of the same protocol. Multi-head LwF may well be better than PAH;
nothing here asserts otherwise.
"""

import functools

import numpy as np
import pytest

from palimpsest.utils import metrics
from tests.models.helpers import finished

PAH = ("pah", "--load_best_args")
FINE_TUNE = (*PAH, "--pah_w_sm", "0", "--pah_w_sp", "0")
pytestmark = pytest.mark.slow
LWF = ("lwf", "--optimizer", "adamw", "--lr", "0.001", "--alpha", "3", "--lwf_kl", "student", "--backbone", "convnet")


@functools.cache
def figures(options: tuple[str, ...], seeds: int = 3) -> dict[str, float]:
    """Mean task-IL accuracy (AA), PAH's forgetting (FM) and last-task accuracy over seeds, in percent."""
    runs = [finished(*options, "--seed", str(s)).run.matrices["task-il"] for s in range(seeds)]
    return {
        "aa": np.mean([metrics.summarise(r)["acc"] for r in runs]),
        "fm": np.mean([metrics.summarise(r)["forgetting_chaudhry"] for r in runs]),
        "last": np.mean([r[-1, -1] for r in runs]),
    }


def test_pah_remembers_and_learns():
    pah = figures(PAH)
    assert pah["aa"] >= 97 and pah["fm"] <= 2 and pah["last"] >= 95, pah


def test_a_fine_tuned_hypernetwork_forgets():
    tuned = figures(FINE_TUNE)
    assert tuned["fm"] >= 15, tuned
    assert figures(PAH)["aa"] - tuned["aa"] >= 12, tuned


def test_pah_and_multi_head_lwf_are_close():
    assert abs(figures(PAH)["aa"] - figures(LWF)["aa"]) <= 2


def test_prototypes_from_images_are_at_least_as_good_as_gaussian_ones():
    assert figures(PAH, 5)["aa"] >= figures((*PAH, "--pah_proto_init", "gauss"), 5)["aa"] - 0.2


def test_prototype_distillation_alone_is_fine_tuning():
    alone = figures((*PAH, "--pah_w_sm", "0", "--pah_w_sp", "1"), 5)
    assert abs(alone["aa"] - figures(FINE_TUNE, 5)["aa"]) <= 8 and alone["fm"] >= 10
