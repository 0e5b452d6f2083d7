"""An error the user can fix."""


class InputError(ValueError):
    """A file, record or argument given by the user is invalid; the message says which, and what to do.

    Commands print only the message and exit with status 2. Any other exception is a bug in the program
    and keeps its traceback.
    """
