"""A trained k x k convolution as a pointwise-depthwise-pointwise module: ``compress(method='pdp')``.

Lam, Li, Zhou, Wong and Lin, "A Unifying Tensor View for Lightweight CNNs" (arXiv 2312.09922): a kernel
``W[o, i, k] ~ sum over r of b[o, r] a[r, i] d[r, k]`` is a pointwise convolution to R channels, a depthwise one and a
pointwise one. The paper's abstract alone was read; the fit is this module's own.
"""
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

import mxnet as mx
import numpy as np
from mxnet.gluon import SymbolBlock
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, cg
from tqdm import tqdm

from ..complexity import count
from ..deployment.reparametrize import deploy
from ..graph import as_block, attributes
from ..utils.errors import InputError
from .latency import COPIES, Clock, Timed
from .modules import Convolution, PointwiseGraph
from .ranks import Problem, Ranks
from .refit import LeftOver, Moments
from .report import LayerReport, Report

__all__ = ['Terms', 'decompose', 'full_rank', 'compress_spatial']

# Rounds of the three steps of decompose(); it stops when a round reduces the error by less than this share.
_ROUNDS = 50
_GAIN = 1e-3
# Of conjugate gradients, in a step whose equations are too many to be solved at once.
_ITERATIONS = 10
# Statistics are taken at most at so many positions of an image.
_POSITIONS = 28 ** 2


class Terms(NamedTuple):
    """``W[o, i, k] ~ sum over r of b[o, r] a[r, i] d[r, k]``.

    Attributes
    ----------
    a : ndarray (R, inputs)
        The first pointwise convolution.
    d : ndarray (R, k * k)
        The depthwise one.
    b : ndarray (outputs, R)
        The second pointwise one.
    errors : list of float
        Mean squared error over the mean square of what W gives, 0 to 1: of the terms at the start and after each round.
    """

    a: np.ndarray
    d: np.ndarray
    b: np.ndarray
    errors: list[float]

    @property
    def error(self) -> float:
        return self.errors[-1]

    @property
    def tensor(self) -> np.ndarray:
        """The approximation of W, ndarray (outputs, inputs, k * k)."""
        return np.einsum('or,ri,rk->oik', self.b, self.a, self.d)


def full_rank(outputs: int, inputs: int, positions: int) -> int:
    """The number of terms with which :func:`decompose` gives any kernel of ``positions`` weights a slice as it is."""
    return min(inputs * min(positions, outputs), outputs * min(positions, inputs))


def decompose(tensor: np.ndarray, rank: int, covariance: Optional[np.ndarray] = None) -> Terms:
    """A sum of ``rank`` terms near a kernel, by alternating least squares.

    The start is the singular triplets of all slices of one input channel (or of one output channel, if that is nearer)
    with the largest singular values: at full rank they are the kernel. Then b, a and d take turns, the others held:
    b exactly; for a and d, whose equations have R times as many unknowns as channels, by conjugate gradients from where
    they are. No step can raise the error.

    Parameters
    ----------
    tensor : ndarray (outputs, inputs, k * k)
    rank : int
        From 1 to :func:`full_rank`.
    covariance : ndarray (inputs * k * k, inputs * k * k), optional
        Of the patches that the kernel is multiplied by; the error is then that of the outputs, once a bias accounts for
        the mean. By default the identity.

    Returns
    -------
    Terms

    Raises
    ------
    InputError
        If the rank is out of range.
    """
    tensor = np.asarray(tensor, dtype='float64')
    outputs, inputs, positions = tensor.shape
    highest = full_rank(*tensor.shape)
    if not 1 <= rank <= highest:
        raise InputError(f'rank {rank} does not fit a kernel of {outputs}x{inputs}x{positions}: give 1 to {highest}.')
    matrix = tensor.reshape(outputs, -1)

    def in_metric(rows):
        return rows if covariance is None else rows @ covariance

    wanted = in_metric(matrix)
    total = float(np.sum(wanted * matrix))
    a, d, b = _first_terms(tensor, rank, covariance)

    def error():
        rest = matrix - b @ _products(a, d)
        return max(float(np.sum(in_metric(rest) * rest)), 0.0) / total if total else 0.0

    errors = [error()]
    while errors[-1] > np.finfo('float32').eps ** 2 and len(errors) <= _ROUNDS:
        before = Terms(a, d, b, errors)
        b = _best_b(wanted, _products(a, d), in_metric)
        gram, crossed = b.T @ b, (b.T @ wanted).reshape(rank, inputs, positions)

        def back(change):
            return (gram @ in_metric(change.reshape(rank, -1))).reshape(rank, inputs, positions)

        a = _descend(a, lambda step: np.einsum('rik,rk->ri', back(np.einsum('ri,rk->rik', step, d)), d),
                     np.einsum('rik,rk->ri', crossed, d))
        d = _descend(d, lambda step: np.einsum('rik,ri->rk', back(np.einsum('ri,rk->rik', a, step)), a),
                     np.einsum('rik,ri->rk', crossed, a))
        a, d, b = _balanced(a, d, b)
        errors.append(error())
        if errors[-1] > errors[-2]:
            # Rounding, near the end.
            return before._replace(errors=errors[:-1])
        if errors[-1] > errors[-2] * (1 - _GAIN):
            break
    return Terms(a, d, b, errors)


def _products(a, d):
    """Each term's a and d as a row (inputs * k * k)."""
    return np.einsum('ri,rk->rik', a, d).reshape(len(a), -1)


def _first_terms(tensor, rank, covariance):
    outputs, inputs, positions = tensor.shape
    # Channels that hardly vary in the data count for little.
    weight = np.ones(inputs)
    if covariance is not None:
        weight = np.sqrt(np.maximum(np.diag(covariance), 0).reshape(inputs, positions).mean(axis=1))
        weight = np.maximum(weight, max(1e-6 * weight.max(), np.finfo('float32').tiny))
    scaled = tensor * weight[:, None]
    by_input, by_output = (_largest_triplets(slices, rank) for slices in (scaled.transpose(1, 0, 2), scaled))
    if by_input[0] >= by_output[0]:
        _, channels, left, right = by_input
        return _one_hot(channels, inputs) / weight[channels, None], right, left.T
    _, channels, left, right = by_output
    return left / weight, right, _one_hot(channels, outputs).T


def _largest_triplets(slices, rank):
    """Of matrices (slices, m, n): the sum of the squares of the ``rank`` largest singular values, slices, u s, v."""
    u, s, v = np.linalg.svd(slices, full_matrices=False)
    order = np.argsort(-s, axis=None, kind='stable')[:rank]
    channels, numbers = np.unravel_index(order, s.shape)
    values = s[channels, numbers]
    return float(np.sum(values ** 2)), channels, u[channels, :, numbers] * values[:, None], v[channels, numbers]


def _one_hot(channels, width):
    rows = np.zeros((len(channels), width))
    rows[np.arange(len(channels)), channels] = 1
    return rows


def _best_b(wanted, products, in_metric):
    gram = in_metric(products) @ products.T
    # Terms may be alike.
    gram[np.diag_indices_from(gram)] += 1e-12 * max(np.trace(gram) / len(gram), np.finfo('float64').tiny)
    return linalg.solve(gram, products @ wanted.T, assume_a='pos').T


def _descend(start, operator, right):
    """Of a least squares problem by its normal equations: some steps of conjugate gradients from ``start``."""
    system = LinearOperator((start.size, start.size), dtype='float64',
                            matvec=lambda x: operator(x.reshape(start.shape)).ravel())
    return cg(system, right.ravel(), x0=start.ravel(), maxiter=_ITERATIONS)[0].reshape(start.shape)


def _balanced(a, d, b):
    """The same terms, their three vectors of equal length, which is good for gradients."""
    lengths = [np.linalg.norm(a, axis=1), np.linalg.norm(d, axis=1), np.linalg.norm(b, axis=0)]
    mean = np.cbrt(lengths[0] * lengths[1] * lengths[2])
    scales = [mean / np.where(length == 0, 1, length) for length in lengths]
    return a * scales[0][:, None], d * scales[1][:, None], b * scales[2]


# --- in a network

@dataclass(frozen=True)
class Spatial(Convolution):
    """A k x k convolution over all channels: the attributes of its operator, and why it cannot be replaced."""

    geometry: dict[str, tuple[int, int]]
    skipped: Optional[str]

    @property
    def parts(self) -> list[str]:
        """The names of the convolutions that replace it."""
        return [f'{self.stem}_{part}' for part in ('p1', 'depthwise', 'p2')]


class SpatialLayer(NamedTuple):
    """What ranks are chosen for, as :class:`gluon_lprnet.compression.ranks.Layer`.

    ``term`` is the multiply-adds of one term: an input and an output of each pointwise convolution, k * k of the
    depthwise one.
    """

    name: str
    input_shape: tuple
    output_shape: tuple
    multiply_adds: int
    term: int
    geometry: tuple

    @property
    def width(self) -> int:
        """The highest number of terms that lowers the multiply-adds, of which a rank may be a fraction."""
        return max(1, (self.multiply_adds - 1) // self.term)


class SpatialGraph(PointwiseGraph):
    """A network's k x k convolutions: found, read, and rewritten."""

    def spatial(self) -> list[Spatial]:
        """Its convolutions of more than one position, in order of computation, depthwise and grouped ones left out."""
        return [self._spatial(index, node) for index, node in enumerate(self.nodes)
                if node['op'] == 'Convolution' and math.prod(attributes(node, kernel=())[0]) > 1
                and attributes(node, num_group=1) == [1] and self.input_name(node, 1) in self.params]

    def _spatial(self, index, node):
        kernel, stride, dilate, pad, layout = attributes(node, kernel=(), stride=(1, 1), dilate=(1, 1), pad=(0, 0),
                                                         layout='None')
        skipped = ('it is not a convolution of two dimensions, NCHW' if len(kernel) != 2
                   or layout not in ('None', 'NCHW') else
                   None if self.has_own_parameters(node) else 'its weight is used elsewhere too')
        return Spatial(node['name'], index, self._norm_after(index), self.params[self.input_name(node, 1)].shape[:2],
                       dict(kernel=kernel, stride=stride, dilate=dilate, pad=pad), skipped)

    def folded_kernel(self, layer: Spatial) -> tuple[np.ndarray, np.ndarray]:
        """Weight (outputs, inputs, k * k) and bias (outputs,), float64, with the BatchNorm folded in.

        Raises
        ------
        InputError
            If they are not finite.
        """
        weight, bias = self._finite_weights(layer)
        return weight.reshape(*weight.shape[:2], -1), bias

    def replace_kernel(self, layer: Spatial, terms: Terms, bias: np.ndarray) -> None:
        """Put the three convolutions in the place of the convolution and of the BatchNorm that is folded."""
        p1, depthwise, p2 = layer.parts
        rank = len(terms.a)
        entry = self._convolution(p1, self.nodes[layer.node]['inputs'][0], terms.a)
        weight = self._variable(f'{depthwise}_weight', terms.d.reshape(rank, 1, *layer.geometry['kernel']))
        entry = self.add('Convolution', depthwise, [entry, weight], num_filter=rank, num_group=rank, no_bias=True,
                         **layer.geometry)
        self._put(layer, self._convolution(p2, entry, terms.b, bias))

    def patches(self, layer: Spatial, images: Sequence[mx.nd.NDArray]) -> Iterator[np.ndarray]:
        """What a kernel is multiplied by in this network, batch by batch: columns (inputs * k * k, positions)."""
        entry = self.nodes[layer.node]['inputs'][0][:2]
        block = self.block_to(entry) if self.nodes[entry[0]]['op'] != 'null' else None
        for batch in images:
            x = batch.as_in_context(self.context)
            columns = mx.nd.im2col(block(x) if block else x, **layer.geometry)
            there = columns.shape[2]
            if there > _POSITIONS:
                # At random: at even steps they would be of a few columns of the image, and its borders too often or not
                # at all.
                some = np.random.default_rng(0).choice(there, _POSITIONS, replace=False)
                columns = mx.nd.take(columns, mx.nd.array(np.sort(some), columns.context), axis=2)
            columns = columns.asnumpy().astype('float64')
            yield columns.transpose(1, 0, 2).reshape(columns.shape[1], -1)


class _SpatialProblem(Problem):

    def cost(self, layer: Any, rank: Optional[int]) -> int:
        return layer.multiply_adds if rank is None else rank * layer.term

    def timed(self, layer: Any) -> Timed:
        return Timed(layer.input_shape, layer.output_shape[1], layer.width, layer.geometry)


def compress_spatial(symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray], ranks: Ranks,
                     stay: Callable[[Sequence[Spatial]], dict[str, str]], images: Sequence[mx.nd.NDArray],
                     input_shape: tuple[int, ...]) -> tuple[SymbolBlock, Report]:
    """Replace the k x k convolutions of a network by PDP modules; see :func:`gluon_lprnet.compress`.

    Parameters
    ----------
    symbol, params
        The network.
    ranks : Ranks
        By their number of terms. A fraction is one of the terms with which nothing would be saved.
    stay : callable
        Of layers, to the names of those that are to stay by the caller's wish, with why.
    images : sequence of NDArray
        Batches (N, C, H, W), or none.
    input_shape : tuple of int

    Raises
    ------
    InputError
        If the network has no such convolution, the ranks do not fit, or there are too few images.
    """
    graph = SpatialGraph(symbol, params)
    layers = graph.spatial()
    free = [layer for layer in layers if not layer.skipped]
    if not free:
        raise InputError('nothing to compress: the network has no convolution larger than 1x1 over all channels.')
    before = count(symbol, input_shape)
    reasons = stay(free)
    wanted = [layer for layer in free if layer.name not in reasons]
    kernels = {layer.name: graph.folded_kernel(layer) for layer in wanted}
    chosen = _chosen_ranks(graph, wanted, ranks, kernels, before, reasons)
    rewritten, errors = SpatialGraph(symbol, params), {}
    for layer in tqdm([layer for layer in wanted if layer.name in chosen], 'decomposing', leave=False, disable=None):
        weight, bias = kernels[layer.name]
        if images:
            terms, bias, errors[layer.name] = _refitted(graph, rewritten, layer, chosen[layer.name], weight, bias,
                                                        images)
        else:
            terms = decompose(weight, chosen[layer.name])
            errors[layer.name] = terms.error
        rewritten.replace_kernel(layer, terms, bias)
    new_symbol, new_params = rewritten.result()
    block = as_block(new_symbol, new_params)
    block.hybridize(static_alloc=True, static_shape=True)
    return block, _report(graph, layers, chosen, errors, reasons, before, count(new_symbol, input_shape))


def _refitted(graph, rewritten, layer, rank, weight, bias, images):
    """Terms and bias fitted from the activations of the network so far to the original's outputs; their error there."""
    matrix, left_over, targets = weight.reshape(len(bias), -1), LeftOver(), Moments()
    for theirs, own in zip(graph.patches(layer, images), rewritten.patches(layer, images)):
        target = matrix @ theirs
        targets.add(target)
        left_over.add(own, target - matrix @ own)
    inputs = left_over.inputs
    unknown = matrix.shape[1]
    if inputs.positions < unknown:
        given = sum(len(batch) for batch in images)
        raise InputError(f'calibration: {given} images give {inputs.positions} positions in front of {layer.name}, of '
                         f'which each filter has {unknown} weights: give at least '
                         f'{math.ceil(given * unknown / inputs.positions)} images, better several times as many.')
    step, shift = left_over.step()
    terms = decompose(weight + step.reshape(weight.shape), rank, inputs.covariance)
    approximation = terms.tensor.reshape(matrix.shape)
    return (terms, bias + shift + (matrix + step - approximation) @ inputs.mean,
            left_over.squares_after(approximation - matrix) / targets.variation)


def _chosen_ranks(graph, layers, ranks, kernels, before, reasons):
    """Ranks by name, of the layers that are replaced; of the others, why they stay is added to ``reasons``."""
    if not layers:
        return {}
    shapes = {row.name: row.output_shape for row in before.layers}
    costs = {row.name: row.multiply_adds for row in before.layers}

    def as_layer(layer):
        source = graph.nodes[graph.nodes[layer.node]['inputs'][0][0]]['name']
        images, *_ = before.input_shape
        input_shape = shapes.get(source, before.input_shape)
        area_before, area_after = (images * math.prod(shape[2:]) for shape in (input_shape, shapes[layer.name]))
        outputs, inputs = layer.shape
        return SpatialLayer(layer.name, input_shape, shapes[layer.name], costs[layer.name], area_before * inputs
                            + area_after * (math.prod(layer.geometry['kernel']) + outputs),
                            tuple(layer.geometry.items()))

    problem = _SpatialProblem([as_layer(layer) for layer in layers], before.multiply_adds,
                              lambda: [_spectrum(kernels[layer.name][0]) for layer in layers],
                              _clock(graph, layers, before.input_shape))
    return ranks.choose_saving(problem, reasons)


def _clock(graph, wanted, input_shape):
    symbol, params = graph.result()

    def deployed(graph, layers, ranks):
        """The network with terms in place of kernels; their weights are 0, which changes no time."""
        for layer, rank in zip(layers, ranks):
            if rank is not None:
                outputs, inputs = layer.shape
                positions = math.prod(layer.geometry['kernel'])
                graph.replace_kernel(layer, Terms(np.zeros((rank, inputs)), np.zeros((rank, positions)),
                                                  np.zeros((outputs, rank)), []), np.zeros(outputs))
        return deploy(as_block(*graph.result()))

    def side_by_side(layer, rank):
        copies = SpatialGraph(*_side_by_side(layer, COPIES, graph.context))
        return deployed(copies, copies.spatial(), [rank] * COPIES)

    return Clock(input_shape, lambda: deploy(as_block(symbol, params)),
                 lambda ranks: deployed(SpatialGraph(symbol, params), wanted, ranks), side_by_side)


def _side_by_side(layer, copies, context):
    """Symbol and parameters, all 0, of convolutions of one input, whatever their stride, and of their outputs' sum."""
    data, geometry, params, outputs = mx.sym.var('data'), dict(layer.geometry), {}, []
    for number in range(copies):
        outputs.append(mx.sym.Convolution(data, num_filter=layer.outputs, name=f'layer{number}', **geometry))
        params.update({
            f'layer{number}_weight': mx.nd.zeros((layer.outputs, layer.input_shape[1], *geometry['kernel']), context),
            f'layer{number}_bias': mx.nd.zeros(layer.outputs, context)})
    return mx.sym.add_n(*outputs), params


def _spectrum(tensor):
    """What terms 1, 2, ... take off the error at the start of :func:`decompose`; the steps after it only lower it."""
    squares = [np.sort((np.linalg.svd(slices, compute_uv=False) ** 2).ravel())[::-1]
               for slices in (tensor.transpose(1, 0, 2), tensor)]
    taken_off = np.maximum(*(np.cumsum(values)[:full_rank(*tensor.shape)] for values in squares))
    return np.diff(taken_off, prepend=0) / max(taken_off[-1], np.finfo('float64').tiny)


def _report(graph, layers, chosen, errors, reasons, before, after):
    rows_before, rows_after = ({row.name: row for row in complexity.layers} for complexity in (before, after))

    def layer_report(layer):
        old = [graph.nodes[index]['name'] for index in dict.fromkeys((layer.node, layer.last))]
        new = layer.parts if layer.name in chosen else old
        costs = [sum(getattr(rows[name], field) for name in names) for field in ('params', 'multiply_adds')
                 for rows, names in ((rows_before, old), (rows_after, new))]
        return LayerReport(layer.name, layer.shape, chosen.get(layer.name), *costs, None, errors.get(layer.name),
                           reasons.get(layer.name, layer.skipped))

    return Report([layer_report(layer) for layer in layers], before, after)
