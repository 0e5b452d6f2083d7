"""``python -m gluon_lprnet archive``: an exported network as a model archive (.mar) of multi-model-server."""
import json
import re
import tempfile
import zipfile
from pathlib import Path

import mxnet as mx

from ..artefact import read_network, write_symbol
from ..data import images
from ..data.faces import landmarks
from ..evaluate.classification import described
from ..predict.detectors import CORRECTIONS
from ..utils.errors import InputError
from ..utils.files import whole
from . import handler

__all__ = ['archive']

# The keys of a description that the handler reads.
_REQUIRED = {'classification': ('num_classes', 'input_size', 'crop_ratio', 'rgb_mean', 'rgb_std'),
             'landmarks': ('input_size', 'rgb_mean', 'rgb_std')}
# Of the server, and of the last part of the model's address.
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]*')


def archive(artefact, out):
    """Write an exported network with its handler as ``NAME.mar``.

    Parameters
    ----------
    artefact : path
        ``NAME-symbol.json``, with ``NAME-NNNN.params`` and ``NAME.json`` beside it. Without the last, it is taken as a
        network of classes that sees images as is usual for ImageNet.
    out : path
        Folder, created if it does not exist.

    Returns
    -------
    Path

    Raises
    ------
    InputError
        If the artefact or its description is incomplete, or ``out`` cannot be written to.
    """
    artefact, out = Path(artefact), Path(out)
    if not artefact.name.endswith('-symbol.json'):
        raise InputError(f'{artefact} is not an exported network: give its -symbol.json file.')
    name = artefact.name[:-len('-symbol.json')]
    if not _NAME.fullmatch(name):
        raise InputError(f'{artefact}: the server only accepts names of letters, digits and ._-; rename the files.')
    # Finds out now, and not in the server, whether the network loads.
    symbol, params, description = read_network(artefact)
    if not artefact.with_name(f'{name}.json').exists():
        description = described(artefact, description, {})
    task = description.get('task')
    if task not in _REQUIRED:
        # A checkpoint from before tasks were recorded is exported without one.
        raise InputError(f'{artefact}: {name}.json, its description, lacks a task: add "task": "classification" or '
                         '"task": "landmarks" to it, or export the network with python -m gluon_lprnet export.')
    missing = [key for key in _REQUIRED[task] if key not in description]
    if missing:
        raise InputError(f'{artefact}: {name}.json, its description, lacks {", ".join(missing)}: export the network '
                         'with python -m gluon_lprnet export.')
    if task == 'landmarks':
        description = {'crop_scale': landmarks.CROP_SCALE, **description, 'corrections': CORRECTIONS}
    # Of the files as they were.
    description = {key: value for key, value in description.items() if key != 'sha256'}
    manifest = {'specificationVersion': '1.0', 'implementationVersion': '1.0', 'modelServerVersion': '1.0',
                'runtime': 'python', 'engine': {'engineName': 'MXNet'},
                'model': {'modelName': name, 'handler': 'handler.py:handle', 'modelVersion': '1.0'}}
    target = out / f'{name}.mar'
    with tempfile.TemporaryDirectory() as folder, whole(target) as scratch, \
            zipfile.ZipFile(scratch, 'w', zipfile.ZIP_DEFLATED) as mar:
        mar.writestr('MAR-INF/MANIFEST.json', json.dumps(manifest, indent=1))
        mar.writestr('description.json', json.dumps(description, indent=1))
        # The handler, and what it has of the package.
        for module in (handler, images, landmarks):
            mar.write(module.__file__, Path(module.__file__).name)
        write_symbol(symbol, {key: mx.nd.array(value, dtype=value.dtype) for key, value in params.items()},
                     Path(folder) / 'network')
        for file in sorted(Path(folder).iterdir()):
            mar.write(file, file.name)
    return target


def add_commands(commands):
    parser = commands.add_parser(
        'archive', help='an exported network as a model archive (.mar) of multi-model-server',
        description='Write NAME.mar, the network with a handler that needs mxnet, numpy, cv2 and PIL (Pillow) '
                    'only.')
    parser.add_argument('artefacts', nargs='+', metavar='NAME-symbol.json', help='what export wrote')
    parser.add_argument('--out', required=True, metavar='DIR')
    parser.set_defaults(run=_run)


def _run(args):
    for artefact in args.artefacts:
        path = archive(artefact, args.out)
        print(f'{path} ({path.stat().st_size:,} bytes)')
