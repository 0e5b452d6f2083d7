"""ONNX files, written by MXNet's converter with its faults corrected.

``mx.onnx.export_model`` of MXNet 1.9.1 writes the nodes of opset 13 and claims the newest one that the onnx package
knows; lists the parameters among the inputs of the graph, which stops ONNX Runtime from folding constants; leaves
constants behind that nothing uses; turns L2Normalization into LpNormalization, which has no epsilon; multiplies by the
gammas that BatchNorm's ``fix_gamma`` says to take as 1; and refuses the reshapes of a channel shuffle.
"""
import json
from collections.abc import Mapping, Sequence
from unittest import mock

import mxnet as mx
import numpy as np

from ..formats.onnx_files import open_session, require_onnx
from ..formats.symbol_files import last_line
from ..graph import node_shapes, with_fixed_gammas
from ..utils.errors import InputError
from ..utils.files import PathLike, write_errors

__all__ = ['write_onnx', 'run_onnx']

OPSET = 13
# The version of the file format that came with the opset, so that runtimes of that time can read the file.
IR_VERSION = 7


def write_onnx(symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray], image_shape: Sequence[int],
               path: PathLike) -> None:
    """Write a network as an ONNX file with a variable batch size.

    Parameters
    ----------
    symbol : Symbol
        With the input ``data``, NCHW, and one output, (N, outputs).
    params : dict of str to NDArray
    image_shape : tuple of int
        Channels, height and width of the input.
    path : path

    Raises
    ------
    InputError
        If onnx or onnxruntime is not installed, or MXNet cannot write the network.
    """
    onnx, _ = require_onnx()
    shape = (1, *image_shape)
    symbol = _with_plain_reshapes(symbol, shape)
    try:
        # The converter has its nodes, of opset 13, checked by the newest opset that the package knows. Below, the model
        # is checked by its own.
        with mock.patch.object(onnx.checker, 'check_graph'):
            mx.onnx.export_model(symbol, with_fixed_gammas(symbol, params), [shape], np.float32, str(path),
                                 dynamic=True, dynamic_input_shapes=[('batch', *image_shape)])
    # Of operators and attributes that it does not know, it raises nearly anything.
    except Exception as error:
        raise InputError(f'MXNet cannot write the network as ONNX: {last_line(error)}') from error
    model = onnx.load(str(path))
    model.opset_import[0].version = OPSET
    model.ir_version = IR_VERSION
    graph = model.graph
    _replace(graph.input, [entry for entry in graph.input if entry.name == 'data'])
    (_, outputs), = symbol.infer_shape(data=shape)[1]
    batch, width = graph.output[0].type.tensor_type.shape.dim
    batch.dim_param, width.dim_value = 'batch', outputs
    epsilons = {node['name']: float(node['attrs'].get('eps', 1e-10)) for node in json.loads(symbol.tojson())['nodes']
                if node['op'] == 'L2Normalization'}
    _replace(graph.node, [new for node in graph.node for new in (
        _normalization(onnx, graph, node, epsilons[node.name]) if node.op_type == 'LpNormalization' else [node])])
    _spread_slopes(graph)
    used = {name for node in graph.node for name in node.input}
    _replace(graph.initializer, [constant for constant in graph.initializer if constant.name in used])
    try:
        onnx.checker.check_model(model, full_check=True)
    # Its errors have no base in common.
    except Exception as error:
        raise InputError(f'MXNet writes the network as ONNX that is not valid: {last_line(error)}') from error
    with write_errors(path):
        onnx.save(model, str(path))


def run_onnx(path: PathLike, data: np.ndarray) -> np.ndarray:
    """Outputs of ONNX Runtime on the CPU for an ndarray of inputs; InputError if it does not run the file."""
    try:
        return open_session(str(path)).run(None, {'data': data})[0]
    except Exception as error:
        raise InputError(f'ONNX Runtime does not run what MXNet writes of the network: {last_line(error)}') from error


def _with_plain_reshapes(symbol, shape):
    """Replace the shape of every reshape by its numbers for an input of ``shape``, with a free first dimension."""
    shapes = node_shapes(symbol, shape)
    graph = json.loads(symbol.tojson())
    for node in graph['nodes']:
        if node['op'] == 'Reshape':
            node['attrs'] = {'shape': str((-1, *shapes[node['name']][1:]))}
    return mx.sym.load_json(json.dumps(graph))


def _normalization(onnx, graph, node, eps):
    """The nodes of ``x / sqrt(sum of x^2 over channels + eps)``, to replace an LpNormalization."""
    x, name = node.input[0], node.name
    squares, shifted, norm, epsilon = (f'{name}_{part}' for part in ('squares', 'shifted', 'norm', 'eps'))
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([eps], dtype='float32'), epsilon))
    make = onnx.helper.make_node
    return [make('ReduceSumSquare', [x], [squares], squares, axes=[1], keepdims=1),
            make('Add', [squares, epsilon], [shifted], shifted),
            make('Sqrt', [shifted], [norm], norm),
            make('Div', [x, norm], list(node.output), name)]


def _spread_slopes(graph):
    """Give each PReLU its slopes as (C, 1, 1): ONNX aligns shapes at the last axis, MXNet at the channels."""
    slopes = {node.input[1] for node in graph.node if node.op_type == 'PRelu'}
    for constant in graph.initializer:
        if constant.name in slopes and constant.dims[0] > 1:
            constant.dims.extend([1, 1])


def _replace(field, values):
    """Replace the values of a repeated field of a protocol buffer."""
    del field[:]
    field.extend(values)
