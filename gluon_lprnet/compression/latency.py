"""Measured latency: of several networks, of a layer by its rank, and the ranks that meet a target."""
import statistics
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

import mxnet as mx
import numpy as np
from tqdm import tqdm

from ..utils.errors import InputError
from ..utils.timing import ROUNDS, interleaved_milliseconds
from .factorize import ranks_within

__all__ = ['Clock', 'Timed', 'median_milliseconds', 'ranks_by_latency']

# Passes for layers; networks use the default.
_LAYER_ROUNDS = 20
# So many copies of a layer are timed together, because the call itself takes longer than a small layer.
COPIES = 8
# How often ranks are chosen again from the measured network, and by what share of the target it may be faster.
_ATTEMPTS = 8
_NEAR = 0.02


def median_milliseconds(networks: Sequence, shape: tuple[int, ...]) -> list[float]:
    """Median milliseconds of one pass of each network.

    They take turns, so that other load on the machine affects all of them equally. The number of threads is that of the
    process: ``OMP_NUM_THREADS`` as it was when MXNet was loaded.

    Parameters
    ----------
    networks : sequence of HybridBlock
        All on the same device.
    shape : tuple of int
        Of their input.

    Returns
    -------
    list of float
    """
    return [statistics.median(taken) for taken in _milliseconds(networks, shape, ROUNDS)]


class Timed(NamedTuple):
    """A convolution, as it is timed: two that are equal are timed once.

    Attributes
    ----------
    input_shape : tuple of int
        NCHW, where the network's input is the clock's.
    outputs : int
        Channels.
    highest_rank : int
        At which multiply-adds are still saved.
    geometry : tuple
        What else its operator has, as pairs of name and value.
    """

    input_shape: tuple[int, ...]
    outputs: int
    highest_rank: int
    geometry: tuple = ()


class Clock(NamedTuple):
    """What is timed. Weights do not change times and need not be right.

    Attributes
    ----------
    input_shape : tuple of int
        Of the networks.
    original : callable
        Without arguments, to the original network in its deployed form, as those of the next two are.
    build : callable
        (a rank or None for each layer) to the network.
    build_layers : callable
        (a :class:`Timed`, its rank or None) to a network of ``COPIES`` such layers.
    """

    input_shape: tuple[int, ...]
    original: Callable[[], Any]
    build: Callable[[Sequence[Optional[int]]], Any]
    build_layers: Callable[[Timed, Optional[int]], Any]


def ranks_by_latency(allowed: Callable[[float], float], spectra: Sequence[np.ndarray],
                     layers: Sequence[Timed], clock: Clock) -> list[Optional[int]]:
    """The rank of each layer that keeps the sum of errors low within a latency.

    Each layer is timed at some ranks, and the ranks are chosen as within a budget of multiply-adds. The
    measured time of the whole network, relative to the original, then corrects the budget of the next choice.

    Parameters
    ----------
    allowed : callable
        From the milliseconds of the original to those that the network may take.
    spectra : sequence of ndarray
        By layer, as :func:`gluon_lprnet.compression.factorize.ranks_within` takes them.
    layers : sequence of Timed
    clock : Clock

    Returns
    -------
    list of (int or None)
        None where a layer stays as it is.

    Raises
    ------
    InputError
        If no choice is fast enough.
    """
    original = clock.original()
    tables = {layer: _times_by_rank(layer, clock.build_layers)
              for layer in tqdm(dict.fromkeys(layers), 'timing layers', leave=False, disable=None)}
    times = [tables[layer] for layer in layers]
    least = sum(min(by_rank.values()) for by_rank in times)

    def share(before):
        return allowed(before) / before

    # As for the layers. Medians of original and network, timed in turns, are then compared by their ratio.
    shortest = min(_milliseconds([original], clock.input_shape, ROUNDS)[0])
    budget = (share(shortest) - 1) * shortest + sum(by_rank[None] for by_rank in times)
    measured, best = {}, None
    for _ in range(_ATTEMPTS):
        budget = max(budget, least)
        ranks = tuple(ranks_within(budget, spectra, times))
        if ranks not in measured:
            measured[ranks] = tuple(median_milliseconds([original, clock.build(ranks)], clock.input_shape))
        before, after = measured[ranks]
        excess = after / before - share(before)
        if excess <= 0 and (best is None or budget > best[0]):
            best = budget, ranks
        if -_NEAR * share(before) <= excess <= 0:
            break
        # Aim at the middle of the accepted range.
        budget -= (excess + _NEAR / 2 * share(before)) * shortest
    if best is None:
        before, after = min(measured.values(), key=lambda pair: pair[1] / pair[0])
        raise InputError(f'the latency cannot be met: the fastest network found takes {after:.3g} ms, the original '
                         f'{before:.3g} ms. Allow more time, exclude fewer layers, or do without the residual '
                         '(residual=False, --no-residual).')
    return list(best[1])


def _times_by_rank(layer, build_layers):
    """Milliseconds of a layer at some ranks, and unchanged (None)."""
    # In steps of the vector width.
    step = max(8, layer.highest_rank // 64 * 8)
    ranks = [*range(step, layer.highest_rank, step), None]
    times = _milliseconds([build_layers(layer, rank) for rank in ranks], layer.input_shape, _LAYER_ROUNDS)
    # The shortest, not the median: other load only adds to a time.
    return {rank: min(taken) / COPIES for rank, taken in zip(ranks, times)}


def _milliseconds(networks, shape, rounds):
    context = next(iter(networks[0].collect_params().values())).list_ctx()[0]
    data = mx.nd.array(np.random.default_rng(0).normal(0, 1, shape), ctx=context)
    return interleaved_milliseconds([lambda network=network: network(data).wait_to_read() for network in networks],
                                    rounds)
