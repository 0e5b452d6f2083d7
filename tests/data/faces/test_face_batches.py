import math

import cv2
import numpy as np
import pytest
from conftest import encode

from gluon_lprnet.data.batches import Normalization
from gluon_lprnet.data.faces.batches import FaceAugmentation, FaceBatches
from gluon_lprnet.data.faces.landmarks import (
    crop_matrix,
    from_outputs,
    landmark_box,
    mirror,
    to_outputs,
    transform,
    warp_crop,
)
from gluon_lprnet.data.faces.records import FaceRecord

PLAIN = Normalization((0, 0, 0), (1, 1, 1))
STILL = FaceAugmentation(color=0, blur=0, gray=0, occlusion=0, mirror=False)


def dots(points, size, colors=None, radius=5.0):
    """A dark picture with a soft dot at each point, brightest at its centre."""
    y, x = np.mgrid[:size[1], :size[0]]
    picture = np.zeros((size[1], size[0], 3))
    for number, (left, top) in enumerate(points):
        spot = np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * radius ** 2))[..., None]
        picture = np.maximum(picture, spot * (255 if colors is None else colors[number]))
    return picture.astype('uint8')


def centre_of_dot(gray, near, window=9):
    """Centre of mass about a point, in pixels."""
    left, top = np.round(near).astype(int) - window
    patch = gray[top:top + 2 * window + 1, left:left + 2 * window + 1].astype('float64')
    y, x = np.mgrid[:patch.shape[0], :patch.shape[1]]
    return np.array([left + (x * patch).sum() / patch.sum(), top + (y * patch).sum() / patch.sum()])


def face(number=0, side=160):
    """A face record with landmarks on three circles; red dots left, green right, blue in the middle."""
    angle = np.linspace(0, 2 * math.pi, 68, endpoint=False)
    landmarks = (side / 2 + side / 4 * np.column_stack([np.cos(angle), np.sin(angle)])).astype('float32')
    rng = np.random.default_rng(number)
    picture = cv2.resize(rng.integers(0, 255, (8, 8, 3), 'uint8'), (side, side))
    return FaceRecord(f'{number}.jpg', None, encode(picture), landmarks, landmark_box(landmarks), None, 1.0,
                      np.zeros(2))


@pytest.fixture
def faces():
    return [face(number) for number in range(7)]


@pytest.mark.parametrize('size', [300, 112, 50, 31])
def test_a_crop_shows_each_point_where_its_matrix_says(size):
    points = np.array([[120.0, 90.0], [300.0, 100.0], [210.0, 300.0]])
    picture = dots(points, (420, 380), radius=14)
    matrix = crop_matrix(landmark_box(points), size, 1.6)
    crop = warp_crop(picture, matrix, size)
    assert crop.shape == (size, size, 3)
    expected = transform(matrix, points)
    window = size // 12
    found = np.array([centre_of_dot(crop[..., 0], point, window) for point in expected])
    np.testing.assert_allclose(found, expected, atol=0.12)


def test_a_strong_reduction_does_not_skip_pixels():
    picture = np.zeros((800, 800, 3), 'uint8')
    picture[:, ::2] = 200
    crop = warp_crop(picture, crop_matrix((0, 0, 799, 799), 64, 1.0), 64)
    assert abs(crop[8:-8, 8:-8].astype(int) - 100).max() <= 5


def test_the_network_sees_the_box_in_the_middle():
    box = (10, 20, 110, 80)
    corners = transform(crop_matrix(box, 200, 1.25), np.array([[10, 20], [110, 80.0]]))
    np.testing.assert_allclose(corners, [[19.5, 51.5], [179.5, 147.5]])
    with pytest.raises(ValueError, match='empty'):
        crop_matrix((10, 20, 10, 80), 200)


def test_outputs_are_offsets_from_the_centre_in_units_of_the_side():
    landmarks = np.random.default_rng(0).uniform(0, 112, (3, 68, 2))
    outputs = to_outputs(landmarks, 112)
    assert outputs.shape == (3, 136)
    np.testing.assert_allclose(outputs[1, 2 * 5:2 * 5 + 2], (landmarks[1, 5] - 55.5) / 112)
    np.testing.assert_allclose(from_outputs(outputs, 112), landmarks)


@pytest.mark.parametrize('flip', [False, True])
def test_augmentation_moves_picture_and_landmarks_together(flip):
    side = 200
    points = np.array([[70, 80], [130, 75], [100, 105], [80, 135], [125, 130.0]])
    numbers = [36, 45, 30, 48, 54]  # outer eye corners, tip of the nose, corners of the mouth
    landmarks = np.full((68, 2), 100.0, 'float32')
    landmarks[numbers] = points
    landmarks[0], landmarks[16], landmarks[8] = (50, 90), (150, 90), (100, 160)
    colors = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255), (0, 255, 255)])
    record = FaceRecord('dots.png', None, encode(dots(points, (side, side), colors, radius=4)), landmarks,
                        landmark_box(landmarks), None, 1.0, np.zeros(2))
    flipped = []
    batches = FaceBatches([record], 112, 1.25, 1, PLAIN, FaceAugmentation(
        color=0, blur=0, gray=0, occlusion=0, mirror=flip), threads=1)
    for epoch in range(12):
        (data, label), = batches.epoch(epoch)
        crop = data[0].asnumpy().transpose(1, 2, 0)
        found = from_outputs(label.asnumpy()[0], 112)[numbers]
        seen = np.array([crop[int(round(y)), int(round(x))] > 128 for x, y in found])
        mirrored = not (seen == (colors > 128)).all()
        flipped.append(mirrored)
        # Numbers belong to the side of the picture: in a mirrored face the left dots have the right ones' colours.
        expected = (colors > 128)[[1, 0, 2, 4, 3]] if mirrored else colors > 128
        np.testing.assert_array_equal(seen, expected)
    assert any(flipped) == flip


def test_augmentation_stays_within_its_ranges():
    augmentation, size = FaceAugmentation(rotation=20, scale=0.1, shift=0.05), 112
    centre = np.array([(size - 1) / 2] * 2)
    angles, scales, shifts = [], [], []
    for seed in range(300):
        matrix = augmentation.matrix(np.random.default_rng(seed), size)
        angles.append(math.degrees(math.atan2(matrix[1, 0], matrix[0, 0])))
        scales.append(math.hypot(matrix[0, 0], matrix[1, 0]))
        shifts.extend(abs(transform(matrix[:2], centre) - centre) / size)
    assert 19 < max(np.abs(angles)) <= 20 and 0.9 <= min(scales) < 0.91 and 1.09 < max(scales) <= 1.1
    assert 0.049 < np.max(shifts) <= 0.05 + 1e-9


def test_the_look_without_changes_is_the_picture():
    crop = np.random.default_rng(0).integers(0, 256, (40, 40, 3), 'uint8')
    np.testing.assert_array_equal(STILL.look(np.random.default_rng(0), crop), crop)
    gray = FaceAugmentation(color=0, blur=0, gray=1, occlusion=0).look(np.random.default_rng(0), crop)
    assert (np.ptp(gray, axis=2) == 0).all()
    covered = FaceAugmentation(color=0, blur=0, gray=0, occlusion=1).look(np.random.default_rng(0), crop.copy())
    changed = (covered != crop).any(axis=2).mean()
    assert 0.005 < changed < 0.3


def test_an_epoch_is_the_same_again_and_from_any_batch_on(faces):
    batches = FaceBatches(faces, 32, 1.25, 3, PLAIN, FaceAugmentation(), threads=2, seed=5)
    whole = [(data.asnumpy(), label.asnumpy()) for data, label in batches.epoch(4)]
    assert [len(label) for _, label in whole] == [3, 3, 1] and len(batches) == 3
    for again, (data, label) in zip(batches.epoch(4, start=1), whole[1:]):
        np.testing.assert_array_equal(again.data.asnumpy(), data)
        np.testing.assert_array_equal(again.label.asnumpy(), label)
    other = np.concatenate([label.asnumpy() for _, label in batches.epoch(5)])
    assert not np.array_equal(other, np.concatenate([label for _, label in whole]))


def test_without_augmentation_the_order_is_the_files_and_pixels_are_normalized(faces):
    mean, std = (10, 20, 30), (2, 4, 8)
    (data, label), = FaceBatches(faces, 32, 1.25, 50, Normalization(mean, std)).epoch(0)
    assert data.shape == (7, 3, 32, 32)
    for number, record in enumerate(faces):
        picture = cv2.cvtColor(cv2.imdecode(np.frombuffer(record.image, 'uint8'), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        matrix = crop_matrix(record.box, 32)
        crop = warp_crop(picture, matrix, 32).astype('float64')
        np.testing.assert_allclose(data[number].asnumpy().transpose(1, 2, 0), (crop - mean) / std, rtol=1e-5)
        np.testing.assert_allclose(from_outputs(label[number].asnumpy(), 32), transform(matrix, record.landmarks),
                                   atol=1e-3)


def test_mirroring_twice_gives_the_face_back():
    landmarks = np.random.default_rng(1).uniform(0, 99, (68, 2))
    np.testing.assert_allclose(mirror(mirror(landmarks, 100), 100), landmarks)
