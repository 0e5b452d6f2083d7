"""FaceAligner and ``align`` with the networks of the package: nothing is trained first."""
import io
import json
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reference.commands import command
from reference.landmark_networks import loop_errors

import gluon_lprnet
from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.faces.landmarks import landmark_box
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
        assert np.array_equal(face.landmarks, found[0][0].landmarks)
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
    expected = aligner.predict(pictures, boxes)
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
                   for (one,), (other,) in zip(result, expected * 3))
    assert len(found) == 4


def test_what_cannot_be_aligned_is_named(aligner, drawn, tmp_path):
    with pytest.raises(InputError, match='none.jpg does not exist'):
        aligner.predict(tmp_path / 'none.jpg')
    with pytest.raises(InputError, match='picture 1 is empty'):
        aligner.predict([drawn[0][0], b''])
    with pytest.raises(InputError, match='1 pictures and boxes of 2'):
        aligner.predict(drawn[0][0], [[], []])
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
