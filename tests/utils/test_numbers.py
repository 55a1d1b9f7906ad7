"""What is not known is not a number: no test examples, a single run, too few for an interval, digits of float32."""

import math
from argparse import Namespace

import numpy as np
import pytest
import torch

from palimpsest.datasets.utils.class_sets import SetScore
from palimpsest.datasets.utils.scores import ClassScore, RegressionScore, TokenScore
from palimpsest.datasets.utils.vision.scores import BoxScore, MultiLabelScore, SegmentationScore, TopScore
from palimpsest.utils import evaluation, metrics
from palimpsest.utils.log.mean_accs import summary_row
from palimpsest.utils.log.seeds import seeds_table, summarise_seeds
from palimpsest.utils.record import Run

NAN = float("nan")
EMPTY = [
    ClassScore(0, 2), TokenScore(), RegressionScore(), TopScore(3), MultiLabelScore(["a"]), BoxScore(["a"]),
    SegmentationScore(1), SegmentationScore(3, ["a", "b", "c"]),
]  # fmt: skip


def a_run(R, score="accuracy"):
    names = {"model_name": "er", "dataset_name": "seq-x", "setting": "class-il", "score": score}
    run = Run(**names, n_tasks=len(R), seed=0, config={}, origins={}, results_path=None)
    run.matrices = {"class-il": np.array(R)}
    return run


@pytest.mark.parametrize("score", EMPTY, ids=lambda s: type(s).__name__)
def test_nothing_scored_is_nan(score):
    assert all(map(math.isnan, score.result().values()))


def test_the_five_best_of_many_classes_and_who_is_taken_for_whom():
    few, many = ClassScore(0, 20), ClassScore(0, 21)
    logits, labels = torch.arange(25.0).repeat(4, 1), torch.tensor([20, 16, 15, 0])  # best first: 20, 19, 18, ...
    few.add(logits, labels), many.add(logits, labels)
    assert few.result() == {"accuracy": 0.0} and many.result() == {"accuracy": 25.0, "top-5": 50.0}
    assert many.counts.nonzero().tolist() == [[0, 20], [15, 20], [16, 20], [20, 20]] and many.counts.sum() == 4
    among = SetScore(torch.tensor([1, 3]))
    among.add(logits, labels - 15)
    assert among.counts[:, 3].sum() == 3 and among.counts.sum() == 3  # a label that is no class is none of them


def test_only_void_pixels_and_unscored_tokens_are_nan():
    score = SegmentationScore(3)
    score.add(torch.zeros(4, 3, 2, 2), torch.full((4, 2, 2), 255))
    assert all(map(math.isnan, score.result().values()))
    score = TokenScore()
    score.add(torch.zeros(2, 3, 4), torch.full((2, 3), -100))
    assert all(map(math.isnan, score.result().values()))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_intervals_over_images_begin_at_three(n):
    top, labels, masks = TopScore(3), MultiLabelScore(), SegmentationScore(2)
    top.add(torch.eye(3)[:n], torch.arange(n))
    labels.add(torch.ones(n, 2), torch.ones(n, 2))
    masks.add(torch.randn(n, 2, 4, 4), torch.ones(n, 4, 4, dtype=torch.long))
    for score in (top, labels, masks):
        ends = [value for name, value in score.result().items() if name.endswith((" low", " high"))]
        assert len(ends) == 2 and all(math.isnan(v) if n < 3 else 0 <= v <= 100 for v in ends)


def test_scores_are_float64():
    score = TopScore(2)
    score.add(torch.tensor([[0.0, 1.0]] * 200), torch.tensor([1] * 197 + [0] * 3))
    assert score.result()["top-1"] == 98.5
    x = torch.randn(1000, 1).double() * 1e-3 + 1  # the sums would cancel in float32
    score = RegressionScore()
    score.add(x + 1e-5, x)
    expected = 100 * (1 - 1e-10 * len(x) / float((x - x.mean()).square().sum()))
    assert score.result()["r2"] == pytest.approx(expected, abs=1e-6)
    logits, labels = torch.randn(3, 50, 7), torch.randint(7, (3, 50))
    score = TokenScore()
    score.add(logits, labels)
    nll = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), labels.flatten())
    assert score.result()["perplexity"] == pytest.approx(math.exp(nll), rel=1e-14)


def test_average_precision_of_boxes_is_float64():
    score = BoxScore()
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 60, 60]])
    found = {"boxes": boxes[:2], "scores": torch.tensor([0.9, 0.8]), "classes": torch.zeros(2, dtype=torch.long)}
    labels = {"boxes": boxes, "classes": torch.zeros(3, dtype=torch.long), "crowd": torch.zeros(3, dtype=torch.bool)}
    score.add([found], {name: value.unsqueeze(0) for name, value in labels.items()})
    # Recall 2/3 at precision 1: 67 of the 101 points.
    assert score.result()["mAP_box"] == pytest.approx(100 * 67 / 101, abs=1e-12)


class Model(torch.nn.Module):
    """Right on a third of a task's examples, and a further number of a third."""

    scores_class_il = True

    def evaluate_batch(self, inputs, labels, task, scenarios):
        logits = torch.nn.functional.one_hot(labels, 6).float()
        logits[1:] = logits[1:].roll(1, 1)
        return dict.fromkeys(scenarios, logits), {"more": (scenarios[0], torch.tensor(100.0))}


class Loader(list):
    @property
    def dataset(self):
        return [x for inputs, _ in self for x in inputs]


def test_a_task_without_test_images_and_what_is_measured_besides():
    loaders = [Loader(), Loader([(torch.zeros(3, 1), torch.tensor([2, 3, 2]))])]
    tasks = [Namespace(score=lambda last: ClassScore())] * 2
    stream = Namespace(SETTING="class-il", tasks=tasks, test_loaders=loaders)
    scores, others = evaluation.evaluate(Model(), stream, range(2), 1)
    for values in (*scores.values(), *others["more"].values()):
        assert values == pytest.approx([NAN, 100 / 3], rel=1e-15, nan_ok=True)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_metrics_without_a_task(missing):
    R = np.array([[90, NAN, NAN], [80, 60, NAN], [70, 50, 85.0]])
    R[:, missing] = NAN
    kept = [i for i in range(3) if i != missing]
    found, left_out = metrics.summarise(R), metrics.excluded(R)
    assert found["acc"] == pytest.approx(R[2, kept].mean())
    assert found["la"] == pytest.approx(np.diag(R)[kept].mean()) and left_out["la"] == 1
    rows = {0: [60, 67.5], 1: [90, 80, 77.5], 2: [90, 70, 60]}
    assert found["aaa"] == pytest.approx(np.mean(rows[missing]))
    falls = {0: 10, 1: 20, 2: 15}
    assert found["forgetting"] == pytest.approx(falls[missing]) and found["bwt"] == pytest.approx(-falls[missing])
    history = [(t, R[t, : t + 1].tolist()) for t in range(3)]
    assert metrics.summarise(R, None, history)["anytime"] == pytest.approx(np.mean(rows[missing]))
    row = summary_row(a_run(R), "class-il", {"class-il": found})
    assert row["task3"] == pytest.approx(found["acc"])


def test_one_run_has_no_deviation_and_two_no_interval():
    for n, known in ((1, [False, False]), (2, [True, False]), (3, [True, True])):
        _, std, half, count = metrics.spread([80.0, 90, 100][:n])
        assert [not math.isnan(std), not math.isnan(half)] == known and count == n
    assert metrics.plus_minus(80, NAN) == "80.00" and metrics.plus_minus(80, 0.0) == "80.00 ± 0.00"


@pytest.mark.parametrize("metric, mean, score, ends", [
    ("acc", 98, "accuracy", (68, 100)), ("acc", 10, "mIoU", (0, 40)), ("bwt", -90, "accuracy", (-100, -60)),
    ("forgetting", 1, "accuracy", (0, 31)), ("stability", 99, "accuracy", (69, 129)), ("acc", -200, "r2", (-230, -170)),
    ("acc", 90, "r2", (60, 100)), ("bwt", 150, "r2", (120, 180)), ("acc", 50, "accuracy", (20, 80)),
])  # fmt: skip
def test_intervals_stay_within_what_a_metric_can_be(metric, mean, score, ends):
    assert metrics.interval(metric, mean, 30, score) == ends
    assert all(map(math.isnan, metrics.interval(metric, mean, NAN, score)))


def test_every_metric_keeps_its_ends():
    rng = np.random.default_rng(0)
    for _ in range(300):
        R = rng.choice([0.0, 100.0, 50.0], (4, 4))
        history = [(t, R[t].tolist()) for t in range(4)]
        for name, value in metrics.summarise(R, rng.choice([0.0, 100.0], 4), history).items():
            low, high = metrics.METRICS[name].ends
            assert low <= value <= high, name


def test_the_seeds_page():
    runs = [a_run([[R]]) for R in (99.0, 100.0, 95.0)]
    for n, told in ((1, "needs 3 seeds"), (2, "needs 3 seeds"), (3, "to 100.00")):
        summaries = [{"class-il": metrics.summarise(run.matrices["class-il"])} for run in runs[:n]]
        _, rows, _ = seeds_table("class-il", runs[:n], summaries, summarise_seeds(summaries)["class-il"])
        assert told in repr(rows) and "nan" not in repr(rows) and ("±" in repr(rows)) == (n > 1)
