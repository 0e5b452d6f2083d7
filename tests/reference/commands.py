"""Commands run in this process."""
import argparse

from gluon_lprnet.utils.errors import InputError, in_flags


def command(module, *argv):
    """Run a command of one module; its InputError is raised, with flags as the command line prints it."""
    parser = argparse.ArgumentParser()
    module.add_commands(parser.add_subparsers())
    args = parser.parse_args([str(argument) for argument in argv])
    try:
        return args.run(args)
    except InputError as error:
        raise InputError(in_flags(str(error), getattr(args, 'flags', {}))) from error
