"""Labels that are wrong: the noise of `--noise_rate` and `--noise_type`, a function of the seed alone."""

import torch
from torch import Tensor

from palimpsest.utils.randomness import generator

# Super-class of each fine label of CIFAR-100, as in the `coarse_labels` of its official files.
SUPER_CLASSES = (
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1),
    *(10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12),
    *(12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0),
    *(17, 8, 14, 13),
)


def within_groups(groups: tuple[int, ...]) -> list[int]:
    """The class after each class among those of its group, by number and in a circle."""
    members = {g: [c for c, other in enumerate(groups) if other == g] for g in groups}
    return [members[g][(members[g].index(c) + 1) % len(members[g])] for c, g in enumerate(groups)]


# Source name -> what each class is taken for under asymmetric noise (Patrini et al. 2017, "Making Deep Neural Networks
# Robust to Label Noise: a Loss Correction Approach", section 5). CIFAR-10: truck -> automobile, bird -> airplane,
# deer -> horse, cat <-> dog, and the other five classes are clean. CIFAR-100: the next class of the super-class.
CONFUSED_WITH = {
    "CIFAR10": [0, 1, 0, 5, 7, 3, 6, 7, 8, 1],
    "CIFAR100": within_groups(SUPER_CLASSES),
}


def noisy_labels(targets: Tensor, kind: str, rate: float, seed: int, source: str = "") -> Tensor:
    """Flip each label with probability `rate`, before the data are cut into tasks.

    Args:
        targets: (N,) int64.
        kind: 'symmetric': to one of the other classes, uniformly. 'asymmetric': to the class that `CONFUSED_WITH` has
            for the source; class c to class (c + 1) mod n for a source without a published map.
        rate: probability in [0, 1]; under a map with clean classes, of the labels of the others.
        seed: of the run.
        source: name of the source (`datasets.utils.sources`).

    Returns:
        (N,) int64; `targets` itself at rate 0.
    """
    if not rate:
        return targets
    n = int(targets.max()) + 1
    rng = generator(seed, "label noise")
    flip = torch.rand(len(targets), generator=rng) < rate
    if kind == "symmetric":
        wrong = (targets + torch.randint(1, n, (len(targets),), generator=rng)) % n
    elif source in CONFUSED_WITH:
        wrong = torch.tensor(CONFUSED_WITH[source], device=targets.device)[targets]
    else:
        wrong = (targets + 1) % n
    return torch.where(flip, wrong, targets)
