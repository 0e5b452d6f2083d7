"""The 68 landmarks of each face of a picture, its pose, and how far to trust them, by a network given as a function.

A model archive carries this module to the server, where there is no gluon_lprnet: what it imports goes along.
"""
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
from scipy.special import expit

from ..data.faces.head_model import estimate_poses, hidden_landmarks, pose_of, rotation, upright_angles
from ..data.faces.landmarks import (
    CROP_SCALE,
    JAW_POINTS,
    JAWS,
    box_size,
    landmark_box,
    landmarks_in_crops,
    turned_crop_matrix,
)
from ..utils.errors import InputError
from .detectors import Detection

# Faces that pass the network at once, which bounds memory.
_BATCH_SIZE = 64

# The confidence is a logistic regression of whether a face's NME is above 7%: the constant, then the factors of the
# logarithms of its three signs. `python benchmarks/aligning.py --fit` gives them for the held-out parts of the training
# sets of the network in the package.
_CONFIDENCE = np.array([7.66, 3.07, 0.97, 2.77])
# Below this confidence, other ways are tried.
_SURE = 0.9


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
    """A landmark network with what finds faces. It may be used by several threads at once.

    A face passes the network three times: in the box where its landmarks are expected; in the crop that the first
    landmarks place, turned upright; and in that crop's mirror image. The mean of the last two is the answer. Where the
    three disagree, or their mean is far from a head's, the same is done with the face lying on each of its other sides,
    and once more from the answer; the one of the most confidence is taken.

    Parameters
    ----------
    forward : callable
        The network: normalized crops (N, 3, size, size) float32 to outputs (N, 136) or (N, 170).
    description : dict
        Of the network, with ``input_size``, ``rgb_mean``, ``rgb_std``, and ``crop_scale`` where it is not the default.
    find : callable
        A picture (height, width, 3) uint8, BGR, to a list of :class:`gluon_lprnet.predict.detectors.Detection`.
    jaw : str
        Of a network of two jaws: ``3d``, that of the head, or ``contour``, the visible one.

    Raises
    ------
    InputError
        If the jaw is neither of these.
    """

    def __init__(self, forward: Callable[[np.ndarray], np.ndarray], description: Mapping[str, Any],
                 find: Callable[[np.ndarray], list[Detection]], jaw: str = '3d') -> None:
        if jaw not in JAWS:
            raise InputError(f'`jaw` {jaw!r}: give {" or ".join(JAWS)}.')
        self._forward = forward
        self._description = description
        self._find = find
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
            Of each picture, the boxes of its faces' landmarks, in pixels; for all, or where there is None in the place
            of a picture's boxes, faces are looked for.

        Returns
        -------
        list of list of dict
            With ``box``, of the landmarks as given or expected, and ``points``, 68 of (x, y), in pixels, to a
            hundredth; ``confidence`` and ``pose`` as of :class:`gluon_lprnet.predict.face_alignment.Face`, and
            ``hidden``, the numbers of the points that are not visible. Of detected faces also ``detected`` (the
            detector's box), ``detector`` and ``score``.
        """
        found, sides = [], []
        for picture, given in zip(pictures, [None] * len(pictures) if boxes is None else boxes):
            if given is None:
                with self._lock:
                    detections = self._find(picture)
                places = [detection.sides() for detection in detections]
                found.append([{'box': _rounded(of_sides[0][0]), 'detected': _rounded(detection.box),
                               'detector': detection.kind, 'score': detection.score}
                              for detection, of_sides in zip(detections, places)])
            else:
                places = [[(box, turn) for turn in range(4)] for box in given]
                found.append([{'box': _rounded(box)} for box in given])
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
        angles = upright_angles(np.stack([rotation_of(face['pose']) for face in faces]))
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
                return landmarks_in_crops(self._forward, self._description, list(zip(pictures, matrices)), mirrored)

        # The head's jaw places crops and gives the pose, whichever is asked for.
        first = predict([crop.points for crop in crops], [crop.angle for crop in crops])[:, 0]
        angles = upright_angles(estimate_poses(first).matrices)
        # Landmarks that coincide have no box to crop by.
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


def corners(box: Sequence[float]) -> np.ndarray:
    """The corners (4, 2) of a box: left, top, right, bottom."""
    left, top, right, bottom = box
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]])


def _distances(one, other):
    """Mean distances (...) of landmarks (..., 68, 2)."""
    return np.linalg.norm(one - other, axis=-1).mean(axis=-1)


def rotation_of(pose: Mapping[str, float]) -> np.ndarray:
    """The rotation (3, 3) of a :class:`Pose`, given as a dict."""
    return rotation(np.radians([pose[name] for name in ('pitch', 'yaw', 'roll')]))


def _rounded(numbers):
    return np.round(numbers, 2).tolist()
