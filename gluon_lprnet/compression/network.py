"""``compress()``: depthwise separable convolutions of a network found, ranks chosen, modules fitted and put in."""
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, SymbolBlock
from mxnet.gluon.parameter import DeferredInitializationError
from tqdm import tqdm

from ..complexity import Complexity, count
from ..deployment.reparametrize import deploy
from ..graph import as_block, trace
from ..utils.errors import InputError
from .factorize import Factors, spectrum
from .latency import COPIES, Clock
from .modules import Form, Pointwise, PointwiseGraph, Replacement
from .pdp import compress_spatial
from .ranks import Layer, Problem, Ranks, as_ranks, matching
from .refit import Fit, fit_in_sequence, moments_of, replacement
from .report import LayerReport, Report

__all__ = ['compress']

METHODS = ('lpr', 'svd', 'pdp')

# Images are run so many at a time.
_BATCH = 16

Calibration = Union[mx.nd.NDArray, np.ndarray, Iterable]


def compress(net: HybridBlock, rank: Union[int, float, Ranks] = 1 / 8, layers: Optional[Sequence[str]] = None,
             exclude: Sequence[str] = (), l2_norm: bool = False, residual: bool = True,
             calibration: Optional[Calibration] = None, input_shape: Optional[tuple[int, ...]] = None,
             any_width: bool = False, method: str = 'lpr') -> tuple[SymbolBlock, Report]:
    """Turn depthwise 3x3 + pointwise pairs of equal width into LPR modules, without training.

    A pointwise convolution P, with the BatchNorm after it folded in, becomes ``P2 P1 d + s * d + b``: two bias-free
    pointwise convolutions of rank r and the residual of P's own input d, which is taken after the BatchNorm and the
    activation that the network has between D and P. The residual has a scale s and a bias b for each channel and is a
    depthwise 1x1 convolution. The best s of a trained network has both signs, so that it cannot be moved in front of
    the ReLU before it; one number for all channels, the plain identity included, is no better than no residual. See
    :func:`gluon_lprnet.compression.factorize.factorize` for P1, P2 and s.

    With calibration images the layers are fitted in sequence, those that keep their form included: each from what
    reaches it in the compressed network to what it puts out in the original (see
    :mod:`gluon_lprnet.compression.refit`). A layer whose multiply-adds its rank would not lower keeps its form.

    Parameters
    ----------
    net : HybridBlock
        Initialized, float32, with one NCHW input. It stays as it is.
    rank : int, float or Ranks, default 1/8
        What ranks are chosen by: :class:`Fraction`, :class:`Rank`, :class:`Energy`, :class:`Budget`,
        :class:`Latency` or :class:`ByLayer`, of :mod:`gluon_lprnet.compression`. A float is a fraction of the width, an
        int a number of channels.
    layers, exclude : sequence of str
        Names or patterns (``*conv3*``) of the pointwise convolutions to take (default: all) and not to take.
    l2_norm : bool, default False
        The paper's normalized form, ``c L2norm(P2 P1 d) + s * d + b``. No linear map is equal to it: c makes its root
        mean square that of ``P2 P1 d``, and the rest is left to tuning, without which it is worse.
    residual : bool, default True
        False is truncated SVD in the metric of the data, ``P2 P1 d + b``, which is faster. Of a network trained without
        it the residual takes off as much error as half a rank more, at the same multiply-adds.
    calibration : NDArray or iterable, optional
        Images as the network takes them, (N, C, H, W): an array or batches, each NDArray, ndarray, or a tuple that
        begins with one. All of them are held in memory, and their activations in front of and behind one layer.
        Without them the matrices are factorized as they are, errors counting alike in all directions, which on real
        activations is about half as good.
    input_shape : tuple of int, optional
        For which multiply-adds are counted and latency is measured (default: one calibration image, or
        (1, 3, 224, 224)).
    any_width : bool, default False
        Take other 1x1 convolutions too, those between different widths and those of networks without depthwise ones:
        as ``P2 P1 x + b``, without the residual. A fraction is of the smaller number of channels.

    method : str, default 'lpr'
        ``'svd'`` is the same as ``residual=False``. ``'pdp'`` takes the convolutions larger than 1x1 over all channels
        in place of the pairs, and makes each of them a pointwise, a depthwise and a pointwise one
        (:func:`gluon_lprnet.compression.pdp.decompose`), in sequence, too, where there are images. A rank is then a
        number of terms, and a fraction one of the terms with which nothing would be saved.

    Returns
    -------
    tuple of (SymbolBlock, gluon_lprnet.compression.Report)
        The network can be trained on; its parameters have gradients and its BatchNorms work as before.

    Raises
    ------
    InputError
        If there is no pair, a name fits none, a rank is out of range, no ranks meet the budget or the latency, or the
        calibration images give fewer positions than a layer has channels.
    """
    if l2_norm and (not residual or method == 'svd'):
        raise InputError('l2_norm=True needs residual=True: the bias of the module is with its residual.')
    if method not in METHODS:
        raise InputError(f'method {method!r} is unknown: give {", ".join(METHODS)}.')
    images = _images(calibration) if calibration is not None else []
    shape = tuple(input_shape or ((1, *images[0].shape[1:]) if images else (1, 3, 224, 224)))
    if method == 'pdp':
        if l2_norm or any_width:
            raise InputError("method 'pdp' has no l2_norm and no any_width: leave them out.")
        symbol, params = _trace(net, shape)
        return compress_spatial(symbol, params, as_ranks(rank), lambda free: _not_wanted(free, layers, exclude), images,
                                shape)
    form = Form(residual and method != 'svd', l2_norm)
    found = _find(net, shape, any_width)
    stays = _not_wanted(found.replaceable, layers, exclude)
    ranks = _choose_ranks(found, as_ranks(rank), form, images, stays)
    fits = (fit_in_sequence(found.graph, [layer for layer in found.pointwise if layer.plain], ranks, form, images)
            if images else _fit_without_images(found, ranks, form))
    symbol, params = _rewrite(found, fits)
    block = as_block(symbol, params)
    block.hybridize(static_alloc=True, static_shape=True)
    return block, _report(found, ranks, fits, stays, count(symbol, found.input_shape))


class _Found(NamedTuple):
    """A network, the original: its graph, its pointwise convolutions, and what it costs by node."""

    net: HybridBlock
    symbol: mx.sym.Symbol
    params: Mapping[str, mx.nd.NDArray]
    graph: PointwiseGraph
    pointwise: list[Pointwise]
    input_shape: tuple
    complexity: Complexity
    costs: Mapping[int, object]

    @property
    def replaceable(self):
        return [layer for layer in self.pointwise if not layer.skipped]


def _find(net, input_shape, any_width):
    symbol, params = _trace(net, input_shape)
    graph = PointwiseGraph(symbol, params)
    complexity = count(symbol, input_shape)
    costs = dict(zip((index for index, node in enumerate(graph.nodes) if node['op'] != 'null'), complexity.layers))
    found = _Found(net, symbol, params, graph, graph.pointwise(any_width), input_shape, complexity, costs)
    if not found.replaceable:
        raise InputError('nothing to compress: the network has no 1x1 convolution.' if any_width else
                         'nothing to compress: the network has no depthwise 3x3 convolution that a pointwise one of '
                         'the same width follows. To take other 1x1 convolutions, give `any_width`.')
    return found


def _not_wanted(layers, wanted, exclude):
    """From the names of the layers that are to stay, by the caller's wish, to why."""
    def names(patterns, what):
        return {layer.name for pattern in ([patterns] if isinstance(patterns, str) else patterns)
                for layer in matching(layers, pattern, what)}

    taken = {layer.name for layer in layers} if wanted is None else names(wanted, 'layers')
    excluded = names(exclude, 'exclude')
    return {layer.name: 'excluded' if layer.name in excluded else 'not among the layers to compress'
            for layer in layers if layer.name in excluded or layer.name not in taken}


def _choose_ranks(found, ranks, form, images, stays):
    """Ranks by name, of the layers that are replaced; of the others, why they stay is added to ``stays``."""
    wanted = [layer for layer in found.replaceable if layer.name not in stays]
    if not wanted:
        return {}

    def spectra():
        if images:
            moments = moments_of(found.graph, [layer for layer in found.pointwise if layer.plain],
                                 [layer.name for layer in wanted], images)
            return [spectrum(found.graph.folded(layer)[0], moments[layer.name].covariance) for layer in wanted]
        return [spectrum(found.graph.folded(layer)[0]) for layer in wanted]

    problem = Problem([Layer(layer.name, layer.shape[1], found.costs[layer.node].output_shape,
                             found.costs[layer.node].multiply_adds, form.of(layer).residual) for layer in wanted],
                      found.complexity.multiply_adds, spectra, _clock(found, wanted, form))
    return ranks.choose_saving(problem, stays)


def _fit_without_images(found, ranks, form):
    fits = {}
    for layer in tqdm([layer for layer in found.replaceable if layer.name in ranks], 'factorizing', leave=False,
                      disable=None):
        weight, bias = found.graph.folded(layer)
        new = replacement(weight, bias, ranks[layer.name], form.of(layer), np.zeros(weight.shape[1]), None)
        fits[layer.name] = Fit(new, None, new.factors.error)
    return fits


def _rewrite(found, fits):
    """Symbol and parameters with the new layers in the places of the old ones."""
    graph = PointwiseGraph(found.symbol, found.params)
    for layer in found.pointwise:
        new = fits[layer.name].new if layer.name in fits else None
        if isinstance(new, Replacement):
            graph.replace(layer, new)
        elif new is not None:
            graph.refit(layer, new)
    return graph.result()


def _report(found, ranks, fits, stays, after):
    costs_after = {layer.name: layer for layer in after.layers}

    def layer_report(layer):
        old = [found.costs[index] for index in dict.fromkeys((layer.node, layer.last))]
        parts = [f'{layer.stem}_{part}' for part in ('p1', 'p2', 'residual')] if layer.name in ranks else [
            row.name for row in old]
        new = [costs_after[part] for part in parts if part in costs_after]
        costs = (sum(getattr(row, field) for row in rows)
                 for field in ('params', 'multiply_adds') for rows in (old, new))
        fit = fits.get(layer.name, Fit(None, None, None))
        return LayerReport(layer.name, layer.shape, ranks.get(layer.name), *costs, fit.error_before, fit.error,
                           stays.get(layer.name, layer.skipped))

    return Report([layer_report(layer) for layer in found.pointwise], found.complexity, after)


def _clock(found, wanted, form):
    def deployed(graph, layers, ranks):
        """The network with modules of these ranks in place of layers; their weights are 0, which changes no time."""
        for layer, rank in zip(layers, ranks):
            if rank is not None:
                (outputs, inputs), own = layer.shape, form.of(layer)
                factors = Factors(np.zeros((rank, inputs)), np.zeros((outputs, rank)), np.zeros(outputs), 0.0)
                graph.replace(layer, Replacement(factors, np.zeros(outputs), 1.0 if own.l2_norm else None,
                                                 own.residual))
        return deploy(as_block(*graph.result()))

    def in_series(layer, rank):
        inputs, outputs = layer.input_shape[1], layer.outputs
        graph = PointwiseGraph(*_pointwise_in_series(inputs, outputs, COPIES, found.graph.context))
        layers = [replace(layer, pair=inputs == outputs) for layer in graph.pointwise(any_width=True)]
        return deployed(graph, layers, [rank] * COPIES)

    return Clock(found.input_shape, lambda: deploy(found.net),
                 lambda ranks: deployed(PointwiseGraph(found.symbol, found.params), wanted, ranks), in_series)


def _pointwise_in_series(inputs, outputs, copies, context):
    """Symbol and parameters, all 0, of 1x1 convolutions with a bias, there and back between two widths."""
    symbol, params = mx.sym.var('data'), {}
    for number in range(copies):
        source, width = (outputs, inputs) if number % 2 else (inputs, outputs)
        symbol = mx.sym.Convolution(symbol, kernel=(1, 1), num_filter=width, name=f'layer{number}')
        params.update({f'layer{number}_weight': mx.nd.zeros((width, source, 1, 1), context),
                       f'layer{number}_bias': mx.nd.zeros(width, context)})
    return symbol, params


def _images(calibration):
    """Batches of images, in arrays of their own: record iterators write the next batch into the memory of the last."""
    batches = [calibration] if isinstance(calibration, (mx.nd.NDArray, np.ndarray)) else calibration
    images = []
    for batch in tqdm(batches, 'reading images', unit='batch', leave=False, disable=None):
        data = batch[0] if isinstance(batch, (tuple, list)) else batch
        data = mx.nd.array(data) if isinstance(data, np.ndarray) else data.astype('float32')
        # Here, since a ReLU would make 0 of NaN.
        if not np.isfinite(data.asnumpy()).all():
            raise InputError('calibration: images are NaN or infinite.')
        images += [data[begin:begin + _BATCH] for begin in range(0, len(data), _BATCH)]
    if not images:
        raise InputError('calibration: there are no images.')
    return images


def _trace(net, input_shape):
    try:
        return trace(net)
    except DeferredInitializationError:
        # Shapes that the first images give, as in GluonCV's networks.
        context = next(iter(net.collect_params().values())).list_ctx()[0]
        net(mx.nd.zeros(input_shape, ctx=context))
        return trace(net)
