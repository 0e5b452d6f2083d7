import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest

from gluon_lprnet.data.faces import lp_layout, pose_synthesis
from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.data.faces.head_model import MODEL, fit_pose, rotation
from gluon_lprnet.data.faces.pose_synthesis import Profiler, profile_faces
from gluon_lprnet.utils.errors import InputError

SIDE = 320
GREY = np.full((SIDE, SIDE, 3), 128, dtype='uint8')


def front(pose=(0, 0, 0), scale=1.0):
    """Landmarks of the generic head in a picture."""
    return scale * (MODEL @ rotation(pose).T)[:, :2] + (SIDE - 1) / 2


def spotted(landmarks, spots):
    """A gray picture with a disc of its own color at some landmarks."""
    image = GREY.copy()
    for number, color in spots.items():
        cv2.circle(image, np.round(landmarks[number] * 16).astype(int).tolist(), 3 * 16, color, -1, cv2.LINE_AA, 4)
    return image


def find(image, color):
    """The middle (x, y) of what has a color, or None."""
    y, x = np.nonzero(abs(image.astype(int) - color).sum(axis=-1) < 120)
    return np.array([x.mean(), y.mean()]) if len(x) > 4 else None


def textured():
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)


def write_sources(folder, names):
    folder.mkdir(exist_ok=True)
    landmarks = front()
    for name in names:
        cv2.imwrite(str(folder / f'{name}.jpg'), textured())
        points = '\n'.join(f'{x:.4f} {y:.4f}' for x, y in landmarks + 1)
        (folder / f'{name}.pts').write_text(f'version: 1\nn_points: 68\n{{\n{points}\n}}\n')
    return folder


def contents(folder):
    return {path.relative_to(folder): _arrays(path) for path in sorted(Path(folder).rglob('*.*'))}


def _arrays(path):
    content = path.read_bytes()
    return content[128:] if path.suffix == '.mat' else content  # the header of a .mat tells the time


@pytest.mark.parametrize('pose', [(0, 0, 0), (0.1, 0.07, -0.1)])
def test_turned_by_nothing_the_picture_and_the_landmarks_stay(pose):
    image, landmarks = textured(), front(pose)
    profiler = Profiler(image, landmarks)
    turned, moved, fit = profiler.turned(profiler.fit.pose)
    start = landmarks[30] - moved[30]
    np.testing.assert_allclose(moved, landmarks - start, atol=1)
    assert abs(fit.scale - profiler.fit.scale) < 0.01
    side = len(turned)
    back = np.array([[1, 0, start[0]], [0, 1, start[1]]])
    wanted = cv2.warpAffine(image, back, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    inside = np.zeros((side, side), dtype='uint8')
    cv2.fillConvexPoly(inside, cv2.convexHull(moved.astype('int32')), 1)
    error = (wanted.astype(float) - turned)[inside > 0]
    assert 10 * np.log10(255 ** 2 / (error ** 2).mean()) > 30


@pytest.mark.parametrize('yaw', [-60, -30, 30, 60])
def test_what_shows_moves_with_the_landmarks(yaw):
    near = (45, 35) if yaw > 0 else (36, 31)  # outer corner of the eye and side of the nose that turn to the camera
    colors = dict(zip((30, 8, *near), ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 255))))
    landmarks = front()
    image, moved, _ = Profiler(spotted(landmarks, colors), landmarks).turned(np.radians([0, yaw, 0]))
    for number in (30, *near):
        found = find(image, colors[number])
        assert found is not None, number
        # Of the disc on the tip of the nose, half may be hidden.
        assert np.linalg.norm(found - moved[number]) < (2.5 if number == 30 else 2), number


@pytest.mark.parametrize('yaw', [-60, 60])
def test_the_near_side_hides_the_far_one(yaw):
    landmarks = front()
    far, near = ((255, 0, 0), (0, 0, 255)) if yaw > 0 else ((0, 0, 255), (255, 0, 0))
    image = spotted(landmarks, {**dict.fromkeys((36, 39, 48), (255, 0, 0)), **dict.fromkeys((45, 42, 54), (0, 0, 255))})
    turned, _, _ = Profiler(image, landmarks).turned(np.radians([0, yaw, 0]))
    seen = [(abs(turned.astype(int) - color).sum(axis=-1) < 120).sum() for color in (near, far)]
    assert seen[0] > 60 and seen[1] < 0.1 * seen[0]


def test_the_pose_and_the_size_of_the_result():
    landmarks = front(np.radians([5, 10, 3]), scale=3)
    image = cv2.resize(textured(), (900, 900))
    turned, moved, fit = Profiler(image, landmarks + 290).turned(np.radians([0, 70, 3]))
    assert turned.shape == (450, 450, 3)
    np.testing.assert_allclose(np.degrees(fit_pose(moved).pose), [0, 70, 3], atol=2)
    np.testing.assert_allclose(fit.place(MODEL)[17:, :2], moved[17:], atol=6)
    length = np.ptp(moved, axis=0).max()
    assert length == pytest.approx(pose_synthesis.BOX_PART * 450, abs=1)
    np.testing.assert_allclose((moved.min(axis=0) + moved.max(axis=0)) / 2, 449 / 2, atol=1)


def test_the_drawing_against_plain_arithmetic(monkeypatch):
    """Pixel by pixel: the triangle painted last, the corners' weights by solving for them, bilinear colors."""
    drawings = []
    draw = pose_synthesis._draw
    monkeypatch.setattr(pose_synthesis, '_draw', lambda *arguments: drawings.append(arguments) or draw(*arguments))
    picture = cv2.resize(textured(), (80, 80), interpolation=cv2.INTER_AREA)
    turned, _, _ = Profiler(picture, front() / 4).turned(np.radians([5, 55, -10]))
    (image, texture, points, triangles, side), = drawings
    last = np.array(image.shape[1::-1]) - 1
    painted = np.full((side, side), -1, 'int32')
    for number in np.argsort(-points[triangles][..., 2].mean(axis=1)).tolist():
        corners = np.round(points[triangles[number], :2] * 16).astype('int32')
        cv2.fillConvexPoly(painted, corners, number, shift=4)
    checked = 0
    for y in range(side):
        for x in range(side):
            triangle = triangles[painted[y, x]]
            corners = points[triangle, :2]
            if abs(np.linalg.det(corners[1:] - corners[0])) < 1e-3:
                continue
            weights = np.linalg.solve(np.vstack([corners.T, np.ones(3)]), [x, y, 1])
            second, third = np.clip(weights[1:], 0, 1)
            third = min(third, 1 - second)
            u, v = np.array([1 - second - third, second, third]) @ texture[triangle]
            u, v = np.clip([u, v], 0, last)
            left, top = np.minimum([int(u), int(v)], last - 1)
            right, below = u - left, v - top
            square = image[top:top + 2, left:left + 2].astype(float)
            color = np.array([1 - below, below]) @ np.einsum('yxc,x->yc', square, [1 - right, right])
            # OpenCV reads between pixels in steps of 1/32.
            assert abs(turned[y, x] - color).max() <= 2 + np.ptp(square, axis=(0, 1)).max() / 16, (x, y)
            checked += 1
    assert painted.min() >= 0 and checked > 0.95 * side ** 2


def test_the_hidden_side_of_the_jaw_mirrors_the_other():
    pose = np.radians([0, 28, 0])
    landmarks = front(pose)
    contour = landmarks.copy()
    contour[:8] += np.outer(np.linspace(12, 4, 8), [-1, 0])  # annotated where the cheek ends, not behind it
    lifted = Profiler(GREY, contour).points[:, :2]
    before, after = (np.linalg.norm((points - landmarks)[:8], axis=1).mean() for points in (contour, lifted))
    assert after < before / 2
    np.testing.assert_allclose(lifted[8:], contour[8:])


def test_yaws_spread_from_the_face_to_the_profile():
    rng = np.random.default_rng(0)
    yaws = np.degrees([pose_synthesis._poses(np.radians([0, 20, 5]), 3, rng)[:, 1] for _ in range(200)])
    assert yaws.min() > 20 and yaws.max() <= 90
    assert (np.diff(yaws, axis=1) > 0).all()
    both = pose_synthesis._poses(np.radians([0, 2, 0]), 50, rng)[:, 1]
    assert (both > 0).any() and (both < 0).any()
    assert len(pose_synthesis._poses(np.radians([0, -31, 0]), 3, rng)) == 0


def test_the_layout_is_read_back(tmp_path):
    source = write_sources(tmp_path / 'source', ['afw_1', 'helen_2', 'other_3'])
    summary = profile_faces(source, 'pts', tmp_path / 'out', copies=2, workers=1)
    assert (summary.sources, summary.turned, summary.skipped) == (3, 6, [])
    faults = []
    faces = {face.name: face for face in read_faces(tmp_path / 'out', '300w-lp', faults)}
    assert not faults
    assert sorted(faces) == [f'{set_name}/{name}_{number}.jpg' for set_name, name in
                             (('AFW', 'afw_1'), ('HELEN', 'helen_2'), ('OTHER', 'other_3')) for number in range(3)]
    # A picture that is held out is so with all its copies.
    assert {name.rpartition('/')[2].rpartition('_')[0]: face.identity for name, face in faces.items()} == {
        face.name.removesuffix('.jpg'): face.name for face in read_faces(source, 'pts', faults)}
    np.testing.assert_allclose(faces['AFW/afw_1_0.jpg'].landmarks, front(), atol=1e-3)
    assert Path(faces['AFW/afw_1_0.jpg'].image).read_bytes() == (source / 'afw_1.jpg').read_bytes()
    for face in faces.values():
        np.testing.assert_allclose(fit_pose(face.landmarks).pose, face.pose, atol=np.radians(4))


def test_any_landmarks_and_pose_come_back(tmp_path):
    fit = fit_pose(front(np.radians([3, -40, 8])))
    points = np.random.default_rng(0).uniform(-20, 400, (68, 2))
    lp_layout.write_face(tmp_path, 'lfpw_x', cv2.imencode('.jpg', GREY)[1].tobytes(), points, fit, visible=points + 5)
    face, = read_faces(tmp_path, '300w-lp', [])
    np.testing.assert_allclose(face.landmarks, points, atol=1e-3)
    np.testing.assert_allclose(face.pose, fit.pose, atol=1e-6)


def test_the_seed_decides_and_the_workers_do_not(tmp_path):
    source = write_sources(tmp_path / 'source', [f'afw_{number}' for number in range(10)])
    for name, seed, workers in (('one', 0, 1), ('two', 0, 2), ('other', 1, 1)):
        profile_faces(source, 'pts', tmp_path / name, copies=1, seed=seed, workers=workers)
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')
    assert contents(tmp_path / 'one') != contents(tmp_path / 'other')


def test_bad_sources_are_named_and_leave_nothing(tmp_path):
    source = write_sources(tmp_path / 'source', ['good', 'torn', 'flat'])
    torn = (source / 'torn.jpg').read_bytes()
    (source / 'torn.jpg').write_bytes(torn[:len(torn) // 2])
    (source / 'flat.pts').write_text('version: 1\n{\n' + '\n'.join(f'{i} {i}' for i in range(68)) + '\n}\n')
    out = tmp_path / 'out'
    with pytest.raises(InputError, match='`skip_bad`') as error:
        profile_faces(source, 'pts', out, workers=1)
    assert 'torn.jpg' in str(error.value) and 'flat' in str(error.value) and 'good' not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ['source']
    summary = profile_faces(source, 'pts', out, workers=1, skip_bad=True)
    assert summary.sources == 1 and len(summary.skipped) == 2
    with pytest.raises(InputError, match='not empty'):
        profile_faces(source, 'pts', out, workers=1)


def test_pictures_of_one_name_are_a_fault(tmp_path):
    write_sources(tmp_path / 'source', ['a_b'])
    write_sources(tmp_path / 'source' / 'a', ['b'])
    with pytest.raises(InputError, match='would have the same name as'):
        profile_faces(tmp_path / 'source', 'pts', tmp_path / 'out', workers=1)


def test_the_command(tmp_path, capsys):
    source = write_sources(tmp_path / 'source', ['afw_1'])
    parser = argparse.ArgumentParser()
    pose_synthesis.add_commands(parser.add_subparsers())
    args = parser.parse_args(['profile', str(source), '--layout', 'pts', '--out', str(tmp_path / 'out'),
                              '--copies', '2', '--workers', '1'])
    args.run(args)
    assert '1 faces and 2 turned copies' in capsys.readouterr().out


def test_real_faces_turn(shared_data):
    folder = shared_data / '300w' / 'train'
    if not folder.is_dir():
        pytest.skip('no 300W')
    face = next(iter(read_faces(folder, 'pts', [])))
    profiler = Profiler(cv2.imread(face.image), face.landmarks)
    image, landmarks, _ = profiler.turned(np.radians([0, 80, 0]))
    assert np.degrees(fit_pose(landmarks).pose[1]) == pytest.approx(80, abs=8)
    assert landmarks[30, 0] == pytest.approx(landmarks[:, 0].min(), abs=0.06 * len(image))
