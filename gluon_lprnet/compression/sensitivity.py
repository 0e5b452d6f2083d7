"""How much of each layer's error reaches the output of the network, by which ranks of different layers are compared."""
import math
from collections.abc import Mapping, Sequence

import mxnet as mx
import numpy as np
from tqdm import tqdm

from ..blocks import resolve_rank
from ..graph import as_block
from .factorize import spectrum
from .modules import Pointwise, PointwiseGraph
from .refit import moments_of, replacement

__all__ = ['spectra_at_output']

# The rank at which a layer's sensitivity is measured, as a share of its width, and on how many batches at most.
_RANK = 1 / 4
_BATCHES = 8


def spectra_at_output(symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray], layers: Sequence[Pointwise],
                      wanted: Sequence[Pointwise], residual: bool, images: list[mx.nd.NDArray]) -> list[np.ndarray]:
    """What rank 1, 2, ... m of each layer take off the error at the network's output.

    Each layer alone is replaced by its module of rank m/4, in the metric of its inputs, and the mean squared error of
    the network's outputs is measured, over their variance. The error at other ranks is taken to be proportional to the
    layer's own, which its spectrum gives.

    Parameters
    ----------
    symbol, params
        The original network.
    layers : sequence of Pointwise
        Its pointwise convolutions that are a matrix at each position, in the order of computation.
    wanted : sequence of Pointwise
        Those to be replaced.
    residual : bool
        Of the modules.
    images : list of NDArray
        Batches (N, C, H, W).

    Returns
    -------
    list of ndarray
        For each layer wanted: descending, with the predicted error at rank r as the sum from r on.
    """
    graph = PointwiseGraph(symbol, params)
    moments = moments_of(graph, layers, [layer.name for layer in wanted], images)
    some = [batch.as_in_context(graph.context) for batch in images[::math.ceil(len(images) / _BATCHES)]]
    expected = _outputs(as_block(symbol, params), some)
    variation = max(np.square(expected - expected.mean(axis=0)).sum(), np.finfo('float32').tiny)
    found = []
    for layer in tqdm(wanted, 'measuring layers', leave=False, disable=None):
        weight, bias = graph.folded(layer)
        mean, covariance = moments[layer.name].mean, moments[layer.name].covariance
        shares, rank = spectrum(weight, covariance), resolve_rank(_RANK, len(weight))
        replaced = PointwiseGraph(symbol, params)
        replaced.replace(layer, replacement(weight, bias, rank, residual, False, mean, covariance))
        error = np.square(_outputs(as_block(*replaced.result()), some) - expected).sum() / variation
        own = shares[rank:].sum()
        # A layer whose rank is no higher has no error to compare by.
        found.append(shares * (error / own if own > 1e-9 else 1.0))
    return found


def _outputs(net, images):
    net.hybridize(static_alloc=True, static_shape=True)
    return np.concatenate([net(batch).asnumpy() for batch in images]).astype('float64')
