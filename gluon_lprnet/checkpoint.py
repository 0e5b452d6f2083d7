"""Checkpoints that are complete or absent, and resuming from the newest complete one.

A checkpoint is a folder ``checkpoints/step-00012345`` of a run's folder::

    net.params        parameters of the network (MXNet's format); averaged ones, where the training averages
    trained.params    those that the training goes on from, where they are not the former
    trainer.states    state of the optimizer
    state.json        configuration, step and epoch, running sums, CRC-32 of the files above

It is written under another name, flushed to disk and renamed, so the name never exists without a complete
checkpoint. One that is saved again, at a step it already has, is ``step-00012345.old`` until the new one is in place.
The CRC-32 finds later damage, which MXNet's own format would load silently.
Random states are not stored: order, augmentation and mixup are functions of seed, epoch and batch.
"""
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable, Optional, Union

import mxnet as mx
from mxnet import gluon

from .utils.errors import InputError
from .utils.files import folder_aside, lock, make_folder, put_in_place, write_errors

PathLike = Union[str, 'os.PathLike[str]']

_NAME = re.compile(r'step-(\d+)(\.old)?')
# What a kill leaves while a checkpoint is being written; .part is the name that versions up to 0.1 gave it.
_UNFINISHED = re.compile(r'\.step-\d+\.part.*')


class Checkpoint:
    """A complete checkpoint on disk: ``path``, and ``state`` as it was given to :func:`save`."""

    def __init__(self, path: PathLike) -> None:
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
    def params(self) -> str:
        return str(self.path / 'net.params')

    def load(self, net: gluon.HybridBlock, trainer: gluon.Trainer, contexts: list[mx.Context]) -> None:
        """Set the network's parameters and the trainer's optimizer state to those that the training goes on from."""
        trained = self.path / 'trained.params'
        net.load_parameters(str(trained) if trained.exists() else self.params, ctx=contexts)
        trainer.load_states(str(self.path / 'trainer.states'))


def save(run_dir: PathLike, net: gluon.HybridBlock, trainer: gluon.Trainer, state: dict[str, Any], keep: int = 2,
         average: Any = None) -> Path:
    """Write a checkpoint of ``state`` (a JSON-serializable dict with ``step``) and keep the newest ``keep``.

    With an ``average``, a :class:`gluon_lprnet.train.average.WeightAverage`, the checkpoint's network is that.

    Returns
    -------
    Path
        The checkpoint's folder.

    Raises
    ------
    InputError
        If it cannot be written, as on a full disk; the checkpoints before it stay.
    """
    folder = Path(run_dir) / 'checkpoints'
    final = folder / f'step-{state["step"]:08d}'
    with write_errors(final), folder_aside(folder, final.name) as aside:
        scratch = aside / final.name
        scratch.mkdir()
        if average:
            net.save_parameters(str(scratch / 'trained.params'))
        with average.taken() if average else nullcontext():
            net.save_parameters(str(scratch / 'net.params'))
        trainer.save_states(str(scratch / 'trainer.states'))
        crc32 = {path.name: _crc32(path) for path in sorted(scratch.iterdir())}
        (scratch / 'state.json').write_text(json.dumps(dict(state, crc32=crc32), indent=1))
        before = Path(f'{final}.old')
        if final.exists():
            # A folder cannot be renamed onto another; under this name the one before is still found.
            shutil.rmtree(before, ignore_errors=True)
            os.replace(final, before)
        put_in_place([scratch], folder)
    shutil.rmtree(before, ignore_errors=True)
    for _, path in _numbered(run_dir)[:-keep]:
        shutil.rmtree(path)
    for path in folder.iterdir():
        if _UNFINISHED.fullmatch(path.name):
            shutil.rmtree(path)
    return final


@contextmanager
def only_user(run_dir: PathLike) -> Iterator[None]:
    """Lock a run's folder, created if missing, against other trainings until the context or process ends.

    Raises
    ------
    InputError
        If another training is using it, or it cannot be written to.
    """
    make_folder(run_dir)
    with lock(Path(run_dir) / '.lock', f'{run_dir} is in use by another training: wait until it ends, or stop it.'):
        yield


def find(path: PathLike) -> Optional[Checkpoint]:
    """The :class:`Checkpoint` in the folder ``path``, or the newest whole one if it is a run's; None if it is neither.

    Raises
    ------
    InputError
        If it is a checkpoint and not whole.
    """
    return Checkpoint(path) if (Path(path) / 'state.json').exists() else newest(path)


def newest(run_dir: PathLike, report: Callable[[str], object] = print) -> Optional[Checkpoint]:
    """The newest complete :class:`Checkpoint` in a run's folder, or None; damaged ones are reported."""
    for _, path in reversed(_numbered(run_dir)):
        try:
            return Checkpoint(path)
        except InputError as error:
            report(f'{error} Falling back to the previous checkpoint.')
    return None


def _numbered(run_dir: PathLike) -> list[tuple[int, Path]]:
    folder = Path(run_dir) / 'checkpoints'
    if not folder.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    # A checkpoint comes after the one that it is about to replace.
    found = sorted((int(match[1]), not match[2], path) for match, path in matches if match)
    return [(step, path) for step, _, path in found]


def _crc32(path: PathLike) -> int:
    return zlib.crc32(Path(path).read_bytes())
