"""The error that the user can fix."""
import re


class InputError(ValueError):
    """A file, a record or a parameter that the user gave is at fault; the message says which, and what to do.

    A parameter of a function stands in backquotes: ```quality` is 200``. Commands print the message alone, with
    flags in the place of parameters (:func:`in_flags`), and exit with status 2; every other exception is a fault
    of the program and keeps its traceback.
    """


def in_flags(message: str, flags: dict) -> str:
    """A message with ``--quality`` where it has ```quality```; ``flags`` are those that have another name."""
    return re.sub('`([a-z_]+)`', lambda match: flags.get(match[1], '--' + match[1].replace('_', '-')), message)
