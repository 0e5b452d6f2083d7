"""The 68 landmarks of each face of a picture, its pose, and how far to trust them."""
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import cv2
import mxnet as mx
import numpy as np

from ..data.faces.head_model import estimate_poses, upright_angles
from ..data.faces.landmarks import POINTS, turned_crop_matrix, warp_crop
from ..data.images import ImageError
from ..evaluate.landmarks import load_landmark_network
from ..evaluate.network_flag import DEFAULTS
from ..utils.errors import InputError
from .aligner import Aligner, Pose, rotation_of
from .classification import Image, as_sequence, pixels_of, unreadable
from .detectors import Detector, detect_turned, make_detector

# Pixels of pictures held at once, which bounds memory.
_PIXELS_AT_ONCE = 2**25

# The 68 points as lines: number of the first and the last point, and whether the line is closed.
CONTOURS = ((0, 16, False), (17, 21, False), (22, 26, False), (27, 30, False), (31, 35, False), (36, 41, True),
            (42, 47, True), (48, 59, True), (60, 67, True))

_NOSE = 30
_EYES = np.arange(36, 42), np.arange(42, 48)

# Of `upright_crop`.
_FACE_CROP_SCALE = 1.7
_FOREHEAD = 0.1
_SIDEWAYS = 45

_BOX_COLOR, _COLOR, _HIDDEN_COLOR = (255, 160, 0), (0, 255, 0), (190, 255, 190)


class Face(NamedTuple):
    """A face of a picture.

    Attributes
    ----------
    box : ndarray (4,)
        Where its landmarks were expected: left, top, right, bottom, in pixels.
    landmarks : ndarray (68, 2)
        x and y, in pixels of the picture.
    score : float or None
        Of the detector; None for a box that was given.
    confidence : float
        0 to 1: how probable it is that the landmarks' NME is at most 7%.
    pose : Pose
        Of the generic head that is closest to the landmarks.
    visible : ndarray (68,) bool
        Whether each point is before the others on that head, seen from the camera. The jaw ``contour`` always is.
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: Optional[float]
    confidence: float
    pose: Pose
    visible: np.ndarray


def make_aligner(network: Union[str, Path], detect: Optional[Detector] = None, jaw: str = '3d') -> Aligner:
    """The aligner of a trained network.

    Parameters
    ----------
    network : path
        As of :func:`gluon_lprnet.evaluate.landmarks.load_landmark_network`.
    detect : Detector, optional
        Default: that of :func:`gluon_lprnet.predict.detectors.make_detector`. It sees a picture from all four sides
        where it finds nothing sure upright.
    jaw : str
        As of :class:`gluon_lprnet.predict.aligner.Aligner`.

    Returns
    -------
    Aligner
        Its methods raise InputError if the network gives NaN or infinite landmarks.

    Raises
    ------
    InputError
        If it is not a network for 68 landmarks, or the jaw is unknown.
    """
    net, description = load_landmark_network(network)
    detector = detect or make_detector()

    def forward(crops):
        outputs = net(mx.nd.array(crops)).asnumpy()
        if not np.isfinite(outputs).all():
            raise InputError(f'{network} gives NaN or infinite landmarks: train it again.')
        return outputs

    return Aligner(forward, description, lambda picture: detect_turned(detector, picture), jaw)


class FaceAligner:
    """Finds the faces of pictures, and 68 landmarks of each.

    It may be used by several threads at once.

    Parameters
    ----------
    network : str or path
        A trained network of the package (``gluon_lprnet.list_models(pretrained=True)``), a run's or a checkpoint's
        folder, or a ``*-symbol.json``.
    jaw : str
        As of :class:`~gluon_lprnet.predict.aligner.Aligner`.
    detect : callable, optional
        (picture (height, width, 3) uint8, BGR) to a list of :class:`~gluon_lprnet.predict.detectors.Detection`;
        default: that of :func:`~gluon_lprnet.predict.detectors.make_detector`.

    Raises
    ------
    InputError
        As of :func:`make_aligner`.
    """

    def __init__(self, network: Union[str, Path] = DEFAULTS['landmarks'], jaw: str = '3d',
                 detect: Optional[Detector] = None) -> None:
        self._aligner = make_aligner(network, detect, jaw)

    def predict(self, images: Union[Image, Sequence[Image]],
                boxes: Optional[Sequence] = None) -> list[list[Face]]:
        """The faces of pictures.

        Parameters
        ----------
        images : path, bytes, ndarray, or a sequence of these
            Files, their content, or RGB pixels (height, width, 3) uint8.
        boxes : sequence of sequences of (left, top, right, bottom), optional
            Of the landmarks of the faces, for each picture, in pixels; by default the detector looks for faces.

        Returns
        -------
        list of list of Face
            A list for each picture, empty where no face was found.

        Raises
        ------
        InputError
            For a picture that cannot be read, an array that is not such pixels, or a box that is not valid or lies
            outside the picture, which is named.
        """
        pictures = as_sequence(images)
        if boxes is not None and (isinstance(boxes, Mapping) or len(boxes) != len(pictures)):
            raise InputError(f'there are {len(pictures)} pictures and boxes of {len(boxes)}: give a list of boxes for '
                             'each.')
        results: list[list[Face]] = []
        for part in _parts(_read(pictures)):
            given = None if boxes is None else boxes[len(results):len(results) + len(part)]
            for number, (picture, of_picture) in enumerate(zip(part, given if given is not None else ()), len(results)):
                _check_boxes(of_picture, picture, number)
            results += [[_face(entry) for entry in faces] for faces in self._aligner.align(part, given)]
        return results


def fault_of_box(box: Any, size: Optional[tuple[int, int]] = None) -> Optional[str]:
    """What is wrong with a face's box, in words that follow it, or None.

    Parameters
    ----------
    box : sequence of four numbers
        Left, top, right, bottom, in pixels.
    size : (int, int), optional
        Width and height of its picture.
    """
    if not (isinstance(box, (Sequence, np.ndarray)) and len(box) == 4
            and all(isinstance(number, Real) and math.isfinite(number) for number in box)):
        return 'is not a box: give [left, top, right, bottom]'
    left, top, right, bottom = box
    if right - left < 1 or bottom - top < 1:
        return 'is not a box of at least one pixel: give [left, top, right, bottom] in pixels'
    if size and (right < 0 or bottom < 0 or left > size[0] - 1 or top > size[1] - 1):
        return f'lies outside of the {size[0]}x{size[1]} pixels'
    return None


def _check_boxes(boxes, picture, number):
    """Raise InputError for boxes of picture ``number`` that are not valid."""
    if not isinstance(boxes, (Sequence, np.ndarray)):
        raise InputError(f'picture {number}: {boxes!r} is not a list of boxes.')
    for box in boxes:
        fault = fault_of_box(box, picture.shape[1::-1])
        if fault:
            raise InputError(f'picture {number}: {box} {fault}.')


def _read(images):
    """The pictures (height, width, 3) uint8, BGR, one after the other."""
    for number, image in enumerate(images):
        try:
            pixels = pixels_of(image)
        except ImageError as error:
            raise unreadable(image, number, error) from error
        yield cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)


def _parts(pictures):
    """Lists of pictures that are held at once."""
    part, pixels = [], 0
    for picture in pictures:
        if part and pixels + picture.size > 3 * _PIXELS_AT_ONCE:
            yield part
            part, pixels = [], 0
        part.append(picture)
        pixels += picture.size
    if part:
        yield part


def _face(entry):
    visible = np.ones(POINTS, dtype=bool)
    visible[entry['hidden']] = False
    return Face(np.array(entry['box']), np.array(entry['points']), entry.get('score'), entry['confidence'],
                Pose(**entry['pose']), visible)


def upright_crop(picture: np.ndarray, face: Mapping[str, Any], size: int) -> np.ndarray:
    """A square with a face upright in it.

    It is turned so that the line between the centers of the eyes is level; of a face that looks more than 45 degrees to
    a side, where that line is nearly along the view, so that the vertical axis of its head is upright. Its side is 1.7
    times the longer side of the box of the landmarks, so turned; its center lies 0.1 of that longer side above the
    box's, since the landmarks end at the brows. Outside the picture, its border is repeated.

    Parameters
    ----------
    picture : ndarray (height, width, 3) uint8
        RGB or BGR.
    face : dict
        As of :class:`Aligner`.
    size : int
        Side of the crop in pixels.

    Returns
    -------
    ndarray (size, size, 3) uint8
    """
    points = np.array(face['points'])
    left, right = (points[eye].mean(axis=0) for eye in _EYES)
    angle = np.arctan2(*(right - left)[::-1])
    if abs(face['pose']['yaw']) > _SIDEWAYS:
        angle = upright_angles(estimate_poses(points[None]).matrices)[0]
    matrix = turned_crop_matrix(points, angle, size, _FACE_CROP_SCALE)
    matrix[1, 2] += _FOREHEAD / _FACE_CROP_SCALE * size
    return warp_crop(picture, matrix, size)


def draw_faces(picture: np.ndarray, faces: Iterable[Mapping[str, Any]], pose: bool = False) -> None:
    """Draw boxes and contours, as of :class:`Aligner`, into a BGR picture.

    Lines to points that are hidden are lighter. ``pose`` also draws the head's axes from the tip of its nose: red to
    its left, green down, blue to the front.
    """
    for face in faces:
        box, points = np.array(face['box']), np.array(face['points'])
        thickness = max(1, round((box[2:] - box[:2]).max() / 120))
        left, top, right, bottom = np.rint(box).astype(int).tolist()
        cv2.rectangle(picture, (left, top), (right, bottom), _BOX_COLOR, thickness, cv2.LINE_AA)
        lines = [(one, other) for first, last, closed in CONTOURS
                 for one, other in [*zip(range(first, last), range(first + 1, last + 1)), *[(last, first)] * closed]]
        hidden = set(face['hidden'])
        # The visible ones over the others.
        for line in sorted(lines, key=lambda line: hidden.isdisjoint(line)):
            color = _COLOR if hidden.isdisjoint(line) else _HIDDEN_COLOR
            _draw_line(picture, points[list(line)], color, thickness)
        if pose:
            length = (box[2:] - box[:2]).max() / 2
            axes = rotation_of(face['pose'])[:2].T * [[1], [1], [-1]]
            for axis, color in zip(axes, ((0, 0, 255), (0, 160, 0), (255, 0, 0))):
                _draw_line(picture, points[_NOSE] + np.stack([np.zeros(2), length * axis]), color, 2 * thickness)


def _draw_line(picture, points, color, thickness):
    # In sixteenths of pixels.
    one, other = np.rint(16 * points).astype(int).tolist()
    cv2.line(picture, one, other, color, thickness, cv2.LINE_AA, 4)


