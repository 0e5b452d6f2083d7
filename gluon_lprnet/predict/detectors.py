"""Where the faces of a picture are, and the landmarks' boxes to expect there."""
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from ..data.faces.datasets import read_faces
from ..data.images import ImageError, read_image
from ..utils.errors import InputError
from ..utils.text import render_table

# Detectors see a larger picture shrunk to this side: the smallest faces found are then 3% of it.
_DETECTION_SIDE = 1024
_SMALLEST_FACE = 30


class Correction(NamedTuple):
    """From a detector's box to the landmarks', in units of its longer side: shift of the centre, ratio of sides."""

    x: float
    y: float
    ratio: float


# The medians that `python -m gluon_lprnet detector-boxes FOLDER` gives for the training part of 300-W: 2,012 faces
# in pictures of at most 256x256, of which 1,802 are found from the front. Of the profiles, with 37 and 26 faces, the
# two sides' mean: x -0.061 and 0.050, y 0.130 and 0.106, ratio 0.817 and 0.781. On the test part, where 533 of 554
# faces are found, the expected centre is then off by 7% of the side in the median (15% at the 90th percentile), and
# the side by -9% to +8% (10th to 90th percentile).
CORRECTIONS = {
    'frontal': Correction(0.005, 0.161, 0.894),
    'profile': Correction(-0.055, 0.12, 0.8),
    'profile, mirrored': Correction(0.055, 0.12, 0.8),
    # Not measured: OpenCV's package does not carry the model. Its boxes reach from the hairline to the chin,
    # the landmarks from the brows.
    'yunet': Correction(0.0, 0.1, 0.8),
}


class Detection(NamedTuple):
    """A face that a detector found.

    Attributes
    ----------
    box : ndarray (4,)
        Left, top, right, bottom in pixels, as the detector draws it.
    score : float
        Of the cascades the number of windows that agreed, of YuNet its confidence from 0 to 1.
    kind : str
        A key of :data:`CORRECTIONS`.
    """

    box: np.ndarray
    score: float
    kind: str

    def landmark_box(self):
        """Where the landmarks' box is to be expected: a square, left, top, right, bottom."""
        correction = CORRECTIONS[self.kind]
        centre, side = _square(self.box)
        centre = centre + side * np.array([correction.x, correction.y])
        half = side * correction.ratio / 2
        return np.concatenate([centre - half, centre + half])


def read_picture(path, upright=True):
    """A picture file, as of :func:`gluon_lprnet.data.images.read_image`, but BGR; or InputError."""
    try:
        return cv2.cvtColor(read_image(path, upright), cv2.COLOR_RGB2BGR)
    except ImageError as error:
        raise InputError(f'{path} {error}.') from error


class HaarDetector:
    """The cascades of OpenCV's package: faces from the front, and in profile to either side.

    Called with a picture (height, width, 3) uint8, BGR, it gives a list of Detection.
    """

    # Of the frontal cascades, at equal hits the one with the fewest false ones on 300-W.
    _CASCADES = (('frontal', 'frontalface_alt', False), ('profile', 'profileface', False),
                 ('profile, mirrored', 'profileface', True))

    def __init__(self):
        self._cascades = [(kind, cv2.CascadeClassifier(f'{cv2.data.haarcascades}haarcascade_{name}.xml'), mirrored)
                          for kind, name, mirrored in self._CASCADES]

    def __call__(self, picture):
        picture, scale = _shrink(picture)
        gray = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        found = []
        for kind, cascade, mirrored in self._cascades:
            seen = cv2.flip(gray, 1) if mirrored else gray
            boxes, neighbours = cascade.detectMultiScale2(seen, 1.1, 3, minSize=(_SMALLEST_FACE, _SMALLEST_FACE))
            of_kind = []
            for (left, top, width, height), score in zip(boxes, neighbours):
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
        If the file is missing or OpenCV does not load it.
    """

    def __init__(self, model):
        if not Path(model).is_file():
            raise InputError(f'--detector {model}: no such file.')
        try:
            self._net = cv2.FaceDetectorYN.create(str(model), '', (320, 320), score_threshold=0.6)
        except cv2.error as error:
            raise InputError(f'--detector {model} does not load as a YuNet model (face_detection_yunet_*.onnx): '
                             f'{error.err or error}') from error

    def __call__(self, picture):
        picture, scale = _shrink(picture)
        self._net.setInputSize(picture.shape[1::-1])
        _, faces = self._net.detect(picture)
        # Left, top, width, height, five points, score.
        return [Detection((np.append(face[:2], face[:2] + face[2:4] - 1) + 0.5) * scale - 0.5, float(face[14]), 'yunet')
                for face in (() if faces is None else faces.astype('float64'))]


def _square(box):
    """Centre (2,) and longer side of a box (4,)."""
    return (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max()


def _shrink(picture):
    """A picture of at most ``_DETECTION_SIDE``, and pixels of the given one per pixel of it, (x, y, x, y)."""
    height, width = picture.shape[:2]
    factor = min(1, _DETECTION_SIDE / max(height, width))
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


def measure_detector(detect, faces):
    """How a detector's boxes lie to the landmarks' boxes.

    Parameters
    ----------
    detect : callable
        :class:`HaarDetector` or :class:`YuNetDetector`.
    faces : iterable of gluon_lprnet.data.faces.datasets.AnnotatedFace
        Of pictures with one annotated face each; what is found elsewhere in them is not counted.

    Returns
    -------
    dict of str to ndarray (N, 3)
        By kind of detection, of each face found: a :class:`Correction` that would be exact for it.
    """
    found = {}
    for face in faces:
        centre, side = _square(face.box)
        # The landmarks belong to the pixels as stored.
        for detection in detect(read_picture(face.image, upright=False)):
            detected, length = _square(detection.box)
            correction = Correction(*(centre - detected) / length, side / length)
            # Otherwise something else was found: the centres are apart or the sizes differ too much.
            if max(abs(correction.x), abs(correction.y)) < 0.4 and 0.5 < correction.ratio < 1.6:
                found.setdefault(detection.kind, []).append(correction)
    return {kind: np.array(rows) for kind, rows in found.items()}


def add_commands(commands):
    parser = commands.add_parser(
        'detector-boxes', help="how a detector's boxes lie to the landmarks' boxes",
        description="Measure what turns a detector's box into the landmarks' box, on annotated pictures of one face "
                    'each.')
    parser.add_argument('folder', help='pictures with landmarks (.pts) beside them, searched through')
    parser.add_argument('--detector', metavar='MODEL.onnx', help='as of align')
    parser.set_defaults(run=_run)


def _run(args):
    faults = []
    faces = list(read_faces(args.folder, 'pts', faults))
    for file, what in faults:
        print(f'{file} {what}', file=sys.stderr)
    detect = YuNetDetector(args.detector) if args.detector else HaarDetector()
    measured = measure_detector(detect, tqdm(faces, 'detecting', unit='face', leave=False, disable=None))
    rows = []
    for kind, corrections in measured.items():
        low, median, high = np.percentile(corrections, (10, 50, 90), axis=0)
        rows.append((kind, len(corrections), *(f'{middle:.3f} ({least:.3f} to {most:.3f})'
                                               for least, middle, most in zip(low, median, high))))
    print(render_table(('detection', 'faces', 'shift x', 'shift y', 'ratio of sides'), rows, 'text'))
    print(f"\nOf {len(faces)} faces. Median (10th to 90th percentile) of what turns a detector's box into the "
          "landmarks', in units of its longer side.")
    return 1 if faults else 0
