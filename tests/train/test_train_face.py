import json
import math

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import epoch_records

from gluon_lprnet.__main__ import main
from gluon_lprnet.artifact import load_network
from gluon_lprnet.data.faces.batches import FaceBatches
from gluon_lprnet.data.faces.landmarks import CROP_SCALE, crop_matrix, landmark_box, transform
from gluon_lprnet.data.faces.records import FaceRecord, encode_record, read_face_records
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.data.recordio import read_records, write_records
from gluon_lprnet.evaluate.landmarks import evaluate_landmarks, normalized_mean_errors, predict_landmarks
from gluon_lprnet.train import face
from gluon_lprnet.train.config import make_parser, parse
from gluon_lprnet.train.distributed import Workers
from gluon_lprnet.train.face import LandmarkConfig
from gluon_lprnet.utils.errors import InputError


def ellipse_face(rng, side=64):
    """A bright ellipse whose landmarks lie on its rim: place, shape and angle can be read off the picture."""
    center = side / 2 + rng.uniform(-4, 4, 2)
    axes, angle = rng.uniform(9, 18, 2), rng.uniform(-0.8, 0.8)
    around = np.linspace(0, 2 * math.pi, 68, endpoint=False)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    landmarks = (center + (np.column_stack([np.cos(around), np.sin(around)]) * axes) @ turn.T).astype('float32')
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


def landmarks(*argv):
    return parse(make_parser(LandmarkConfig, None), LandmarkConfig, [*argv, '--save-dir', '/nowhere'])[0]


def test_the_papers_recipe_is_the_default():
    config = landmarks()
    assert (config.optimizer, config.lr, config.num_epochs, config.batch_size) == ('adam', 5e-4, 60, 100)
    assert config.model == 'lprnet_mobilenet_x0.5' and config.wd == 0
    half = landmarks('--preset', 'paper-half')
    assert (half.lr, half.lr_mode, half.lr_decay, half.lr_decay_epoch) == (4e-4, 'step', 0.5, (15,))


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
    assert set(exported.pop('sha256')) == {f'lprnet_mobilenet_x0.25-{part}' for part in ('symbol.json', '0000.params')}
    assert exported == description and exported['num_classes'] == 136
    assert main(['evaluate', str(run), '--rec-val', face_records]) == 2
    assert 'landmark network' in capsys.readouterr().err


def test_the_shipped_recipe_has_two_steps():
    start, end = (landmarks('--preset', preset) for preset in ('shipped-start', 'shipped'))
    for config in start, end:
        assert (config.two_jaws, config.loss, config.augmentation, config.repeat_profiles, config.ema_decay,
                config.batch_size, config.optimizer) == (True, 'smooth-l1', 'wild', 2, 0.998, 64, 'adam')
    assert (start.lr_mode, start.lr, start.warmup_epochs, start.num_epochs, start.input_size) == (
        'constant', 3e-3, 1, 14, 64)
    assert (end.lr_mode, end.lr, end.warmup_epochs, end.num_epochs, end.input_size) == ('cosine', 2e-3, 0, 12, 96)


NUMPY_LOSSES = {
    'l2': lambda d: d ** 2 / 2,
    'smooth-l1': lambda d: np.where(abs(d) < 1 / 256, 128 * d ** 2, abs(d) - 1 / 512),
    'wing': lambda d: np.where(abs(d) < 10 / 256, 10 / 256 * np.log(1 + abs(d) * 128),
                               abs(d) - 10 / 256 + 10 / 256 * np.log(6)),
}


@pytest.mark.parametrize('loss', face.LOSSES)
def test_a_loss_and_its_slope_are_the_papers(loss):
    difference = np.linspace(-0.2, 0.2, 40)
    x = mx.nd.array(difference)
    x.attach_grad()
    with mx.autograd.record():
        value = face.LOSSES[loss](x)
    value.backward()
    np.testing.assert_allclose(value.asnumpy(), NUMPY_LOSSES[loss](difference), rtol=1e-4, atol=1e-7)
    slope = (NUMPY_LOSSES[loss](difference + 1e-6) - NUMPY_LOSSES[loss](difference - 1e-6)) / 2e-6
    np.testing.assert_allclose(x.grad.asnumpy(), slope, rtol=1e-3, atol=1e-4)


def with_jaw(rec, jaw, path):
    write_records(path, [encode_record(record._replace(jaw=jaw)) for record in read_face_records(rec)])
    return f'{path}.rec'


@pytest.fixture
def two_jaw_flags(face_flags, face_records, tmp_path):
    """Flags of a training of two jaws, on one set of each."""
    recs = [with_jaw(face_records, jaw, tmp_path / name) for jaw, name in (('3d', 'solid'), ('contour', 'seen'))]
    return [*face_flags, '--two-jaws', '--rec-train', *recs, '--rec-val', *recs]


def test_each_jaw_learns_from_the_sets_that_have_it(two_jaw_flags):
    task = face.build_task(landmarks(*two_jaw_flags))
    for epoch in range(2):
        for _, label in task.batches(epoch, 0):
            output = mx.nd.random.normal(shape=label.shape)
            output.attach_grad()
            with mx.autograd.record():
                loss = task.loss(output, label)
            loss.backward()
            known = ~np.isnan(label.asnumpy())
            assert (known.sum(axis=1) == 136).all() and np.isfinite(loss.asnumpy()).all()
            expected = np.where(known, output.asnumpy() - label.asnumpy(), 0)
            np.testing.assert_allclose(output.grad.asnumpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_network_of_two_jaws_is_evaluated_by_the_one_that_a_set_has(two_jaw_flags, tmp_path):
    assert face.main([*two_jaw_flags, '--num-epochs', '1']) == 0
    net, description = load_network(tmp_path / 'run')
    assert description['num_classes'] == 170
    found = {}
    for name in ('solid', 'seen'):
        records = list(read_face_records(tmp_path / f'{name}.rec'))
        errors = evaluate_landmarks(net, records, description).errors.mean()
        assert epoch_records(tmp_path / 'run')[-1][f'val_nme_{name}'] == pytest.approx(errors, rel=1e-3)
        faces = [(record.pixels(), record.box) for record in records]
        found[name] = [predict_landmarks(net, description, faces, jaws=jaw) for jaw in ('3d', 'contour')]
        for jaw, predicted in zip(('3d', 'contour'), found[name]):
            expected = normalized_mean_errors(predicted, np.stack([record.landmarks for record in records])).mean()
            by_jaw = evaluate_landmarks(net, records, description, jaw=jaw).errors.mean()
            assert by_jaw == pytest.approx(expected, rel=1e-4)
            assert (jaw == records[0].jaw) == (abs(by_jaw - errors) < 1e-7)
    solid, contour = found['solid']
    np.testing.assert_array_equal(solid[:, 17:], contour[:, 17:])
    assert (abs(solid[:, :17] - contour[:, :17]).max(axis=(1, 2)) > 0.1).all()


def test_records_that_do_not_say_which_jaw_they_have_are_refused(face_flags, face_records, capsys):
    assert face.main([*face_flags, '--two-jaws']) == 2
    assert f'{face_records} does not say which jaw' in capsys.readouterr().err


def test_profiles_are_repeated(face_flags, face_records, tmp_path):
    records = list(read_face_records(face_records))
    yaws = np.radians([0, 59, 61, -80])
    turned = [record._replace(pose=np.array([0, yaws[number % 4], 0])) for number, record in enumerate(records)]
    write_records(tmp_path / 'turned', [encode_record(record) for record in turned])
    task = face.build_task(landmarks(*face_flags, '--rec-train', str(tmp_path / 'turned.rec'),
                                     '--repeat-profiles', '3'))
    assert sum(len(label) for _, label in task.batches(0, 0)) == 40 + 2 * 20


def weights_of(run, name='net.params'):
    return {key: value.asnumpy() for key, value in
            mx.nd.load(str(sorted((run / 'checkpoints').iterdir())[-1] / name)).items()}


def test_averaged_weights_are_evaluated_and_exported(face_flags, face_records, tmp_path):
    run = tmp_path / 'run'
    assert face.main([*face_flags, '--ema-decay', '0.9']) == 0
    # What is kept is the average, and it is what was evaluated.
    averaged, trained = weights_of(run), weights_of(run, 'trained.params')
    assert any(not np.allclose(averaged[name], trained[name]) for name in averaged)
    net, description = load_network(run)
    error = evaluate_landmarks(net, read_face_records(face_records), description).errors.mean()
    assert epoch_records(run)[-1]['val_nme'] == pytest.approx(error, rel=1e-3)
    exported, _ = load_network(next((run / 'export').glob('*-symbol.json')))
    x = mx.nd.random.uniform(shape=(2, 3, 32, 32))
    np.testing.assert_allclose(exported(x).asnumpy(), net(x).asnumpy(), rtol=1e-4, atol=1e-5)


def test_a_training_begins_with_the_weights_of_another(face_flags, tmp_path, capsys):
    first, second = tmp_path / 'first', tmp_path / 'second'
    assert face.main([*face_flags, '--num-epochs', '1', '--save-dir', str(first)]) == 0
    # At the smallest rate only the running statistics move.
    flags = [*face_flags, '--num-epochs', '1', '--lr', '1e-8', '--input-size', '48', '--init-from', str(first)]
    assert face.main([*flags, '--save-dir', str(second)]) == 0
    before, after = weights_of(first), weights_of(second)
    for name, value in before.items():
        if 'running' not in name:
            np.testing.assert_allclose(value, after[name], atol=1e-6)
    assert face.main([*flags, '--model', 'lprnet_mobilenet_x0.5', '--save-dir', str(tmp_path / 'third')]) == 2
    assert f'--init-from {first}: none of its weights' in capsys.readouterr().err
    assert face.main([*face_flags, '--init-from', str(tmp_path / 'none'), '--save-dir', str(tmp_path / 'fourth')]) == 2
    assert '(the path does not exist)' in capsys.readouterr().err


def test_tuning_shuffles_too(face_flags, monkeypatch):
    made = []

    class Noted(FaceBatches):
        def epoch(self, epoch, start=0):
            for batch in super().epoch(epoch, start):
                made.append((epoch, batch.label.asnumpy()))
                yield batch
    monkeypatch.setattr(face, 'FaceBatches', Noted)
    assert face.main([*face_flags, '--num-epochs', '1', '--tuning-epochs', '2', '--tuning-lr', '0.001']) == 0
    first, second = (np.concatenate([label for number, label in made if number == epoch]) for epoch in (1, 2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(np.sort(first, axis=0), np.sort(second, axis=0))


def test_sets_to_train_on_may_have_one_name(face_flags, face_records, tmp_path, capsys):
    samples = list(read_records(face_records))
    for folder, count in ('a', 24), ('b', 16):
        write_records(tmp_path / folder / 'train', samples[:count])
    recs = [str(tmp_path / folder / 'train.rec') for folder in 'ab']
    flags = [*face_flags, '--num-epochs', '1', '--rec-train', *recs]
    assert face.main(flags) == 0
    write_records(tmp_path / 'a' / 'train', samples[-24:], overwrite=True)
    assert face.main([*flags, '--resume']) == 2
    assert 'was trained on other records' in capsys.readouterr().err


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


def test_a_set_of_fewer_faces_than_workers_is_refused(face_flags, face_records, tmp_path, monkeypatch, capsys):
    write_records(tmp_path / 'one', [encode_record(ellipse_face(np.random.default_rng(0)))])

    class Three(Workers):
        def __init__(self):
            super().__init__()
            self.count = 3
    monkeypatch.setattr(face, 'workers_of', lambda config: Three())
    with pytest.raises(InputError, match=r'one.rec has 1 face.s., fewer than there are workers .3.'):
        face.build_task(landmarks(*face_flags[:-2], '--batch-size', '9', '--rec-val', str(tmp_path / 'one.rec')))


def test_sets_of_one_name_are_refused(face_flags, face_records, capsys):
    assert face.main([*face_flags, '--rec-val', face_records, face_records]) == 2
    assert 'the same name' in capsys.readouterr().err


def test_missing_records_are_asked_for(tmp_path, capsys):
    assert face.main(['--save-dir', str(tmp_path)]) == 2
    assert '--rec-train' in capsys.readouterr().err
