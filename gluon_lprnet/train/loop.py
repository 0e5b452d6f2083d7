"""The one training loop: classification and landmarks differ in the :class:`TrainingTask` they hand to it."""
import bisect
import contextlib
import datetime
import itertools
import logging
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Callable, Optional, Union

import mxnet as mx
import numpy as np
from mxnet import autograd, gluon
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .. import checkpoint
from ..utils.errors import InputError
from ..utils.signals import noted
from .average import WeightAverage
from .config import DEVICE, TrainingConfig, shaping
from .distributed import Workers
from .journal import Journal, NoJournal, metrics_text

PathLike = Union[str, 'os.PathLike[str]']

# Seconds of training that are saved before a validation, which may take long.
_WORTH_SAVING = 60


class NonFiniteLoss(ArithmeticError):
    """The loss, an output in validation or a parameter became NaN or infinite.

    The message names step, rate and the last good checkpoint.
    """


class Interrupted(SystemExit):
    """A signal came and a checkpoint was saved; ``code`` is the exit status, 128 + signal."""

    code: int

    def __init__(self, number: int, path: Optional[PathLike]) -> None:
        super().__init__(128 + number)
        saved = f'saved {path}' if path else 'the first worker saved a checkpoint'
        self._text = (f'stopped by {signal.Signals(number).name}; {saved}. Continue with --resume (in Python, '
                      'resume=True).')

    def __str__(self):
        return self._text


@dataclass
class TrainingTask:
    """What is trained, on what, and how it is measured.

    Attributes
    ----------
    net : Block
        Initialized on ``contexts``.
    contexts : list of mx.Context
        Each batch is split over them.
    batches : callable
        (epoch, start) to an iterable of (data, label), NDArrays, from batch number ``start`` of the epoch
        on; the same for the same arguments.
    batches_per_epoch : int
    loss : callable
        (outputs, label) to an NDArray with one loss a sample.
    count : callable
        (outputs, label), as NumPy arrays, to a dict of sums over the samples, reported as means.
    evaluate : callable
        () to a dict of validation metrics; raises ArithmeticError where they are not defined.
    reached : callable
        (validation metrics) to whether the training may end before its last epoch.
    begin_step : callable
        Called with the number of each update, from 0, before it; may change the network.
    description : dict
        What a user of the network must know beside the configuration: ``task``, ``class_names`` and such.
    data : dict
        What tells the training's records from others: see :func:`gluon_lprnet.data.integrity.fingerprint`.
    workers : Workers
        Who train together; ``batches`` and ``evaluate`` are of this one's part, ``batches_per_epoch`` of the largest.
    one_order : bool
        Whether the same step of all workers together has the same samples, whatever their number.
    form : HybridBlock, optional
        What computes the outputs in training, with the parameters of ``net``; ``net`` itself, if None.
    """
    net: gluon.Block
    contexts: list
    batches: Callable
    batches_per_epoch: int
    loss: Callable
    count: Callable
    evaluate: Callable
    reached: Callable = lambda metrics: False
    begin_step: Callable = lambda step: None
    description: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    workers: Workers = field(default_factory=Workers)
    one_order: bool = False
    form: Optional[gluon.HybridBlock] = None


class Schedule:
    """Epochs, updates and learning rates of a training and of the tuning that may follow it.

    The rate goes linearly from ``warmup_lr`` to ``lr`` over ``warmup_epochs``, then along a cosine to 0 at
    the end of ``num_epochs``, or, in mode ``step``, falls by ``lr_decay`` after each of ``lr_decay_epoch``, which
    are none in mode ``constant``;
    the tuning's rate goes along a cosine from ``tuning_lr`` to 0.
    """

    def __init__(self, config: TrainingConfig, steps_per_epoch: int) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.epochs = config.num_epochs + config.tuning_epochs
        self._config = config
        self._train_steps = config.num_epochs * steps_per_epoch
        self._warmup_steps = config.warmup_epochs * steps_per_epoch
        self._cosine = mx.lr_scheduler.CosineScheduler(max(1, self._train_steps), config.lr, 0.0, self._warmup_steps,
                                                       config.warmup_lr)
        self._tuning = mx.lr_scheduler.CosineScheduler(
            max(1, config.tuning_epochs * steps_per_epoch), config.tuning_lr, 0.0)

    def learning_rate(self, step: int) -> float:
        """Rate of update number ``step``, counted from 0."""
        config = self._config
        if step >= self._train_steps:
            return self._tuning(step - self._train_steps)
        if config.lr_mode != 'cosine' and step >= self._warmup_steps:
            # MXNet's MultiFactorScheduler lowers its own rate as it goes, and refuses an epoch of one step.
            return config.lr * config.lr_decay ** bisect.bisect(config.lr_decay_epoch, step // self.steps_per_epoch)
        return self._cosine(step)

    def phase(self, epoch: int) -> str:
        """``train`` or ``tuning``, for an epoch counted from 0."""
        return 'train' if epoch < self._config.num_epochs else 'tuning'


class Run:
    """One training in its folder ``config.save_dir``, from its first step or from a checkpoint.

    Parameters
    ----------
    task : TrainingTask
    config : gluon_lprnet.train.config.TrainingConfig
    logger : logging.Logger
    resume_from : Checkpoint, optional
    """

    def __init__(self, task: TrainingTask, config: TrainingConfig, logger: logging.Logger,
                 resume_from: Optional[checkpoint.Checkpoint] = None) -> None:
        self.task = task
        self.config = config
        self.logger = logger
        self.schedule = Schedule(config, math.ceil(task.batches_per_epoch / config.accumulate))
        self.trainer = _make_trainer(task, config)
        self.last_saved: Optional[PathLike] = None
        # Plain values only: this is what a checkpoint holds.
        described = {**config.to_dict(), **task.description}
        self.workers = task.workers
        current = dict(config=described, data=task.data, rewritten=task.form is not None)
        self.state: dict[str, Any] = dict(step=0, epoch=0, step_in_epoch=0, sums={}, interval={}, reached=False,
                                          workers=self.workers.count, **current)
        self._average = WeightAverage(task.net, config.ema_decay) if config.ema_decay else None
        self._saved_at = time.monotonic()
        if resume_from:
            before = resume_from.state.get('data') or task.data
            # The files may have other names now.
            if list(before.values()) != list(task.data.values()):
                raise InputError(f'{resume_from.path} was trained on other records: {_records(before)}, not '
                                 f'{_records(task.data)}. Give those, or train in a new folder.')
            if self._average:
                task.net.load_parameters(resume_from.params, ctx=task.contexts)
                self._average.start()
            resume_from.load(task.net, self.trainer, task.contexts, config.allow_pickle)
            self.state = {**self.state, 'workers': 1, **resume_from.state, **current}
            self.last_saved = resume_from.path
            logger.info('resumed from %s: epoch %d, step %d', resume_from.path, self.state['epoch'] + 1,
                        self.state['step'])
            if (not task.one_order and self.state['step_in_epoch'] % self.schedule.steps_per_epoch
                    and self.state['workers'] != self.workers.count):
                logger.info('the steps of the epoch that are done were made by %d workers and not by %d, which divide '
                            'the records in another way: the rest of the epoch has some twice and lacks others',
                            self.state['workers'], self.workers.count)
            self.state['workers'] = self.workers.count
        self.workers.agree(configuration=shaping(config), records=list(task.data.values()),
                           checkpoint=self.state['step'])
        checkpoint.make_ready(self.trainer)
        self.journal: Union[Journal, NoJournal] = NoJournal()
        if self.workers.writes:
            self.journal = Journal(config.save_dir, config.tensorboard, self.state['step'], self.state['epoch'])
        self._clock = _Clock(self.schedule.epochs * self.schedule.steps_per_epoch - self.state['step'])

    def fit(self) -> dict[str, float]:
        """Train to the end of the schedule, or until the task has ``reached`` what it is for.

        Returns
        -------
        dict
            The validation metrics after the last epoch, of the network as it is then: with averaged weights, if those
            were asked for.

        Raises
        ------
        NonFiniteLoss, Interrupted
        """
        metrics = None
        with self.journal, noted() as signals, logging_redirect_tqdm([self.logger]):
            while self.state['epoch'] < self.schedule.epochs and not self.state['reached']:
                self._train_epoch(signals)
                self._check_parameters()
                self._average_statistics()
                if self.workers.any(self._unsaved_for(_WORTH_SAVING)):
                    self._save()
                with self._average.taken() if self._average else contextlib.nullcontext():
                    metrics = self._evaluate()
                self._finish_epoch(metrics)
                if self.workers.any(bool(signals)):
                    self._save_or_stop(signals)
        if self._average:
            self._average.take()
        return metrics or self._evaluate()

    def _evaluate(self):
        try:
            with self.workers.own_work():
                return self.task.evaluate()
        except ArithmeticError as error:
            raise self._non_finite(f'in validation {error}') from error

    def _train_epoch(self, signals):
        state, config, schedule = self.state, self.config, self.schedule
        begin = state['step_in_epoch']
        batches = iter(self.task.batches(state['epoch'], begin * config.accumulate))
        # Before the first one, those up to a checkpoint's place are decoded, which may be the end of the epoch.
        with self.workers.own_work():
            first = list(itertools.islice(batches, 1 if begin < schedule.steps_per_epoch else 0))
        batches = itertools.chain(first, batches)
        bar = tqdm(range(begin, schedule.steps_per_epoch), f'epoch {state["epoch"] + 1}/{schedule.epochs}',
                   schedule.steps_per_epoch, initial=begin, unit='step', leave=False,
                   disable=None if self.workers.writes else True)
        state['sums'], state['interval'] = Counter(state['sums']), Counter(state['interval'])
        self._clock.start_epoch()
        for _ in bar:
            rate = schedule.learning_rate(state['step'])
            self.trainer.set_learning_rate(rate)
            self.task.begin_step(state['step'])
            sums = self.update(itertools.islice(batches, config.accumulate))
            self._clock.count(sums['samples'])
            state['step'] += 1
            state['step_in_epoch'] += 1
            # Counter.update and not +, which drops sums that are not positive.
            state['sums'].update(sums)
            state['interval'].update(sums)
            if state['step_in_epoch'] % config.log_interval == 0:
                self._check_parameters()
                means = _means(state['interval'])
                state['interval'].clear()
                self.journal.add('interval', state['step'], state['epoch'], learning_rate=rate, **means)
                bar.set_postfix_str(f'{metrics_text(means)}, total ETA {self._clock.eta()}')
                if bar.disable:
                    self.logger.info('epoch %d/%d step %d/%d: %s, learning rate %.4g, %.0f images/s, ETA %s',
                                     state['epoch'] + 1, schedule.epochs, state['step_in_epoch'],
                                     schedule.steps_per_epoch, metrics_text(means), rate,
                                     self._clock.images_per_second(), self._clock.eta())
            if self.workers.any(bool(signals) or self._unsaved_for(60 * config.save_interval or math.inf)):
                if signals:
                    bar.close()
                self._save_or_stop(signals)

    def update(self, batches: Iterable[tuple[mx.nd.NDArray, mx.nd.NDArray]]) -> Counter[str]:
        """One update from the summed gradients of ``batches``, an iterable of (data, label).

        Each batch is used before the next is asked for.

        Returns
        -------
        Counter
            Sums over the samples of all workers, their number under ``samples``.
        """
        task = self.task
        # Some are fractions, which a Counter holds but its type does not know.
        sums: Any = Counter()
        compute = task.form or task.net
        for data, label in batches:
            images = gluon.utils.split_and_load(data.astype(self.config.input_dtype, copy=False),
                                                task.contexts, even_split=False)
            labels = gluon.utils.split_and_load(label, task.contexts, even_split=False)
            with autograd.record():
                outputs = [compute(x).astype('float32', copy=False) for x in images]
                losses = [task.loss(output, y) for output, y in zip(outputs, labels)]
            autograd.backward(losses)
            for loss, output, y in zip(losses, outputs, labels):
                total = float(loss.asnumpy().sum(dtype='float64'))
                if not math.isfinite(total):
                    raise self._non_finite(f'the loss is {total}')
                sums.update(samples=len(y), loss=total, **task.count(output.asnumpy(), y.asnumpy()))
        if not sums:
            # The records of this worker's part are used up before those of others, who wait for its gradients.
            _have_no_gradients(task.net)
        # The first step of an epoch names what is summed.
        sums = Counter(self.workers.sum({**dict.fromkeys(self.state['sums'], 0.0), **sums}))
        self.trainer.step(sums['samples'])
        if self._average:
            self._average.update(self.state['step'] + 1)
        if self.config.accumulate > 1:
            task.net.collect_params().zero_grad()
        return sums

    def _non_finite(self, what):
        return NonFiniteLoss(
            f'{what} at step {self.state["step"]} (epoch {self.state["epoch"] + 1}), learning rate '
            f'{self.trainer.learning_rate:.6g}; last good checkpoint: {self.last_saved or "none yet"}. '
            'Train with a lower learning rate or a longer warm-up, in a new folder.')

    def _finish_epoch(self, metrics):
        state, schedule = self.state, self.schedule
        epoch, phase = state['epoch'], schedule.phase(state['epoch'])
        means = _means(state['sums'])
        rate = schedule.learning_rate(state['step'] - 1)
        self.journal.add('epoch', state['step'], epoch, phase=phase, learning_rate=rate,
                         images_per_second=self._clock.images_per_second(), **means,
                         **{f'val_{name}': value for name, value in metrics.items()})
        self.logger.info('epoch %d/%d (%s) done: %s; validation %s; %.0f images/s, ETA %s', epoch + 1,
                         schedule.epochs, phase, metrics_text(means), metrics_text(metrics),
                         self._clock.images_per_second(), self._clock.eta())
        state.update(epoch=epoch + 1, step_in_epoch=0, sums={}, interval={}, reached=self.task.reached(metrics))
        if (state['epoch'] % self.config.save_frequency == 0 or state['epoch'] == schedule.epochs
                or state['reached']):
            self._save()

    def _average_statistics(self):
        # Each device and each worker has running statistics of its own and a checkpoint holds their mean, so that
        # validation must see the mean too.
        if len(self.task.contexts) * self.workers.count > 1:
            parameters = [parameter for parameter in self.task.net.collect_params().values()
                          if parameter.grad_req == 'null']
            means = [np.mean([data.asnumpy() for data in parameter.list_data()], 0) for parameter in parameters]
            for parameter, mean in zip(parameters, self.workers.average(means)):
                parameter.set_data(mx.nd.array(mean, dtype=mean.dtype))
            if self._average:
                self._average.average_statistics(self.workers)

    def _check_parameters(self):
        for name, parameter in self.task.net.collect_params().items():
            if not np.isfinite(parameter.data(self.task.contexts[0]).asnumpy()).all():
                raise self._non_finite(f'the parameter {name} is NaN or infinite')

    def _unsaved_for(self, seconds):
        """Whether that much time has passed since the last checkpoint; the worker that writes them has the clock."""
        return self.workers.writes and time.monotonic() - self._saved_at >= seconds

    def _save(self):
        """A checkpoint, for which all workers come together."""
        if self.workers.count > 1:
            self._average_statistics()
        if self.workers.writes:
            self.last_saved = checkpoint.save(self.config.save_dir, self.task.net, self.trainer, self.state,
                                              average=self._average)
        self._saved_at = time.monotonic()

    def _save_or_stop(self, signals):
        """A checkpoint within the training, and the end of it where a signal came, to any of the workers."""
        self._check_parameters()
        self._save()
        if self.workers.any(bool(signals)):
            raise Interrupted(signals[0] if signals else signal.SIGTERM, self.last_saved)


class _Clock:
    """Speed of the epoch, without its evaluation, and time to the end of the run, evaluations included."""

    def __init__(self, steps):
        self._remaining = steps
        self._done = 0
        self._begin = time.monotonic()

    def start_epoch(self):
        self._samples = 0
        self._epoch_begin = self._last = time.monotonic()

    def count(self, samples):
        self._done += 1
        self._samples += samples
        self._last = time.monotonic()

    def images_per_second(self):
        return self._samples / max(self._last - self._epoch_begin, 1e-9)

    def eta(self):
        """Time left, as [days,] hours:minutes:seconds."""
        elapsed = time.monotonic() - self._begin
        return str(datetime.timedelta(seconds=round(elapsed / max(1, self._done) * (self._remaining - self._done))))


def _make_trainer(task, config):
    """SGD with momentum or Adam with its default betas; decay spares BatchNorm and biases unless ``--bn-wd``."""
    parameters = task.net.collect_params()
    for name, parameter in parameters.items():
        if not config.bn_wd and name.endswith(('gamma', 'beta', 'bias')):
            parameter.wd_mult = 0.0
        if config.accumulate > 1 and parameter.grad_req != 'null':
            parameter.grad_req = 'add'
    options = dict(learning_rate=config.lr, wd=config.wd, multi_precision=config.dtype == 'float16')
    if config.optimizer == 'sgd':
        options['momentum'] = config.momentum
    kvstore = task.workers.engine or (DEVICE if len(task.contexts) > 1 else None)
    return gluon.Trainer(parameters, config.optimizer, options, kvstore=kvstore, update_on_kvstore=False)


def _have_no_gradients(net):
    for parameter in net.collect_params().values():
        if parameter.grad_req != 'null':
            parameter.zero_grad()
            for data in parameter.list_data():
                # Else the trainer refuses to update it.
                data._fresh_grad = True


def _records(data):
    return ', '.join(f'{name} ({values["records"]} records, CRC-32 {values["crc32"]})'
                     for name, values in data.items()) or 'none'


def _means(sums):
    return {name: value / sums['samples'] for name, value in sums.items() if name != 'samples'}
