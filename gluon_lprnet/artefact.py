"""Trained networks as files: written as symbol and params, loaded from these or from a checkpoint."""
import json
import re
from contextlib import contextmanager
from pathlib import Path

import mxnet as mx
import numpy as np
from mxnet import gluon

from . import checkpoint
from .graph import trace
from .utils.errors import InputError
from .utils.files import folder_aside, put_in_place, write_errors
from .zoo import get_model, list_models
from .zoo.pretrained import find_card, split_tag

# What a user of the network must know besides its weights; written next to symbol and params.
DESCRIPTION_KEYS = ('task', 'model', 'num_classes', 'small_image', 'rank', 'no_residual', 'no_l2_norm', 'l2_norm_scale',
                    'activation', 'padding', 'input_size', 'crop_ratio', 'inter_method', 'crop_scale', 'rgb_mean',
                    'rgb_std', 'class_names', 'class_ids')

# Largest difference of a written network from the one in memory, relative to its largest output. In float32 the two may
# normalize in different forms; a network of another precision is written in float32.
_TOLERANCE = {'float32': 1e-4}
_TOLERANCE_OF_OTHERS = 0.1


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
    for switch in ('l2_norm_scale', 'activation', 'padding'):
        if config.get(switch):
            arguments[switch] = config[switch]
    return arguments


def export_network(net, config, folder):
    """Write ``MODEL-symbol.json``, ``MODEL-0000.params`` and ``MODEL.json``, in float32, and compare them with ``net``.

    Parameters
    ----------
    net : HybridBlock
        Its input is ``data``, NCHW, (RGB - mean) / std. It stays as it is, and can be trained on.
    config : dict
        The training's flags; those that describe the network's input and output are written to ``MODEL.json``.
    folder : path
        Made if it is not there. The files appear whole or not at all.

    Returns
    -------
    Path
        The symbol file.

    Raises
    ------
    InputError
        If the network gives NaN, what was written differs from it, or ``folder`` cannot be written to; nothing of it
        is written then.
    """
    parameter = next(iter(net.collect_params().values()))
    context, dtype = parameter.list_ctx()[0], np.dtype(parameter.dtype).name
    images = np.random.default_rng(0).normal(0, 1, (2, 3, config['input_size'], config['input_size']))
    expected = net(mx.nd.array(images, context, dtype)).asnumpy()
    name = f'{config["model"]}-symbol.json'
    with whole_files(folder, []) as scratch:
        write_symbol(*trace(net, cast=True), scratch / config['model'])
        write_description(_describe(config), scratch / config['model'])
        difference = relative_difference(load_network(scratch / name)[0](mx.nd.array(images)).asnumpy(), expected)
        precision = config.get('dtype', dtype)
        # Not >, which a NaN would pass.
        if not difference <= _TOLERANCE.get(precision, _TOLERANCE_OF_OTHERS):
            raise InputError(f'{Path(folder) / name} would give other outputs than the network (by {difference:.1e} of '
                             'the largest): it was not written.')
    return Path(folder) / name


def relative_difference(found, expected):
    """The largest absolute difference of two ndarrays over the largest value expected; NaN if either has one."""
    return abs(found.astype('float64') - expected).max() / max(abs(expected).max(), np.finfo('float32').tiny)


def write_symbol(symbol, params, prefix):
    """Write ``PREFIX-symbol.json`` and ``PREFIX-0000.params``, as MXNet itself does."""
    auxiliary = set(symbol.list_auxiliary_states())
    with write_errors(prefix):
        symbol.save(f'{prefix}-symbol.json')
        mx.nd.save(f'{prefix}-0000.params', {('aux:' if name in auxiliary else 'arg:') + name: value
                                             for name, value in params.items()})


def write_description(description, prefix):
    """Write ``PREFIX.json``."""
    with write_errors(prefix):
        Path(f'{prefix}.json').write_text(json.dumps(description, indent=1) + '\n')


@contextmanager
def whole_files(folder, written):
    """A scratch folder whose files go to ``folder``, and their paths into ``written``, once the block ends well.

    What a network is loaded by, its symbol or ONNX file, is the first to go and the last to come: a kill at any time
    leaves the old network, the new one, or none.

    Raises
    ------
    InputError
        If ``folder`` cannot be written to.
    """
    with folder_aside(folder, 'export') as scratch:
        yield scratch
        files = sorted(scratch.iterdir(), key=lambda file: (_is_loaded_by(file), file.name))
        with write_errors(folder):
            for file in filter(_is_loaded_by, files):
                (Path(folder) / file.name).unlink(missing_ok=True)
        written.extend(put_in_place(files, folder))


def _is_loaded_by(file):
    return file.name.endswith(('-symbol.json', '.onnx'))


def load_network(path, context=None):
    """Load a trained network.

    Parameters
    ----------
    path : path
        A run's folder (its newest complete checkpoint), a checkpoint's folder, a ``*-symbol.json`` with
        its ``*-NNNN.params`` beside it, or the name of a trained network that comes with the package.
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
    elif not path.exists() and split_tag(path)[1]:
        card = find_card(path)
        net = get_model(card.name, ctx=context)
        description = card.description
    else:
        raise InputError(f'{path}: give the folder of a run or of a checkpoint, a -symbol.json file, or one of '
                         f'{", ".join(list_models(pretrained=True)) or "the trained networks (there are none)"}'
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
