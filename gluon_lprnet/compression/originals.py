"""``python -m gluon_lprnet import``: networks that others have trained, as networks of this package to compress."""
import os
import zipfile
from pathlib import Path
from typing import Any, Union

import mxnet as mx
import numpy as np
from mxnet.gluon import HybridBlock

from ..artifact import export_network
from ..data.imagenet_names import imagenet_names
from ..data.images import BILINEAR
from ..formats.symbol_files import read_params
from ..utils.errors import InputError
from ..utils.flags import Commands, add_parser, positive_int
from ..zoo import get_model

__all__ = ['import_gluoncv_mobilenet', 'import_mobilenetv1']

BLOCKS = 13
_PARTS = ('weight', 'zero', 'scale', 'bias')
# GluonCV's, of pixels from 0 to 255.
_GLUONCV_MEAN, _GLUONCV_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def import_mobilenetv1(path: Union[str, os.PathLike], input_size: int) -> tuple[HybridBlock, dict[str, Any]]:
    """MobileNetV1 as its authors trained it in 8 bits on ImageNet, from its arrays.

    Parameters
    ----------
    path : path
        A NumPy file (.npz). For each layer, ``conv0``, ``block1_dw``, ``block1_pw`` to ``block13_pw`` and ``output``:
        ``LAYER_weight`` (uint8), ``LAYER_zero`` and ``LAYER_scale`` (numbers), of which the weight is
        ``(q - zero) * scale``, and ``LAYER_bias`` (float32), BatchNorm folded in. Row 0 of ``output``, the class
        "background", is dropped.
    input_size : int
        Height and width of the pictures that it was trained for: a multiple of 32, for which its padding is exact.

    Returns
    -------
    tuple of (HybridBlock, dict)
        The network ``mobilenetv1`` of the zoo, with ReLU6 and TensorFlow's padding; its BatchNorms add the biases and
        do nothing else, in training too. And its description, as of an exported network: pictures are prepared as by
        its authors, with the center 0.875 of the shorter side, bilinear, and (pixel - 128) / 128. Of 1,000 classes it
        has ImageNet's names.

    Raises
    ------
    InputError
        If the file cannot be read, or an array is missing or has another shape or type.
    """
    if input_size < 32 or input_size % 32:
        raise InputError(f'input_size {input_size} is not a multiple of 32, for which alone the padding is exact.')
    arrays = _read(path)
    first = _array(arrays, 'conv0_weight', path, (None, 3, 3, 3))
    classes = len(_array(arrays, 'output_bias', path, (None,))) - 1
    if classes < 1:
        raise InputError(f'{path}: output_bias has no class besides the background.')
    net, config = _untrained(len(first) / 32, classes, input_size, 'relu6', 'tensorflow', [128.0] * 3, [128.0] * 3)
    net.initialize()
    stem, *blocks = list(net.features)[:BLOCKS + 1]
    layers = {'conv0': stem}
    for number, block in enumerate(blocks, 1):
        layers.update({f'block{number}_dw': block[0], f'block{number}_pw': block[1]})
    for name, layer in layers.items():
        weight, bias = _layer(arrays, name, path, layer[0].weight.shape)
        layer[0].weight.set_data(mx.nd.array(weight))
        _hold_bias(layer[1], bias)
    outputs = (classes + 1, net.output.weight.shape[1])
    weight, bias = _layer(arrays, 'output', path, outputs)
    net.output.weight.set_data(mx.nd.array(weight[1:]))
    net.output.bias.set_data(mx.nd.array(bias[1:]))
    return net, config


def import_gluoncv_mobilenet(path: Union[str, os.PathLike],
                             input_size: int = 224) -> tuple[HybridBlock, dict[str, Any]]:
    """MobileNetV1 as GluonCV trains it, from its parameters.

    Parameters
    ----------
    path : path
        A ``.params`` file of GluonCV's ``mobilenet1.0``, ``mobilenet0.75``, ``mobilenet0.5`` or ``mobilenet0.25``, as
        ``get_model(..., pretrained=True)`` keeps it in ``~/.mxnet/models`` or ``save_parameters`` writes it.
    input_size : int
        Height and width of the pictures that it was trained for.

    Returns
    -------
    tuple of (HybridBlock, dict)
        The network ``mobilenetv1`` of the zoo, and its description, with GluonCV's preprocessing. Of 1,000 classes it
        has ImageNet's names.

    Raises
    ------
    InputError
        If the file cannot be read, or is not of such a network.
    """
    params = read_params(Path(path))
    output, first = params.get('output.bias'), params.get('features.0.weight')
    if output is None or first is None or output.ndim != 1 or first.ndim != 4:
        raise InputError(f"{path} does not have the parameters of GluonCV's MobileNetV1: take a file that "
                         'save_parameters wrote, of mobilenet1.0, 0.75, 0.5 or 0.25.')
    net, config = _untrained(len(first) / 32, len(output), input_size, 'relu', 'symmetric', list(_GLUONCV_MEAN),
                             list(_GLUONCV_STD))
    net.initialize()
    # There a ReLU follows each BatchNorm as a block of its own.
    names = [f'features.{3 * layer + part}.{kind}' for layer in range(2 * BLOCKS + 1)
             for part, kinds in enumerate((('weight',), ('gamma', 'beta', 'running_mean', 'running_var')))
             for kind in kinds] + ['output.weight', 'output.bias']
    if set(names) != set(params):
        raise InputError(f"{path} does not have the parameters of GluonCV's MobileNetV1: "
                         f'{min(set(names) ^ set(params))} is missing or is one too many.')
    for name, parameter in zip(names, net._collect_params_with_prefix().values()):
        if params[name].shape != parameter.shape:
            raise InputError(f'{path}: {name} has shape {params[name].shape}, not {parameter.shape}.')
        parameter.set_data(mx.nd.array(params[name]))
    return net, config


def _untrained(width, classes, input_size, activation, padding, mean, std):
    """MobileNetV1 of the zoo and its description; of 1,000 classes with ImageNet's names."""
    config: dict[str, Any] = {
        'task': 'classification', 'model': f'mobilenetv1_x{width:g}' if width != 1 else 'mobilenetv1_x1.0',
        'num_classes': classes, 'small_image': False, 'rank': None, 'no_residual': False, 'no_l2_norm': False,
        'l2_norm_scale': None, 'activation': activation, 'padding': padding, 'input_size': input_size,
        'crop_ratio': 0.875, 'inter_method': BILINEAR, 'rgb_mean': mean, 'rgb_std': std, 'class_names': None}
    words = imagenet_names()
    if classes == len(words):
        config.update(class_names=list(words.values()), class_ids=list(words))
    with mx.name.NameManager():
        return get_model(config['model'], classes=classes, activation=activation, padding=padding), config


def _hold_bias(norm, bias):
    """Let a BatchNorm add a bias and do nothing else."""
    epsilon = norm._kwargs['eps']
    # What the constructor's use_global_stats sets: the statistics of a batch are not those of the folded ones.
    norm._kwargs['use_global_stats'] = True
    for parameter, value in ((norm.gamma, 1.0), (norm.beta, bias), (norm.running_mean, 0.0),
                             (norm.running_var, 1 - epsilon)):
        parameter.set_data(mx.nd.array(np.broadcast_to(value, bias.shape)))


def _layer(arrays, name, path, shape):
    """Weight and bias, float32."""
    quantized, zero, scale, bias = (_array(arrays, f'{name}_{part}', path, wanted) for part, wanted in zip(
        _PARTS, (shape, (), (), shape[:1])))
    weight = (quantized.astype('float32') - np.float32(zero)) * np.float32(scale)
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise InputError(f'{path}: {name} has NaN or infinite values.')
    return weight, bias.astype('float32')


def _read(path):
    try:
        # Without pickles, which can run any program.
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except OSError as error:
        raise InputError(f'{path}: {error.strerror or error}.') from error
    except (AttributeError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f'{path} is not a whole NumPy file (.npz) of arrays: {error}.') from error


def _array(arrays, name, path, shape):
    """One array; None in ``shape`` is any length."""
    if name not in arrays:
        raise InputError(f'{path} has no array {name}.')
    found = arrays[name]
    if found.dtype.kind not in 'iuf' or len(found.shape) != len(shape) or any(
            length is not None and length != wanted for length, wanted in zip(shape, found.shape)):
        expected = ', '.join('any' if length is None else str(length) for length in shape)
        raise InputError(f'{path}: {name} has shape {found.shape} and type {found.dtype}, not numbers of shape '
                         f'({expected}).')
    return found


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'import', help='MobileNetV1 as others trained it on ImageNet, as an exported network',
        example='gluon-lprnet import mobilenetv1_x0.5.npz --input-size 160 --out original\n'
                'gluon-lprnet import ~/.mxnet/models/mobilenet0.5-9f83e440.params --input-size 224 --out original',
        description='Read the arrays of an 8-bit MobileNetV1 (LAYER_weight, LAYER_zero, LAYER_scale and LAYER_bias in '
                    "a .npz file), or the parameters of GluonCV's MobileNetV1 (.params), and write the network as "
                    'symbol and params with its description, for compress, export, predict and evaluate.')
    parser.add_argument('arrays', metavar='FILE', help='the .npz file of arrays, or the .params file of GluonCV')
    parser.add_argument('--input-size', type=positive_int, required=True, metavar='PIXELS',
                        help='height and width of the pictures that it was trained for')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write to')
    parser.set_defaults(run=_run)


def _run(args):
    read = import_gluoncv_mobilenet if args.arrays.endswith('.params') else import_mobilenetv1
    print(export_network(*read(args.arrays, args.input_size), args.out))
