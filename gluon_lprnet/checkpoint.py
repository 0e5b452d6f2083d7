"""Checkpoints that are complete or absent, and resuming from the newest complete one.

A checkpoint is a folder ``checkpoints/step-00012345`` of a run's folder::

    net.params        parameters of the network (MXNet's format); averaged ones, where the training averages
    trained.params    those that the training goes on from, where they are not the former
    optimizer.npz     state of the optimizer: NumPy arrays
    state.json        configuration, step and epoch, running sums
    crc32.json        CRC-32 of each of the files above

It is written under another name, flushed to disk and renamed, so the name never exists without a complete
checkpoint. One that is saved again, at a step it already has, is ``step-00012345.old`` until the new one is in place.
The CRC-32 finds later damage, which MXNet's own format would load silently. Before the checkpoint gets its name, the
parameters are read back: MXNet says nothing when the disk is full.
Versions before had ``trainer.states`` in place of ``optimizer.npz``: a pickle, which runs any code that it holds, and
is read only where that is asked for. Their CRC-32 are in ``state.json``.
Random states are not stored: order, augmentation and mixup are functions of seed, epoch and batch.
"""
import errno
import json
import math
import os
import re
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Callable, Optional, Union

import mxnet as mx
import numpy as np
from mxnet import gluon

from .utils.errors import InputError
from .utils.files import folder_aside, lock, make_folder, put_in_place, write_errors

PathLike = Union[str, 'os.PathLike[str]']

# What is loaded, besides the state, where it is there.
_READ = 'net.params', 'trained.params', 'optimizer.npz', 'trainer.states'
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
            If a file is missing, its CRC-32 differs from that of the file as written, or the state is not one.
        """
        self.path = Path(path)
        try:
            state = _read_json(self.path / 'state.json')
            listed = self.path / 'crc32.json'
            checksums = _read_json(listed) if listed.exists() else {**state.pop('crc32'), 'state.json': None}
            # A file of the system, or of an editor, is none of the checkpoint's.
            unlisted = {name for name in _READ if (self.path / name).exists()} - set(checksums)
            if unlisted or not {'net.params', 'state.json'} <= set(checksums):
                raise ValueError(f'no CRC-32 is known of {", ".join(sorted(unlisted)) or "its files"}')
            if not listed.exists():
                del checksums['state.json']
            for name, crc in checksums.items():
                if _crc32(self.path / name) != crc:
                    raise InputError(f'{self.path / name} is damaged (its CRC-32 differs from the recorded one).')
            _check_state(state)
        except (OSError, LookupError, TypeError, ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f'{self.path} is not a complete checkpoint: {error}.') from error
        self.state = state

    @property
    def params(self) -> str:
        return str(self.path / 'net.params')

    def load(self, net: gluon.HybridBlock, trainer: gluon.Trainer, contexts: list[mx.Context],
             allow_pickle: bool = False) -> None:
        """Set the network's parameters and the trainer's optimizer state to those that the training goes on from.

        Parameters
        ----------
        net : HybridBlock
        trainer : gluon.Trainer
        contexts : list of mx.Context
        allow_pickle : bool
            Take a state of versions before, which may run any code.

        Raises
        ------
        InputError
            If it is of another network or optimizer, or its state is a pickle.
        """
        trained = self.path / 'trained.params'
        old = self.path / 'trainer.states'
        if old.exists() and not allow_pickle:
            raise InputError(f'{old} is a pickle of a version before, which can run any code: give `allow_pickle` if '
                             'the run is your own.')
        try:
            net.load_parameters(str(trained) if trained.exists() else self.params, ctx=contexts)
        except (AssertionError, ValueError, mx.MXNetError) as error:
            raise InputError(f'{self.path} is of another network: {str(error).strip().splitlines()[0]}') from error
        for name, parameter in net._collect_params_with_prefix().items():
            if not np.isfinite(parameter.data(contexts[0]).asnumpy()).all():
                raise InputError(f'{self.path}: the parameter {name} is NaN or infinite. Move this checkpoint '
                                 'away, to go on from the one before.')
        if old.exists():
            trainer.load_states(str(old))
        else:
            self._load_optimizer(net, trainer)

    def _load_optimizer(self, net: gluon.HybridBlock, trainer: gluon.Trainer) -> None:
        try:
            with np.load(self.path / 'optimizer.npz') as archive:
                arrays = dict(archive)
            make_ready(trainer)
            optimizer, names = trainer._optimizer, _names(net, trainer)
            updates = dict(zip(names, arrays['updates'].tolist()))
            for updater, context in zip(trainer._updaters, trainer._contexts):
                counts = optimizer._all_index_update_counts[context.device_id] = {}
                for index, name in names.items():
                    if not updates[index]:
                        continue
                    counts[index] = updates[index]
                    state = optimizer.create_state_multi_precision(index, trainer._params[index].data(context))
                    for part, array in _arrays_of(state, name):
                        array[:] = arrays[part]
                    updater.states[index], updater.states_synced[index] = state, True
            optimizer._set_current_context(trainer._contexts[0].device_id)
            optimizer.num_update = max(updates.values(), default=0)
        except (OSError, KeyError, ValueError, mx.MXNetError) as error:
            raise InputError(f'{self.path / "optimizer.npz"} is not the state of this optimizer: {error}.') from error


def _read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f'{path.name} holds no names with values')
    return content


# What a training goes on from, where it is there.
_TYPES = {'step': int, 'epoch': int, 'step_in_epoch': int, 'sums': dict, 'interval': dict, 'reached': bool,
          'config': dict, 'data': dict}


def _check_state(state: dict[str, Any]) -> None:
    for name, kind in _TYPES.items():
        value: Any = state.get(name, kind())
        if type(value) is not kind or type(value) is int and value < 0:
            raise ValueError(f'its {name} is {str(value)[:50]}')
    for name in ('sums', 'interval'):
        if not all(type(value) in (int, float) and math.isfinite(value) for value in state.get(name, {}).values()):
            raise ValueError(f'its {name} are not finite numbers')


def make_ready(trainer: gluon.Trainer) -> None:
    """Let a trainer make what it would make in its first step; all workers get the parameters of the first one."""
    if not trainer._kv_initialized:
        trainer._init_kvstore()
    if trainer._params_to_init:
        trainer._init_params()


def _arrays_of(state: Any, name: str) -> Iterator[tuple[str, mx.nd.NDArray]]:
    """The (name, NDArray) pairs of an optimizer's state of one parameter: nothing, an array, or a tuple of these."""
    if isinstance(state, (tuple, list)):
        for number, part in enumerate(state):
            yield from _arrays_of(part, f'{name}.{number}')
    elif state is not None:
        yield name, state


def _names(net: gluon.HybridBlock, trainer: gluon.Trainer) -> dict[int, str]:
    """The name of each of a trainer's parameters within the network, by its number, in the network's order.

    The trainer numbers them by their full names, whose order depends on how many layers the process has made before.
    """
    numbers = {id(parameter): number for number, parameter in enumerate(trainer._params)}
    return {numbers[id(parameter)]: name for name, parameter in net._collect_params_with_prefix().items()
            if id(parameter) in numbers}


def _optimizer_arrays(net: gluon.HybridBlock, trainer: gluon.Trainer) -> dict[str, np.ndarray]:
    """The state of a trainer's optimizer as NumPy arrays: ``updates`` of each parameter, and what it keeps of them."""
    make_ready(trainer)
    names = _names(net, trainer)
    counts = trainer._optimizer._all_index_update_counts.get(trainer._contexts[0].device_id, {})
    arrays = {'updates': np.array([counts.get(index, 0) for index in names], 'int64')}
    for index, state in trainer._updaters[0].states.items():
        arrays.update((part, array.asnumpy()) for part, array in _arrays_of(state, names[index]))
    return arrays


def _read_back(path: Path, net: gluon.HybridBlock) -> None:
    """Refuse a file of parameters that does not hold those of the network."""
    found = mx.nd.load(str(path))
    for name, parameter in net._collect_params_with_prefix().items():
        expected = parameter._reduce().asnumpy()
        if name not in found or not np.array_equal(found[name].asnumpy(), expected, equal_nan=True):
            raise OSError(errno.EIO, f'{name} reads back otherwise')


def save(run_dir: PathLike, net: gluon.HybridBlock, trainer: gluon.Trainer, state: dict[str, Any], keep: int = 2,
         average: Any = None) -> Path:
    """Write a checkpoint of ``state`` (a JSON-serializable dict with ``step``) and keep ``keep`` up to this one.

    Later ones, which were damaged when the training began before them, stay.

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
            _write_parameters(net, scratch / 'trained.params')
        with average.taken() if average else nullcontext():
            _write_parameters(net, scratch / 'net.params')
        np.savez(scratch / 'optimizer.npz', **_optimizer_arrays(net, trainer))
        (scratch / 'state.json').write_text(json.dumps(state, indent=1))
        crc32 = {path.name: _crc32(path) for path in sorted(scratch.iterdir())}
        (scratch / 'crc32.json').write_text(json.dumps(crc32, indent=1))
        before = Path(f'{final}.old')
        if final.exists():
            # A folder cannot be renamed onto another; under this name the one before is still found.
            shutil.rmtree(before, ignore_errors=True)
            os.replace(final, before)
        put_in_place([scratch], folder)
    shutil.rmtree(before, ignore_errors=True)
    up_to_this = [path for step, path in _numbered(run_dir) if step <= state['step']]
    unfinished = [path for path in folder.iterdir() if _UNFINISHED.fullmatch(path.name)]
    for path in up_to_this[:-keep] + unfinished:
        # Another host may have a file of it open, which is no reason to end the training: the next save tries again.
        shutil.rmtree(path, ignore_errors=True)
    return final


def _write_parameters(net: gluon.HybridBlock, path: Path) -> None:
    net.save_parameters(str(path))
    _read_back(path, net)


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


def find(path: PathLike) -> Checkpoint:
    """The :class:`Checkpoint` in the folder ``path``, or the newest whole one if it is a run's.

    Raises
    ------
    InputError
        If it is neither, or is a checkpoint and not whole.
    """
    found = Checkpoint(path) if (Path(path) / 'state.json').exists() else newest(path)
    if found is None:
        raise InputError(f'{path} is neither a checkpoint nor a run with checkpoints.')
    return found


def _warn(message: str) -> None:
    print(message, file=sys.stderr)


def newest(run_dir: PathLike, report: Callable[[str], object] = _warn) -> Optional[Checkpoint]:
    """The newest complete :class:`Checkpoint` in a run's folder, or None; damaged ones are reported."""
    for _, path in reversed(_numbered(run_dir)):
        try:
            return Checkpoint(path)
        except InputError as error:
            report(f'{error} Trying the checkpoint before it.')
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
