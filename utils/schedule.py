"""How the learning rate of a task begins."""


def warm_up(share: float, epoch: int, n_epochs: int) -> tuple[int, float]:
    """Epochs of the warm-up, `share` of `n_epochs`, and the factor of the learning rate in `epoch`: it rises in equal
    steps, and is 1 from there on.
    """
    first = round(share * n_epochs)
    return first, min(1.0, (epoch + 1) / (first + 1))
