"""Small exported networks, and what they answer."""
import functools

import cv2
import mxnet as mx
import numpy as np
import pytest
from conftest import SHARED_DATA

from gluon_lprnet import checkpoint, get_model
from gluon_lprnet.artifact import export_network, load_network
from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.deployment.export import export
from gluon_lprnet.predict.classification import preprocess
from gluon_lprnet.predict.face_alignment import make_aligner

CLASSES = ['a', 'b', 'c']
# Both hold the face: where there is none, the least difference of float arithmetic can turn the answer.
BOXES = [[45, 50, 195, 200.5], [-4, 20, 230, 240]]


def make_artifacts(folder):
    """The symbol files of two exported networks: of three classes, with random weights, and of landmarks."""
    mx.random.seed(3)
    # Blurred noise, as photos are smooth.
    pictures = [cv2.resize(noise, (64, 64)) for noise in np.random.default_rng(0).uniform(-2, 2, (16, 5, 5, 3))]
    net = get_model('lprnet_mobilenet_x0.25', classes=3)
    net.initialize(mx.init.Xavier())
    weight = net.output.weight
    # Untrained, it would answer nearly the same to every picture.
    found = net(mx.nd.array(np.transpose(pictures, (0, 3, 1, 2)))).asnumpy().std(axis=0).mean()
    weight.set_data(weight.data() * (2 / found))
    config = dict(model='lprnet_mobilenet_x0.25', input_size=64, crop_ratio=0.875, rgb_mean=[120.0, 115.0, 100.0],
                  rgb_std=[60.0, 58.0, 57.0], task='classification', num_classes=3, class_names=CLASSES,
                  small_image=False, rank=None, no_residual=False, no_l2_norm=False)
    trainer = mx.gluon.Trainer(net.collect_params(), 'sgd', kvstore=None)
    run = checkpoint.save(folder / 'run', net, trainer, {'step': 1, 'config': config})
    export(run, folder / 'exported', forms=('deployed',))
    return (folder / 'exported' / 'lprnet_mobilenet_x0.25-deployed-symbol.json',
            export_network(*load_network('lprnet_mobilenet_x0.25.faces'), folder / 'landmarks'))


def make_photos():
    """JPEG files: real faces where there are some beside the checkout, otherwise drawn ones."""
    real = sorted((SHARED_DATA / '300w' / 'test').glob('*.jpg'))[::40][:4]
    if real:
        return [path.read_bytes() for path in real]
    rng = np.random.default_rng(4)
    return [encode_jpeg(draw_face(rng)[0]) for _ in range(4)]


@functools.cache
def _aligner(network):
    return make_aligner(network)


def faces_of_align(network, picture, boxes=None):
    """What ``align`` finds in a BGR picture."""
    return _aligner(network)(picture, boxes)


def pixels_off(box):
    """How far the points of a face in a box may be off: two decimals, and 0.05% of its size.

    OpenCV cuts crops out at whole 32nds of a pixel: where the float error of one pass moves the next crop by one of
    them, it shows.
    """
    return 0.021 + 5e-4 * max(box[2] - box[0], box[3] - box[1])


def assert_faces(answer, expected):
    """The server's faces are those of ``align``, but for float error."""
    assert len(answer['faces']) == len(expected)
    for face, same in zip(answer['faces'], expected):
        assert face.keys() == same.keys() and face.get('detector') == same.get('detector')
        for key in face.keys() & {'box', 'detected', 'points', 'score'}:
            np.testing.assert_allclose(face[key], same[key], rtol=0, atol=pixels_off(same['box']))
        assert face['confidence'] == pytest.approx(same['confidence'], abs=0.01)
        assert face['pose'] == pytest.approx(same['pose'], abs=0.5)


def expected_probabilities(artifact, file):
    net, description = load_network(artifact)
    return net(preprocess(file, description)).softmax().asnumpy()[0]


def assert_classes(answer, expected):
    assert [entry['index'] for entry in answer['classes']] == np.argsort(-expected)[:len(answer['classes'])].tolist()
    for entry in answer['classes']:
        assert entry['label'] == CLASSES[entry['index']]
        assert entry['probability'] == pytest.approx(expected[entry['index']], abs=1e-4)
