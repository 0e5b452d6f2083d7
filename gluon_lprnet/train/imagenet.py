"""Image classification ("Image Classification" in the paper): configuration, recipes and the task."""
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Optional

import mxnet as mx
import numpy as np
from mxnet import gluon

from ..data.batches import Batch, ImageBatches, Normalization, paper_augmentation, validation_batches
from ..data.images import AUTO, BILINEAR
from ..data.integrity import check_records, class_names, fingerprint
from ..data.recordio import size_of
from ..evaluate.classification import correct_in_top, evaluate_classification
from ..utils.errors import InputError
from . import command
from .command import check_batches, contexts_of, make_network
from .config import NetworkTrainingConfig, setting, with_default
from .distributed import workers_of
from .journal import LOGGER
from .loop import TrainingTask

SMOOTHING = 0.1

# The paper's recipe scaled to 50,000 images of 32x32: the rate falls with the batch.
_CIFAR10 = dict(
    num_classes=10, crop_ratio=1.0, min_random_scale=1.0, max_random_illumination=16.0,
    rgb_mean=(125.3, 123.0, 113.9), rgb_std=(51.6, 50.8, 51.3),
    batch_size=128, lr=0.25, warmup_epochs=1, wd=5e-4, tuning_epochs=1)


@dataclass(frozen=True)
class ClassificationConfig(NetworkTrainingConfig):
    """The training of a network for image classification.

    The defaults are the paper's recipe for its MobileNets; ``PRESETS`` has the others.
    """

    PRESETS: ClassVar[Mapping[str, Mapping]] = {
        'mobilenet': {},
        'shufflenet': dict(num_epochs=400, batch_size=400),
        # Section 4.2 of its paper, where the momentum is Nesterov's.
        'condensenet': dict(condensing=True, group_lasso=1e-5, num_epochs=120, lr=0.1, tuning_epochs=0),
        'cifar10': dict(_CIFAR10, input_size=32, small_image=True, pad=4, num_epochs=15),
        # CIFAR-10 in the layout of ImageNet, as Table 4 has it, but enlarged to 64 in place of 224. The tuning
        # without augmentation costs accuracy on CIFAR-10. Validation enlarges as the training does.
        'table4': dict(_CIFAR10, input_size=64, min_random_scale=2.25, max_random_scale=2.25, num_epochs=8,
                       tuning_epochs=0, inter_method=BILINEAR),
        # scikit-learn's 1,797 handwritten digits, which must not be flipped.
        'digits': dict(
            model='lprnet_mobilenet_x0.25', num_classes=10, input_size=32, small_image=True, crop_ratio=1.0, pad=4,
            no_mirror=True, rgb_mean=(78.0,) * 3, rgb_std=(96.0,) * 3, min_random_scale=1.0,
            max_random_illumination=16.0, num_epochs=20, batch_size=64, lr=0.1, warmup_epochs=1, wd=5e-4,
            tuning_epochs=2),
    }

    num_epochs: int = with_default(NetworkTrainingConfig, 'num_epochs', 210)
    batch_size: int = with_default(NetworkTrainingConfig, 'batch_size', 256)
    lr: float = with_default(NetworkTrainingConfig, 'lr', 0.5)
    # The paper names no number.
    tuning_epochs: int = with_default(NetworkTrainingConfig, 'tuning_epochs', 5)

    num_classes: Optional[int] = setting(None, 'number of classes (default: of the names beside the training file)', 1,
                                         100_000, group='network', metavar='N')
    rec_train: Optional[str] = setting(None, 'RecordIO file of `pack images` to train on (required)', free=True,
                                       group='data', metavar='REC')
    rec_train_idx: Optional[str] = setting(None, 'its index (default: same name with .idx)', free=True, group='data',
                                           metavar='IDX')
    rec_val: Optional[str] = setting(None, 'the same, for validation (required)', free=True, group='data',
                                     metavar='REC')
    rec_val_idx: Optional[str] = setting(None, 'its index (default: same name with .idx)', free=True, group='data',
                                         metavar='IDX')
    crop_ratio: float = setting(0.875, 'input size over the shorter side, for validation', 0.1, 1, group='data')
    pad: int = setting(0, 'pixels added at each side before the random crop', 0, 1023, group='data')
    # Records are packed at 480; scaled down to 256 at most, as the validation images are.
    min_random_scale: float = setting(256 / 480, 'smallest factor by which a picture is scaled', 0.05, 8, group='data')
    max_random_scale: float = setting(1.0, 'largest such factor', 0.05, 8, group='data')
    # The paper gives no range.
    max_random_illumination: float = setting(32.0, 'largest number added to all pixels, of 255', 0, 255, group='data')
    mixup: bool = setting(False, 'train on mixed pairs of images', group='data')
    mixup_alpha: float = setting(0.2, 'the weight of a pair is drawn from Beta(ALPHA, ALPHA)', 0.01, 100, group='data',
                                 metavar='ALPHA')
    mixup_off_epoch: int = setting(0, 'no mixup in this many last epochs of the training', 0, 100_000, group='data')
    label_smoothing: bool = setting(False, f'smooth labels by {SMOOTHING}', group='data')

    # How validation and the tuning without augmentation resize; see gluon_lprnet.data.images. The augmentation
    # interpolates bilinearly, as ImageRecordIter does by default.
    inter_method: int = AUTO

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> 'ClassificationConfig':
        # A run from before it was written down resumes as it began.
        return super().from_dict({'inter_method': BILINEAR, **values})

    def check(self) -> None:
        super().check()
        if self.min_random_scale > self.max_random_scale:
            raise InputError(f'`min_random_scale` {self.min_random_scale} is above '
                             f'`max_random_scale` {self.max_random_scale}.')
        if self.pad >= self.input_size:
            raise InputError(f'`pad` {self.pad}: a crop of `input_size` {self.input_size} could hold nothing of the '
                             'picture. Give fewer.')
        if self.mixup and self.mixup_off_epoch >= self.num_epochs:
            raise InputError(f'`mixup_off_epoch` {self.mixup_off_epoch}: this leaves no epoch with `mixup` of '
                             f'`num_epochs` {self.num_epochs}. Give fewer.')

    @classmethod
    def preset_for(cls, model: str) -> str:
        """The paper trains its MobileNets and its ShuffleNets by two recipes; CondenseNet has its own paper's."""
        if 'condensenet' in model:
            return 'condensenet'
        return 'shufflenet' if 'shufflenet' in model else 'mobilenet'


def build_task(config: ClassificationConfig) -> TrainingTask:
    """Check the records, make the network and say how it is trained.

    Parameters
    ----------
    config : ClassificationConfig

    Returns
    -------
    TrainingTask

    Raises
    ------
    InputError
        For whatever is wrong with the configuration or the files.
    """
    config = _with_classes(config)
    LOGGER.info('records: %s, %s; check: %s', _rec(config, 'train'), _rec(config, 'val'), config.data_check)
    records = {subset: _check(config, subset, 'structure') for subset in ('train', 'val')}
    names = class_names(records['train'].path)
    described = {**config.to_dict(), 'class_names': names}
    contexts = contexts_of(config)
    count = records['train'].count
    workers = workers_of(config)
    check_batches(count, config, contexts, workers)
    share = workers.share(config.batch_size)
    augmented = ImageBatches(
        records['train'], config.input_size, share, Normalization(config.rgb_mean, config.rgb_std),
        shuffle=True, threads=config.num_data_workers, seed=config.seed, part=workers.part,
        augmentation=paper_augmentation(
            config.pad, config.min_random_scale, config.max_random_scale, config.max_random_illumination,
            not config.no_mirror))
    plain = validation_batches(records['train'], described, share, config.num_data_workers, shuffle=True,
                               seed=config.seed, part=workers.part)
    validation = validation_batches(records['val'], described, share, config.num_data_workers, part=workers.part)

    net = make_network(config, mx.init.MSRAPrelu(), contexts, count, f'{config.num_classes} classes', names)
    for subset in records:
        _check(config, subset, config.data_check)

    def batches(epoch, start):
        if epoch >= config.num_epochs:
            return plain.epoch(epoch, start)
        return _with_soft_labels(augmented.epoch(epoch, start), epoch, start, config)

    hard_loss = gluon.loss.SoftmaxCrossEntropyLoss()
    soft_loss = gluon.loss.SoftmaxCrossEntropyLoss(sparse_label=False)
    return TrainingTask(
        net=net, contexts=contexts, batches=batches, batches_per_epoch=math.ceil(count / config.batch_size),
        loss=lambda output, label: (soft_loss if label.ndim == 2 else hard_loss)(output, label),
        count=lambda output, label: {'top1': correct_in_top(output, label.argmax(1) if label.ndim == 2 else label, 1)},
        evaluate=lambda: workers.mean(evaluate_classification(net, validation, contexts[0], config.input_dtype),
                                      validation.count),
        description={'task': 'classification', 'class_names': names},
        data={Path(_rec(config, 'train')).name: fingerprint(records['train'])}, workers=workers)


def train(config: ClassificationConfig, resume: bool = False) -> dict[str, float]:
    """Train a network for image classification: see :func:`gluon_lprnet.train.command.train`."""
    return command.train(_with_classes(config), build_task, resume)


_HELP = 'train a network for image classification'
_EXAMPLE = """gluon-lprnet train-imagenet --model lprnet_mobilenet_x0.5 --rec-train data/train.rec \\
    --rec-val data/val.rec --save-dir runs/half --num-epochs 60"""


def add_commands(commands: Any) -> None:
    command.add_command(commands, 'train-imagenet', ClassificationConfig, _HELP, train, _EXAMPLE)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the training that ``argv`` describes; returns the exit status."""
    return command.run_command(ClassificationConfig, _HELP, train, _EXAMPLE, argv)


def _with_classes(config):
    """The configuration with the number of classes that are named beside its training file."""
    rec, given = _rec(config, 'train'), config.num_classes
    size_of(rec)
    names = class_names(rec)
    if names and given not in (None, len(names)):
        raise InputError(f'`num_classes` {given}: {rec} has {len(names)} classes, {names[0]} to {names[-1]}. Leave it '
                         'out, or give another file.')
    if not names and given is None:
        raise InputError(f'`num_classes` is missing, and no names of classes are beside {rec}: give their number, or '
                         'pack the images with `python -m gluon_lprnet pack images`.')
    return replace(config, num_classes=len(names) if names else given)


def _check(config, subset, data_check):
    return check_records(_rec(config, subset), getattr(config, f'rec_{subset}_idx'), num_classes=config.num_classes,
                         data_check=data_check)


def _rec(config, subset):
    rec = getattr(config, f'rec_{subset}')
    if not rec:
        raise InputError(f'`rec_{subset}` is missing: give the RecordIO file, from `python -m gluon_lprnet pack '
                         'images`.')
    return rec


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


if __name__ == '__main__':
    sys.exit(main())
