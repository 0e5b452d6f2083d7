"""From flags to a finished run: what the training scripts share."""
import os
import platform
import signal
import sys

import mxnet as mx
from mxnet.contrib import amp

from .. import checkpoint
from ..artefact import export_network, model_arguments
from ..blocks import normalize_in_rank_space
from ..utils.errors import InputError
from ..zoo import get_model
from . import options
from .journal import start_log, stop_log
from .loop import Interrupted, NonFiniteLoss, Run


def contexts_of(config):
    """The devices that ``--num-gpus`` names."""
    available = mx.context.num_gpus()
    if config.num_gpus > available:
        raise InputError(f'--num-gpus {config.num_gpus}: MXNet sees {available} here.')
    if config.dtype == 'float16' and not config.num_gpus:
        raise InputError("--dtype float16 needs a GPU: MXNet's CPU operators have no float16. Take bfloat16.")
    return [mx.gpu(number) for number in range(config.num_gpus)] or [mx.cpu()]


def check_split(count, config, contexts):
    """Refuse a batch that cannot be split over the devices, the short last one of an epoch included."""
    for size in (min(config.batch_size, count), count % config.batch_size):
        if 0 < size < len(contexts):
            raise InputError(f'--batch-size {config.batch_size} makes a batch of {size} of the {count} images, fewer '
                             f'than --num-gpus {len(contexts)}: take another.')


def make_network(config, initializer, contexts):
    """The network that the flags describe, initialized, in their precision, hybridized."""
    net = get_model(config.model, **model_arguments(vars(config)))
    net.initialize(initializer, ctx=contexts)
    if config.start_from and not config.resume:
        load_weights(net, config.start_from, contexts)
    net.cast(options.input_dtype(config))
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
        raise InputError(f'--start-from {run} is neither a checkpoint nor a run with checkpoints.')
    try:
        net.load_parameters(found.params, ctx=contexts)
    except (AssertionError, ValueError, mx.MXNetError) as error:
        raise InputError(f'--start-from {run} is a training of another network: '
                         f'{str(error).strip().splitlines()[0]}') from error


def run_command(parser, argv, presets, preset_for, build_experiment):
    """Parse, check, train, evaluate, export.

    Parameters
    ----------
    parser, argv, presets, preset_for
        As :func:`gluon_lprnet.train.options.parse` takes them.
    build_experiment : callable
        (config) to an Experiment.

    Returns
    -------
    int
        Exit status: 0; 1 where the loss is not finite; 2 for bad input; 128 + signal when stopped.
    """
    try:
        config, resume_from = options.parse(parser, argv, presets, preset_for)
        mx.random.seed(config.seed)
        if config.dtype == 'bfloat16':
            amp.init(target_dtype='bfloat16')
        experiment = build_experiment(config)

        def export(metrics, logger):
            symbol = export_network(experiment.net, vars(config), os.path.join(config.save_dir, 'export'))
            logger.info('final validation: %s; exported %s',
                        ', '.join(f'{name} {value:.4f}' for name, value in metrics.items()), symbol)
        return fit(experiment, config, resume_from, export)
    except InputError as error:
        print(f'{parser.prog}: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        # Before the first step, while the records are checked: there is nothing to save.
        return 128 + signal.SIGINT


def fit(experiment, config, resume_from, finish):
    """Train in the folder ``config.save_dir``, which gets the configuration and a log.

    Parameters
    ----------
    experiment, config, resume_from
        As :class:`gluon_lprnet.train.loop.Run` takes them.
    finish : callable
        (validation metrics after the last epoch, logger), called when the training is at its end.

    Returns
    -------
    int
        Exit status: 0; 1 where the loss is not finite; 128 + signal when stopped.

    Raises
    ------
    InputError
        If another training is using the folder.
    """
    with checkpoint.only_user(config.save_dir):
        return _fit_alone(experiment, config, resume_from, finish)


def _fit_alone(experiment, config, resume_from, finish):
    options.write_config(config)
    logger = start_log(config.save_dir)
    try:
        logger.info('configuration:%s', ''.join(f'\n  {name} {value}' for name, value in sorted(vars(config).items())))
        logger.info('MXNet %s on %s, %s; engine %s, %s OpenMP threads', mx.__version__, experiment.contexts,
                    platform.processor() or platform.machine(),
                    os.environ.get('MXNET_ENGINE_TYPE', 'ThreadedEnginePerDevice'),
                    os.environ.get('OMP_NUM_THREADS', "MXNet's default of"))
        finish(Run(experiment, config, logger, resume_from).fit(), logger)
        return 0
    except NonFiniteLoss as error:
        logger.error('%s', error)
        return 1
    except Interrupted as stop:
        logger.warning('%s', stop)
        return 128 + stop.signal_number
    finally:
        stop_log(logger)
