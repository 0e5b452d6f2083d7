"""Image classification ("Image Classification" in the paper): flags, presets and the experiment."""
import argparse

import mxnet as mx
import numpy as np
from mxnet import gluon

from ..data.batches import Batch, ImageBatches, Normalization, paper_augmentation, validation_batches
from ..data.images import AUTO, BILINEAR
from ..data.integrity import check_records, class_names
from ..evaluate.classification import correct_in_top, evaluate_classification
from ..utils.errors import InputError
from ..utils.flags import non_negative_float, non_negative_int, positive_float, positive_int
from . import options
from .command import check_split, contexts_of, make_network, run_command
from .loop import Experiment

SMOOTHING = 0.1

# `inter_method` is how validation and the tuning without augmentation resize; a run from before it was written down
# resumes without it, as it began. The augmentation interpolates bilinearly, as ImageRecordIter does by default.
_PAPER = dict(
    num_classes=1000, input_size=224, crop_ratio=0.875, lr=0.5,
    # Records are packed at 480; scaled down to 256 at most, as the validation images are. The paper gives
    # no range for the illumination.
    min_random_scale=256 / 480, max_random_illumination=32.0, inter_method=AUTO)
# The paper's recipe scaled to 50,000 images of 32x32: the rate falls with the batch.
_CIFAR10 = dict(
    num_classes=10, crop_ratio=1.0, max_random_illumination=16.0,
    rgb_mean=[125.3, 123.0, 113.9], rgb_std=[51.6, 50.8, 51.3],
    batch_size=128, lr=0.25, warmup_epochs=1, wd=5e-4, tuning_epochs=1, inter_method=AUTO)
PRESETS = {
    'mobilenet': dict(_PAPER, num_epochs=210, batch_size=256),
    'shufflenet': dict(_PAPER, num_epochs=400, batch_size=400),
    'cifar10': dict(_CIFAR10, input_size=32, small_image=True, pad=4, num_epochs=15),
    # CIFAR-10 in the layout of ImageNet, as Table 4 has it, but enlarged to 64 in place of 224. The tuning
    # without augmentation costs accuracy on CIFAR-10. Validation enlarges as the training does.
    'table4': dict(_CIFAR10, input_size=64, min_random_scale=2.25, max_random_scale=2.25, num_epochs=8,
                   tuning_epochs=0, inter_method=BILINEAR),
    # scikit-learn's 1,797 handwritten digits, which must not be flipped.
    'digits': dict(
        model='lprnet_mobilenet_x0.25', num_classes=10, input_size=32, small_image=True, crop_ratio=1.0, pad=4,
        no_mirror=True, rgb_mean=[78.0] * 3, rgb_std=[96.0] * 3, max_random_illumination=16.0,
        num_epochs=20, batch_size=64, lr=0.1, warmup_epochs=1, wd=5e-4, tuning_epochs=2, tuning_lr=1e-3,
        inter_method=AUTO),
}


def preset_for(model):
    """The paper trains its MobileNets and its ShuffleNets by two recipes."""
    return 'shufflenet' if 'shufflenet' in model else 'mobilenet'


def make_parser():
    parser = argparse.ArgumentParser(
        description="Train a classification network on RecordIO, by the paper's recipe unless flags say otherwise.")
    parser.add_argument('--preset', choices=PRESETS,
                        help="recipe that sets the flags not given (default: the paper's, by --model)")
    network = options.add_network_flags(parser, model='lprnet_mobilenet_x1.0')
    network.add_argument('--num-classes', type=positive_int)

    data = parser.add_argument_group('data')
    for subset in ('train', 'val'):
        data.add_argument(f'--rec-{subset}', metavar='REC', help='RecordIO file (required)')
        data.add_argument(f'--rec-{subset}-idx', metavar='IDX', help='its index (default: same name with .idx)')
    data.add_argument('--crop-ratio', type=positive_float, help='input size over the shorter side, for validation')
    data.add_argument('--pad', type=non_negative_int, default=0,
                      help='pixels added at each side before the random crop')
    data.add_argument('--min-random-scale', type=positive_float, default=1.0)
    data.add_argument('--max-random-scale', type=positive_float, default=1.0)
    data.add_argument('--max-random-illumination', type=non_negative_float, default=0.0,
                      help='largest number added to all pixels, of 255')
    data.add_argument('--no-mirror', action='store_true', help='do not flip left and right at random')
    data.add_argument('--mixup', action='store_true', help='train on mixed pairs of images')
    data.add_argument('--mixup-alpha', type=positive_float, default=0.2)
    data.add_argument('--mixup-off-epoch', type=non_negative_int, default=0,
                      help='no mixup in this many last epochs of the training')
    data.add_argument('--label-smoothing', action='store_true', help=f'smooth labels by {SMOOTHING}')
    options.add_common_flags(parser)
    return parser


def build_experiment(config):
    """Check the records, make the network and say how it is trained.

    Raises
    ------
    InputError
        For whatever is wrong with flags or files.
    """
    if config.min_random_scale > config.max_random_scale:
        raise InputError(f'--min-random-scale {config.min_random_scale} is above --max-random-scale '
                         f'{config.max_random_scale}.')
    records = {subset: _check(config, subset) for subset in ('train', 'val')}
    config.task, names = 'classification', class_names(config.rec_train)
    config.class_names = names if names and len(names) == config.num_classes else None
    contexts = contexts_of(config)
    check_split(records['train'].count, config, contexts)
    net = make_network(config, mx.init.MSRAPrelu(), contexts)

    augmented = ImageBatches(
        records['train'], config.input_size, config.batch_size, Normalization(config.rgb_mean, config.rgb_std),
        shuffle=True, threads=config.num_data_workers, seed=config.seed, augmentation=paper_augmentation(
            config.pad, config.min_random_scale, config.max_random_scale, config.max_random_illumination,
            not config.no_mirror))
    plain = validation_batches(records['train'], vars(config), config.batch_size, config.num_data_workers,
                               shuffle=True, seed=config.seed)
    validation = validation_batches(records['val'], vars(config), config.batch_size, config.num_data_workers)

    def batches(epoch, start):
        if epoch >= config.num_epochs:
            return plain.epoch(epoch, start)
        return _with_soft_labels(augmented.epoch(epoch, start), epoch, start, config)

    hard_loss = gluon.loss.SoftmaxCrossEntropyLoss()
    soft_loss = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
    return Experiment(
        net=net, contexts=contexts, batches=batches, batches_per_epoch=len(augmented),
        loss=lambda output, label: (soft_loss if label.ndim == 2 else hard_loss)(output, label),
        count=lambda output, label: {'top1': correct_in_top(output, label.argmax(1) if label.ndim == 2 else label, 1)},
        evaluate=lambda: evaluate_classification(net, validation, contexts[0], options.input_dtype(config)))


def main(argv=None):
    """Run the training that ``argv`` describes; returns the exit status."""
    return run_command(make_parser(), argv, PRESETS, preset_for, build_experiment)


def _check(config, subset):
    rec = getattr(config, f'rec_{subset}')
    if not rec:
        raise InputError(f'--rec-{subset} is missing: the RecordIO file, from `python -m gluon_lprnet pack images`.')
    return check_records(rec, getattr(config, f'rec_{subset}_idx'), num_classes=config.num_classes,
                         content=config.data_check == 'full')


def _with_soft_labels(batches, epoch, start, config):
    """Mix pairs of images and smooth labels, where the flags say so."""
    mixing = config.mixup and epoch < config.num_epochs - config.mixup_off_epoch
    for number, (data, label) in enumerate(batches, start):
        if mixing or config.label_smoothing:
            smoothing = SMOOTHING if config.label_smoothing else 0.0
            off = smoothing / config.num_classes
            label = mx.nd.one_hot(label, config.num_classes, on_value=1 - smoothing + off, off_value=off)
        if mixing:
            # Seeded by the place in the training, so that a resumed one mixes the same.
            weight = np.random.default_rng((config.seed, epoch, number)).beta(config.mixup_alpha, config.mixup_alpha)
            data = weight * data + (1 - weight) * data[::-1]
            label = weight * label + (1 - weight) * label[::-1]
        yield Batch(data, label)
