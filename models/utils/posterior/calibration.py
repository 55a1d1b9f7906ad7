"""Whether a prediction is right as often as it claims, and whether uncertainty tells two kinds of example apart.

References: Guo et al. 2017, "On calibration of modern neural networks"; Hanley & McNeil 1982 (area under the curve).
"""

import numpy as np

BINS = 15


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> tuple[np.ndarray, ...]:
    """Mean confidence, share that is right, and number of examples in each of `bins` equal parts of (0, 1].

    Args:
        confidence: (N,) probability of the predicted class.
        correct: (N,) whether it is the right one.

    Returns:
        Three arrays (bins,); nan where a bin is empty.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    of = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(of, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    claimed, right = (np.bincount(of, values, minlength=bins) / filled for values in (confidence, correct))
    return claimed, right, count


def ece(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error in percent: 100 sum_b n_b / N |accuracy_b - confidence_b|, of at least one example."""
    claimed, right, count = reliability(confidence, correct, bins)
    return float(100 * np.nansum(count * np.abs(claimed - right)) / count.sum())


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """Probability that an example from outside has the larger value (is the more uncertain), a tie counted as half: the
    area under the ROC curve in [0, 1], 0.5 where the values (n,) and (m,) tell nothing; n and m at least 1.
    """
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(outside, inside, method="asymptotic").statistic / (len(inside) * len(outside)))
