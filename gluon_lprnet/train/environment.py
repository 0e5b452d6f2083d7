"""What a training ran with, beside its configuration: versions, the state of the code, the machine."""
import json
import platform
import subprocess
from importlib import metadata
from os import PathLike
from pathlib import Path
from typing import Any, Optional, Union

import mxnet as mx

from ..utils.errors import InputError
from ..utils.files import write_file
from ..utils.processes import processor_name

# The package itself has no version where it runs from a checkout, which has a commit.
_PACKAGES = ('gluon_lprnet', 'numpy', 'scipy', 'opencv-python', 'Pillow')


def write_environment(run_dir: Union[str, 'PathLike[str]'], records: Optional[dict[str, Any]] = None) -> None:
    """Append this process's environment to ``environment.json`` in a run's folder; a resumed run has several.

    Parameters
    ----------
    run_dir : path
    records : dict, optional
        What tells the records that are trained on from others (see
        :func:`gluon_lprnet.data.integrity.fingerprint`).
    """
    path = Path(run_dir) / 'environment.json'
    try:
        before = json.loads(path.read_text()) if path.exists() else []
    except ValueError as error:
        raise InputError(f'{path} is damaged: {error}. Remove it; it only says what the run has been trained with.'
                         ) from error
    found = {**environment(), 'records': records or {}}
    if before[-1:] != [found]:
        write_file(path, json.dumps([*before, found], indent=1) + '\n')


def environment() -> dict[str, Any]:
    """The versions of the package, Python, MXNet and what reads pictures; the commit of the code; the machine."""
    return {**_commit(Path(__file__).parent), 'python': platform.python_version(), 'mxnet': mx.__version__,
            **{name: _version(name) for name in _PACKAGES},
            'system': platform.platform(), 'machine': platform.node(), 'processor': processor_name()}


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(folder):
    """The commit of the checkout that ``folder`` is of, and whether tracked files differ from it; None without git."""
    # An installed package can lie within the checkout of another project, which does not track it.
    commit = _git(folder, 'rev-parse', 'HEAD') if _git(folder, 'ls-files') else None
    return {'commit': commit, 'modified': commit and _git(folder, 'status', '--porcelain', '-uno') != ''}


def _git(folder: Path, *arguments: str) -> Optional[str]:
    try:
        done = subprocess.run(['git', *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
