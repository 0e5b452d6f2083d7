"""Large-pose face alignment ("Large Poses Face Alignment" in the paper): flags, presets and the experiment."""
import argparse
from pathlib import Path

import mxnet as mx
import numpy as np
from tqdm import tqdm

from ..data.batches import Normalization
from ..data.faces.batches import FaceAugmentation, FaceBatches
from ..data.faces.landmarks import CROP_SCALE, POINTS, from_outputs
from ..data.faces.records import LABEL_WIDTH, read_face_records
from ..data.integrity import check_records
from ..evaluate.landmarks import normalized_mean_errors
from ..utils.errors import InputError
from ..utils.flags import positive_float
from . import options
from .command import check_split, contexts_of, make_network, run_command
from .loop import Experiment

PRESETS = {
    'paper': dict(lr=5e-4),
    # "when the number of channels is multiplied by 0.5"
    'paper-half': dict(lr=4e-4, lr_mode='step', lr_decay=0.5, lr_decay_epoch=[15]),
}


def preset_for(model):
    """The rates that the text gives first, whatever the network."""
    return 'paper'


def make_parser():
    parser = argparse.ArgumentParser(
        description="Train a network for 68 facial landmarks on RecordIO, by the paper's recipe unless flags say "
                    'otherwise.')
    parser.add_argument('--preset', choices=PRESETS,
                        help="the paper's rates: from 5e-4 on, or 4e-4 for 15 epochs and then 2e-4 (default: paper)")
    options.add_network_flags(parser, model='lprnet_mobilenet_x0.5')
    data = parser.add_argument_group('data')
    for subset in ('train', 'val'):
        data.add_argument(f'--rec-{subset}', nargs='+', metavar='REC',
                          help='RecordIO files of `python -m gluon_lprnet pack faces` (required)')
    data.add_argument('--crop-scale', type=positive_float, default=CROP_SCALE,
                      help="side of the network's square over the longer side of the landmarks' box "
                           '(default: %(default)s)')
    data.add_argument('--no-mirror', action='store_true', help='do not flip left and right at random')
    options.add_common_flags(parser)
    # The paper gives no input size, no decay and no tuning.
    parser.set_defaults(num_classes=2 * POINTS, input_size=112, optimizer='adam', num_epochs=60, batch_size=100,
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
    config.task = 'landmarks'
    contexts = contexts_of(config)

    def batches_of(faces, augmentation=None):
        return FaceBatches(faces, config.input_size, config.crop_scale, config.batch_size,
                           Normalization(config.rgb_mean, config.rgb_std), augmentation,
                           config.num_data_workers, config.seed)

    faces = [face for rec in config.rec_train for face in read_face_records(rec)]
    check_split(len(faces), config, contexts)
    augmented = batches_of(faces, FaceAugmentation(mirror=not config.no_mirror))
    plain = batches_of(faces)
    validation = {name: batches_of(list(read_face_records(rec))) for name, rec in zip(names, config.rec_val)}
    net = make_network(config, mx.init.Xavier(), contexts)

    def errors(output, label):
        return normalized_mean_errors(from_outputs(output, config.input_size), from_outputs(label, config.input_size))

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
        loss=lambda output, label: 0.5 * ((output - label) ** 2).sum(axis=1),
        count=lambda output, label: {'nme': float(errors(output, label).sum())},
        evaluate=evaluate)


def main(argv=None):
    """Run the training that ``argv`` describes; returns the exit status."""
    return run_command(make_parser(), argv, PRESETS, preset_for, build_experiment)
