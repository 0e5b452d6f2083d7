"""Parsers of commands, with examples; types of their flags: argparse rejects invalid values before anything runs."""
import argparse
import math
import textwrap
from typing import TYPE_CHECKING, Any, Optional, TypeVar

from .text import integer, real

# What ``add_subparsers`` gives, which a module adds its commands to.
if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
else:
    Commands = Any

Number = TypeVar('Number', int, float)


class HelpFormatter(argparse.HelpFormatter):
    """Wraps the text of ``--help``, but leaves the lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith('example') else super()._fill_text(text, width, indent)


def examples(calls: str) -> str:
    """The end of a ``--help``: calls of ``gluon-lprnet`` as a shell takes them, further lines of a call indented."""
    several = sum(not line.startswith(' ') for line in calls.splitlines()) > 1
    return f'example{"s" if several else ""}:\n{textwrap.indent(calls, "  ")}'


def add_parser(commands: Commands, name: str, help: str, example: str,
               description: Optional[str] = None, **keywords: Any) -> argparse.ArgumentParser:
    """Add the parser of a command.

    Parameters
    ----------
    commands : argparse subparsers
    name : str
    help : str
        What it does, for the list of commands.
    example : str
        See :func:`examples`.
    description : str, optional
        The same in sentences, for its own ``--help`` (default: ``help``).
    keywords
        Of ``argparse.ArgumentParser``.
    """
    return commands.add_parser(name, help=help, description=description or f'{help[0].upper()}{help[1:]}.',
                               epilog=examples(example), formatter_class=HelpFormatter, **keywords)


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
