"""NME, bins and CED against plain loops and hand-made cases; the command against networks of a known answer."""
import json

import cv2
import mxnet as mx
import numpy as np
import pytest
from mxnet.contrib.amp.amp import bfloat16
from reference.commands import command
from reference.landmark_networks import ANSWER, expected_points, loop_errors, make_network, write_faces

from gluon_lprnet.data.batches import IMAGENET_MEAN, IMAGENET_STD
from gluon_lprnet.data.faces.records import encode_record, read_face_records
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.evaluate import landmarks, nme
from gluon_lprnet.evaluate.landmarks import ced, normalized_mean_errors, summarize, yaw_bins
from gluon_lprnet.utils.errors import InputError

SQUARE = np.array([[0, 0], [100, 0], [0, 100], [100, 100]], dtype='float64')














@pytest.fixture(scope='module')
def network(tmp_path_factory):
    return make_network(tmp_path_factory.mktemp('network'))


@pytest.fixture(scope='module')
def face_set(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp('faces') / 'posed', [0, 12, -29, 31, -59, 61, 95, None, -5, 40])


def test_nme_of_cases_by_hand():
    assert normalized_mean_errors([SQUARE + [10, 0]], [SQUARE]) == pytest.approx([0.10])
    assert normalized_mean_errors([SQUARE + [6, -8]], [SQUARE]) == pytest.approx([0.10])
    # The square root of width times height, of the truth alone.
    assert normalized_mean_errors([SQUARE * [1, 4] + [0, 10]], [SQUARE * [1, 4]]) == pytest.approx([10 / 200])
    one_off = SQUARE.copy()
    one_off[3] += [300, 400]
    assert normalized_mean_errors([one_off, SQUARE], [SQUARE, SQUARE]) == pytest.approx([500 / 4 / 100, 0])


def test_nme_equals_plain_loops():
    rng = np.random.default_rng(0)
    truth = rng.normal(100, 30, (7, 68, 2))
    predicted = truth + rng.normal(0, 3, truth.shape)
    np.testing.assert_allclose(normalized_mean_errors(predicted, truth), loop_errors(predicted, truth), rtol=1e-12)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_nme_refuses_what_is_not_finite(value):
    broken = SQUARE.copy()
    broken[1, 1] = value
    with pytest.raises(ArithmeticError, match='NaN'):
        normalized_mean_errors([SQUARE, broken], [SQUARE, SQUARE])


def test_nme_refuses_an_empty_box():
    with pytest.raises(ValueError, match='face 1 .* empty box'):
        normalized_mean_errors([SQUARE, SQUARE], [SQUARE, SQUARE * [1, 0]])


def test_an_upper_limit_belongs_to_its_bin():
    yaw = [0, 30, -30, 30.001, 60, -60, 60.001, -117, np.nan]
    assert yaw_bins(yaw).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, -1]


def test_summary_by_hand():
    errors = np.array([0.01, 0.03, 0.05, 0.07, 0.09, 0.5])
    summary = summarize(errors, [0, 10, 45, -50, 70, np.nan])
    assert summary['faces'] == 6 and summary['bin_faces'] == [2, 2, 1]
    assert summary['bin_nme'] == pytest.approx([0.02, 0.06, 0.09])
    assert summary['mean_of_bins'] == pytest.approx((0.02 + 0.06 + 0.09) / 3)
    assert summary['mean'] == pytest.approx(0.75 / 6) and summary['median'] == pytest.approx(0.06)
    # At the threshold is no failure yet.
    assert summary['threshold'] == 0.07 and summary['failure_rate'] == pytest.approx(2 / 6)
    # 1/6 from 0.01, 2/6 from 0.03, 3/6 from 0.05 to 0.07.
    assert summary['auc'] == pytest.approx((0.02 * 1 / 6 + 0.02 * 2 / 6 + 0.02 * 3 / 6) / 0.07)
    assert summarize(np.zeros(3))['auc'] == 1 and summarize(np.ones(3))['auc'] == 0


def test_an_empty_bin_has_no_mean():
    summary = summarize(np.array([0.1, 0.2]), [0, 40])
    assert summary['bin_nme'] == [0.1, 0.2, None] and summary['mean_of_bins'] is None
    assert summarize(np.array([0.1, 0.2]))['bin_nme'] == [None] * 3


def test_ced_has_a_corner_at_each_error():
    errors, fractions = ced([0.3, 0.1, 0.1, 0.2])
    assert errors.tolist() == [0, 0.1, 0.2, 0.3] and fractions.tolist() == [0, 0.5, 0.75, 1]
    errors, fractions = ced([0.0, 0.2])
    assert errors.tolist() == [0, 0.2] and fractions.tolist() == [0.5, 1]


def test_auc_is_the_area_under_the_ced():
    sample = np.random.default_rng(2).exponential(0.05, 300)
    errors, fractions = ced(sample)
    area = sum(fraction * (min(following, 0.07) - error) for error, following, fraction
               in zip(errors, [*errors[1:], np.inf], fractions) if error < 0.07)
    assert summarize(sample)['auc'] == pytest.approx(area / 0.07, rel=1e-12)


def test_a_network_of_a_known_answer(network, face_set):
    rec, faces = face_set
    net, description = landmarks.load_landmark_network(network)
    found = landmarks.evaluate_landmarks(net, read_face_records(rec), description, batch_size=3)
    truth = [2.5 * face.landmarks.astype('float64') + [30, -12] for face in faces]
    assert found.names == [face.name for face in faces]
    np.testing.assert_allclose(found.predicted, expected_points(faces), atol=1e-3)
    np.testing.assert_allclose(found.truth, truth, atol=1e-4)
    np.testing.assert_allclose(found.errors, loop_errors(expected_points(faces), truth), atol=1e-6)
    np.testing.assert_allclose(found.yaw, [0, 12, -29, 31, -59, 61, 95, np.nan, -5, 40], atol=1e-5)


def test_the_network_sees_the_crop_in_rgb_normalized(network):
    """The pixels that reach the network, against a warp by hand of a picture that is one slope."""
    seen = []

    def spy(data):
        seen.append(data.asnumpy())
        return mx.nd.zeros((len(data), 136))
    _, description = landmarks.load_landmark_network(network)
    x, y = np.meshgrid(np.arange(80), np.arange(60))
    picture = np.stack([2 * x, 3 * y, np.full_like(x, 7)], axis=-1).astype('uint8')
    landmarks.predict_landmarks(spy, description, [(picture, (20, 15, 52, 39))])
    # A square of 1.5 * 32 = 48 pixels about (36, 27) becomes 32 pixels.
    along = (np.arange(32) - 15.5) * 1.5
    crop = np.stack([np.broadcast_to(2 * (36 + along), (32, 32)), np.broadcast_to(3 * (27 + along)[:, None], (32, 32)),
                     np.full((32, 32), 7)])
    expected = (crop - np.reshape(IMAGENET_MEAN, (3, 1, 1))) / np.reshape(IMAGENET_STD, (3, 1, 1))
    np.testing.assert_allclose(seen[0][0], expected, atol=1.1 / 50)


def test_a_network_that_answers_in_bfloat16(network):
    # As one does that is trained with --dtype bfloat16.
    values = mx.nd.array(np.linspace(-0.4, 0.4, 136)[None])
    _, description = landmarks.load_landmark_network(network)
    face = np.zeros((60, 80, 3), 'uint8'), (20, 15, 52, 39)
    precise, rough = (landmarks.predict_landmarks(lambda data, dtype=dtype: mx.nd.amp_cast(values, dtype=dtype),
                                                  description, [face]) for dtype in ('float32', bfloat16))
    np.testing.assert_allclose(rough, precise, rtol=1e-2)


def test_the_mean_face_by_loops(face_set):
    rec, faces = face_set
    total = np.zeros((68, 2))
    for face in faces:
        left, top, right, bottom = face.box.astype('float64')
        side = max(right - left, bottom - top)
        total += (face.landmarks - [(left + right) / 2, (top + bottom) / 2]) / side
    face = landmarks.mean_face(read_face_records(rec))
    np.testing.assert_allclose(face, total / len(faces), atol=1e-6)
    found = landmarks.evaluate_mean_face(ANSWER, read_face_records(rec))
    np.testing.assert_allclose(found.predicted, expected_points(faces), atol=1e-3)


def test_the_command_prints_a_row_for_each_network_and_set(network, face_set, tmp_path, capsys):
    rec, faces = face_set
    other = make_network(tmp_path / 'other')
    plain, _ = write_faces(tmp_path / 'plain', [None] * 3)
    argv = ['nme', rec, plain, '--network', network, other, '--mean-face', plain, '--threshold', '30']
    command(nme, *argv, '--format', 'json')
    rows = json.loads(capsys.readouterr().out)['rows']
    assert [(row['set'], row['faces']) for row in rows] == [('posed', 10)] * 3 + [('plain', 3)] * 3
    assert [row['network'] for row in rows[:3]] == [f'lprnet_mobilenet_x0.25 ({path})' for path in (network, other)] + [
        'mean face']
    errors = loop_errors(expected_points(faces), [2.5 * face.landmarks + [30, -12] for face in faces])
    assert rows[0]['mean'] == pytest.approx(np.mean(errors), abs=1e-6)
    assert rows[0]['bin_nme'][1] == pytest.approx(np.mean([errors[index] for index in (3, 4, 9)]), abs=1e-6)
    assert rows[0]['failure_rate'] == np.mean(np.array(errors) > 0.3)
    assert rows[3]['bin_faces'] == [0, 0, 0] and rows[3]['mean_of_bins'] is None
    command(nme, *argv, '--format', 'markdown')
    text = capsys.readouterr().out
    assert f'| {100 * np.mean(errors):.2f} ' in text and 'failures > 30' in text
    assert "true landmarks' box" in text and 'Faces in posed: 10, by yaw [0,30] 4, (30,60] 3, >60 2.' in text
    assert 'Faces in plain: 3, by yaw unknown.' in text


def test_what_is_no_landmark_network_is_named(face_set, tmp_path):
    symbol = make_network(tmp_path, outputs=10)
    with pytest.raises(InputError, match='10 outputs, not 136') as error:
        command(nme, 'nme', symbol, '--rec', face_set[0])
    assert str(symbol) in str(error.value)
    (tmp_path / 'lprnet_mobilenet_x0.25.json').unlink()
    with pytest.raises(InputError, match='lacks input_size, rgb_mean, rgb_std'):
        command(nme, 'nme', symbol, '--rec', face_set[0])


def test_files_at_fault_are_named(network, face_set, tiny_records, tmp_path):
    for rec, message in ((f'{tiny_records[0]}.rec', 'pack faces'), (tmp_path / 'none.rec', 'does not exist')):
        with pytest.raises(InputError, match=message) as error:
            command(nme, 'nme', network, '--rec', face_set[0], rec)
        assert str(rec) in str(error.value)
    with pytest.raises(InputError, match='given twice'):
        command(nme, 'nme', network, '--rec', face_set[0], face_set[0])
    # A JPEG that ends after its comment.
    label, image = encode_record(face_set[1][0])
    image = image[:4 + int.from_bytes(image[4:6], 'big')]
    assert cv2.imdecode(np.frombuffer(image, 'uint8'), cv2.IMREAD_COLOR) is None
    write_records(tmp_path / 'undecodable', [(label, image)])
    with pytest.raises(InputError, match='record 0 .* is not an image of a known format'):
        command(nme, 'nme', network, '--rec', tmp_path / 'undecodable.rec')


def test_flip_is_the_mean_with_the_mirror_image(face_set, tmp_path, capsys):
    """Of a network that answers the same whatever it sees; the numbers of the mirrored points by their names."""
    rec, faces = face_set
    pairs = [*((i, 16 - i) for i in range(8)), *((17 + i, 26 - i) for i in range(5)), (31, 35), (32, 34),
             (36, 45), (37, 44), (38, 43), (39, 42), (40, 47), (41, 46), (48, 54), (49, 53), (50, 52), (55, 59),
             (56, 58), (60, 64), (61, 63), (65, 67)]
    opposite = {number: number for number in (8, *range(27, 31), 33, 51, 57, 62, 66)}
    opposite.update(pairs)
    opposite.update((b, a) for a, b in pairs)
    assert sorted(opposite) == sorted(opposite.values()) == list(range(68))
    answer = np.array([[(ANSWER[i][0] - ANSWER[opposite[i]][0]) / 2, (ANSWER[i][1] + ANSWER[opposite[i]][1]) / 2]
                       for i in range(68)])
    predicted = expected_points(faces, answer)
    net, description = landmarks.load_landmark_network(make_network(tmp_path))
    found = landmarks.evaluate_landmarks(net, read_face_records(rec), description, flip=True)
    np.testing.assert_allclose(found.predicted, predicted, atol=1e-3)
    command(nme, 'nme', rec, '--network', tmp_path / 'lprnet_mobilenet_x0.25-symbol.json', '--flip', '--format', 'json')
    row, = json.loads(capsys.readouterr().out)['rows']
    errors = loop_errors(predicted, [2.5 * face.landmarks + [30, -12] for face in faces])
    assert row['mean'] == pytest.approx(np.mean(errors), abs=1e-6)


def test_the_network_gets_the_type_that_it_computes_in(face_set):
    seen = []

    def spy(data):
        seen.append(data.dtype)
        return mx.nd.zeros((len(data), 136))
    description = {'input_size': 32, 'rgb_mean': IMAGENET_MEAN, 'rgb_std': IMAGENET_STD}
    landmarks.evaluate_landmarks(spy, list(read_face_records(face_set[0])), description, dtype='float16', flip=True)
    assert seen == [np.float16] * 2
