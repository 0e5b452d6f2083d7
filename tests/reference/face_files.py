"""Faces written as the data sets' own files."""
import cv2
import numpy as np
import scipy.io

WIDTH, HEIGHT = 120, 100
POSE = np.array([0.1, -1.2, 0.3], dtype='float32')


def points_of(seed):
    return np.random.default_rng(seed).uniform(10, 90, (68, 2)).round(3)


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.full((HEIGHT, WIDTH, 3), 128, dtype='uint8'))


def write_pts(path, points):
    lines = '\n'.join(f'{x:.3f} {y:.3f}' for x, y in points)
    path.write_text(f'version: 1\nn_points: {len(points)}\n{{\n{lines}\n}}\n')


def write_mat(path, **values):
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, values)


def pose_parameters(pose):
    return np.concatenate([pose, [1, 2, 3, 0.001]])[None].astype('float32')


def write_aflw2000(folder, name, points, **changes):
    write_image(folder / f'{name}.jpg')
    write_mat(folder / f'{name}.mat', **{'pt3d_68': np.column_stack([points, np.zeros(len(points))]).T,
                                         'Pose_Para': pose_parameters(POSE), **changes})


def write_ytf68(path, names, points, identities):
    for name in names:
        write_image(path.with_suffix('') / name)
    np.savez(path, names=np.array(names), landmarks=np.array(points), identity=np.array(identities))
