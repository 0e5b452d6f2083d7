"""A network in other operators than those that it is deployed in, with the same parameters.

ReLU6, PReLU and TensorFlow's padding are ``clip``, ``LeakyReLU`` and ``Pad`` in MXNet, none of which oneDNN has: a
network trains longer in them than in all its convolutions. Three rules write them in oneDNN's operators.

- ``clip(x, 0, 6)`` is ``relu(6 - relu(6 - x))``, where ``6 - x`` is a BatchNorm of fixed statistics.
- PReLU is ``relu(x)`` plus what it leaves of ``x`` times the slopes, which is a depthwise convolution of 1x1. This rule
  is not for speed alone: in a hybridized network MXNet may write the gradient of PReLU's input over that of its output
  before it takes the slopes' gradient from the latter, which is then too small by a factor of the slope itself.
- ``Pad`` by more on one side than on the other, before a convolution, is padding by the larger number on both sides for
  a kernel with rows or columns of 0 where there is too much.
"""
import dataclasses
from collections.abc import Mapping
from functools import partial

import mxnet as mx
import numpy as np
from mxnet import autograd
from mxnet.gluon import HybridBlock, SymbolBlock

from ..graph import SymbolGraph, attributes, node_shapes, trace
from ..utils.errors import InputError
from ..utils.timing import interleaved_milliseconds
from .config import NetworkTrainingConfig
from .journal import LOGGER
from .loop import TrainingTask

__all__ = ['form_to_train', 'training_form', 'with_form_to_train']

_CHANNELS = 1
_PRELU = 'LeakyReLU'
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
    return _sharing_parameters(net, _rewritten(net, input_shape)[0])


def _sharing_parameters(net, graph):
    symbol, values = graph.result()
    own = net.collect_params()
    block = SymbolBlock(symbol, mx.sym.var('data', dtype='float32'), params=own)
    for name, parameter in block.collect_params().items():
        if name not in own:
            parameter.shape, parameter.grad_req = values[name].shape, 'null'
            parameter.initialize(ctx=next(iter(own.values())).list_ctx())
            parameter.set_data(values[name])
    block.hybridize(static_alloc=True, static_shape=True)
    return block


def form_to_train(net: HybridBlock, input_shape: tuple[int, ...]) -> HybridBlock:
    """The :func:`training_form` of a network with PReLU; of another one, that or ``net`` itself.

    The one is taken in which a step takes less time here. Which that is depends on the widths and the processor: after
    some convolutions, by the order in which these leave their channels, oneDNN's BatchNorm takes a hundred times as
    long backward.

    Parameters
    ----------
    net, input_shape
        As of :func:`training_form`, on the CPU.

    Returns
    -------
    HybridBlock
    """
    graph, rewritten = _rewritten(net, input_shape)
    if not rewritten:
        return net
    form = _sharing_parameters(net, graph)
    return form if _PRELU in rewritten or _is_faster(form, net, input_shape) else net


def with_form_to_train(task: TrainingTask, config: NetworkTrainingConfig) -> TrainingTask:
    """The task with the outputs of its network computed in its :func:`form_to_train`.

    On GPUs, and in other precisions than float32, no network but one with PReLU needs another form.

    Raises
    ------
    InputError
        For PReLU in another precision.
    """
    input_shape = (1, 3, config.input_size, config.input_size)
    if task.contexts == [mx.cpu()] and config.dtype == 'float32':
        form = form_to_train(task.net, input_shape)
    else:
        graph, rewritten = _rewritten(task.net, input_shape)
        if _PRELU not in rewritten:
            return task
        if config.dtype != 'float32':
            raise InputError(f'`dtype` {config.dtype}: a network with PReLU is trained in float32, since MXNet\'s own '
                             'gradient of the slopes can be wrong.')
        form = _sharing_parameters(task.net, graph)
    if form is task.net:
        return task
    LOGGER.info('trained in other operators of the same function: ReLU6 and PReLU as sums of ReLUs, padding on one '
                'side in the convolutions')
    return dataclasses.replace(task, form=form)


def _is_faster(form, net, input_shape):
    images = mx.nd.array(np.random.default_rng(0).uniform(-1, 1, (_IMAGES, *input_shape[1:])))
    # Parameters and statistics are as before: no update is made, and the statistics are put back.
    statistics = {parameter: parameter.data().copy() for parameter in net.collect_params().values()
                  if parameter.grad_req == 'null'}

    def step(block):
        with autograd.record():
            loss = block(images).mean()
        loss.backward()
        mx.nd.waitall()

    times, own = interleaved_milliseconds([partial(step, block) for block in (form, net)], _STEPS, warm_up=1)
    for parameter, values in statistics.items():
        parameter.set_data(values)
    return min(times) < min(own)


def _rewritten(net, input_shape):
    symbol, params = trace(net)
    graph = _Rules(symbol, params, node_shapes(symbol, input_shape))
    return graph, graph.apply()


class _Rules(SymbolGraph):

    def __init__(self, symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray],
                 shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(symbol, params)
        self._shapes = shapes
        self._constants: dict[tuple[float, int], int] = {}

    def apply(self) -> set[str]:
        """Rewrite what can be, and return the operators of which some were."""
        rules = {'clip': self._write_clip, _PRELU: self._write_prelu, 'Convolution': self._take_in_padding}
        found = [(node['op'], node) for node in self.nodes if node['op'] in rules]
        return {operator for operator, node in found if rules[operator](node)}

    def _write_clip(self, clip):
        low, high = attributes(clip, a_min=0.0, a_max=0.0)
        shape = self._shapes.get(clip['name'], ())
        if low != 0 or len(shape) != 4:
            return False
        below = self._subtracted_from(high, shape[_CHANNELS], clip['inputs'][0], f'{clip["name"]}_below')
        rest = self.add('Activation', f'{clip["name"]}_rest', [below], act_type='relu')
        clip.update(op='Activation', attrs={'act_type': 'relu'},
                    inputs=[self._subtracted_from(high, shape[_CHANNELS], rest, f'{clip["name"]}_taken_off')])
        return True

    def _write_prelu(self, prelu):
        shape, name = self._shapes.get(prelu['name'], ()), prelu['name']
        if attributes(prelu, act_type='leaky') != ['prelu'] or len(shape) != 4:
            return False
        x, slopes = prelu['inputs']
        channels = shape[_CHANNELS]
        positive = self.add('Activation', f'{name}_positive', [x], act_type='relu')
        rest = self.add('elemwise_sub', f'{name}_rest', [x, positive])
        # One slope may serve all channels.
        column = self.add('Reshape', f'{name}_column', [slopes], shape=(-1, 1, 1, 1))
        weight = self.add('broadcast_to', f'{name}_slopes', [column], shape=(channels, 1, 1, 1))
        scaled = self.add('Convolution', f'{name}_scaled', [rest, weight], kernel=(1, 1), num_filter=channels,
                          num_group=channels, no_bias=True)
        prelu.update(op='elemwise_add', attrs={}, inputs=[positive, scaled])
        return True

    def _take_in_padding(self, convolution):
        source = convolution['inputs'][0][0]
        pad = self.nodes[source]
        if pad['op'] != 'Pad' or attributes(pad, mode='', constant_value=0.0) != ['constant', 0.0]:
            return False
        (width,) = attributes(pad, pad_width=())
        (kernel, own_pad, dilate) = attributes(convolution, kernel=(), pad=(0, 0), dilate=(1, 1))
        if len(width) != 8 or any(width[:4]) or len(kernel) != 2 or own_pad != (0, 0) or dilate != (1, 1):
            return False
        sides = list(zip(width[4::2], width[5::2]))
        before, after = zip(*((max(end - begin, 0), max(begin - end, 0)) for begin, end in sides))
        weight = self.add('Pad', f'{convolution["name"]}_weight_with_zeros', [convolution['inputs'][1]],
                          mode='constant', pad_width=(0, 0, 0, 0, before[0], after[0], before[1], after[1]))
        convolution['inputs'][:2] = [pad['inputs'][0], weight]
        convolution['attrs'].update(
            kernel=str(tuple(size + first + last for size, first, last in zip(kernel, before, after))),
            pad=str(tuple(max(side) for side in sides)))
        return True

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
