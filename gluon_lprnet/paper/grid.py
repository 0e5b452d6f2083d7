"""Trainings that differ in one thing each: run side by side, resumed row by row, and summarized."""
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from mxnet.gluon import HybridBlock
from tqdm import tqdm

from .. import checkpoint
from .._compat import default_threads
from ..artifact import TRAINING_FORMS, model_arguments
from ..complexity import count
from ..compression.latency import median_milliseconds
from ..deployment.reparametrize import reparametrize
from ..graph import as_block, trace
from ..train.config import check_same_curve, make_parser, parse
from ..train.imagenet import ClassificationConfig
from ..train.journal import read_epochs
from ..utils.files import PathLike
from ..utils.signals import exit_on_sigterm
from ..zoo import get_model

# With the networks of the experiments, which are not in the zoo.
_TRAIN = 'import sys, gluon_lprnet.paper.networks; from gluon_lprnet.train.imagenet import main; sys.exit(main())'
_POLL_SECONDS = 1


class ExperimentRow(NamedTuple):
    """One line of an experiment.

    Attributes
    ----------
    name : str
        Its runs are the folders NAME-seed0, NAME-seed1, ...
    title : str
        Shown in the table.
    flags : str
        Flags of ``train_imagenet.py``, in addition to those shared by all rows.
    printed : tuple
        What the paper prints for it.
    """

    name: str
    title: str
    flags: str
    printed: tuple = ()


class Result(NamedTuple):
    """The results of the finished runs of a row.

    Attributes
    ----------
    accuracies : dict
        Validation top-1 after the last epoch, in percent, by seed.
    params, multiply_adds : int
        For one image of the size used in training.
    images_per_second : float or None
        Median over all epochs of all runs; None if there are none.
    milliseconds : float or None
        Of one image through the deployed network; None if it was not measured.
    """

    accuracies: dict
    params: int
    multiply_adds: int
    images_per_second: Optional[float]
    milliseconds: Optional[float] = None


class Grid:
    """The trainings of every row and seed, each with its own checkpoints in ``OUT/ROW-seedN``.

    Parameters
    ----------
    rows : sequence of ExperimentRow
    flags : sequence of str
        Flags of ``train_imagenet.py``, shared by all rows.
    seeds : sequence of int
    out : path

    Raises
    ------
    InputError
        If a flag is invalid, or ``out`` contains a run with other flags.
    """

    def __init__(self, rows: Sequence[ExperimentRow], flags: Sequence[str], seeds: Sequence[int],
                 out: PathLike) -> None:
        self.rows, self.seeds = rows, seeds
        self._out, self._flags = Path(out), list(flags)
        for row in rows:
            for seed in seeds:
                found = checkpoint.newest(self._folder(row, seed))
                if found:
                    check_same_curve(self._config(row, seed), found)

    def train(self, jobs: int, names: Collection[str]) -> list[tuple[Path, str]]:
        """Train the unfinished runs of the named rows; returns the runs that failed, as (folder, reason).

        ``jobs`` runs at a time, each with an equal share of the threads. On Ctrl-C or SIGTERM the runs save a
        checkpoint, and KeyboardInterrupt or SystemExit is raised: called again, each goes on from there.
        """
        # Seed by seed, so that finished rows can be compared early.
        waiting = [(row, seed) for seed in self.seeds for row in self.rows
                   if row.name in names and not self._finished(row, seed)]
        configs = {key: self._config(*key) for key in waiting}
        epochs = {key: config.num_epochs + config.tuning_epochs for key, config in configs.items()}
        begun = {key: len(self._epochs(*key)) for key in waiting}
        threads = default_threads(jobs)
        running: dict[tuple[ExperimentRow, int], subprocess.Popen[bytes]] = {}
        failed = []
        try:
            with exit_on_sigterm(), tqdm(total=sum(epochs.values()), initial=sum(begun.values()), unit='epoch',
                                         disable=None) as bar:
                while waiting or running:
                    while waiting and len(running) < jobs:
                        key = waiting.pop(0)
                        running[key] = self._start(*key, threads)
                    time.sleep(_POLL_SECONDS)
                    for key, process in list(running.items()):
                        if process.poll() is None:
                            bar.set_postfix_str(', '.join(self._folder(*name).name for name in running), refresh=False)
                            continue
                        del running[key]
                        if process.returncode:
                            failed.append((self._folder(*key), self._reason(*key, process.returncode)))
                    bar.update(sum(len(self._epochs(*key)) for key in epochs) - bar.n)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
        return failed

    def results(self) -> dict[str, Result]:
        """The :class:`Result` of each row, by name; unfinished runs are left out."""
        return {row.name: self._result(row) for row in self.rows}

    def milliseconds(self, names: Collection[str]) -> dict[str, float]:
        """The median time of one image through the network of each named row, by name.

        The networks are deployed and fused by MXNet, with weights by chance, which change no time. They take turns, on
        the threads of this process.
        """
        configs = {row.name: self._config(row, 0) for row in self.rows if row.name in names}
        # The rows of an experiment take images of one size.
        shape = _input_of(next(iter(configs.values())))
        return dict(zip(configs, median_milliseconds(
            [_fused(_network_of(config)) for config in configs.values()], shape)))

    def _result(self, row: ExperimentRow) -> Result:
        config = self._config(row, 0)
        complexity = count(_network_of(config), _input_of(config))
        runs = {seed: self._epochs(row, seed) for seed in self.seeds if self._finished(row, seed)}
        speeds = [epoch['images_per_second'] for epochs in runs.values() for epoch in epochs]
        return Result({seed: 100 * epochs[-1]['val_top1'] for seed, epochs in runs.items()}, complexity.params,
                      complexity.multiply_adds, statistics.median(speeds) if speeds else None)

    def _folder(self, row: ExperimentRow, seed: int) -> Path:
        return self._out / f'{row.name}-seed{seed}'

    def _arguments(self, row: ExperimentRow, seed: int) -> list[str]:
        return [*self._flags, *row.flags.split(), '--seed', str(seed)]

    def _config(self, row: ExperimentRow, seed: int) -> ClassificationConfig:
        # A folder that does not exist, because an existing run is refused without --resume.
        arguments = [*self._arguments(row, seed), '--save-dir', str(self._out / '.none')]
        return parse(make_parser(ClassificationConfig, None), ClassificationConfig, arguments)[0]

    def _epochs(self, row: ExperimentRow, seed: int) -> list[dict[str, Any]]:
        return read_epochs(self._folder(row, seed))

    def _finished(self, row: ExperimentRow, seed: int) -> bool:
        found = checkpoint.newest(self._folder(row, seed))
        if found is None:
            return False
        config = found.state['config']
        return found.state['epoch'] == config['num_epochs'] + config['tuning_epochs']

    def _start(self, row: ExperimentRow, seed: int, threads: int) -> 'subprocess.Popen[bytes]':
        folder = self._folder(row, seed)
        folder.mkdir(parents=True, exist_ok=True)
        resume = ['--resume'] if checkpoint.newest(folder) else []
        with self._errors(row, seed).open('a') as errors:
            # In its own session: Ctrl-C reaches it once, through terminate(), and not twice.
            return subprocess.Popen([sys.executable, '-c', _TRAIN, *self._arguments(row, seed), '--save-dir', folder,
                                     *resume], stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True,
                                    env={**os.environ, 'OMP_NUM_THREADS': str(threads)})

    def _errors(self, row: ExperimentRow, seed: int) -> Path:
        return self._folder(row, seed) / 'errors.log'

    def _reason(self, row: ExperimentRow, seed: int, status: int) -> str:
        lines = self._errors(row, seed).read_text().strip().splitlines()
        last = lines[-1] if lines else 'nothing was written'
        return f'it was killed by {signal.Signals(-status).name}; errors.log ends in: {last}' if status < 0 else last


def _input_of(config: ClassificationConfig) -> tuple[int, ...]:
    return 1, 3, config.input_size, config.input_size


def _network_of(config: ClassificationConfig) -> HybridBlock:
    """In the form for inference."""
    return get_model(config.model, **model_arguments({**config.to_dict(), **dict.fromkeys(TRAINING_FORMS, False)}))


def _fused(net: HybridBlock) -> HybridBlock:
    net.initialize()
    symbol, params = reparametrize(*trace(net))
    # Not by `optimize_for`, which infers wrong shapes in ESPNetv2.
    fused = as_block(symbol.get_backend_symbol('MKLDNN'), params)
    fused.hybridize(static_alloc=True, static_shape=True)
    return fused


def mean_and_deviation(values: Sequence[float], form: str) -> str:
    """``91.2 ± 0.3`` of numbers: mean and, for two or more, the sample standard deviation; '' for none."""
    if not values:
        return ''
    mean = format(statistics.mean(values), form)
    return f'{mean} ± {statistics.stdev(values):.2f}' if len(values) > 1 else mean
