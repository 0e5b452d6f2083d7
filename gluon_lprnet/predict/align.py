"""Landmarks of the faces in any picture or video: ``python -m gluon_lprnet align``.

A detector's box is not the landmarks' box that a network was trained with: :data:`CORRECTIONS` turns one into the
other.
"""
import json
import math
import os
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from ..complexity import render_table
from ..data.faces.datasets import read_faces
from ..evaluate.landmarks import load_landmark_network, predict_landmarks
from ..utils.errors import InputError
from ..utils.flags import non_negative_int, positive_int

_PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.tif', '.tiff')
_VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')
_CAMERA = 'camera'

# Detectors see a larger picture shrunk to this side: the smallest faces found are then 3% of it.
_DETECTION_SIDE = 1024
_SMALLEST_FACE = 30
_FRAMES_PER_SECOND = 25


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
    faces : iterable of Face
        Of pictures with one annotated face each; what is found elsewhere in them is not counted.

    Returns
    -------
    dict of str to ndarray (N, 3)
        By kind of detection, of each face found: a :class:`Correction` that would be exact for it.
    """
    found = {}
    for face in faces:
        centre, side = _square(face.box)
        for detection in detect(_read_picture(face.image)):
            detected, length = _square(detection.box)
            correction = Correction(*(centre - detected) / length, side / length)
            # Otherwise something else was found: the centres are apart or the sizes differ too much.
            if max(abs(correction.x), abs(correction.y)) < 0.4 and 0.5 < correction.ratio < 1.6:
                found.setdefault(detection.kind, []).append(correction)
    return {kind: np.array(rows) for kind, rows in found.items()}


class Aligner:
    """A landmark network with a detector.

    Parameters
    ----------
    network : path
        As of :func:`gluon_lprnet.evaluate.landmarks.load_landmark_network`.
    detect : callable
        :class:`HaarDetector` or :class:`YuNetDetector`.
    """

    def __init__(self, network, detect):
        self.network = network
        self._net, self._description = load_landmark_network(network)
        self._detect = detect

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
            predicted = predict_landmarks(self._net, self._description, [(rgb, face['box']) for face in faces])
            if not np.isfinite(predicted).all():
                raise InputError(f'{self.network} gives NaN or infinite landmarks: train it again.')
            for face, points in zip(faces, predicted):
                face['points'] = _rounded(points)
        return faces


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


def _read_picture(path):
    try:
        picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error as error:  # as of a picture with too many pixels
        raise InputError(f'{path} cannot be read: {error.err}') from error
    if picture is None:
        raise InputError(f'{path} is not a picture that can be read.')
    return picture


class _Source(NamedTuple):
    """Something to align: the name of what is written for it, and its path (None for the camera)."""

    name: str
    path: Path = None


def _find_sources(arguments, out):
    """The pictures, and the videos, that the arguments name."""
    pictures, videos = [], []
    for argument in arguments:
        path = Path(argument)
        extension = path.suffix.lower()
        if argument == _CAMERA:
            videos.append(_Source('camera.mp4'))
        elif path.is_dir():
            # What an earlier run wrote is no source, even if its folder lies in this one.
            inside = [_Source(file.relative_to(path).as_posix(), file) for file in sorted(path.rglob('*'))
                      if file.suffix.lower() in _PICTURES and out.resolve() not in file.resolve().parents]
            if not inside:
                raise InputError(f'{path} holds no pictures ({", ".join(_PICTURES)}).')
            pictures += inside
        elif not path.exists():
            raise InputError(f'{path} does not exist: give pictures, folders of pictures, videos, or {_CAMERA}.')
        elif extension in _PICTURES:
            pictures.append(_Source(path.name, path))
        elif extension in _VIDEOS:
            videos.append(_Source(path.stem + ('.avi' if extension == '.avi' else '.mp4'), path))
        else:
            raise InputError(f'{path} has the extension of neither a picture ({", ".join(_PICTURES)}) nor a video '
                             f'({", ".join(_VIDEOS)}).')
    sources = {}
    for source in pictures + videos:
        if source.name in sources:
            raise InputError(f'{source.path or _CAMERA} and {sources[source.name].path or _CAMERA} would both be '
                             f'written to {out / source.name}: align them in two runs, each with its --out.')
        if source.path and source.path.resolve() == (out / source.name).resolve():
            raise InputError(f'--out {out} would overwrite {source.path}: give another folder.')
        sources[source.name] = source
    return pictures, videos


def _read_boxes(file):
    """The boxes by picture, of a file ``{"name": [[left, top, right, bottom], ...]}``."""
    try:
        boxes = json.loads(Path(file).read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f'--boxes {file} cannot be read: {error.strerror}.') from error
    except ValueError as error:
        raise InputError(f'--boxes {file} is not JSON: {error}.') from error
    form = 'give {"NAME.jpg": [[left, top, right, bottom], ...], ...}'
    if not isinstance(boxes, dict):
        raise InputError(f'--boxes {file}: {form}.')
    for name, of_picture in boxes.items():
        if not isinstance(of_picture, list):
            raise InputError(f'--boxes {file}, {name}: not a list of boxes: {form}.')
        for box in of_picture:
            if not (isinstance(box, list) and len(box) == 4
                    and all(isinstance(number, (int, float)) and math.isfinite(number) for number in box)
                    and box[0] < box[2] and box[1] < box[3]):
                raise InputError(f'--boxes {file}, {name}: {box} is not a box: {form}, with left < right and '
                                 'top < bottom.')
    return boxes


def _align_picture(aligner, source, boxes, boxes_file, out):
    """Write one picture with its landmarks; returns its entry of the JSON."""
    picture = _read_picture(source.path)
    height, width = picture.shape[:2]
    given = None
    if boxes is not None:
        if source.name not in boxes:
            raise InputError(f'{source.path}: --boxes {boxes_file} has no {source.name!r}.')
        given = boxes[source.name]
        for left, top, right, bottom in given:
            if right < 0 or bottom < 0 or left > width - 1 or top > height - 1:
                raise InputError(f'{source.path}: the box {[left, top, right, bottom]} of --boxes {boxes_file} lies '
                                 f'outside of its {width}x{height} pixels.')
    faces = aligner(picture, given)
    draw_faces(picture, faces)
    target = out / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(target), picture):
        raise InputError(f'{target} cannot be written.')
    return {'image': source.name, 'width': width, 'height': height, 'faces': faces}


def _align_video(aligner, source, camera, limit, out, entry):
    """Write a video with landmarks, and its frames' faces into ``entry``, as far as it comes."""
    capture = cv2.VideoCapture(camera if source.path is None else str(source.path))
    writer = None
    try:
        if not capture.isOpened():
            raise InputError(f'--camera {camera} does not open.' if source.path is None else
                             f'{source.path} is not a video that can be read.')
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else _FRAMES_PER_SECOND
        known = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if source.path else 0
        target = out / source.name
        with tqdm(desc=source.name, total=limit or known or None, unit='frame', leave=False, disable=None) as bar:
            while limit is None or len(entry['frames']) < limit:
                there, picture = capture.read()
                if not there:
                    break
                if writer is None:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    code = cv2.VideoWriter_fourcc(*('MJPG' if target.suffix == '.avi' else 'mp4v'))
                    writer = cv2.VideoWriter(str(target), code, rate, picture.shape[1::-1])
                    if not writer.isOpened():
                        raise InputError(f'{target} cannot be written: OpenCV has no encoder for it here.')
                    entry.update(width=picture.shape[1], height=picture.shape[0], frames_per_second=rate)
                faces = aligner(picture)
                draw_faces(picture, faces)
                writer.write(picture)
                entry['frames'].append({'frame': len(entry['frames']), 'faces': faces})
                bar.update()
    finally:
        # An interrupted video is still closed as one that can be played.
        capture.release()
        if writer is not None:
            writer.release()
    if not entry['frames']:
        raise InputError(f'{source.path or f"--camera {camera}"} gives no frame.')


def add_commands(commands):
    align = commands.add_parser(
        'align', help='landmarks of the faces in pictures, videos or of a camera',
        description='Find faces and their 68 landmarks. DIR gets the pictures and videos with the landmarks drawn, '
                    'and landmarks.json. Exit status 1 if a source could not be read; the others are done. '
                    'Ctrl-C ends a video early and keeps what is done.')
    align.add_argument('network', help='run folder, checkpoint folder or -symbol.json')
    align.add_argument('sources', nargs='+', metavar='SOURCE',
                       help=f'picture, folder of pictures, video, or {_CAMERA}')
    align.add_argument('--out', default='aligned', metavar='DIR', help='folder to write to (default: %(default)s)')
    where = align.add_mutually_exclusive_group()
    where.add_argument('--boxes', metavar='FILE.json',
                       help="boxes of the landmarks instead of a detector's, for pictures: "
                            '{"NAME.jpg": [[left, top, right, bottom], ...]}; names in a folder are relative to it')
    where.add_argument('--detector', metavar='MODEL.onnx',
                       help="a YuNet model for OpenCV's FaceDetectorYN (default: OpenCV's Haar cascades)")
    align.add_argument('--camera', type=non_negative_int, default=0, metavar='N',
                       help=f'number of the camera that {_CAMERA} means (default: %(default)s)')
    align.add_argument('--frames', type=positive_int, metavar='N', help='of a video or the camera, only the first N')
    align.set_defaults(run=_run_align)

    boxes = commands.add_parser(
        'detector-boxes', help="how a detector's boxes lie to the landmarks' boxes",
        description="Measure what turns a detector's box into the landmarks' box, on annotated pictures of one face "
                    'each.')
    boxes.add_argument('folder', help='pictures with landmarks (.pts) beside them, searched through')
    boxes.add_argument('--detector', metavar='MODEL.onnx', help='as of align')
    boxes.set_defaults(run=_run_detector_boxes)


def _run_align(args):
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file: give a folder.')
    pictures, videos = _find_sources(args.sources, out)
    boxes = None
    if args.boxes:
        if videos:
            raise InputError(f'--boxes is for pictures, and {videos[0].path or _CAMERA} is a video.')
        boxes = _read_boxes(args.boxes)
    aligner = Aligner(args.network, YuNetDetector(args.detector) if args.detector else HaarDetector())
    found = {'network': str(args.network), 'images': [], 'videos': []}
    faults = 0
    out.mkdir(parents=True, exist_ok=True)
    try:
        for source in tqdm(pictures, 'pictures', unit='picture', leave=False, disable=None):
            try:
                entry = _align_picture(aligner, source, boxes, args.boxes, out)
            except InputError as error:
                faults += 1
                tqdm.write(f'{error}', file=sys.stderr)
                continue
            found['images'].append(entry)
            tqdm.write(f'{source.name}: {_count(len(entry["faces"]))}')
        for source in videos:
            entry = {'video': source.name, 'frames': []}
            try:
                _align_video(aligner, source, args.camera, args.frames, out, entry)
            except InputError as error:
                faults += 1
                print(error, file=sys.stderr)
            except KeyboardInterrupt:
                # How a camera is switched off.
                if source.path is not None:
                    raise
            finally:
                if entry['frames']:
                    found['videos'].append(entry)
                    counts = [len(frame['faces']) for frame in entry['frames']]
                    print(f'{source.name}: {len(counts)} frames, {_count(sum(counts))}, in '
                          f'{sum(map(bool, counts))} of the frames')
    finally:
        scratch = out / 'landmarks.json.part'
        scratch.write_text(json.dumps(found) + '\n')
        os.replace(scratch, out / 'landmarks.json')
        print(f'Written: {out / "landmarks.json"}; pictures: {len(found["images"])}, videos: {len(found["videos"])}'
              + (f', not done (named above): {faults}' if faults else ''))
    return 1 if faults else 0


def _count(faces):
    return 'no face found' if not faces else '1 face' if faces == 1 else f'{faces} faces'


def _run_detector_boxes(args):
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
