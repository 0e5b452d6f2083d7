"""The face networks of the package, each against its card: on real faces, turned and in the dark, and on drawn ones."""
import cv2
import mxnet as mx
import numpy as np
import pytest
from reference.landmark_networks import loop_errors

from gluon_lprnet.artifact import load_network
from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.faces.landmarks import TWO_JAWS, landmark_box
from gluon_lprnet.evaluate.landmarks import predict_landmarks
from gluon_lprnet.zoo.pretrained import cards

CARDS = [card for card in cards() if card.description.get('task') == 'landmarks']


@pytest.fixture(params=CARDS, ids=lambda card: card.name)
def card(request):
    return request.param


def nme(name, faces, jaw):
    """NME in percent, by plain loops, of faces (RGB picture, landmarks)."""
    net, description = load_network(name)
    predicted = predict_landmarks(net, description, [(picture, landmark_box(points)) for picture, points in faces],
                                  jaws=jaw)
    return 100 * np.mean(loop_errors(predicted, [points for _, points in faces]))


def test_there_are_face_networks():
    assert {card.model for card in CARDS} == {'lprnet_mobilenet_x0.25', 'lprnet_mobilenet_x0.5'}


def test_a_card_says_what_it_must(card):
    assert card.params.stat().st_size < 5e6
    assert card.keywords['classes'] == TWO_JAWS
    assert 'research' in card.facts['license']
    names = ' '.join(data['name'] for data in card.facts['data'])
    # It is for testing only.
    assert 'AFLW2000' not in names and all(data['license'] for data in card.facts['data'])
    assert card.facts['scorings_on_aflw2000_3d'] and card.facts['command'] and card.facts['recipe']


def test_real_faces_are_as_on_the_card(card, shared_data):
    faces = [(cv2.cvtColor(cv2.imread(face.image), cv2.COLOR_BGR2RGB), face.landmarks)
             for face in read_faces(shared_data / '300w' / 'test', 'pts', [])]
    expected = card.facts['accuracy']['300w_test']
    assert len(faces) == expected['faces']
    # The card's pictures were packed: cut out and encoded once more.
    assert nme(card.name, faces, 'contour') == pytest.approx(expected['jaw contour']['nme_percent'], abs=0.1)
    assert nme(card.name, faces, '3d') == pytest.approx(expected['jaw 3d']['nme_percent'], abs=0.1)


def test_drawn_faces_at_all_poses_are_found(card):
    rng = np.random.default_rng(0)
    faces = [draw_face(rng)[:2] for _ in range(20)]
    # Drawings are not what it was trained on; the mean of all faces is about 20% off.
    assert nme(card.name, faces, '3d') < 12


def test_answers_depend_on_the_picture(card):
    net, description = load_network(card.name)
    size = description['input_size']
    outputs = net(mx.nd.random.normal(shape=(2, 3, size, size))).asnumpy()
    assert outputs.shape == (2, TWO_JAWS) and np.isfinite(outputs).all()
    assert not np.allclose(outputs[0], outputs[1], atol=1e-3)
