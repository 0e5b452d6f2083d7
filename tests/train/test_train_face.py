import json
import math

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import epoch_records

from gluon_lprnet.__main__ import main
from gluon_lprnet.artefact import load_network
from gluon_lprnet.data.faces.landmarks import CROP_SCALE, crop_matrix, landmark_box, transform
from gluon_lprnet.data.faces.records import FaceRecord, encode_record, read_face_records
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.evaluate.landmarks import normalized_mean_errors
from gluon_lprnet.train import face, options


def ellipse_face(rng, side=64):
    """A bright ellipse whose landmarks lie on its rim: place, shape and angle can be read off the picture."""
    centre = side / 2 + rng.uniform(-4, 4, 2)
    axes, angle = rng.uniform(9, 18, 2), rng.uniform(-0.8, 0.8)
    around = np.linspace(0, 2 * math.pi, 68, endpoint=False)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    landmarks = (centre + (np.column_stack([np.cos(around), np.sin(around)]) * axes) @ turn.T).astype('float32')
    picture = np.full((side, side, 3), 40, 'uint8')
    cv2.fillPoly(picture, [landmarks.round().astype('int32')], (200, 180, 160))
    cv2.circle(picture, tuple(int(value) for value in landmarks[0]), 3, (255, 0, 0), -1)
    return FaceRecord('ellipse.jpg', None, encode_jpeg(picture, quality=100), landmarks, landmark_box(landmarks), None,
                      1.0, np.zeros(2))


@pytest.fixture(scope='module')
def face_records(tmp_path_factory):
    rng = np.random.default_rng(0)
    prefix = tmp_path_factory.mktemp('faces') / 'faces'
    write_records(prefix, [encode_record(ellipse_face(rng)) for _ in range(40)])
    return f'{prefix}.rec'


@pytest.fixture
def face_flags(face_records, tmp_path):
    return ['--model', 'lprnet_mobilenet_x0.25', '--input-size', '32', '--small-image', '--num-epochs', '3',
            '--batch-size', '8', '--no-mirror', '-j', '1', '--rec-train', face_records, '--rec-val', face_records,
            '--save-dir', str(tmp_path / 'run')]


def parse(*argv):
    return options.parse(face.make_parser(), [*argv, '--save-dir', '/nowhere'], face.PRESETS, face.preset_for)[0]


def test_the_papers_recipe_is_the_default():
    config = parse()
    assert (config.optimizer, config.lr, config.num_epochs, config.batch_size) == ('adam', 5e-4, 60, 100)
    assert config.model == 'lprnet_mobilenet_x0.5' and config.wd == 0
    half = parse('--preset', 'paper-half')
    assert (half.lr, half.lr_mode, half.lr_decay, half.lr_decay_epoch) == (4e-4, 'step', 0.5, [15])


def test_training_learns_records_and_exports(face_flags, face_records, tmp_path, capsys):
    assert face.main([*face_flags, '--num-epochs', '10', '--lr', '0.004', '--tuning-epochs', '10',
                      '--tuning-lr', '0.003']) == 0
    run = tmp_path / 'run'
    records = epoch_records(run)
    truth = np.stack([transform(crop_matrix(record.box, 32), record.landmarks)
                      for record in read_face_records(face_records)])
    constant = normalized_mean_errors(np.broadcast_to(truth.mean(axis=0), truth.shape), truth).mean()
    assert records[-1]['val_nme'] < 0.9 * constant
    net, description = load_network(run)
    assert description['task'] == 'landmarks' and description['crop_scale'] == CROP_SCALE
    assert net(mx.nd.zeros((2, 3, 32, 32))).shape == (2, 136)
    exported = json.loads((run / 'export' / 'lprnet_mobilenet_x0.25.json').read_text())
    assert exported == description and exported['num_classes'] == 136
    assert main(['evaluate', str(run), '--rec-val', face_records]) == 2
    assert 'landmark network' in capsys.readouterr().err


def test_several_validation_sets_are_reported_by_name(face_flags, face_records, tmp_path):
    other = tmp_path / 'other'
    rng = np.random.default_rng(1)
    write_records(other, [encode_record(ellipse_face(rng)) for _ in range(5)])
    assert face.main([*face_flags, '--num-epochs', '1', '--rec-val', face_records, f'{other}.rec']) == 0
    assert {'val_nme_faces', 'val_nme_other'} <= set(epoch_records(tmp_path / 'run')[0])


def test_a_stopped_run_goes_on_to_the_same_network(face_flags, tmp_path):
    straight, halves = tmp_path / 'straight', tmp_path / 'halves'
    assert face.main([*face_flags, '--save-dir', str(straight), '--tuning-epochs', '1']) == 0
    assert face.main([*face_flags, '--save-dir', str(halves), '--tuning-epochs', '1']) == 0
    newest = sorted((halves / 'checkpoints').iterdir())[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    assert face.main(['--save-dir', str(halves), '--resume']) == 0
    ends = [mx.nd.load(str(sorted((run / 'checkpoints').iterdir())[-1] / 'net.params')) for run in (straight, halves)]
    for name, value in ends[0].items():
        np.testing.assert_array_equal(value.asnumpy(), ends[1][name].asnumpy())


@pytest.mark.parametrize('flags, message', [
    (['--rec-train', 'none.rec'], 'none.rec does not exist'),
    (['--lr-mode', 'step'], '--lr-decay-epoch'),
    (['--model', 'lprnet'], "'lprnet'"),
])
def test_what_is_wrong_is_said_before_the_first_step(face_flags, flags, message, capsys):
    assert face.main(face_flags + flags) == 2
    assert message in capsys.readouterr().err


def test_records_of_classes_are_refused(face_flags, tiny_records, capsys):
    assert face.main([*face_flags, '--rec-val', f'{tiny_records[0]}.rec']) == 2
    error = capsys.readouterr().err
    assert 'tiny.rec' in error and '1 label' in error


def test_sets_of_one_name_are_refused(face_flags, face_records, capsys):
    assert face.main([*face_flags, '--rec-val', face_records, face_records]) == 2
    assert 'the same name' in capsys.readouterr().err


def test_missing_records_are_asked_for(tmp_path, capsys):
    assert face.main(['--save-dir', str(tmp_path)]) == 2
    assert '--rec-train' in capsys.readouterr().err
