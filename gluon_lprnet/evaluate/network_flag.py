"""The network of a command: ``--network NAME|RUN|FILE``, and once its first argument.

Commands that use a trained network take what it is used on as positional arguments and the network by a flag; without
the flag they take the network of the package for their task. Commands that work on a network alone need the flag.
"""
import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

from ..utils.errors import InputError
from ..zoo import list_models

# What a command takes where no network is named, by task.
DEFAULTS = {'classification': 'compressed_mobilenet_x0.75.imagenet', 'landmarks': 'lprnet_mobilenet_x0.5.faces'}

_FILES = ('-symbol.json', '.onnx')
_NETWORK = 'trained network of the package, run or checkpoint folder, or exported file'


def add_network_flag(parser: argparse.ArgumentParser, task: str, several: bool = False) -> None:
    """Add ``--network``, which becomes a list of str, or None where it is not given."""
    parser.add_argument('--network', metavar='NETWORK', nargs='+' if several else 1,
                        help=f'{_NETWORK} (default: {DEFAULTS[task]})')


def add_network_alone(parser: argparse.ArgumentParser, what: str = _NETWORK, several: bool = False) -> None:
    """Add ``--network`` to a command that works on nothing else; :func:`with_network` takes it from there."""
    parser.add_argument('former', nargs='*' if several else '?', help=argparse.SUPPRESS)
    parser.add_argument('--network', metavar='NETWORK', nargs='+' if several else None, help=what)


def with_network(command: str, args: argparse.Namespace, default: Optional[str] = None) -> argparse.Namespace:
    """The arguments with the network, or networks, of :func:`add_network_alone` as ``network``.

    For a command that is written as it once was, the network first, a note on standard error shows the form of today.

    Raises
    ------
    InputError
        If no network is given and there is no ``default``, or if it is given in both forms.
    """
    former = args.former
    if former and args.network:
        raise InputError(f'{command} is given {_words(former)} besides --network {_words(args.network)}: give one.')
    if not (former or args.network or default):
        raise InputError(f'{command} is given no network: say which by --network; see {command} --help.')
    if former:
        print(f'Note: today this is written {command} --network {_words(former)}', file=sys.stderr)
    return argparse.Namespace(**{**vars(args), 'network': args.network or former or default})


def _words(networks: Union[str, Sequence[str]]) -> str:
    return networks if isinstance(networks, str) else ' '.join(networks)


def split_networks(command: str, task: str, inputs: Sequence[str], named: Optional[Sequence[str]],
                   former: Sequence[str] = (), several: bool = False) -> tuple[list[str], list[str]]:
    """The networks and the inputs of a command, also of one that is written as it once was, the networks first.

    For the latter, a note on standard error shows the form of today.

    Parameters
    ----------
    command : str
        Its name, for the note.
    task : str
        Of :data:`DEFAULTS`.
    inputs : sequence of str
        The positional arguments.
    named : sequence of str or None
        The networks that ``--network`` names.
    former : sequence of str
        Inputs that were given by a flag, as they once were.
    several : bool
        Whether the command takes more than one network.

    Returns
    -------
    tuple of (list of str, list of str)
        The networks and the inputs, at least one of each.

    Raises
    ------
    InputError
        If there are no inputs.
    """
    networks = list(named or ())
    if not named:
        # Where the inputs have their flag, all else is networks.
        networks = list(inputs if former else itertools.takewhile(is_network, inputs))[:None if several else 1]
        inputs = inputs[len(networks):]
    rest = [*inputs, *former]
    if not rest:
        raise InputError(f'{command} is given nothing to work on: see {command} --help.')
    if networks and not named:
        print(f'Note: today this is written {command} {" ".join(rest[:1])}{" ..." if rest[1:] else ""} --network '
              f'{" ".join(networks)}', file=sys.stderr)
    return networks or [DEFAULTS[task]], rest


def is_network(argument: str) -> bool:
    """Whether an argument names a network, as far as its name and the files of its folder tell."""
    path = Path(argument)
    return argument.endswith(_FILES) or any((path / part).exists() for part in ('checkpoints', 'state.json')) or (
        not path.exists() and argument in list_models(pretrained=True))
