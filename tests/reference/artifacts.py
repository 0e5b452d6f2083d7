"""Small exported networks, and what they answer."""
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
from gluon_lprnet.evaluate.landmarks import predict_landmarks
from gluon_lprnet.predict.classification import preprocess
from gluon_lprnet.predict.detectors import HaarDetector

CLASSES = ['a', 'b', 'c']
BOXES = [[20, 30, 90, 80.5], [-10, -5, 60, 70]]


def make_artifacts(folder):
    """Two exported networks of random weights: the symbol file of a classification and of landmarks."""
    mx.random.seed(3)
    # Blurred noise, as photos are smooth.
    pictures = [cv2.resize(noise, (64, 64)) for noise in np.random.default_rng(0).uniform(-2, 2, (16, 5, 5, 3))]
    nets = []
    for outputs, spread in ((3, 2), (136, 0.3)):
        net = get_model('lprnet_mobilenet_x0.25', classes=outputs)
        net.initialize(mx.init.Xavier())
        weight = net.output.weight
        # Untrained, it would answer nearly the same to every picture.
        found = net(mx.nd.array(np.transpose(pictures, (0, 3, 1, 2)))).asnumpy().std(axis=0).mean()
        weight.set_data(weight.data() * (spread / found))
        nets.append(net)
    config = dict(model='lprnet_mobilenet_x0.25', input_size=64, crop_ratio=0.875, crop_scale=1.2,
                  rgb_mean=[120.0, 115.0, 100.0], rgb_std=[60.0, 58.0, 57.0])
    trainer = mx.gluon.Trainer(nets[0].collect_params(), 'sgd', kvstore=None)
    flags = dict(config, task='classification', num_classes=3, class_names=CLASSES, small_image=False, rank=None,
                 no_residual=False, no_l2_norm=False)
    run = checkpoint.save(folder / 'run', nets[0], trainer, {'step': 1, 'config': flags})
    export(run, folder / 'exported', forms=('deployed',))
    return (folder / 'exported' / 'lprnet_mobilenet_x0.25-deployed-symbol.json',
            export_network(nets[1], dict(config, task='landmarks', num_classes=136, class_names=None),
                           folder / 'landmarks'))


def make_photos():
    """JPEG files: real faces where there are some beside the checkout, otherwise drawn ones."""
    real = sorted((SHARED_DATA / '300w' / 'test').glob('*.jpg'))[::40][:4]
    if real:
        return [path.read_bytes() for path in real]
    rng = np.random.default_rng(4)
    return [encode_jpeg(draw_face(rng)[0]) for _ in range(4)]


def faces_in_one_pass(artifact, picture):
    """What the server finds in a BGR picture: the cascades' faces, each seen by the network once."""
    found = HaarDetector()(picture)
    boxes = [np.round(face.landmark_box(), 2) for face in found]
    faces = [(picture[..., ::-1], box) for box in boxes]
    points = predict_landmarks(*load_network(artifact), faces) if faces else []
    return [{'box': box.tolist(), 'detected': np.round(face.box, 2).tolist(), 'detector': face.kind,
             'score': face.score, 'points': each.tolist()} for face, box, each in zip(found, boxes, points)]


def expected_probabilities(artifact, file):
    net, description = load_network(artifact)
    return net(preprocess(file, description)).softmax().asnumpy()[0]


def assert_classes(answer, expected):
    assert [entry['index'] for entry in answer['classes']] == np.argsort(-expected)[:len(answer['classes'])].tolist()
    for entry in answer['classes']:
        assert entry['label'] == CLASSES[entry['index']]
        assert entry['probability'] == pytest.approx(expected[entry['index']], abs=1e-4)
