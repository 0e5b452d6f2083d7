"""What ranks can be chosen by: a class for each, as :func:`gluon_lprnet.compress` takes them."""
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Callable, NamedTuple, Optional, Union

import numpy as np

from ..blocks import resolve_rank
from ..utils.errors import InputError
from .factorize import ranks_within
from .latency import Clock, Timed, ranks_by_latency

__all__ = ['Fraction', 'Rank', 'Energy', 'Budget', 'Latency', 'ByLayer', 'Ranks', 'as_ranks', 'matching']


# oneDNN computes on so many channels at once, and a 1x1 convolution of another number takes it up to three times as
# long.
VECTOR = 8


class Layer(NamedTuple):
    """A pointwise convolution that is to be replaced.

    Attributes
    ----------
    name : str
    inputs : int
    output_shape : tuple of int
        NCHW.
    multiply_adds : int
        As it is.
    residual : bool
        Whether what replaces it has one.
    """

    name: str
    inputs: int
    output_shape: tuple
    multiply_adds: int
    residual: bool

    @property
    def width(self) -> int:
        """The highest rank: the smaller number of channels."""
        return min(self.inputs, self.output_shape[1])


@dataclass(frozen=True)
class Problem:
    """What ranks are chosen for.

    Attributes
    ----------
    layers : sequence of Layer
    multiply_adds : int
        Of the whole network.
    spectra : callable
        Without arguments, to each layer's :func:`gluon_lprnet.compression.factorize.spectrum`.
    clock : Clock
    """

    layers: Sequence[Layer]
    multiply_adds: int
    spectra: Callable[[], list[np.ndarray]]
    clock: Clock

    def cost(self, layer: Layer, rank: Optional[int]) -> int:
        """Multiply-adds of a layer at a rank; as it is, at None."""
        if rank is None:
            return layer.multiply_adds
        outputs = layer.output_shape[1]
        return math.prod(layer.output_shape) // outputs * (rank * (layer.inputs + outputs) + layer.residual * outputs)

    def timed(self, layer: Layer) -> Timed:
        """A layer as the clock takes it."""
        inputs, (images, outputs, *size) = layer.inputs, layer.output_shape
        return Timed((images, inputs, *size), outputs, inputs * outputs // (inputs + outputs))


def fast_ranks(width: int) -> list[int]:
    """The ranks of a layer that are worth a choice: multiples of 8, or all of a layer that is narrower than 32."""
    return list(range(VECTOR, width + 1, VECTOR) if width >= 4 * VECTOR else range(1, width + 1))


class Ranks:
    """What all of these have in common.

    Attributes
    ----------
    stays : str
        Why a layer stays where :meth:`choose` has no rank for it.
    """

    stays = ''

    def choose(self, problem: Problem) -> list[Optional[int]]:
        """The rank of each layer; None where it stays as it is.

        Raises
        ------
        InputError
            If a rank does not fit a layer, or no ranks are good enough.
        """
        raise NotImplementedError

    def choose_saving(self, problem: Problem, stays: dict[str, str]) -> dict[str, int]:
        """The ranks that save multiply-adds, by layer; why the other layers stay is added to ``stays``."""
        chosen = {}
        for layer, rank in zip(problem.layers, self.choose(problem)):
            if rank is None:
                stays[layer.name] = self.stays
            elif problem.cost(layer, rank) >= layer.multiply_adds:
                stays[layer.name] = f'rank {rank} would not lower its multiply-adds'
            else:
                chosen[layer.name] = rank
        return chosen


@dataclass(frozen=True)
class Fraction(Ranks):
    """One fraction of the width for all layers, as the paper's 1/8; rounded down, and at least 1."""

    share: float = 1 / 8

    def choose(self, problem: Problem) -> list[Optional[int]]:
        return [resolve_rank(float(self.share), layer.width) for layer in problem.layers]


@dataclass(frozen=True)
class Rank(Ranks):
    """One number of channels for all layers; narrower ones get their width."""

    channels: int

    def choose(self, problem: Problem) -> list[Optional[int]]:
        resolve_rank(self.channels, max(layer.width for layer in problem.layers))
        return [min(self.channels, layer.width) for layer in problem.layers]


@dataclass(frozen=True)
class Energy(Ranks):
    """By layer: the lowest of its fast ranks that keeps this share of the variance of its output, above 0 and up to 1.

    See :func:`fast_ranks`: multiples of 8. With ``method='pdp'`` it is the share of the weights that the terms keep
    before they are fitted, which only adds to it; of the output on images it may be another.
    """

    share: float

    def __post_init__(self):
        _check(0 < self.share <= 1, f'Energy({self.share}): give a share above 0 and up to 1.')

    def choose(self, problem: Problem) -> list[Optional[int]]:
        return [next((rank for rank in fast_ranks(len(shares))
                      # Of equal rounding errors in a sum of 1.
                      if shares[:rank].sum() >= self.share - 1e-12), len(shares))
                for shares in problem.spectra()]


@dataclass(frozen=True)
class Budget(Ranks):
    """By layer: the ranks of least error for which the whole network has at most so many multiply-adds.

    The error is the sum of those of the layers, each relative. Ranks are multiples of 8. A float up to 1 is a fraction
    of what the network has.
    """

    multiply_adds: Union[int, float]
    stays = 'the budget holds it as it is'

    def __post_init__(self):
        _check(self.multiply_adds > 0, f'Budget({self.multiply_adds}): give a positive number of multiply-adds, or a '
                                       'fraction.')

    def choose(self, problem: Problem) -> list[Optional[int]]:
        fraction = isinstance(self.multiply_adds, float) and self.multiply_adds <= 1
        budget = self.multiply_adds * problem.multiply_adds if fraction else self.multiply_adds
        fixed = problem.multiply_adds - sum(layer.multiply_adds for layer in problem.layers)
        return ranks_within(budget - fixed, problem.spectra(), [
            {rank: problem.cost(layer, rank) for rank in (None, *fast_ranks(layer.width))}
            for layer in problem.layers])


@dataclass(frozen=True)
class Latency(Ranks):
    """By layer: the ranks of least error for which the network is fast enough, measured here and now.

    The time is that of the deployed form for one image; see
    :func:`gluon_lprnet.compression.latency.median_milliseconds`.

    Attributes
    ----------
    share : float, optional
        At most this share of the original's time, above 0 and up to 1.
    milliseconds : float, optional
        In its place: at most so long.
    """

    share: Optional[float] = None
    milliseconds: Optional[float] = None
    stays = 'the latency holds it as it is'

    def __post_init__(self):
        _check((self.share is None) != (self.milliseconds is None), 'Latency: give a share or milliseconds.')
        _check(self.share is None or 0 < self.share <= 1,
               f"Latency({self.share}): give a share of the original's time, above 0 and up to 1.")
        _check(self.milliseconds is None or self.milliseconds > 0,
               f'Latency(milliseconds={self.milliseconds}): give a positive number.')

    def choose(self, problem: Problem) -> list[Optional[int]]:
        return ranks_by_latency(self._allowed, problem.spectra(), [problem.timed(layer) for layer in problem.layers],
                                problem.clock)

    def _allowed(self, original: float) -> float:
        return (self.share or 0) * original if self.milliseconds is None else self.milliseconds


@dataclass(frozen=True)
class ByLayer(Ranks):
    """Ranks by names of layers or patterns (``*conv3*``), of which the last that fits counts.

    A rank is a number of channels (int) or a fraction of the width (float). Layers that no name fits stay.
    """

    ranks: Mapping[str, Union[int, float]]
    stays = 'no rank is given for it'

    def choose(self, problem: Problem) -> list[Optional[int]]:
        chosen = {}
        for pattern, rank in self.ranks.items():
            for layer in matching(problem.layers, pattern, 'ByLayer'):
                chosen[layer.name] = resolve_rank(rank, layer.width)
        return [chosen.get(layer.name) for layer in problem.layers]


def as_ranks(rank: Union[int, float, Ranks]) -> Ranks:
    """What a number stands for: an int is a :class:`Rank`, a float a :class:`Fraction`."""
    if isinstance(rank, Ranks):
        return rank
    return Fraction(rank) if isinstance(rank, float) else Rank(rank)


def matching(layers: Sequence, pattern: str, what: str) -> list:
    """The layers whose ``name`` fits a pattern.

    Raises
    ------
    InputError
        If there is none; it begins with ``what``.
    """
    found = [layer for layer in layers if fnmatchcase(layer.name, pattern)]
    if not found:
        raise InputError(f'{what}: no layer that can be replaced is named {pattern!r}. There are '
                         f'{", ".join(layer.name for layer in layers)}.')
    return found


def _check(condition, message):
    if not condition:
        raise InputError(message)
