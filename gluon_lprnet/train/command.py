"""From a configuration to a finished run, and from flags to an exit status: what all trainings share."""
import argparse
import dataclasses
import logging
import math
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Optional

import mxnet as mx
from mxnet.contrib import amp
from mxnet.gluon.block import HybridBlock

from .. import checkpoint
from ..artifact import export_network, model_arguments
from ..blocks import normalize_in_rank_space
from ..data.batches import parts
from ..utils.errors import InputError, in_flags
from ..utils.flags import add_parser
from ..utils.signals import exit_on_sigterm
from ..utils.text import listing
from ..zoo import get_model
from ..zoo.pretrained import split_tag
from .condensing import with_condensing
from .config import (
    NetworkTrainingConfig,
    TrainingConfig,
    add_flags,
    check_same_curve,
    checkpoint_to_resume,
    configure,
    make_parser,
    parse,
)
from .distributed import Workers, workers_of
from .environment import write_environment
from .fast_form import with_form_to_train
from .fine_tuning import freeze, take_weights
from .hardening import with_hardening
from .journal import LOGGER, metrics_text, start_log, stop_log
from .loop import Interrupted, NonFiniteLoss, Run, TrainingTask


def contexts_of(config: TrainingConfig) -> list[mx.Context]:
    """The devices that ``num_gpus`` names."""
    available = mx.context.num_gpus()
    if config.num_gpus > available:
        raise InputError(f'`num_gpus` {config.num_gpus}: MXNet sees {available} here.')
    if config.dtype == 'float16' and not config.num_gpus:
        raise InputError("`dtype` float16 needs a GPU: MXNet's CPU operators have no float16. Take bfloat16.")
    return [mx.gpu(number) for number in range(config.num_gpus)] or [mx.cpu()]


def _begin_bfloat16():
    """Let MXNet's AMP cast operators to bfloat16, for the rest of the process."""
    amp.init(target_dtype='bfloat16')
    try:
        mx.nd.Convolution(mx.nd.ones((1, 3, 8, 8)), mx.nd.ones((4, 3, 3, 3)), no_bias=True, kernel=(3, 3),
                          num_filter=4).wait_to_read()
    except mx.MXNetError as error:
        raise InputError('`dtype` bfloat16 needs a processor with AVX-512: MXNet has no such convolution for this '
                         'one. Take float32.') from error


def check_batches(count: int, config: TrainingConfig, contexts: Sequence[mx.Context], workers: Workers) -> None:
    """Refuse batches of ``count`` images that do not fill an update, or cannot be split over devices and workers."""
    share = workers.share(config.batch_size)
    for part in parts(count, workers.count):
        for size in (min(share, part), part % share):
            if 0 < size < len(contexts):
                raise InputError(f'`batch_size` {config.batch_size} makes a batch of {size} of the {part} images, '
                                 f'fewer than `num_gpus` {len(contexts)}: take another.')
    batches = -(-count // config.batch_size)
    if config.accumulate > batches:
        raise InputError(f'`accumulate` {config.accumulate}: an epoch of {count} images has {batches} batches. '
                         'Give at most as many.')


def make_network(config: NetworkTrainingConfig, initializer: mx.init.Initializer, contexts: list[mx.Context],
                 images: int, target: str, class_names: Optional[list[str]] = None) -> HybridBlock:
    """The network that a configuration describes, initialized, in its precision, hybridized.

    Parameters
    ----------
    config : NetworkTrainingConfig
    initializer : mx.init.Initializer
        Of what ``init_from`` does not give.
    contexts : list of mx.Context
    images : int
        Of an epoch.
    target : str
        What the network learns, in words.
    class_names : list of str, optional

    Raises
    ------
    InputError
        If there is no such network, or the configuration asks for what does not fit it.
    """
    net = get_model(config.model, **model_arguments(config.to_dict()))
    LOGGER.info('%s, %s parameters: %s, %s images, %s steps an epoch, %d%s epochs', config.model,
                 f'{_size(net):,}', target, f'{images:,}', f'{_steps(images, config):,}', config.num_epochs,
                 f' + {config.tuning_epochs} tuning' if config.tuning_epochs else '')
    # Also what a trained network of the package brought: whether its output layer fits is seen below.
    net.initialize(initializer, ctx=contexts, force_reinit=True)
    source = config.init_from or (config.model if split_tag(config.model)[1] else None)
    if source:
        taken = take_weights(net, source, class_names, config.to_dict())
        LOGGER.info('weights of %s; initialized anew: %s; not taken from there: %s', source,
                     ', '.join(taken.anew) or 'nothing', ', '.join(taken.unused) or 'nothing')
        if taken.differences:
            LOGGER.warning('with these weights this network computes something else than %s, and begins with worse '
                           'answers:\n%s', source, listing(taken.differences))
    if config.freeze:
        frozen = freeze(net, config.freeze)
        LOGGER.info('%d parameters stay as they are, %s to %s', len(frozen), frozen[0], frozen[-1])
    net.features.collect_params().setattr('lr_mult', config.features_lr_mult)
    net.cast(config.input_dtype)
    normalize_in_rank_space(net, config.dtype == 'float32')
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def _size(net):
    """Numbers that are trained."""
    return sum(math.prod(parameter.shape) for parameter in net.collect_params().values()
               if parameter.grad_req != 'null')


def _steps(images, config):
    return math.ceil(math.ceil(images / config.batch_size) / config.accumulate)


def train(config: NetworkTrainingConfig, build_task: Callable[[Any], TrainingTask],
          resume: bool = False) -> dict[str, float]:
    """Train a network, and export it, in the folder ``config.save_dir``.

    Parameters
    ----------
    config : NetworkTrainingConfig
    build_task : callable
        (config) to a TrainingTask.
    resume : bool
        Go on from the folder's newest whole checkpoint.

    Returns
    -------
    dict
        The validation metrics after the last epoch.

    Raises
    ------
    InputError
        For what is wrong with the configuration, the records or the folder.
    NonFiniteLoss
    Interrupted
        A signal came; a checkpoint was saved.
    """
    found = checkpoint_to_resume(config.save_dir, resume)
    if found:
        check_same_curve(config, found)
    workers = workers_of(config)
    with _opened(config.save_dir, workers) as logger:
        mx.random.seed(config.seed)
        if config.dtype == 'bfloat16':
            _begin_bfloat16()
        elif amp.amp._amp_initialized:
            raise InputError(f'`dtype` {config.dtype}: a training in bfloat16 was begun in this process, whose '
                             'operators compute in it from then on. Train in a new process.')
        # What a resumed training started from need not be there any more.
        with workers.own_work():
            task = build_task(dataclasses.replace(config, init_from=None) if found else config)
        task = with_form_to_train(with_hardening(with_condensing(task, config), config), config,
                                  found.state if found else {})
        metrics = _fit(task, config, logger, found)
        if workers.writes:
            symbol = export_network(task.net, {**config.to_dict(), **task.description},
                                    os.path.join(config.save_dir, 'export'))
            logger.info('final validation: %s; exported %s', metrics_text(metrics), symbol)
        return metrics


def fit(task: TrainingTask, config: TrainingConfig,
        resume_from: Optional[checkpoint.Checkpoint] = None) -> dict[str, float]:
    """Train in the folder ``config.save_dir``, which gets the configuration and a log.

    Parameters
    ----------
    task, config, resume_from
        As :class:`gluon_lprnet.train.loop.Run` takes them.

    Returns
    -------
    dict
        The validation metrics after the last epoch.

    Raises
    ------
    InputError
        If another training is using the folder.
    NonFiniteLoss, Interrupted
        After the message went into the log.
    """
    with _opened(config.save_dir, task.workers) as logger:
        return _fit(task, config, logger, resume_from)


@contextmanager
def _opened(save_dir: str, workers: Workers) -> Iterator[logging.Logger]:
    """The logger of a training whose first worker has the folder for itself; without an error all end together."""
    try:
        with workers.watched(), checkpoint.only_user(save_dir) if workers.writes else nullcontext():
            logger = start_log(save_dir if workers.writes else None)
            try:
                yield logger
                workers.barrier()
            except NonFiniteLoss as error:
                logger.error('%s', error)
                raise
            except Interrupted as stop:
                logger.warning('%s', stop)
                raise
            finally:
                stop_log(logger)
    except Interrupted:
        # All workers have stopped.
        raise
    except BaseException:
        workers.leave()
        raise


def _fit(task, config, logger, resume_from):
    # To the file alone.
    logger.debug('configuration:%s', ''.join(f'\n  {name} {value}' for name, value in sorted(config.to_dict().items())))
    logger.info('MXNet %s on %s, %s; engine %s, %s OpenMP threads', mx.__version__, task.contexts,
                platform.processor() or platform.machine(),
                os.environ.get('MXNET_ENGINE_TYPE', 'ThreadedEnginePerDevice'),
                os.environ.get('OMP_NUM_THREADS', "MXNet's default of"))
    run = Run(task, config, logger, resume_from)
    # A run whose resume was refused stays as it was, but for its log.
    if task.workers.writes:
        config.save(**task.description)
        write_environment(config.save_dir, task.data)
    return run.fit()


def add_command(commands: Any, name: str, config_class: type[NetworkTrainingConfig], help: str,
                train: Callable[..., object], example: str) -> None:
    """Add a training to the commands of the package.

    Parameters
    ----------
    commands : argparse subparsers
    name : str
    config_class : type
        Of a NetworkTrainingConfig.
    help : str
    train : callable
        (config, resume) to anything.
    example : str
    """
    parser = add_parser(commands, name, help=help, example=example, description=_described(help),
                        argument_default=argparse.SUPPRESS)
    add_flags(parser, config_class)

    def run(args):
        config, found = configure(config_class, {key: value for key, value in vars(args).items() if key != 'run'})
        train(config, resume=found is not None)
    parser.set_defaults(run=run)


def run_command(config_class: type[NetworkTrainingConfig], help: str, train: Callable[..., object], example: str,
                argv: Optional[Sequence[str]] = None) -> int:
    """The same as a program of its own.

    Returns
    -------
    int
        Exit status: 0; 1 where the loss is not finite; 2 for bad input; 128 + signal when stopped.
    """
    parser = make_parser(config_class, _described(help), example)
    try:
        with exit_on_sigterm():
            config, found = parse(parser, config_class, argv)
            train(config, resume=found is not None)
        return 0
    except InputError as error:
        print(f'{parser.prog}: {in_flags(str(error), {})}', file=sys.stderr)
        return 2
    except NonFiniteLoss:
        return 1
    except Interrupted as stop:
        return stop.code
    except KeyboardInterrupt:
        # Before the first step there is nothing to save.
        return 128 + signal.SIGINT


def _described(help):
    return f"{help[0].upper()}{help[1:]}, by the paper's recipe unless flags say otherwise."
