"""The 68 landmarks of each face of a picture."""
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional, Union

import cv2
import numpy as np

from ..data.faces.landmarks import JAWS
from ..data.images import ImageError, read_image
from ..evaluate.landmarks import load_landmark_network, predict_landmarks
from ..evaluate.network_flag import DEFAULTS
from ..utils.errors import InputError
from .classification import as_sequence, unreadable
from .detectors import Detection, HaarDetector


class Aligner:
    """A landmark network with a detector.

    Parameters
    ----------
    network : path
        As of :func:`gluon_lprnet.evaluate.landmarks.load_landmark_network`.
    detect : callable
        :class:`HaarDetector` or :class:`YuNetDetector`.
    jaw : str
        Of a network of two jaws: ``3d``, that of the head, or ``contour``, the visible one.

    Raises
    ------
    InputError
        If it is not a network for 68 landmarks, or there is no such jaw.
    """

    def __init__(self, network, detect, jaw='3d'):
        if jaw not in JAWS:
            raise InputError(f'`jaw` {jaw!r}: give {" or ".join(JAWS)}.')
        self.network = network
        self._net, self._description = load_landmark_network(network)
        self._detect = detect
        self._jaw = jaw

    def __call__(self, picture, boxes=None):
        """The faces of a picture.

        Parameters
        ----------
        picture : ndarray (height, width, 3) uint8
            BGR.
        boxes : sequence of (left, top, right, bottom), optional
            Of the faces' landmarks, in pixels; by default the detector looks for faces.

        Returns
        -------
        list of dict
            With ``box``, of the landmarks as given or expected, and ``points``, 68 of (x, y); of detected faces
            also ``detected`` (the detector's box), ``detector`` and ``score``. Pixels, to a hundredth.

        Raises
        ------
        InputError
            If the network gives NaN or infinite landmarks.
        """
        if boxes is None:
            detections = self._detect(picture)
            faces = [{'box': _rounded(detection.landmark_box()), 'detected': _rounded(detection.box),
                      'detector': detection.kind, 'score': detection.score} for detection in detections]
        else:
            faces = [{'box': _rounded(np.array(box))} for box in boxes]
        if faces:
            rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            predicted = predict_landmarks(self._net, self._description, [(rgb, face['box']) for face in faces],
                                          jaws=self._jaw)
            if not np.isfinite(predicted).all():
                raise InputError(f'{self.network} gives NaN or infinite landmarks: train it again.')
            for face, points in zip(faces, predicted):
                face['points'] = _rounded(points)
        return faces


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
    """

    box: np.ndarray
    landmarks: np.ndarray
    score: Optional[float]


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
        default: OpenCV's Haar cascades, which find faces that are upright or nearly so.

    Raises
    ------
    InputError
        As of :class:`Aligner`.
    """

    def __init__(self, network: Union[str, Path] = DEFAULTS['landmarks'], jaw: str = '3d',
                 detect: Optional[Callable[[np.ndarray], list[Detection]]] = None) -> None:
        self._aligner = Aligner(network, detect or HaarDetector(), jaw)
        # A cascade and a network with static memory compute in one set of buffers.
        self._lock = threading.Lock()

    def predict(self, images: Union[str, Path, bytes, np.ndarray, Sequence],
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
        return [self._faces(number, image, None if boxes is None else boxes[number])
                for number, image in enumerate(pictures)]

    def _faces(self, number, image, boxes):
        try:
            pixels = image if isinstance(image, np.ndarray) else read_image(image)
        except ImageError as error:
            raise unreadable(image, number, error) from error
        with self._lock:
            found = self._aligner(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), boxes)
        return [Face(np.array(face['box']), np.array(face['points']), face.get('score')) for face in found]


def draw_faces(picture, faces):
    """Draw boxes and landmarks, as of :class:`Aligner`, into a BGR picture."""
    for face in faces:
        box = np.array(face['box'])
        size = max(1, round((box[2:] - box[:2]).max() / 120))
        left, top, right, bottom = np.rint(box).astype(int).tolist()
        cv2.rectangle(picture, (left, top), (right, bottom), (255, 160, 0), size, cv2.LINE_AA)
        for x, y in np.rint(face['points']).astype(int).tolist():
            cv2.circle(picture, (x, y), size, (0, 255, 0), cv2.FILLED, cv2.LINE_AA)


def _rounded(numbers):
    return np.round(numbers, 2).tolist()
