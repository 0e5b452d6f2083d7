import math

import cv2
import numpy as np
import pytest
from conftest import encode

from gluon_lprnet.data.batches import Normalization
from gluon_lprnet.data.faces.batches import FaceAugmentation, FaceBatches
from gluon_lprnet.data.faces.landmarks import (crop_matrix, from_outputs, known_jaw, landmark_box, mirror, to_outputs,
                                               transform, warp_crop)
from gluon_lprnet.data.faces.records import FaceRecord

PLAIN = Normalization((0, 0, 0), (1, 1, 1))
STILL = FaceAugmentation(color=0, blur=0, gray=0, occlusion=0, mirror=False)


def dots(points, size, colors=None, radius=5.0):
    """A dark picture with a soft dot at each point, brightest at its center."""
    y, x = np.mgrid[:size[1], :size[0]]
    picture = np.zeros((size[1], size[0], 3))
    for number, (left, top) in enumerate(points):
        spot = np.exp(-((x - left) ** 2 + (y - top) ** 2) / (2 * radius ** 2))[..., None]
        picture = np.maximum(picture, spot * (255 if colors is None else colors[number]))
    return picture.astype('uint8')


def center_of_dot(gray, near, window=9):
    """Center of mass about a point, in pixels."""
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
    found = np.array([center_of_dot(crop[..., 0], point, window) for point in expected])
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


def test_outputs_are_offsets_from_the_center_in_units_of_the_side():
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
        # Numbers belong to the side of the picture: in a mirrored face the left dots have the right ones' colors.
        expected = (colors > 128)[[1, 0, 2, 4, 3]] if mirrored else colors > 128
        np.testing.assert_array_equal(seen, expected)
    assert any(flipped) == flip


def angle_of(matrix):
    return math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))


def test_augmentation_stays_within_its_ranges():
    augmentation, size = FaceAugmentation(rotation=20, scale=0.1, shift=0.05), 112
    center = np.array([(size - 1) / 2] * 2)
    around = np.linspace(0, 2 * math.pi, 360, endpoint=False)
    # The box of a circle is the same however it is turned.
    circle = 50 + 20 * np.column_stack([np.cos(around), np.sin(around)])
    angles, scales, shifts = [], [], []
    for seed in range(300):
        matrix = augmentation.matrix(np.random.default_rng(seed), landmark_box(circle), circle, size, 1.25)
        angles.append(angle_of(matrix))
        scales.append(math.hypot(matrix[0, 0], matrix[1, 0]) / (size / (1.25 * 40)))
        shifts.extend(abs(transform(matrix, np.array([50.0, 50])) - center) / size)
    assert 19 < max(np.abs(angles)) <= 20 and 0.9 <= min(scales) < 0.91 and 1.09 < max(scales) <= 1.1 + 1e-4
    assert 0.049 < np.max(shifts) <= 0.05 + 1e-3


def test_the_square_of_a_face_that_is_turned_a_little_turns_with_it():
    augmentation, size = FaceAugmentation(rotation=30, scale=0, shift=0), 112
    landmarks = np.random.default_rng(0).uniform(0, 1, (68, 2)) * (100, 30)
    box = landmark_box(landmarks) + (-2, 3, 5, 9)
    plain = crop_matrix(box, size, 1.25)
    for seed in range(20):
        matrix = augmentation.matrix(np.random.default_rng(seed), box, landmarks, size, 1.25)
        angle = angle_of(matrix)
        about = cv2.getRotationMatrix2D(((size - 1) / 2,) * 2, -angle, 1)
        expected = transform(about, transform(plain, landmarks))
        np.testing.assert_allclose(transform(matrix, landmarks), expected, atol=1e-9)
        assert 0 < abs(angle) <= 30


def test_a_part_of_the_faces_is_turned_far_and_each_lies_in_its_own_box():
    augmentation, size = FaceAugmentation(rotation=10, roll=120, turned=0.5, scale=0, shift=0), 112
    landmarks = np.random.default_rng(0).uniform(0, 1, (68, 2)) * (100, 30)
    matrices = [augmentation.matrix(np.random.default_rng(seed), None, landmarks, size, 1.25)
                for seed in range(1500)]
    angles = np.abs([angle_of(matrix) for matrix in matrices])
    # Half of them between 0 and 120 degrees, of which a twelfth are within 10.
    assert 0.42 < (angles > 10).mean() < 0.50 and 115 < angles.max() <= 120
    for matrix in matrices[:50]:
        box = landmark_box(transform(matrix, landmarks))
        np.testing.assert_allclose((box[:2] + box[2:]) / 2, (size - 1) / 2, atol=1e-6)
        assert (box[2:] - box[:2]).max() == pytest.approx(size / 1.25)


def test_some_faces_are_in_the_dark():
    crop = np.full((20, 20, 3), 200, 'uint8')
    augmentation = FaceAugmentation(color=0, blur=0, gray=0, occlusion=0, dark=0.5)
    levels = np.array([augmentation.look(np.random.default_rng(seed), crop).mean() / 200 for seed in range(200)])
    assert 0.4 < (levels < 0.99).mean() < 0.6 and 0.14 < levels.min() < 0.2
    assert 0.65 < levels[levels < 0.99].max() < 0.71


@pytest.mark.parametrize('jaw', ['3d', 'contour'])
def test_labels_of_two_jaws_have_the_one_that_is_known(faces, jaw):
    record = faces[0]._replace(jaw=jaw)
    (_, label), = FaceBatches([record], 32, 1.25, 1, PLAIN, two_jaws=True).epoch(0)
    points = label.asnumpy().reshape(85, 2) * 32 + 15.5
    expected = transform(crop_matrix(record.box, 32), record.landmarks)
    unknown = slice(68, 85) if jaw == '3d' else slice(17)
    assert np.isnan(points[unknown]).all() and np.isnan(points).sum() == 34
    known = points[:68] if jaw == '3d' else np.concatenate([points[68:], points[17:68]])
    np.testing.assert_allclose(known, expected, atol=1e-3)
    np.testing.assert_allclose(from_outputs(label.asnumpy(), 32, jaw)[0], expected, atol=1e-3)
    assert known_jaw(label.asnumpy()[0]) == jaw


def test_one_jaw_is_taken_whatever_is_asked_for():
    outputs = np.random.default_rng(0).normal(size=(2, 136))
    np.testing.assert_array_equal(from_outputs(outputs, 112, 'contour'), from_outputs(outputs, 112))


def test_a_flipped_contour_is_that_of_the_flipped_face(faces):
    record = faces[0]._replace(jaw='contour')
    still = FaceAugmentation(rotation=0, scale=0, shift=0, color=0, blur=0, gray=0, occlusion=0)
    batches = FaceBatches([record], 32, 1.25, 1, PLAIN, still, two_jaws=True)
    labels = [next(iter(batches.epoch(epoch))).label.asnumpy()[0] for epoch in range(10)]
    plain = transform(crop_matrix(record.box, 32), record.landmarks)
    found = [from_outputs(label, 32, 'contour') for label in labels]
    flipped = [not np.allclose(points, plain, atol=1e-3) for points in found]
    assert any(flipped) and not all(flipped)
    for points, flip in zip(found, flipped):
        np.testing.assert_allclose(points, mirror(plain, 32) if flip else plain, atol=1e-3)


def test_the_look_without_changes_is_the_picture():
    crop = np.random.default_rng(0).integers(0, 256, (40, 40, 3), 'uint8')
    np.testing.assert_array_equal(STILL.look(np.random.default_rng(0), crop), crop)
    gray = FaceAugmentation(color=0, blur=0, gray=1, occlusion=0).look(np.random.default_rng(0), crop)
    assert (np.ptp(gray, axis=2) == 0).all()
    covered = FaceAugmentation(color=0, blur=0, gray=0, occlusion=1).look(np.random.default_rng(0), crop.copy())
    changed = (covered != crop).any(axis=2).mean()
    assert 0.005 < changed < 0.3


def test_an_epoch_is_the_same_again_and_from_any_batch_on(faces):
    batches = FaceBatches(faces, 32, 1.25, 3, PLAIN, FaceAugmentation(), threads=2, seed=5, shuffle=True)
    whole = [(data.asnumpy(), label.asnumpy()) for data, label in batches.epoch(4)]
    assert [len(label) for _, label in whole] == [3, 3, 1] and len(batches) == 3
    for again, (data, label) in zip(batches.epoch(4, start=1), whole[1:]):
        np.testing.assert_array_equal(again.data.asnumpy(), data)
        np.testing.assert_array_equal(again.label.asnumpy(), label)
    other = np.concatenate([label.asnumpy() for _, label in batches.epoch(5)])
    assert not np.array_equal(other, np.concatenate([label for _, label in whole]))


def test_shuffled_without_augmentation(faces):
    batches = FaceBatches(faces, 32, 1.25, 4, PLAIN, seed=5, shuffle=True)
    crops = [batch.data[0].asnumpy() for batch in FaceBatches(faces, 32, 1.25, 1, PLAIN).epoch(0)]
    orders = [[next(number for number, crop in enumerate(crops) if np.array_equal(crop, found))
               for batch in batches.epoch(epoch) for found in batch.data.asnumpy()] for epoch in range(3)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({*map(tuple, orders), tuple(range(7))}) == 4


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
