"""A network in other operators than those that it is deployed in, with the same parameters.

ReLU6, PReLU and TensorFlow's padding are ``clip``, ``LeakyReLU`` and ``Pad`` in MXNet, none of which oneDNN has: a
network trains longer in them than in all its convolutions. Three rules write them in oneDNN's operators.

- ``clip(x, 0, 6)`` is ``relu(6 - relu(6 - x))``, where ``6 - x`` is a BatchNorm of fixed statistics.
- PReLU is ``relu(x)`` plus what it leaves of ``x`` times the slopes: of feature maps a depthwise convolution of 1x1.
  This rule is not for speed alone: in a hybridized network MXNet may write the gradient of PReLU's input over that of
  its output before it takes the slopes' gradient from the latter, which is then too small by a factor of the slope.
- ``Pad`` by more on one side than on the other, before a convolution, is padding by the larger number on both sides for
  a kernel with rows or columns of 0 where there is too much.

Three more rules are for those who ask for them, because they make some networks slower.

- oneDNN's faster convolutions take channels in blocks of eight, and MXNet hands them no incomplete block: other
  convolutions are matrix products of copies, up to three times as slow. Groups whose channels are not multiples of
  eight are merged until they are, with weights of 0 between them.
- Channels of a convolution of one group are filled up by weights of 0.
- Global average pooling in front of a convolution, as in a squeeze-and-excitation module, is a mean, whose gradient
  does not take oneDNN's slow way.
"""
import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

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

__all__ = ['form_to_train', 'rewrite', 'with_form_to_train']

_CHANNELS = 1
# Of channels, in oneDNN's faster convolutions.
_BLOCK = 8
_PRELU = 'LeakyReLU'
# Of a measurement: images of a step, and steps.
_IMAGES, _STEPS = 8, 2


def rewrite(net: HybridBlock, input_shape: tuple[int, ...], every_rule: bool = False) -> SymbolBlock:
    """The same function as ``net``, with the same parameters: what is trained here is trained there.

    A gradient differs only where an input of ReLU6 is 0 or 6 to the last bit: it is 0 there, and 1 of ``clip``.

    Parameters
    ----------
    net : HybridBlock
        Initialized, with one NCHW input.
    input_shape : tuple of int
        Of one image, NCHW.
    every_rule : bool, default False
        Apply the three rules about blocks of channels and pooling too.

    Returns
    -------
    SymbolBlock
        Hybridized.
    """
    return _sharing_parameters(net, _apply_rules(net, input_shape, every_rule)[0])


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


def form_to_train(net: HybridBlock, input_shape: tuple[int, ...],
                  state: Mapping[str, Any] = MappingProxyType({})) -> HybridBlock:
    """The :func:`rewrite` of a network with PReLU; of another one, that or ``net`` itself.

    The one is taken in which a step takes less time here. Which that is depends on the widths and the processor: after
    some convolutions, by the order in which these leave their channels, oneDNN's BatchNorm takes a hundred times as
    long backward.

    Parameters
    ----------
    net, input_shape
        As of :func:`rewrite`, on the CPU.
    state : mapping, optional
        Of the checkpoint from which a training goes on: its form is taken then, and nothing is measured.

    Returns
    -------
    HybridBlock
    """
    graph, rewritten = _apply_rules(net, input_shape)
    if not rewritten:
        return net
    form = _sharing_parameters(net, graph)
    if _PRELU in rewritten:
        return form
    is_taken = state.get('rewritten')
    if is_taken is None:
        is_taken = _is_faster(form, net, input_shape)
    return form if is_taken else net


def with_form_to_train(task: TrainingTask, config: NetworkTrainingConfig,
                       state: Mapping[str, Any] = MappingProxyType({})) -> TrainingTask:
    """The task with the outputs of its network computed in its :func:`form_to_train`, which takes ``state``.

    With ``fast_form`` every rule is applied, and nothing is measured: two trainings are the same to the last bit. On
    GPUs, and in other precisions than float32, no network but one with PReLU needs another form.

    Raises
    ------
    InputError
        For PReLU in another precision, or for ``fast_form`` in one or on other devices than one CPU.
    """
    input_shape = (1, 3, config.input_size, config.input_size)
    if task.contexts == [mx.cpu()] and config.dtype == 'float32':
        if config.fast_form:
            graph, rewritten = _apply_rules(task.net, input_shape, every_rule=True)
            form = _sharing_parameters(task.net, graph) if rewritten else task.net
        else:
            form = form_to_train(task.net, input_shape, state)
    else:
        if config.fast_form:
            raise InputError('`fast_form` is for float32 and one CPU: leave it out.')
        graph, rewritten = _apply_rules(task.net, input_shape)
        if _PRELU not in rewritten:
            return task
        if config.dtype != 'float32':
            raise InputError(f'`dtype` {config.dtype}: a network with PReLU is trained in float32, since MXNet\'s own '
                             'gradient of the slopes can be wrong.')
        form = _sharing_parameters(task.net, graph)
    if form is task.net:
        return task
    LOGGER.info('trained in other operators of the same function, which are faster here or have the right gradient')
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


def _are_whole(*channels):
    return not any(number % _BLOCK for number in channels)


def _apply_rules(net, input_shape, every_rule=False):
    symbol, params = trace(net)
    graph = _Rules(symbol, params, node_shapes(symbol, input_shape))
    return graph, graph.apply(every_rule)


class _Rules(SymbolGraph):

    def __init__(self, symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray],
                 shapes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__(symbol, params)
        self._shapes = shapes
        self._constants: dict[str, list[int]] = {}
        # MXNet cannot infer the shape of a parameter from what it becomes.
        for node in self.nodes:
            if node['name'] in self.params:
                node.setdefault('attrs', {})['__shape__'] = str(self.params[node['name']].shape)

    def apply(self, every_rule: bool) -> set[str]:
        """Rewrite what can be, and return the operators of which some were."""
        rules = [('clip', self._write_clip), (_PRELU, self._write_prelu), ('Convolution', self._take_in_padding)]
        if every_rule:
            rules += [('Pooling', self._write_global_pooling), ('Convolution', self._merge_groups),
                      ('Convolution', self._fill_up_channels)]
        found = [(node, operator, rule) for operator, rule in rules for node in self.nodes if node['op'] == operator]
        return {operator for node, operator, rule in found if rule(node)}

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
        if attributes(prelu, act_type='leaky') != ['prelu'] or len(shape) < 2:
            return False
        x, slopes = prelu['inputs']
        positive = self.add('Activation', f'{name}_positive', [x], act_type='relu')
        rest = self.add('elemwise_sub', f'{name}_rest', [x, positive])
        prelu.update(op='elemwise_add', attrs={}, inputs=[positive, self._scaled(slopes, rest, shape, name)])
        return True

    def _scaled(self, slopes, rest, shape, name):
        channels = shape[_CHANNELS]
        if len(shape) != 4:
            column = self.add('Reshape', f'{name}_column', [slopes], shape=(1, -1, *(1 for _ in shape[2:])))
            return self.add('broadcast_mul', f'{name}_scaled', [rest, column])
        # One slope may serve all channels.
        column = self.add('Reshape', f'{name}_column', [slopes], shape=(-1, 1, 1, 1))
        weight = self.add('broadcast_to', f'{name}_slopes', [column], shape=(channels, 1, 1, 1))
        return self.add('Convolution', f'{name}_scaled', [rest, weight], kernel=(1, 1), num_filter=channels,
                        num_group=channels, no_bias=True)

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
        channels = self._shape(convolution['inputs'][1])[:2]
        convolution['inputs'][:2] = [pad['inputs'][0], weight]
        larger = tuple(size + first + last for size, first, last in zip(kernel, before, after))
        convolution['attrs'].update(kernel=str(larger), pad=str(tuple(max(side) for side in sides)))
        self._set_shape(weight, (*channels, *larger))
        return True

    def _write_global_pooling(self, pooling):
        index = self.nodes.index(pooling)
        if (attributes(pooling, global_pool=False, pool_type='max') != [True, 'avg'] or
                not any(node['op'] == 'Convolution' and node['inputs'][0][0] == index for node in self.nodes)):
            return False
        pooling.update(op='mean', attrs={'axis': '(2, 3)', 'keepdims': 'True'})
        return True

    def _merge_groups(self, convolution):
        (groups,) = attributes(convolution, num_group=1)
        channels, in_group, *kernel = self._shape(convolution['inputs'][1])
        out_group = channels // groups
        # For depthwise convolutions oneDNN has other ones.
        if groups == 1 or in_group == 1 or len(kernel) != 2 or _are_whole(in_group, out_group):
            return False
        merged = next(number for number in range(2, groups + 1) if groups % number == 0 and
                      (_are_whole(number * in_group, number * out_group) or number == groups))
        # Each output's weights stand in all of the groups that are merged, and are 0 but in its own one.
        tiled = self.add('tile', f'{convolution["name"]}_tiled', [convolution['inputs'][1]], reps=(1, merged, 1, 1))
        own = np.tile(np.kron(np.eye(merged), np.ones((out_group, in_group))), (groups // merged, 1))[..., None, None]
        mask = self._constant(f'own_of_{groups}_groups_of_{in_group}_and_{out_group}', own)
        weight = self.add('broadcast_mul', f'{convolution["name"]}_merged', [tiled, mask])
        convolution['inputs'][1] = weight
        self._set_shape(weight, (channels, merged * in_group, *kernel))
        convolution['attrs']['num_group'] = str(groups // merged)
        return True

    def _fill_up_channels(self, convolution):
        (groups,) = attributes(convolution, num_group=1)
        data, weight, *bias = convolution['inputs']
        channels, in_channels, *kernel = self._shape(weight)
        _, _, *size = self._shapes[convolution['name']]
        # For images, too.
        if (groups > 1 or in_channels < _BLOCK or _are_whole(in_channels, channels) or len(kernel) != 2 or
                math.prod(size) == 1):
            return False
        more, in_more = -channels % _BLOCK, -in_channels % _BLOCK
        name, positions = convolution['name'], math.prod(kernel)
        filled_up = channels + more, in_channels + in_more, *kernel
        inputs = [data,
                  self._filled_up(weight, f'{name}_weight', (1, 1, channels, in_channels * positions),
                                  (more, in_more * positions), filled_up),
                  *(self._filled_up(each, f'{name}_bias', (1, 1, 1, channels), (0, more), (-1,)) for each in bias)]
        if in_more:
            inputs[0] = self._filled_up(data, f'{name}_data', (0, 1, in_channels, -1), (in_more, 0),
                                        (0, in_channels + in_more, *self._shape(data)[2:]))
        attrs = {**convolution['attrs'], 'num_filter': channels + more}
        output = self.add('Convolution', f'{name}_filled_up', inputs, **attrs)
        convolution.update(op='slice_axis', attrs={'axis': '1', 'begin': '0', 'end': str(channels)}, inputs=[output])
        return True

    def _filled_up(self, entry, name, shape, more, result):
        """Zeros behind an array, which is seen in a shape of four axes: so many more along the last two of them."""
        seen = self.add('Reshape', f'{name}_seen', [entry], shape=shape)
        padded = self.add('Pad', f'{name}_with_zeros', [seen], mode='constant',
                          pad_width=(0, 0, 0, 0, 0, more[0], 0, more[1]))
        return self.add('Reshape', f'{name}_filled_up', [padded], shape=result)

    def _shape(self, entry):
        return self._shapes[self.nodes[entry[0]]['name']]

    def _set_shape(self, entry, shape):
        self._shapes[self.nodes[entry[0]]['name']] = shape

    def _subtracted_from(self, high, channels, entry, name):
        """``high - x``."""
        constants = {'gamma': -1.0, 'beta': high, 'moving_mean': 0.0, 'moving_var': 1.0}
        inputs = [self._constant(f'{channels}_times_{value:g}', np.full(channels, value))
                  for value in constants.values()]
        return self.add('BatchNorm', name, [entry, *inputs], fix_gamma=False, use_global_stats=True, eps=1e-20)

    def _constant(self, name, values):
        if name not in self._constants:
            self.params[name] = mx.nd.array(values, ctx=self.context, dtype='float32')
            self._constants[name] = self.add('null', name, [], __shape__=values.shape)
        return self._constants[name]
