"""``compress()``: finds depthwise and pointwise pairs in a symbol graph and rewrites them as LPR modules."""
import itertools
import json
import math
from fnmatch import fnmatchcase
from typing import NamedTuple, Optional

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon.parameter import DeferredInitializationError
from tqdm import tqdm

from ..blocks import resolve_rank
from ..complexity import Complexity, count
from ..deployment.reparametrize import deploy
from ..graph import SymbolGraph, as_block, attributes, trace
from ..utils.errors import InputError
from ..utils.text import render_table
from .factorize import Factors, factorize, ranks_within, spectrum
from .latency import COPIES, ranks_by_latency

__all__ = ['compress', 'reestimate_statistics', 'Report', 'LayerReport']

# Between the depthwise convolution and the pointwise one, element by element.
_BETWEEN = ('BatchNorm', 'Activation', 'clip', 'relu', 'LeakyReLU')

# What ranks can be chosen by, in a dictionary of one of these alone: its largest value, and what it is.
_TARGETS = {
    'energy': (1, 'a share above 0 and up to 1'),
    'budget': (math.inf, 'a positive number of multiply-adds, or a fraction'),
    'latency': (1, "a share of the original's, above 0 and up to 1"),
    'milliseconds': (math.inf, 'a positive number'),
}


class LayerReport(NamedTuple):
    """One pointwise convolution, with the BatchNorm that is folded into it.

    ``rank`` and ``error`` are None where it stays, and ``skipped`` then says why; ``error`` is the mean squared error
    of its output, relative, on the calibration images (without them: of the matrix).
    """

    name: str
    shape: tuple
    rank: Optional[int]
    params_before: int
    params_after: int
    multiply_adds_before: int
    multiply_adds_after: int
    error: Optional[float]
    skipped: Optional[str]


class Report(NamedTuple):
    """What :func:`compress` did: a LayerReport for each pointwise convolution, and the networks' Complexity.

    ``milliseconds`` are those of the original and of the network where the ranks were chosen by latency, else None.
    """

    layers: list
    before: Complexity
    after: Complexity
    milliseconds: Optional[tuple] = None

    def table(self, format='text'):
        """The layers and the totals, as text or Markdown."""
        rows = [(layer.name, '{1} -> {0}'.format(*layer.shape), layer.rank, layer.params_before, layer.params_after,
                 layer.multiply_adds_before, layer.multiply_adds_after,
                 None if layer.error is None else f'{layer.error:.4f}', layer.skipped) for layer in self.layers]
        rows.append(('whole network', None, None, self.before.params, self.after.params, self.before.multiply_adds,
                     self.after.multiply_adds, None, None))
        return render_table(('layer', 'width', 'rank', 'parameters', 'after', 'multiply-adds', 'after',
                             'relative error', 'stays because'), rows, format)


def compress(net, rank=1 / 8, layers=None, exclude=(), l2_norm=False, residual=True, calibration=None,
             input_shape=None, only_cheaper=True):
    """Turn depthwise 3x3 + pointwise pairs of equal width into LPR modules, by closed form.

    A pointwise convolution P, with the BatchNorm after it folded in, becomes ``P2 P1 d + s * d + b``: two bias-free
    pointwise convolutions of rank r and the residual of P's own input d, which is taken after the BatchNorm and the
    activation that the network has between D and P. The residual has a scale s and a bias b for each channel and is a
    depthwise 1x1 convolution. The best s of a trained network has both signs, so that it cannot be moved in front of
    the ReLU before it; one number for all channels, the plain identity included, is no better than no residual. See
    :func:`gluon_lprnet.compression.factorize.factorize` for P1, P2 and s.

    Follow it with :func:`reestimate_statistics` on the same images.

    Parameters
    ----------
    net : HybridBlock
        Initialized, float32, with one NCHW input. It stays as it is.
    rank : int, float or dict, default 1/8
        A number of channels, or a fraction of the width (see :func:`gluon_lprnet.blocks.resolve_rank`);
        ``{'energy': e}``: the lowest rank that keeps the share e of the output's mean square; ``{'budget': b}``: the
        ranks with the least sum of relative errors for which the network has at most b multiply-adds (a float up to 1
        is a fraction of what it has); ``{'latency': l}`` or ``{'milliseconds': t}``: likewise, for which it takes at
        most the share l of the original's time, or t, measured here and now in the deployed form (see
        :func:`gluon_lprnet.compression.latency.median_milliseconds`); or ranks by layer, from names or patterns, of
        which the last that fits counts: other layers stay.
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
        begins with one. Their covariance in front of each P is the metric. Without them errors count alike in all
        directions, which on real activations is about half as good.
    input_shape : tuple of int, optional
        For which multiply-adds are counted and latency is measured (default: one calibration image, or
        (1, 3, 224, 224)).
    only_cheaper : bool, default True
        Replace only where multiply-adds fall.

    Returns
    -------
    tuple of (SymbolBlock, Report)
        The network can be trained on; its parameters have gradients and its BatchNorms work as before.

    Raises
    ------
    InputError
        If there is no pair, a name fits none, a rank is out of range, no ranks meet the budget or the latency, or the
        calibration images give fewer positions than a layer has channels.
    """
    if l2_norm and not residual:
        raise InputError('l2_norm=True needs residual=True: the bias of the module is with its residual.')
    batches = _Batches(calibration, 'calibrating') if calibration is not None else None
    input_shape = tuple(input_shape or ((1, *batches.shape[1:]) if batches else (1, 3, 224, 224)))
    symbol, params = _trace(net, input_shape)
    network = _Modules(symbol, params)
    before = count(symbol, input_shape)
    costs = dict(zip((index for index, node in enumerate(network.nodes) if node['op'] != 'null'), before.layers))
    candidates = network.pointwise()
    pairs = [pair for pair in candidates if not pair.skipped]
    if not pairs:
        raise InputError('nothing to compress: the network has no depthwise 3x3 convolution that a pointwise one of '
                         'the same width follows.')
    ranks_by_layer = _ranks_by_layer(rank, pairs)
    skipped = _not_wanted(pairs, layers, exclude, ranks_by_layer)
    wanted = [pair for pair in pairs if pair.name not in skipped]
    statistics = _statistics(symbol, params, wanted, batches) if batches and wanted else {}
    folded = {pair.name: network.folded(pair) for pair in wanted}
    for name, values in folded.items():
        if not all(np.isfinite(value).all() for value in values):
            raise InputError(f'the parameters of {name} and its BatchNorm are NaN or infinite: take an earlier '
                             'checkpoint.')

    def cost(pair, rank):
        return math.prod(costs[pair.index].output_shape) * (2 * rank + residual)

    def covariance(pair):
        return statistics[pair.name][1] if statistics else None

    def timed(graph, pairs, ranks):
        return _deployed_form(graph, pairs, ranks, l2_norm, residual)

    def timed_layers(shape, rank):
        graph = _Modules(*_pointwise_in_series(shape[1], COPIES, _context(params)))
        return timed(graph, graph.pointwise(), [rank] * COPIES)

    milliseconds = None
    if ranks_by_layer is not None:
        ranks = [ranks_by_layer[pair.name] for pair in wanted]
    else:
        spectra = [spectrum(folded[pair.name][0], covariance(pair)) for pair in wanted]
        if 'energy' in rank:
            ranks = [_least_rank(shares, rank['energy']) for shares in spectra]
        elif 'budget' in rank:
            fixed = before.multiply_adds - sum(costs[pair.index].multiply_adds for pair in wanted)
            ranks = ranks_within(_multiply_adds(rank['budget'], before) - fixed, spectra, [
                {None: costs[pair.index].multiply_adds, **{r: cost(pair, r) for r in range(1, pair.shape[0] + 1)}}
                for pair in wanted])
        else:
            ranks, milliseconds = ranks_by_latency(
                rank, spectra, [costs[pair.index].output_shape for pair in wanted], input_shape, deploy(net),
                lambda ranks: timed(_Modules(symbol, params), wanted, ranks), timed_layers)
    errors = {}
    for pair, chosen in zip(tqdm(wanted, 'factorizing', leave=False, disable=None), ranks):
        if chosen is None:
            skipped[pair.name] = f'the {next(iter(rank))} holds it as it is'
        elif only_cheaper and cost(pair, chosen) >= costs[pair.index].multiply_adds:
            skipped[pair.name] = f'rank {chosen} would not lower its multiply-adds'
        else:
            weight, bias = folded[pair.name]
            mean = statistics[pair.name][0] if statistics else np.zeros(len(weight))
            factors = factorize(weight, chosen, covariance(pair), residual)
            network.replace(pair, factors, bias + (weight - factors.matrix) @ mean,
                            _root_mean_square(factors, mean, covariance(pair)) if l2_norm else None, residual)
            errors[pair.name] = chosen, factors.error

    symbol, params = network.result()
    after = count(symbol, input_shape)
    block = as_block(symbol, params)
    block.hybridize(static_alloc=True, static_shape=True)
    counted = {layer.name: layer for layer in after.layers}
    return block, Report([_layer_report(pair, skipped.get(pair.name, pair.skipped), costs, counted, errors)
                          for pair in candidates], before, after, milliseconds)


def reestimate_statistics(net, batches):
    """Replace the running means and variances of BatchNorm by those that the network has on ``batches``.

    The BatchNorms behind compressed layers get other activations than those that their statistics are of; this
    brings back a good part of the accuracy before any tuning.

    Parameters
    ----------
    net : HybridBlock
        As for :func:`compress`; changed in place.
    batches : iterable
        As ``calibration`` of :func:`compress`; best of the size that the network was trained with.
    """
    symbol, params = trace(net)
    graph = json.loads(symbol.tojson())
    for node in graph['nodes']:
        if node['op'] == 'BatchNorm':
            # The running statistics are then those of the last batch alone.
            node['attrs'] = {**node.get('attrs', {}), 'momentum': '0'}
    block = as_block(mx.sym.load_json(json.dumps(graph)), params)
    sums = dict.fromkeys(symbol.list_auxiliary_states(), 0.0)
    images = 0
    for data in _Batches(batches, 'estimating statistics'):
        with autograd.record():
            outputs = block(data.as_in_context(_context(params)))
        # MXNet updates running statistics in the backward pass.
        autograd.backward(outputs)
        images += len(data)
        for name in sums:
            sums[name] += len(data) * block.collect_params()[name].data().asnumpy().astype('float64')
    for name, total in sums.items():
        net.collect_params()[name].set_data(mx.nd.array(total / images))


def _context(params):
    return next(iter(params.values())).context


def _trace(net, input_shape):
    try:
        return trace(net)
    except DeferredInitializationError:
        # Shapes that the first images give, as in GluonCV's networks.
        context = next(iter(net.collect_params().values())).list_ctx()[0]
        net(mx.nd.zeros(input_shape, ctx=context))
        return trace(net)


class _Pair(NamedTuple):
    """A pointwise convolution: its node, that of its BatchNorm if it has one to fold, and why it cannot be replaced."""

    name: str
    index: int  # type: ignore[assignment]  # a field, not the method of tuples
    norm: Optional[int]
    shape: tuple
    skipped: Optional[str]


class _Modules(SymbolGraph):
    """New nodes are added at the end, to which MXNet gives their place when it reads the graph."""

    def pointwise(self):
        """A _Pair for each 1x1 convolution over all channels."""
        return [self._pair(index, node) for index, node in enumerate(self.nodes)
                if node['op'] == 'Convolution' and attributes(node, kernel=(), num_group=1) == [(1, 1), 1]
                and self.input_name(node, 1) in self.params]

    def folded(self, pair):
        """Weight (m, m) and bias (m,) of the pointwise convolution with its BatchNorm."""
        convolution = self.nodes[pair.index]
        if pair.norm is None:
            weight, bias = self.value(convolution, 1), self.bias(convolution) + np.zeros(pair.shape[0])
        else:
            weight, bias = self.folded_weights(convolution, self.nodes[pair.norm])
        return weight[:, :, 0, 0], bias

    def replace(self, pair, factors, bias, norm_scale, residual):
        """Put the LPR module in the place of the pointwise convolution and of the BatchNorm that is folded."""
        data = self.nodes[pair.index]['inputs'][0]
        stem = _stem(pair)
        p1 = self._convolution(f'{stem}_p1', data, factors.p1)
        if not residual:
            self._put(pair, self._convolution(f'{stem}_p2', p1, factors.p2, bias))
            return
        low_rank = self._convolution(f'{stem}_p2', p1, factors.p2)
        if norm_scale is not None:
            low_rank = self._add('L2Normalization', f'{stem}_l2norm', [low_rank], mode='channel')
            low_rank = self._add('_mul_scalar', f'{stem}_l2norm_scale', [low_rank], scalar=norm_scale)
        scaled = self._convolution(f'{stem}_residual', data, factors.scale[:, None], bias, groups=len(bias))
        self._put(pair, self._add('elemwise_add', f'{stem}_sum', [low_rank, scaled]))

    def _pair(self, index, node):
        weight = self.params[self.input_name(node, 1)]
        shape = weight.shape[:2]
        source = self.nodes[node['inputs'][0][0]]
        while source['op'] in _BETWEEN:
            source = self.nodes[source['inputs'][0][0]]
        depthwise = (source['op'] == 'Convolution' and attributes(source, kernel=(), num_group=1, num_filter=0)
                     == [(3, 3), shape[1], shape[1]])
        skipped = ('its input and output differ in width' if shape[0] != shape[1] else
                   'no depthwise 3x3 convolution before it' if not depthwise else
                   'its weight is used elsewhere too' if not self.has_own_parameters(node) else
                   'its stride, padding or layout is not plain' if not _is_plain(node) else None)
        return _Pair(node['name'], index, self._norm_after(index), shape, skipped)

    def _norm_after(self, index):
        for number, node in enumerate(self.nodes):
            if (node['op'] == 'BatchNorm' and node['inputs'][0][0] == index and self.uses[index] == 1
                    and attributes(node, axis=1) == [1] and self.has_own_parameters(node)):
                return number
        return None

    def _convolution(self, name, data, matrix, bias=None, groups=1):
        """A 1x1 convolution with the weight ``matrix``, (outputs, inputs of a group)."""
        inputs = [data, self._variable(f'{name}_weight', matrix[:, :, None, None])]
        if bias is not None:
            inputs.append(self._variable(f'{name}_bias', bias))
        return self._add('Convolution', name, inputs, kernel=(1, 1), num_filter=len(matrix), num_group=groups,
                         no_bias=bias is None)

    def _variable(self, name, value):
        self.params[name] = mx.nd.array(value, ctx=_context(self.params), dtype='float32')
        return self._add('null', name, [], __shape__=value.shape)

    def _add(self, operator, name, inputs, **attributes):
        self.nodes.append({'op': operator, 'name': name, 'inputs': inputs,
                           'attrs': {key: str(value) for key, value in attributes.items()}})
        return [len(self.nodes) - 1, 0, 0]

    def _put(self, pair, entry):
        """Whoever takes the output of the pair's last node takes that of ``entry``, the node added last."""
        self.nodes[pair.index if pair.norm is None else pair.norm] = self.nodes.pop(entry[0])


def _deployed_form(graph, pairs, ranks, l2_norm, residual):
    """The network with modules in place of pairs, to be timed: their weights are 0, which does not change that."""
    for pair, rank in zip(pairs, ranks):
        if rank is not None:
            width = pair.shape[0]
            factors = Factors(np.zeros((rank, width)), np.zeros((width, rank)), np.zeros(width), 0.0)
            graph.replace(pair, factors, np.zeros(width), 1.0 if l2_norm else None, residual)
    return deploy(as_block(*graph.result()))


def _pointwise_in_series(width, copies, context):
    """Symbol and parameters, all 0, of 1x1 convolutions with a bias."""
    symbol, params = mx.sym.var('data'), {}
    for number in range(copies):
        symbol = mx.sym.Convolution(symbol, kernel=(1, 1), num_filter=width, name=f'layer{number}')
        params.update({f'layer{number}_weight': mx.nd.zeros((width, width, 1, 1), context),
                       f'layer{number}_bias': mx.nd.zeros(width, context)})
    return symbol, params


def _is_plain(node):
    stride, dilate, pad, layout = attributes(node, stride=(1, 1), dilate=(1, 1), pad=(0, 0), layout='None')
    return (stride, dilate, pad) == ((1, 1), (1, 1), (0, 0)) and layout in ('None', 'NCHW')


def _stem(pair):
    return pair.name[:-len('_fwd')] if pair.name.endswith('_fwd') else pair.name


def _ranks_by_layer(rank, pairs):
    """Ranks by the full name of a layer, or None where a target chooses them, which is checked here."""
    if not isinstance(rank, dict):
        resolve_rank(rank, max(pair.shape[0] for pair in pairs))
        return {pair.name: resolve_rank(min(rank, pair.shape[0]), pair.shape[0]) for pair in pairs}
    if len(rank) == 1 and set(rank) <= set(_TARGETS):
        (kind, value), = rank.items()
        largest, meaning = _TARGETS[kind]
        if not 0 < value <= largest:
            raise InputError(f'rank {rank}: {kind} is {meaning}.')
        return None
    by_layer = {}
    for pattern, value in rank.items():
        for pair in _matching(pairs, pattern, 'rank'):
            by_layer[pair.name] = resolve_rank(value, pair.shape[0])
    return by_layer


def _least_rank(shares, energy):
    # Of equal rounding errors in a sum of 1.
    return min(len(shares), int(np.searchsorted(np.cumsum(shares), energy - 1e-12)) + 1)


def _multiply_adds(budget, network):
    return budget * network.multiply_adds if isinstance(budget, float) and budget <= 1 else budget


def _matching(pairs, pattern, what):
    found = [pair for pair in pairs if fnmatchcase(pair.name, pattern)]
    if not found:
        raise InputError(f'{what}: {pattern!r} is the name of no layer that can be replaced; there are '
                         f'{", ".join(pair.name for pair in pairs)}.')
    return found


def _not_wanted(pairs, layers, exclude, ranks_by_layer):
    """From the names of the pairs that are to stay, by the caller's wish, to why."""
    def names(patterns, what):
        return {pair.name for pattern in ([patterns] if isinstance(patterns, str) else patterns)
                for pair in _matching(pairs, pattern, what)}

    taken = {pair.name for pair in pairs} if layers is None else names(layers, 'layers')
    excluded = names(exclude, 'exclude')
    return {pair.name: 'excluded' if pair.name in excluded else 'not among the layers to compress' for pair in pairs
            if pair.name in excluded or pair.name not in taken
            or ranks_by_layer is not None and pair.name not in ranks_by_layer}


class _Batches:
    """Batches of images, to be gone through once, with a progress bar; ``shape`` is that of the first."""

    def __init__(self, images, title):
        batches = [images] if isinstance(images, (mx.nd.NDArray, np.ndarray)) else images
        self._title = title
        self._count = len(batches) if hasattr(batches, '__len__') else None
        self._batches = iter(batches)
        # One at a time: MXNet's record iterators write the next batch into the memory of the last.
        self._first = next(self._batches, None)
        if self._first is None:
            raise InputError(f'{title}: there are no images.')
        self.shape = self._data(self._first).shape

    def __iter__(self):
        for batch in tqdm(itertools.chain([self._first], self._batches), self._title, self._count, unit='batch',
                          leave=False, disable=None):
            yield self._data(batch)

    @staticmethod
    def _data(batch):
        data = batch[0] if isinstance(batch, (tuple, list)) else batch
        return mx.nd.array(data) if isinstance(data, np.ndarray) else data.astype('float32', copy=False)


def _statistics(symbol, params, pairs, batches):
    """Mean (m,) and covariance (m, m) in front of each pair's pointwise convolution, by its name."""
    internals = symbol.get_internals()
    inputs = mx.sym.Group([internals[pair.name + '_output'].get_children()[0] for pair in pairs])
    names = set(inputs.list_inputs())
    block = as_block(inputs, {name: value for name, value in params.items() if name in names})
    images = 0
    positions = [0] * len(pairs)
    sums = [np.zeros(pair.shape[0]) for pair in pairs]
    squares = [np.zeros(pair.shape) for pair in pairs]
    for batch in batches:
        # Here, since a ReLU would make 0 of NaN.
        if not np.isfinite(batch.asnumpy()).all():
            raise InputError('calibration: images are NaN or infinite.')
        images += len(batch)
        outputs = block(batch.as_in_context(_context(params)))
        for number, output in enumerate(outputs if isinstance(outputs, (list, tuple)) else [outputs]):
            d = output.asnumpy().astype('float64')
            d = d.transpose(1, 0, 2, 3).reshape(d.shape[1], -1)
            positions[number] += d.shape[1]
            sums[number] += d.sum(axis=1)
            squares[number] += d @ d.T
    result = {}
    for pair, total, mean, square in zip(pairs, positions, sums, squares):
        if total < len(mean):
            raise InputError(f'calibration: {images} images give {total} positions in front of {pair.name}, which has '
                             f'{len(mean)} channels: give at least {math.ceil(len(mean) * images / total)} images, '
                             'better several times as many.')
        mean = mean / total
        result[pair.name] = mean, square / total - np.outer(mean, mean)
    return result


def _root_mean_square(factors, mean, covariance):
    product = factors.p2 @ factors.p1
    covariance = np.eye(len(mean)) if covariance is None else covariance
    return math.sqrt(max(np.sum((product @ (covariance + np.outer(mean, mean))) * product), 0))


def _layer_report(pair, skipped, costs, counted, errors):
    old = [costs[index] for index in (pair.index, pair.norm) if index is not None]
    stem = _stem(pair)
    new = old if skipped else [counted[f'{stem}_{part}'] for part in ('p1', 'p2', 'residual')
                               if f'{stem}_{part}' in counted]
    rank, error = errors.get(pair.name, (None, None))
    return LayerReport(pair.name, pair.shape, rank, *(sum(getattr(layer, field) for layer in rows)
                                                      for field in ('params', 'multiply_adds') for rows in (old, new)),
                       error, skipped)
