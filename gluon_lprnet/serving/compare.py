"""``python -m gluon_lprnet compare``: the same pictures by ``evaluate``, by ``predict`` and by the real server."""
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import mxnet as mx
import numpy as np
from tqdm import tqdm

from ..artifact import load_network
from ..data.batches import validation_batches
from ..data.images import ImageError, PathLike, read_file
from ..data.integrity import check_records
from ..data.pack import convert_file
from ..data.recordio import write_records
from ..deployment.export import export
from ..evaluate.classification import described
from ..evaluate.network_flag import add_network_flag, split_networks
from ..predict.classification import find_images, preprocess
from ..utils.errors import InputError
from ..utils.flags import Commands, add_parser, non_negative_int
from ..utils.text import render_table
from .load_client import Request, form, send
from .server import Server, find_java, free_port

# Records have a label, and this one is not looked at.
_ANY_LABEL = 0
_BATCH_SIZE = 64


class Compared(NamedTuple):
    """What the ways into a network make of pictures.

    Attributes
    ----------
    paths : list of str
    evaluate, predict : ndarray (N, classes) float64
        Probabilities.
    server : ndarray (N, classes) float64 or None
        None where the server cannot run, for the reason ``without_server``.
    without_server : str or None
    unreadable : list of (str, str)
        Pictures that were left out, and why.
    """

    paths: list[str]
    evaluate: np.ndarray
    predict: np.ndarray
    server: Optional[np.ndarray]
    without_server: Optional[str]
    unreadable: list[tuple[str, str]]


def compare(network: PathLike, paths: Sequence[PathLike], resize: int = 0, quality: int = 95) -> Compared:
    """Ask a classification network about pictures in every way there is.

    Parameters
    ----------
    network : path
        As :func:`gluon_lprnet.artifact.load_network` takes it.
    paths : sequence of path
        Picture files.
    resize, quality : int
        As of ``pack images``: how the records that ``evaluate`` reads are packed. By default nothing is shrunk.

    Returns
    -------
    Compared

    Raises
    ------
    InputError
        The network is not one of classes with a description, or none of the pictures can be read.
    """
    net, description = load_network(network)
    description = described(network, description, {})
    with tempfile.TemporaryDirectory(prefix='compare-') as scratch:
        packed, inputs, sound, unreadable = [], [], [], []
        for path in tqdm(paths, 'reading', unit='picture', leave=False, disable=None):
            try:
                packed.append((_ANY_LABEL, convert_file(path, resize, quality)))
            except ImageError as error:
                unreadable.append((str(path), str(error)))
                continue
            inputs.append(preprocess(path, description))
            sound.append(path)
        if not sound:
            raise InputError('None of the pictures can be read:' + ''.join(f'\n  {path} {reason}'
                                                                           for path, reason in unreadable))
        write_records(os.path.join(scratch, 'packed'), packed)
        records = check_records(os.path.join(scratch, 'packed.rec'))
        batches = validation_batches(records, description, _BATCH_SIZE, threads=1).epoch(0)
        # The iterator's memory is another context's.
        evaluated = [net(batch.data.as_in_context(mx.cpu())).softmax().asnumpy() for batch in batches]
        predicted = [net(data).softmax().asnumpy() for data in inputs]
        try:
            served, reason = _ask_server(network, scratch, sound, predicted[0].shape[1]), None
        except _NoServer as error:
            served, reason = None, str(error)
    return Compared([str(path) for path in sound], np.concatenate(evaluated).astype('float64'),
                    np.concatenate(predicted).astype('float64'), served, reason, unreadable)


class _NoServer(Exception):
    """The server cannot run here."""


def _ask_server(network, scratch, paths, classes):
    """Probabilities (N, classes) of the real server."""
    if str(network).endswith('.onnx'):
        raise _NoServer('it does not take ONNX files: give the run, or a -symbol.json.')
    try:
        find_java()
    except InputError as error:
        raise _NoServer(str(error)) from error
    if importlib.util.find_spec('mms') is None:
        raise _NoServer('the server is not installed: pip install multi-model-server==1.1.11.')
    symbol = Path(network)
    if not symbol.name.endswith('-symbol.json'):
        symbol, = (path for path in export(network, os.path.join(scratch, 'exported'), ('training',))
                   if path.name.endswith('-symbol.json'))
    with Server([symbol], os.path.join(scratch, 'serve'), port=free_port(), workers=1) as server:
        answers = send(server, server.models[0], [Request(str(path), *form(read_file(path), top_k=classes))
                                                  for path in paths])
    probabilities = np.full((len(paths), classes), np.nan)
    for row, answer in zip(probabilities, answers):
        if answer.status != 200:
            raise InputError(f'{answer.request.name}: the server answers {answer.status}: {answer.body[:300]!r}.')
        for entry in json.loads(answer.body)['classes']:
            row[entry['index']] = entry['probability']
    return probabilities


def _report(compared, names):
    """The lines that the command prints: a table, the largest difference first, and what differs in all."""
    ways = {'evaluate': compared.evaluate, 'predict': compared.predict}
    if compared.server is not None:
        ways['server'] = compared.server
    stacked = np.stack(list(ways.values()))
    differences = np.ptp(stacked, axis=0).max(axis=1)
    rows = []
    for number in np.argsort(-differences, kind='stable'):
        cells = [f'{names[way[number].argmax()] if names else way[number].argmax()} {way[number].max():.4f}'
                 for way in ways.values()]
        rows.append((compared.paths[number], *cells, f'{differences[number]:.1e}'))
    lines = [render_table(('picture', *ways, 'largest difference'), rows, 'text'), '']
    for way in list(ways)[::2]:
        apart = (ways[way].argmax(axis=1) != compared.predict.argmax(axis=1)).sum()
        largest = np.abs(ways[way] - compared.predict).max()
        lines.append(f'{way} and predict: another class for {apart} of {len(rows)} pictures, probabilities differ by '
                     f'{largest:.1e} at most')
    if compared.without_server:
        lines.append(f'Without the server: {compared.without_server}')
    return '\n'.join(lines)


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'compare', help='evaluate, predict and the server side by side on the same pictures',
        example='gluon-lprnet compare photo.jpg folder --network runs/latest',
        description='Give the same pictures to a network of classes as evaluate reads them from packed records, as '
                    'predict reads them, and as the real server does (which needs Java), and print the answers with '
                    'the largest difference first. Exit status 1 if a picture could not be read.')
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='picture, or folder that is searched through')
    add_network_flag(parser, 'classification')
    parser.add_argument('--resize', type=non_negative_int, default=0, metavar='N',
                        help='pack with this --resize, to see what shrinking before the training costs (default: 0, '
                             'which keeps every size)')
    parser.set_defaults(run=_run)


def _run(args):
    (network,), images = split_networks('compare', 'classification', args.images, args.network)
    compared = compare(network, find_images(images), args.resize)
    print(_report(compared, load_network(network)[1].get('class_names')))
    for path, reason in compared.unreadable:
        print(f'{path} {reason}', file=sys.stderr)
    return 1 if compared.unreadable else 0
