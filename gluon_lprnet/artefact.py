"""Trained networks as files: written as symbol and params, loaded from these or from a checkpoint."""
import json
import re
from pathlib import Path

import mxnet as mx
from mxnet import gluon

from . import checkpoint
from .blocks import normalize_in_rank_space
from .utils.errors import InputError
from .zoo import get_model

# What a user of the network must know besides its weights; written next to symbol and params.
DESCRIPTION_KEYS = ('task', 'model', 'num_classes', 'small_image', 'rank', 'no_residual', 'no_l2_norm', 'input_size',
                    'crop_ratio', 'inter_method', 'crop_scale', 'rgb_mean', 'rgb_std', 'class_names')


def model_arguments(config):
    """The keywords of :func:`gluon_lprnet.get_model` that a training's flags (a dict) ask for."""
    arguments = {'classes': config['num_classes']}
    if config['small_image']:
        arguments['small_image'] = True
    if config['rank'] is not None:
        arguments['rank'] = config['rank']
    for switch in ('residual', 'l2_norm'):
        if config[f'no_{switch}']:
            arguments[switch] = False
    return arguments


def export_network(net, config, folder):
    """Write ``MODEL-symbol.json``, ``MODEL-0000.params`` and ``MODEL.json`` into ``folder``.

    Parameters
    ----------
    net : HybridBlock
        Its input is ``data``, NCHW, (RGB - mean) / std. Left in float32 and hybridized.
    config : dict
        The training's flags; those that describe the network's input and output are written to ``MODEL.json``.

    Returns
    -------
    Path
        The symbol file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    prefix = folder / config['model']
    net.cast('float32')
    normalize_in_rank_space(net, False)
    net.hybridize()
    size = config['input_size']
    net(mx.nd.zeros((1, 3, size, size), ctx=next(iter(net.collect_params().values())).list_ctx()[0]))
    net.export(str(prefix))
    description = _describe(config)
    prefix.with_name(prefix.name + '.json').write_text(json.dumps(description, indent=1) + '\n')
    return Path(f'{prefix}-symbol.json')


def load_network(path, context=None):
    """Load a trained network.

    Parameters
    ----------
    path : path
        A run's folder (its newest complete checkpoint), a checkpoint's folder, or a ``*-symbol.json`` with
        its ``*-NNNN.params`` beside it.
    context : mx.Context, optional

    Returns
    -------
    tuple of (HybridBlock, dict)
        The network, hybridized, and its description (:data:`DESCRIPTION_KEYS`), which is empty for a symbol
        file written by another program.

    Raises
    ------
    InputError
        If it is none of these, or is incomplete.
    """
    context = context or mx.cpu()
    path = Path(path)
    if path.name.endswith('-symbol.json'):
        net, description = _load_symbol(path, context)
    elif path.is_dir():
        found = checkpoint.find(path)
        if found is None:
            raise InputError(f'{path} is neither a checkpoint nor a run with checkpoints.')
        config = found.state['config']
        net = get_model(config['model'], **model_arguments(config))
        net.load_parameters(found.params, ctx=context, cast_dtype=True)
        description = _describe(config)
    else:
        raise InputError(f'{path}: give the folder of a run or of a checkpoint, or a -symbol.json file'
                         f'{"" if path.exists() else " (the path does not exist)"}.')
    net.hybridize(static_alloc=True, static_shape=True)
    return net, description


def _describe(config):
    return {key: config[key] for key in DESCRIPTION_KEYS if key in config}


def _load_symbol(path, context):
    if not path.exists():
        raise InputError(f'{path} does not exist.')
    prefix = path.name[:-len('-symbol.json')]
    params = sorted(file for file in path.parent.iterdir()
                    if re.fullmatch(re.escape(prefix) + r'-\d{4,}\.params', file.name))
    if not params:
        raise InputError(f'{path}: no {prefix}-NNNN.params beside it.')
    try:
        # Like SymbolBlock.imports, which leaves the type of the input open and warns about it.
        net = gluon.SymbolBlock(mx.sym.load(str(path)), mx.sym.var('data', dtype='float32'))
        net.load_parameters(str(params[-1]), ctx=context)
    except (mx.MXNetError, AssertionError, ValueError) as error:
        raise InputError(f'{path} with {params[-1].name} does not load: {str(error).splitlines()[-1]}') from error
    description = path.with_name(prefix + '.json')
    try:
        return net, json.loads(description.read_text()) if description.exists() else {}
    except ValueError as error:
        raise InputError(f'{description}, the description of the network, is not valid JSON: {error}.') from error
