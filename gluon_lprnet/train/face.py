"""Large-pose face alignment ("Large Poses Face Alignment" in the paper): flags, presets and the experiment."""
import argparse
import math
from dataclasses import replace
from pathlib import Path

import mxnet as mx
import numpy as np
from tqdm import tqdm

from ..data.batches import Normalization
from ..data.faces.batches import AUGMENTATIONS, FaceBatches
from ..data.faces.landmarks import CROP_SCALE, ONE_JAW, TWO_JAWS, from_outputs, known_jaw
from ..data.faces.records import LABEL_WIDTH, read_face_records
from ..data.integrity import check_records
from ..evaluate.landmarks import normalized_mean_errors
from ..utils.errors import InputError
from ..utils.flags import positive_float, positive_int
from . import options
from .command import check_split, contexts_of, make_network, run_command
from .loop import Experiment

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
PRESETS = {
    'paper': dict(lr=5e-4),
    # "when the number of channels is multiplied by 0.5"
    'paper-half': dict(lr=4e-4, lr_mode='step', lr_decay=0.5, lr_decay_epoch=[15]),
    # Of the networks in gluon_lprnet/weights.
    # Of the networks in gluon_lprnet/weights: first on small pictures, at a steady rate, then on larger ones.
    'shipped-start': dict(_SHIPPED, input_size=64, num_epochs=8, lr=3e-3, lr_mode='constant', warmup_epochs=1),
    'shipped': dict(_SHIPPED, input_size=96, num_epochs=4, lr=2e-3),
}


def preset_for(model):
    """The rates that the text gives first, whatever the network."""
    return 'paper'


def make_parser():
    parser = argparse.ArgumentParser(
        description="Train a network for 68 facial landmarks on RecordIO, by the paper's recipe unless flags say "
                    'otherwise.')
    parser.add_argument('--preset', choices=PRESETS,
                        help="the paper's rates: from 5e-4 on, or 4e-4 for 15 epochs and then 2e-4; or the two steps "
                             'that trained the networks in this package (default: paper)')
    options.add_network_flags(parser, model='lprnet_mobilenet_x0.5')
    data = parser.add_argument_group('data')
    for subset in ('train', 'val'):
        data.add_argument(f'--rec-{subset}', nargs='+', metavar='REC',
                          help='RecordIO files of `python -m gluon_lprnet pack faces` (required)')
    data.add_argument('--crop-scale', type=positive_float, default=CROP_SCALE,
                      help="side of the network's square over the longer side of the landmarks' box "
                           '(default: %(default)s)')
    data.add_argument('--no-mirror', action='store_true', help='do not flip left and right at random')
    data.add_argument('--augmentation', choices=AUGMENTATIONS, default='mild',
                      help='wild: also faces turned far, in boxes as detectors draw them, in the dark '
                           '(default: %(default)s)')
    data.add_argument('--repeat-profiles', type=positive_int, default=1, metavar='N',
                      help='take each face beyond 60 degrees of yaw N times an epoch (default: %(default)s)')
    data.add_argument('--two-jaws', action='store_true',
                      help='34 more outputs: the jaw as the visible contour beside the 3-D one, each trained on the '
                           'sets that have it')
    options.add_common_flags(parser).add_argument(
        '--loss', choices=LOSSES, default='l2', help='of each coordinate (default: %(default)s, the paper\'s)')
    # The paper gives no input size, no decay and no tuning.
    parser.set_defaults(num_classes=ONE_JAW, input_size=112, optimizer='adam', num_epochs=60, batch_size=100,
                        wd=0.0, tuning_epochs=0)
    return parser


def build_experiment(config):
    """Check the records, make the network and say how it is trained.

    Raises
    ------
    InputError
        For whatever is wrong with flags or files.
    """
    for subset in ('train', 'val'):
        recs = getattr(config, f'rec_{subset}')
        if not recs:
            raise InputError(f'--rec-{subset} is missing: RecordIO files, from `python -m gluon_lprnet pack faces`.')
        for rec in recs:
            check_records(rec, label_width=LABEL_WIDTH, content=config.data_check == 'full')
    names = [Path(rec).stem for rec in config.rec_val]
    if len(set(names)) < len(names):
        raise InputError(f'--rec-val: two of {", ".join(config.rec_val)} have the same name: rename one.')
    config.task, config.num_classes = 'landmarks', TWO_JAWS if config.two_jaws else ONE_JAW
    contexts = contexts_of(config)

    def batches_of(faces, augmentation=None):
        return FaceBatches(faces, config.input_size, config.crop_scale, config.batch_size,
                           Normalization(config.rgb_mean, config.rgb_std), augmentation,
                           config.num_data_workers, config.seed, config.two_jaws)

    faces = _read(config.rec_train, config)
    faces += [face for face in faces if _is_profile(face)] * (config.repeat_profiles - 1)
    check_split(len(faces), config, contexts)
    augmentation = replace(AUGMENTATIONS[config.augmentation], mirror=not config.no_mirror)
    augmented, plain = batches_of(faces, augmentation), batches_of(faces)
    validation = {name: batches_of(_read([rec], config)) for name, rec in zip(names, config.rec_val)}
    net = make_network(config, mx.init.Xavier(), contexts)

    def errors(output, label):
        jaws = [known_jaw(each) for each in label]
        return normalized_mean_errors(*(
            np.stack([from_outputs(each, config.input_size, jaw) for each, jaw in zip(points, jaws)])
            for points in (output, label)))

    def mean_error(batches, name):
        outputs = [(net(data.as_in_context(contexts[0]).astype(options.input_dtype(config), copy=False))
                    .astype('float32', copy=False).asnumpy(), label.asnumpy())
                   for data, label in tqdm(batches.epoch(0), f'validation on {name}', len(batches), leave=False,
                                           disable=None)]
        return float(np.concatenate([errors(*pair) for pair in outputs]).mean())

    def evaluate():
        """NME of each validation set, as a fraction."""
        return {f'nme_{name}' if len(validation) > 1 else 'nme': mean_error(batches, name)
                for name, batches in validation.items()}

    return Experiment(
        net=net, contexts=contexts, batches_per_epoch=len(augmented),
        batches=lambda epoch, start: (augmented if epoch < config.num_epochs else plain).epoch(epoch, start),
        # Summed over the outputs: their mean would leave gradients near Adam's epsilon.
        loss=lambda output, label: LOSSES[config.loss](_known_differences(output, label)).sum(axis=1),
        count=lambda output, label: {'nme': float(errors(output, label).sum())},
        evaluate=evaluate)


def _known_differences(output, label):
    """Output minus label, and 0 where the label is NaN."""
    # Only NaN differs from itself.
    return mx.nd.where(label == label, output - label, mx.nd.zeros_like(label))


def _read(recs, config):
    faces = []
    for rec in recs:
        faces += read_face_records(rec)
        if config.two_jaws and faces[-1].jaw is None:
            raise InputError(f'{rec} does not say which jaw its faces have, as --two-jaws needs: pack them again with '
                             '`python -m gluon_lprnet pack faces`.')
    return faces


def _is_profile(face):
    return face.pose is not None and abs(face.pose[1]) > _PROFILE_YAW


def main(argv=None):
    """Run the training that ``argv`` describes; returns the exit status."""
    return run_command(make_parser(), argv, PRESETS, preset_for, build_experiment)
