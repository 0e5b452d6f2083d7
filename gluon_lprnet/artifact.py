"""Trained networks as files: written as symbol and params, loaded from these, from a checkpoint or from ONNX."""
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, Union

import mxnet as mx
import numpy as np
from mxnet.gluon.block import Block, HybridBlock

from . import checkpoint
from .formats.onnx_files import OnnxNetwork, external_files, load_onnx
from .formats.standard import SIZES, standard_form
from .formats.symbol_files import last_line, latest_params, read_bytes, read_json, read_params, read_symbol
from .graph import as_block, trace
from .utils.errors import InputError
from .utils.files import folder_aside, put_in_place, write_errors
from .zoo import get_model, list_models
from .zoo.pretrained import find_card, split_tag

PathLike = Union[str, 'os.PathLike[str]']

# Keywords of networks that are trained in another form than the one that is deployed.
TRAINING_FORMS = ('condensing', 'relaxed')
# What a user of the network must know besides its weights; written next to symbol and params.
DESCRIPTION_KEYS = ('task', 'model', 'num_classes', 'small_image', *TRAINING_FORMS, 'rank', 'no_residual', 'no_l2_norm',
                    'l2_norm_scale', 'global_depthwise', 'activation', 'padding', 'input_size', 'crop_ratio',
                    'inter_method', 'crop_scale', 'rgb_mean', 'rgb_std', 'class_names', 'class_ids')

# What the entries must be, and in which words. What the package does not read, it does not judge.
_SCHEMA = {
    'task': (lambda value: value in ('classification', 'landmarks'), '"classification" or "landmarks"'),
    'model': (lambda value: isinstance(value, str), 'text'),
    'num_classes': (lambda value: _is_count(value), 'a whole number above 0'),
    'input_size': (lambda value: _is_count(value) and value <= 4096, 'a whole number from 1 to 4096'),
    'crop_ratio': (lambda value: _is_real(value) and 0.1 <= value <= 1, 'a number from 0.1 to 1'),
    'crop_scale': (lambda value: _is_real(value) and value > 0, 'a number above 0'),
    'rgb_mean': (lambda value: _are_reals(value), 'three numbers'),
    'rgb_std': (lambda value: _are_reals(value) and min(value) > 0, 'three numbers above 0'),
    'inter_method': (lambda value: _is_count(value) and value <= 10, "one of MXNet's ways of resizing, 1 to 10"),
    'class_names': (lambda value: _are_names(value), 'a list of names'),
    'class_ids': (lambda value: _are_names(value), 'a list of names'),
    'sha256': (lambda value: isinstance(value, dict), 'an object'),
}

# Largest difference of a written network from the one in memory, relative to its largest output. In float32 the two may
# normalize in different forms; a network of another precision is written in float32.
_TOLERANCE = {'float32': 1e-4}
_TOLERANCE_OF_OTHERS = 0.1


def _is_count(value):
    return type(value) is int and value > 0


def _is_real(value):
    return type(value) in (int, float) and math.isfinite(value)


def _are_reals(value):
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_real, value))


def _are_names(value):
    return value is None or isinstance(value, list) and all(isinstance(name, str) for name in value)


def faults_of(description: Mapping[str, Any]) -> dict[str, str]:
    """The entries of a description, a dict, that cannot be, with what they must be, in words."""
    return {key: words for key, (is_good, words) in _SCHEMA.items()
            if key in description and not is_good(description[key])}


def model_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of :func:`gluon_lprnet.get_model` that a training's flags (a dict) ask for."""
    arguments = {'classes': config['num_classes']}
    if config['small_image']:
        arguments['small_image'] = True
    for form in TRAINING_FORMS:
        if config.get(form):
            arguments[form] = True
    if config['rank'] is not None:
        arguments['rank'] = config['rank']
    for switch in ('residual', 'l2_norm'):
        if config[f'no_{switch}']:
            arguments[switch] = False
    for switch in ('l2_norm_scale', 'activation', 'padding'):
        if config.get(switch):
            arguments[switch] = config[switch]
    if config.get('global_depthwise'):
        # Each of the down-samplings rounds up.
        arguments['global_depthwise'] = -(-config['input_size'] // (8 if config['small_image'] else 32))
    return arguments


def export_network(net: HybridBlock, config: Mapping[str, Any], folder: PathLike) -> Path:
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
    # AMP's networks give bfloat16 on some processors, of which NumPy has none.
    expected = net(mx.nd.array(images, context, dtype)).astype('float32').asnumpy()
    name = f'{config["model"]}-symbol.json'
    # Of several files of parameters, the highest number would be loaded.
    stale = [file for file in Path(folder).glob('*.params') if is_file_of(file.name, config['model'])]
    with whole_files(folder, [], stale) as scratch:
        deployed, config = inference_form(net, config)
        write_symbol(*trace(deployed, cast=True), scratch / config['model'])
        write_description(_describe(config), scratch / config['model'])
        difference = relative_difference(load_network(scratch / name)[0](mx.nd.array(images)).asnumpy(), expected)
        precision = config.get('dtype', dtype)
        # Not >, which a NaN would pass.
        if not difference <= _TOLERANCE.get(precision, _TOLERANCE_OF_OTHERS):
            raise InputError(f'{Path(folder) / name} would give other outputs than the network (by {difference:.1e} of '
                             'the largest): it was not written.')
    return Path(folder) / name


def relative_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest absolute difference of two ndarrays over the largest value expected; NaN if either has one."""
    return abs(found.astype('float64') - expected).max() / max(abs(expected).max(), np.finfo('float32').tiny)


def write_symbol(symbol: mx.sym.Symbol, params: Mapping[str, mx.nd.NDArray], prefix: PathLike) -> None:
    """Write ``PREFIX-symbol.json`` and ``PREFIX-0000.params``, as MXNet itself does.

    Raises
    ------
    InputError
        If a parameter is not finite, or they cannot be written.
    """
    for name, value in params.items():
        # MXNet's ReLU gives 0 for NaN, so that the outputs may not show it.
        if not np.isfinite(value.asnumpy()).all():
            raise InputError(f'the parameter {name} has NaN or infinite values: {Path(prefix).name} was not written.')
    auxiliary = set(symbol.list_auxiliary_states())
    with write_errors(prefix):
        symbol.save(f'{prefix}-symbol.json')
        mx.nd.save(f'{prefix}-0000.params', {('aux:' if name in auxiliary else 'arg:') + name: value
                                             for name, value in params.items()})


def write_description(description: Mapping[str, Any], prefix: PathLike) -> None:
    """Write ``PREFIX.json``, with the SHA-256 of each file that is there of the network."""
    prefix = Path(prefix)
    with write_errors(prefix):
        digests = {file.name: _sha256(file) for file in sorted(prefix.parent.iterdir())
                   if is_file_of(file.name, prefix.name) and file.suffix != '.mar'}
        description = {**description, 'sha256': digests}
        Path(f'{prefix}.json').write_text(json.dumps(description, indent=1) + '\n')


def is_file_of(file_name: str, name: str) -> bool:
    """Whether a file is one of those that a network of that name consists of; its description is not among them."""
    end = file_name[len(name):] if file_name.startswith(name) else ''
    return end in ('-symbol.json', '.onnx', '.mar') or bool(re.fullmatch(r'-[0-9]{4,}\.params', end))


@contextmanager
def whole_files(folder: PathLike, written: list[Path], replaced: Iterable[Path] = ()) -> Iterator[Path]:
    """A scratch folder whose files go to ``folder``, and their paths into ``written``, once the block ends well.

    What a network is loaded by, its symbol or ONNX file, is the first to go and the last to come: a kill at any time
    leaves the old network, the new one, or none. Files of ``folder`` that are ``replaced``, paths, go with the old one.

    Raises
    ------
    InputError
        If ``folder`` cannot be written to.
    """
    with folder_aside(folder, 'export') as scratch:
        yield scratch
        files = sorted(scratch.iterdir(), key=lambda file: (_is_loaded_by(file), file.name))
        old = {Path(folder) / file.name for file in filter(_is_loaded_by, files)} | set(replaced)
        with write_errors(folder):
            for file in sorted(old, key=lambda file: (not _is_loaded_by(file), file.name)):
                file.unlink(missing_ok=True)
        written.extend(put_in_place(files, folder))


def _is_loaded_by(file):
    return file.name.endswith(('-symbol.json', '.onnx'))


def load_network(path: PathLike,
                 context: Optional[mx.Context] = None) -> tuple[Union[HybridBlock, OnnxNetwork], dict[str, Any]]:
    """Load a trained network.

    Parameters
    ----------
    path : path
        A run's folder (its newest complete checkpoint), a checkpoint's folder, a ``*-symbol.json`` with
        its ``*-NNNN.params`` beside it (of the highest number), an ``.onnx`` file, or the name of a trained network
        that comes with the package. Files of other programs are brought into the form of
        :mod:`gluon_lprnet.formats.standard`.
    context : mx.Context, optional
        An ONNX file runs on the CPU in any case.

    Returns
    -------
    tuple of (HybridBlock or OnnxNetwork, dict)
        The network, hybridized, and its description (:data:`DESCRIPTION_KEYS`); of files without one, only what the
        network says itself (:class:`gluon_lprnet.formats.standard.Standard`).

    Raises
    ------
    InputError
        If it is none of these, or is incomplete, damaged, or not a network of one image and one row of numbers.
    """
    context = context or mx.cpu()
    path = Path(path)
    kind = _kind(path)
    if kind == 'symbol':
        symbol, params, description = read_network(path)
        net = as_block(symbol, {name: mx.nd.array(value, context, value.dtype) for name, value in params.items()})
        _try_out(net, path, description, context)
    elif kind == 'onnx':
        described = _read_description(path, path.stem)
        net, facts = load_onnx(path, described)
        description = _checked_classes(path, {**facts, **described}, facts)
        _try_out(net, path, description, context)
    elif kind == 'run':
        found = checkpoint.find(path)
        config = found.state['config']
        net = get_model(config['model'], **model_arguments(config))
        net.load_parameters(found.params, ctx=context, cast_dtype=True)
        net, description = inference_form(net, _describe(config))
    else:
        card = find_card(str(path))
        net = get_model(card.name, ctx=context)
        description = card.description
    net.hybridize(static_alloc=True, static_shape=True)
    return net, description


def inference_form(net: HybridBlock, description: Mapping[str, Any]) -> tuple[HybridBlock, dict[str, Any]]:
    """The form of a network of the zoo that is deployed, on the device where it is, and its description.

    CondenseNet after its last condensing stage, and irregular kernels once they have hardened, have another one than in
    training, which gives the same outputs: :meth:`gluon_lprnet.zoo.condensenet.CondenseNet.converted`,
    :meth:`gluon_lprnet.zoo.irregular.IrregularDenseNet40.converted`.
    """
    if any(description.get(form) for form in TRAINING_FORMS) and net.chosen:
        context = net.output.weight.list_ctx()[0]
        net = net.converted()
        net.collect_params().reset_ctx(context)
        return net, {**description, **dict.fromkeys(TRAINING_FORMS, False)}
    return net, dict(description)


def task_of(path: PathLike) -> Optional[str]:
    """What a network is for, ``classification`` or ``landmarks``, by its description; None if that does not say.

    Parameters
    ----------
    path : path
        As of :func:`load_network`, which raises InputError for the same faults and more.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == 'run':
        return _describe(checkpoint.find(path).state['config']).get('task')
    if kind == 'package':
        return find_card(str(path)).description.get('task')
    return _read_description(path, path.stem if kind == 'onnx' else path.name[:-len('-symbol.json')]).get('task')


def contents_of(path: PathLike) -> dict[str, str]:
    """What tells a network from another one at the same place: the SHA-256 of its files, by their paths.

    Parameters
    ----------
    path : path
        As for :func:`load_network`.
    """
    path = Path(path)
    kind = _kind(path)
    if kind == 'package':
        return {str(path): find_card(str(path)).sha256}
    if not path.exists():
        raise InputError(f'{path} does not exist.')
    if kind == 'run':
        found = checkpoint.find(path).path
        files = [found / 'net.params', found / 'state.json']
    elif kind == 'onnx':
        files = [path, *external_files(path), path.with_suffix('.json')]
    else:
        files = [path, latest_params(path), path.with_name(f'{path.name[:-len("-symbol.json")]}.json')]
    return {str(file): _sha256(file) for file in files if file.exists()}


def outputs_for(net: Block, images: mx.nd.NDArray, path: PathLike) -> mx.nd.NDArray:
    """The outputs of the network at ``path`` for images (N, 3, size, size); InputError if it does not take them."""
    try:
        outputs = net(images)
        outputs.wait_to_read()
    except mx.MXNetError as error:
        raise InputError(f'{path} does not take images of {images.shape[2]} pixels a side: give another `input_size`, '
                         'or none.') from error
    return outputs


def _kind(path):
    """What :func:`load_network` takes: 'symbol', 'onnx', 'run' or 'package'; InputError for anything else."""
    if path.name.endswith('-symbol.json'):
        return 'symbol'
    if path.suffix == '.onnx':
        return 'onnx'
    if path.is_dir():
        return 'run'
    if not path.exists() and split_tag(str(path))[1]:
        return 'package'
    raise InputError(f'{path}: give the folder of a run or of a checkpoint, a -symbol.json or .onnx file, or one '
                     f'of {", ".join(list_models(pretrained=True)) or "the trained networks (there are none)"}'
                     f'{"" if path.exists() else " (the path does not exist)"}.')


def _describe(config):
    return {key: config[key] for key in DESCRIPTION_KEYS if key in config}


def read_network(path: PathLike) -> tuple[mx.sym.Symbol, dict[str, np.ndarray], dict[str, Any]]:
    """A network's symbol and params, in the standard form, and its description.

    Parameters
    ----------
    path : path
        ``NAME-symbol.json``, with ``NAME-NNNN.params`` beside it and, if there is one, ``NAME.json``.

    Returns
    -------
    tuple of (Symbol, dict of str to ndarray, dict)

    Raises
    ------
    InputError
        As for :func:`load_network`.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f'{path} does not exist.')
    params_path = latest_params(path)
    described = _read_description(path, path.name[:-len('-symbol.json')], params_path)
    symbol, params, facts = standard_form(read_symbol(path), read_params(params_path), path, params_path.name,
                                          described)
    return symbol, params, _checked_classes(path, {**facts, **described}, facts)


def _read_description(path, name, *others):
    """``NAME.json`` beside a network, checked, and the network's files by it; {} if there is none."""
    file = path.with_name(f'{name}.json')
    if not file.exists():
        return {}
    description = read_json(file, 'the description of the network')
    for key, words in faults_of(description).items():
        raise InputError(f'{file}, the description of the network: "{key}" is not {words}.')
    digests = description.get('sha256', {})
    for each in (path, *others):
        if each.name in digests and each.exists() and digests[each.name] != _sha256(each):
            raise InputError(f'{each} is damaged or of another network: its SHA-256 is not the one in {file.name}. '
                             'Export the network again.')
    return description


def _checked_classes(path, description, facts):
    """The description, or InputError if it is of another number of classes than the network has outputs."""
    outputs = facts['num_classes']
    if description.get('task') != 'landmarks':
        counts = {'classes': description['num_classes']}
        for key in ('class_names', 'class_ids'):
            counts[key.replace('_', ' ')] = len(description.get(key) or range(outputs))
        for what, found in counts.items():
            if found != outputs:
                raise InputError(f'{path} has {outputs} outputs, and its description {found} {what}.')
    return description


def _try_out(net, path, description, context):
    """InputError if a network whose files have no SHA-256 cannot run, or gives probabilities in a form not known."""
    if path.name in description.get('sha256', {}):
        return
    size = description.get('input_size', SIZES[0])
    try:
        images = np.random.default_rng(0).normal(0, 1, (1, 3, size, size))
        outputs = net(mx.nd.array(images, context)).asnumpy()
    except mx.MXNetError as error:
        raise InputError(f'{path} does not run: {last_line(error)}') from error
    if 'task' not in description and outputs.size > 1 and (outputs >= 0).all() and abs(outputs.sum() - 1) < 1e-4:
        raise InputError(f'{path} gives probabilities, and not by a softmax at its end: save it without that part.')


def _sha256(path):
    return hashlib.sha256(read_bytes(path)).hexdigest()
