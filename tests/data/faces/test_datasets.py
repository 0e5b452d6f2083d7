"""Readers of face data sets: each layout written by hand, every fault, and the real sets' counts."""
import os
import struct
import zipfile
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
import pytest
import scipy.io
from reference.face_files import (
    HEIGHT,
    POSE,
    WIDTH,
    points_of,
    pose_parameters,
    write_aflw2000,
    write_image,
    write_mat,
    write_pts,
    write_ytf68,
)

from gluon_lprnet.data.faces.datasets import JAW, LAYOUTS, ORIGIN, read_faces
from gluon_lprnet.data.faces.head_model import fit_pose
from gluon_lprnet.data.faces.landmarks import JAWS, landmark_box, mirror
from gluon_lprnet.data.faces.torch7 import read_tensor
from gluon_lprnet.utils.errors import InputError


def write_t7(path, points):
    """Torch7's binary serialization: a tensor object and, in it, its storage."""
    def text(value):
        return struct.pack('<i', len(value)) + value.encode()

    kind = {'float32': 'Float', 'float64': 'Double'}[points.dtype.name]
    path.write_bytes(
        struct.pack('<ii', 4, 1) + text('V 1') + text(f'torch.{kind}Tensor') + struct.pack('<i', 2)
        + struct.pack('<qqqqq', *points.shape, points.shape[1], 1, 1)
        + struct.pack('<ii', 4, 2) + text('V 1') + text(f'torch.{kind}Storage') + struct.pack('<q', points.size)
        + points.tobytes())








def write_300w_lp(folder, name, points):
    set_name = name.split('_')[0]
    write_image(folder / set_name / f'{name}.jpg')
    write_mat(folder / set_name / f'{name}.mat', Pose_Para=pose_parameters(POSE), pt2d=points.T)
    write_image(folder / f'{set_name}_Flip' / f'{name}.jpg')
    write_mat(folder / f'{set_name}_Flip' / f'{name}.mat', Pose_Para=pose_parameters(POSE * [1, -1, -1]))
    write_mat(folder / 'landmarks' / set_name / f'{name}_pts.mat', pts_3d=points, pts_2d=points + 7)


def write_dlib(path, images):
    """`images`: (file, list of (attributes, points) of its boxes)."""
    text = '<?xml version="1.0"?><dataset><images>'
    for file, boxes in images:
        text += f'<image file={quoteattr(file)}>'
        for attributes, points in boxes:
            # Not in the parts' order, which the file need not have.
            parts = ''.join(f'<part name="{i:02d}" x="{x}" y="{y}"/>'
                            for i, (x, y) in reversed(list(enumerate(points))))
            text += f'<box top="1" left="1" width="9" height="9" {attributes}>{parts}</box>'
        text += '</image>'
    path.write_text(text + '</images></dataset>')




def read(path, layout):
    faults = []
    faces = list(read_faces(path, layout, faults))
    assert not faults
    return faces


def assert_face(face, name, points, layout, pose=None, identity=None):
    assert (face.name, face.identity) == (name, identity)
    assert face.landmarks.dtype == face.box.dtype == np.float32
    np.testing.assert_allclose(face.landmarks, points - ORIGIN[layout], atol=1e-4)
    np.testing.assert_array_equal(face.box, landmark_box(face.landmarks))
    assert (face.pose is None) if pose is None else np.allclose(face.pose, pose, equal_nan=True)
    assert face.jaw == JAW[layout]
    assert cv2.imread(face.image).shape == (HEIGHT, WIDTH, 3)


def test_every_layout_has_an_origin_and_a_jaw():
    assert set(ORIGIN) == set(JAW) == set(LAYOUTS)
    assert set(ORIGIN.values()) == {0, 1} and set(JAW.values()) == set(JAWS)


def write_aflw(path, names, points, yaws):
    for name in names:
        write_image(path.parent / 'aflw' / name)
    np.savez(path, names=np.array(names), points=np.array(points, 'float16'), yaw=np.array(yaws, 'float16'))


def test_aflw(tmp_path):
    points = [points_of(seed).astype('float16').astype('float64') for seed in (0, 1)]
    write_aflw(tmp_path / 'aflw_labels.npz', ['b.jpg', 'a.jpg'], points, [-62.5, 20])
    # Pictures of which the file does not speak, as those of a test set in the same folder, are not read.
    write_image(tmp_path / 'aflw' / 'c.jpg')
    first, second = read(tmp_path / 'aflw_labels.npz', 'aflw')
    assert_face(first, 'a.jpg', points[1], 'aflw', [np.nan, np.radians(20), np.nan])
    assert_face(second, 'b.jpg', points[0], 'aflw', [np.nan, np.radians(-62.5), np.nan])
    assert first.jaw == '3d'


def test_faults_of_aflw(tmp_path):
    write_aflw(tmp_path / 'aflw.npz', ['a.jpg', 'b.jpg'], [points_of(0), points_of(1)], [np.nan, 20])
    (tmp_path / 'aflw' / 'b.jpg').unlink()
    faults = []
    assert not list(read_faces(tmp_path / 'aflw.npz', 'aflw', faults))
    assert faults == [(f'{tmp_path / "aflw.npz"} (a.jpg)', 'has yaw that are not finite'),
                      (str(tmp_path / 'aflw' / 'b.jpg'), 'does not exist')]
    np.savez(tmp_path / 'aflw.npz', names=np.array(['a.jpg']), points=np.zeros((2, 68, 2)), yaw=np.zeros(1))
    with pytest.raises(InputError, match='aflw.npz has arrays of different lengths: 1 names, 2 points, 1 yaw'):
        list(read_faces(tmp_path / 'aflw.npz', 'aflw', []))


def test_pts(tmp_path):
    for seed, name in enumerate(('b/2.png', 'a/1.JPG', 'b/._2.pts', 'zero.jpg')):
        image = tmp_path / name
        image.parent.mkdir(exist_ok=True)
        if name.endswith('.pts'):
            image.write_text('what a Mac leaves')
        else:
            write_image(image)
            write_pts(image.with_suffix('.pts'), points_of(seed))
    faces = read(tmp_path, 'pts')
    for face, name, seed in zip(faces, ('a/1.JPG', 'b/2.png', 'zero.jpg'), (1, 0, 3)):
        assert_face(face, name, points_of(seed), 'pts')
    assert len(faces) == 3


def test_folders_that_are_linked(tmp_path):
    (tmp_path / 'set').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    write_image(tmp_path / 'elsewhere' / 'a.jpg')
    write_pts(tmp_path / 'elsewhere' / 'a.pts', points_of(0))
    (tmp_path / 'set' / 'linked').symlink_to('../elsewhere')
    (tmp_path / 'elsewhere' / 'back').symlink_to('../set')
    assert [face.name for face in read(tmp_path / 'set', 'pts')] == ['linked/a.jpg']


def test_pts_beside_pictures_of_any_ending(tmp_path):
    names = ['a.jpeg', 'b.bmp', 'c.JPG', 'd.JPEG', 'e.PNG', 'f.tif']
    for seed, name in enumerate(names):
        write_image(tmp_path / name)
        write_pts((tmp_path / name).with_suffix('.PTS' if name == 'c.JPG' else '.pts'), points_of(seed))
    faces = read(tmp_path, 'pts')
    assert [face.name for face in faces] == names
    for seed, face in enumerate(faces):
        assert_face(face, names[seed], points_of(seed), 'pts')


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_ls3d_w(tmp_path, dtype):
    for seed, name in enumerate(('CatA/114/0001.jpg', 'CatA/114/0002.png')):
        write_image(tmp_path / name)
        write_t7((tmp_path / name).with_suffix('.t7'), points_of(seed).astype(dtype))
    faces = read(tmp_path, 'ls3d-w')
    assert_face(faces[0], 'CatA/114/0001.jpg', points_of(0), 'ls3d-w')
    assert_face(faces[1], 'CatA/114/0002.png', points_of(1), 'ls3d-w')
    assert len(faces) == 2


def test_aflw2000(tmp_path):
    for seed, name in enumerate(('image00002', 'image00001')):
        write_aflw2000(tmp_path, name, points_of(seed))
    write_mat(tmp_path / 'Code' / 'Model_Shape.mat', w=np.ones(3))  # part of the release
    first, second = read(tmp_path, 'aflw2000-3d')
    assert_face(first, 'image00001.jpg', points_of(1), 'aflw2000-3d', POSE)
    assert_face(second, 'image00002.jpg', points_of(0), 'aflw2000-3d', POSE)


def test_pictures_in_the_layout_of_300w_lp_without_copies(tmp_path):
    for seed, name in enumerate(('one', 'two')):
        write_300w_lp(tmp_path, name, points_of(seed))
    assert [face.identity for face in read(tmp_path, '300w-lp')] == ['one.jpg', 'two.jpg']


def test_300w_lp(tmp_path):
    names = ['AFW_1_0', 'HELEN_2_0', 'LFPW_3_1']
    for seed, name in enumerate(names):
        write_300w_lp(tmp_path, name, points_of(seed))
    for seed, face in enumerate(read(tmp_path, '300w-lp')):
        assert_face(face, f'{names[seed].split("_")[0]}/{names[seed]}.jpg', points_of(seed), '300w-lp', POSE,
                    f'{names[seed][:-2]}.jpg')
    both = {face.name: face for face in read(tmp_path, '300w-lp-flip')}
    assert len(both) == 6
    flipped = both['AFW_Flip/AFW_1_0.jpg']
    np.testing.assert_allclose(flipped.landmarks, mirror(points_of(0) - 1, WIDTH), atol=1e-4)
    np.testing.assert_allclose(flipped.pose, POSE * [1, -1, -1])
    assert_face(both['AFW/AFW_1_0.jpg'], 'AFW/AFW_1_0.jpg', points_of(0), '300w-lp-flip', POSE, 'AFW_1.jpg')
    assert flipped.identity == 'AFW_1.jpg'


def test_dlib(tmp_path):
    for name in ('one.jpg', 'sub/two.png'):
        write_image(tmp_path / name)
    write_dlib(tmp_path / 'faces.xml', [('sub/two.png', [('', points_of(0)), ('ignore="1"', []), ('', points_of(1))]),
                                        ('one.jpg', [('', points_of(2))])])
    faces = read(tmp_path / 'faces.xml', 'dlib')
    for face, name, seed in zip(faces, ('one.jpg', 'sub/two.png#1', 'sub/two.png#2'), (2, 0, 1)):
        assert_face(face, name, points_of(seed), 'dlib')
    assert len(faces) == 3


def test_ytf68(tmp_path):
    write_ytf68(tmp_path / 'train.npz', ['b.jpg', 'a.jpg'], [points_of(0), points_of(1)], ['B', 'A'])
    first, second = read(tmp_path / 'train.npz', 'ytf68')
    assert_face(first, 'a.jpg', points_of(1), 'ytf68', identity='A')
    assert_face(second, 'b.jpg', points_of(0), 'ytf68', identity='B')


BAD_POINTS = {
    'finite': (np.where(np.arange(136).reshape(68, 2) == 7, np.nan, points_of(0)), 'landmarks that are not finite'),
    'infinite': (np.where(np.arange(136).reshape(68, 2) == 7, np.inf, points_of(0)), 'landmarks that are not finite'),
    'few': (points_of(0)[:21], 'has 21x2 numbers for landmarks, not 68x2'),
    'empty box': (np.column_stack([points_of(0)[:, 0], np.full(68, 5)]), 'on one line: their box is empty'),
}


@pytest.mark.parametrize('kind', BAD_POINTS)
@pytest.mark.parametrize('layout', ['pts', 'ls3d-w', 'ytf68'])
def test_bad_points_are_faults(tmp_path, layout, kind):
    points, message = BAD_POINTS[kind]
    path, place = tmp_path, tmp_path / f'bad.{dict(pts="pts").get(layout, "t7")}'
    if layout == 'ytf68':
        path, place = tmp_path / 'set.npz', tmp_path / 'set.npz'
        write_ytf68(path, ['bad.jpg'], [points], ['X'])
    else:
        write_image(tmp_path / 'bad.jpg')
        write_image(tmp_path / 'good.jpg')
        for name, values in (('bad', points), ('good', points_of(1))):
            (write_pts if layout == 'pts' else write_t7)((tmp_path / name).with_suffix(place.suffix), values)
    faults = []
    faces = list(read_faces(path, layout, faults))
    assert [face.name for face in faces] == ([] if layout == 'ytf68' else ['good.jpg'])
    (file, what), = faults
    assert file.startswith(str(place)) and message in what


def spoil_mat(**changes):
    return lambda folder: write_aflw2000(folder, 'bad', changes.pop('points', points_of(0)), **changes)


def without(key):
    def spoil(folder):
        write_aflw2000(folder, 'bad', points_of(0))
        content = scipy.io.loadmat(folder / 'bad.mat')
        write_mat(folder / 'bad.mat', **{name: content[name] for name in {'pt3d_68', 'Pose_Para'} - {key}})
    return spoil


def with_text(folder):
    write_image(folder / 'bad.jpg')
    (folder / 'bad.mat').write_text('no MATLAB at all')


def only_image(folder):
    write_image(folder / 'bad.jpg')


def only_mat(folder):
    write_aflw2000(folder, 'bad', points_of(0))
    (folder / 'bad.jpg').unlink()


@pytest.mark.parametrize('spoil, file, message', [
    (without('pt3d_68'), 'bad.mat', 'has no pt3d_68'),
    (without('Pose_Para'), 'bad.mat', 'has no Pose_Para'),
    (with_text, 'bad.mat', 'is not a readable MATLAB file'),
    (spoil_mat(points=points_of(0)[:21]), 'bad.mat', 'has 3x21 numbers for pt3d_68, not 3x68'),
    (spoil_mat(pt3d_68=np.array([['a'] * 68] * 3, dtype=object)), 'bad.mat', 'has pt3d_68 that are not numbers'),
    (spoil_mat(Pose_Para=np.full((1, 7), np.nan)), 'bad.mat', 'has Pose_Para that are not finite'),
    (only_image, 'bad.mat', 'does not exist'),
    (only_mat, 'bad.jpg', 'does not exist'),
])
def test_faults_of_mat_files(tmp_path, spoil, file, message):
    spoil(tmp_path)
    write_aflw2000(tmp_path, 'good', points_of(1))
    faults = []
    assert [face.name for face in read_faces(tmp_path, 'aflw2000-3d', faults)] == ['good.jpg']
    (path, what), = faults
    assert path == str(tmp_path / file) and message in what


def test_faults_of_300w_lp_name_the_file(tmp_path):
    for seed, name in enumerate(('AFW_1', 'AFW_2', 'AFW_3')):
        write_300w_lp(tmp_path, name, points_of(seed))
    (tmp_path / 'AFW' / 'AFW_1.mat').unlink()
    (tmp_path / 'landmarks' / 'AFW' / 'AFW_2_pts.mat').unlink()
    (tmp_path / 'AFW_Flip' / 'AFW_3.jpg').write_bytes(b'no image')
    faults = []
    names = [face.name for face in read_faces(tmp_path, '300w-lp-flip', faults)]
    assert names == ['AFW/AFW_3.jpg', 'AFW_Flip/AFW_1.jpg']
    points = str(tmp_path / 'landmarks' / 'AFW' / 'AFW_2_pts.mat')
    assert faults == [(str(tmp_path / 'AFW' / 'AFW_1.mat'), 'does not exist'), (points, 'does not exist'),
                      (points, 'does not exist'),
                      (str(tmp_path / 'AFW_Flip' / 'AFW_3.jpg'), 'is not an image of a known format')]


@pytest.mark.parametrize('layout, ending, content, message', [
    ('pts', '.pts', b'version: 1\n68 points\n', 'is not a list of points "x y" in braces'),
    ('pts', '.pts', b'{\n1 2\n3\n}', 'is not a list of points "x y" in braces'),
    ('pts', '.pts', b'\xff\xfe\x00', 'is not a list of points "x y" in braces'),
    ('ls3d-w', '.t7', b'', 'is not a binary Torch tensor'),
    ('ls3d-w', '.t7', b'4\n1\n3\nV 1\n', 'is not a binary Torch tensor'),
])
def test_damaged_annotations(tmp_path, layout, ending, content, message):
    write_image(tmp_path / 'bad.jpg')
    (tmp_path / f'bad{ending}').write_bytes(content)
    faults = []
    assert not list(read_faces(tmp_path, layout, faults))
    (file, what), = faults
    assert file == str(tmp_path / f'bad{ending}') and message in what


def test_a_truncated_tensor(tmp_path):
    write_image(tmp_path / 'bad.jpg')
    write_t7(tmp_path / 'bad.t7', points_of(0))
    (tmp_path / 'bad.t7').write_bytes((tmp_path / 'bad.t7').read_bytes()[:-8])
    faults = []
    assert not list(read_faces(tmp_path, 'ls3d-w', faults))
    assert 'is not a binary Torch tensor' in faults[0][1]


def test_tensors_of_any_layout(tmp_path):
    """A transposed view on the middle of a storage, as Torch saves it."""
    values = np.arange(200, dtype='float32')
    write_t7(tmp_path / 'a.t7', values[:136].reshape(68, 2))
    content = (tmp_path / 'a.t7').read_bytes()
    sizes, storage = content.index(struct.pack('<qq', 68, 2)), content.index(struct.pack('<q', 136), 70)
    (tmp_path / 'b.t7').write_bytes(content[:sizes] + struct.pack('<qqqqq', 68, 2, 1, 68, 11)
                                    + content[sizes + 40:storage] + struct.pack('<q', 200) + values.tobytes())
    assert (read_tensor(tmp_path / 'b.t7') == values[10:146].reshape(2, 68).T).all()


def test_no_damage_of_a_tensor_gets_through_or_ends_the_process(tmp_path):
    """Every byte of the header in five ways, and every length."""
    path = tmp_path / 'a.t7'
    write_t7(path, points_of(0))
    content = path.read_bytes()
    header = len(content) - 68 * 2 * 8
    damaged = [content[:place] + bytes([value]) + content[place + 1:] for place in range(header)
               for value in (0, 1, 127, 128, 255)]
    for case in damaged + [content[:length] for length in range(len(content))]:
        path.write_bytes(case)
        try:
            tensor = read_tensor(path)
        except ValueError:
            continue
        # The numbers of objects, which are not needed, and strides may have changed; shapes are checked by pack.
        assert tensor.dtype == 'float64' and tensor.size <= 136


def test_archive_that_announces_more_memory_than_there_is(tmp_path):
    path = tmp_path / 'bomb.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, shape, dtype in (('names', (10 ** 9,), '<U30'), ('landmarks', (10 ** 9, 68, 2), '<f8'),
                                   ('identity', (10 ** 9,), '<i8')):
            with archive.open(f'{name}.npy', 'w') as file:
                np.lib.format.write_array_header_1_0(file, {'descr': dtype, 'fortran_order': False, 'shape': shape})
                file.write(bytes(1000))
    with pytest.raises(InputError, match='announce .* bytes, more than'):
        list(read_faces(path, 'ytf68', []))


def test_faults_of_xml(tmp_path):
    write_image(tmp_path / 'a.jpg')
    write_dlib(tmp_path / 'set.xml', [('a.jpg', [('', points_of(0)[:21]), ('', [['x', 'y']] * 68), ('', points_of(1))]),
                                      ('gone.jpg', [('', points_of(0))])])
    faults = []
    assert [face.name for face in read_faces(tmp_path / 'set.xml', 'dlib', faults)] == ['a.jpg#3']
    place = tmp_path / 'set.xml'
    assert faults == [(f'{place} (a.jpg#1)', 'has 21 parts, which are not named 0 to 67'),
                      (f'{place} (a.jpg#2)', 'has a part whose name, x or y is not a number'),
                      (str(tmp_path / 'gone.jpg'), 'does not exist')]
    (tmp_path / 'set.xml').write_text('<dataset><images>')
    with pytest.raises(InputError, match='set.xml is not XML: .* The layout dlib is an .xml file'):
        read(tmp_path / 'set.xml', 'dlib')


def test_faults_of_archives(tmp_path):
    path = tmp_path / 'set.npz'
    write_ytf68(path, ['a.jpg', 'b.jpg', 'a.jpg'], [points_of(0)] * 3, ['A', 'B', 'A'])
    faults = []
    assert [face.name for face in read_faces(path, 'ytf68', faults)] == ['a.jpg', 'b.jpg']
    assert faults == [(str(tmp_path / 'set' / 'a.jpg'), 'is listed twice')]
    np.savez(path, names=['a.jpg'] * 3, landmarks=np.zeros((2, 68, 2)), identity=['A'] * 3)
    with pytest.raises(InputError, match='set.npz has arrays of different lengths: 3 names, 2 landmarks, 3 identity'):
        read(path, 'ytf68')
    np.savez(path, names=['a.jpg'])
    with pytest.raises(InputError, match='set.npz is not an archive with the arrays names, landmarks, identity'):
        read(path, 'ytf68')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_nothing_found_says_what_the_layout_looks_like(tmp_path, layout):
    with pytest.raises(InputError, match=f'does not exist: the layout {layout} is an? '):
        read(tmp_path / 'none', layout)
    with pytest.raises(InputError, match=f'he layout {layout} is an? '):
        read(tmp_path, layout)


def test_another_layout_is_named_where_the_files_show_it(tmp_path):
    def refused(path, layout):
        with pytest.raises(InputError) as caught:
            read(path, layout)
        return str(caught.value)
    lp, flat, archive = tmp_path / 'lp', tmp_path / 'flat', tmp_path / 'set.npz'
    for number in range(7):
        write_300w_lp(lp, f'AFW_{number}_0', points_of(number))
        write_aflw2000(flat, f'image{number:05d}', points_of(number))
    write_ytf68(archive, ['a.jpg'], [points_of(1)], ['A'])
    for path, right in ((flat, 'aflw2000-3d'), (archive, 'ytf68'), (lp, '300w-lp or 300w-lp-flip')):
        for layout in set(LAYOUTS) - set(right.split(' or ')):
            assert f'Its files have the layout {right}: give that as `layout`.' in refused(path, layout)
    # Damaged files of the right layout are named one by one.
    for path in flat.glob('*.mat'):
        path.write_bytes(b'')
    faults = []
    assert not list(read_faces(flat, 'aflw2000-3d', faults)) and len(faults) == 7


def test_unknown_layout(tmp_path):
    with pytest.raises(InputError, match='`layout` wflw is unknown: give one of 300w-lp, '):
        read(tmp_path, 'wflw')


@pytest.mark.parametrize('path, layout, count', [
    ('300w/train', 'pts', 2012), ('300w/test', 'pts', 554), ('aflw2000_3d', 'aflw2000-3d', 500),
    ('ytf68/train.npz', 'ytf68', 3184), ('ytf68/test.npz', 'ytf68', 635)])
def test_real_sets(shared_data, path, layout, count):
    faces = read(shared_data / path, layout)
    names = [face.name for face in faces]
    assert len(faces) == len(set(names)) == count
    assert names == sorted(names)
    # The jaw runs below the eyes, however the head is turned, unless it lies on its side.
    below = [face.landmarks[8, 1] > face.landmarks[36:48, 1].mean() for face in faces]
    assert np.mean(below) > 0.99


def test_aflw_has_nothing_of_the_test_set(shared_data):
    faults = []
    faces = list(read_faces(shared_data / 'aflw_labels.npz', 'aflw', faults))
    # A part of the pictures is at hand; the labels of the others are read as far as their pictures' names.
    assert len(faces) == 8200 and len(faces) + len(faults) == 18709
    assert all(what == 'does not exist' for _, what in faults)
    names = {face.name for face in faces} | {os.path.basename(file) for file, _ in faults}
    test_names = {path.name for path in (shared_data / 'aflw2000_3d').glob('*.jpg')}
    assert len(names) == 18709 and len(test_names) == 500 and not names & test_names


def test_aflw_says_where_its_faces_look(shared_data):
    faces = list(read_faces(shared_data / 'aflw_labels.npz', 'aflw', []))[::100]
    given = np.array([face.pose[1] for face in faces])
    fitted = np.array([fit_pose(face.landmarks).pose[1] for face in faces])
    # Yaw has the sign of the other sets' poses, which the generic head is fitted in.
    assert np.corrcoef(given, fitted)[0, 1] > 0.97


def test_aflw2000_counts_pixels_from_one(shared_data):
    """AFLW's whole pixels n in the square cut out are found again in its 450x450 picture as (n - 1) * s + 1."""
    whole = {0: 0, 1: 0}
    total = 0
    for path in (shared_data / 'aflw2000_3d').glob('*.mat'):
        content = scipy.io.loadmat(path, variable_names=['pt2d', 'roi'])
        left, top, right, bottom = content['roi'][0].astype('float64')
        visible = content['pt2d'][:, (content['pt2d'] > 0).all(axis=0)]
        scale = np.array([[450 / (right - left + 1)], [450 / (bottom - top + 1)]])
        for origin in whole:
            pixels = (visible - origin) / scale
            whole[origin] += (abs(pixels - pixels.round()) < 1e-3).sum()
        total += visible.size
    assert whole[1] > 0.9 * total and whole[0] < 0.001 * total


def test_mirrored_landmarks_keep_their_roles(shared_data):
    points = np.stack([face.landmarks for face in read(shared_data / 'ytf68' / 'test.npz', 'ytf68')])
    width = int(points[..., 0].max()) + 1
    flipped = mirror(points, width)
    np.testing.assert_array_equal(mirror(flipped, width), points)

    def normalized(faces):
        return (faces - faces.mean(axis=1, keepdims=True)) / faces.std(axis=(1, 2), keepdims=True)

    unpermuted = points * [-1, 1]
    distance = np.linalg.norm(normalized(flipped) - normalized(points), axis=2).mean(axis=1)
    wrong = np.linalg.norm(normalized(unpermuted) - normalized(points), axis=2).mean(axis=1)
    # In a profile hardly any point has a partner that looks like it.
    turned = abs(points[:, 30, 0] - points[:, [0, 16], 0].mean(axis=1)) / (points[:, 16, 0] - points[:, 0, 0])
    assert (distance < wrong)[turned < 0.25].all() and (turned < 0.25).sum() > 400
    for faces in (points, flipped):
        assert (faces[:, 36:42, 0].mean(axis=1) < faces[:, 42:48, 0].mean(axis=1)).all()


def test_texts_of_characters_that_there_are_not(tmp_path):
    """NumPy reads them, and Python's own error names no file."""
    names = np.array(['a.jpg', 'b.jpg'])
    names.view('uint32')[3] = 0x7fffffff
    np.savez(tmp_path / 'set.npz', names=names, landmarks=np.zeros((2, 68, 2)), identity=np.array(['p', 'q']))
    with pytest.raises(InputError, match='set.npz is not an archive .*: they have characters that do not exist'):
        list(read_faces(tmp_path / 'set.npz', 'ytf68', []))
