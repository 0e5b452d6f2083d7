"""Pack faces with their landmarks into the RecordIO files that training and evaluation read.

``python -m gluon_lprnet pack faces SOURCE --layout LAYOUT --out PREFIX`` writes ``PREFIX.rec``, ``.idx`` and
``.json`` as :mod:`gluon_lprnet.data.pack` does. A record holds

- a square around the face's box, wider than the network's input, so that rotated, shifted and scaled crops still
  show the photo: a JPEG whose comment has the face's name and identity as JSON;
- a label of `LABEL_WIDTH` numbers, the fields of `_FIELDS` in order.
"""
import itertools
import json
import math
import os
import struct
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Optional, Union

import cv2
import numpy as np
from tqdm import tqdm

from ...utils.errors import InputError
from ...utils.files import PathLike
from ...utils.flags import add_parser
from ...utils.processes import default_workers, map_in_processes
from ...utils.text import integer, listing, real
from ..images import MAX_SIDE, encode_jpeg, read_image
from ..integrity import RecordSummary, check_records
from ..pack import add_output_flags, check_ranges
from ..recordio import Label, check_prefix, read_records, write_records
from .datasets import LAYOUTS, read_faces
from .landmarks import POINTS, crop_matrix, transform, warp_crop

# The numbers of a label, in float32; pixels refer to the crop.
_FIELDS = {
    'landmarks': 2 * POINTS,    # x0, y0, x1, y1, ...
    'box': 4,                   # of the landmarks: left, top, right, bottom
    'pose': 3,                  # pitch, yaw, roll in radians; zeros where unknown
    'has_pose': 1,              # 0: no; 1: yes; 2: yaw alone
    'scale': 1,                 # point of the source's image = scale * point of the crop + offset
    'offset': 2,
}
LABEL_WIDTH = sum(_FIELDS.values())

_FACES_PER_TASK = 16
_HELD_OUT = 20
_START_OF_COMMENT = b'\xff\xd8\xff\xfe'


class FaceRecord(NamedTuple):
    """A face of a ``.rec`` file.

    Attributes
    ----------
    name : str
        As in :class:`gluon_lprnet.data.faces.datasets.AnnotatedFace`, after the source's name if several were packed.
    identity : str or None
    image : bytes
        The crop, encoded as JPEG.
    landmarks : ndarray (68, 2) float32
        x, y in pixels of the crop.
    box : ndarray (4,) float32
        The landmarks' box before any augmentation, in pixels of the crop.
    pose : ndarray (3,) float32 or None
        Pitch, yaw and roll in radians; pitch and roll are NaN where only yaw is known.
    scale : float
        Pixels of the source's image per pixel of the crop.
    offset : ndarray (2,) float32
        Where the crop's origin lies in the source's image.
    jaw : str or None
        Which jaw the landmarks have: one of :data:`gluon_lprnet.data.faces.landmarks.JAWS`; None in files packed by
        a version that did not note it.
    """

    name: str
    identity: Optional[str]
    image: bytes
    landmarks: np.ndarray
    box: np.ndarray
    pose: Optional[np.ndarray]
    scale: float
    offset: np.ndarray
    jaw: Optional[str] = None

    def pixels(self) -> np.ndarray:
        """The decoded image: ndarray (height, width, 3) uint8, RGB; raises InputError if it is damaged."""
        # Packing wrote an RGB JPEG, of which OpenCV makes the same pixels as `read_image` in half the time.
        picture = cv2.imdecode(np.frombuffer(self.image, 'uint8'), cv2.IMREAD_COLOR)
        if picture is None:
            raise InputError(f'the image of the face {self.name} cannot be decoded: pack the faces again.')
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)

    def to_original(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) of the crop in pixels of the source's image."""
        return self.scale * points + self.offset


class FaceSummary(NamedTuple):
    """What was packed: the ``.rec``, its records and bytes, and the (file, reason) of skipped faces."""

    rec_path: str
    count: int  # type: ignore[assignment]  # a field, not the method of tuples
    size: int
    skipped: list[tuple[str, str]]


def encode_record(record: FaceRecord) -> tuple[np.ndarray, bytes]:
    """A face as the label (ndarray (LABEL_WIDTH,) float32) and the image (bytes) of a record.

    Raises
    ------
    ValueError
        The name is too long for the comment of a JPEG.
    """
    has_pose = 0 if record.pose is None else 1 if np.isfinite(record.pose).all() else 2
    pose = np.zeros(3) if record.pose is None else np.nan_to_num(record.pose)
    fields = {**record._asdict(), 'pose': pose, 'has_pose': has_pose}
    label = np.concatenate([np.ravel(fields[name]) for name in _FIELDS]).astype('float32')
    comment = json.dumps({'name': record.name, 'identity': record.identity, 'jaw': record.jaw}).encode()
    if len(comment) > 65533:
        raise ValueError('has a name that is too long')
    return label, _START_OF_COMMENT + struct.pack('>H', len(comment) + 2) + comment + record.image[2:]


def decode_record(label: Label, image: bytes) -> FaceRecord:
    """The inverse of :func:`encode_record`: label and image of a record as a FaceRecord, with the image as stored.

    Raises
    ------
    ValueError
        The record is not that of a face; the message says what it has instead.
    """
    if np.shape(label) != (LABEL_WIDTH,):
        raise ValueError(f'a label of {np.size(label)} numbers, while that of a face has {LABEL_WIDTH}')
    if image[:4] != _START_OF_COMMENT:
        raise ValueError('no name in the comment of its JPEG')
    comment = json.loads(image[6:4 + struct.unpack_from('>H', image, 4)[0]])
    ends = np.cumsum(list(_FIELDS.values()))
    fields = dict(zip(_FIELDS, np.split(np.asarray(label, dtype='float32'), ends[:-1])))
    pose = fields['pose'] if fields['has_pose'].item() else None
    if fields['has_pose'].item() == 2:
        pose = np.array([np.nan, fields['pose'][1], np.nan], dtype='float32')
    return FaceRecord(comment['name'], comment['identity'], image, fields['landmarks'].reshape(POINTS, 2),
                      fields['box'], pose, fields['scale'].item(), fields['offset'], comment.get('jaw'))


def read_face_records(rec_path: PathLike) -> Iterator[FaceRecord]:
    """Iterate over the faces of a ``.rec`` file in the file's order.

    Parameters
    ----------
    rec_path : str or os.PathLike

    Yields
    ------
    FaceRecord

    Raises
    ------
    InputError
        The file is missing or damaged, or does not hold faces.
    """
    for number, (label, image) in enumerate(read_records(rec_path)):
        try:
            yield decode_record(label, image)
        except ValueError as error:
            raise InputError(f'{os.fspath(rec_path)}: record {number} (counted from 0) has {error}: pack faces with '
                             '"python -m gluon_lprnet pack faces".') from None


def check_face_records(rec_path: PathLike, data_check: str = 'full') -> RecordSummary:
    """Like :func:`gluon_lprnet.data.integrity.check_records`, for a ``.rec`` file of faces."""
    # First check that it has faces, since a file of classes is valid too, with another label width.
    next(read_face_records(rec_path))
    return check_records(rec_path, label_width=LABEL_WIDTH, data_check=data_check)


def pack_faces(sources: Union[PathLike, Sequence[PathLike]], layout: str, prefix: PathLike, size: int = 224,
               scale: float = 2.0, quality: int = 95, workers: Optional[int] = None, skip_bad: bool = False,
               shuffle: bool = True, seed: int = 0, overwrite: bool = False, part: str = 'all') -> FaceSummary:
    """Pack faces into ``prefix.rec`` with its index and manifest.

    The square is shrunk to `size` pixels, never enlarged; outside the photo its border is repeated. Photos are
    not rotated by their EXIF orientation, because the landmarks refer to the pixels as stored. The same input
    and seed give the same bytes, whatever the number of workers.

    Parameters
    ----------
    sources : path or sequence of paths
        Data sets, each as :func:`gluon_lprnet.data.faces.datasets.read_faces` takes it. If there are several, the names
        of the faces start with that of the source.
    layout : str
        Of all the sources.
    prefix : str or os.PathLike
        Where to write: ``data/train`` gives ``data/train.rec`` and so on. The folder is made if it is missing.
    size : int
        The largest side of a crop in pixels.
    scale : float
        The square's side in units of the longer side of the landmarks' box.
    quality : int
        JPEG quality, 1 to 100.
    workers, skip_bad, shuffle, seed, overwrite
        As for :func:`gluon_lprnet.data.pack.pack_images`.
    part : str
        A key of :data:`PARTS`: ``held-out`` are a twentieth of the pictures, to choose by, ``rest`` the others. Chance
        by name, or by person where the set says who it is, decides. The turned copies of 300W-LP go with their picture.

    Returns
    -------
    FaceSummary

    Raises
    ------
    InputError
        A parameter, a source, or (without `skip_bad`) any face is at fault; all of these are named. Nothing is left
        at `prefix`.
    """
    check_prefix(prefix, overwrite)
    check_ranges(size=(size, 16, 4096), scale=(scale, 1, 10), quality=(quality, 1, 100), workers=(workers, 1, 1024),
                 seed=(seed, 0, 2**32 - 1))
    sources = [sources] if isinstance(sources, (str, os.PathLike)) else list(sources)
    skipped: list[tuple[str, str]] = []
    faces = [face for face in _read_sources(sources, layout, skipped) if PARTS[part](face)]
    if shuffle:
        np.random.RandomState(seed).shuffle(faces)
    total = len(faces) + len(skipped)
    workers = default_workers(len(faces)) if workers is None else workers

    def convert_all():
        tasks = ((faces[first:first + _FACES_PER_TASK], size, scale, quality)
                 for first in range(0, len(faces), _FACES_PER_TASK))
        results = itertools.chain.from_iterable(map_in_processes(_convert_faces, tasks, workers))
        for face, (sample, reason) in zip(faces, tqdm(results, desc='packing', total=len(faces), unit='face',
                                                      disable=None, leave=False)):
            if reason is not None:
                skipped.append((face.image, reason))
            elif skip_bad or not skipped:  # after a failure the others are still checked, but not written
                yield sample
        skipped.sort()
        if skipped and not skip_bad:
            raise InputError(f'{len(skipped)} of {total} faces cannot be packed:\n'
                             f'{listing([f"{path} {reason}" for path, reason in skipped])}\n'
                             'Mend or remove them, or give `skip_bad` to leave them out. Nothing was written.')

    details = {'layout': layout, 'sources': _names(sources), 'size': size, 'scale': scale, 'quality': quality,
               'shuffle': shuffle, 'seed': seed if shuffle else None, 'part': part, 'skipped': skipped,
               'max_side': MAX_SIDE}
    rec_path, count, written = write_records(prefix, convert_all(), None, details, overwrite)
    return FaceSummary(rec_path, count, written, skipped)


def _held_out(face):
    name = face.identity or os.path.basename(face.name)
    # Encoded whatever it holds: the names of files need not be valid text.
    return zlib.crc32(name.encode('utf-8', 'surrogatepass')) % _HELD_OUT == 0


PARTS = {'all': lambda face: True, 'rest': lambda face: not _held_out(face), 'held-out': _held_out}


def _names(sources):
    return [os.path.basename(os.path.abspath(source)) for source in sources]


def _read_sources(sources, layout, faults):
    names = _names(sources)
    if len(set(names)) < len(names):
        raise InputError(f'The sources {", ".join(map(os.fspath, sources))} have the same last part of their paths, by '
                         'which their faces are distinguished: rename one.')
    faces = []
    for source, name in zip(sources, names):
        bar = tqdm(read_faces(source, layout, faults), desc=f'reading {name}', unit='face',
                   disable=None, leave=False)
        faces.extend(face if len(sources) == 1 else face._replace(name=f'{name}/{face.name}') for face in bar)
    return faces


def _convert_faces(task):
    """Convert faces; returns a list of ((label, image), None) or (None, what is wrong with the face)."""
    faces, size, scale, quality = task
    results = []
    for face in faces:
        try:
            results.append((encode_record(_crop(face, size, scale, quality)), None))
        except ValueError as error:
            results.append((None, str(error)))
    return results


def _crop(face, size, scale, quality):
    pixels = read_image(face.image, upright=False)
    height, width = pixels.shape[:2]
    outside = POINTS - np.all((face.landmarks > -0.5) & (face.landmarks < [width - 0.5, height - 0.5]), axis=1).sum()
    if outside > POINTS // 2:
        raise ValueError(f'has {outside} of its {POINTS} landmarks outside its {width}x{height} pixels')
    span = scale * float((face.box[2:] - face.box[:2]).max())
    side = min(size, math.ceil(span))
    matrix = crop_matrix(face.box, side, scale)
    if span <= size:
        # Cut out whole pixels unchanged: a shift by a fraction would blur small faces.
        matrix = np.column_stack([np.eye(2), np.round(matrix[:, 2] / matrix[0, 0])])
    picture = encode_jpeg(warp_crop(pixels, matrix, side), quality)
    factor = matrix[0, 0]
    return FaceRecord(face.name, face.identity, picture, transform(matrix, face.landmarks),
                      transform(matrix, face.box.reshape(2, 2)).ravel(), face.pose, 1 / factor, -matrix[:, 2] / factor,
                      face.jaw)


def add_pack_kind(kinds: Any) -> None:
    parser = add_parser(
        kinds, 'faces', help='faces with 68 landmarks, in the files of a data set',
        example='gluon-lprnet pack faces 300W-LP --layout 300w-lp --out data/300w_lp',
        description='Pack the faces of a data set into PREFIX.rec, .idx and .json (the manifest with checksums). They '
                    'appear only when complete. Layouts: '
                    + '; '.join(f'{name}: {layout.looks}' for name, layout in LAYOUTS.items()) + '.')
    parser.add_argument('sources', nargs='+', metavar='SOURCE', help='a data set; several must have the same layout')
    parser.add_argument('--layout', required=True, choices=LAYOUTS, help='layout of the data set (see above)')
    parser.add_argument('--size', type=integer, default=224, metavar='N',
                        help='shrink crops to N pixels; smaller ones are kept as they are, never enlarged '
                             '(default: %(default)s)')
    parser.add_argument('--scale', type=real, default=2.0,
                        help='side of a crop in units of the longer side of the landmarks\' box '
                             '(default: %(default)s)')
    parser.add_argument('--part', choices=PARTS, default='all',
                        help='held-out: every twentieth picture (of 300W-LP with its turned copies) or person, by a '
                             'hash of its name, to choose networks by; rest: the others (default: %(default)s)')
    add_output_flags(parser)
    parser.set_defaults(run=_run)


def _run(args):
    summary = pack_faces(args.sources, args.layout, args.out, args.size, args.scale, args.quality, args.workers,
                         args.skip_bad, args.shuffle, args.seed, args.overwrite, part=args.part)
    if summary.skipped:
        skipped = listing([f'{path} {reason}' for path, reason in summary.skipped])
        # Names go to standard error, which also prints those that are not valid UTF-8.
        print(f'{len(summary.skipped)} faces were skipped:\n{skipped}', file=sys.stderr)
    print(f'{summary.rec_path}: {summary.count} faces, {summary.size / 1e6:.1f} MB; {len(summary.skipped)} skipped')
