"""Checkpoints that are complete or absent, and resuming from the newest complete one.

A checkpoint is a folder ``checkpoints/step-00012345`` of a run's folder::

    net.params        parameters of the network (MXNet's format); averaged ones, where the training averages
    trained.params    those that the training goes on from, where they are not the former
    trainer.states    state of the optimizer
    state.json        configuration, step and epoch, running sums, CRC-32 of the files above

It is written under another name, flushed to disk and renamed, so the name never exists without a complete
checkpoint. The CRC-32 finds later damage, which MXNet's own format would load silently.
Random states are not stored: order, augmentation and mixup are functions of seed, epoch and batch.
"""
import fcntl
import json
import os
import re
import shutil
import zlib
from contextlib import contextmanager, nullcontext
from pathlib import Path

from .utils.errors import InputError

_NAME = re.compile(r'step-(\d+)')


class Checkpoint:
    """A complete checkpoint on disk: ``path``, and ``state`` as it was given to :func:`save`."""

    def __init__(self, path):
        """Read and verify the checkpoint in folder ``path``.

        Raises
        ------
        InputError
            If a file is missing, or its CRC-32 differs from that of the file as written.
        """
        self.path = Path(path)
        try:
            state = json.loads((self.path / 'state.json').read_text())
            for name, crc in state.pop('crc32').items():
                if _crc32(self.path / name) != crc:
                    raise InputError(f'{self.path / name} is damaged (its CRC-32 differs from the recorded one).')
        except (OSError, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f'{self.path} is not a complete checkpoint: {error}.') from error
        self.state = state

    @property
    def params(self):
        return str(self.path / 'net.params')

    def load(self, net, trainer, contexts):
        """Set the network's parameters and the trainer's optimizer state to those that the training goes on from."""
        trained = self.path / 'trained.params'
        net.load_parameters(str(trained) if trained.exists() else self.params, ctx=contexts)
        trainer.load_states(str(self.path / 'trainer.states'))


def save(run_dir, net, trainer, state, keep=2, average=None):
    """Write a checkpoint of ``state`` (a JSON-serializable dict with ``step``) and keep the newest ``keep``.

    With an ``average``, a :class:`gluon_lprnet.train.average.WeightAverage`, the checkpoint's network is that.

    Returns
    -------
    Path
        The checkpoint's folder.
    """
    folder = Path(run_dir) / 'checkpoints'
    final = folder / f'step-{state["step"]:08d}'
    scratch = folder / f'.{final.name}.part'
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    if average:
        net.save_parameters(str(scratch / 'trained.params'))
    with average.taken() if average else nullcontext():
        net.save_parameters(str(scratch / 'net.params'))
    trainer.save_states(str(scratch / 'trainer.states'))
    files = sorted(path.name for path in scratch.iterdir())
    state = dict(state, crc32={name: _crc32(scratch / name) for name in files})
    (scratch / 'state.json').write_text(json.dumps(state, indent=1))
    for name in (*files, 'state.json'):
        _flush(scratch / name)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(scratch, final)
    _flush(folder)
    for _, old in _numbered(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


@contextmanager
def only_user(run_dir):
    """Lock a run's folder, created if missing, against other trainings until the context or process ends.

    Raises
    ------
    InputError
        If another training is using it, or it cannot be written to.
    """
    try:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        lock = open(Path(run_dir) / '.lock', 'w')
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f'{run_dir} is in use by another training: wait until it ends, or stop it.') from error
    except OSError as error:
        raise InputError(f'{run_dir} cannot be written to or locked: {error.strerror}.') from error
    with lock:
        yield


def find(path):
    """The :class:`Checkpoint` in the folder ``path``, or the newest whole one if it is a run's; None if it is neither.

    Raises
    ------
    InputError
        If it is a checkpoint and not whole.
    """
    return Checkpoint(path) if (Path(path) / 'state.json').exists() else newest(path)


def newest(run_dir, report=print):
    """The newest complete :class:`Checkpoint` in a run's folder, or None; damaged ones are reported."""
    for _, path in reversed(_numbered(run_dir)):
        try:
            return Checkpoint(path)
        except InputError as error:
            report(f'{error} Falling back to the previous checkpoint.')
    return None


def _numbered(run_dir):
    folder = Path(run_dir) / 'checkpoints'
    if not folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _crc32(path):
    return zlib.crc32(Path(path).read_bytes())


def _flush(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
