"""Measured latency: of networks beside each other, of a layer by its rank, and the ranks that meet a target."""
import statistics

import mxnet as mx
import numpy as np
from tqdm import tqdm

from ..utils.errors import InputError
from ..utils.timing import PASSES, interleaved_milliseconds
from .factorize import ranks_within

__all__ = ['median_milliseconds', 'ranks_by_latency']

# Of layers; of networks as many as usual.
_LAYER_PASSES = 20
# Layers are timed so many in series: the call itself takes longer than a small one.
COPIES = 8
# How often the ranks are chosen anew from what the whole network took, and by how much of the target it may be faster.
_ROUNDS = 8
_NEAR = 0.02


def median_milliseconds(networks, shape):
    """Median milliseconds of one pass of each network.

    They take turns, so that whatever else the machine does slows all of them. The number of threads is that of the
    process: ``OMP_NUM_THREADS`` as it was when MXNet was loaded.

    Parameters
    ----------
    networks : sequence of HybridBlock
        On one device.
    shape : tuple of int
        Of their input.

    Returns
    -------
    list of float
    """
    return [statistics.median(taken) for taken in _milliseconds(networks, shape, PASSES)]


def ranks_by_latency(target, spectra, shapes, input_shape, original, build, build_layers):
    """The rank of each layer that keeps the sum of relative errors low within a latency.

    Each layer is timed at some ranks, and the ranks are chosen as within a budget of multiply-adds. What the whole
    network then takes, beside the original, corrects the budget of the next choice.

    Parameters
    ----------
    target : dict
        ``{'latency': a share of the original's}`` or ``{'milliseconds': a number}``.
    spectra : sequence of ndarray
        By layer, as :func:`gluon_lprnet.compression.factorize.spectrum` gives them.
    shapes : sequence of tuple
        Of each layer's output, NCHW, where the network's input is ``input_shape``.
    input_shape : tuple of int
    original : HybridBlock
        In its deployed form, as what the next two make. Weights do not change times and need not be right.
    build : callable
        (a rank or None for each layer) to the network.
    build_layers : callable
        (shape, rank or None) to ``COPIES`` layers in series.

    Returns
    -------
    tuple of (list of (int or None), tuple of float)
        The ranks, None where a layer stays as it is, and the milliseconds of original and network.

    Raises
    ------
    InputError
        If no choice meets the target.
    """
    tables = {shape: _times_by_rank(shape, build_layers)
              for shape in tqdm(dict.fromkeys(shapes), 'timing layers', leave=False, disable=None)}
    times = [tables[shape] for shape in shapes]
    least = sum(min(of_layer.values()) for of_layer in times)

    def share(before):
        return target['milliseconds'] / before if 'milliseconds' in target else target['latency']

    # As of the layers. Medians of original and network in turns are then compared by their ratio.
    shortest = min(_milliseconds([original], input_shape, PASSES)[0])
    budget = (share(shortest) - 1) * shortest + sum(of_layer[None] for of_layer in times)
    measured, best = {}, None
    for _ in range(_ROUNDS):
        budget = max(budget, least)
        ranks = tuple(ranks_within(budget, spectra, times))
        if ranks not in measured:
            measured[ranks] = tuple(median_milliseconds([original, build(ranks)], input_shape))
        before, after = measured[ranks]
        excess = after / before - share(before)
        if excess <= 0 and (best is None or budget > best[0]):
            best = budget, ranks
        if -_NEAR * share(before) <= excess <= 0:
            break
        # To the middle of what is near enough.
        budget -= (excess + _NEAR / 2 * share(before)) * shortest
    if best is None:
        before, after = min(measured.values(), key=lambda pair: pair[1] / pair[0])
        raise InputError(f'rank {target}: the fastest network that was found takes {after:.3g} ms, the original '
                         f'{before:.3g} ms: give more, exclude fewer layers, or do without the residual '
                         '(residual=False, --no-residual).')
    return list(best[1]), measured[best[1]]


def _times_by_rank(shape, build_layers):
    """Milliseconds of a layer at some ranks, and as it is (None)."""
    width = shape[1]
    # In steps of the vector units' width, and from half of the layer's on there are no fewer multiply-adds.
    step = max(8, width // 16)
    ranks = [*range(step, width // 2, step), None]
    times = _milliseconds([build_layers(shape, rank) for rank in ranks], shape, _LAYER_PASSES)
    # The shortest, not the median: what else the machine does only adds to a time.
    return {rank: min(taken) / COPIES for rank, taken in zip(ranks, times)}


def _milliseconds(networks, shape, passes):
    context = next(iter(networks[0].collect_params().values())).list_ctx()[0]
    data = mx.nd.array(np.random.default_rng(0).normal(0, 1, shape), ctx=context)
    return interleaved_milliseconds([lambda network=network: network(data).wait_to_read() for network in networks],
                                    passes)
