"""``python -m gluon_lprnet COMMAND``: every command of the package that is not a training."""
import argparse
import sys

from . import __version__, complexity, tables
from .data import digits, pack, records
from .errors import InputError
from .evaluate import classification
from .train import journal
from .zoo import symbols

# Each module adds the parsers of its commands and sets `run`, a function of the parsed arguments.
_COMMAND_MODULES = (tables, complexity, symbols, pack, digits, records, journal, classification)


def main(argv=None):
    parser = argparse.ArgumentParser(prog='python -m gluon_lprnet', description=__doc__)
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for module in _COMMAND_MODULES:
        module.add_commands(commands)
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except InputError as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == '__main__':
    sys.exit(main())
