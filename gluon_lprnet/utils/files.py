"""Files that are whole or not there, and folders that one process uses at a time.

Everything that the package leaves for its user is written here: aside first, flushed to the disk, then renamed. What
was there before stays until its successor is whole, and a full disk or a kill leaves no half of a file.
"""
import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Union

from .._compat import import_mxnet
from .errors import InputError

__all__ = ['FIGURES', 'check_figure', 'folder_aside', 'lock', 'make_folder', 'put_in_place', 'whole', 'write_errors',
           'write_file']

PathLike = Union[str, 'os.PathLike[str]']

# Endings of pictures that are drawn.
FIGURES = ('.png', '.svg', '.pdf')


def write_file(path: PathLike, content: Union[str, bytes, Callable[[Path], object]]) -> None:
    """Write a file, whole or not at all, and the folders above it that are missing.

    Parameters
    ----------
    path : path
        A link is followed; a device or a pipe is written to and stays what it is.
    content : str, bytes or callable
        Text, which is written as UTF-8; or a function of the path to write to, which has the same extension.

    Raises
    ------
    InputError
        If it cannot be written.
    """
    if isinstance(content, str):
        content = content.encode(errors='surrogateescape')
    with whole(path) as scratch:
        if callable(content):
            content(scratch)
        else:
            scratch.write_bytes(content)


@contextlib.contextmanager
def whole(path: PathLike) -> Iterator[Path]:
    """As a context: a path to write a file or a folder at, which becomes ``path`` unless an error ends the block.

    Raises
    ------
    InputError
        For every OSError, also of the block.
    """
    with write_errors(path):
        # Renaming would put a file in the place of a link or of a device.
        target = Path(os.path.realpath(path))
        if target.exists() and not (target.is_file() or target.is_dir()):
            yield target
            return
        with folder_aside(target.parent, target.name) as folder:
            yield folder / target.name
            put_in_place([folder / target.name], target.parent)


@contextlib.contextmanager
def folder_aside(parent: PathLike, name: str) -> Iterator[Path]:
    """As a context: an empty folder in ``parent``, which is made if it is missing; removed at the end of the block.

    Raises
    ------
    InputError
        If it cannot be made.
    """
    make_folder(parent)
    with write_errors(parent):
        # The longest name that a file can have leaves no room for more.
        folder = tempfile.TemporaryDirectory(prefix=f'.{name[:40]}.partial-', dir=parent)
    with folder as path:
        yield Path(path)


def put_in_place(files: Iterable[Path], folder: PathLike) -> list[Path]:
    """Flush files (or folders of files) to the disk and move them into ``folder``, in this order; their new paths.

    Raises
    ------
    InputError
        If that is not possible.
    """
    files = list(files)
    targets = [Path(folder) / file.name for file in files]
    with write_errors(folder):
        for file in files:
            for part in (*file.rglob('*'), file):
                _flush(part)
        for file, target in zip(files, targets):
            os.replace(file, target)
        _flush(Path(folder))
    return targets


def make_folder(path: PathLike) -> None:
    """Make a folder and those above it, unless they are there.

    Raises
    ------
    InputError
        If that is not possible.
    """
    try:
        os.makedirs(path, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        at_fault = next(each for each in (Path(path), *Path(path).parents) if os.path.lexists(each))
        raise InputError(f'{at_fault} is not a folder: give another path.') from error
    except OSError as error:
        raise InputError(f'the folder {path} cannot be made: {error.strerror}.') from error


def check_figure(path: PathLike) -> None:
    """Raise InputError unless the name of a picture to draw ends in one of ``FIGURES``."""
    if Path(path).suffix.lower() not in FIGURES:
        raise InputError(f'{os.fspath(path)}: give a name that ends in {", ".join(FIGURES)}.')


@contextlib.contextmanager
def write_errors(path: PathLike) -> Iterator[None]:
    """Raise an InputError that names ``path`` for every OSError of the block, and for MXNet's of its files."""
    try:
        yield
    except BrokenPipeError:
        raise
    # MXNet takes names in UTF-8 only.
    except (OSError, UnicodeEncodeError, import_mxnet().base.MXNetError) as error:
        reason = getattr(error, 'strerror', None) or str(error).strip().splitlines()[-1]
        raise InputError(f'{os.fspath(path)} cannot be written: {reason}. Check the free space of the disk and the '
                         'permissions of the folder.') from error


@contextlib.contextmanager
def lock(path: PathLike, in_use: str) -> Iterator[None]:
    """Hold a lock file, which is made and left there, until the block or the process ends.

    Raises
    ------
    InputError
        With the text ``in_use`` if another process holds it; if it cannot be written.
    """
    with write_errors(path):
        # Not truncated: it may be somebody's file.
        file = open(path, 'a')
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(in_use) from error
        yield


def _flush(path: PathLike) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
