"""``python -m gluon_lprnet export``: a trained network as files that need nothing of this package."""
import json
import os
import tempfile
from pathlib import Path

import mxnet as mx
import numpy as np

from ..complexity import count
from ..errors import InputError
from .archive import archive
from .artefact import load_network
from .onnx import require_onnx, run_onnx, write_onnx
from .reparametrize import reparametrize, trace

__all__ = ['export', 'FORMS', 'FORMATS']

FORMS = ('training', 'deployed')
FORMATS = ('mxnet', 'onnx')

# Largest difference from the network, relative to its largest output.
TOLERANCE = 1e-5


def export(path, out, forms=FORMS, formats=('mxnet',), normalize_input=False, report=lambda line: None):
    """Write a trained network as files; each is compared with the network before it is kept.

    ``MODEL-symbol.json`` with ``MODEL-0000.params`` (mxnet) and ``MODEL.onnx`` (onnx) are the training form,
    ``MODEL-deployed...`` is the deployed one; beside each, ``MODEL.json`` says what goes in and comes out.

    Parameters
    ----------
    path : path
        As :func:`gluon_lprnet.deploy.artefact.load_network` takes it.
    out : path
        Folder, made if it is not there.
    forms, formats : sequence of str
        Of ``FORMS`` and ``FORMATS``.
    normalize_input : bool
        Put ``(pixel - mean) / std`` into the graph: its input is then RGB from 0 to 255, and ``rgb_mean`` and
        ``rgb_std`` of the description, which say what is left to do before it, are 0 and 1.
    report : callable
        Takes a line on each form.

    Returns
    -------
    list of Path

    Raises
    ------
    InputError
        If there is no network at ``path``, if it has no description or was written by this function, if a file
        differs from the network, if ``out`` cannot be written to, or if a package is not installed.
    """
    if 'onnx' in formats:
        require_onnx()
    net, description = load_network(path)
    if not description:
        raise InputError(f'{path} has no description (a .json file) beside it: give the run or the checkpoint.')
    if 'form' in description:
        raise InputError(f'{path} was written by this command: give the run or the checkpoint that it came from.')
    trained = trace(net)
    image_shape = (3, description['input_size'], description['input_size'])
    mean, std = (np.array(description[key], dtype='float32').reshape(1, 3, 1, 1) for key in ('rgb_mean', 'rgb_std'))
    pixels = _test_pixels(image_shape)
    normalized = (pixels - mean) / std
    expected = net(mx.nd.array(normalized)).asnumpy()
    data = pixels if normalize_input else normalized
    if not np.isfinite(expected).all():
        raise InputError(f'{path}: the network gives NaN or infinite outputs; export an earlier checkpoint.')
    scale = max(abs(expected).max(), np.finfo('float32').tiny)

    written = []
    for form in forms:
        symbol, params = reparametrize(*trained) if form == 'deployed' else trained
        complexity = count(symbol, (1, *image_shape))
        if normalize_input:
            symbol, params = _with_normalization(symbol, params, mean, std)
        name = description['model'] + ('-deployed' if form == 'deployed' else '')
        try:
            Path(out).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out, prefix='.export-') as scratch:
                prefix = Path(scratch) / name
                _write_description(prefix, dict(description, form=form), image_shape, normalize_input)
                outputs = _write(symbol, params, image_shape, prefix, formats, data)
                differences = {format: abs(output - expected).max() / scale for format, output in outputs.items()}
                for format, difference in differences.items():
                    # Not >, which a NaN would pass.
                    if not difference <= TOLERANCE:
                        raise InputError(f'{path}: its {form} form as {format} differs from the network by '
                                         f'{difference:.1e} of the largest output (at most {TOLERANCE:.0e} is '
                                         'kept); nothing of it was written.')
                for file in sorted(Path(scratch).iterdir()):
                    os.replace(file, Path(out) / file.name)
                    written.append(Path(out) / file.name)
        except OSError as error:
            raise InputError(f'{out} cannot be written to: {error.strerror}.') from error
        report(f'{form}: {complexity.params:,} parameters, {complexity.multiply_adds:,} multiply-adds; differs from '
               'the network by ' + ', '.join(f'{value:.1e} ({format})' for format, value in differences.items())
               + ' of the largest output')
    return written


def _test_pixels(image_shape):
    """A black picture, a grey one, and noise: RGB from 0 to 255, (3, channels, height, width)."""
    pixels = np.random.default_rng(0).uniform(0, 255, (3, *image_shape)).astype('float32')
    pixels[0] = 0
    pixels[1] = 128
    return pixels


def _with_normalization(symbol, params, mean, std):
    """Begin with a pointwise convolution that normalizes: unlike broadcast operators it costs no time to speak of."""
    name = 'input_normalization'
    convolution = mx.sym.Convolution(mx.sym.var('data', shape=(0, 0, 0, 0)), name=name, kernel=(1, 1), num_filter=3)
    return symbol(data=convolution), {**params,
                                      f'{name}_weight': mx.nd.array(np.diag(1 / std.ravel())[:, :, None, None]),
                                      f'{name}_bias': mx.nd.array(-(mean / std).ravel())}


def _write_description(prefix, description, image_shape, normalize_input):
    """What a user of the files must know: the keys of the training's own artefact, ``form`` and ``input``."""
    if normalize_input:
        description.update(normalized_inside={key: description[key] for key in ('rgb_mean', 'rgb_std')},
                           rgb_mean=[0.0] * 3, rgb_std=[1.0] * 3)
    description['input'] = {'name': 'data', 'layout': 'NCHW', 'shape': ['batch', *image_shape],
                            'values': 'RGB, (pixel from 0 to 255 - rgb_mean) / rgb_std'}
    Path(f'{prefix}.json').write_text(json.dumps(description, indent=1) + '\n')


def _write(symbol, params, image_shape, prefix, formats, data):
    """Write each format and read it back: a dict from format to its outputs, ndarrays, for ``data``."""
    outputs = {}
    if 'mxnet' in formats:
        auxiliary = set(symbol.list_auxiliary_states())
        symbol.save(f'{prefix}-symbol.json')
        mx.nd.save(f'{prefix}-0000.params', {('aux:' if name in auxiliary else 'arg:') + name: value
                                             for name, value in params.items()})
        net, _ = load_network(f'{prefix}-symbol.json')
        outputs['mxnet'] = net(mx.nd.array(data)).asnumpy()
    if 'onnx' in formats:
        write_onnx(symbol, params, image_shape, f'{prefix}.onnx')
        outputs['onnx'] = run_onnx(f'{prefix}.onnx', data)
    return outputs


def add_commands(commands):
    parser = commands.add_parser(
        'export', help='a trained network as files for stock MXNet and for ONNX',
        description='Write a trained network as it is and in its deployed form, which is the same function and '
                    'faster; each file is compared with the network before it is kept.')
    parser.add_argument('network', metavar='CHECKPOINT', help='run folder, checkpoint folder or -symbol.json')
    parser.add_argument('--out', required=True, metavar='DIR')
    parser.add_argument('--form', choices=FORMS + ('both',), default='both', help='default: %(default)s')
    parser.add_argument('--format', choices=FORMATS, nargs='+', default=['mxnet'],
                        help='symbol and params, or an ONNX file (default: mxnet)')
    parser.add_argument('--normalize-input', action='store_true',
                        help='put (pixel - mean) / std into the graph: its input is RGB from 0 to 255')
    parser.add_argument('--mar', action='store_true', help='model archives of symbol and params, as of `archive`')
    parser.set_defaults(run=_run)


def _run(args):
    if args.mar and 'mxnet' not in args.format:
        raise InputError('--mar needs --format mxnet: an archive holds symbol and params.')
    forms = FORMS if args.form == 'both' else (args.form,)
    written = export(args.network, args.out, forms, args.format, args.normalize_input, report=print)
    if args.mar:
        written += [archive(path, args.out) for path in written if path.name.endswith('-symbol.json')]
    for path in written:
        print(f'{path} ({path.stat().st_size:,} bytes)')
