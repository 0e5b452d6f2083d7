"""A network in operators that are fast in training, with the parameters of the original.

ReLU6 and TensorFlow's padding are exact in MXNet as ``clip`` and ``Pad``, neither of which oneDNN has: tuning such a
network takes longer in them than in all its convolutions. Two rules write them in oneDNN's operators.

- ``clip(x, 0, 6)`` is ``relu(6 - relu(6 - x))``, where ``6 - x`` is a BatchNorm of fixed statistics.
- ``Pad`` by more on one side than on the other, before a convolution, is padding by the larger number on both sides for
  a kernel with rows or columns of 0 where there is too much.
"""
from collections.abc import Mapping
from functools import partial
from typing import Any

import mxnet as mx
from mxnet import autograd
from mxnet.gluon import Block, HybridBlock, SymbolBlock

from ..graph import SymbolGraph, attributes, node_shapes, trace
from ..utils.timing import interleaved_milliseconds

__all__ = ['fastest_in_training', 'training_form']

_CHANNELS = 1
# Of a measurement: images of a step, and steps.
_IMAGES, _STEPS = 8, 2


def training_form(net: HybridBlock, input_shape: tuple[int, ...]) -> SymbolBlock:
    """The same function as ``net``, with the same parameters: what is trained here is trained there.

    A gradient differs only where an input of ReLU6 is 0 or 6 to the last bit: it is 0 there, and 1 of ``clip``.

    Parameters
    ----------
    net : HybridBlock
        Initialized, with one NCHW input.
    input_shape : tuple of int
        Of one image, NCHW.

    Returns
    -------
    SymbolBlock
        Hybridized.
    """
    symbol, params = trace(net)
    graph = _Rules(symbol, params, node_shapes(symbol, input_shape))
    for index, node in enumerate(list(graph.nodes)):
        if node['op'] == 'clip':
            graph.write_clip_as_relu(index)
        elif node['op'] == 'Convolution':
            graph.take_in_padding(node)
    symbol, values = graph.result()
    own = net.collect_params()
    block = SymbolBlock(symbol, mx.sym.var('data', dtype='float32'), params=own)
    for name, parameter in block.collect_params().items():
        if name not in own:
            parameter.shape, parameter.grad_req = values[name].shape, 'null'
            parameter.initialize(ctx=graph.context)
            parameter.set_data(values[name])
    block.hybridize(static_alloc=True, static_shape=True)
    return block


def fastest_in_training(net: HybridBlock, input_shape: tuple[int, ...]) -> Block:
    """``net``, to be trained in its own operators or in its :func:`training_form`, whichever takes less time here.

    Which one depends on the widths and the processor: after some convolutions, by the order in which these leave their
    channels, oneDNN's BatchNorm takes a hundred times as long backward.

    Parameters
    ----------
    net, input_shape
        As of :func:`training_form`.

    Returns
    -------
    Block
        What it saves are the parameters of ``net`` alone.
    """
    forms = [net, training_form(net, input_shape)]
    images = mx.nd.random.uniform(-1, 1, (_IMAGES, *input_shape[1:]))
    # Parameters and statistics are as before: no update is made, and the statistics are put back.
    statistics = {parameter: parameter.data().copy() for parameter in net.collect_params().values()
                  if parameter.grad_req == 'null'}

    def step(form):
        with autograd.record():
            loss = form(images).mean()
        loss.backward()
        mx.nd.waitall()

    times = interleaved_milliseconds([partial(step, form) for form in forms], _STEPS, warm_up=1)
    for parameter, values in statistics.items():
        parameter.set_data(values)
    return _Trained(net, forms[int(min(times[1]) < min(times[0]))])


class _Trained(Block):

    def __init__(self, net, form):
        super().__init__()
        self.net = net
        # Not the form itself as a child, whose constants would be saved too.
        self._compute = form.__call__

    def forward(self, images):
        return self._compute(images)


class _Rules(SymbolGraph):

    def __init__(self, symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray],
                 shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(symbol, params)
        self._shapes = shapes
        self._constants: dict[tuple[float, int], int] = {}

    def write_clip_as_relu(self, index: int) -> None:
        clip = self.nodes[index]
        low, high = attributes(clip, a_min=0.0, a_max=0.0)
        shape = self._shapes.get(clip['name'], ())
        if low != 0 or len(shape) != 4:
            return
        below = self._subtracted_from(high, shape[_CHANNELS], clip['inputs'][0], f'{clip["name"]}_below')
        rest = self.add('Activation', f'{clip["name"]}_rest', [below], act_type='relu')
        clip.update(op='Activation', attrs={'act_type': 'relu'},
                    inputs=[self._subtracted_from(high, shape[_CHANNELS], rest, f'{clip["name"]}_taken_off')])

    def take_in_padding(self, convolution: dict[str, Any]) -> None:
        source = convolution['inputs'][0][0]
        pad = self.nodes[source]
        if pad['op'] != 'Pad' or attributes(pad, mode='', constant_value=0.0) != ['constant', 0.0]:
            return
        (width,) = attributes(pad, pad_width=())
        (kernel, own_pad, dilate) = attributes(convolution, kernel=(), pad=(0, 0), dilate=(1, 1))
        if len(width) != 8 or any(width[:4]) or len(kernel) != 2 or own_pad != (0, 0) or dilate != (1, 1):
            return
        sides = list(zip(width[4::2], width[5::2]))
        before, after = zip(*((max(end - begin, 0), max(begin - end, 0)) for begin, end in sides))
        weight = self.add('Pad', f'{convolution["name"]}_weight_with_zeros', [convolution['inputs'][1]],
                          mode='constant', pad_width=(0, 0, 0, 0, before[0], after[0], before[1], after[1]))
        convolution['inputs'][:2] = [pad['inputs'][0], weight]
        convolution['attrs'].update(
            kernel=str(tuple(size + first + last for size, first, last in zip(kernel, before, after))),
            pad=str(tuple(max(side) for side in sides)))

    def _subtracted_from(self, high, channels, entry, name):
        """``high - x``."""
        constants = {'gamma': -1.0, 'beta': high, 'moving_mean': 0.0, 'moving_var': 1.0}
        inputs = [self._constant(value, channels) for value in constants.values()]
        return self.add('BatchNorm', name, [entry, *inputs], fix_gamma=False, use_global_stats=True, eps=1e-20)

    def _constant(self, value, channels):
        key = value, channels
        if key not in self._constants:
            name = f'{channels}_times_{value:g}'
            self.params[name] = mx.nd.full(channels, value, ctx=self.context)
            self._constants[key] = self.add('null', name, [], __shape__=(channels,))
        return self._constants[key]
