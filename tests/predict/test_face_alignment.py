"""FaceAligner and ``align`` with the networks of the package: nothing is trained first."""
import io
import json
import shutil
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from reference.commands import command
from reference.landmark_networks import loop_errors

import gluon_lprnet
from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.faces.head_model import hidden_landmarks, rotation
from gluon_lprnet.data.faces.landmarks import landmark_box, mirror
from gluon_lprnet.data.images import read_image
from gluon_lprnet.predict import align
from gluon_lprnet.utils.errors import InputError


@pytest.fixture(scope='module')
def drawn():
    """Drawn faces as (RGB picture, landmarks)."""
    rng = np.random.default_rng(1)
    return [draw_face(rng)[:2] for _ in range(6)]


@pytest.fixture(scope='module')
def boxes(drawn):
    return [[landmark_box(points)] for _, points in drawn]


@pytest.fixture(scope='module')
def aligner():
    return gluon_lprnet.FaceAligner()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


def test_landmarks_of_drawn_faces(aligner, drawn, boxes, tmp_path):
    found = aligner.predict([picture for picture, _ in drawn], boxes)
    for (_, points), (face,), (box,) in zip(drawn, found, boxes):
        assert np.allclose(face.box, box, atol=0.01) and face.score is None
        # Drawings are not what it was trained on.
        assert np.linalg.norm(face.landmarks - points, axis=1).mean() < 0.12 * np.sqrt(np.prod(box[2:] - box[:2]))
    path = tmp_path / 'face.png'
    path.write_bytes(png(drawn[0][0]))
    for image in (path, str(path), path.read_bytes(), drawn[0][0]):
        (face,), = aligner.predict(image, boxes[:1])
        # To the rounding of a batch of one: they are given to a hundredth.
        assert np.allclose(face.landmarks, found[0][0].landmarks, rtol=0, atol=0.015)
    assert isinstance(gluon_lprnet.load('lprnet_mobilenet_x0.25.faces'), gluon_lprnet.FaceAligner)


def test_the_two_jaws_differ_in_the_jaw_alone(aligner, drawn, boxes):
    pictures = [picture for picture, _ in drawn]
    contour = gluon_lprnet.FaceAligner(jaw='contour').predict(pictures, boxes)
    apart = np.array([np.abs(one.landmarks - other.landmarks).max(axis=1)
                      for (one,), (other,) in zip(aligner.predict(pictures, boxes), contour)])
    assert apart[:, 17:].max() < 0.02 and apart[:, :17].max() > 1
    with pytest.raises(InputError, match='give 3d or contour'):
        gluon_lprnet.FaceAligner(jaw='2d')


def test_threads_do_not_disturb_each_other(aligner, drawn, boxes):
    pictures = [picture for picture, _ in drawn]
    expected = aligner.predict(pictures * 3, boxes * 3)
    found = {}

    def work(number):
        found[number] = aligner.predict(pictures * 3, boxes * 3)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in found.values():
        assert all(np.array_equal(one.landmarks, other.landmarks)
                   for (one,), (other,) in zip(result, expected))
    assert len(found) == 4


def turned(picture, points, degrees):
    """A picture and points turned clockwise about its middle."""
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1)
    return (cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE),
            points @ matrix[:, :2].T + matrix[:, 2])


@pytest.fixture(scope='module')
def real(shared_data):
    """Real faces as (RGB picture, landmarks with the visible contour)."""
    faces = list(read_faces(shared_data / '300w' / 'test', 'pts', []))[5::110]
    return [(read_image(face.image), face.landmarks.astype('float64')) for face in faces]


def best_errors(found, truth):
    """For each picture the least NME of its faces, and the face that has it."""
    return [min(((loop_errors([face.landmarks], [points])[0], face) for face in faces), key=lambda pair: pair[0])
            for faces, points in zip(found, truth)]


@pytest.mark.parametrize('degrees', [60, 135, 180, -90])
def test_faces_at_any_angle(real, degrees):
    aligner = gluon_lprnet.FaceAligner(jaw='contour')
    pictures, truth = zip(*(turned(picture, points, degrees) for picture, points in real))
    found = best_errors(aligner.predict(pictures), truth)
    errors, faces = zip(*found)
    assert np.median(errors) < 0.05 and max(errors) < 0.15
    for face in faces:
        # Near the front, roll is the angle of the face in the picture.
        assert abs((face.pose.roll - degrees + 180) % 360 - 180) < 25 and abs(face.pose.yaw) < 50
    assert np.median([face.confidence for face in faces]) > 0.9


def test_confidence_tells_faces_from_what_is_none(real, aligner):
    boxes = [[landmark_box(points)] for _, points in real]
    pictures = [picture for picture, _ in real]
    noise = [np.random.default_rng(0).integers(0, 256, picture.shape, 'uint8') for picture in pictures]
    sure, unsure = ([face.confidence for face, in aligner.predict(images, boxes)] for images in (pictures, noise))
    assert min(sure) > 0.8 and max(unsure) < 0.3


def test_pictures_together_are_as_one_by_one(real, aligner):
    pictures = [picture for picture, _ in real] + [np.zeros((50, 60, 3), 'uint8')]
    together = aligner.predict(pictures)
    alone = [faces for picture in pictures for faces in aligner.predict(picture)]
    assert len(together) == len(pictures) and together[-1] == [] and sum(map(len, together)) >= len(real)
    for one, other in zip(together, alone):
        assert len(one) == len(other)
        for face, same in zip(one, other):
            assert np.allclose(face.landmarks, same.landmarks, atol=0.02) and np.array_equal(face.visible, same.visible)


def test_what_the_head_hides_is_not_visible():
    """A profile's far half; with its visible contour, the jaw is what is seen of it."""
    hidden = hidden_landmarks(np.stack([rotation(np.radians(pose)) for pose in [(0, 0, 0), (0, 75, 0), (0, -75, 0)]]))
    front, left, right = hidden
    assert not front.any()
    # A positive yaw looks to the left of the picture, where the far eye, brow and jaw are.
    far, near = [*range(7), *range(17, 21), 36, 37, 39, 41, 48], [*range(9, 17), *range(22, 27), *range(42, 48), 54]
    assert left[far].all() and not left[near].any() and not left[30]
    assert np.array_equal(right, left[mirror(np.stack([np.arange(68)] * 2, axis=-1), 1)[:, 1]])


def test_the_pose_is_that_of_the_head(aligner, shared_data):
    """Against the angles of AFLW2000-3D, of faces that look less than 60 degrees away."""
    if not (shared_data / 'aflw2000_3d').is_dir():
        pytest.skip('no AFLW2000-3D')
    faces = [face for face in read_faces(shared_data / 'aflw2000_3d', 'aflw2000-3d', [])
             if np.abs(face.pose).max() < np.radians(60)][::20]
    found = aligner.predict([face.image for face in faces], [[face.box] for face in faces])
    for name, angle, bound in (('yaw', 1, 6), ('pitch', 0, 8), ('roll', 2, 6)):
        errors = [getattr(face.pose, name) - np.degrees(of_set.pose[angle]) for (face,), of_set in zip(found, faces)]
        # The sets' angles are those of another head: what is constant is the difference between the two.
        assert np.abs(errors - np.median(errors)).mean() < bound, name


def test_what_cannot_be_aligned_is_named(aligner, drawn, tmp_path):
    with pytest.raises(InputError, match='none.jpg does not exist'):
        aligner.predict(tmp_path / 'none.jpg')
    with pytest.raises(InputError, match='picture 1 is empty'):
        aligner.predict([drawn[0][0], b''])
    with pytest.raises(InputError, match='1 pictures and boxes of 2'):
        aligner.predict(drawn[0][0], [[], []])
    height, width = drawn[0][0].shape[:2]
    for boxes, message in (([[1, 2, 30, 40]], 'picture 0: 1 is not a box: give'), ([4], 'picture 0: 4 is not a list'),
                           ([[[1, 2, np.nan, 40]]], 'nan, 40. is not a box'), ({'a.jpg': []}, 'give a list of boxes'),
                           ([np.array([[30, 2, 1, 40]])], 'at least one pixel'),
                           ([[[width, 2, width + 30, 40]]], f'outside of the {width}x{height} pixels')):
        with pytest.raises(InputError, match=message):
            aligner.predict(drawn[0][0], boxes)
    with pytest.raises(InputError, match='picture 0 is 32767x3 pixels: at most 32,766 a side'):
        aligner.predict(np.zeros((3, 32767, 3), 'uint8'))
    assert aligner.predict(np.zeros((64, 64, 3), 'uint8')) == [[]]


def test_align_needs_no_network_of_ones_own(tmp_path, shared_data):
    faces = list(read_faces(shared_data / '300w' / 'test', 'pts', []))[::60]
    folder = tmp_path / 'photos'
    folder.mkdir()
    for face in faces:
        shutil.copy(face.image, folder)
    assert command(align, 'align', folder, '--out', tmp_path / 'out', '--jaw', 'contour') == 0
    found = {entry['image']: entry['faces']
             for entry in json.loads((tmp_path / 'out' / 'landmarks.json').read_text())['images']}
    errors = [loop_errors([each['points']], [face.landmarks])[0]
              for face in faces for each in found[Path(face.image).name]]
    # With a detector's boxes, and where it sees a face in something else.
    assert len(errors) >= 0.8 * len(faces) and np.median(errors) < 0.06
