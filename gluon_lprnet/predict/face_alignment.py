"""The 68 landmarks of each face of a picture, its pose, and how far to trust them."""
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import cv2
import numpy as np
from scipy.special import expit

from ..data.faces.head_model import estimate_poses, hidden_landmarks, pose_of, rotation, upright_angles
from ..data.faces.landmarks import (
    CROP_SCALE,
    JAW_POINTS,
    JAWS,
    POINTS,
    box_size,
    landmark_box,
    turned_crop_matrix,
    warp_crop,
)
from ..data.images import ImageError, read_image
from ..evaluate.landmarks import load_landmark_network, predict_in_crops
from ..evaluate.network_flag import DEFAULTS
from ..utils.errors import InputError
from .classification import Image, as_sequence, unreadable
from .detectors import Detector, detect_turned, make_detector

# Faces that pass the network at once, and pixels of pictures held at once, which bound memory.
_BATCH_SIZE = 64
_PIXELS_AT_ONCE = 2**25

# The confidence is a logistic regression of whether a face's NME is above 7%: the constant, then the factors of the
# logarithms of its three signs. `python benchmarks/aligning.py --fit` gives them for held-out parts of the training
# sets of the network in the package.
_CONFIDENCE = np.array([6.94, 2.68, 1.09, 2.96])
# Below this confidence, other ways are tried.
_SURE = 0.9

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


class Pose(NamedTuple):
    """How a head is turned, in degrees, as of 300W-LP: roll is applied first, then yaw, then pitch.

    Attributes
    ----------
    yaw : float
        -90 to 90; positive: it looks to the left of the picture.
    pitch : float
        -180 to 180; positive: it looks up.
    roll : float
        -180 to 180; positive: it is turned clockwise.
    """

    yaw: float
    pitch: float
    roll: float


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


class Crop(NamedTuple):
    """Where a face is: an RGB picture, points (N, 2) around its landmarks, and its angle, clockwise, in radians."""

    picture: np.ndarray
    points: np.ndarray
    angle: float


class Estimate(NamedTuple):
    """What the network finds.

    Attributes
    ----------
    landmarks : ndarray (N, 2, 68, 2)
        By jaw, in pixels of the pictures.
    signs : ndarray (N, 3)
        Of how good they are, lower being better: the mean distances of the crop's landmarks from those of its mirror
        image and of the mean of both from the first ones, over the size of the box, and the misfit of a head.
    confidence : ndarray (N,)
        From the signs: how probable it is that the NME is at most 7%.
    rotations : ndarray (N, 3, 3)
        Of the head.
    """

    landmarks: np.ndarray
    signs: np.ndarray
    confidence: np.ndarray
    rotations: np.ndarray


class Aligner:
    """A landmark network with a detector. It may be used by several threads at once.

    A face passes the network three times: in the box where its landmarks are expected; in the crop that the first
    landmarks place, turned upright; and in that crop's mirror image. The mean of the last two is the answer. Where the
    three disagree, or their mean is far from a head's, the same is done with the face lying on each of its other sides,
    and once more from the answer; the one of the most confidence is taken.

    Parameters
    ----------
    network : path
        As of :func:`gluon_lprnet.evaluate.landmarks.load_landmark_network`.
    detect : Detector
        As from :func:`gluon_lprnet.predict.detectors.make_detector`.
    jaw : str
        Of a network of two jaws: ``3d``, that of the head, or ``contour``, the visible one.

    Raises
    ------
    InputError
        If it is not a network for 68 landmarks, or there is no such jaw.
    """

    def __init__(self, network: Union[str, Path], detect: Detector, jaw: str = '3d') -> None:
        if jaw not in JAWS:
            raise InputError(f'`jaw` {jaw!r}: give {" or ".join(JAWS)}.')
        self.network = network
        self._net, self._description = load_landmark_network(network)
        self._detect = detect
        self._jaw = jaw
        # A detector, and a network with static memory, compute in one set of buffers.
        self._lock = threading.Lock()

    def __call__(self, picture: np.ndarray, boxes: Optional[Sequence] = None) -> list[dict[str, Any]]:
        """The faces of one picture; see :meth:`align`."""
        return self.align([picture], None if boxes is None else [boxes])[0]

    def align(self, pictures: Sequence[np.ndarray], boxes: Optional[Sequence] = None) -> list[list[dict[str, Any]]]:
        """The faces of pictures, which pass the network together.

        Parameters
        ----------
        pictures : sequence of ndarray (height, width, 3) uint8
            BGR.
        boxes : sequence of sequences of (left, top, right, bottom), optional
            Of the faces' landmarks, in pixels; by default the detector looks for faces.

        Returns
        -------
        list of list of dict
            With ``box``, of the landmarks as given or expected, and ``points``, 68 of (x, y), in pixels, to a
            hundredth; ``confidence``, ``pose`` and ``hidden``, the numbers of the points that are not visible, as of
            :class:`Face`. Of detected faces also ``detected`` (the detector's box), ``detector`` and ``score``.

        Raises
        ------
        InputError
            If the network gives NaN or infinite landmarks.
        """
        found, sides = [], []
        for number, picture in enumerate(pictures):
            if boxes is None:
                with self._lock:
                    detections = detect_turned(self._detect, picture)
                places = [detection.sides() for detection in detections]
                found.append([{'box': _rounded(of_sides[0][0]), 'detected': _rounded(detection.box),
                               'detector': detection.kind, 'score': detection.score}
                              for detection, of_sides in zip(detections, places)])
            else:
                places = [[(box, turn) for turn in range(4)] for box in boxes[number]]
                found.append([{'box': _rounded(box)} for box in boxes[number]])
            if places:
                rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
                # Rounded as it is told, so that the box given again has the same landmarks.
                sides += [[Crop(rgb, corners(np.round(box, 2)), turn * np.pi / 2) for box, turn in of_sides]
                          for of_sides in places]
        faces = [face for of_picture in found for face in of_picture]
        for first in range(0, len(faces), _BATCH_SIZE):
            estimate = self._look_from_all_sides(sides[first:first + _BATCH_SIZE])
            for face, entry in zip(faces[first:], self._entries(estimate)):
                face.update(entry)
        return found

    def follow(self, picture: np.ndarray, faces: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The faces of a picture that are near those of the one before it.

        Parameters
        ----------
        picture : ndarray (height, width, 3) uint8
            BGR.
        faces : sequence of dict
            Of the picture before, as of :meth:`align`.

        Returns
        -------
        list of dict
            As of :meth:`align` for boxes that are given, one for each of ``faces``.
        """
        if not faces:
            return []
        rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        angles = upright_angles(np.stack([_rotation_of(face['pose']) for face in faces]))
        crops = [Crop(rgb, np.array(face['points']), angle) for face, angle in zip(faces, angles)]
        return [{'box': _rounded(landmark_box(crop.points)), **entry}
                for crop, entry in zip(crops, self._entries(self.look(crops)))]

    def _entries(self, estimate):
        hidden = hidden_landmarks(estimate.rotations)
        if self._jaw == 'contour':
            hidden[:, :JAW_POINTS] = False
        landmarks = estimate.landmarks[:, JAWS.index(self._jaw)]
        for points, confidence, matrix, behind in zip(landmarks, estimate.confidence, estimate.rotations, hidden):
            pitch, yaw, roll = _rounded(np.degrees(pose_of(matrix)))
            yield {'points': _rounded(points), 'confidence': round(float(confidence), 3),
                   'pose': Pose(yaw, pitch, roll)._asdict(), 'hidden': np.flatnonzero(behind).tolist()}

    def _look_from_all_sides(self, sides):
        """The :class:`Estimate` of faces, each given as four crops."""
        estimate = self.look([crops[0] for crops in sides])

        def improve(unsure, crops):
            other = self.look(crops)
            better = other.confidence > estimate.confidence[unsure]
            for kept, found in zip(estimate, other):
                kept[unsure[better]] = found[better]

        unsure = np.flatnonzero(estimate.confidence < _SURE)
        for side in (1, 2, 3) if len(unsure) else ():
            improve(unsure, [sides[index][side] for index in unsure])
        unsure = np.flatnonzero(estimate.confidence < _SURE)
        if len(unsure):
            improve(unsure, [sides[index][0]._replace(points=points[0], angle=angle) for index, points, angle in zip(
                unsure, estimate.landmarks[unsure], upright_angles(estimate.rotations[unsure]))])
        return estimate

    def look(self, crops: Sequence[Crop]) -> Estimate:
        """The landmarks of faces that are upright at the angles given, or nearly so, by three passes."""
        pictures = [crop.picture for crop in crops]
        size, scale = self._description['input_size'], self._description.get('crop_scale', CROP_SCALE)

        def predict(points, angles, mirrored=False):
            matrices = [turned_crop_matrix(each, angle, size, scale) for each, angle in zip(points, angles)]
            with self._lock:
                found = predict_in_crops(self._net, self._description, list(zip(pictures, matrices)),
                                         mirrored=mirrored)
            if not np.isfinite(found).all():
                raise InputError(f'{self.network} gives NaN or infinite landmarks: train it again.')
            return found

        # The head's jaw places crops and gives the pose, whichever is asked for.
        first = predict([crop.points for crop in crops], [crop.angle for crop in crops])[:, 0]
        angles = upright_angles(estimate_poses(first).matrices)
        # Of landmarks in one place there is no crop.
        around = [points if np.ptp(points, axis=0).min() > 1 else crop.points for points, crop in zip(first, crops)]
        upright, mirrored = predict(around, angles), predict(around, angles, mirrored=True)
        landmarks = (upright + mirrored) / 2
        poses = estimate_poses(landmarks[:, 0])
        size = np.maximum(box_size(landmark_box(landmarks[:, 0])), 1e-9)
        signs = np.stack([_distances(upright, mirrored)[:, 0] / size, _distances(first, landmarks[:, 0]) / size,
                          poses.misfits], axis=-1)
        # Exact agreement is not infinitely good.
        confidence = expit(-_CONFIDENCE[0] - np.log(signs + 1e-4) @ _CONFIDENCE[1:])
        return Estimate(landmarks, signs, confidence, poses.matrices)


class FaceAligner:
    """Finds the faces of pictures, and 68 landmarks of each.

    It may be used by several threads at once.

    Parameters
    ----------
    network : str or path
        A trained network of the package (``gluon_lprnet.list_models(pretrained=True)``), a run's or a checkpoint's
        folder, or a ``*-symbol.json``.
    jaw : str
        As of :class:`Aligner`.
    detect : callable, optional
        (picture (height, width, 3) uint8, BGR) to a list of :class:`~gluon_lprnet.predict.detectors.Detection`;
        default: that of :func:`~gluon_lprnet.predict.detectors.make_detector`.

    Raises
    ------
    InputError
        As of :class:`Aligner`.
    """

    def __init__(self, network: Union[str, Path] = DEFAULTS['landmarks'], jaw: str = '3d',
                 detect: Optional[Detector] = None) -> None:
        self._aligner = Aligner(network, detect or make_detector(), jaw)

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
            For a picture that cannot be read, which is named.
        """
        pictures = as_sequence(images)
        if boxes is not None and len(boxes) != len(pictures):
            raise InputError(f'there are {len(pictures)} pictures and boxes of {len(boxes)}: give a list of boxes for '
                             'each.')
        results: list[list[Face]] = []
        for part in _parts(_read(pictures)):
            given = None if boxes is None else boxes[len(results):len(results) + len(part)]
            results += [[_face(entry) for entry in faces] for faces in self._aligner.align(part, given)]
        return results


def _read(images):
    """The pictures (height, width, 3) uint8, BGR, one after the other."""
    for number, image in enumerate(images):
        try:
            pixels = image if isinstance(image, np.ndarray) else read_image(image)
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


def corners(box: Sequence[float]) -> np.ndarray:
    """The corners (4, 2) of a box: left, top, right, bottom."""
    left, top, right, bottom = box
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _distances(one, other):
    """Mean distances (...) of landmarks (..., 68, 2)."""
    return np.linalg.norm(one - other, axis=-1).mean(axis=-1)


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
            axes = _rotation_of(face['pose'])[:2].T * [[1], [1], [-1]]
            for axis, color in zip(axes, ((0, 0, 255), (0, 160, 0), (255, 0, 0))):
                _draw_line(picture, points[_NOSE] + np.stack([np.zeros(2), length * axis]), color, 2 * thickness)


def _rotation_of(pose):
    return rotation(np.radians([pose[name] for name in ('pitch', 'yaw', 'roll')]))


def _draw_line(picture, points, color, thickness):
    # In sixteenths of pixels.
    one, other = np.rint(16 * points).astype(int).tolist()
    cv2.line(picture, one, other, color, thickness, cv2.LINE_AA, 4)


def _rounded(numbers):
    return np.round(numbers, 2).tolist()
