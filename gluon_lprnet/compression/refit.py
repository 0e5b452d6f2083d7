"""The sequential fit: layer by layer, from the compressed network's own activations to the original's outputs.

Statistics of the original network alone let the errors of the layers pile up. Here each pointwise convolution is fitted
when all before it have been replaced: by ridge regression from its inputs in the compressed network to its outputs in
the original one, the asymmetric reconstruction of Zhang, Zou, He and Sun (arXiv 1505.06798, section 3.3). One that is
replaced is then factorized in the metric of these inputs.
"""
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional, Union

import mxnet as mx
import numpy as np
from scipy import linalg
from tqdm import tqdm

from ..utils.errors import InputError
from .factorize import factorize
from .modules import Form, Pointwise, PointwiseGraph, Refit, Replacement
from .stages import Activations, stages

__all__ = ['Fit', 'fit_in_sequence', 'replacement', 'ridge', 'moments_of']

# Of the ridge, relative to the mean variance of the inputs.
RIDGE = 1e-3
# Statistics are taken of at most so many rows and columns of a feature map: neighbors differ little.
_GRID = 28


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


def fit_in_sequence(graph: PointwiseGraph, layers: Sequence[Pointwise], ranks: Mapping[str, int], form: Form,
                    images: list[mx.nd.NDArray]) -> dict[str, Fit]:
    """Fit all pointwise convolutions of a network, one after the other.

    Both networks are run together, stage by stage and batch by batch: memory holds the activations of the images at
    one place of the original and at one of the compressed network; what lies between is held for one batch.

    Parameters
    ----------
    graph : PointwiseGraph
        The original network; it stays as it is.
    layers : sequence of Pointwise
        Those that can be given new values, in the order of computation.
    ranks : dict of str to int
        Of those that are to be replaced, by name.
    form : Form
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
    count, data = sum(len(batch) for batch in images), _data(graph)
    batches = [_Batch({data: images.pop(0).as_in_context(graph.context)}) for _ in range(len(images))]
    fits = {}
    for layer, stage, needed in zip(tqdm(layers, 'fitting layers', leave=False, disable=None),
                                    *stages(graph, layers)):
        source, result = tuple(graph.nodes[layer.node]['inputs'][0][:2]), (layer.last, 0)
        fitting = _Fitting(layer, *graph.folded(layer), ranks.get(layer.name), form.of(layer))
        for batch in batches:
            batch.run(stage)
            batch.original[result] = fitting.add(batch.original[source], batch.compressed[source])
            batch.keep(needed, [*needed, source])
        fitting.fit(count)
        for batch in batches:
            batch.compressed[result] = fitting.output(batch.compressed[source], batch.original[result])
            batch.keep(needed, needed)
        fits[layer.name] = fitting.result
    return fits


class _Batch:
    """The activations of a batch of images, in the original and in the compressed network."""

    def __init__(self, inputs):
        self.original, self.compressed = inputs, dict(inputs)

    def run(self, stage):
        found = stage.run(self.original)
        # Until something differs the two networks are one.
        same = all(self.compressed[entry] is self.original[entry] for entry in stage.inputs)
        self.compressed.update(found if same else stage.run(self.compressed))
        self.original.update(found)

    def keep(self, original, compressed):
        """Forget all but these entries."""
        self.original = {entry: self.original[entry] for entry in original if entry in self.original}
        self.compressed = {entry: self.compressed[entry] for entry in compressed if entry in self.compressed}


class _Fitting:
    """The fit of one layer: :meth:`add` each batch, :meth:`fit`, and take each batch's :meth:`output`."""

    def __init__(self, layer, weight, bias, rank, form):
        self._layer, self._weight, self._bias, self._rank, self._form = layer, weight, bias, rank, form
        self._same, self._new, self._error_before, self._error = True, None, None, 0.0
        # Of the compressed network's inputs, and of what they leave over of the targets with the weight as it is.
        self._left_over, self._squares_left, self._targets = LeftOver(), 0.0, Moments()

    @property
    def result(self):
        return Fit(self._new, self._error_before, None if self._stays else self._error / self._targets.variation)

    @property
    def _stays(self):
        return self._same and self._rank is None

    def add(self, inputs, own_inputs):
        """Take in what a batch has in front of the layer in both networks; its outputs in the original one."""
        target = _pointwise(inputs, self._weight, self._bias)
        self._same = own_inputs is inputs
        if self._stays:
            return target
        self._targets.add(_rows(target))
        found = target if self._same else _pointwise(own_inputs, self._weight, self._bias)
        left_over = _rows(target - found)
        self._left_over.add(_rows(own_inputs), left_over)
        self._squares_left += _squares(left_over)
        return target

    def fit(self, count):
        if self._stays:
            return
        inputs, channels = self._left_over.inputs, self._weight.shape[1]
        positions, mean = inputs.positions, inputs.mean
        if positions < channels and self._rank is not None:
            raise InputError(f'calibration: {count} images give {positions} positions in front of {self._layer.name}, '
                             f'which has {channels} channels: give at least {math.ceil(channels * count / positions)} '
                             'images, better several times as many.')
        if not self._same:
            self._error_before = self._squares_left / self._targets.variation
            # With fewer positions than channels it keeps its values.
            if positions >= channels:
                step, shift = self._left_over.step()
                self._weight, self._bias = self._weight + step, self._bias + shift
                self._new = Refit(self._weight, self._bias, mean)
        if self._rank is not None:
            self._new = replacement(self._weight, self._bias, self._rank, self._form, mean, inputs.covariance)

    def output(self, own_inputs, target):
        """The layer's outputs in the compressed network, of which the error is noted."""
        if self._stays:
            return target
        found = (module_output(own_inputs, self._new) if self._rank is not None else
                 _pointwise(own_inputs, self._weight, self._bias))
        self._error += _squares(_rows(target - found))
        return found


class LeftOver:
    """What a layer with other inputs leaves over of its outputs in the original, batch by batch, and the remedy.

    Attributes
    ----------
    inputs : Moments
        Of the layer's inputs in that network.
    """

    def __init__(self) -> None:
        self.inputs, self._left = Moments(), Moments()
        # An array from the first batch on.
        self._products: Any = 0.0

    def add(self, inputs: np.ndarray, left_over: np.ndarray) -> None:
        """Columns (inputs, positions) and (outputs, positions)."""
        self.inputs.add(inputs, products=True)
        self._left.add(left_over)
        self._products = self._products + left_over @ inputs.T

    def step(self) -> tuple[np.ndarray, np.ndarray]:
        """What to add to weight (outputs, inputs) and bias (outputs,): see :func:`ridge`."""
        step = ridge(self.inputs.covariance, self._cross)
        return step, self._left.mean - step @ self.inputs.mean

    def squares_after(self, step: np.ndarray) -> float:
        """The sum of squares that is left when this is added to the weight, and to the bias what the means need."""
        taken = np.sum((2 * self._cross - step @ self.inputs.covariance) * step)
        return max(self._left.variation - self.inputs.positions * float(taken), 0.0)

    @property
    def _cross(self):
        """The covariance of what is left over and the inputs."""
        return self._products / self.inputs.positions - np.outer(self._left.mean, self.inputs.mean)


class Moments:
    """Of vectors that come batch by batch, as columns (channels, positions)."""

    def __init__(self) -> None:
        self.positions, self._squares = 0, 0.0
        # Arrays from the first batch on.
        self._sum: Any = 0.0
        self._products: Any = 0.0

    def add(self, columns: np.ndarray, products: bool = False) -> None:
        self.positions += columns.shape[1]
        self._sum = self._sum + columns.sum(axis=1)
        if products:
            self._products = self._products + columns @ columns.T
        else:
            self._squares += _squares(columns)

    @property
    def mean(self) -> np.ndarray:
        return self._sum / self.positions

    @property
    def covariance(self) -> np.ndarray:
        return self._products / self.positions - np.outer(self.mean, self.mean)

    @property
    def variation(self) -> float:
        """The sum of squared distances from the mean."""
        return max(self._squares - self.positions * float(np.square(self.mean).sum()), float(np.finfo('float32').tiny))


def _squares(values):
    return float(np.einsum('ij,ij->', values, values))


def replacement(weight: np.ndarray, bias: np.ndarray, rank: int, form: Form, mean: np.ndarray,
                covariance: Optional[np.ndarray]) -> Replacement:
    """The module that stands for ``weight @ x + bias``, for inputs of this mean (m,) and covariance (m, m) or None."""
    factors = factorize(weight, rank, covariance, form.residual)
    norm_scale = None
    if form.l2_norm:
        product = factors.p2 @ factors.p1
        second = (np.eye(len(mean)) if covariance is None else covariance) + np.outer(mean, mean)
        # The root mean square of what it normalizes.
        norm_scale = math.sqrt(max(np.sum((product @ second) * product), 0))
    return Replacement(factors, bias + (weight - factors.matrix) @ mean, norm_scale, form.residual)


def module_output(x: mx.nd.NDArray, new: Replacement) -> mx.nd.NDArray:
    """What the module puts out for its inputs, NCHW."""
    if new.norm_scale is None:
        return _pointwise(x, new.factors.matrix, new.bias)
    low_rank = _pointwise(x, new.factors.p2 @ new.factors.p1, np.zeros(len(new.bias)))
    low_rank = mx.nd.L2Normalization(low_rank, mode='channel') * new.norm_scale
    return low_rank + _pointwise(x, np.diag(new.factors.scale), new.bias)


def _pointwise(x, weight, bias):
    # Not a view of a matrix: MXNet's NaiveEngine puts weights into another order in place, which a view refuses.
    weight, bias = (mx.nd.array(values, ctx=x.context, dtype='float32') for values in (weight[:, :, None, None], bias))
    found = mx.nd.Convolution(x, weight, bias, kernel=(1, 1), num_filter=weight.shape[0])
    # MXNet runs ahead: without this the inputs of all batches stay in memory.
    found.wait_to_read()
    return found


def _rows(x):
    """NCHW to (channels, positions), float64; of large maps an even grid of positions."""
    rows, columns = (slice(step // 2, None, step) for step in (math.ceil(length / _GRID) for length in x.shape[2:]))
    x = x.asnumpy()[:, :, rows, columns].astype('float64')
    return x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)


def moments_of(graph: PointwiseGraph, layers: Sequence[Pointwise], wanted: Sequence[str],
               images: list[mx.nd.NDArray]) -> dict[str, Moments]:
    """Of the inputs of the layers ``wanted``, by name, in the network as it is."""
    moments = {name: Moments() for name in wanted}
    weights = {layer.name: graph.folded(layer) for layer in layers}
    steps = list(zip(layers, *stages(graph, layers)))
    for batch in tqdm(images, 'calibrating', unit='batch', leave=False, disable=None):
        activations: Activations = {_data(graph): batch.as_in_context(graph.context)}
        for layer, stage, needed in steps:
            activations.update(stage.run(activations))
            inputs = activations[tuple(graph.nodes[layer.node]['inputs'][0][:2])]
            if layer.name in moments:
                moments[layer.name].add(_rows(inputs), products=True)
            activations[layer.last, 0] = _pointwise(inputs, *weights[layer.name])
            activations = {entry: activations[entry] for entry in needed if entry in activations}
    return moments


def _data(graph):
    return next(index for index, node in enumerate(graph.nodes) if node['name'] == 'data'), 0
