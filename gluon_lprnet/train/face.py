"""Large-pose face alignment ("Large Poses Face Alignment" in the paper): configuration, recipes and the task."""
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Optional

import mxnet as mx
import numpy as np
from tqdm import tqdm

from ..data.batches import Normalization
from ..data.faces.batches import AUGMENTATIONS, FaceBatches
from ..data.faces.landmarks import CROP_SCALE, ONE_JAW, TWO_JAWS, from_outputs, known_jaw
from ..data.faces.records import LABEL_WIDTH, read_face_records
from ..data.integrity import check_records, fingerprint
from ..evaluate.landmarks import evaluate_landmarks, evaluate_mean_face, mean_face, normalized_mean_errors
from ..utils.errors import InputError
from . import command
from .command import check_batches, contexts_of, make_network
from .config import NetworkTrainingConfig, setting, with_default
from .distributed import workers_of
from .journal import LOGGER
from .loop import TrainingTask

_PROFILE_YAW = math.radians(60)

# Of differences in units of the crop's side. The widths of the others are in pixels of Wing's 256: Feng et al., "Wing
# Loss for Robust Facial Landmark Localisation with Convolutional Neural Networks" (CVPR 2018).
_WING_WIDTH, _WING_CURVATURE = 10 / 256, 2 / 256
_SMOOTH_WIDTH = 1 / 256


def _wing(difference):
    size = difference.abs()
    offset = _WING_WIDTH * (1 - math.log1p(_WING_WIDTH / _WING_CURVATURE))
    return mx.nd.where(size < _WING_WIDTH, _WING_WIDTH * mx.nd.log1p(size / _WING_CURVATURE), size - offset)


LOSSES = {
    'l2': lambda difference: 0.5 * difference ** 2,
    # Its slope far from 0 is 1 in this form.
    'smooth-l1': lambda difference: _SMOOTH_WIDTH * mx.nd.smooth_l1(difference / _SMOOTH_WIDTH, scalar=1.0),
    'wing': _wing,
}
_SHIPPED = dict(batch_size=64, loss='smooth-l1', augmentation='wild', repeat_profiles=2, two_jaws=True, ema_decay=0.998)
@dataclass(frozen=True)
class LandmarkConfig(NetworkTrainingConfig):
    """The training of a network for 68 facial landmarks; the defaults are the paper's recipe."""

    PRESETS: ClassVar[Mapping[str, Mapping]] = {
        'paper': {},
        # "when the number of channels is multiplied by 0.5"
        'paper-half': dict(lr=4e-4, lr_mode='step', lr_decay=0.5, lr_decay_epoch=(15,)),
        # Of the networks in gluon_lprnet/weights: first on small pictures, at a steady rate, then on larger ones.
        'shipped-start': dict(_SHIPPED, input_size=64, num_epochs=14, lr=3e-3, lr_mode='constant', warmup_epochs=1),
        'shipped': dict(_SHIPPED, input_size=96, num_epochs=12, lr=2e-3),
    }

    num_classes: int = field(init=False, default=ONE_JAW)

    model: str = with_default(NetworkTrainingConfig, 'model', 'lprnet_mobilenet_x0.5')
    optimizer: str = with_default(NetworkTrainingConfig, 'optimizer', 'adam')
    num_epochs: int = with_default(NetworkTrainingConfig, 'num_epochs', 60)
    batch_size: int = with_default(NetworkTrainingConfig, 'batch_size', 100)
    lr: float = with_default(NetworkTrainingConfig, 'lr', 5e-4)
    # The paper gives no input size and no decay.
    input_size: int = with_default(NetworkTrainingConfig, 'input_size', 112)
    wd: float = with_default(NetworkTrainingConfig, 'wd', 0.0)

    rec_train: tuple[str, ...] = setting(
        (), 'RecordIO files of `python -m gluon_lprnet pack faces` (required)', free=True, group='data', metavar='REC')
    rec_val: tuple[str, ...] = setting(
        (), 'the same, for validation (required)', free=True, group='data', metavar='REC')
    crop_scale: float = setting(CROP_SCALE, "side of the network's square over the longer side of the landmarks' box",
                                0.5, 10, group='data')

    augmentation: str = setting(
        'mild', 'wild: also faces turned far, in boxes as detectors draw them, in the dark',
        choices=tuple(AUGMENTATIONS), group='data')
    repeat_profiles: int = setting(1, 'take each face beyond 60 degrees of yaw N times an epoch', 1, 100, group='data',
                                   metavar='N')
    two_jaws: bool = setting(False, '34 more outputs: the jaw as the visible contour beside the 3-D one, each trained '
                                    'on the sets that have it', group='data')
    loss: str = setting('l2', "of each coordinate's difference; the paper's is l2", choices=tuple(LOSSES))

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, 'num_classes', TWO_JAWS if self.two_jaws else ONE_JAW)

    @classmethod
    def preset_for(cls, model: str) -> str:
        """The rates that the text gives first, whatever the network."""
        return 'paper'


def build_task(config: LandmarkConfig) -> TrainingTask:
    """Check the records, make the network and say how it is trained.

    Parameters
    ----------
    config : LandmarkConfig

    Returns
    -------
    TrainingTask

    Raises
    ------
    InputError
        For whatever is wrong with the configuration or the files.
    """
    for subset in ('train', 'val'):
        recs = getattr(config, f'rec_{subset}')
        if not recs:
            raise InputError(f'`rec_{subset}` is missing: give RecordIO files, from `python -m gluon_lprnet pack '
                             'faces`.')
        LOGGER.info('records: %s; check: %s', ', '.join(recs), config.data_check)
        checked = [check_records(rec, label_width=LABEL_WIDTH, data_check='structure') for rec in recs]
        if subset == 'train':
            data = {rec: fingerprint(records) for rec, records in zip(recs, checked)}
    names = [Path(rec).stem for rec in config.rec_val]
    if len(set(names)) < len(names):
        raise InputError(f'`rec_val`: two of {", ".join(config.rec_val)} have the same name: rename one.')
    contexts = contexts_of(config)
    described = config.to_dict()

    workers = workers_of(config)

    def batches_of(faces, augmentation=None):
        return FaceBatches(faces, config.input_size, config.crop_scale, workers.share(config.batch_size),
                           Normalization(config.rgb_mean, config.rgb_std), augmentation,
                           config.num_data_workers, config.seed, config.two_jaws, workers.part, shuffle=True)

    faces = _read(config.rec_train, config)
    faces += [face for face in faces if _is_profile(face)] * (config.repeat_profiles - 1)
    check_batches(len(faces), config, contexts, workers)
    augmentation = replace(AUGMENTATIONS[config.augmentation], mirror=not config.no_mirror)
    augmented, plain = batches_of(faces, augmentation), batches_of(faces)
    validation = {name: _read([rec], config) for name, rec in zip(names, config.rec_val)}
    for rec, records in zip(config.rec_val, validation.values()):
        if len(records) < workers.count:
            raise InputError(f'{rec} has {len(records)} face(s), fewer than there are workers ({workers.count}): give '
                             'another set, or fewer workers.')
    typical = mean_face(faces)
    for name, records in validation.items():
        LOGGER.info('NME of the mean face of the training sets on %s: %.2f%%', name,
                    100 * evaluate_mean_face(typical, records).errors.mean())
    net = make_network(config, mx.init.Xavier(), contexts, len(faces), f'{config.num_classes} outputs')
    for rec in sorted({*config.rec_train, *config.rec_val}):
        check_records(rec, label_width=LABEL_WIDTH, data_check=config.data_check)

    def errors(output, label):
        jaws = [known_jaw(each) for each in label]
        return normalized_mean_errors(*(
            np.stack([from_outputs(each, config.input_size, jaw) for each, jaw in zip(points, jaws)])
            for points in (output, label)))

    def mean_error(records, name):
        records = records[workers.rank::workers.count]
        bar = tqdm(records, f'validation on {name}', unit='face', leave=False, disable=None)
        error = evaluate_landmarks(net, bar, described, contexts[0], config.batch_size,
                                   dtype=config.input_dtype).errors.mean()
        return workers.mean({'nme': float(error)}, len(records))['nme']

    def evaluate():
        """NME of each validation set, as a fraction."""
        return {f'nme_{name}' if len(validation) > 1 else 'nme': mean_error(records, name)
                for name, records in validation.items()}

    return TrainingTask(
        net=net, contexts=contexts, workers=workers, batches_per_epoch=math.ceil(len(faces) / config.batch_size),
        batches=lambda epoch, start: (augmented if epoch < config.num_epochs else plain).epoch(epoch, start),
        # Summed over the outputs: their mean would leave gradients near Adam's epsilon.
        loss=lambda output, label: LOSSES[config.loss](_known_differences(output, label)).sum(axis=1),
        count=lambda output, label: {'nme': float(errors(output, label).sum())},
        evaluate=evaluate, description={'task': 'landmarks'}, data=data, one_order=True)


def train(config: LandmarkConfig, resume: bool = False) -> dict[str, float]:
    """Train a network for 68 facial landmarks: see :func:`gluon_lprnet.train.command.train`."""
    return command.train(config, build_task, resume)


_HELP = 'train a network for 68 facial landmarks'
_EXAMPLE = """gluon-lprnet train-face --rec-train data/300w_lp.rec --rec-val data/aflw2000.rec \\
    --save-dir runs/face"""


def add_commands(commands: Any) -> None:
    command.add_command(commands, 'train-face', LandmarkConfig, _HELP, train, _EXAMPLE)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the training that ``argv`` describes; returns the exit status."""
    return command.run_command(LandmarkConfig, _HELP, train, _EXAMPLE, argv)


def _known_differences(output, label):
    """Output minus label, and 0 where the label is NaN."""
    # Only NaN differs from itself.
    return mx.nd.where(label == label, output - label, mx.nd.zeros_like(label))


def _read(recs, config):
    faces = []
    for rec in recs:
        faces += read_face_records(rec)
        if config.two_jaws and faces[-1].jaw is None:
            raise InputError(f'{rec} does not say which jaw its faces have, as `two_jaws` needs: pack them again with '
                             '`python -m gluon_lprnet pack faces`.')
    return faces


def _is_profile(face):
    return face.pose is not None and abs(face.pose[1]) > _PROFILE_YAW


if __name__ == '__main__':
    sys.exit(main())
