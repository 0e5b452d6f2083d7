"""Networks of other programs in the form that the package works with.

That form has one input, ``data``, (N, 3, height, width), and one output, (N, K), which for classes are logits. A symbol
that differs is changed where its function stays the same: a loss layer and its labels go (Module's SoftmaxOutput), so
does a softmax at the end, the input gets its name, and a network of (N, height, width, 3) a transpose in front. What a
network does with pixels itself (GluonCV's ``export_block`` puts the normalization into the graph) is found out by
running that part of it, so that it is not done twice. A BatchNorm there may as well be of images that were normalized
before (Gluon's ``resnet*_v2``): its values tell.
"""
import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Optional

import mxnet as mx
import numpy as np

from ..graph import attributes, in_float32
from ..utils.errors import InputError
from .symbol_files import last_line

__all__ = ['LAYOUTS', 'Standard', 'candidates', 'check_output', 'normalization_of', 'pixel_facts', 'standard_form']

LAYOUTS = ('NCHW', 'NHWC')

# Sides of images that are tried where the network's is not known; most networks take any, and so the first.
SIZES = (224, 299, 256, 227, 331, 128, 112, 96, 64, 48, 32, 28)

# At inference these give what they get.
_IDENTITIES = {'LinearRegressionOutput', 'MAERegressionOutput', 'SVMOutput', 'MakeLoss', 'make_loss', 'BlockGrad',
               '_copy'}
_SOFTMAX = {'SoftmaxOutput', 'Softmax', 'softmax', 'log_softmax', 'SoftmaxActivation'}
_SIGMOID = {'sigmoid', 'LogisticRegressionOutput'}
_SHAPES_ONLY = {'Flatten', 'Reshape', 'squeeze'}

# Of pixels from 0 to 1: where the mean and the deviation of each channel of photos lie.
_MEANS, _DEVIATIONS = (0.1, 0.9), (0.1, 0.6)

# What may stand between pixels and the first layer; those of the second line do arithmetic.
_ARRANGING = {'transpose', 'SwapAxis', 'Cast', 'amp_cast', 'reverse', *_IDENTITIES}
_ARITHMETIC = {'broadcast_sub', 'broadcast_div', 'broadcast_mul', 'broadcast_add', '_minus_scalar', '_div_scalar',
               '_mul_scalar', '_plus_scalar', 'BatchNorm', '_image_to_tensor', '_image_normalize'}
_COMMUTATIVE = {'broadcast_mul', 'broadcast_add'}


class Standard(NamedTuple):
    """A network in the standard form.

    Attributes
    ----------
    symbol : Symbol
    params : dict of str to ndarray
        What it needs; float32, or integers.
    facts : dict
        What the network itself says of its description: ``num_classes``; ``input_size`` where it does not take images
        of 224x224; ``rgb_mean``, ``rgb_std`` and ``normalized_inside`` where it normalizes pixels.
    """

    symbol: mx.sym.Symbol
    params: dict[str, np.ndarray]
    facts: dict[str, Any]


def standard_form(symbol: mx.sym.Symbol, params: dict[str, np.ndarray], path: Any, params_path: Any,
                  description: dict[str, Any]) -> Standard:
    """Bring a network into the standard form.

    Parameters
    ----------
    symbol : Symbol
    params : dict of str to ndarray
        Its parameters and auxiliary states, and perhaps others.
    path, params_path : path
        Of its files, for messages.
    description : dict
        Its ``task`` and ``input_size`` are used, where it has them.

    Raises
    ------
    InputError
        If it has several outputs or inputs, parameters are missing or of other shapes, or it does not give one row of
        numbers for each RGB image.
    """
    outputs = symbol.list_outputs()
    if len(outputs) != 1:
        raise InputError(f'{path} has {len(outputs)} outputs, {", ".join(outputs)}, and a network of one is taken: '
                         'save a symbol of that one alone.')
    symbol = _without_loss(symbol, path, description.get('task'))
    name = _input_of(symbol, params, path, params_path)
    params = {each: params[each] for each in symbol.list_inputs() if each != name}
    if any(value.dtype.kind == 'f' and value.dtype != 'float32' for value in params.values()):
        symbol = in_float32(symbol)
        params = {each: value.astype('float32') if value.dtype.kind == 'f' else value
                  for each, value in params.items()}
    if 'data' in params:
        raise InputError(f'{path}: "data" is a parameter, and the input is {name!r}: rename the parameter.')
    # Without the shape and the type that it may have been saved with.
    symbol = symbol(**{name: _image_variable()})
    layout, size, (_, *rest) = _fitting(symbol, params, path, params_path, description.get('input_size'))
    normalization = _normalization(symbol, params, layout, size)
    if layout == 'NHWC':
        symbol = symbol(data=mx.sym.transpose(_image_variable(), axes=(0, 2, 3, 1), name='data_nhwc'))
    if len(rest) > 1:
        symbol = mx.sym.Flatten(symbol, name='output')
    return Standard(symbol, params, {'num_classes': rest[0], **({} if size == SIZES[0] else {'input_size': size}),
                                     **pixel_facts(normalization)})


def _image_variable():
    # Four dimensions of any size, as graph.trace has them.
    return mx.sym.var('data', shape=(0, 0, 0, 0), dtype='float32')


def _head(symbol):
    graph = json.loads(symbol.tojson())
    return graph['nodes'][graph['heads'][0][0]]


def _without_loss(symbol, path, task):
    """The symbol without what its end has of losses and of softmax."""
    found, end = symbol, symbol
    while True:
        node = _head(end)
        kind = node['op']
        if kind in _SIGMOID or kind == 'Activation' and attributes(node, act_type='') == ['sigmoid']:
            if task == 'landmarks':
                return found
            raise InputError(f'{path} ends in {node["name"]!r}, a sigmoid, which gives each class a probability of its '
                             'own: networks of one class for each image are taken.')
        if kind not in _IDENTITIES | _SOFTMAX | _SHAPES_ONLY:
            return found
        end = end.get_children()[0]
        if kind in _SOFTMAX:
            axis, temperature = (node.get('attrs', {}).get(key, default) for key, default in
                                 (('axis', '-1'), ('temperature', 'None')))
            if axis not in ('-1', '1'):
                return found
            # One only: what is below it, be it another softmax, is the network's.
            return end if temperature == 'None' else end / float(temperature)
        if kind in _IDENTITIES and found.name == node['name']:
            found = end


def _input_of(symbol, params, path, params_path):
    """The name of the only variable that has no value."""
    free = [name for name in symbol.list_inputs() if name not in params]
    if not free:
        raise InputError(f'{params_path} has values for all variables of {path}: none is left for the image.')
    if len(free) > 1:
        hint = (' (it was written by save_parameters, by the names of blocks: write symbol and parameters together, by '
                'net.export)' if not set(symbol.list_inputs()) & set(params) else '')
        raise InputError(f'{params_path} has no values for {_some(free)}, variables of {path}; only one, the image, '
                         f'may lack them{hint}.')
    return free[0]


def _some(names):
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')


def candidates(size: Optional[int] = None) -> Iterator[tuple[str, int, tuple[int, int, int, int]]]:
    """Layout, side and shape of two images that a network may take: of one size, or of the usual ones."""
    for side in [size] if size else SIZES:
        for layout in LAYOUTS:
            # More than one: a network may have been saved for batches of one.
            yield layout, side, (2, 3, side, side) if layout == 'NCHW' else (2, side, side, 3)


def _fitting(symbol, params, path, params_path, size):
    """Layout and side of the images that the network takes, and the shape of its output for two."""
    arguments = {name: params[name].shape for name in symbol.list_arguments() if name != 'data'}
    auxiliary = [params[name].shape for name in symbol.list_auxiliary_states()]

    def output_for(shape):
        # Not infer_shape, which prints what does not fit.
        _, outputs, states = symbol.infer_shape_partial(data=shape, **arguments)
        if states != auxiliary or 0 in (outputs[0] or (0,)):
            raise mx.MXNetError('its shapes do not follow from that of the image')
        return outputs[0]

    reasons = []
    for layout, side, shape in candidates(size):
        try:
            output = output_for(shape)
        except mx.MXNetError as error:
            reasons.append(last_line(error))
            continue
        with contextlib.suppress(mx.MXNetError):
            # What takes any number of channels has them on another axis: a side of the image fits by chance.
            output_for(tuple(4 if length == 3 else length for length in shape))
            reasons.append('its layers do not fit the 3 channels of an image')
            continue
        check_output(output, path)
        return layout, side, output
    sides = size or f'{min(SIZES)} to {max(SIZES)}'
    hint = '' if size else (' If it takes images of one other size, write {"input_size": SIZE} to '
                            f'{str(path).removesuffix("-symbol.json")}.json.')
    raise InputError(f'{path} with {params_path} takes no RGB image of {sides} pixels a side: {reasons[0]}{hint}')


def check_output(shape: tuple[int, ...], path: Any) -> None:
    """Refuse (InputError) a network that gives an output of this shape for two images: one row of numbers each."""
    if len(shape) < 2 or shape[0] != 2 or any(length != 1 for length in shape[2:]):
        raise InputError(f'{path} gives an output of the shape {shape} for two images, and not a row of numbers for '
                         'each.')


def _normalization(symbol, params, layout, size):
    """What the network makes of pixels before its first layer; see :func:`normalization_of`."""
    nodes = json.loads(symbol.tojson())['nodes']
    users = {}
    for node in nodes:
        for index, *_ in node['inputs']:
            users.setdefault(index, []).append(node)
    current = next(index for index, node in enumerate(nodes) if node['name'] == 'data')
    arithmetic = []
    while len(users.get(current, ())) == 1:
        node, = users[current]
        if node['op'] not in _ARRANGING | _ARITHMETIC:
            break
        first = node['inputs'][0][0]
        if first != current and not (node['op'] in _COMMUTATIVE and nodes[first]['op'] == 'null'):
            break
        if node['op'] in _ARITHMETIC:
            arithmetic.append(node)
        current = nodes.index(node)
    if not arithmetic:
        return None
    prologue = symbol.get_internals()[f'{arithmetic[-1]["name"]}_output']
    values = {name: mx.nd.array(params[name], dtype=params[name].dtype) for name in prologue.list_inputs()
              if name != 'data'}
    states = {name: values.pop(name) for name in prologue.list_auxiliary_states()}

    def run(images):
        executor = prologue.bind(mx.cpu(), {**values, 'data': mx.nd.array(images)}, aux_states=states, grad_req='null')
        return executor.forward(is_train=False)[0].asnumpy()
    return normalization_of(run, layout, size, {node['op'] for node in arithmetic} == {'BatchNorm'})


def normalization_of(prologue: Callable[[np.ndarray], np.ndarray], layout: str, size: int,
                     learned: bool) -> Optional[tuple[np.ndarray, np.ndarray]]:
    """Mean and standard deviation of what a network does with pixels first; None if it is not of that form.

    Parameters
    ----------
    prologue : callable
        The first part of the network, from images to numbers for each pixel.
    layout : str
        Of the images.
    size : int
        Their side.
    learned : bool
        It is a BatchNorm alone, and a normalization of pixels only where its values are like those of photos.

    Returns
    -------
    tuple of (ndarray (3,), ndarray (3,)) or None
        In the units of the network's input.
    """
    values = np.array([0, 1, 255], 'float32')
    shape = (3, 3, size, size) if layout == 'NCHW' else (3, size, size, 3)
    images = np.broadcast_to(values[:, None, None, None], shape)
    found = prologue(np.ascontiguousarray(images)).astype('float64')
    if found.ndim != 4 or found.shape[1] != 3 and found.shape[3] != 3:
        return None
    zero, one, white = found[:, :, 0, 0] if found.shape[1] == 3 else found[:, 0, 0, :]
    slope = (white - zero) / 255
    if not (slope.all() and np.allclose(one - zero, slope, rtol=1e-3)):
        return None
    mean, std = -zero / slope, 1 / slope
    return None if learned and not _of_photos(mean, std) else (mean, std)


def _of_photos(mean, std):
    white = 255 / _unit(mean, std)
    return all(low <= value <= high for values, (low, high) in ((mean / white, _MEANS), (std / white, _DEVIATIONS))
               for value in values)


def _unit(mean, std):
    """What pixels from 0 to 255 are divided by before a normalization of this mean and deviation: 1 or 255."""
    # Of pixels from 0 to 255, a mean or a deviation is above 1.
    return 255.0 if (abs(mean) <= 1).all() and (abs(std) <= 1).all() else 1.0


def pixel_facts(normalization: Optional[tuple[np.ndarray, np.ndarray]], of_bytes: bool = False) -> dict[str, Any]:
    """The entries of a description for a network that takes pixels, from 0 to 255 or to 1, and normalizes them itself.

    Parameters
    ----------
    normalization : tuple or None
        As of :func:`normalization_of`.
    of_bytes : bool
        Whether it takes whole numbers, and so pixels in any case.
    """
    if normalization is None:
        return {'rgb_mean': [0.0] * 3, 'rgb_std': [1.0] * 3} if of_bytes else {}
    mean, std = normalization
    unit = 1.0 if of_bytes else _unit(mean, std)
    return {'rgb_mean': [0.0] * 3, 'rgb_std': [unit] * 3, 'normalized_inside': {
        'rgb_mean': (mean * unit).round(3).tolist(), 'rgb_std': (std * unit).round(3).tolist()}}
