"""The processes that train one network together: their number, sums over them, and how long they wait for each other.

The engines are MXNet's parameter servers (ps-lite, KVStore ``dist_sync``) and Horovod. Every worker computes the same
update from the summed gradients, so that any of them has the whole state of the training. A training of one process
has a :class:`Workers` too, which is alone and does nothing.
"""
import atexit
import functools
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import mxnet as mx
import numpy as np
from mxnet.kvstore import KVStoreBase

from ..utils.errors import InputError
from .config import DIST_SYNC, HOROVOD, TrainingConfig
from .journal import LOGGER

# The gradients have the small numbers.
_FIRST_KEY_OF_SUMS = 1_000_000
# Of a number with a binary point, as it is sent to the servers: whole, and after the point.
_BITS, _POINT = 64, 30
# Of sysexits.h: a temporary failure, after which the same command may be tried again.
EX_TEMPFAIL = 75


class Workers:
    """This process and those that it trains with.

    Parameters
    ----------
    engine : _Engine, optional
        None: the process is alone.
    patience : float
        Seconds without an answer of the others after which this process ends, with the status 75, where it is
        :meth:`watched`; 0: never.

    Attributes
    ----------
    rank : int
        The number of this process among the workers, from 0.
    count : int
        Of the workers.
    engine : _Engine or None
        What ``gluon.Trainer`` takes as its KVStore.
    """

    def __init__(self, engine: 'Optional[_Engine]' = None, patience: float = 0.0) -> None:
        self.engine = engine
        self.rank: int = engine.rank if engine else 0
        self.count: int = engine.num_workers if engine else 1
        self._patience = patience
        self._answered = threading.Event()
        self._at_own_work = False

    @property
    def writes(self) -> bool:
        """Whether this is the one worker that writes checkpoints and logs."""
        return self.rank == 0

    @property
    def part(self) -> tuple[int, int]:
        """Which part of the records is this worker's, and of how many."""
        return self.rank, self.count

    def share(self, batch_size: int) -> int:
        """This worker's images of a batch of ``batch_size``, which all workers have together.

        Raises
        ------
        InputError
            If the batch cannot be divided evenly.
        """
        if batch_size % self.count:
            raise InputError(f'`batch_size` {batch_size} cannot be divided among {self.count} workers: give a multiple '
                             f'of {self.count}.')
        return batch_size // self.count

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums over the workers, who all give values of the same names."""
        if not self.engine:
            return dict(values)
        names = sorted(values)
        return dict(zip(names, self._total([values[name] for name in names]).tolist()))

    def mean(self, means: Mapping[str, float], count: int) -> dict[str, float]:
        """Means over the samples of all workers, from those over ``count`` samples of each."""
        if not self.engine:
            return dict(means)
        sums = self.sum({**{name: value * count for name, value in means.items()}, 'samples': count})
        return {name: sums[name] / sums['samples'] for name in means}

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in some worker; all workers ask before one gets the answer."""
        return bool(self._total([flag])[0]) if self.engine else flag

    def average(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The means of arrays, which have the same shapes in all workers."""
        if not self.engine or not arrays:
            return list(arrays)
        means = self._total(np.concatenate([array.ravel() for array in arrays])) / self.count
        ends = np.cumsum([array.size for array in arrays])[:-1]
        return [part.reshape(array.shape).astype(array.dtype) for part, array in zip(np.split(means, ends), arrays)]

    def barrier(self) -> None:
        """Wait until all workers are here."""
        self.any(False)

    def agree(self, **values: Any) -> None:
        """Make sure that each of ``values``, which JSON can hold, is the same in all workers.

        Raises
        ------
        InputError
            In all workers, if one is not.
        """
        if not self.engine:
            return
        own = np.array([zlib.crc32(json.dumps(value, sort_keys=True).encode()) for value in values.values()], 'float64')
        first = self._total(own if self.rank == 0 else np.zeros_like(own))
        for name, others in zip(values, self._total(own != first)):
            if others:
                raise InputError(f'{others:.0f} of {self.count} workers have another {name} than the '
                                 'first one. Start all with the same command, and give folders and files that are the '
                                 'same on all hosts.')

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While a training runs: end this process when the others no longer answer.

        Before and after it, and at its :meth:`own_work`, the process may do anything else, for as long as it likes.
        """
        if not self.engine or not self._patience:
            yield
            return
        over = threading.Event()
        watch = threading.Thread(target=self._end_without_answers, args=(over,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            self._answered.set()
            watch.join()

    @contextmanager
    def own_work(self, own: bool = True) -> Iterator[None]:
        """Work for which the others are not needed, as a context; where ``own`` is false, work within it for which
        they are.
        """
        before = self._at_own_work
        self._begin(own)
        try:
            yield
        finally:
            self._begin(before)

    def _begin(self, own: bool) -> None:
        # The time without answers begins anew.
        self._answered.set()
        self._at_own_work = own

    def leave(self) -> None:
        """End without waiting for the others, who are told by whoever started the workers."""
        if self.engine:
            self.engine.leave()

    def _total(self, values: Any) -> np.ndarray:
        assert self.engine
        with self.own_work(False):
            return self.engine.total(np.asarray(values, 'float64'))

    def _end_without_answers(self, over: threading.Event) -> None:
        while self._answered.wait(self._patience) or self._at_own_work or self._answered.is_set():
            self._answered.clear()
            if over.is_set():
                return
        LOGGER.error('worker %d of %d ends: the others have not answered for %g minutes (--worker-timeout). Resume '
                     'from the last checkpoint.', self.rank, self.count, self._patience / 60)
        os._exit(EX_TEMPFAIL)


class _Engine(KVStoreBase):
    """What adds up over the workers, as a KVStore for ``gluon.Trainer``."""

    # Properties of the base class.
    rank: int = 0
    num_workers: int = 1

    @staticmethod
    def is_capable(capability: str) -> bool:
        # Of updating the weights itself, of which the learning rate of a training would hear nothing.
        return False

    def total(self, values: np.ndarray) -> np.ndarray:
        """The sum over the workers of an array (N,) of float64."""
        raise NotImplementedError

    def leave(self) -> None:
        """Let this process end before the others."""


class _ParameterServers(_Engine):
    """MXNet's ``dist_sync``, with gradients in 2 bits where a threshold is given."""

    type = DIST_SYNC

    def __init__(self, threshold: float) -> None:
        if 'DMLC_ROLE' not in os.environ:
            raise InputError(f'`kvstore` {DIST_SYNC}: this process was not started as one of several workers. Start '
                             'them with `gluon-lprnet launch`.')
        self._store = mx.kv.create(DIST_SYNC)
        # MXNet aborts where it is not freed before the end of the process.
        atexit.register(self._free)
        self.rank, self.num_workers = self._store.rank, self._store.num_workers
        self._threshold = threshold
        self._known: set[int] = set()
        if threshold:
            self._store.set_gradient_compression({'type': '2bit', 'threshold': threshold})

    def broadcast(self, key: int, value: mx.nd.NDArray, out: list[mx.nd.NDArray], priority: int = 0) -> None:
        self._store.broadcast(key, value, out, priority)
        # The first gradients would overtake it, and the workers would train different weights.
        mx.nd.waitall()

    def pushpull(self, key: int, value: Any, out: Any = None, priority: int = 0) -> None:
        # MXNet's own pushpull refuses compressed gradients, and so does gluon.Trainer with it.
        self._store.push(key, value, priority)
        self._store.pull(key, value if out is None else out, priority)

    def total(self, values: np.ndarray) -> np.ndarray:
        # Bit by bit: the servers round float64 of three workers to float32, and compression lets nothing but 0 and the
        # threshold through unchanged.
        unit = self._threshold or 1.0
        array = mx.nd.array(unit * _to_bits(values).ravel())
        key = _FIRST_KEY_OF_SUMS + values.size
        if key not in self._known:
            self._store.init(key, mx.nd.zeros_like(array))
            self._known.add(key)
        self.pushpull(key, array)
        return _from_bit_counts((array.asnumpy() / unit).round().reshape(-1, _BITS))

    def leave(self) -> None:
        mx.base.check_call(mx.base._LIB.MXKVStoreSetBarrierBeforeExit(self._store.handle, 0))

    def _free(self) -> None:
        # Waits for the others, unless this worker has left.
        del self._store


class _Horovod(_Engine):
    """Horovod's allreduce."""

    type = HOROVOD

    def __init__(self) -> None:
        try:
            import horovod.mxnet as hvd
        except ImportError as error:
            raise InputError(f'`kvstore` {HOROVOD}: Horovod for MXNet cannot be imported ({error}). docs/'
                             f'distributed.md says how to build it; `kvstore` {DIST_SYNC} needs nothing.') from error
        hvd.init()
        self._hvd = hvd
        self.rank, self.num_workers = hvd.rank(), hvd.size()

    def broadcast(self, key: int, value: mx.nd.NDArray, out: list[mx.nd.NDArray], priority: int = 0) -> None:
        # A sum to which only the first worker adds. Horovod's own broadcast logs the tensor's name after it may be
        # freed, and crashes or hangs (0.28.1, EnqueueTensorBroadcast).
        root = value.copy() if self.rank == 0 else mx.nd.zeros_like(value)
        self._hvd.allreduce_(root, average=False, name=f'start {key}')
        for array in out:
            root.copyto(array)

    def pushpull(self, key: int, value: Any, out: Any = None, priority: int = 0) -> None:
        arrays = value if isinstance(value, list) else [value]
        total = arrays[0]
        for array in arrays[1:]:
            total += array.as_in_context(total.context)
        self._hvd.allreduce_(total, average=False, name=f'sum {key}', priority=priority)
        for array in arrays[1:]:
            total.copyto(array)

    def total(self, values: np.ndarray) -> np.ndarray:
        array = mx.nd.array(values, dtype='float64')
        return self._hvd.allreduce(array, average=False, name=f'total {values.size}').asnumpy()


def _to_bits(values: np.ndarray) -> np.ndarray:
    """The numbers (N,) in binary (N, 64), the lowest bit first: two's complement, with the point after 30 bits."""
    limit = 2.0 ** (_BITS - _POINT - 2)
    fixed = (values.clip(-limit, limit) * 2.0 ** _POINT).round().astype('int64').view('uint64')
    return (fixed[:, None] >> np.arange(_BITS, dtype='uint64')) & np.uint64(1)


def _from_bit_counts(counts: np.ndarray) -> np.ndarray:
    """The sum of numbers, from how many of them have each bit (N, 64)."""
    fixed = (counts.astype('uint64') << np.arange(_BITS, dtype='uint64')).sum(axis=1, dtype='uint64')
    return fixed.view('int64') / 2.0 ** _POINT


def workers_of(config: TrainingConfig) -> Workers:
    """The workers of this training, of whom this process is one.

    Raises
    ------
    InputError
        If it was not started as one of several, or the engine cannot be had.
    """
    return _join(config.kvstore, config.compress_gradients, 60 * config.worker_timeout)


# A process joins its engine once.
@functools.cache
def _join(kvstore: str, threshold: float, patience: float) -> Workers:
    if kvstore == HOROVOD:
        return Workers(_Horovod(), patience)
    return Workers(_ParameterServers(threshold), patience) if kvstore == DIST_SYNC else Workers()
