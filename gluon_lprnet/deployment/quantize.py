"""INT8: post-training quantization by MXNet and by ONNX Runtime, calibrated on real images.

Both get the deployed form and the same images. A *layer* is a convolution or a fully connected operator with the
operators without weights that follow it (activation, residual sum, pooling), named after its weight without
``_weight``. So a layer has the same name in both runtimes, and a layer left in float32 includes whatever would round
or clip its output.

The L2 normalization of the r channels stays in float32: MXNet has no 8-bit operator for it, and 8 bits cannot hold
both a sum of squares and its epsilon.

The measure is the noise that 8 bits add to the network's outputs, as a share of the variance of these outputs over the
calibration images: 0.01 is a signal-to-noise ratio of 20 dB. It means the same for classes and for landmarks.

In ONNX Runtime a layer may be slower in 8 bits than in float32: 8-bit depthwise convolutions, and layers between
normalizations, round whose neighbors values are converted. Which ones these are depends on the processor and the width,
so :func:`slow_layers` measures it, and they stay in float32.
"""
import contextlib
import copy
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.contrib import quantization
from mxnet.gluon import HybridBlock
from mxnet.test_utils import environment
from tqdm import tqdm

from ..formats.onnx_files import open_session, require_onnx
from ..graph import as_block
from ..utils.errors import InputError
from ..utils.timing import interleaved_milliseconds
from .onnx import write_onnx
from .operators import BACKEND, load_library

__all__ = ['CALIBRATIONS', 'LayerNoise', 'LibraryQuantizer', 'MXNetQuantizer', 'OnnxQuantizer', 'Quantized',
           'mxnet_function', 'noise_of', 'onnx_function', 'outputs_of', 'quantize', 'slow_layers']

CALIBRATIONS = ('naive', 'entropy')

_BATCH_SIZE = 64
# Images on which each layer is measured alone: ranking the layers needs fewer than the noise of the network.
_IMAGES_ALONE = 128

# Times up to this share of the shortest are taken for as short: noise makes as much.
_AS_FAST = 1.02
_ROUNDS = 20

# MXNet's number for the type.
_INT8 = '5'
_LAYERS = ('Convolution', 'FullyConnected')
_SUBGRAPHS = ('_sg_mkldnn_conv', '_sg_mkldnn_fully_connected')
_ONNX_LAYERS = ('Conv', 'Gemm')
_ONNX_OPERATORS = [*_ONNX_LAYERS, 'Add', 'AveragePool', 'Clip', 'Concat', 'GlobalAveragePool', 'MaxPool', 'Relu',
                   'Reshape', 'Split', 'Transpose']


class LayerNoise(NamedTuple):
    """A layer of a quantized network.

    Attributes
    ----------
    name : str
    noise : float or None
        Of the network with only this layer quantized; None if it was not measured.
    left_out : str or None
        The reason it stays in float32: ``--exclude``, ``time``, ``noise``, or ``input``, which is one of several
        outputs; None if it is quantized.
    """

    name: str
    noise: Optional[float]
    left_out: Optional[str]


class Quantized(NamedTuple):
    """A quantized network, and what :func:`quantize` measured.

    Attributes
    ----------
    model : object
        What the quantizer's ``quantize`` returns.
    noise : float
    layers : list of LayerNoise
        In the order of the network.
    """

    model: object
    noise: float
    layers: list[LayerNoise]


class MXNetQuantizer:
    """MXNet's quantization, for oneDNN's fused operators on the CPU.

    ``quantize_graph`` and ``calib_graph`` calibrate once here for many choices of layers.

    Parameters
    ----------
    symbol : Symbol
        With the input ``data``, NCHW.
    params : dict of str to NDArray
        Its parameters and auxiliary states.
    images : ndarray (N, channels, height, width) float32
        To calibrate on.
    calibration : str
        One of ``CALIBRATIONS``: the range of a tensor is that of its values, or the one with the least
        Kullback-Leibler divergence.

    Attributes
    ----------
    layers : dict of str to list of str
        The nodes of each layer, in the order of the network.
    floating : callable
        The network in float32, in its fastest form in this runtime; from images to outputs, ndarrays.
    """

    def __init__(self, symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray], images: np.ndarray,
                 calibration: str) -> None:
        self.floating = mxnet_function(as_block(symbol.get_backend_symbol('MKLDNN'), params))
        self._arguments, self._auxiliary = _split(symbol, params)
        self._fused = symbol.get_backend_symbol('MKLDNN_QUANTIZE')
        nodes = json.loads(self._fused.tojson())['nodes']
        names = [node['name'] for node in nodes]
        self.layers = _layers(
            (node['name'], node['op'] in _SUBGRAPHS, [names[index] for index, *_ in node['inputs']], [node['name']])
            for node in nodes if node['op'] != 'null')
        # This covers more tensors than the fully quantized network needs: leaving layers out adds borders between
        # float32 and 8 bits.
        tensors = [name for name in self._fused.get_internals().list_outputs() if name not in params]
        self._ranges = SimpleNamespace(min_max_dict=_mxnet_ranges(self._fused, params, images, calibration, tensors))

    def quantize(self, layers: Collection[str]) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
        """Symbol and parameters, including auxiliary states, with the ``layers`` (names) in 8 bits."""
        symbol, _, auxiliary, ranges = quantization.quantize_graph(
            self._fused, self._arguments, self._auxiliary, excluded_sym_names=_other_nodes(self.layers, layers),
            # 'auto' takes uint8 where no value is negative; 'int8' with entropy calibration gives a network that
            # fails when it runs, since a convolution fused with a ReLU writes uint8 in any case.
            calib_mode='customize', LayerOutputCollector=self._ranges, quantized_dtype='auto', logger=None)
        symbol, arguments, auxiliary = quantization.calib_graph(
            symbol, self._arguments, auxiliary, ranges, calib_mode='customize', quantized_dtype='auto', logger=None)
        return symbol.get_backend_symbol('MKLDNN_QUANTIZE'), {**arguments, **auxiliary}

    @staticmethod
    def function(model: Any) -> Callable[[np.ndarray], np.ndarray]:
        """What :meth:`quantize` returned, as a function from images to outputs, ndarrays."""
        return mxnet_function(as_block(*model))


class LibraryQuantizer:
    """8 bits for the operator library (:mod:`gluon_lprnet.deployment.operators`), which computes them as one operator.

    The graph says in operators of MXNet what is in 8 bits: the input of each layer goes through
    ``_contrib_quantize_v2`` and ``_contrib_dequantize``, as uint8 where the calibration finds no value below 0 and
    else as int8, and its weight is ``broadcast_mul(Cast(int8), scales of channels)``. So the parameters are of 8 bits,
    and stock MXNet computes the same before the backend takes the graph, but for the roundings of float32.

    Parameters
    ----------
    symbol, params, images, calibration
        As for :class:`MXNetQuantizer`.

    Attributes
    ----------
    layers, floating
        As for :class:`MXNetQuantizer`.
    in_float : set of str
        Those of the layers that stay in float32: they take one of several outputs, as of ShuffleNetV2's split, or what
        the network computes twice.

    Raises
    ------
    InputError
        If the library cannot be built.
    """

    def __init__(self, symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray], images: np.ndarray,
                 calibration: str) -> None:
        load_library()
        self._symbol, self._params = symbol, dict(params)
        self._images = images[:1]
        self.floating = mxnet_function(as_block(self._partitioned(symbol, params), params))
        nodes = json.loads(symbol.tojson())['nodes']
        self.layers: dict[str, list[str]] = {}
        self.in_float: set[str] = set()
        sources, outputs = [], set(symbol.get_internals().list_outputs())
        for node in nodes:
            if node['op'] in _LAYERS:
                layer = nodes[node['inputs'][1][0]]['name'][:-len('_weight')]
                self.layers.setdefault(layer, []).append(node['name'])
                source = _output_of(nodes[_source(nodes, node)])
                if source in outputs:
                    sources.append(source)
                else:
                    self.in_float.add(layer)
        self._ranges = _mxnet_ranges(symbol, params, images, calibration, sources)
        # MXNet computes what is there twice only once, and says nothing of the other.
        for layer, names in self.layers.items():
            if any(_output_of(nodes[_source(nodes, node)]) not in self._ranges
                   for node in nodes if node['name'] in names):
                self.in_float.add(layer)

    def quantize(self, layers: Collection[str]) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
        """Symbol, for the library, and parameters with the ``layers`` (names) in 8 bits."""
        symbol, params = self.standard(layers)
        return self._partitioned(symbol, params), params

    def _partitioned(self, symbol, params):
        """The symbol with the parts that the library computes. MXNet needs the arrays where one has two outputs."""
        arguments, auxiliary = _split(symbol, params)
        mx.nd.waitall()
        return symbol.optimize_for(BACKEND, {**arguments, 'data': mx.nd.array(self._images)}, auxiliary)

    def standard(self, layers: Collection[str]) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
        """The same in MXNet's own operators."""
        chosen = {name for layer in layers for name in self.layers[layer]}
        old, params = json.loads(self._symbol.tojson()), dict(self._params)
        sources = {_source(old['nodes'], node) for node in old['nodes'] if node['name'] in chosen}
        weights = {node['inputs'][1][0] for node in old['nodes'] if node['name'] in chosen}
        nodes: list[dict[str, Any]] = []
        # By its number in the old graph, the number of the node that gives what a node gave.
        place: list[int] = []

        def add(op, name, inputs, **attrs):
            nodes.append({'op': op, 'name': name, 'attrs': attrs, 'inputs': [[*entry, 0] for entry in inputs]})
            return len(nodes) - 1

        for index, node in enumerate(old['nodes']):
            nodes.append({**node, 'inputs': [[place[source], *rest] for source, *rest in node['inputs']]})
            found, name = len(nodes) - 1, node['name']
            if index in sources:
                entries = [(found, 0)]
                quantize = add('_contrib_quantize_v2', f'{name}_quantize', entries, **self._format(node))
                found = add('_contrib_dequantize', f'{name}_dequantize', [(quantize, part) for part in range(3)])
            elif index in weights:
                params[name], params[f'{name}_scale'] = _by_channel(params[name])
                nodes[found]['attrs'] = {'__dtype__': _INT8, '__shape__': str(params[name].shape)}
                scale = add('null', f'{name}_scale', [], __shape__=str(params[f'{name}_scale'].shape))
                cast = add('Cast', f'{name}_cast', [(found, 0)], dtype='float32')
                found = add('broadcast_mul', f'{name}_scaled', [(cast, 0), (scale, 0)])
            place.append(found)
        heads = [[place[index], *rest] for index, *rest in old['heads']]
        variables = [index for index, node in enumerate(nodes) if node['op'] == 'null']
        graph = {'nodes': nodes, 'arg_nodes': variables, 'heads': heads, 'attrs': old['attrs']}
        return mx.sym.load_json(json.dumps(graph)), params

    def _format(self, node):
        """The attributes of the operator that rounds a node's output."""
        low, high = self._ranges[_output_of(node)]
        # A range is 255.5 steps to MXNet, or 127.5 on either side, and the largest value is to be a step's.
        if low >= 0:
            return {'out_type': 'uint8', 'min_calib_range': '0', 'max_calib_range': repr(float(high) * 255.5 / 255)}
        limit = max(abs(low), abs(high)) * 127.5 / 127
        return {'out_type': 'int8', 'min_calib_range': repr(float(-limit)), 'max_calib_range': repr(float(limit))}

    @staticmethod
    def function(model: Any) -> Callable[[np.ndarray], np.ndarray]:
        """What :meth:`quantize` returned, as a function from images to outputs, ndarrays."""
        return mxnet_function(as_block(*model))


class OnnxQuantizer:
    """ONNX Runtime's static quantization in the QDQ format: uint8 activations, int8 weights by channel.

    The parts of ``quantize_static``, used separately to calibrate once for many choices of layers.

    Parameters
    ----------
    symbol, params, images, calibration
        As for :class:`MXNetQuantizer`; ONNX Runtime calls ``naive`` MinMax.

    Attributes
    ----------
    layers, floating
        As for :class:`MXNetQuantizer`.
    kinds : dict of str to str
        What each layer is: ``dense``, ``convolution`` (larger than 1x1), ``depthwise``, ``pointwise`` or ``low-rank``
        (1x1 without bias, as LPR modules have them).

    Raises
    ------
    InputError
        If onnx or onnxruntime is not installed.
    """

    def __init__(self, symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray], images: np.ndarray,
                 calibration: str) -> None:
        onnx, _ = require_onnx()
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / 'float.onnx'
            write_onnx(symbol, params, images.shape[1:], path)
            self._model = onnx.load(str(path))
            self._ranges = _onnx_ranges(path, images, calibration)
        self.floating = onnx_function(self._model.SerializeToString())
        graph = self._model.graph
        constants = {constant.name for constant in graph.initializer}
        for node in graph.node:
            # MXNet's converter does not name convolutions, and the quantizer refers to nodes by name.
            node.name = node.output[0]
        self.layers = _layers((node.name, node.op_type in _ONNX_LAYERS, node.input, node.output)
                              for node in graph.node)
        shapes = {constant.name: tuple(constant.dims) for constant in graph.initializer}
        self.kinds = {node.input[1][:-len('_weight')]: _kind(shapes[node.input[1]], len(node.input) > 2)
                      for node in graph.node if node.op_type in _ONNX_LAYERS}
        # The sums with an epsilon, from L2 normalizations; the terms of a residual sum are not constants.
        self._in_float = [node.name for node in graph.node
                          if node.op_type == 'Add' and not constants.isdisjoint(node.input)]

    def quantize(self, layers: Collection[str]) -> Any:
        """A ``ModelProto`` with the ``layers`` (names) in 8 bits."""
        from onnxruntime.quantization import QDQQuantizer, QuantType
        # Copies, since the quantizer writes into both.
        quantizer = QDQQuantizer(
            copy.deepcopy(self._model), per_channel=True, reduce_range=False, weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8, tensors_range=copy.deepcopy(self._ranges), nodes_to_quantize=[],
            nodes_to_exclude=self._in_float + _other_nodes(self.layers, layers), op_types_to_quantize=_ONNX_OPERATORS,
            extra_options={})
        quantizer.quantize_model()
        quantizer.model.topological_sort()
        return quantizer.model.model

    @staticmethod
    def function(model: Any) -> Callable[[np.ndarray], np.ndarray]:
        """What :meth:`quantize` returned, as a function from images to outputs, ndarrays."""
        return onnx_function(model.SerializeToString())


def slow_layers(quantizer: OnnxQuantizer, image: np.ndarray,
                clock: Callable[[], float] = time.thread_time) -> list[str]:
    """The layers with which the network is fastest if they stay in float32, on this machine and one thread.

    All layers of a kind (``quantizer.kinds``) stay together, and every choice of kinds is measured: a change of type
    between two layers costs time too, so what one kind gains depends on the others. Dense layers are in 8 bits in each:
    they have the most weights for their arithmetic. Of choices that take about as long as the fastest, the one with the
    most layers in 8 bits counts.

    Parameters
    ----------
    quantizer : OnnxQuantizer
    image : ndarray (1, channels, height, width) float32
    clock : callable
        To seconds; by default the CPU time of the thread, which other processes hardly change.

    Returns
    -------
    list of str
        Names of layers.
    """
    found = set(quantizer.kinds.values())
    kinds = sorted(found - {'dense'})
    choices = [[layer for layer, kind in quantizer.kinds.items() if kind in (*chosen, 'dense')]
               for count in range('dense' not in found, len(kinds) + 1)
               for chosen in itertools.combinations(kinds, count)]
    functions = [quantizer.function(quantizer.quantize(layers))
                 for layers in tqdm(choices, 'kinds of layers', leave=False, disable=None)]
    taken = interleaved_milliseconds([partial(function, image) for function in functions], _ROUNDS, clock=clock)
    medians = list(map(statistics.median, taken))
    fastest = max((layers for layers, median in zip(choices, medians) if median <= _AS_FAST * min(medians)), key=len)
    return [layer for layer in quantizer.kinds if layer not in fastest]


def quantize(quantizer: Union[MXNetQuantizer, OnnxQuantizer, LibraryQuantizer], images: np.ndarray,
             expected: np.ndarray, exclude: Sequence[str] = (), tolerance: float = 0.01,
             slow: Collection[str] = ()) -> Quantized:
    """Quantize a network except for the layers that cost too much.

    Each layer is quantized alone first. Then, as long as the network with all remaining layers in 8 bits has
    more noise than ``tolerance``, the layer that is noisiest on its own is left out.

    Parameters
    ----------
    quantizer : MXNetQuantizer or OnnxQuantizer
    images : ndarray (N, channels, height, width) float32
        The calibration images.
    expected : ndarray (N, outputs)
        The network's outputs for them, in float32.
    exclude : sequence of str
        Names of layers, or patterns, that are left out in any case.
    tolerance : float
        The most noise, as a share of the variance of ``expected``.
    slow : collection of str
        Names of layers that are left out for their time, from :func:`slow_layers`, unless none would remain.

    Returns
    -------
    Quantized

    Raises
    ------
    InputError
        If a pattern matches no layer, if the outputs of a network with quantized layers are not finite, or if no layer
        is left to quantize.
    """
    excluded = dict.fromkeys(getattr(quantizer, 'in_float', ()), 'input')
    for pattern in exclude:
        found = [layer for layer in quantizer.layers if fnmatchcase(layer, pattern)]
        if not found:
            raise InputError(f'--exclude: {pattern!r} matches no layer; the layers are '
                             f'{", ".join(quantizer.layers)}.')
        excluded.update(dict.fromkeys(found, '--exclude'))
    # Not if it would leave nothing: 8 bits were asked for.
    if set(quantizer.layers) - set(slow) - set(excluded):
        excluded = {**dict.fromkeys(slow, 'time'), **excluded}
    candidates = [layer for layer in quantizer.layers if layer not in excluded]

    def noise(model, count=None):
        return noise_of(outputs_of(quantizer.function(model), images[:count]), expected[:count])

    alone = {layer: noise(quantizer.quantize([layer]), _IMAGES_ALONE)
             for layer in tqdm(candidates, 'layers', leave=False, disable=None)}
    remaining = sorted(candidates, key=alone.__getitem__)
    while remaining:
        model = quantizer.quantize(remaining)
        whole = noise(model)
        if whole <= tolerance:
            return Quantized(model, whole, [LayerNoise(layer, alone.get(layer), excluded.get(layer))
                                            for layer in quantizer.layers])
        excluded[remaining.pop()] = 'noise'
    raise InputError('no layer is left to quantize: raise --tolerance, or exclude fewer layers.')


def noise_of(outputs: np.ndarray, expected: np.ndarray) -> float:
    """Noise of ``outputs`` (N, outputs) as a share of the variance of ``expected`` over its N rows.

    Raises
    ------
    InputError
        If an output is NaN or infinite, or if all rows of ``expected`` are the same.
    """
    if not np.isfinite(outputs).all():
        raise InputError('the quantized network returns NaN or infinite outputs: use other or more images '
                         '(--calibrate, --images) or the other --calibration.')
    variance = ((expected - expected.mean(axis=0)) ** 2).sum()
    if not variance:
        raise InputError('the network has the same outputs for all calibration images: use more images (--images).')
    return float(((outputs - expected) ** 2).sum() / variance)


def mxnet_function(net: HybridBlock) -> Callable[[np.ndarray], np.ndarray]:
    """A HybridBlock as a function of ndarrays."""
    net.hybridize(static_alloc=True, static_shape=True)
    return lambda images: net(mx.nd.array(images)).asnumpy()


def onnx_function(model: Union[str, bytes]) -> Callable[[np.ndarray], np.ndarray]:
    """An ONNX model, its path or its bytes, as a function of ndarrays, on one thread of the CPU."""
    session = open_session(model)
    return lambda images: session.run(None, {'data': images})[0]


def outputs_of(function: Callable[[np.ndarray], np.ndarray], images: np.ndarray) -> np.ndarray:
    """The outputs, ndarray (N, outputs), for images (N, channels, height, width) in small batches."""
    return np.concatenate([function(images[start:start + _BATCH_SIZE])
                           for start in range(0, len(images), _BATCH_SIZE)])


def _layers(nodes):
    """The names of the nodes of each layer, by the name of the layer.

    ``nodes`` are tuples, in the order in which they run: name, whether it has a weight, its inputs and its outputs.
    """
    layers, owner = {}, {}
    for name, has_weight, inputs, outputs in nodes:
        if has_weight:
            layer = inputs[1][:-len('_weight')]
        else:
            # Where branches meet, this is the layer that runs last: it writes their sum.
            layer = max((owner[entry] for entry in inputs if entry in owner), key=list(layers).index, default=None)
        if layer is not None:
            layers.setdefault(layer, []).append(name)
            owner.update(dict.fromkeys(outputs, layer))
    return layers


def _kind(shape, has_bias):
    """What a layer is, from the shape of its weight."""
    if len(shape) == 2:
        return 'dense'
    if shape[2:] != (1, 1):
        return 'depthwise' if shape[1] == 1 else 'convolution'
    return 'pointwise' if has_bias else 'low-rank'


def _other_nodes(layers, chosen):
    return [node for layer, nodes in layers.items() if layer not in chosen for node in nodes]


def _source(nodes, node):
    """The number of the node whose output a layer takes, before it is padded with zeros."""
    index = node['inputs'][0][0]
    return nodes[index]['inputs'][0][0] if nodes[index]['op'] == 'Pad' else index


def _output_of(node):
    """The name of the output of a node with one."""
    return node['name'] if node['op'] == 'null' else f'{node["name"]}_output'


def _by_channel(weight):
    """A weight as int8, from -127 to 127, and the scale of each output channel."""
    value = weight.asnumpy()
    largest = abs(value).max(axis=tuple(range(1, value.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    return (mx.nd.array(np.rint(value / scale), dtype='int8', ctx=weight.context),
            mx.nd.array(scale, ctx=weight.context))


def _split(symbol, params):
    """Parameters and auxiliary states."""
    auxiliary = set(symbol.list_auxiliary_states())
    return ({name: value for name, value in params.items() if name not in auxiliary},
            {name: params[name] for name in auxiliary})


def _mxnet_ranges(symbol, params, images, calibration, tensors):
    """The range, (low, high), of each of the tensors (names) in float32."""
    collector = {'naive': partial(quantization._LayerOutputMinMaxCollector, 'auto'),
                 'entropy': quantization._LayerHistogramCollector}[calibration](include_layer=set(tensors))
    batches = mx.io.NDArrayIter(images, batch_size=min(_BATCH_SIZE, len(images)))
    arguments, auxiliary = _split(symbol, params)
    # Otherwise it fuses operators, whose tensors are then none.
    with environment('MXNET_SUBGRAPH_BACKEND', 'NONE'):
        executor = symbol.bind(mx.cpu(), {**arguments, 'data': mx.nd.zeros(batches.provide_data[0].shape)},
                               aux_states=auxiliary, grad_req='null')
    executor.set_monitor_callback(collector.collect, monitor_all=True)
    for batch in tqdm(batches, 'calibration', leave=False, disable=None):
        executor.forward(is_train=False, data=batch.data[0])[0].wait_to_read()
    if calibration == 'naive':
        return collector.min_max_dict
    return quantization._get_optimal_thresholds(collector.hist_dict, 'auto')


def _onnx_ranges(path, images, calibration):
    """The ranges of all tensors, as ONNX Runtime's quantizer takes them."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator
    method = {'naive': CalibrationMethod.MinMax, 'entropy': CalibrationMethod.Entropy}[calibration]
    # It prints its progress.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        calibrator = create_calibrator(str(path), _ONNX_OPERATORS, str(Path(scratch) / 'augmented.onnx'), method)
        for start in tqdm(range(0, len(images), _BATCH_SIZE), 'calibration', leave=False, disable=None):
            # A new reader for each batch, since it keeps all tensors of everything a reader returns.
            batch = iter([{'data': images[start:start + _BATCH_SIZE]}])
            calibrator.collect_data(SimpleNamespace(get_next=lambda: next(batch, None)))
        return calibrator.compute_data()
