"""A generic head in three dimensions: its 68 landmarks, and the pose in which they fit those of an image.

Axes are those of an image, in millimeters of a head of average size: x to the right, y down, z away from the
camera. A pose is pitch, yaw and roll in radians as ``Pose_Para`` of 300W-LP and AFLW2000-3D gives them (Zhu et al.
2016, "Face Alignment Across Large Poses"): roll is applied first, and a face of positive yaw looks to the left of
the image.
"""
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares
from scipy.spatial import Delaunay
from scipy.spatial.transform import Rotation

from .landmarks import POINTS, mirror

# One half of the head and its midline: the number of the point, then x, y, z. The proportions are those of the
# 68-point model that OpenFace and many estimators of head pose use, made symmetric, in half millimeters. The jaw of
# that model is flat because its points are those of frontal contours: its depth is stretched here, so that the first
# point lies just before the tragus, 76 mm behind the origin. This agrees with the distances of nasion, subnasale and
# nose tip from the middle of the tragi: 88.5, 91.9 and 103.8 mm at a width of 131.4 (Table 2 of doi
# 10.1186/2196-1042-14-32).
_HALF = np.array([
    # jaw, from the ear at the left of the picture to the chin
    (0, -72.5, -30, 70), (1, -71.5, -11.5, 66.5), (2, -69.5, 7.5, 64), (3, -65.5, 26, 62), (4, -58.5, 42.5, 56),
    (5, -47.5, 56.5, 46), (6, -33.5, 67, 28.5), (7, -17.5, 75, 7), (8, 0, 77, -1),
    # brow
    (17, -60.5, -50, 13), (18, -51, -59, 6.5), (19, -38, -62.5, -0.5), (20, -24.5, -61.5, -7), (21, -12, -57, -12),
    # nose: bridge to tip, then its underside
    (27, 0, -42, -13.5), (28, 0, -31, -21), (29, 0, -20, -29.5), (30, 0, -8.5, -37),
    (31, -15, 2.5, -20.5), (32, -7.5, 4.5, -23.5), (33, 0, 6.5, -26),
    # eye
    (36, -45.5, -38, 6), (37, -37.5, -43, 2.5), (38, -28, -43, 1), (39, -19.5, -37, -0.5), (40, -28.5, -35.5, -0.5),
    (41, -38, -35, 1),
    # outer lips
    (48, -29, 28.5, -2.5), (49, -18, 22.5, -16), (50, -7.5, 19, -22.5), (51, 0, 20.5, -23.5), (57, 0, 40.5, -23.5),
    (58, -8, 39.5, -22.5), (59, -18.5, 36.5, -15),
    # inner lips
    (60, -24.5, 28.5, -5), (61, -7.5, 25.5, -21), (62, 0, 26, -22), (66, 0, 31.5, -22), (67, -8, 30.5, -20.5)])

# Points of the skin between the landmarks, in millimeters of the generic head, set by hand: x, y, z of the midline
# and of the half on the right of the image.
_SKIN_HALF = np.array([
    (0, -57, -16), (0, -78, -15), (25, -78, -9), (46, -76, 8), (0, -100, -8), (30, -98, 0),     # forehead
    (62, -40, 30), (58, -14, 18), (42, -20, 0), (36, 0, -9), (52, 8, 10), (62, 10, 32),          # temple and cheek
    (40, 22, -3), (51, 30, 18), (36, 44, -2), (47, 44, 24), (25, 54, -9),
    (9, -31, -11), (11, -22, -14), (14, -11, -16), (20, 2, -13),                                # sides of the nose
    (0, 50, -17), (0, 63, -19), (14, 62, -14)])                                                 # chin
# Where the forehead meets the hair and the crown, from the temple at the right to the one at the left.
_CROWN_HALF = np.array([(72, -48, 64), (69, -68, 58), (60, -90, 50), (45, -108, 40), (24, -119, 30), (0, -123, 25)])

JAW = np.arange(17)

# The jaw is annotated where it ends in the image, which is a different place on the head for every yaw.
_WEIGHTS = np.ones(POINTS)
_WEIGHTS[JAW] = 0.1

# A face of positive pitch looks up: with y down and z away, that is a turn about x in the negative direction.
_SIGNS = np.array([-1.0, 1.0, 1.0])


class PoseFit(NamedTuple):
    """The generic head placed on a face in an image, by scaled orthographic projection.

    Attributes
    ----------
    pose : ndarray (3,)
        Pitch, yaw and roll in radians.
    scale : float
        Pixels per millimeter.
    translation : ndarray (2,)
        x, y in pixels of the model's origin, which lies between the eyes and the mouth.
    depth : ndarray (68,)
        Of the turned model's points in pixels, relative to the origin's, away from the camera.
    """

    pose: np.ndarray
    scale: float
    translation: np.ndarray
    depth: np.ndarray

    def place(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3) of the model, in millimeters, as x, y, depth in pixels of the image."""
        placed = self.scale * np.asarray(points) @ rotation(self.pose).T
        placed[..., :2] += self.translation
        return placed


def mirror_points(points: np.ndarray) -> np.ndarray:
    """Points (..., 68, 3) of the model mirrored left to right: partners change places."""
    return np.concatenate([mirror(points[..., :2], 1), mirror(points[..., 1:], 1)[..., 1:]], axis=-1)


def rotation(pose: np.ndarray) -> np.ndarray:
    """The matrix (3, 3) that turns points of the model, ``matrix @ point``, into a pose of pitch, yaw, roll."""
    return Rotation.from_euler('XYZ', _SIGNS * pose).as_matrix()


def pose_of(matrix: np.ndarray) -> np.ndarray:
    """The inverse of :func:`rotation`: a pose (3,) with yaw in [-pi/2, pi/2]."""
    return _SIGNS * Rotation.from_matrix(matrix).as_euler('XYZ')


class Poses(NamedTuple):
    """The generic head turned as N faces are, from :func:`estimate_poses`.

    Attributes
    ----------
    matrices : ndarray (N, 3, 3)
        As of :func:`rotation`.
    scales : ndarray (N,)
        Pixels per millimeter.
    misfits : ndarray (N,)
        Root mean square distance of the landmarks, the jaw's counting little, from those of the turned head, in
        millimeters of it.
    """

    matrices: np.ndarray
    scales: np.ndarray
    misfits: np.ndarray


def estimate_poses(landmarks: np.ndarray) -> Poses:
    """The poses of the generic head that nearly explain the landmarks of faces, without iteration.

    The affine camera closest in least squares, and the scaled rotation closest to it. The yaw of AFLW's faces is met
    as well as by :func:`fit_pose`, which goes on from here.

    Parameters
    ----------
    landmarks : ndarray (N, 68, 2)
        In pixels, finite.

    Returns
    -------
    Poses
        Of landmarks on one line or point it is any pose, with a scale of 0 where they are one point.
    """
    offsets = landmarks - np.average(landmarks, axis=1, weights=_WEIGHTS)[:, None]
    matrices, sizes = _nearest_turns(offsets)
    scales = sizes.mean(axis=-1)
    expected = scales[:, None, None] * ((MODEL - _CENTER) @ matrices[:, :2].transpose(0, 2, 1))
    squares = np.average(((offsets - expected) ** 2).sum(axis=-1), axis=1, weights=_WEIGHTS)
    return Poses(matrices, scales, np.sqrt(squares) / np.maximum(scales, 1e-9))


def _nearest_turns(offsets):
    """Rotations (..., 3, 3) closest to the affine cameras of centered landmarks (..., 68, 2), and their two scales."""
    left, sizes, right = np.linalg.svd(np.swapaxes(_TO_CAMERA @ offsets, -1, -2), full_matrices=False)
    rows = left @ right
    return np.concatenate([rows, np.cross(rows[..., 0, :], rows[..., 1, :])[..., None, :]], axis=-2), sizes


def upright_angles(matrices: np.ndarray) -> np.ndarray:
    """How far the heads' vertical axes are turned in the image, clockwise, in radians: (N,), of matrices (N, 3, 3)."""
    return np.arctan2(-matrices[..., 0, 1], matrices[..., 1, 1])


def hidden_landmarks(matrices: np.ndarray) -> np.ndarray:
    """Which landmarks of the generic head lie behind another part of it.

    Parameters
    ----------
    matrices : ndarray (N, 3, 3)
        As of :func:`rotation`.

    Returns
    -------
    ndarray (N, 68) bool
    """
    return np.stack([_behind(_SURFACE @ matrix.T) for matrix in matrices]) if len(matrices) else (
        np.zeros((0, POINTS), dtype=bool))


def _behind(surface):
    """Which landmarks the triangles between the points (n, 3) of a turned surface hide: (68,) bool."""
    corners = surface[_TRIANGLES]
    origin, edges = corners[:, 0], corners[:, 1:] - corners[:, :1]
    area = np.cross(edges[:, 0, :2], edges[:, 1, :2])
    # Seen from its edge a triangle hides nothing.
    area = np.where(np.abs(area) < 1e-6, np.inf, area)
    offsets = surface[:POINTS, None] - origin
    along = np.stack([np.cross(offsets[..., :2], edges[:, 1, :2]), np.cross(edges[:, 0, :2], offsets[..., :2])],
                     axis=-1) / area[:, None]
    # In an exact profile the far half's points lie on the near half's.
    inside = (along > -1e-6).all(axis=-1) & (along.sum(axis=-1) < 1 + 1e-6)
    nearer = offsets[..., 2] - (along * edges[..., 2]).sum(axis=-1) > _THICKNESS
    numbers = np.arange(POINTS)[:, None, None]
    own = (numbers == _TRIANGLES).any(axis=-1)
    return (inside & nearer & ~own).any(axis=1)


def fit_pose(landmarks: np.ndarray) -> PoseFit:
    """Find the pose of the generic head that best explains a face's landmarks.

    The closest affine camera is linear least squares; its nearest scaled rotation starts the refinement of angles,
    scale and translation. The jaw counts little, because it is annotated where it ends in the image.

    Parameters
    ----------
    landmarks : ndarray (68, 2)
        In pixels.

    Returns
    -------
    PoseFit

    Raises
    ------
    ValueError
        If the landmarks are not finite or lie on one line.
    """
    landmarks = np.asarray(landmarks, dtype='float64')
    if landmarks.shape != (POINTS, 2) or not np.isfinite(landmarks).all():
        raise ValueError('the landmarks are not 68 pairs of finite numbers')
    center = np.average(landmarks, axis=0, weights=_WEIGHTS)
    root = np.sqrt(_WEIGHTS)[:, None]
    wanted, model = root * (landmarks - center), root * (MODEL - _CENTER)
    matrix, sizes = _nearest_turns(landmarks - center)
    if sizes[1] < 1e-3 * sizes[0] or not sizes[0] > 0:
        raise ValueError('the landmarks lie on one line')
    unit = sizes.mean()

    def residuals(parameters):
        turned = model @ rotation(parameters[:3])[:2].T
        return (parameters[3] * turned + root * parameters[4:] - wanted / unit).ravel()

    start = np.concatenate([pose_of(matrix), [1, 0, 0]])
    found = least_squares(residuals, start).x
    matrix, scale = rotation(found[:3]), unit * found[3]
    return PoseFit(pose_of(matrix), scale, center + unit * found[4:] - scale * matrix[:2] @ _CENTER,
                   scale * MODEL @ matrix[2])


def _whole_model():
    points, known = np.zeros((POINTS, 3)), np.zeros((POINTS, 1), dtype=bool)
    rows = _HALF[:, 0].astype(int)
    points[rows], known[rows] = _HALF[:, 1:], True
    return np.where(known, points, mirror_points(points))


# The landmarks of the generic head (68, 3).
MODEL = _whole_model()
MODEL.flags.writeable = False

_CENTER = np.average(MODEL, axis=0, weights=_WEIGHTS)
# From landmarks to the affine camera that is closest in least squares.
_TO_CAMERA = np.linalg.pinv(np.sqrt(_WEIGHTS)[:, None] * (MODEL - _CENTER)) * np.sqrt(_WEIGHTS)

# The points of the skin (n, 3) and, from right to left, of the crown (m, 3).
SKIN = np.concatenate([_SKIN_HALF, _SKIN_HALF[_SKIN_HALF[:, 0] > 0] * [-1, 1, 1]])
CROWN = np.concatenate([_CROWN_HALF, _CROWN_HALF[-2::-1] * [-1, 1, 1]])

_SURFACE = np.concatenate([MODEL, SKIN, CROWN])
_TRIANGLES = Delaunay(_SURFACE[:, :2]).simplices
# Millimeters that the surface must lie in front of a point to hide it: lids and lips are that thick.
_THICKNESS = 3
