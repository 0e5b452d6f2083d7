"""Commands run in this process."""
import argparse


def command(module, *argv):
    """Run a command of one module."""
    parser = argparse.ArgumentParser()
    module.add_commands(parser.add_subparsers())
    args = parser.parse_args([str(argument) for argument in argv])
    return args.run(args)
