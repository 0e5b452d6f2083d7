"""The sequential fit: layer by layer, from the compressed network's own activations to the original's outputs.

Statistics of the original network alone let the errors of the layers pile up. Here each pointwise convolution is fitted
when all before it have been replaced: by ridge regression from its inputs in the compressed network to its outputs in
the original one, the asymmetric reconstruction of Zhang, Zou, He and Sun (arXiv 1505.06798, section 3.3). One that is
replaced is then factorized in the metric of these inputs.
"""
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Optional, Union

import mxnet as mx
import numpy as np
from scipy import linalg
from tqdm import tqdm

from ..utils.errors import InputError
from .factorize import factorize, spectrum
from .modules import Pointwise, PointwiseGraph, Refit, Replacement
from .stages import Activations, stages

__all__ = ['Fit', 'fit_in_sequence', 'replacement', 'ridge', 'spectra_of']

# Of the ridge, relative to the mean variance of the inputs.
RIDGE = 1e-3


class Fit(NamedTuple):
    """What a layer becomes (None: what it was), and its relative errors before and after."""

    new: Optional[Union[Replacement, Refit]]
    error_before: Optional[float]
    error: Optional[float]


def ridge(covariance: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """What to add to a weight for the least squares of what it leaves over, with a ridge toward the weight.

    Of ``E||r - A x||^2 + lambda ||A||^2`` for inputs x and remainders r without their means, with
    ``lambda = 1e-3 tr(C) / m``, the A that is least: ``E[r x'] (C + lambda I)^-1``.

    Parameters
    ----------
    covariance : ndarray (m, m)
        C, of x.
    cross : ndarray (n, m)
        E[r x'].

    Returns
    -------
    ndarray (n, m)
    """
    m = len(covariance)
    # A channel that is always 0 has a row of zeros in C: the ridge makes the system regular, unless all have.
    penalty = max(RIDGE * np.trace(covariance) / m, np.finfo('float64').tiny)
    return linalg.solve(covariance + penalty * np.eye(m), cross.T, assume_a='pos').T


def fit_in_sequence(graph: PointwiseGraph, layers: Sequence[Pointwise], ranks: Mapping[str, int], residual: bool,
                    l2_norm: bool, images: list[mx.nd.NDArray]) -> dict[str, Fit]:
    """Fit all pointwise convolutions of a network, one after the other.

    Both networks are run together, stage by stage, over all images: memory holds the activations of the images at one
    place of the original and of the compressed network, whatever their depth.

    Parameters
    ----------
    graph : PointwiseGraph
        The original network; it stays as it is.
    layers : sequence of Pointwise
        Those that can be given new values, in the order of computation.
    ranks : dict of str to int
        Of those that are to be replaced, by name.
    residual, l2_norm : bool
        See :func:`gluon_lprnet.compress`.
    images : list of NDArray
        Batches (N, C, H, W); the list is emptied on the way.

    Returns
    -------
    dict of str to Fit
        By name of layer.

    Raises
    ------
    InputError
        If there are fewer positions in front of a layer that is to be replaced than it has channels.
    """
    count = sum(len(batch) for batch in images)
    original: Activations = {_data(graph): [batch.as_in_context(graph.context) for batch in images]}
    images.clear()
    compressed = dict(original)
    fits = {}
    steps, needed = stages(graph, layers)
    for layer, stage, still_needed in zip(tqdm(layers, 'fitting layers', leave=False, disable=None), steps, needed):
        found = stage.run(original)
        # Until something differs the two networks are one.
        same = all(compressed[entry] is original[entry] for entry in stage.inputs)
        compressed.update(found if same else stage.run(compressed))
        original.update(found)
        source, result = tuple(graph.nodes[layer.node]['inputs'][0][:2]), (layer.last, 0)
        fits[layer.name], original[result], compressed[result] = _fit(
            layer, *graph.folded(layer), ranks.get(layer.name), residual, l2_norm, original[source],
            compressed[source], count)
        original, compressed = ({entry: values[entry] for entry in still_needed if entry in values}
                                for values in (original, compressed))
    return fits


def _fit(layer, weight, bias, rank, residual, l2_norm, inputs, own_inputs, count):
    """The Fit of a layer, its outputs in the original network, and those in the compressed one."""
    targets = [_pointwise(x, weight, bias) for x in inputs]
    same = own_inputs is inputs
    if same and rank is None:
        return Fit(None, None, None), targets, targets
    moments = _moments(own_inputs)
    if moments.positions < weight.shape[1] and rank is not None:
        raise InputError(f'calibration: {count} images give {moments.positions} positions in front of {layer.name}, '
                         f'which has {weight.shape[1]} channels: give at least '
                         f'{math.ceil(weight.shape[1] * count / moments.positions)} images, better several times '
                         'as many.')
    new, error_before, total = None, None, _variation(targets)
    if not same:
        left_over = [y - _pointwise(x, weight, bias) for y, x in zip(targets, own_inputs)]
        error_before = _squares(left_over) / total
        # With fewer positions than channels it keeps its values.
        if moments.positions >= weight.shape[1]:
            weight, bias = _refitted(weight, bias, moments, own_inputs, left_over)
            new = Refit(weight, bias, moments.mean)
    if rank is not None:
        new = replacement(weight, bias, rank, residual, l2_norm, moments.mean, moments.covariance)
        outputs = [module_output(x, new) for x in own_inputs]
    else:
        outputs = [_pointwise(x, weight, bias) for x in own_inputs]
    error = _squares(y - found for y, found in zip(targets, outputs)) / total
    return Fit(new, error_before, error), targets, outputs


class _Moments(NamedTuple):
    """Of a layer's inputs: positions, mean (m,) and covariance (m, m)."""

    positions: int
    mean: np.ndarray
    covariance: np.ndarray


def _moments(inputs):
    positions, total, squares = 0, 0.0, 0.0
    for x in map(_rows, inputs):
        positions += x.shape[1]
        total = total + x.sum(axis=1)
        squares = squares + x @ x.T
    mean = total / positions
    return _Moments(positions, mean, squares / positions - np.outer(mean, mean))


def _refitted(weight, bias, moments, inputs, left_over):
    """Weight and bias with the ridge regression's step, from what they leave over of the targets."""
    total, products = 0.0, 0.0
    for x, r in zip(inputs, left_over):
        x, r = _rows(x), _rows(r)
        total = total + r.sum(axis=1)
        products = products + r @ x.T
    mean = total / moments.positions
    step = ridge(moments.covariance, products / moments.positions - np.outer(mean, moments.mean))
    return weight + step, bias + mean - step @ moments.mean


def _variation(outputs):
    """The sum of squared distances from the channels' means."""
    positions, total, squares = 0, 0.0, 0.0
    for y in map(_rows, outputs):
        positions += y.shape[1]
        total = total + y.sum(axis=1)
        squares += float(np.square(y).sum())
    return max(squares - float(np.square(total).sum()) / positions, np.finfo('float32').tiny)


def _squares(arrays):
    return sum(float(np.square(array.asnumpy(), dtype='float64').sum()) for array in arrays)


def replacement(weight: np.ndarray, bias: np.ndarray, rank: int, residual: bool, l2_norm: bool, mean: np.ndarray,
                covariance: Optional[np.ndarray]) -> Replacement:
    """The module that stands for ``weight @ x + bias``, for inputs of this mean (m,) and covariance (m, m) or None."""
    factors = factorize(weight, rank, covariance, residual)
    norm_scale = None
    if l2_norm:
        product = factors.p2 @ factors.p1
        second = (np.eye(len(mean)) if covariance is None else covariance) + np.outer(mean, mean)
        # The root mean square of what it normalizes.
        norm_scale = math.sqrt(max(np.sum((product @ second) * product), 0))
    return Replacement(factors, bias + (weight - factors.matrix) @ mean, norm_scale, residual)


def module_output(x: mx.nd.NDArray, new: Replacement) -> mx.nd.NDArray:
    """What the module puts out for its inputs, NCHW."""
    if new.norm_scale is None:
        return _pointwise(x, new.factors.matrix, new.bias)
    low_rank = _pointwise(x, new.factors.p2 @ new.factors.p1, np.zeros(len(new.bias)))
    low_rank = mx.nd.L2Normalization(low_rank, mode='channel') * new.norm_scale
    return low_rank + _pointwise(x, np.diag(new.factors.scale), new.bias)


def _pointwise(x, weight, bias):
    weight, bias = (mx.nd.array(values, ctx=x.context, dtype='float32') for values in (weight, bias))
    found = mx.nd.Convolution(x, weight.reshape((*weight.shape, 1, 1)), bias, kernel=(1, 1),
                              num_filter=weight.shape[0])
    # MXNet runs ahead: without this the inputs of all batches stay in memory.
    found.wait_to_read()
    return found


def _rows(x):
    """NCHW to (channels, positions), float64."""
    x = x.asnumpy().astype('float64')
    return x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)


def spectra_of(graph: PointwiseGraph, layers: Sequence[Pointwise], wanted: Sequence[str],
               images: list[mx.nd.NDArray]) -> list[np.ndarray]:
    """The spectrum of each of the layers ``wanted``, in the metric of its inputs in the network as it is."""
    activations: Activations = {_data(graph): [batch.as_in_context(graph.context) for batch in images]}
    found = {}
    for layer, stage, still_needed in zip(tqdm(layers, 'calibrating', leave=False, disable=None),
                                          *stages(graph, layers)):
        activations.update(stage.run(activations))
        weight, bias = graph.folded(layer)
        inputs = activations[tuple(graph.nodes[layer.node]['inputs'][0][:2])]
        if layer.name in wanted:
            found[layer.name] = spectrum(weight, _moments(inputs).covariance)
        activations[layer.last, 0] = [_pointwise(x, weight, bias) for x in inputs]
        activations = {entry: activations[entry] for entry in still_needed if entry in activations}
    return [found[name] for name in wanted]


def _data(graph):
    return next(index for index, node in enumerate(graph.nodes) if node['name'] == 'data'), 0
