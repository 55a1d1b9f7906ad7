"""What methods share whose head is solved, not trained: features of a network that no longer moves, sums over them, and
the ridge regression that is solved from the sums.

The unit of a sum is what one task has of one class, read in storage order. Such terms are computed in float64 and added
in fixed point, which is exact: with the same features the sums have the same bits in whatever order classes and tasks
came, and however classes were divided among tasks.
"""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from palimpsest.models.utils.continual_model import ContinualModel
from palimpsest.models.utils.exemplars import CHUNK
from palimpsest.utils.args import add_bool, positive_float, positive_int
from palimpsest.utils.errors import UserError

COARSE, FINE = 2.0**10, 2.0**50  # steps per unit of the two words of a sum
LARGEST = 2.0**40  # entry of a term: 8,000 of them cannot overflow
BLOCK = 512  # rows of a Gram matrix that are computed at a time


class ExactSum(nn.Module):
    """A sum of float64 tensors of one shape that does not depend on the order of its terms by a bit.

    A term is written as whole multiples of 2^-10, and of 2^-50 for what is left; both are added as integers. Per entry
    a term is off by at most 2^-51.

    Args:
        shape: of the terms.
        device: where the sum is kept.
    """

    def __init__(self, *shape: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.register_buffer("coarse", torch.zeros(shape, dtype=torch.int64, device=device))
        self.register_buffer("fine", torch.zeros(shape, dtype=torch.int64, device=device))

    def add(self, term: Tensor) -> None:
        """Add a term.

        Raises:
            UserError: an entry is 2^40 or more, or not finite.
        """
        if not bool(term.abs().max() < LARGEST):
            raise UserError("the features are too large for a closed form, or not finite: normalise the inputs")
        coarse = (term * COARSE).round()
        self.coarse += coarse.to(torch.int64)
        self.fine += ((term - coarse / COARSE) * FINE).round().to(torch.int64)

    def merge(self, other: "ExactSum") -> None:
        """Add all terms of another sum."""
        self.coarse += other.coarse
        self.fine += other.fine

    def value(self) -> Tensor:
        """The sum, float64."""
        return self.coarse.double() / COARSE + self.fine.double() / FINE


class Gram(nn.Module):
    """G = sum h h^T over features h (d,). The upper triangle is kept: as many bytes as d x d numbers in float64.

    Args:
        d: length of a feature.
        device: where the sum is kept.
    """

    def __init__(self, d: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.d = d
        self.sums = ExactSum(d * (d + 1) // 2, device=device)

    def add(self, chunks: Iterable[Tensor]) -> None:
        """Add the features (n, d), float64, that come chunk after chunk, as one term."""
        rows, columns = torch.triu_indices(self.d, self.d, device=self.sums.fine.device)
        gram = torch.zeros(self.d, self.d, dtype=torch.float64, device=rows.device)
        for h in chunks:
            for i in range(0, self.d, BLOCK):  # what lies below the diagonal is not needed
                gram[i : i + BLOCK, i:].addmm_(h[:, i : i + BLOCK].T, h[:, i:])
        self.sums.add(gram[rows, columns])

    def value(self) -> Tensor:
        """G (d, d), float64."""
        rows, columns = torch.triu_indices(self.d, self.d, device=self.sums.fine.device)
        gram = torch.zeros(self.d, self.d, dtype=torch.float64, device=rows.device)
        gram[rows, columns] = gram[columns, rows] = self.sums.value()
        return gram


class LeastSquares(nn.Module):
    """G = sum h h^T (d, d) and Q = sum h y^T (d, C), from which a linear head is solved.

    Args:
        d: length of a feature h.
        classes: C, length of a target y.
        device: where the sums are kept.
    """

    def __init__(self, d: int, classes: int, device: torch.device | str = "cpu"):
        super().__init__()
        self.gram, self.cross = Gram(d, device), ExactSum(d, classes, device=device)

    def add(self, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Add (features (n, d), targets (n, C)), float64, that come chunk after chunk, as one term."""
        cross = torch.zeros_like(self.cross.fine, dtype=torch.float64)

        def features():
            for h, y in pairs:
                cross.addmm_(h.T, y)
                yield h

        self.gram.add(features())
        self.cross.add(cross)

    def merge(self, other: "LeastSquares") -> None:
        """Add all terms of other sums."""
        self.gram.sums.merge(other.gram.sums)
        self.cross.merge(other.cross)

    def solve(self, ridge: float, free: int = 0) -> Tensor | None:
        """The head (d, C), see `solve_ridge`: for a class the same bits at whichever place it stands."""
        # Rounding in a solver depends on a column's place: columns are put in an order that they give themselves.
        order = self.cross.fine.sum(0).argsort()
        order = order[self.cross.coarse.sum(0)[order].argsort(stable=True)]
        solved = solve_ridge(self.gram.value(), self.cross.value()[:, order], ridge, free)
        return solved if solved is None else torch.empty_like(solved).index_copy_(1, order, solved)


def solve_ridge(gram: Tensor, cross: Tensor, ridge: float, free: int = 0) -> Tensor | None:
    """W = (G + ridge I)^-1 Q, or None where G is singular and the ridge too small for float64.

    Args:
        gram: G (d, d), float64.
        cross: Q (d, C).
        ridge: lambda > 0.
        free: so many entries of h, its last ones, are not regularised: a bias.

    Returns:
        (d, C) float64.
    """
    d = len(gram)
    penalty = torch.full((d,), ridge, dtype=gram.dtype, device=gram.device)
    penalty[d - free :] = 0
    factor, failed = torch.linalg.cholesky_ex(gram + penalty.diag())
    return None if failed else torch.cholesky_solve(cross, factor)


def solvable(weights: Tensor | None, ridge: float) -> Tensor:
    """A head that was solved for.

    Raises:
        UserError: it is None.
    """
    if weights is None:
        raise UserError(f"--ridge {ridge:g} is too small: the features depend on one another within rounding; raise it")
    return weights


def update_recursively(inverse: Tensor, weights: Tensor, h: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(R, W) with more examples, R = (G + ridge I)^-1 and W = R Q: recursive least squares.

        R <- R - R H^T (I + H R H^T)^-1 H R,   W <- W - R H^T H W + R H^T Y

    Args:
        inverse: R (d, d); I / ridge before the first examples.
        weights: W (d, C).
        h: H (n, d).
        y: Y (n, C).
    """
    gain = torch.linalg.solve(torch.eye(len(h), dtype=h.dtype, device=h.device) + h @ inverse @ h.T, h @ inverse)
    inverse = inverse - inverse @ h.T @ gain
    return inverse, weights + inverse @ h.T @ (y - h @ weights)


def oas(covariance: Tensor, n: Tensor | int) -> Tensor:
    """Share e of mu I in (1 - e) S + e mu I, mu = tr S / d, estimated from the data alone: oracle approximating
    shrinkage.

        e = min(1, (a + mu^2) / ((n + 1) (a - mu^2 / d))),   a the mean of the squared entries of S

    Args:
        covariance: S (d, d).
        n: examples that it comes from.

    Reference: Chen et al. 2010, eq. 23, without the factor 2 / d as in scikit-learn.
    """
    mean_square, mu = covariance.square().mean(), covariance.diagonal().mean()
    excess = (n + 1) * (mean_square - mu.square() / len(covariance))
    return ((mean_square + mu.square()) / excess).nan_to_num(1.0).clamp(max=1.0)


class TaskFeatures:
    """What one task has of each class, as features.

    Args:
        model: whose `embed` gives the features; in eval mode.
        data: examples of the task, see `datasets.utils.loaders.TaskData`.

    Attributes:
        classes: those that the task has examples of, ascending.
    """

    def __init__(self, model: "ClosedForm", data):
        self.model, self.images, self.labels = model, data.data, data.targets
        self.classes: list[int] = self.labels.unique().tolist()

    def inputs(self, c: int) -> Iterator[Tensor]:
        """Network inputs (n, ...) of a class, in storage order, a few hundred at a time."""
        for rows in (self.labels == c).nonzero().squeeze(1).split(CHUNK):
            yield self.model.normalization_transform(self.images[rows].to(self.model.device))

    def of(self, c: int) -> Iterator[tuple[Tensor, Tensor]]:
        """(features (n, d), one-hot labels (n, C)) of the same, float64."""
        for x in self.inputs(c):
            h = self.model.embed(x).double()
            yield h, F.one_hot(torch.full((len(h),), c, device=h.device), self.model.net.num_classes).double()


class ClosedForm(ContinualModel):
    """A method that reads every example once, when its task ends, and then has scores for the classes it has seen.

    Without pretrained weights the network is trained on the first task by cross-entropy; afterwards, or from the start
    with `--no_base_training`, it is frozen. Nothing is trained then and `observe` returns 0.

    Class attributes:
        NETWORK: the features are the network's.

    Attributes:
        frozen: the network no longer moves.
        classes: (k,) classes seen, ascending.
    """

    COMPATIBILITY = ["class-il", "domain-il", "task-il"]
    ALONE = "first task"
    NETWORK = True

    @staticmethod
    def get_parser(parser):
        what = "train the network on the first task; without it, its features are those it comes with"
        add_bool(parser, "--base_training", True, what)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        if self.device.type == "mps":
            raise UserError(f"{self.NAME} computes in float64, which mps does not have: give --device cpu")
        self.frozen = not (self.NETWORK and args.base_training)
        self.register_buffer("classes", torch.zeros(0, dtype=torch.int64, device=self.device))

    def embed(self, x: Tensor) -> Tensor:
        """Features (B, d) of network inputs, by default the network's."""
        return self.net.features(x).flatten(1)

    def learn(self, data: TaskFeatures) -> None:
        """Take a task's examples in."""
        raise NotImplementedError

    def scores(self, h: Tensor) -> Tensor:
        """Scores (B, k) of features (B, d), float64, for `self.classes`."""
        raise NotImplementedError

    def train(self, mode: bool = True):
        super().train(mode)
        if self.frozen:  # BatchNorm and dropout as in evaluation
            self.net.eval()
        return self

    @torch.no_grad()
    def end_task(self, dataset):
        self.frozen = True
        self.net.eval()
        data = TaskFeatures(self, dataset.task_data(self.current_task))
        seen = torch.tensor(data.classes, dtype=torch.int64, device=self.device)
        self.classes = torch.cat((self.classes, seen)).unique()
        self.learn(data)

    def forward(self, x):
        if not self.frozen:
            return self.net(x)
        if not len(self.classes):  # asked before the first task has ended: no class is more likely than another
            return torch.zeros(len(x), self.net.num_classes, device=x.device)
        places = F.one_hot(self.classes, self.net.num_classes).double()
        scores = self.scores(self.embed(x).double()) @ places
        return scores.masked_fill(places.sum(0) == 0, -torch.inf).float()

    def observe(self, inputs, labels, not_aug_inputs, epoch=None):
        if self.frozen:
            return torch.zeros((), device=self.device)
        return self.step_on(self.loss(self.net(inputs), labels))


class RidgeHead(ClosedForm):
    """Ridge regression on one-hot labels of the features `expand` gives, of all examples of all tasks at once.

    Attributes:
        sums: G and Q, None before the first task's end.
        weights: W (D, C), the head; columns of classes not seen are 0 and give no score.
    """

    RIDGE: float | None = 0.1  # default of --ridge
    FREE = 0  # so many entries of an expanded feature, the last, are not regularised

    @classmethod
    def get_parser(cls, parser):
        if cls.NETWORK:
            ClosedForm.get_parser(parser)
        told = "" if cls.RIDGE else " (default: the best on a fifth of each task's training examples)"
        parser.add_argument("--ridge", type=positive_float, default=cls.RIDGE, help=f"weight of ||W||^2{told}")
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        self.sums: LeastSquares | None = None
        self.register_buffer("weights", None)

    def expand(self, h: Tensor) -> Tensor:
        """What the head is linear in (B, D), of features (B, d); both float64."""
        return h

    def empty_sums(self, data: TaskFeatures) -> LeastSquares:
        """Sums for what `expand` gives."""
        h, y = next(data.of(data.classes[0]))
        return LeastSquares(self.expand(h).shape[1], y.shape[1], self.device)

    def learn(self, data):
        self.sums = self.sums or self.empty_sums(data)
        for c in data.classes:
            self.sums.add((self.expand(h), y) for h, y in data.of(c))
        self.weights = solvable(self.sums.solve(self.args.ridge, self.FREE), self.args.ridge)

    def scores(self, h):
        return self.expand(h) @ self.weights[:, self.classes]


def add_n_features(parser) -> None:
    """Declare `--n_features`."""
    what = "random features D; sums take 8 D^2 bytes, solving 24"
    parser.add_argument("--n_features", type=positive_int, default=2000, help=what)


class RandomExpansion(RidgeHead):
    """Ridge regression on relu(phi B), B (d, D) with entries from N(0, 1 / d), fixed.

    So scaled, h is as large as phi, and `--ridge` means the same for networks of any width.
    """

    @classmethod
    def get_parser(cls, parser):
        super().get_parser(parser)
        add_n_features(parser)
        return parser

    def __init__(self, backbone, loss, args, transform, dataset=None):
        super().__init__(backbone, loss, args, transform, dataset)
        d = backbone.feature_dim
        projection = torch.randn(d, args.n_features, dtype=torch.float64) / math.sqrt(d)
        self.register_buffer("projection", projection.to(self.device))

    def expand(self, h):
        return torch.relu(h @ self.projection)
