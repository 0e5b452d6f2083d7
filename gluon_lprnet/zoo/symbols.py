"""The exported symbol of every network of the zoo, as a JSON file that stock MXNet loads.

The files hold no parameters: ``mx.sym.load('symbols/NAME.json')`` gives the graph with the names and
shapes of its variables.
"""
import argparse
import os

import mxnet as mx
from mxnet.gluon import HybridBlock

from ..utils.errors import InputError
from ..utils.files import PathLike, write_file
from ..utils.flags import Commands, add_parser
from .registry import get_model, list_models

__all__ = ['build', 'symbol_json', 'differences', 'write']


def build(name: str) -> tuple[HybridBlock, mx.sym.Symbol]:
    """The network ``name`` and its symbol, with the same variable names in every process.

    MXNet numbers unnamed blocks with a counter per process, so a second network of a family would get
    different names from the first.

    Parameters
    ----------
    name : str
        See :func:`gluon_lprnet.get_model`.

    Returns
    -------
    mxnet.gluon.HybridBlock, mxnet.symbol.Symbol
        The network, with 1000 classes and not initialized, and its symbol with the input ``data``.

    Raises
    ------
    InputError
        For an unknown name.
    """
    with mx.name.NameManager():
        network = get_model(name)
        return network, network(mx.sym.var('data'))


def symbol_json(name: str) -> str:
    """The content of ``NAME.json``, a str."""
    return build(name)[1].tojson() + '\n'


def write(folder: PathLike) -> list[str]:
    """Write ``NAME.json`` for every network of :func:`gluon_lprnet.list_models`; the names, as a list.

    Raises
    ------
    InputError
        If ``folder`` cannot be written to.
    """
    for name in list_models():
        write_file(_path(folder, name), symbol_json(name))
    return list_models()


def differences(folder: PathLike) -> list[tuple[str, str]]:
    """The files in ``folder`` that differ from what :func:`write` would leave there.

    Returns
    -------
    list of (str, str)
        Paths, each with 'missing', 'differs' or 'stale' (not a network of the zoo).

    Raises
    ------
    InputError
        If ``folder`` is not a folder.
    """
    if not os.path.isdir(folder):
        raise InputError(f'{folder} is not a folder.')
    found = []
    for name in list_models():
        path = _path(folder, name)
        if not os.path.exists(path):
            found.append((path, 'missing'))
            continue
        with open(path, 'rb') as file:
            if file.read() != symbol_json(name).encode():
                found.append((path, 'differs'))
    expected = {f'{name}.json' for name in list_models()}
    found += [(os.path.join(folder, entry), 'stale') for entry in sorted(os.listdir(folder))
              if entry.endswith('.json') and entry not in expected]
    return found


def _path(folder: PathLike, name: str) -> str:
    return os.path.join(folder, f'{name}.json')


def add_commands(subparsers: Commands) -> None:
    parser = add_parser(
        subparsers, 'symbols', help='the symbol JSON of every network of the zoo',
        example='gluon-lprnet symbols --check',
        description='Write the symbol JSON of every network, or compare the files with the code.')
    parser.add_argument('--out', default='symbols', metavar='FOLDER',
                        help='folder of the symbols (default: %(default)s)')
    parser.add_argument('--check', action='store_true',
                        help='write nothing; list what differs, is missing or is stale (exit status 1)')
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if not args.check:
        print(f'{args.out}: {len(write(args.out))} files')
        return 0
    found = differences(args.out)
    for path, what in found:
        print(f'{path}: {what}')
    return 1 if found else 0
