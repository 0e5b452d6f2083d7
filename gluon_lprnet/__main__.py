"""``gluon-lprnet COMMAND`` or ``python -m gluon_lprnet COMMAND``: every command."""
import argparse
import errno
import os
import signal
import sys

from . import __version__, complexity
from .compression import command as compression
from .compression import originals, shipping
from .data import check, digits, pack, photos
from .data.faces import drawn, pose_synthesis
from .data.faces import records as face_records
from .deployment import export
from .evaluate import command as evaluation
from .evaluate import nme
from .paper import cifar10, figure2, table6, tables
from .predict import align, detector_boxes, publish
from .predict import classification as prediction
from .serving import archive, compare, server, soak
from .train import face, imagenet, journal, launch, runs
from .train.loop import NonFiniteLoss
from .utils.errors import InputError, in_flags
from .utils.signals import exit_on_sigterm
from .zoo import symbols

# Each module adds the parsers of its commands and sets `run`, a function of the parsed arguments.
_COMMAND_MODULES = (imagenet, face, tables, table6, complexity, symbols, digits, drawn, pose_synthesis, check,
                    journal, runs, launch, evaluation, prediction, publish, nme, align, detector_boxes, export, archive,
                    server, soak, compare, compression, originals, shipping, cifar10, figure2)
# `pack KIND`: each module adds the parser of a kind of data set.
_PACK_MODULES = (pack, photos, face_records)


def _add_archives(parser):
    """Let ``export`` write model archives too, which its own package does not know about."""
    parser.add_argument('--mar', action='store_true',
                        help='model archives of symbol and params too, as `archive` writes them')
    parser.set_defaults(run=_export)


def _export(args):
    if args.mar and 'mxnet' not in args.format:
        raise InputError('--mar needs --format mxnet: an archive holds symbol and params.')
    written = export.export_as_flags_say(args)
    if args.mar:
        written += [archive.archive(path, args.out) for path in written if path.name.endswith('-symbol.json')]
    for path in written:
        print(f'{path} ({path.stat().st_size:,} bytes)')


def make_parser():
    """The parser of all commands, named as the program was called: by its console script or as a module."""
    script = os.path.basename(sys.argv[0])
    parser = argparse.ArgumentParser(prog=script if script == 'gluon-lprnet' else 'python -m gluon_lprnet',
                                     description=__doc__)
    parser.add_argument('--version', action='version', version=__version__)
    commands = parser.add_subparsers(metavar='COMMAND', required=True)
    for module in _COMMAND_MODULES:
        module.add_commands(commands)
    _add_archives(commands.choices['export'])
    kinds = commands.add_parser('pack', help='pack images into RecordIO files').add_subparsers(
        metavar='KIND', required=True)
    for module in _PACK_MODULES:
        module.add_pack_kind(kinds)
    return parser


def main(argv=None):
    """Run the command that ``argv`` (default: the process's arguments) names.

    Returns
    -------
    int
        Exit status: the command's own; 2 for bad input; 128 + signal when stopped, 141 (128 + SIGPIPE) when what
        reads standard output has ended, as ``head`` does.
    """
    parser = make_parser()
    try:
        try:
            return _run(parser, argv)
        finally:
            # An error here counts as well; --help leaves by this way too.
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return 128 + signal.SIGPIPE
    except OSError as error:
        # For files, functions raise InputError.
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        _drop_output()
        print(f'{parser.prog}: the standard output cannot be written: {error.strerror}.', file=sys.stderr)
        return 2


def _run(parser, argv):
    args = parser.parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):
            # File names may hold any bytes.
            stream.reconfigure(errors='backslashreplace')
    try:
        with exit_on_sigterm():
            return args.run(args)
    except InputError as error:
        print(f'{parser.prog}: {in_flags(str(error), getattr(args, "flags", {}))}', file=sys.stderr)
        return 2
    except NonFiniteLoss:
        # The training has reported it.
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _drop_output():
    """Have Python flush what is left of the output to nowhere when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
    sys.exit(main())
