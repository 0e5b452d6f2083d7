"""An error the user can fix."""
import re


class InputError(ValueError):
    """A file, record or parameter given by the user is invalid; the message says which, and what to do.

    Parameters of functions are named in backquotes. Commands print only the message, with flags in place of
    parameters (:func:`in_flags`), and exit with status 2. Any other exception is a bug in the program and keeps its
    traceback.
    """


def in_flags(message: str, flags: dict) -> str:
    """Replace each parameter in backquotes by its flag: one of ``flags``, or its own name with dashes."""
    return re.sub('`([a-z_]+)`', lambda match: flags.get(match[1], '--' + match[1].replace('_', '-')), message)
