"""From a configuration to a finished run, and from flags to an exit status: what all trainings share."""
import dataclasses
import os
import platform
import signal
import sys

import mxnet as mx
from mxnet.contrib import amp

from .. import checkpoint
from ..artefact import export_network, model_arguments
from ..blocks import normalize_in_rank_space
from ..utils.errors import InputError, in_flags
from ..utils.signals import exit_on_sigterm
from ..zoo import get_model
from .config import check_same_curve, checkpoint_to_resume, make_parser, parse
from .journal import start_log, stop_log
from .loop import Interrupted, NonFiniteLoss, Run


def contexts_of(config):
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


def check_batches(count, config, contexts):
    """Refuse batches of ``count`` images that do not fill an update, or cannot be split over the devices."""
    for size in (min(config.batch_size, count), count % config.batch_size):
        if 0 < size < len(contexts):
            raise InputError(f'`batch_size` {config.batch_size} makes a batch of {size} of the {count} images, fewer '
                             f'than `num_gpus` {len(contexts)}: take another.')
    batches = -(-count // config.batch_size)
    if config.accumulate > batches:
        raise InputError(f'`accumulate` {config.accumulate}: an epoch of {count} images has {batches} batches. '
                         'Give at most as many.')


def make_network(config, initializer, contexts):
    """The network that a configuration describes, initialized, in its precision, hybridized."""
    net = get_model(config.model, **model_arguments(config.to_dict()))
    net.initialize(initializer, ctx=contexts)
    if config.start_from:
        load_weights(net, config.start_from, contexts)
    net.cast(config.input_dtype)
    normalize_in_rank_space(net, config.dtype == 'float32')
    net.hybridize(static_alloc=True, static_shape=True)
    return net


def load_weights(net, run, contexts):
    """Give the network the weights of another training.

    Parameters
    ----------
    net : HybridBlock
    run : path
        Folder of a run, whose newest checkpoint is taken, or of a checkpoint.
    contexts : list of mx.Context

    Raises
    ------
    InputError
        If there is no checkpoint, or if it is of another network.
    """
    found = checkpoint.find(run)
    if found is None:
        raise InputError(f'`start_from` {run} is neither a checkpoint nor a run with checkpoints.')
    try:
        net.load_parameters(found.params, ctx=contexts)
    except (AssertionError, ValueError, mx.MXNetError) as error:
        raise InputError(f'`start_from` {run} is a training of another network: '
                         f'{str(error).strip().splitlines()[0]}') from error


def train(config, build_task, resume=False):
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
    mx.random.seed(config.seed)
    if config.dtype == 'bfloat16':
        _begin_bfloat16()
    # What a resumed training started from need not be there any more.
    task = build_task(dataclasses.replace(config, start_from=None) if found else config)

    def export(metrics, logger):
        symbol = export_network(task.net, {**config.to_dict(), **task.description},
                                os.path.join(config.save_dir, 'export'))
        logger.info('final validation: %s; exported %s',
                    ', '.join(f'{name} {value:.4f}' for name, value in metrics.items()), symbol)
    return fit(task, config, found, export)


def fit(task, config, resume_from=None, finish=None):
    """Train in the folder ``config.save_dir``, which gets the configuration and a log.

    Parameters
    ----------
    task, config, resume_from
        As :class:`gluon_lprnet.train.loop.Run` takes them.
    finish : callable, optional
        (validation metrics after the last epoch, logger), called when the training is at its end.

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
    with checkpoint.only_user(config.save_dir):
        config.save(**task.description)
        logger = start_log(config.save_dir)
        try:
            _log_setting(logger, config, task)
            metrics = Run(task, config, logger, resume_from).fit()
            if finish:
                finish(metrics, logger)
            return metrics
        except NonFiniteLoss as error:
            logger.error('%s', error)
            raise
        except Interrupted as stop:
            logger.warning('%s', stop)
            raise
        finally:
            stop_log(logger)


def run_command(config_class, description, build_task, argv=None):
    """A training script: parse, check, train, evaluate, export.

    Returns
    -------
    int
        Exit status: 0; 1 where the loss is not finite; 2 for bad input; 128 + signal when stopped.
    """
    parser = make_parser(config_class, description)
    try:
        with exit_on_sigterm():
            config, found = parse(parser, config_class, argv)
            train(config, build_task, resume=found is not None)
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


def _log_setting(logger, config, task):
    logger.info('configuration:%s', ''.join(f'\n  {name} {value}' for name, value in sorted(config.to_dict().items())))
    logger.info('MXNet %s on %s, %s; engine %s, %s OpenMP threads', mx.__version__, task.contexts,
                platform.processor() or platform.machine(),
                os.environ.get('MXNET_ENGINE_TYPE', 'ThreadedEnginePerDevice'),
                os.environ.get('OMP_NUM_THREADS', "MXNet's default of"))
