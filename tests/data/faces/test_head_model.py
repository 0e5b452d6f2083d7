import numpy as np
import pytest

from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.data.faces.head_model import MODEL, fit_pose, mirror_points, pose_of, rotation

POSES = np.radians([(0, 0, 0), (10, 20, -5), (-20, -60, 15), (15, 85, -20), (-5, -40, 40)])


def project(pose, scale=1.7, shift=(140, 90)):
    return scale * (MODEL @ rotation(pose).T)[:, :2] + shift


def test_the_model_is_symmetric_and_the_tip_of_the_nose_is_nearest():
    np.testing.assert_array_equal(mirror_points(MODEL), MODEL)
    assert MODEL[:, 2].argmin() == 30
    assert MODEL[8, 1] == MODEL[:, 1].max() and (MODEL[:8, 0] < 0).all()


@pytest.mark.parametrize('pose', POSES)
def test_rotation_turns_and_is_inverted(pose):
    matrix = rotation(pose)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(matrix) == pytest.approx(1)
    np.testing.assert_allclose(pose_of(matrix), pose, atol=1e-12)


def test_directions_of_the_angles():
    forward, right = (0, 0, -1), (1, 0, 0)
    assert (rotation((0, 0.5, 0)) @ forward)[0] < 0     # positive yaw: to the left of the picture
    assert (rotation((0.5, 0, 0)) @ forward)[1] < 0     # positive pitch: up
    assert (rotation((0, 0, 0.5)) @ right)[1] > 0       # positive roll: clockwise


@pytest.mark.parametrize('pose', POSES)
def test_the_fit_finds_the_pose(pose):
    landmarks = project(pose)
    fit = fit_pose(landmarks)
    np.testing.assert_allclose(fit.pose, pose, atol=1e-3)
    assert fit.scale == pytest.approx(1.7, rel=1e-3)
    np.testing.assert_allclose(fit.translation, (140, 90), atol=0.1)
    np.testing.assert_allclose(fit.depth, 1.7 * (MODEL @ rotation(pose).T)[:, 2], atol=0.2)
    np.testing.assert_allclose(fit.place(MODEL), np.column_stack([landmarks, fit.depth]), atol=0.2)


def test_the_fit_bears_noise():
    landmarks = project(POSES[1]) + np.random.default_rng(0).normal(0, 2, (68, 2))
    np.testing.assert_allclose(fit_pose(landmarks).pose, POSES[1], atol=np.radians(5))


@pytest.mark.parametrize('landmarks, what', [
    (np.full((68, 2), np.nan), 'finite'), (np.zeros((5, 2)), '68'), (np.zeros((68, 2)), 'one line'),
    (np.repeat(np.arange(68.0)[:, None], 2, axis=1), 'one line')])
def test_landmarks_that_no_head_fits_are_refused(landmarks, what):
    with pytest.raises(ValueError, match=what):
        fit_pose(landmarks)


def test_angles_agree_with_those_of_aflw2000(shared_data):
    if not (shared_data / 'aflw2000_3d').is_dir():
        pytest.skip('no AFLW2000-3D')
    faces = list(read_faces(shared_data / 'aflw2000_3d', 'aflw2000-3d', []))
    true = np.array([face.pose for face in faces])
    found = np.array([fit_pose(face.landmarks).pose for face in faces])
    known = (abs(true) < np.radians(99)).all(axis=1)    # beyond, different angles describe the same pose
    assert known.mean() > 0.95
    for angle, least in enumerate((0.9, 0.99, 0.9)):
        assert np.corrcoef(true[known, angle], found[known, angle])[0, 1] > least
    assert np.degrees(abs(true - found)[known, 1]).mean() < 4
