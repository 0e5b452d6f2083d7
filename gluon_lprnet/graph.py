"""A network as a graph: its symbol and parameters, the symbol's nodes, and the way back to a block."""
import ast
import copy
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock, SymbolBlock

from .blocks import plain_form
from .utils.errors import InputError

__all__ = ['SymbolGraph', 'as_block', 'attributes', 'in_float32', 'node_shapes', 'trace', 'with_fixed_gammas',
           'with_own_spelling']

_OTHER_PRECISIONS = ('float16', 'float64', 'bfloat16')
_NUMBERS_OF_OTHER_PRECISIONS = ('2', '1', '12')
_BATCH_NORMS = ('BatchNorm', 'BatchNorm_v1', '_contrib_SyncBatchNorm')


def trace(net: HybridBlock, cast: bool = False) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
    """Symbol and parameters of a network, which stays as it is.

    Parameters
    ----------
    net : HybridBlock
        Initialized, with one NCHW input. Its LPR modules are traced in the plain form (see
        :func:`gluon_lprnet.blocks.normalize_in_rank_space`).
    cast : bool, default False
        Give a network of another precision in float32. What is stored as integers stays as it is.

    Returns
    -------
    tuple of (Symbol, dict of str to NDArray)
        The symbol, with the input ``data``, and its parameters and auxiliary states.

    Raises
    ------
    InputError
        If a parameter is not float32, without ``cast``, or if it is not a network of MXNet, of one output.
    """
    if not isinstance(net, HybridBlock):
        raise InputError('a network that is not a HybridBlock of MXNet, such as an ONNX file, can be used and '
                         'evaluated only: give the network that it came from.')
    with plain_form(net):
        # Four dimensions of any size: without them L2Normalization fails in optimize_for('MKLDNN', args=...).
        symbol = net(mx.sym.var('data', shape=(0, 0, 0, 0)))
    if not isinstance(symbol, mx.sym.Symbol) or len(symbol.list_outputs()) > 1:
        raise InputError('the network gives several outputs, and one of a single output is taken: give a block of that '
                         'one alone.')
    symbol = with_own_spelling(symbol)
    parameters = net.collect_params()
    params = {name: parameters[name].data(parameters[name].list_ctx()[0])
              for name in symbol.list_inputs() if name != 'data'}
    if cast:
        return in_float32(symbol), {name: value.astype('float32', copy=False) if _is_floating(value) else value
                                    for name, value in params.items()}
    other = {np.dtype(value.dtype).name for value in params.values() if _is_floating(value)} - {'float32'}
    if other:
        raise InputError(f"the network has parameters in {', '.join(sorted(other))}: call net.cast('float32') first.")
    return symbol, params


def _is_floating(value: mx.nd.NDArray) -> bool:
    return not np.issubdtype(value.dtype, np.integer)


def with_own_spelling(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """The symbol with its attributes as MXNet's Python writes them; it also reads ``true`` and, of Python 2, ``3L``."""
    graph = json.loads(symbol.tojson())
    changed = False
    for node in graph['nodes']:
        attrs = node.get('attrs', {})
        own = {name: _own_spelling(value) for name, value in attrs.items()}
        changed |= own != attrs
        node.update(attrs=own)
    return mx.sym.load_json(json.dumps(graph)) if changed else symbol


def _own_spelling(value: str) -> str:
    if value.lower() in ('true', 'false'):
        return value.capitalize()
    return value.replace('L', '') if re.fullmatch(r'[(\[]?(\s*-?\d+L?\s*,?)+[)\]]?', value) else value


def in_float32(symbol: mx.sym.Symbol) -> mx.sym.Symbol:
    """The symbol of a network of another precision, for parameters in float32."""
    graph = json.loads(symbol.tojson())
    for node in graph['nodes']:
        # Gluon writes the types of its parameters into the symbol, as MXNet's numbers: 0 is float32.
        if node.get('attrs', {}).get('__dtype__') in _NUMBERS_OF_OTHER_PRECISIONS:
            node['attrs']['__dtype__'] = '0'
        if node['op'] in ('Cast', 'amp_cast') and node['attrs']['dtype'] in _OTHER_PRECISIONS:
            node['attrs']['dtype'] = 'float32'
    return mx.sym.load_json(json.dumps(graph))


def with_fixed_gammas(symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray]) -> dict[str, mx.nd.NDArray]:
    """The parameters with 1 for each gamma that BatchNorm takes as 1 whatever it is, which other programs do not."""
    nodes = json.loads(symbol.tojson())['nodes']
    fixed = {nodes[node['inputs'][1][0]]['name'] for node in nodes
             if node['op'] in _BATCH_NORMS and attributes(node, fix_gamma=True) == [True]}
    return {name: mx.nd.ones_like(value) if name in fixed else value for name, value in params.items()}


def node_shapes(symbol: mx.sym.Symbol, input_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The shapes of variables and of operators' outputs (of several, the last) for an input ``data``, by name."""
    internals = symbol.get_internals()
    return {output.name: shape for output, shape in zip(internals, internals.infer_shape(data=input_shape)[1])}


def as_block(symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray]) -> SymbolBlock:
    """The SymbolBlock of a symbol with the input ``data``, on the device of its parameters, which are computed."""
    block = SymbolBlock(symbol, mx.sym.var('data', dtype='float32'))
    block.collect_params().load_dict(params, ctx=next(iter(params.values())).context)
    # A backend's optimize_for() asks each parameter where its memory is. While MXNet computes it, asking may allocate
    # the memory a second time, and the values are lost.
    mx.nd.waitall()
    return block


class SymbolGraph:
    """The nodes of a symbol's JSON, to be rewritten in place.

    Parameters
    ----------
    symbol : Symbol
    params : dict of str to NDArray
        Its parameters and auxiliary states.
    """

    def __init__(self, symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray]) -> None:
        self.graph = json.loads(symbol.tojson())
        # It states how many outputs each node has, which rewriting changes; MXNet reads a symbol without it.
        del self.graph['node_row_ptr']
        self.nodes = self.graph['nodes']
        self.params = dict(params)
        self.uses = Counter(index for inputs in [self.graph['heads'], *(node['inputs'] for node in self.nodes)]
                            for index, *_ in inputs)

    def result(self) -> tuple[mx.sym.Symbol, dict[str, mx.nd.NDArray]]:
        """The new Symbol and the parameters it needs; unused nodes are dropped."""
        symbol = mx.sym.load_json(json.dumps(self.graph))
        return symbol, {name: self.params[name] for name in symbol.list_inputs() if name in self.params}

    def block_to(self, entry: tuple[int, int], begin: Optional[int] = None) -> SymbolBlock:
        """The part of the network that computes an output of a node, with ``data`` as its input.

        Parameters
        ----------
        entry : tuple of int
            The numbers of the node and of its output.
        begin : int, optional
            A node that takes ``data`` as its first input; by default the part begins where the network does.
        """
        graph = copy.deepcopy(self.graph)
        if begin is not None:
            graph['nodes'][begin]['inputs'][0] = [len(graph['nodes']), 0, 0]
            graph['nodes'].append({'op': 'null', 'name': 'data', 'inputs': []})
        graph['heads'] = [[*entry, 0]]
        symbol = mx.sym.load_json(json.dumps(graph))
        return as_block(symbol, {name: self.params[name] for name in symbol.list_inputs() if name in self.params})

    @property
    def context(self) -> mx.Context:
        """The device of the parameters."""
        return next(iter(self.params.values())).context

    def scale_of_norm(self, norm: dict[str, Any]) -> np.ndarray:
        """What a BatchNorm multiplies each channel by at inference, float64."""
        eps, fix_gamma = attributes(norm, eps=1e-3, fix_gamma=True)
        return (1 if fix_gamma else self.value(norm, 1)) / np.sqrt(self.value(norm, 4) + eps)

    def folded_weights(self, convolution: dict[str, Any], norm: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias, float64, of a convolution with the BatchNorm that follows it."""
        scale, weight = self.scale_of_norm(norm), self.value(convolution, 1)
        bias = self.value(norm, 2) + (self.bias(convolution) - self.value(norm, 3)) * scale
        return weight * scale.reshape((-1,) + (1,) * (weight.ndim - 1)), bias

    def bias(self, convolution: dict[str, Any]) -> Union[np.ndarray, int]:
        """The bias of a convolution, float64; 0 without one."""
        return self.value(convolution, 2) if len(convolution['inputs']) > 2 else 0

    def sole_convolution(self, node: dict[str, Any], slot: int = 0) -> Optional[dict[str, Any]]:
        """The convolution whose output ``node`` takes in a slot, if that alone uses it and its weights; or None."""
        index = node['inputs'][slot][0]
        source = self.nodes[index]
        if source['op'] == 'Convolution' and self.uses[index] == 1 and self.has_own_parameters(source):
            return source
        return None

    def has_own_parameters(self, node: dict[str, Any]) -> bool:
        """Whether all inputs of a node but the first are parameters that serve it alone."""
        return all(self.uses[index] == 1 and self.nodes[index]['name'] in self.params
                   for index, *_ in node['inputs'][1:])

    def input_name(self, node: dict[str, Any], slot: int) -> str:
        """The name of what a node takes in a slot."""
        return self.nodes[node['inputs'][slot][0]]['name']

    def value(self, node: dict[str, Any], slot: int) -> np.ndarray:
        """The parameter that a node takes in a slot, float64."""
        return self.params[self.input_name(node, slot)].asnumpy().astype('float64')

    def set_value(self, node: dict[str, Any], slot: int, value: np.ndarray) -> None:
        """Give a node another value, an ndarray of any shape, for the parameter in a slot."""
        name = self.input_name(node, slot)
        # Gluon writes the shapes of its parameters into the symbol.
        self.nodes[node['inputs'][slot][0]].setdefault('attrs', {})['__shape__'] = str(value.shape)
        self.params[name] = mx.nd.array(value, ctx=self.params[name].context, dtype='float32')

    def add(self, operator: str, name: str, inputs: Sequence[Any], **attributes: Any) -> list[int]:
        """Add a node, of operator ``null`` for a variable, and return its output as an input of others.

        It comes last, and MXNet gives it its place when it reads the graph.
        """
        self.nodes.append({'op': operator, 'name': name, 'inputs': inputs,
                           'attrs': {key: str(value) for key, value in attributes.items()}})
        return [len(self.nodes) - 1, 0, 0]


def attributes(node: dict[str, Any], **defaults: Any) -> list[Any]:
    """Values of a node's attributes, as a list in the order of ``defaults``."""
    found = node.get('attrs', {})
    return [type(default)(_literal(found[name])) if name in found else default
            for name, default in defaults.items()]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
