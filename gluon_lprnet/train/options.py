"""Flags of a training, with GluonCV's names: presets, the effective configuration, resume."""
import argparse
import json
import os
from pathlib import Path

from .. import checkpoint
from ..blocks import L2_NORM_SCALES
from ..data.batches import IMAGENET_MEAN, IMAGENET_STD
from ..utils.errors import InputError
from ..utils.flags import fraction, non_negative_float, non_negative_int, positive_float, positive_int

# Flags that do not change what is learned: a resumed run may give them another value.
_FREE = {'save_dir', 'resume', 'log_interval', 'save_frequency', 'num_data_workers', 'tensorboard', 'data_check',
         'rec_train', 'rec_train_idx', 'rec_val', 'rec_val_idx'}


def add_network_flags(parser, model):
    """Flags of the network and its input; ``model`` is the name of the default one."""
    network = parser.add_argument_group('network')
    network.add_argument('--model', default=model, help='name in gluon_lprnet.list_models() (default: %(default)s)')
    network.add_argument('--input-size', type=positive_int, help='height and width of the crop, in pixels')
    network.add_argument('--start-from', metavar='RUN',
                         help="begin with the weights of another training: its folder, or a checkpoint's; the input "
                              'may be of another size')
    network.add_argument('--small-image', action='store_true', help='stem for images of 32x32')
    network.add_argument('--rank', type=rank, help='rank of LPR modules: a fraction of the width (1/8, 0.125) '
                                                    'or a number of channels')
    network.add_argument('--no-residual', action='store_true', help='LPR without its residual (Table 4)')
    network.add_argument('--no-l2-norm', action='store_true', help='LPR without its L2 normalization (Table 4)')
    network.add_argument('--l2-norm-scale', choices=L2_NORM_SCALES,
                         help='multiply the normalized output of LPR by a learned number that begins as 1 or as the '
                              'root of the width (default: no such number)')
    network.add_argument('--rgb-mean', type=float, nargs=3, default=list(IMAGENET_MEAN), metavar=('R', 'G', 'B'))
    network.add_argument('--rgb-std', type=float, nargs=3, default=list(IMAGENET_STD), metavar=('R', 'G', 'B'))
    return network


def add_common_flags(parser):
    """Flags that every experiment has."""
    run = parser.add_argument_group('run')
    run.add_argument('--save-dir', default='runs/latest', metavar='DIR',
                     help='folder of the run: checkpoints, log, metrics, curves, exported network '
                          '(default: %(default)s)')
    run.add_argument('--resume', action='store_true',
                     help='go on from the newest whole checkpoint in --save-dir, with its configuration')
    run.add_argument('--save-frequency', type=positive_int, default=1, metavar='EPOCHS',
                     help='a checkpoint every so many epochs (default: %(default)s)')
    run.add_argument('--log-interval', type=positive_int, default=50, metavar='STEPS',
                     help='steps between two reports within an epoch (default: %(default)s)')
    run.add_argument('--tensorboard', action='store_true', help='write TensorBoard events too (needs tensorboardX)')
    run.add_argument('--seed', type=int, default=0, help='of initialization, order and augmentation')
    run.add_argument('--num-gpus', type=non_negative_int, default=0, help='0 trains on the CPU (default: %(default)s)')
    run.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16', 'float16'),
                     help='bfloat16: mixed precision by MXNet AMP; float16: the whole network, GPU only')
    run.add_argument('-j', '--num-data-workers', type=positive_int, default=max(1, os.cpu_count() // 2), metavar='N',
                     help='threads that decode images (default: %(default)s)')
    run.add_argument('--data-check', default='full', choices=('full', 'structure'),
                     help='what is verified before the first step: every byte of the records, or their '
                          'structure, index and labels alone (default: %(default)s)')

    optimization = parser.add_argument_group('optimization')
    optimization.add_argument('--num-epochs', type=positive_int)
    optimization.add_argument('--batch-size', type=positive_int)
    optimization.add_argument('--accumulate', type=positive_int, default=1, metavar='N',
                              help='add up the gradients of N batches for one update (default: %(default)s)')
    optimization.add_argument('--optimizer', choices=('sgd', 'adam'), default='sgd', help='(default: %(default)s)')
    optimization.add_argument('--lr', type=non_negative_float, help='learning rate after warm-up')
    optimization.add_argument('--lr-mode', choices=('cosine', 'step', 'constant'), default='cosine',
                              help='how the rate falls (default: %(default)s)')
    optimization.add_argument('--lr-decay', type=positive_float, default=0.1,
                              help='factor of each fall, for --lr-mode step (default: %(default)s)')
    optimization.add_argument('--lr-decay-epoch', type=positive_int, nargs='+', default=[], metavar='EPOCH',
                              help='epochs, counted from 1, after which the rate falls, for --lr-mode step')
    optimization.add_argument('--warmup-epochs', type=non_negative_int, default=0)
    optimization.add_argument('--warmup-lr', type=non_negative_float, default=0.0, help='rate at the start of warm-up')
    optimization.add_argument('--momentum', type=non_negative_float, default=0.9, help='of sgd (default: %(default)s)')
    optimization.add_argument('--wd', type=non_negative_float, default=1e-4, help='weight decay (default: %(default)s)')
    optimization.add_argument('--bn-wd', action='store_true', help='decay BatchNorm and biases as well')
    optimization.add_argument('--tuning-epochs', type=non_negative_int, default=5,
                              help='epochs without augmentation after the training (the paper names no number; '
                                   'default: %(default)s)')
    optimization.add_argument('--tuning-lr', type=non_negative_float, default=1e-3,
                              help='rate at the start of the tuning (default: %(default)s)')
    optimization.add_argument('--ema-decay', type=fraction, default=0.0, metavar='D',
                              help='evaluate and keep an exponential moving average of the weights, which holds on to '
                                   'this part of itself at each update (0, the default: the weights themselves)')
    return optimization


def parse(parser, argv, presets, preset_for):
    """Parse flags over a preset's or, with ``--resume``, over a checkpoint's values.

    Parameters
    ----------
    parser : argparse.ArgumentParser
        With :func:`add_common_flags`, ``--preset`` and ``--model``.
    presets : dict of str to dict
    preset_for : callable
        (model name) to the preset that is taken when the flag is not given.

    Returns
    -------
    tuple of (argparse.Namespace, Checkpoint or None)

    Raises
    ------
    InputError
        For a resume without a checkpoint or with another value of a flag that shapes the curve, and for a
        fresh run in a folder that holds one.
    """
    args = parser.parse_args(argv)
    found = checkpoint_to_resume(args.save_dir, args.resume)
    if found:
        parser.set_defaults(**{name: value for name, value in found.state['config'].items() if name != 'resume'})
        args = parser.parse_args(argv)
        check_same_curve(args, found)
    else:
        preset = args.preset or preset_for(args.model)
        parser.set_defaults(preset=preset, **presets[preset])
        args = parser.parse_args(argv)
    if args.warmup_epochs >= args.num_epochs:
        raise InputError(f'--warmup-epochs {args.warmup_epochs} leaves nothing of --num-epochs {args.num_epochs}.')
    if (args.lr_mode == 'step') != bool(args.lr_decay_epoch):
        raise InputError('--lr-mode step and --lr-decay-epoch need each other: give both or none.')
    return args, found


def checkpoint_to_resume(save_dir, resume):
    """The newest whole Checkpoint of a run's folder where ``resume`` asks for it, else None.

    Raises
    ------
    InputError
        For a resume without a checkpoint, and for a fresh run in a folder that holds one.
    """
    found = checkpoint.newest(save_dir)
    if resume and found is None:
        raise InputError(f'--resume: there is no whole checkpoint in {Path(save_dir) / "checkpoints"}.')
    if found and not resume:
        raise InputError(f'{save_dir} holds checkpoints (the newest: {found.path.name}): give --resume to go on, or '
                         'another folder.')
    return found


def check_same_curve(config, found):
    """Refuse another value of a flag that shapes the curve than the Checkpoint ``found`` was made with.

    Raises
    ------
    InputError
    """
    saved = found.state['config']
    # As it is saved: JSON has no tuples.
    config = json.loads(json.dumps(vars(config)))
    changed = [f'--{name.replace("_", "-")} (was {saved[name]!r}, is {value!r})' for name, value in config.items()
               if name not in _FREE and name in saved and value != saved[name]]
    if changed:
        raise InputError(f'--resume continues a curve; {", ".join(changed)} would bend it: leave it out, or '
                         'train in a new folder.')


def common_config(args, **values):
    """The flags of a training, for a command that has some of them: ``values`` over its own over the defaults."""
    parser = argparse.ArgumentParser()
    add_common_flags(parser)
    own = {name: value for name, value in vars(args).items() if name not in ('run', 'out')}
    return parser.parse_args([], argparse.Namespace(**{**own, **values}))


def input_dtype(config):
    """Of the network's input; bfloat16 is cast within the network."""
    return 'float16' if config.dtype == 'float16' else 'float32'


def write_config(config):
    """Save the flags as ``config.json`` in the run's folder."""
    text = json.dumps(vars(config), indent=1, sort_keys=True)
    (Path(config.save_dir) / 'config.json').write_text(text + '\n')


def rank(text):
    """The rank of LPR modules, of a flag: a fraction of the width or a number of channels."""
    numerator, slash, denominator = text.partition('/')
    try:
        return int(numerator) / int(denominator) if slash else float(text) if '.' in text else int(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f'{text!r} is no rank: give 1/8, 0.125 or a whole number') from None
