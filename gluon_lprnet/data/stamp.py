"""The stamp beside a file of records that was checked: what it was then, so that it is read once and not at each start.

``PREFIX.checked.json`` holds size, modification time and inode of the ``.rec``, the ``.idx`` and the manifest, what was
checked, when, and what was found. It says nothing any more once one of them differs. What changes a file and sets its
time back, and a disk that decays, it does not see: that is for a check of every byte.
"""
import contextlib
import datetime
import json
import os
from typing import Any, Optional

from ..utils.errors import InputError
from ..utils.files import write_file
from .recordio import beside

_VERSION = 1
_FILES = ('.rec', '.idx', '.json')

Signature = dict[str, Any]


def signature(rec_path: str) -> Signature:
    """What tells whether a ``.rec``, its index or its manifest was changed or replaced."""
    found = {}
    for extension in _FILES:
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(beside(rec_path, extension))
            found[extension] = [status.st_size, status.st_mtime_ns, status.st_ino]
    return found


def read_stamp(rec_path: str) -> Optional[dict[str, Any]]:
    """What was found when the file was checked, with ``verified`` and ``when``; None if it is not the same any more."""
    try:
        with open(beside(rec_path, '.checked.json'), encoding='utf-8') as file:
            stamp = json.load(file)
        if stamp['version'] == _VERSION and stamp['files'] == signature(rec_path):
            return {**stamp['found'], 'when': stamp['when']}
    except (OSError, ValueError, LookupError, TypeError):
        # It is only there to save time.
        pass
    return None


def write_stamp(rec_path: str, before: Signature, found: dict[str, Any]) -> None:
    """Note what was ``found`` in a file of the signature ``before``; not if it has changed since."""
    if signature(rec_path) == before:
        stamp = {'version': _VERSION, 'files': before, 'when': f'{datetime.datetime.now():%Y-%m-%d %H:%M}',
                 'found': found}
        with contextlib.suppress(InputError):
            write_file(beside(rec_path, '.checked.json'), json.dumps(stamp, indent=1) + '\n')
