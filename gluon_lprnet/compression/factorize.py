"""The closed form: a matrix as a diagonal plus a low-rank product, in the metric of the data; and the ranks.

For inputs d of covariance C the mean squared error of ``B`` in place of ``W`` is ``tr((W - B) C (W - B)')``, once a
bias accounts for the mean. Everything here is float64 NumPy.
"""
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np
from scipy import linalg

from ..utils.errors import InputError

__all__ = ['Factors', 'factorize', 'spectrum', 'ranks_within']

# Rounds of the two steps of factorize(); it stops when a round reduces the error by less than this share.
_ROUNDS = 100
_GAIN = 1e-3


class Factors(NamedTuple):
    """``W ~ p2 @ p1 + diag(scale)``.

    Attributes
    ----------
    p1 : ndarray (rank, m)
    p2 : ndarray (n, rank)
    scale : ndarray (min(n, m),)
        Of the residual; zeros without it.
    error : float
        Mean squared error over the mean square of ``W d``, 0 to 1.
    """

    p1: np.ndarray
    p2: np.ndarray
    scale: np.ndarray
    error: float

    @property
    def matrix(self) -> np.ndarray:
        """The approximation of W, ndarray (n, m)."""
        return _plus_diagonal(self.p2 @ self.p1, self.scale)


def factorize(matrix: np.ndarray, rank: int, covariance: Optional[np.ndarray] = None,
              residual: bool = True) -> Factors:
    """The best product of rank r and, with ``residual``, the diagonal added to it.

    For a given diagonal S the best product is ``U U' (W - S)``, where the columns of U are the eigenvectors of
    ``(W - S) C (W - S)'`` with the r largest eigenvalues: truncated SVD in the metric of C, which need not be
    invertible. For a given U the best S solves ``((I - U U') * C) s = diag((I - U U') W C)``, ``*`` elementwise. The
    two steps alternate, starting at S = 0. Neither can raise the error, so the result is at least as good as the SVD.

    Parameters
    ----------
    matrix : ndarray (n, m)
        Square with the residual.
    rank : int
        From 1 to the smaller of n and m.
    covariance : ndarray (m, m), optional
        C, symmetric and positive semidefinite; by default the identity.
    residual : bool

    Returns
    -------
    Factors
        Row k of ``p1`` has the same norm as column k of ``p2``, which is good for gradients.
    """
    matrix = np.asarray(matrix, dtype='float64')
    n, m = matrix.shape
    covariance = np.eye(m) if covariance is None else np.asarray(covariance, dtype='float64')
    total = _energy(matrix, covariance)
    scale = np.zeros(min(n, m))
    # Factors from the first round on.
    best: Any = None
    for _ in range(_ROUNDS if residual else 1):
        rest = _plus_diagonal(matrix, -scale)
        u = linalg.eigh(rest @ covariance @ rest.T, subset_by_index=[n - rank, n - 1])[1]
        p1 = u.T @ rest
        # Rounding can take a sum that should be 0 below it.
        error = max(_energy(rest - u @ p1, covariance), 0.0) / total if total else 0.0
        before = math.inf if best is None else best.error
        if error < before:
            best = Factors(p1, u, scale, error)
        if not error < before * (1 - _GAIN):
            break
        if residual:
            scale = _best_scale(matrix, u, covariance)
    length = np.sqrt(np.linalg.norm(best.p1, axis=1))
    length[length == 0] = 1
    return best._replace(p1=best.p1 / length[:, None], p2=best.p2 * length)


def _plus_diagonal(matrix, diagonal):
    matrix = matrix.copy()
    matrix[np.diag_indices(len(diagonal))] += diagonal
    return matrix


def _best_scale(matrix, u, covariance):
    outside = np.eye(len(u)) - u @ u.T
    system = outside * covariance
    # The scale of a channel that is always 0, or that U spans, is undetermined: it becomes 0.
    system[np.diag_indices_from(system)] += 1e-10 * np.trace(covariance) / len(u)
    return linalg.solve(system, np.einsum('ij,ji->i', outside @ matrix, covariance), assume_a='pos')


def _energy(matrix, covariance):
    return float(np.sum((matrix @ covariance) * matrix))


def spectrum(matrix: np.ndarray, covariance: Optional[np.ndarray] = None) -> np.ndarray:
    """Shares of the mean square of ``W d`` that rank 1, 2, ... m add, descending; they sum to 1."""
    gram = matrix @ matrix.T if covariance is None else matrix @ covariance @ matrix.T
    values = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
    return values / max(values.sum(), np.finfo('float64').tiny)


def ranks_within(budget: float, spectra: Sequence[np.ndarray],
                 costs: Sequence[Mapping[Optional[int], float]]) -> list[Optional[int]]:
    """The rank of each layer that keeps the sum of errors low within a budget.

    All layers start at their cheapest rank. Then the step (of any layer to any higher rank, or to the unchanged
    matrix) that reduces the error most for its cost is taken, until no step fits.

    Parameters
    ----------
    budget : float
        Of all layers together, in the unit of the costs.
    spectra : sequence of ndarray
        By layer: what rank 1, 2, ... take off its error, descending, as :func:`spectrum` gives them.
    costs : sequence of dict
        By layer: the cost of each possible rank and, for None, of the unchanged layer.

    Returns
    -------
    list of (int or None)
        None where a layer stays as it is.

    Raises
    ------
    InputError
        If the cheapest ranks cost more than the budget.
    """
    options = [_worth_their_cost(spectral, cost) for spectral, cost in zip(spectra, costs)]
    chosen = [0] * len(options)
    left = budget - sum(cost[0] for _, cost, _ in options)
    if left < 0:
        raise InputError(f'the budget is {-left:,.0f} multiply-adds too small even at the lowest rank that is tried '
                         'in every layer: allow more, or exclude fewer layers.')
    while True:
        best_rate, step = 0.0, None
        for layer, (at, (_, cost, error)) in enumerate(zip(chosen, options)):
            extra = cost[at + 1:] - cost[at]
            fits = np.flatnonzero(extra <= left)
            if len(fits):
                rates = (error[at] - error[at + 1:][fits]) / extra[fits]
                if rates.max() > best_rate:
                    best_rate, step = rates.max(), (layer, at + 1 + fits[rates.argmax()])
        if step is None:
            return [ranks[at] for (ranks, _, _), at in zip(options, chosen)]
        layer, to = step
        left -= options[layer][1][to] - options[layer][1][chosen[layer]]
        chosen[layer] = to


def _worth_their_cost(spectral, cost):
    """The ranks cheaper than every higher one (None is the highest): ranks, costs and errors, ascending."""
    ranks = [*sorted(rank for rank in cost if rank is not None), None]
    costs = np.array([cost[rank] for rank in ranks])
    errors = np.array([0.0 if rank is None else spectral[rank:].sum() for rank in ranks])
    cheapest_above = np.minimum.accumulate(np.append(costs[1:], np.inf)[::-1])[::-1]
    kept = np.flatnonzero(costs < cheapest_above)
    return [ranks[number] for number in kept], costs[kept], errors[kept]
