"""Faces packed into records: the geometry to and fro, the pixels, the faults, the command."""
import io
import json
import tracemalloc
from collections import Counter

import cv2
import mxnet as mx
import numpy as np
import pytest
from PIL import Image
from reference.face_files import points_of, write_aflw2000, write_pts, write_ytf68

from gluon_lprnet.__main__ import main
from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.data.faces.landmarks import landmark_box
from gluon_lprnet.data.faces.records import (
    LABEL_WIDTH,
    FaceRecord,
    decode_record,
    encode_record,
    pack_faces,
    read_face_records,
)
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.data.recordio import read_records, write_records
from gluon_lprnet.utils.errors import InputError


def pixels_of(record):
    return np.asarray(Image.open(io.BytesIO(record.image)))


def grid_face(folder, name, left, top, step, image_size):
    """A photo with a dot, whole pixels in size, at each of 68 points of a grid; saves image and points."""
    width, height = image_size
    columns, rows = np.arange(68) % 9, np.arange(68) // 9
    points = np.stack([left + columns * step, top + rows * step], axis=1).astype('float64')
    picture = np.zeros((height, width, 3), dtype='uint8')
    radius = step // 8
    for x, y in points.astype(int):
        cv2.circle(picture, (int(x), int(y)), radius, (255, 255, 255), -1)
    cv2.imwrite(str(folder / f'{name}.png'), picture)
    write_pts(folder / f'{name}.pts', points + 1)  # iBUG counts from 1
    return points


@pytest.mark.parametrize('step, left, top, size', [
    (8, 30, 40, 224),      # small: the photo's pixels as they are
    (24, 150, 160, 224),   # shrunk by less than 2
    (80, 700, 650, 224),   # shrunk by 5
    (24, 5, 10, 224),      # the square leaves the photo
])
def test_dots_and_landmarks_stay_together(tmp_path, step, left, top, size):
    image_size = (9 * step + 2 * max(left, 60), 8 * step + 2 * max(top, 60))
    points = grid_face(tmp_path, 'face', left, top, step, image_size)
    pack_faces(tmp_path, 'pts', tmp_path / 'out', size=size, workers=1)
    record, = read_face_records(tmp_path / 'out.rec')
    crop = pixels_of(record)
    span = 2.0 * 8 * step
    assert crop.shape == (min(size, span), min(size, span), 3)
    # The whole square is there, its center that of the box.
    np.testing.assert_allclose(record.box.reshape(2, 2).mean(axis=0), (crop.shape[0] - 1) / 2, atol=0.51)
    np.testing.assert_allclose(record.to_original(record.landmarks), points, atol=0.01)
    np.testing.assert_allclose(record.box, landmark_box(record.landmarks), atol=1e-4)
    # A dot's center of mass in the crop is its landmark.
    half = int(step / record.scale / 2.5)
    ys, xs = np.mgrid[-half:half + 1, -half:half + 1]
    for x, y in record.landmarks:
        near = (slice(round(float(y)) - half, round(float(y)) + half + 1),
                slice(round(float(x)) - half, round(float(x)) + half + 1))
        weights = crop[near].mean(axis=2)
        center = np.array([(xs * weights).sum(), (ys * weights).sum()]) / weights.sum()
        assert abs(center + [round(float(x)), round(float(y))] - [x, y]).max() < 0.25


def test_small_faces_keep_their_pixels(tmp_path):
    rng = np.random.default_rng(3)
    picture = cv2.resize(rng.integers(0, 255, (12, 12, 3), dtype='uint8'), (120, 120), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / 'face.png'), picture)
    points = points_of(0) * 0.5 + 30.3
    write_pts(tmp_path / 'face.pts', points)
    pack_faces(tmp_path, 'pts', tmp_path / 'out', scale=1.5, quality=100)
    record, = read_face_records(tmp_path / 'out.rec')
    assert record.scale == 1
    crop = pixels_of(record)
    (left, top), side = record.offset.astype(int), crop.shape[0]
    assert (record.offset == [left, top]).all()
    difference = crop.astype(int) - picture[top:top + side, left:left + side, ::-1]
    assert abs(difference).mean() < 2


def test_strong_reduction_averages(tmp_path):
    """Stripes of one pixel become gray: sampled, they would stay black, white or moire."""
    picture = np.zeros((1300, 1300, 3), dtype='uint8')
    picture[:, ::2] = 255
    cv2.imwrite(str(tmp_path / 'face.png'), picture)
    write_pts(tmp_path / 'face.pts', 350 + (points_of(0) - 10) * 7.5)
    pack_faces(tmp_path, 'pts', tmp_path / 'out')
    record, = read_face_records(tmp_path / 'out.rec')
    assert record.scale > 4
    assert abs(pixels_of(record).astype(int) - 127).max() < 40


def test_outside_of_the_photo_its_border_is_repeated(tmp_path):
    picture = np.zeros((100, 100, 3), dtype='uint8')
    picture[:, :50] = 200
    cv2.imwrite(str(tmp_path / 'face.png'), picture)
    write_pts(tmp_path / 'face.pts', points_of(0))
    pack_faces(tmp_path, 'pts', tmp_path / 'out')
    record, = read_face_records(tmp_path / 'out.rec')
    crop = pixels_of(record)
    assert abs(crop[:, :10].astype(int) - 200).max() < 5 and crop[:, -10:].max() < 5


def test_records_round_trip_and_decode_everywhere(tmp_path):
    write_ytf68(tmp_path / 'set.npz', ['a.jpg', 'b.jpg'], [points_of(0), points_of(1)], ['Ä\ud800', 'B'])
    pack_faces(tmp_path / 'set.npz', 'ytf68', tmp_path / 'out', shuffle=False)
    records = list(read_face_records(tmp_path / 'out.rec'))
    assert [(record.name, record.identity) for record in records] == [('a.jpg', 'Ä\ud800'), ('b.jpg', 'B')]
    for record in records:
        assert record.pose is None
        label, image = encode_record(record._replace(image=b'\xff\xd8' + record.image[4 + record.image[5] + 2:]))
        again = decode_record(label, record.image)
        np.testing.assert_array_equal(again.landmarks, record.landmarks)
        assert json.loads(Image.open(io.BytesIO(record.image)).info['comment']) == {
            'name': record.name, 'identity': record.identity, 'jaw': 'contour'}
        pixels = pixels_of(record)
        assert cv2.imdecode(np.frombuffer(record.image, 'uint8'), 1).shape == pixels.shape
        np.testing.assert_allclose(mx.image.imdecode(record.image).asnumpy(), pixels, atol=8)
    summary = check_records(tmp_path / 'out.rec', label_width=LABEL_WIDTH)
    assert summary.count == 2 and 'CRC-32' in summary.verified
    (tmp_path / 'out.json').unlink()
    assert 'decoded' in check_records(tmp_path / 'out.rec', label_width=LABEL_WIDTH, workers=1).verified


def test_faces_are_held_once(tmp_path):
    """A face in memory is its image and its numbers, not the record that they came in too."""
    image = encode_jpeg(np.random.default_rng(0).integers(0, 256, (224, 224, 3), 'uint8'))
    face = FaceRecord('a', None, image, np.zeros((68, 2)), np.array([0, 0, 1, 1]), None, 1.0, np.zeros(2), '3d')
    write_records(tmp_path / 'faces', [encode_record(face)] * 20)
    tracemalloc.start()
    try:
        held = list(read_face_records(tmp_path / 'faces.rec'))
        used = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert used < 1.2 * sum(len(each.image) for each in held)


def test_pose(tmp_path):
    write_aflw2000(tmp_path, 'image1', points_of(0))
    pack_faces(tmp_path, 'aflw2000-3d', tmp_path / 'out')
    record, = read_face_records(tmp_path / 'out.rec')
    np.testing.assert_allclose(record.pose, [0.1, -1.2, 0.3], rtol=1e-6)
    label, _ = next(read_records(tmp_path / 'out.rec'))
    # The fields' order is the format of files that exist.
    np.testing.assert_array_equal(label, np.concatenate([record.landmarks.ravel(), record.box, record.pose, [1],
                                                         [record.scale], record.offset]))
    assert label.size == LABEL_WIDTH == 147


def test_a_yaw_alone(tmp_path):
    face = read_face_records_of_one(tmp_path)._replace(pose=np.array([np.nan, 0.5, np.nan], 'float32'), jaw='contour')
    label, image = encode_record(face)
    assert np.isfinite(label).all()
    again = decode_record(label, image)
    np.testing.assert_array_equal(again.pose, face.pose)
    assert again.jaw == 'contour'


def read_face_records_of_one(folder):
    write_aflw2000(folder, 'image1', points_of(0))
    pack_faces(folder, 'aflw2000-3d', folder / 'out')
    return next(read_face_records(folder / 'out.rec'))


def test_a_record_from_before_the_jaw_was_noted(tmp_path):
    face = read_face_records_of_one(tmp_path)
    assert face.jaw == '3d'
    label, image = encode_record(face)
    length = int.from_bytes(image[4:6], 'big')
    comment = json.dumps({'name': face.name, 'identity': None}).encode()
    old = image[:4] + (len(comment) + 2).to_bytes(2, 'big') + comment + image[4 + length:]
    assert decode_record(label, old).jaw is None and decode_record(label, old).name == face.name


def test_parts_hold_every_face_once_and_a_person_as_a_whole(tmp_path):
    people = [f'person {number}' for number in range(150)]
    names = [f'{number:03d}.jpg' for number in range(300)]
    write_ytf68(tmp_path / 'set.npz', names, [points_of(number) for number in range(300)], people * 2)
    found = {}
    for part in ('all', 'rest', 'held-out'):
        assert not main(['pack', 'faces', str(tmp_path / 'set.npz'), '--layout', 'ytf68', '--part', part,
                         '--workers', '1', '--out', str(tmp_path / part)])
        found[part] = list(read_face_records(tmp_path / f'{part}.rec'))
    names = {part: {face.name for face in faces} for part, faces in found.items()}
    assert names['rest'] | names['held-out'] == names['all'] and not names['rest'] & names['held-out']
    assert 2 <= len(names['held-out']) <= 40
    assert not {face.identity for face in found['rest']} & {face.identity for face in found['held-out']}


def some_faces(folder, count):
    folder.mkdir()
    for seed in range(count):
        write_aflw2000(folder, f'image{seed:02d}', points_of(seed))
    return folder


def test_order_seed_and_workers(tmp_path):
    folder = some_faces(tmp_path / 'set', 40)

    def names(prefix, **options):
        pack_faces(folder, 'aflw2000-3d', tmp_path / prefix, **options)
        return [record.name for record in read_face_records(tmp_path / f'{prefix}.rec')]

    kept = names('kept', shuffle=False, workers=1)
    assert kept == sorted(kept) and len(kept) == 40
    shuffled = names('shuffled', workers=1)
    assert shuffled != kept and Counter(shuffled) == Counter(kept)
    assert names('other', seed=1, workers=1) not in (kept, shuffled)
    assert names('spawned', workers=2) == shuffled
    assert (tmp_path / 'spawned.rec').read_bytes() == (tmp_path / 'shuffled.rec').read_bytes()


def test_several_sources(tmp_path):
    sources = [some_faces(tmp_path / name, 2) for name in ('b', 'a')]
    pack_faces(sources, 'aflw2000-3d', tmp_path / 'out', shuffle=False)
    names = [record.name for record in read_face_records(tmp_path / 'out.rec')]
    assert names == ['b/image00.jpg', 'b/image01.jpg', 'a/image00.jpg', 'a/image01.jpg']
    assert json.loads((tmp_path / 'out.json').read_text())['sources'] == ['b', 'a']
    with pytest.raises(InputError, match='have the same last part of their paths'):
        pack_faces([sources[0], f'{sources[0]}/'], 'aflw2000-3d', tmp_path / 'twice')


def test_faults_are_all_named_or_skipped(tmp_path, capsys):
    folder = some_faces(tmp_path / 'set', 6)
    (folder / 'image00.mat').write_bytes(b'')
    (folder / 'image01.jpg').write_bytes(b'no image')
    (folder / 'image02.jpg').write_bytes((folder / 'image02.jpg').read_bytes()[:300])
    write_aflw2000(folder, 'image03', points_of(3) + [200, 0])
    # A third of the landmarks outside is a face that the border cuts.
    points = points_of(4)
    points[:22, 0] += 150
    write_aflw2000(folder, 'image04', points)
    faults = [('image00.mat', 'is not a readable MATLAB file'), ('image01.jpg', 'is not an image of a known'),
              ('image02.jpg', 'does not decode'), ('image03.jpg', 'has 68 of its 68 landmarks outside its 120x100')]
    with pytest.raises(InputError) as failure:
        pack_faces(folder, 'aflw2000-3d', tmp_path / 'out')
    assert str(failure.value).startswith('4 of 6 faces cannot be packed:')
    for name, reason in faults:
        assert f'{folder / name} {reason}' in str(failure.value)
    assert not list(tmp_path.glob('out*'))

    command = ['pack', 'faces', str(folder), '--layout', 'aflw2000-3d', '--out', str(tmp_path / 'out')]
    assert main(command) == 2
    assert '--skip-bad' in capsys.readouterr().err
    assert not main(command + ['--skip-bad', '--no-shuffle', '--workers', '1'])
    printed = capsys.readouterr()
    assert '2 faces, ' in printed.out and printed.out.endswith('; 4 skipped\n')
    assert '4 faces were skipped' in printed.err
    manifest = json.loads((tmp_path / 'out.json').read_text())
    assert manifest['count'] == 2 and manifest['layout'] == 'aflw2000-3d' and manifest['sources'] == ['set']
    assert (manifest['size'], manifest['scale'], manifest['quality']) == (224, 2.0, 95)
    for (path, reason), (name, message) in zip(manifest['skipped'], faults):
        assert path == str(folder / name) and message in reason
    assert [record.name for record in read_face_records(tmp_path / 'out.rec')] == ['image04.jpg', 'image05.jpg']


@pytest.mark.parametrize('options, message', [
    (dict(size=8), '`size` is 8: it must be from 16 to 4096'),
    (dict(scale=0.5), '`scale` is 0.5: it must be from 1 to 10'),
    (dict(scale=float('nan')), '`scale` is nan'),
    (dict(quality=101), '`quality` is 101'),
    (dict(workers=0), '`workers` is 0'),
    (dict(seed=-1), '`seed` is -1'),
])
def test_flags_out_of_range(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        pack_faces(tmp_path, 'pts', tmp_path / 'out', **options)


def test_existing_files_are_kept(tmp_path):
    folder = some_faces(tmp_path / 'set', 1)
    pack_faces(folder, 'aflw2000-3d', tmp_path / 'out')
    with pytest.raises(InputError, match='`overwrite`'):
        pack_faces(folder, 'aflw2000-3d', tmp_path / 'out')
    assert pack_faces(folder, 'aflw2000-3d', tmp_path / 'out', overwrite=True).count == 1


def test_other_records_are_refused(tmp_path, tiny_records):
    prefix, _, _ = tiny_records
    with pytest.raises(InputError, match=r'tiny.rec: record 0 .* has a label of 1 numbers, while that of a face has 147'
                                         '.*python -m gluon_lprnet pack faces'):
        next(read_face_records(f'{prefix}.rec'))
    write_records(tmp_path / 'wide', [(np.zeros(LABEL_WIDTH), b'\xff\xd8\xff\xe0')])
    with pytest.raises(InputError, match='has no name in the comment of its JPEG'):
        next(read_face_records(tmp_path / 'wide.rec'))


@pytest.mark.parametrize('path, layout', [('aflw2000_3d', 'aflw2000-3d'), ('ytf68/test.npz', 'ytf68')])
def test_real_faces(shared_data, tmp_path, path, layout, monkeypatch):
    faces = list(read_faces(shared_data / path, layout, []))[:60]
    monkeypatch.setattr('gluon_lprnet.data.faces.records.read_faces', lambda *arguments: iter(faces))
    pack_faces(shared_data / path, layout, tmp_path / 'out', shuffle=False, workers=1)
    records = list(read_face_records(tmp_path / 'out.rec'))
    assert len(records) == 60
    for face, record in zip(faces, records):
        assert (face.name, face.identity) == (record.name, record.identity)
        np.testing.assert_allclose(record.to_original(record.landmarks), face.landmarks, atol=0.01)
        assert record.scale >= 1
