"""The 68 facial landmarks: their mirror image, their box, and the square that a network sees.

Coordinates are x, y in pixels with (0, 0) at the center of the top left pixel, as in OpenCV's warps.
"""
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from ..images import normalize

POINTS = 68
JAW_POINTS = 17

# Where a set's files have the jaw of a turned face: at the points of the head that are its jaw, hidden or not, or
# where the visible face ends. Near the front the two still differ, by 3.5 to 5.4% of the face.
JAWS = ('3d', 'contour')

# The network sees a square of this many times the longer side of the landmarks' box, about its center. The
# paper gives no margin.
CROP_SCALE = 1.25

# Left and right as seen in the image; the points of the midline stay. Number 0 is the jaw at the left ear.
_MIRRORED = np.concatenate([
    np.arange(17)[::-1],                # jaw
    np.arange(17, 27)[::-1],            # brows
    np.arange(27, 31),                  # bridge of the nose
    np.arange(31, 36)[::-1],            # its underside
    [45, 44, 43, 42, 47, 46],           # left eye, from the outer corner
    [39, 38, 37, 36, 41, 40],           # right eye, from the inner corner
    np.arange(48, 55)[::-1],            # outer lips, upper edge
    np.arange(55, 60)[::-1],            # outer lips, lower edge
    np.arange(60, 65)[::-1],            # inner lips, upper edge
    np.arange(65, 68)[::-1],            # inner lips, lower edge
])


def mirror(landmarks: np.ndarray, width: int) -> np.ndarray:
    """Landmarks of the image flipped left to right.

    Parameters
    ----------
    landmarks : ndarray (..., 68, 2)
    width : int
        Of the image, in pixels.
    """
    flipped = landmarks[..., _MIRRORED, :].copy()
    flipped[..., 0] = width - 1 - flipped[..., 0]
    return flipped


def landmark_box(landmarks: np.ndarray) -> np.ndarray:
    """The smallest box around landmarks (..., N, 2): an ndarray (..., 4) of left, top, right, bottom."""
    return np.concatenate([landmarks.min(axis=-2), landmarks.max(axis=-2)], axis=-1)


def box_size(box: np.ndarray) -> np.ndarray:
    """The normalizer d = sqrt(width * height) of the NME ("Evaluation Metrics" in the paper), for boxes (..., 4)."""
    return np.sqrt((box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]))


def crop_matrix(box: np.ndarray, size: int, scale: float = CROP_SCALE) -> np.ndarray:
    """The map from image to crop: a square of ``scale`` times the box's longer side, about its center.

    Parameters
    ----------
    box : array (4,)
        Left, top, right, bottom in pixels of the image.
    size : int
        Side of the crop in pixels.

    Returns
    -------
    ndarray (2, 3) float64
        For ``cv2.warpAffine``: crop = A @ (x, y, 1).

    Raises
    ------
    ValueError
        If the box is empty.
    """
    left, top, right, bottom = np.asarray(box, dtype='float64')
    side = max(right - left, bottom - top)
    if not (right > left and bottom > top):
        raise ValueError(f'the box {left:g}, {top:g}, {right:g}, {bottom:g} is empty')
    factor = size / (scale * side)
    center = (size - 1) / 2
    return np.array([[factor, 0, center - factor * (left + right) / 2],
                     [0, factor, center - factor * (top + bottom) / 2]])


def turned_crop_matrix(points: np.ndarray, angle: float, size: int, scale: float = CROP_SCALE) -> np.ndarray:
    """The map from image to crop: as :func:`crop_matrix`, of the points' box in the image turned back by an angle.

    Parameters
    ----------
    points : ndarray (N, 2)
        Landmarks or corners of a box, in pixels of the image.
    angle : float
        In radians, clockwise as seen: the crop of a face that is turned so shows it upright.
    size, scale
        As of :func:`crop_matrix`.

    Returns
    -------
    ndarray (2, 3) float64
    """
    cosine, sine = math.cos(angle), math.sin(angle)
    back = np.array([[cosine, sine], [-sine, cosine]])
    matrix = crop_matrix(landmark_box(points @ back.T), size, scale)
    return np.column_stack([matrix[:, :2] @ back, matrix[:, 2]])


def mirrored_crop_matrix(matrix: np.ndarray, size: int) -> np.ndarray:
    """The map (2, 3) to a crop of ``size`` flipped left to right, of the one to the crop."""
    return np.array([[-1, 0], [0, 1]]) @ matrix + [[0, 0, size - 1], [0, 0, 0]]


def warp_crop(picture: np.ndarray, matrix: np.ndarray, size: int) -> np.ndarray:
    """The square of an image that an affine map without shear cuts out.

    Parameters
    ----------
    picture : ndarray (height, width, 3) uint8
    matrix : ndarray (2, 3)
        From image to crop, as from :func:`crop_matrix`; it may include a rotation and a reflection.
    size : int
        Side of the crop in pixels.

    Returns
    -------
    ndarray (size, size, 3) uint8
        Outside the image, its border is repeated.
    """
    reduction = int(1 / math.hypot(matrix[0, 0], matrix[1, 0]))
    if reduction >= 2:
        # Interpolation uses the 4 nearest pixels: unless the image is averaged first, others would be skipped.
        before = np.array(picture.shape[1::-1])
        after = np.maximum(before // reduction, 1)
        picture = cv2.resize(picture, tuple(after.tolist()), interpolation=cv2.INTER_AREA)
        # Pixels are squares around their centers, so 0 becomes the middle of the averaged ones.
        ratio = before / after
        matrix = np.column_stack([matrix[:, :2] * ratio, transform(matrix, (ratio - 1) / 2)])
    return cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def transform(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (..., 2) under an affine map (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


# Outputs of a network: of one jaw, whichever its training sets have, or of both.
ONE_JAW = 2 * POINTS
TWO_JAWS = 2 * (POINTS + JAW_POINTS)


def to_outputs(landmarks: np.ndarray, size: int) -> np.ndarray:
    """Landmarks (..., 68, 2) in pixels of a crop as a network's outputs (..., 136).

    They are x0, y0, x1, y1 and so on, relative to the crop's center, in units of its side.
    """
    return ((landmarks - (size - 1) / 2) / size).reshape(*landmarks.shape[:-2], -1)


def to_two_jaws(landmarks: np.ndarray, jaw: str, size: int) -> np.ndarray:
    """Landmarks (68, 2) as the outputs (170,) of a network of two jaws.

    First the 68 points with the jaw ``3d``, then the jaw ``contour`` (:data:`JAWS`). Of the one that ``jaw`` does
    not name the outputs are NaN: it is not known.
    """
    unknown = np.full((JAW_POINTS, 2), np.nan)
    first, last = {'3d': (landmarks[:JAW_POINTS], unknown), 'contour': (unknown, landmarks[:JAW_POINTS])}[jaw]
    return to_outputs(np.concatenate([first, landmarks[JAW_POINTS:], last]), size)


def from_outputs(outputs: np.ndarray, size: int, jaw: str = '3d') -> np.ndarray:
    """Landmarks (..., 68, 2) in pixels of a crop of ``size``, of outputs (..., 136) or (..., 170).

    ``jaw`` is the one taken of two; where the outputs have one alone it is that, whatever ``jaw`` says.
    """
    points = outputs.reshape(*outputs.shape[:-1], -1, 2) * size + (size - 1) / 2
    if points.shape[-2] > POINTS and jaw == 'contour':
        return np.concatenate([points[..., POINTS:, :], points[..., JAW_POINTS:POINTS, :]], axis=-2)
    return points[..., :POINTS, :]


def known_jaw(label: np.ndarray) -> str:
    """The jaw that a label (170,) of :func:`to_two_jaws` has."""
    return 'contour' if np.isnan(label[0]) else '3d'


def landmarks_in_crops(forward: Callable[[np.ndarray], np.ndarray], description: Mapping[str, Any],
                       crops: Sequence[tuple[np.ndarray, np.ndarray]], mirrored: bool = False) -> np.ndarray:
    """What a network finds in crops, with each of the jaws.

    Parameters
    ----------
    forward : callable
        The network: normalized crops (N, 3, size, size) float32 to outputs (N, 136) or (N, 170).
    description : dict
        With ``input_size``, ``rgb_mean`` and ``rgb_std``.
    crops : sequence of (ndarray (height, width, 3) uint8, ndarray (2, 3))
        RGB images, each with the map from it to the crop of the network's size.
    mirrored : bool
        Show the network the crops flipped left to right. The landmarks are still those of the images.

    Returns
    -------
    ndarray (N, 2, 68, 2)
        In pixels of the images; of each face by :data:`JAWS`, twice the same where the network knows one.
    """
    size = description['input_size']
    outputs = forward(np.stack([
        normalize(warp_crop(picture, mirrored_crop_matrix(matrix, size) if mirrored else matrix, size), description)
        for picture, matrix in crops]))
    points = np.stack([from_outputs(outputs, size, jaw) for jaw in JAWS], axis=1)
    if mirrored:
        points = mirror(points, size)
    return np.stack([transform(cv2.invertAffineTransform(matrix), each) for (_, matrix), each in zip(crops, points)])
