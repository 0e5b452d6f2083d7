"""Parameters and multiply-adds of a network, counted on its symbol graph with inferred shapes.

What is counted:

- *multiply-adds* are those of convolutions and fully connected layers and of nothing else: what Tables 2, 3
  and 5 of the paper call FLOPs. A bias is added without a multiplication, so it is not among them; the zeros
  of a padded border are multiplied like any other element.
- *other operations* are the arithmetic of all other operators, one per addition, multiplication, comparison,
  root or transcendental function, by the rules of this module. They have a column of their own. Operators
  that only move elements cost 0.
- *parameters* are what training can change: weights, biases, gamma and beta of BatchNorm (no gamma where
  ``fix_gamma`` holds it at 1), each counted once no matter how often it is used. BatchNorm's running mean and
  variance are *auxiliary states*, counted separately; the indices by which ``take`` gathers are neither.

All numbers are for the given input: for a batch of N images they are N times those for one.
"""
import argparse
import ast
import json
import math
import operator
import os
from collections import namedtuple
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional, Union

import mxnet as mx
from mxnet.gluon import Block, Constant, HybridBlock

from .blocks import plain_form
from .formats.symbol_files import read_symbol
from .utils.errors import InputError
from .utils.flags import Commands, add_parser
from .utils.text import FORMATS, integer, paragraph, render_table
from .zoo import get_model
from .zoo.pretrained import find_card, split_tag

__all__ = ['Complexity', 'Layer', 'count', 'render_table', 'FORMATS']
# The arguments of a rule: the attributes of an operator as strings, the shapes of its inputs and outputs.
_Node = namedtuple('_Node', 'attributes inputs outputs')


class Layer(NamedTuple):
    """One operator of the graph; ``multiply_adds`` and ``other`` are None where the operator is unknown."""

    name: str
    operator: str
    output_shape: tuple[int, ...]
    params: int
    multiply_adds: Optional[int]
    other: Optional[int]


class Complexity(NamedTuple):
    """The result of :func:`count`.

    Attributes
    ----------
    input_shape : tuple of int
    layers : list of Layer
        The operators in the order of computation.
    auxiliary : int
        Elements of the auxiliary states: running means and variances.
    unknown : dict
        From the type of an operator that has no rule here to the names of its nodes. Where it is not empty,
        ``multiply_adds`` and ``other`` are lower bounds.
    """

    input_shape: tuple[int, ...]
    layers: list[Layer]
    auxiliary: int
    unknown: dict[str, list[str]]

    @property
    def params(self) -> int:
        """Trainable parameters, an int."""
        return sum(layer.params for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of convolutions and fully connected layers, an int."""
        return sum(layer.multiply_adds or 0 for layer in self.layers)

    @property
    def other(self) -> int:
        """Operations of all other operators, an int."""
        return sum(layer.other or 0 for layer in self.layers)

    def table(self, format: str = 'text') -> str:
        """The layers and the totals as a string, in one of ``FORMATS``."""
        if format == 'json':
            fields = ('input_shape', 'params', 'multiply_adds', 'other', 'auxiliary', 'unknown')
            return json.dumps({**{field: getattr(self, field) for field in fields},
                               'layers': [layer._asdict() for layer in self.layers]}, indent=2)
        rows = [(layer.name, layer.operator, 'x'.join(map(str, layer.output_shape)), layer.params,
                 _unless_none(layer.multiply_adds), _unless_none(layer.other)) for layer in self.layers]
        rows.append(('total', '', '', self.params, self.multiply_adds, self.other))
        columns = ('layer', 'operator', 'output', 'parameters', 'multiply-adds', 'other operations')
        notes = [f'For an input of {"x".join(map(str, self.input_shape))}. Multiply-adds are those of '
                 'convolutions and fully connected layers; adding a bias is not counted.',
                 f'Auxiliary states (running means and variances), not among the parameters: {self.auxiliary:,}.']
        notes += [f'WARNING: unknown operator {kind}, not counted: {", ".join(names)}'
                  for kind, names in self.unknown.items()]
        return '\n\n'.join([render_table(columns, rows, format), *(paragraph(note, format) for note in notes)])


def count(network: Union[HybridBlock, mx.sym.Symbol, str, os.PathLike],
          input_shape: Sequence[int] = (1, 3, 224, 224), input_name: str = 'data') -> Complexity:
    """Count the parameters and multiply-adds of a network.

    Parameters
    ----------
    network : mxnet.gluon.HybridBlock, mxnet.symbol.Symbol, str or os.PathLike
        A block with one input, initialized or not; it is traced and left unchanged. Or a symbol, or the path
        of an exported symbol's JSON file.
    input_shape : tuple of int, default (1, 3, 224, 224)
        Shape of the input, including the batch.
    input_name : str, default 'data'
        Name of the input in a symbol.

    Returns
    -------
    Complexity

    Raises
    ------
    InputError
        If the file is missing or is not a symbol, or if the input's name or shape does not match the network.
    """
    shape = _checked_shape(input_shape)
    symbol, constants = _trace(network, input_name)
    inputs = symbol.list_inputs()
    if input_name not in inputs:
        raise InputError(f'the symbol has no input {input_name!r}; its first variables are '
                         f'{", ".join(inputs[:3])}.')
    auxiliary_names = set(symbol.list_auxiliary_states())
    graph = json.loads(symbol.tojson())
    nodes = graph['nodes']
    not_parameters = {input_name} | constants | auxiliary_names | _indices(graph)
    shapes = _infer_shapes(symbol, nodes, input_name, shape)

    unknown: dict[str, list[str]] = {}
    layers, auxiliary, counted = [], 0, set()
    for index, node in enumerate(nodes):
        if node['op'] == 'null':
            if node['name'] in auxiliary_names:
                auxiliary += math.prod(shapes[index][0])
            continue
        attributes = node.get('attrs', {})
        params = 0
        for slot, (source, *_) in enumerate(node['inputs']):
            name = nodes[source]['name']
            if (nodes[source]['op'] == 'null' and name not in not_parameters and source not in counted
                    and not _is_label_or_fixed(node['op'], attributes, slot)):
                params += math.prod(shapes[source][0])
                counted.add(source)
        rule = _RULES.get(node['op'])
        if rule is None:
            unknown.setdefault(node['op'], []).append(node['name'])
            multiply_adds = other = None
        else:
            multiply_adds, other = rule(_Node(
                attributes, [shapes[source][output] for source, output, *_ in node['inputs']], shapes[index]))
        layers.append(Layer(node['name'], node['op'], shapes[index][0], params, multiply_adds, other))
    return Complexity(shape, layers, auxiliary, unknown)


def _checked_shape(shape: Any) -> tuple[int, ...]:
    try:
        checked = tuple(map(operator.index, shape))
    except TypeError:
        checked = ()
    if not checked or min(checked) < 1:
        raise InputError(f'an input shape is a sequence of positive whole numbers, such as (1, 3, 224, 224), '
                         f'not {shape!r}.')
    return checked


def _trace(network: Any, input_name: str) -> Any:
    """The symbol of ``network`` and the names of the variables that training never changes."""
    if isinstance(network, mx.sym.Symbol):
        return network, set()
    if isinstance(network, Block):
        with plain_form(network):
            outputs = network(mx.sym.var(input_name))
        # Not grad_req: a layer frozen for fine-tuning still consists of parameters. Only the private attribute
        # shows that one can never be trained, such as the beta of BatchNorm(center=False).
        constants = {name for name, parameter in network.collect_params().items()
                     if isinstance(parameter, Constant) or not parameter._differentiable}
        return (outputs if isinstance(outputs, mx.sym.Symbol) else mx.sym.Group(outputs)), constants
    if not isinstance(network, (str, os.PathLike)):
        raise InputError(f'{network!r} is not a HybridBlock, a Symbol or the path of a symbol JSON file.')
    return read_symbol(os.fspath(network)), set()


def _indices(graph: dict[str, Any]) -> set[str]:
    """The names of the variables of which operators see nothing but what ``take`` gathers by them."""
    nodes, seen = graph['nodes'], set()
    pending = [index for index, *_ in graph['heads']]
    while pending:
        index = pending.pop()
        if index not in seen:
            seen.add(index)
            inputs = [source for source, *_ in nodes[index]['inputs']]
            pending += inputs[:1] if nodes[index]['op'] == 'take' else inputs
    return {node['name'] for index, node in enumerate(nodes) if node['op'] == 'null' and index not in seen}


def _infer_shapes(symbol: Any, nodes: list[dict[str, Any]], input_name: str, input_shape: Sequence[int]) -> Any:
    """The shapes of each node's visible outputs, one list per node in ``nodes``."""
    internals = symbol.get_internals()
    names = internals.list_outputs()
    shown = f'an input {input_name!r} of {"x".join(map(str, input_shape))}'
    try:
        # Not infer_shape: it prints to standard output before it raises.
        output_shapes = internals.infer_shape_partial(**{input_name: input_shape})[1]
    except mx.MXNetError as error:
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1]
        raise InputError(f'{shown} does not fit the network: give the shape it was made for. '
                         f'MXNet says: {reason}') from error
    missing = [name for name, shape in zip(names, output_shapes) if not shape or 0 in shape]
    if missing:
        raise InputError(f'{shown} does not determine the shapes of {", ".join(missing[:3])}: the network has '
                         'another input, or the image is too small for it.')

    # The entries of get_internals() are the nodes' visible outputs in the order of the JSON's nodes. Nodes
    # may share a name (a block that is called twice): an output name seen before begins the next node.
    shapes, entry = [], 0
    for node in nodes:
        own: list[Any] = []
        seen: set[str] = set()
        while (entry < len(names) and names[entry] not in seen and internals[entry].name == node['name']
               and not (seen and node['op'] == 'null')):
            seen.add(names[entry])
            own.append(tuple(output_shapes[entry]))
            entry += 1
        shapes.append(own)
    return shapes


def _is_label_or_fixed(operator_type: str, attributes: dict[str, str], slot: int) -> bool:
    """Whether a variable at this input is a label, or a gamma that BatchNorm holds at 1."""
    if operator_type == 'BatchNorm':
        return slot == 1 and _attribute(attributes, 'fix_gamma', True)
    return slot == 1 and operator_type in _OPERATORS_WITH_LABEL


def _attribute(attributes: dict[str, str], name: str, default: Any) -> Any:
    return ast.literal_eval(attributes[name]) if name in attributes else default


def _weighted(node: Any) -> tuple[int, int]:
    # Each output element is a sum over one filter: the weight is (filters, ...) in every layout.
    elements = math.prod(node.outputs[0])
    return elements * math.prod(node.inputs[1][1:]), elements if len(node.inputs) > 2 else 0


def _deconvolution(node: Any) -> tuple[int, int]:
    # Each input element is multiplied with one filter: the weight is (input channels, ...).
    bias = math.prod(node.outputs[0]) if len(node.inputs) > 2 else 0
    return math.prod(node.inputs[0]) * math.prod(node.inputs[1][1:]), bias


def _pooling(node: Any) -> tuple[int, int]:
    # One operation for each element of each window.
    if _attribute(node.attributes, 'global_pool', False):
        return 0, math.prod(node.inputs[0])
    return 0, math.prod(node.outputs[0]) * math.prod(_attribute(node.attributes, 'kernel', ()))


def _add_n(node: Any) -> tuple[int, int]:
    return 0, math.prod(node.outputs[0]) * (len(node.inputs) - 1)


def _per_output_element(operations: int) -> Callable[[Any], tuple[int, int]]:
    return lambda node: (0, operations * math.prod(node.outputs[0]))


def _per_input_element(operations: int) -> Callable[[Any], tuple[int, int]]:
    return lambda node: (0, operations * math.prod(node.inputs[0]))


_OPERATORS_WITH_LABEL = ('SoftmaxOutput', 'LinearRegressionOutput', 'LogisticRegressionOutput',
                         'MAERegressionOutput')
_RULES = {
    'Convolution': _weighted,
    'FullyConnected': _weighted,
    'Deconvolution': _deconvolution,
    'Pooling': _pooling,
    'add_n': _add_n,
    # As at inference: multiplied by a scale, plus a shift.
    'BatchNorm': _per_output_element(2),
    # Two comparisons.
    'clip': _per_output_element(2),
    # Square, sum, divide; the root, one for many elements, is ignored.
    'L2Normalization': _per_input_element(3),
    'norm': _per_input_element(2),
    # Exponential, sum, divide.
    **dict.fromkeys(('softmax', 'log_softmax', 'SoftmaxActivation', 'SoftmaxOutput'), _per_input_element(3)),
    **dict.fromkeys(('sum', 'mean', 'max', 'min', 'prod'), _per_input_element(1)),
    # One function of an element, or of two.
    **dict.fromkeys((
        'Activation', 'LeakyReLU', 'relu', 'sigmoid', 'hard_sigmoid', 'tanh', 'exp', 'log', 'abs', 'negative',
        'sqrt', 'rsqrt', 'square', 'reciprocal',
        'elemwise_add', 'elemwise_sub', 'elemwise_mul', 'elemwise_div', '_maximum', '_minimum', '_power',
        'broadcast_add', 'broadcast_sub', 'broadcast_mul', 'broadcast_div', 'broadcast_maximum',
        'broadcast_minimum', 'broadcast_power',
        '_plus_scalar', '_minus_scalar', '_rminus_scalar', '_mul_scalar', '_div_scalar', '_rdiv_scalar',
        '_power_scalar', '_maximum_scalar', '_minimum_scalar'), _per_output_element(1)),
    # Nothing is computed; Dropout passes its input on at inference.
    **dict.fromkeys((
        'Flatten', 'Reshape', 'reshape_like', 'expand_dims', 'squeeze', 'SwapAxis', 'transpose', 'Concat',
        'stack', 'SliceChannel', 'slice', 'slice_axis', 'slice_like', 'Crop', 'Pad', 'tile', 'repeat',
        'broadcast_to', 'broadcast_like', 'broadcast_axis', 'take', 'Cast', '_copy', 'BlockGrad', 'Dropout',
        '_zeros', '_ones', 'zeros_like', 'ones_like', 'LinearRegressionOutput', 'MAERegressionOutput'),
        _per_output_element(0)),
}


def _unless_none(number: Optional[int]) -> Any:
    return '?' if number is None else number


def add_commands(subparsers: Commands) -> None:
    parser = add_parser(
        subparsers, 'complexity', help='parameters and multiply-adds of a network',
        example='gluon-lprnet complexity lprnet_mobilenet_x0.5 --input-size 160\n'
                'gluon-lprnet complexity exported/net-symbol.json',
        description='Count parameters and multiply-adds, layer by layer. Exit status 1 if the network has an '
                    'unknown operator, which is then named.')
    parser.add_argument('network', metavar='NAME_OR_JSON',
                        help='a network of the zoo, such as lprnet_mobilenet_x1.0_r4, or a symbol file NAME.json')
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument('--input-size', type=integer, metavar='PIXELS',
                       help='height and width of one RGB image (default: 224; of a trained network its own)')
    shape.add_argument('--input-shape', metavar='N,C,H,W', help='any other shape, for example 1,1,28,28')
    parser.add_argument('--input-name', default='data', help='input of a symbol file (default: %(default)s)')
    parser.add_argument('--classes', type=integer,
                        help='outputs of a network of the zoo (default: 1000; of a trained one its own)')
    parser.add_argument('--small-image', action='store_true',
                        help='a network of the zoo without its first two down-sampling steps')
    parser.add_argument('--format', choices=FORMATS, default='text', help='how to print (default: %(default)s)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    network, size = args.network, 224
    if not network.endswith('.json'):
        if split_tag(network)[1]:
            size = find_card(network).description['input_size']
        network = get_model(network, classes=args.classes, **({'small_image': True} if args.small_image else {}))
    if args.input_size is not None:
        size = args.input_size
    shape: tuple[int, ...] = (1, 3, size, size)
    if args.input_shape:
        try:
            shape = tuple(integer(size) for size in args.input_shape.split(','))
        except ValueError:
            raise InputError(f'--input-shape {args.input_shape}: give whole numbers separated by commas, such as '
                             '1,3,224,224.') from None
    complexity = count(network, shape, args.input_name)
    print(complexity.table(args.format))
    return 1 if complexity.unknown else 0
