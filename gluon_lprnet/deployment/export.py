"""``python -m gluon_lprnet export``: a trained network as files that do not need this package."""
import argparse
import itertools
import os
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import mxnet as mx
import numpy as np

from ..artifact import (
    is_file_of,
    load_network,
    outputs_for,
    relative_difference,
    whole_files,
    write_description,
    write_symbol,
)
from ..complexity import count
from ..data.batches import Normalization, validation_batches
from ..data.faces.batches import FaceBatches
from ..data.faces.landmarks import CROP_SCALE
from ..data.faces.records import check_face_records, read_face_records
from ..data.integrity import DATA_CHECK_HELP, DATA_CHECKS, check_records
from ..data.sample import sampled
from ..evaluate.classification import (
    add_description_flags,
    check_own,
    described,
    evaluate_classification,
    flags_of_description,
)
from ..evaluate.landmarks import evaluate_landmarks
from ..evaluate.network_flag import add_network_alone, with_network
from ..formats.onnx_files import require_onnx
from ..graph import as_block, trace
from ..utils.errors import InputError
from ..utils.files import PathLike, write_errors
from ..utils.flags import Commands, add_parser, positive_float, positive_int
from ..utils.text import paragraph, render_table
from ..utils.timing import interleaved_milliseconds
from .onnx import run_onnx, write_onnx
from .operators import load_library
from .quantize import (
    CALIBRATIONS,
    LibraryQuantizer,
    MXNetQuantizer,
    OnnxQuantizer,
    mxnet_function,
    noise_of,
    onnx_function,
    outputs_of,
    quantize,
    slow_layers,
)
from .reparametrize import reparametrize

__all__ = ['export', 'export_as_flags_say', 'Int8', 'FORMS', 'FORMATS']

FORMS = ('training', 'deployed')
# The operator library has a format of its own in 8 bits; in float32 it runs the deployed form of MXNet.
LIBRARY = 'library'
FORMATS = ('mxnet', 'onnx', LIBRARY)

# Largest difference from the network, relative to its largest output.
TOLERANCE = 1e-5

# Noise of 8 bits that is let pass, for classes and for landmarks: at most 3% more NME (docs/results/int8.md).
_NOISE, _NOISE_OF_LANDMARKS = 0.01, 0.0015

# What the forms add to the name.
_SUFFIXES = {'training': '', 'deployed': '-deployed', 'int8': '-int8', LIBRARY: '-int8-library'}
_QUANTIZERS = {'mxnet': MXNetQuantizer, 'onnx': OnnxQuantizer, LIBRARY: LibraryQuantizer}

_BATCH_SIZE = 64
_THREADS = 2


class Int8(NamedTuple):
    """How to quantize.

    Attributes
    ----------
    calibrate : path
        RecordIO file of images or faces like those of the training.
    images : int
        Number of images taken from it, which alone are read and checked.
    calibration, exclude, tolerance
        As in :mod:`gluon_lprnet.deployment.quantize`; by default the tolerance is 0.01, and 0.0015 for landmarks.
    rec_val : path, optional
        RecordIO file for measuring the accuracy of the network and of the exported one.
    data_check : str
        As of :func:`gluon_lprnet.data.integrity.check_records`; ``full`` reads all of ``calibrate`` too.
    """

    calibrate: str
    images: int = 512
    calibration: str = CALIBRATIONS[0]
    exclude: Sequence[str] = ()
    tolerance: Optional[float] = None
    rec_val: Optional[str] = None
    data_check: str = DATA_CHECKS[0]


def export(path: PathLike, out: PathLike, forms: Sequence[str] = FORMS, formats: Sequence[str] = ('mxnet',),
           normalize_input: bool = False, int8: Optional[Int8] = None,
           report: Callable[[str], object] = lambda line: None, name: Optional[str] = None, overwrite: bool = False,
           description: Optional[dict[str, Any]] = None) -> list[Path]:
    """Write a trained network as files, all or none; each is compared with the network before that.

    ``NAME-symbol.json`` with ``NAME-0000.params`` (mxnet) and ``NAME.onnx`` (onnx) are the training form,
    ``NAME-deployed...`` is the deployed form, ``NAME-int8...`` the same in 8 bits, and ``NAME-int8-library...`` in 8
    bits for the operator library, which is to be loaded before
    (:func:`gluon_lprnet.deployment.operators.load_library`). Beside each, ``NAME.json`` describes input and output and,
    for INT8, the cost.

    Parameters
    ----------
    path : path
        As :func:`gluon_lprnet.artifact.load_network` takes it.
    out : path
        Folder, created if it does not exist.
    forms, formats : sequence of str
        Of ``FORMS`` and ``FORMATS``. The format ``library`` is of 8 bits only.
    normalize_input : bool
        Put ``(pixel - mean) / std`` into the graph: its input is then RGB from 0 to 255, and ``rgb_mean`` and
        ``rgb_std`` of the description, the remaining preprocessing, are 0 and 1.
    int8 : Int8, optional
        Write the quantized network too.
    report : callable
        Called with a line about each form, and with tables about the quantized network.
    name : str, optional
        By default that of the network's model, or of its file.
    overwrite : bool
        Replace the files of this name in ``out``, in all forms and formats. Others are left alone in any case.
    description : dict, optional
        Entries that complete or override the network's description: ``input_size``, ``crop_ratio``, ``rgb_mean``,
        ``rgb_std``.

    Returns
    -------
    list of Path

    Raises
    ------
    InputError
        If there is no network at ``path``, if it was written by this function, if an entry of ``description`` is
        invalid or does not fit the network, if ``out`` has files of the name already or cannot be written to, if a file
        differs from the network, if a package is not installed, if the operator library cannot be built, or if there is
        something wrong with ``int8``: its files, its patterns, or the network that would come of it.
    """
    if 'onnx' in formats:
        require_onnx()
    if LIBRARY in formats:
        if not int8:
            raise InputError("the format 'library' is of 8 bits only: give --int8 too. In float32 the operator library "
                             "runs the deployed form in the format 'mxnet', by optimize_for(x, backend='LPRNet').")
        load_library()
    floating = [format for format in formats if format != LIBRARY]
    net, found = load_network(path)
    if 'form' in found:
        raise InputError(f'{path} was written by this command: give the run or the checkpoint it came from.')
    description = _completed(path, found, description or {}, report)
    default = description.get('model') or Path(path).name.replace('-symbol.json', '')
    name = _checked_name(default if name is None else name)
    old = _files_of(name, out)
    if old and not overwrite:
        raise InputError(f'{out} has files of a network {name} already: {", ".join(file.name for file in old[:4])}'
                         f'{" and more" if len(old) > 4 else ""}. Give another folder or another `name`, or '
                         '`overwrite` to replace them.')
    trained = trace(net)
    image_shape = (3, description['input_size'], description['input_size'])
    mean, std = (np.array(description[key], dtype='float32').reshape(1, 3, 1, 1) for key in ('rgb_mean', 'rgb_std'))
    pixels = _test_pixels(image_shape)
    normalized = (pixels - mean) / std
    expected = outputs_for(net, mx.nd.array(normalized), path).asnumpy()
    data = pixels if normalize_input else normalized
    if not np.isfinite(expected).all():
        raise InputError(f'{path}: the network returns NaN or infinite outputs; export an earlier checkpoint.')
    described_files = _describe(description, image_shape, normalize_input)
    records = int8 and _checked_records(int8, description, expected.shape[1])
    images = int8 and _calibration_images(int8, described_files)

    def in_form(form):
        symbol, params = reparametrize(*trained) if form == 'deployed' else trained
        complexity = count(symbol, (1, *image_shape))
        if normalize_input:
            symbol, params = _with_normalization(symbol, params, mean, std)
        return symbol, params, complexity

    written: list[Path] = []
    with whole_files(out, written, old) as scratch:
        for form in forms if floating else ():
            symbol, params, complexity = in_form(form)
            prefix = scratch / f'{name}{_SUFFIXES[form]}'
            outputs = _write(symbol, params, image_shape, prefix, floating, data)
            write_description({**described_files, 'form': form}, prefix)
            differences = {format: relative_difference(output, expected) for format, output in outputs.items()}
            for format, difference in differences.items():
                # Not >, which a NaN would pass.
                if not difference <= TOLERANCE:
                    raise InputError(f'{path}: its {form} form as {format} differs from the network by '
                                     f'{difference:.1e} of the largest output (at most {TOLERANCE:.0e} is '
                                     'accepted); nothing was written.')
            report(f'{form}: {complexity.params:,} parameters, {complexity.multiply_adds:,} multiply-adds; differs '
                   'from the network by '
                   + ', '.join(f'{value:.1e} ({format})' for format, value in differences.items())
                   + ' of the largest output')
        if int8:
            symbol, params, _ = in_form('deployed')
            _write_int8(symbol, params, described_files, scratch / name, formats, int8, records, images, report)
    return written


def _completed(path, found, own, report):
    """The description, by which the network is used; defaults are reported."""
    if _has_landmarks(found):
        check_own(own)
        return {**found, **own}
    description = described(path, found, own)
    assumed = [f'{key} {description[key]}' for key in ('input_size', 'crop_ratio', 'rgb_mean', 'rgb_std')
               if key not in found and key not in own]
    if assumed:
        report(f'{path} does not say how it sees images; taken as usual for ImageNet: {", ".join(assumed)}')
    return description


def _checked_name(name):
    if not re.fullmatch('[A-Za-z0-9][A-Za-z0-9_.-]*', name):
        raise InputError(f'`name` {name!r}: give one of letters, digits and ._-')
    return name


def _files_of(name, out):
    """The files in a folder of a network in all forms and formats, with their descriptions and archives."""
    names = [name + suffix for suffix in _SUFFIXES.values()]
    return sorted(file for file in (Path(out).iterdir() if Path(out).is_dir() else ())
                  if any(is_file_of(file.name, each) or file.name == f'{each}.json' for each in names))


def _test_pixels(image_shape):
    """A black image, a gray one, and noise: RGB from 0 to 255, (3, channels, height, width)."""
    pixels = np.random.default_rng(0).uniform(0, 255, (3, *image_shape)).astype('float32')
    pixels[0] = 0
    pixels[1] = 128
    return pixels


def _with_normalization(symbol, params, mean, std):
    """Start with a pointwise convolution that normalizes: unlike broadcast operators it takes almost no time."""
    name = 'input_normalization'
    convolution = mx.sym.Convolution(mx.sym.var('data', shape=(0, 0, 0, 0)), name=name, kernel=(1, 1), num_filter=3)
    return symbol(data=convolution), {**params,
                                      f'{name}_weight': mx.nd.array(np.diag(1 / std.ravel())[:, :, None, None]),
                                      f'{name}_bias': mx.nd.array(-(mean / std).ravel())}


def _describe(description, image_shape, normalize_input):
    """What a user of the files must know: the keys of the training's own artifact, and ``input``."""
    described = dict(description, input={'name': 'data', 'layout': 'NCHW', 'shape': ['batch', *image_shape],
                                         'values': 'RGB, (pixel from 0 to 255 - rgb_mean) / rgb_std'})
    if normalize_input:
        described.update(normalized_inside={key: description[key] for key in ('rgb_mean', 'rgb_std')},
                         rgb_mean=[0.0] * 3, rgb_std=[1.0] * 3)
    return described


def _write(symbol, params, image_shape, prefix, formats, data):
    """Write each format and read it back: a dict of its outputs, ndarrays, for ``data``, by format."""
    outputs = {}
    if 'mxnet' in formats:
        write_symbol(symbol, params, prefix)
        net, _ = load_network(f'{prefix}-symbol.json')
        outputs['mxnet'] = net(mx.nd.array(data)).asnumpy()
    if 'onnx' in formats:
        write_onnx(symbol, params, image_shape, f'{prefix}.onnx')
        outputs['onnx'] = run_onnx(f'{prefix}.onnx', data)
    return outputs


def _checked_records(int8, description, outputs):
    """What :func:`check_records` found, by path, of the files of an :class:`Int8` that are read whole."""
    paths = [path for path in (int8.rec_val, int8.data_check == 'full' and int8.calibrate) if path]
    return {path: check_face_records(path, int8.data_check) if _has_landmarks(description) else check_records(
        path, num_classes=outputs, data_check=int8.data_check) for path in dict.fromkeys(paths)}


def _has_landmarks(description):
    return description.get('task') == 'landmarks'


def _write_int8(symbol, params, description, name, formats, int8, records, images, report):
    """Quantize for each format, write, read back, measure and report."""
    network = mxnet_function(as_block(symbol, params))
    expected = outputs_of(network, images)
    tolerance = int8.tolerance or (_NOISE_OF_LANDMARKS if _has_landmarks(description) else _NOISE)
    common = {'calibration': int8.calibration, 'images': len(images), 'tolerance': tolerance,
              'float': _accuracy(network, int8.rec_val, description, records)}
    # What describes the files of a name.
    described: dict[str, dict[str, Any]] = {}
    for format in formats:
        prefix = f'{name}{_SUFFIXES[LIBRARY if format == LIBRARY else "int8"]}'
        facts = described.setdefault(prefix, dict(common))
        quantizer = _QUANTIZERS[format](symbol, params, images, int8.calibration)
        try:
            slow = slow_layers(quantizer, images[:1]) if isinstance(quantizer, OnnxQuantizer) else ()
            found = quantize(quantizer, images, expected, int8.exclude, tolerance, slow)
        except InputError as error:
            raise InputError(f'--int8 as {format}: {error}') from error
        written, size = _write_quantized(found.model, format, prefix)
        outputs = outputs_of(written, images)
        noise = noise_of(outputs, expected)
        # Not >, which a NaN would pass.
        if not noise <= tolerance:
            raise InputError(f'--int8 as {format}: read back from its file, the network has a noise of {noise:.4f}, '
                             f'and of {found.noise:.4f} before; it was not written.')
        milliseconds = [statistics.median(times) for times in interleaved_milliseconds(
            [lambda: quantizer.floating(images[:1]), lambda: written(images[:1])])]
        facts[format] = {'noise': noise, **_accuracy(written, int8.rec_val, description, records), 'bytes': size,
                         'milliseconds': dict(zip(('float', 'int8'), milliseconds)),
                         'layers': [layer._asdict() for layer in found.layers]}
        if not _has_landmarks(description):
            facts[format]['agreement'] = float((outputs.argmax(axis=1) == expected.argmax(axis=1)).mean())
        report(_int8_lines(format, facts))
    for prefix, facts in described.items():
        write_description({**description, 'form': 'int8', 'int8': facts}, prefix)


def _write_quantized(model, format, prefix):
    """The network read back from the written file, as a function, and the size of the file in bytes."""
    if format != 'onnx':
        write_symbol(*model, prefix)
        net, _ = load_network(f'{prefix}-symbol.json')
        return mxnet_function(net), os.path.getsize(f'{prefix}-0000.params')
    onnx, _ = require_onnx()
    onnx.checker.check_model(model, full_check=True)
    with write_errors(prefix):
        onnx.save(model, f'{prefix}.onnx')
    return onnx_function(f'{prefix}.onnx'), os.path.getsize(f'{prefix}.onnx')


def _int8_lines(format, facts):
    found = facts[format]
    layers = [(layer['name'], '' if layer['noise'] is None else f'{layer["noise"]:.6f}',
               f'float32 ({layer["left_out"]})' if layer['left_out'] else 'int8') for layer in found['layers']]
    floating, int8 = found['milliseconds'].values()
    lines = [render_table((f'int8 ({format})', 'noise alone', 'in'), layers, 'text'),
             paragraph(f'int8 ({format}): {sum(not layer["left_out"] for layer in found["layers"])} of {len(layers)} '
                       f'layers, calibrated ({facts["calibration"]}) on {facts["images"]} images; noise '
                       f"{found['noise']:.4f} of the outputs' variance there (at most {facts['tolerance']:g})"
                       + (f', the same class for {100 * found["agreement"]:.1f}%' if 'agreement' in found else ''),
                       'text')]
    lines += [f'NME: {100 * value:.2f}% in float32, {100 * found[name]:.2f}% in int8 ({found[name] / value - 1:+.1%})'
              if name == 'nme' else
              f'{name}: {value:.4f} in float32, {found[name]:.4f} in int8 ({found[name] - value:+.4f})'
              for name, value in facts['float'].items()]
    return '\n'.join(lines + [f'milliseconds for one image: {floating:.2f} in float32, {int8:.2f} in int8 '
                              f'({int8 / floating:.2f}); {found["bytes"]:,} bytes'])


def _calibration_images(int8, description):
    """Network inputs (N, 3, height, width) float32, as in validation: of random records, or of the first faces."""
    if _has_landmarks(description):
        faces = list(itertools.islice(read_face_records(int8.calibrate), int8.images))
        return _inputs(FaceBatches(faces, description['input_size'], description.get('crop_scale', CROP_SCALE),
                                   _BATCH_SIZE, Normalization(description['rgb_mean'], description['rgb_std'])))
    with sampled(int8.calibrate, int8.images) as records:
        return _inputs(validation_batches(records, description, _BATCH_SIZE, _THREADS))


def _inputs(batches):
    return np.concatenate([batch.data.asnumpy() for batch in batches.epoch(0)])


def _accuracy(function, rec_val, description, records):
    """What ``evaluate`` or ``nme`` measures, of a function of ndarrays; {} without a file."""
    if not rec_val:
        return {}

    def network(data):
        return mx.nd.array(function(data.asnumpy()))

    if _has_landmarks(description):
        return {'nme': float(evaluate_landmarks(network, read_face_records(rec_val), description).errors.mean())}
    batches = validation_batches(records[rec_val], description, _BATCH_SIZE, _THREADS)
    return evaluate_classification(network, batches, mx.cpu())


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'export', help='a trained network as files for stock MXNet and for ONNX',
        example='gluon-lprnet export --network runs/photos --out exported --format mxnet onnx',
        description='Write a trained network as it is and in its deployed form, which computes the same function '
                    'faster; each file is compared with the network before it is kept.')
    add_network_alone(parser)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write to')
    parser.add_argument('--form', choices=FORMS + ('both',), default='both',
                        help='as it was trained, in its faster form, or both (default: %(default)s)')
    parser.add_argument('--format', choices=FORMATS, nargs='+', default=['mxnet'],
                        help='symbol and params, an ONNX file, or, with --int8, 8 bits for the operator library '
                             '(default: mxnet)')
    parser.add_argument('--normalize-input', action='store_true',
                        help='put (pixel - mean) / std into the graph: its input is RGB from 0 to 255')
    parser.add_argument('--name', help='of the written files (default: of the model, or of the symbol file)')
    parser.add_argument('--overwrite', action='store_true',
                        help='replace the files of this name in the folder, in all forms and formats')
    add_description_flags(parser)
    int8 = parser.add_argument_group('8 bits')
    int8.add_argument('--int8', action='store_true',
                      help='also write the deployed form quantized: MODEL-int8, by MXNet (mxnet) and ONNX Runtime '
                           '(onnx), and MODEL-int8-library for the operator library (library)')
    int8.add_argument('--calibrate', metavar='REC', help='RecordIO file of images like those of the training')
    int8.add_argument('--images', type=positive_int, metavar='N', help=_default('number of images', 'images'))
    int8.add_argument('--calibration', choices=CALIBRATIONS,
                      help=_default('range of a tensor: all of its values, or the one with the least Kullback-Leibler '
                                    'divergence', 'calibration'))
    int8.add_argument('--exclude', nargs='+', metavar='NAME', help='layers, or patterns, that stay in float32')
    int8.add_argument('--tolerance', type=positive_float, metavar='SHARE',
                      help="largest noise, as a share of the outputs' variance on these images; layers that cost most "
                           f'stay in float32 until it is met (default: {_NOISE}, of landmarks {_NOISE_OF_LANDMARKS})')
    int8.add_argument('--rec-val', metavar='REC', help='measure the accuracy of float32 and int8')
    int8.add_argument('--data-check', choices=DATA_CHECKS, help=_default(DATA_CHECK_HELP, 'data_check'))


def _default(text, field):
    return f'{text} (default: {Int8._field_defaults[field]})'


def _int8(args):
    """The :class:`Int8` that the flags ask for; None without ``--int8``."""
    given = {field: getattr(args, field) for field in Int8._fields if getattr(args, field) is not None}
    if not args.int8:
        if given:
            raise InputError(f'--{next(iter(given)).replace("_", "-")} needs --int8.')
        return None
    if not args.calibrate:
        raise InputError('--int8 needs --calibrate: a RecordIO file of images like those of the training.')
    return Int8(**given)


def export_as_flags_say(args: argparse.Namespace) -> list[Path]:
    """Run the command; the paths that were written."""
    forms = FORMS if args.form == 'both' else (args.form,)
    args = with_network('export', args)
    return export(args.network, args.out, forms, args.format, args.normalize_input, _int8(args), print, args.name,
                  args.overwrite, flags_of_description(args))
