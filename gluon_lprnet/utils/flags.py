"""Types of command-line flags: argparse rejects invalid values before anything runs."""
import argparse
import math
from typing import TYPE_CHECKING, Any, TypeVar

from .text import integer, real

# What ``add_subparsers`` gives, which a module adds its commands to.
if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = Any

Number = TypeVar('Number', int, float)


def positive_int(text: str) -> int:
    return _at_least(integer(text), 1, 'positive whole number')


def non_negative_int(text: str) -> int:
    return _at_least(integer(text), 0, 'whole number of at least 0')


def non_negative_float(text: str) -> float:
    return _at_least(real(text), 0.0, 'finite number of at least 0')


def positive_float(text: str) -> float:
    return _at_least(real(text), math.ulp(0.0), 'positive finite number')


def fraction(text: str) -> float:
    value = non_negative_float(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f'{value} is not a number from 0 to below 1')
    return value


def add_record_flags(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--rec-train`` and ``--rec-val``, which are then required; ``what`` they are is for ``--help``."""
    for subset in ('train', 'val'):
        parser.add_argument(f'--rec-{subset}', required=True, metavar='REC', help=what)


def _at_least(value: Number, least: Number, kind: str) -> Number:
    if not least <= value < math.inf:
        raise argparse.ArgumentTypeError(f'{value} is not a {kind}')
    return value
