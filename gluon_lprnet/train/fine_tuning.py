"""Fine-tuning: a training that begins with trained weights and leaves some of them as they are."""
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import nn
from mxnet.gluon.block import HybridBlock

from ..artifact import load_network
from ..formats.symbol_files import read_params
from ..graph import attributes, trace
from ..utils.errors import InputError
from ..zoo.pretrained import split_tag

PathLike = Union[str, 'os.PathLike[str]']

# What an operator computes depends on, by its name, with MXNet's defaults. Numbers of channels and groups follow from
# the weights.
_SETTINGS: dict[str, dict[str, Any]] = {
    'Convolution': dict(stride=(1, 1), pad=(0, 0), dilate=(1, 1)), 'BatchNorm': dict(eps=1e-3, fix_gamma=True),
    'Activation': dict(act_type=''), 'LeakyReLU': dict(act_type='leaky', slope=0.25),
    'clip': dict(a_min=0.0, a_max=0.0), 'Pad': dict(mode='', pad_width=()),
    'L2Normalization': dict(mode='instance', eps=1e-10),
    'Pooling': dict(pool_type='max', global_pool=False, kernel=(), stride=(1, 1), pad=(0, 0))}
# Of a description: how the values that enter the network were made.
_PREPROCESSING = ('rgb_mean', 'rgb_std', 'crop_scale')


class Taken(NamedTuple):
    """What became of trained weights.

    Attributes
    ----------
    anew : list of str
        The parameters of the network that stayed as they were.
    unused : list of str
        Those of the trained network that were not taken.
    differences : list of str
        Where the weights were taken, but the network does not compute with them what the trained one did: a sentence
        part for each kind, with the layers.
    """

    anew: list[str]
    unused: list[str]
    differences: list[str]


def take_weights(net: HybridBlock, source: PathLike, class_names: Optional[list[str]] = None,
                 preprocessing: Mapping[str, Any] = {}) -> Taken:
    """Give a network the trained weights that fit it by name and shape.

    Parameters
    ----------
    net : HybridBlock
        Of the zoo, initialized.
    source : path or str
        What :func:`gluon_lprnet.artifact.load_network` takes (the folder of a run or of a checkpoint, a
        ``*-symbol.json``, the name of a trained network of the package), or a ``*.params`` file.
    class_names : list of str, optional
        Of ``net``: the output layer of a network of other classes does not fit, even if it has as many.
    preprocessing : dict
        With ``rgb_mean``, ``rgb_std``, ``crop_scale`` and ``input_size``, where they apply: how the inputs of ``net``
        are made.

    Returns
    -------
    Taken
        A file of parameters alone says nothing of what was computed with them, and so has no differences.

    Raises
    ------
    InputError
        If it is none of these, if a weight is NaN or infinite, or if no weight of a layer fits.
    """
    parameters = net._collect_params_with_prefix()
    found, description, block = _trained(source, net)
    known = [description.get(key) for key in ('class_names', 'class_ids') if description.get(key)]
    other_classes = bool(class_names and known) and class_names not in known
    fitting = {name for name, parameter in parameters.items()
               if name in found and found[name].shape == parameter.shape
               and not (other_classes and name.startswith('output.'))}
    # A bias or a number per channel alone is nothing learned.
    if not any(len(parameters[name].shape) > 1 for name in fitting):
        raise InputError(f'`init_from` {source}: none of its weights has the name and shape of one of this network. '
                         'Give the weights of the same `model`; only its output layer may differ.'
                         + (f' To train that network itself, give `model` {source}.' if _is_shipped(source) else ''))
    for name in sorted(fitting):
        if not np.isfinite(found[name].asnumpy()).all():
            raise InputError(f'`init_from` {source}: the parameter {name} is NaN or infinite. Give other weights.')
    for name in fitting:
        parameters[name].set_data(found[name].astype(parameters[name].dtype))
    anew = [name for name in parameters if name not in fitting]
    differences = [] if block is None else _differences(net, block, fitting)
    if differences and any(name.startswith('features.') for name in anew) and _begin_alike(net, block, preprocessing):
        differences = []
    return Taken(anew, [name for name in found if name not in fitting],
                 differences + ([] if block is None else _other_preprocessing(description, preprocessing)))


def _begin_alike(net: HybridBlock, other: HybridBlock, config: Mapping[str, Any]) -> bool:
    """Whether the features are the same for now: a new layer may begin without effect, as a scale of 1 does."""
    if isinstance(other, mx.gluon.SymbolBlock) or 'input_size' not in config:
        return False
    size = config['input_size']
    images = np.random.default_rng(0).normal(0, 1, (1, 3, size, size))
    try:
        own, others = (block.features(mx.nd.array(images, next(iter(block.collect_params().values())).list_ctx()[0]))
                       .asnumpy() for block in (net, other))
    except mx.MXNetError:
        return False
    return own.shape == others.shape and np.allclose(own, others, rtol=1e-3, atol=1e-3 * abs(others).max())


def _is_shipped(source: PathLike) -> bool:
    return not os.path.exists(source) and split_tag(str(source))[1] is not None


def _other_preprocessing(description: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    return [f'{key} {_numbers(description[key])} there, {_numbers(own[key])} here' for key in _PREPROCESSING
            if key in description and key in own
            and not np.allclose(np.asarray(description[key]), np.asarray(own[key]))]


def _numbers(value: Any) -> str:
    return ' '.join(f'{number:g}' for number in np.atleast_1d(value))


def _differences(net: HybridBlock, other: HybridBlock, fitting: set[str]) -> list[str]:
    """What differs in the functions of two networks, where one has the weights ``fitting``, names, of the other."""
    layers = {'the input', *(name.rpartition('.')[0] for name in fitting)}
    own = _operators(net, _structural_names(net))
    # A symbol has no names of its own for the layers.
    others = _operators(other, _structural_names(net if isinstance(other, mx.gluon.SymbolBlock) else other))
    places: dict[str, list[str]] = {}
    for layer, here in own.items():
        there = others.get(layer, [])
        if layer in layers and there != here:
            only = [[each for each in first if each not in second] for first, second in ((there, here), (here, there))]
            texts = only if any(only) else [there, here]
            places.setdefault(' there, '.join(', '.join(each) or 'nothing' for each in texts), []).append(layer)
    return [f'{what} here, at {where[0] if len(where) == 1 else f"{len(where)} layers, {where[0]} to {where[-1]}"}'
            for what, where in places.items()]


def _operators(net: HybridBlock, names: Mapping[str, str]) -> dict[str, list[str]]:
    """What each layer with weights, and what follows it without, computes: lists of operators in words, by layer."""
    symbol, _ = trace(net, cast=True)
    nodes = json.loads(symbol.tojson())['nodes']
    layers: list[str] = []
    found: dict[str, list[str]] = {}
    for node in nodes:
        sources = [nodes[index] for index, *_ in node['inputs']]
        weights = [names.get(_own_name(each['name']), each['name']) for each in sources
                   if each['op'] == 'null' and each['name'] != 'data']
        layers.append(weights[0].rpartition('.')[0] if weights
                      else layers[node['inputs'][0][0]] if sources else 'the input')
        if node['op'] != 'null':
            found.setdefault(layers[-1], []).append(_in_words(node))
    return found


def _in_words(node: dict[str, Any]) -> str:
    defaults = _SETTINGS.get(node['op'], {})
    return ' '.join([node['op'], *(f'{name}={value}'.replace(' ', '') for (name, default), value in
                                   zip(defaults.items(), attributes(node, **defaults)) if value != default)])


def _structural_names(net: HybridBlock) -> dict[str, str]:
    """Names such as ``features.3.p1.weight``, by the parameters' own without the prefix of the network."""
    return {_own_name(parameter.name): name for name, parameter in net._collect_params_with_prefix().items()}


def _own_name(name: str) -> str:
    # The first word has the number of the block.
    return name.partition('_')[2]


def freeze(net: HybridBlock, pattern: str) -> list[str]:
    """Leave parameters as they are in training; a BatchNorm of such parameters keeps and uses its running statistics.

    Parameters
    ----------
    net : HybridBlock
    pattern : str
        Regular expression, which is searched for in names such as ``features.3.p1.weight``.

    Returns
    -------
    list of str
        The names of the parameters.

    Raises
    ------
    InputError
        If it is not a regular expression, or matches no parameter that is trained, or all of them.
    """
    try:
        search = re.compile(pattern).search
    except re.error as error:
        raise InputError(f'`freeze` {pattern} is not a regular expression: {error}.') from error
    trained = {name: parameter for name, parameter in net._collect_params_with_prefix().items()
               if parameter.grad_req != 'null'}
    frozen = [name for name in trained if search(name)]
    if len(frozen) in (0, len(trained)):
        raise InputError(f'`freeze` {pattern} matches {"all" if frozen else "none"} of the {len(trained)} parameters '
                         f'that are trained; they are called {next(iter(trained))} to {list(trained)[-1]}.')
    for name in frozen:
        trained[name].grad_req = 'null'
    fix_statistics(net, lambda norm: norm.gamma.grad_req == norm.beta.grad_req == 'null')
    return frozen


def fix_statistics(net: HybridBlock, where: Callable[[nn.BatchNorm], bool] = lambda norm: True) -> None:
    """Make BatchNorm use its running statistics in training, without updating them."""
    def fix(block: HybridBlock) -> None:
        if isinstance(block, nn.BatchNorm) and where(block):
            # The effect of the constructor's use_global_stats, on an existing layer.
            block._kwargs['use_global_stats'] = True
    net.apply(fix)


def _trained(source: PathLike,
             net: HybridBlock) -> tuple[dict[str, mx.nd.NDArray], dict[str, Any], Optional[HybridBlock]]:
    """Trained parameters, by the names that those of ``net`` have, the description of their network, and this itself.

    There is none of a file of parameters.
    """
    description: dict[str, Any] = {}
    block = None
    try:
        if str(source).endswith('.params') and os.path.isfile(source):
            params = read_params(os.fspath(source))
            found = {name: mx.nd.array(value, dtype=value.dtype) for name, value in params.items()}
        else:
            block, description = load_network(source)
            symbolic = isinstance(block, mx.gluon.SymbolBlock)
            parameters = block.collect_params() if symbolic else block._collect_params_with_prefix()
            found = {name: parameter.data() for name, parameter in parameters.items()}
    except InputError as error:
        raise InputError(f'`init_from` {error}') from error
    by_name = _structural_names(net)
    return {by_name.get(_own_name(name), name): value for name, value in found.items()}, description, block
