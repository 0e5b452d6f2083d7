"""The error that a user can mend."""


class InputError(ValueError):
    """A file, a record or a flag that the user gave is at fault; the message says which, and what to do.

    Commands print the message alone and exit with status 2; every other exception is a fault of
    the program and keeps its traceback.
    """
