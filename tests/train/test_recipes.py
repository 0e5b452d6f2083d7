"""The recipes as the paper gives them, each built from its flags and measured: what it does, not that it is called."""
import math

import mxnet as mx
import numpy as np
import pytest
from conftest import encode
from mxnet import gluon

from gluon_lprnet.blocks import LPR
from gluon_lprnet.data.faces.landmarks import landmark_box
from gluon_lprnet.data.faces.records import FaceRecord, encode_record
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.data.recordio import write_records
from gluon_lprnet.paper import figure2
from gluon_lprnet.train import command, face, imagenet
from gluon_lprnet.train.config import make_parser, parse
from gluon_lprnet.train.face import LandmarkConfig
from gluon_lprnet.train.imagenet import ClassificationConfig
from gluon_lprnet.train.loop import Run, Schedule

# Of "Image Classification" and Table 4; what the paper does not say is in docs/reproducing.md. The crop is cut out of
# a picture of `side`, scaled by a factor within `scale`; validation and tuning scale by `plain`.
SMALL = dict(model='lprnet_mobilenet_x0.03125', classes=10, batch=128, lr=0.25, warmup=1, wd=5e-4, light=16,
             side=32)
IMAGES = {
    'mobilenet': dict(model='lprnet_mobilenet_x0.03125', classes=1000, batch=256, lr=0.5, warmup=0, wd=1e-4, epochs=210,
                      tuning=5, light=32, side=480, size=224, scale=(256 / 480, 1), plain=256 / 480, pad=0),
    'shufflenet': dict(model='lprnet_shufflenetv2_x0.5', classes=1000, batch=400, lr=0.5, warmup=0, wd=1e-4, epochs=400,
                       tuning=5, light=32, side=480, size=224, scale=(256 / 480, 1), plain=256 / 480, pad=0),
    'cifar10': dict(SMALL, epochs=15, tuning=1, size=32, scale=(1, 1), plain=1, pad=4),
    'table4': dict(SMALL, epochs=8, tuning=0, size=64, scale=(2.25, 2.25), plain=2, pad=0),
}
# Of "Large Poses Face Alignment".
FACES = {'paper': dict(lr=5e-4, falls=[]), 'paper-half': dict(lr=4e-4, falls=[15])}
STEPS = 3
SMALL_FLAGS = ['--preset', 'cifar10', '--model', 'lprnet_mobilenet_x0.03125']
COUNT = 120


def config_of(config_class, *flags):
    return parse(make_parser(config_class, None), config_class, [*flags, '--save-dir', '/nowhere'])[0]


@pytest.fixture(autouse=True)
def seeded():
    mx.random.seed(0)


@pytest.fixture(scope='module')
def ramps(tmp_path_factory):
    """Records of pictures by their side: red rises to the right, green to the bottom, blue is flat."""
    folder, recs = tmp_path_factory.mktemp('ramps'), {}
    for side in (32, 480):
        y, x = np.mgrid[:side, :side] * (100 / side) + 60
        picture = encode(np.stack([x, y, np.full_like(x, 128)], axis=-1).round().astype('uint8'))
        write_records(folder / str(side), [(number % 10, picture) for number in range(COUNT)])
        recs[side] = f'{folder / str(side)}.rec'
    return recs


@pytest.fixture(params=IMAGES)
def images(request, ramps):
    """Name of a recipe, what it is, its configuration by flags, its task."""
    recipe = IMAGES[request.param]
    flags = ['--model', recipe['model'], '--rec-train', ramps[recipe['side']], '--rec-val', ramps[recipe['side']]]
    # The paper's own are taken for its networks when no preset is named. The pictures have no names of classes.
    preset = ['--num-classes', '1000'] if recipe['classes'] == 1000 else ['--preset', request.param]
    config = config_of(ClassificationConfig, *preset, *flags)
    return recipe, config, imagenet.build_task(config)


@pytest.fixture(params=FACES)
def faces(request, face_records):
    config = config_of(LandmarkConfig, '--preset', request.param, '--model', 'lprnet_mobilenet_x0.03125', '--rec-train',
                       face_records, '--rec-val', face_records)
    return FACES[request.param], config, face.build_task(config)


def shifted_face(picture):
    """Landmarks on a square of 100 pixels about the middle, all but the corners at its right."""
    landmarks = np.tile(np.float32([145, 100]), (68, 1))
    landmarks[[36, 45, 48, 54]] = [[50, 50], [150, 50], [50, 150], [150, 150]]
    return FaceRecord('face.jpg', None, encode_jpeg(picture, quality=100), landmarks, landmark_box(landmarks), None,
                      1.0, np.zeros(2))


@pytest.fixture(scope='module')
def face_records(tmp_path_factory):
    """One half of the faces are of one color, the other striped in gray."""
    flat = np.full((200, 200, 3), (160, 120, 80), 'uint8')
    stripes = np.repeat(np.where(np.arange(200) // 4 % 2, 180, 60).astype('uint8')[None, :, None], 200, 0).repeat(3, 2)
    prefix = tmp_path_factory.mktemp('faces') / 'faces'
    write_records(prefix, [encode_record(shifted_face(stripes if number % 2 else flat)) for number in range(COUNT)])
    return f'{prefix}.rec'


def measured(batches, config):
    """Of each picture of ramps in training: scale, whether it is flipped, light added, place of its middle."""
    data = np.concatenate([batch.data.asnumpy() for batch in batches])
    red, green, blue = (data * np.reshape(config.rgb_std, (3, 1, 1))
                        + np.reshape(config.rgb_mean, (3, 1, 1))).transpose(1, 0, 2, 3)
    half = config.input_size // 2
    # Near the middle, which padding does not reach.
    near = slice(half - half // 3, half + half // 3 + 1)
    slope = (red[:, half, near.stop - 1] - red[:, half, near.start]) / (near.stop - 1 - near.start)
    light = blue[:, half, half] - 128
    return slope, light, green[:, half, half] - light, data


def test_settings_and_rates_of_images(images):
    recipe, config, _ = images
    assert (config.num_classes, config.batch_size, config.num_epochs, config.tuning_epochs) == (
        recipe['classes'], recipe['batch'], recipe['epochs'], recipe['tuning'])
    assert (config.optimizer, config.momentum, config.wd, config.seed) == ('sgd', 0.9, recipe['wd'], 0)
    schedule = Schedule(config, STEPS)
    warm, whole, tuned = (STEPS * recipe[name] for name in ('warmup', 'epochs', 'tuning'))
    expected = [recipe['lr'] * step / warm for step in range(warm)]
    expected += [recipe['lr'] / 2 * (1 + math.cos(math.pi * step / (whole - warm))) for step in range(whole - warm)]
    expected += [1e-3 / 2 * (1 + math.cos(math.pi * step / tuned)) for step in range(tuned)]
    found = [schedule.learning_rate(step) for step in range(schedule.epochs * STEPS)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def test_settings_and_rates_of_faces(faces):
    recipe, config, _ = faces
    assert (config.optimizer, config.num_epochs, config.batch_size, config.wd, config.tuning_epochs) == (
        'adam', 60, 100, 0, 0)
    assert (config.num_classes, config.loss, config.augmentation, config.seed) == (136, 'l2', 'mild', 0)
    schedule = Schedule(config, STEPS)
    found = [schedule.learning_rate(step) for step in range(60 * STEPS)]
    if recipe['falls']:
        expected = [4e-4] * (15 * STEPS) + [2e-4] * (45 * STEPS)
    else:
        expected = [recipe['lr'] / 2 * (1 + math.cos(math.pi * step / (60 * STEPS))) for step in range(60 * STEPS)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def deviations(net):
    """Weights of convolutions and fully connected layers over sqrt(1 / mean of fan in and out), pooled."""
    pooled = []
    for name, parameter in net.collect_params().items():
        shape = parameter.shape
        if name.endswith('weight'):
            area = np.prod(shape[2:])
            fan = (shape[0] + shape[1]) * area / 2
            pooled.append(parameter.data().asnumpy().ravel() * math.sqrt(fan))
    return np.concatenate(pooled)


def test_initial_weights_of_images_are_he_s(images):
    # He et al. 2015 for PReLU of slope 0.25: normal, of variance 2 / (1 + 0.25^2) over the fan.
    values = deviations(images[2].net)
    assert values.std() == pytest.approx(math.sqrt(2 / 1.0625), rel=0.05)
    assert abs(values).max() > 2.5 * values.std()


def test_initial_weights_of_faces_are_xavier_s(faces):
    # Glorot and Bengio 2010: uniform up to sqrt(3) over the root of the fan.
    values = deviations(faces[2].net)
    assert values.std() == pytest.approx(1, rel=0.05)
    assert math.sqrt(3) * 0.98 < abs(values).max() <= math.sqrt(3) * 1.0001


def test_decay_is_that_of_weights_alone(images, tmp_path, monkeypatch):
    recipe, config, task = images
    monkeypatch.setattr('gluon_lprnet.train.loop.Journal', lambda *_: None)
    trainer = Run(task, config, None).trainer
    assert trainer._optimizer.wd == recipe['wd']
    spared = {name for name, parameter in task.net.collect_params().items() if parameter.wd_mult == 0}
    assert spared == {name for name in task.net.collect_params() if name.endswith(('gamma', 'beta', 'bias'))}


def test_augmentation_and_crop_of_images(images):
    recipe, config, task = images
    labels = []

    def noted():
        for batch in task.batches(0, 0):
            labels.extend(batch.label.asnumpy().tolist())
            yield batch
    slope, light, place, data = measured(noted(), config)
    # Each picture has its own class, and all of it.
    assert sorted(labels) == sorted(number % 10 for number in range(COUNT))
    assert not (config.mixup or config.label_smoothing)
    assert len(slope) == COUNT and data.shape[2:] == (recipe['size'],) * 2
    assert 0.35 < (slope < 0).mean() < 0.65
    scale = 100 / recipe['side'] / abs(slope)
    low, high = recipe['scale']
    assert scale.min() > low * 0.96 and scale.max() < high * 1.05
    if low < high:
        assert scale.min() < low * 1.1 and scale.max() > high * 0.9
    assert abs(light).max() <= recipe['light'] + 1
    assert light.min() < -0.75 * recipe['light'] and light.max() > 0.75 * recipe['light']
    # Crops lie at random.
    assert place.std() > 1.5
    # Gray pixels of the padding at a border, in most pictures.
    means = np.reshape(config.rgb_mean, (3, 1, 1, 1))
    border = data.transpose(1, 0, 2, 3) * np.reshape(config.rgb_std, (3, 1, 1, 1)) + means - light[:, None, None]
    gray = (abs(border - 127).max(axis=0) < 1.5)[:, [0, -1], :].all(axis=2).any(axis=1)
    assert gray.mean() > 0.5 if recipe['pad'] else not gray.any()


def test_tuning_and_validation_are_the_plain_center_crop(images):
    recipe, config, task = images
    slope, light, place, data = measured(task.batches(config.num_epochs, 0), config)
    assert (slope > 0).all() and abs(light).max() <= 1
    np.testing.assert_allclose(100 / recipe['side'] / slope, recipe['plain'], rtol=0.05)
    assert place.std() < 0.1 and place.mean() == pytest.approx(110, abs=2.5)
    assert (data == data[0]).all()


@pytest.mark.parametrize('flag, changed', [('--no-mirror', 'flip'), ('--max-random-illumination', 'light')])
def test_flags_of_augmentation_of_images(ramps, flag, changed):
    values = {'--no-mirror': [], '--max-random-illumination': ['0']}[flag]
    config = config_of(ClassificationConfig, *SMALL_FLAGS, '--rec-train', ramps[32], '--rec-val', ramps[32], flag,
                       *values)
    slope, light, _, _ = measured(imagenet.build_task(config).batches(0, 0), config)
    assert ((slope < 0).any(), abs(light).max() > 1) == (changed != 'flip', changed != 'light')


def face_batches(task, config, epochs):
    for epoch in epochs:
        for data, label in task.batches(epoch, 0):
            pixels = data.asnumpy() * np.reshape(config.rgb_std, (3, 1, 1)) + np.reshape(config.rgb_mean, (3, 1, 1))
            yield from zip(pixels, label.asnumpy().reshape(-1, 68, 2))


def test_augmentation_of_faces(faces):
    _, config, task = faces
    flips, sizes, turns, middles, flat, striped = [], [], [], [], [], []
    for picture, points in face_batches(task, config, range(3)):
        corners = points[[36, 45, 48, 54]]
        flips.append((points[8] - corners.mean(axis=0))[0] < 0)
        top = corners[1] - corners[0]
        sizes.append(np.linalg.norm(top))
        turns.append(math.degrees(math.atan2(top[1], top[0])))
        middles.append(corners.mean(axis=0))
        (striped if (abs(np.diff(picture[1], axis=1)) > 3).mean() > 0.1 else flat).append(picture)
    assert 0.4 < np.mean(flips) < 0.6
    # The square of 1.25 times the box is turned with it, by up to 30 degrees, and scaled by 0.9 to 1.1.
    assert -30.5 < min(turns) < -25 and 25 < max(turns) < 30.5
    scales = np.array(sizes) * 1.25
    assert 0.89 < scales.min() < 0.93 and 1.07 < scales.max() < 1.11
    # Shifted by up to 5% of the side.
    for shifts in np.transpose(middles):
        assert -0.0505 < shifts.min() < -0.04 and 0.04 < shifts.max() < 0.0505
    # A rectangle covers a fifth of the faces: pictures of one color are no longer of one.
    covered = [picture.std(axis=(1, 2)).max() > 3 for picture in flat]
    assert 0.12 < np.mean(covered) < 0.3
    middle = np.array([np.median(picture, axis=(1, 2)) for picture in flat])
    # Brightness times contrast.
    assert middle.mean(axis=1).std() > 10
    # A tenth has no color.
    assert 0.04 < (np.ptp(middle, axis=1) < 2).mean() < 0.2
    # A tenth is blurred: the stripes are flatter than contrast alone makes them.
    greens = [picture[1] for picture in striped]
    steepness = [np.percentile(abs(np.diff(green, axis=1)), 95) / max(np.ptp(np.percentile(green, (5, 95))), 1)
                 for green in greens]
    assert 0.02 < np.mean(np.array(steepness) < 0.6 * np.median(steepness)) < 0.25


def test_wild_augmentation_of_faces(face_records):
    config = config_of(LandmarkConfig, '--model', 'lprnet_mobilenet_x0.03125', '--rec-train', face_records, '--rec-val',
                       face_records, '--augmentation', 'wild', '--no-mirror')
    turns, dark = [], []
    for picture, points in face_batches(face.build_task(config), config, range(3)):
        top = points[45] - points[36]
        turns.append(abs(math.degrees(math.atan2(top[1], top[0]))))
        # The darkest of the pictures is 60 where it is brightest.
        dark.append(np.percentile(picture, 95) < 60)
    # Three in ten are turned by up to 120 degrees, of which three quarters lie beyond 30.
    assert 0.15 < np.mean(np.array(turns) > 31) < 0.3 and 105 < max(turns) < 121
    assert np.mean(dark) > 0.05


def test_flags_of_faces(face_records):
    config = config_of(LandmarkConfig, '--model', 'lprnet_mobilenet_x0.03125', '--rec-train', face_records, '--rec-val',
                       face_records, '--no-mirror', '--crop-scale', '2', '--tuning-epochs', '1')
    task = face.build_task(config)
    augmented, plain = (list(face_batches(task, config, [epoch])) for epoch in (0, 60))
    for points in (points for _, points in augmented):
        corners = points[[36, 45, 48, 54]]
        assert points[8, 0] > corners[:, 0].mean() and 0.44 < np.linalg.norm(corners[1] - corners[0]) < 0.56
    for _, points in plain:
        np.testing.assert_allclose(points[[36, 54]], [[-0.25, -0.25], [0.25, 0.25]], atol=1e-3)


def test_loss_of_images(images):
    task = images[2]
    outputs = np.float32([[1, 2, -1], [0, 3, 0.5]])
    expected = np.log(np.exp(outputs).sum(axis=1)) - outputs[[0, 1], [2, 1]]
    np.testing.assert_allclose(task.loss(mx.nd.array(outputs), mx.nd.array([2, 1])).asnumpy(), expected, rtol=1e-4)


def test_loss_of_faces_is_half_the_square_summed(faces):
    outputs, label = np.zeros((2, 136), 'float32'), np.zeros((2, 136), 'float32')
    outputs[0, :4], label[1, 5] = [1, -2, 0.5, 0], 3
    np.testing.assert_allclose(faces[2].loss(mx.nd.array(outputs), mx.nd.array(label)).asnumpy(), [2.625, 4.5])


@pytest.mark.parametrize('dtype, rank_space', [('float32', True), ('bfloat16', False)])
def test_the_form_of_the_normalization_in_training(ramps, dtype, rank_space):
    config = config_of(ClassificationConfig, *SMALL_FLAGS, '--rec-train', ramps[32], '--rec-val', ramps[32], '--dtype',
                       dtype)
    found = []
    imagenet.build_task(config).net.apply(
        lambda block: found.append(block._rank_space) if isinstance(block, LPR) else None)
    assert found == [rank_space] * 8


def test_the_seed_gives_order_augmentation_and_initial_weights(ramps, tmp_path, monkeypatch):
    tasks = []
    monkeypatch.setattr(command, '_fit', lambda task, *_: tasks.append(task) or {})
    monkeypatch.setattr(command, 'export_network', lambda *_: None)
    for number, seed in enumerate(['0', '0', '1']):
        assert imagenet.main([*SMALL_FLAGS, '--rec-train', ramps[32], '--rec-val', ramps[32], '--seed', seed,
                              '--save-dir', str(tmp_path / str(number))]) == 0
    weights = [deviations(task.net) for task in tasks]
    first = [next(iter(task.batches(0, 0))) for task in tasks]
    labels, data = ([array.asnumpy() for array in arrays] for arrays in zip(*((b.label, b.data) for b in first)))
    for found in (weights, labels, data):
        np.testing.assert_array_equal(found[0], found[1])
        assert (found[0] != found[2]).any()


def test_figure_2_ends_at_the_original_s_accuracy(monkeypatch):
    found = []
    monkeypatch.setattr(figure2, 'fit', lambda task, *_: found.append(task))
    monkeypatch.setattr(figure2.ModuleTrainingConfig, 'from_args', lambda *_, **__: None)
    monkeypatch.setattr(figure2.checkpoint, 'newest', lambda _: None)
    args, inputs = type('Args', (), dict(seed=0)), {'train': [None], 'val': None}
    figure2._train(LPR(16), gluon.nn.HybridSequential(), inputs, None, 0.75, {}, args, figure2.Path('LPR'))
    assert [found[0].reached({'top1': accuracy}) for accuracy in (0.7499, 0.75, 0.8)] == [False, True, True]
