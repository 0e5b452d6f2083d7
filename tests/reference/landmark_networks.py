"""Landmark networks of a known answer, faces to ask them about, and NME in plain loops."""
import math

import mxnet as mx
import numpy as np

from gluon_lprnet import get_model
from gluon_lprnet.artifact import export_network
from gluon_lprnet.data.batches import IMAGENET_MEAN, IMAGENET_STD
from gluon_lprnet.data.faces.head_model import MODEL
from gluon_lprnet.data.faces.landmarks import landmark_box
from gluon_lprnet.data.faces.records import FaceRecord, encode_record
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.data.recordio import write_records

# Of the networks below: 68 points from the box's center, in units of its longer side.
ANSWER = np.random.default_rng(3).uniform(-0.5, 0.5, (68, 2))
# The same of a face that looks straight ahead: seen again in its own box, or in the mirror, it stays where it is.
FRONTAL = (MODEL[:, :2] - [0, (MODEL[:, 1].min() + MODEL[:, 1].max()) / 2]) / np.ptp(MODEL[:, :2], axis=0).max()
CROP_SCALE = 1.5


def make_network(folder, model='lprnet_mobilenet_x0.25', outputs=136, scale=CROP_SCALE, answer=ANSWER):
    """A network whose answer is the same whatever it sees, as an exported symbol."""
    net = get_model(model, classes=outputs)
    net.initialize(mx.init.Xavier())
    net.output.weight.set_data(mx.nd.zeros(net.output.weight.shape))
    if outputs == 136:
        net.output.bias.set_data(mx.nd.array(answer.ravel() / scale))
    return export_network(net, dict(task='landmarks', model=model, num_classes=outputs, input_size=32, crop_ratio=1.0,
                                    crop_scale=scale, rgb_mean=list(IMAGENET_MEAN), rgb_std=list(IMAGENET_STD),
                                    class_names=None), folder)


def make_face(rng, number, yaw=None):
    points = (rng.uniform(20, 80, (68, 2))).astype('float32')
    image = encode_jpeg(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8), quality=90)
    pose = None if yaw is None else np.radians([5, yaw, -5]).astype('float32')
    return FaceRecord(f'face {number}.png', None, image, points, landmark_box(points), pose, 2.5,
                      np.array([30, -12], dtype='float32'))


def write_faces(prefix, yaws, seed=0):
    rng = np.random.default_rng(seed)
    faces = [make_face(rng, number, yaw) for number, yaw in enumerate(yaws)]
    write_records(prefix, [encode_record(face) for face in faces])
    return f'{prefix}.rec', faces


def loop_errors(predicted, truth):
    """The paper's formula, spelled out."""
    errors = []
    for face, true_face in zip(predicted, truth):
        xs, ys = [x for x, _ in true_face], [y for _, y in true_face]
        normalizer = math.sqrt((max(xs) - min(xs)) * (max(ys) - min(ys)))
        errors.append(sum(math.hypot(x - u, y - v) for (x, y), (u, v) in zip(face, true_face))
                      / len(true_face) / normalizer)
    return errors


def expected_points(faces, answer=ANSWER):
    """What an answer of the networks is in pixels of the set's images."""
    points = []
    for face in faces:
        left, top, right, bottom = face.box.astype('float64')
        side = max(right - left, bottom - top)
        points.append([[2.5 * ((left + right) / 2 + x * side) + 30, 2.5 * ((top + bottom) / 2 + y * side) - 12]
                       for x, y in answer])
    return np.array(points)
