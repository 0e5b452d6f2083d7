"""Faces with 68 landmarks, read from the original files of the data sets.

:func:`read_faces` converts every layout to the same form. Files count pixels from 0 or from 1 (`ORIGIN`); here
(0, 0) is the center of the top left pixel.
"""
import functools
import itertools
import math
import os
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from typing import Callable, NamedTuple, Optional
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ...utils.errors import InputError
from ...utils.files import PathLike
from ...utils.text import integer, real
from ..images import EXTENSIONS, files_in
from .landmarks import POINTS, landmark_box, mirror
from .matlab5 import read_matrices
from .torch7 import read_tensor

# The coordinates of the center of the top left pixel in the files of a layout.
ORIGIN = {
    # 3DDFA is MATLAB code, and AFLW2000-3D shows it: AFLW's landmarks n, most of them whole pixels, were scaled by
    # s to pt2d = (n - 1) * s + 1, which keeps 1 at the edge. With 0 for the edge not one n would be whole.
    '300w-lp': 1, '300w-lp-flip': 1, 'aflw2000-3d': 1,
    # Not documented; written by Torch, whose indices start at 1.
    'ls3d-w': 1,
    # iBUG annotated in MATLAB; menpo, the library of the same group, subtracts 1 when reading.
    'pts': 1,
    # dlib's arrays start at 0, and its tools write their indices.
    'dlib': 0,
    # Not documented. Aligners of others find the points 1.0 / 0.9 pixels too far right and down if they are read from
    # 0. So does one trained here, with pictures flipped at random, which cannot learn a shift to one side: its points
    # of the test part are 0.3 pixels to the left of these read from 1, so 1.3 of those read from 0 (300-W: 0.7 from 1).
    'ytf68': 1,
    # Made for this project, in OpenCV's coordinates.
    'aflw': 0,
}

# The jaw, one of landmarks.JAWS, that a layout's files have. LS3D-W's points are 3-D ones, projected. `profile`
# writes the layout 300w-lp: its jaws are those of its source near the front, and the generic head's when turned.
JAW = {
    '300w-lp': '3d', '300w-lp-flip': '3d', 'aflw2000-3d': '3d', 'ls3d-w': '3d', 'aflw': '3d',
    'pts': 'contour', 'dlib': 'contour', 'ytf68': 'contour',
}

# Faces that are tried to tell whether a path has a layout.
_LOOKED_AT = 5

# Of arrays in an archive: some two million faces.
_MOST_BYTES = 1 << 31

LP_SETS = ('AFW', 'HELEN', 'IBUG', 'LFPW')


class AnnotatedFace(NamedTuple):
    """A face of a data set.

    Attributes
    ----------
    name : str
        Path of the image relative to the set's folder, with ``/``; unique within the set.
    image : str
        Path of the image file.
    landmarks : ndarray (68, 2) float32
        x, y in pixels.
    box : ndarray (4,) float32
        The box of the landmarks: left, top, right, bottom. The paper derives its boxes from the landmarks.
    pose : ndarray (3,) float32 or None
        Pitch, yaw and roll in radians; pitch and roll are NaN where only yaw is known.
    identity : str or None
        Who it is; of 300W-LP, the picture that this one is a turned copy of.
    jaw : str
        Which jaw the landmarks have: one of :data:`gluon_lprnet.data.faces.landmarks.JAWS`.
    """

    name: str
    image: str
    landmarks: np.ndarray
    box: np.ndarray
    pose: Optional[np.ndarray]
    identity: Optional[str]
    jaw: str


class Layout(NamedTuple):
    """A layout of files: `find` lists the entries of a path, `looks` describes the layout to the user."""

    find: Callable
    looks: str


class _Entry(NamedTuple):
    """A face listed by a set; `read` returns landmarks (68, 2) in our pixels and the pose, or raises _Fault."""

    name: str
    image: str
    file: str
    read: Callable
    identity: Optional[str] = None


class _Fault(Exception):
    """What is wrong with a file: its path, and words that complete "the file ..."."""


def read_faces(path: PathLike, layout: str, faults: list[tuple[str, str]]) -> Iterator[AnnotatedFace]:
    """Iterate over the faces of a data set.

    Images are not decoded here. Landmarks may lie outside the image, where its border cuts a face.

    Parameters
    ----------
    path : str or os.PathLike
        The set's folder; for ``dlib``, ``ytf68`` and ``aflw`` its ``.xml`` or ``.npz`` file.
    layout : str
        A key of `LAYOUTS`.

        - ``300w-lp``: 300W-LP, and any set with a folder in ``landmarks``. The landmarks are ``pts_3d`` of
          ``landmarks/<SET>/<name>_pts.mat``, which is the convention of AFLW2000-3D's ``pt3d_68``; pose from
          ``Pose_Para`` of the ``.mat`` beside the image.
        - ``300w-lp-flip``: the same with the folders of mirrored images. Their landmarks have no files and are
          mirrored here: do not use random mirroring in training as well.
        - ``aflw2000-3d``: AFLW2000-3D, ``pt3d_68`` and ``Pose_Para``.
        - ``ls3d-w``: any folder of LS3D-W, searched recursively.
        - ``pts``: iBUG's annotations (300W, AFW, HELEN, LFPW), in folders that are searched recursively.
        - ``dlib``: the XML of dlib's tools; boxes marked ``ignore`` are skipped.
        - ``ytf68``: a NumPy archive of names, landmarks and identities.
        - ``aflw``: a NumPy archive of names, points and yaw, with the pictures in a folder beside it, ``aflw`` for
          ``aflw_labels.npz``. Only the names in the archive are read, whatever else is in the folder.
    faults : list
        Receives (path of the file, what is wrong with it) for each face that cannot be used.

    Yields
    ------
    AnnotatedFace
        Sorted by name.

    Raises
    ------
    InputError
        The layout is unknown, the path is missing or has no faces, or the file that lists them is damaged.
    """
    path = os.fspath(path)
    if layout not in LAYOUTS:
        raise InputError(f'`layout` {layout} is unknown: give one of {", ".join(LAYOUTS)}.')
    if not os.path.exists(path):
        raise InputError(f'{path} does not exist: the layout {layout} is {LAYOUTS[layout].looks}.')
    try:
        entries = sorted(LAYOUTS[layout].find(path), key=lambda entry: entry.name)
    except (_Fault, OSError) as error:
        file, what = error.args if isinstance(error, _Fault) else (path, f'cannot be read: {error.strerror}')
        raise InputError(f'{file} {what}. The layout {layout} is {LAYOUTS[layout].looks}.'
                         f'{_other_layouts(path, layout)}') from error
    if not entries:
        raise InputError(f'{path} holds no faces: the layout {layout} is {LAYOUTS[layout].looks}.'
                         f'{_other_layouts(path, layout)}')
    if not _has_faces(entries, layout):
        others = _other_layouts(path, layout)
        if others:
            raise InputError(f'{path} does not have the layout {layout}, which is {LAYOUTS[layout].looks}.{others}')
    before = None
    for entry in entries:
        try:
            if entry.name == before:
                raise _Fault(entry.image, 'is listed twice')
            before = entry.name
            yield _face(entry, JAW[layout])
        except _Fault as fault:
            faults.append(fault.args)
        except OSError as error:
            faults.append((entry.file, f'cannot be read: {error.strerror or error}'))


def _has_faces(entries, layout):
    """Whether one of the first entries can be read."""
    for entry in itertools.islice(entries, _LOOKED_AT):
        try:
            _face(entry, JAW[layout])
            return True
        except (_Fault, OSError):
            continue
    return False


def _other_layouts(path, layout):
    """A sentence that names the layouts that the files of a path do have; empty if they have none."""
    found = []
    for other in LAYOUTS:
        try:
            if other != layout and _has_faces(LAYOUTS[other].find(path), other):
                found.append(other)
        except (_Fault, OSError):
            continue
    return f' Its files have the layout {" or ".join(found)}: give that as `layout`.' if found else ''


def _face(entry, jaw):
    for file in (entry.image, entry.file):
        if not os.path.isfile(file):
            raise _Fault(file, 'does not exist')
    points, pose = entry.read()
    points = _numbers(entry.file, points, (POINTS, 2), 'landmarks').astype('float32')
    box = landmark_box(points)
    if not (box[2:] > box[:2]).all():
        raise _Fault(entry.file, 'has all landmarks on one line: their box is empty')
    return AnnotatedFace(entry.name, entry.image, points, box, pose, entry.identity, jaw)


def _numbers(file, values, shape, what):
    """The values as finite float64 numbers of the given shape."""
    values = np.asarray(values)
    if values.shape != shape:
        sizes = ['x'.join(map(str, each)) or 'one' for each in (values.shape, shape)]
        raise _Fault(file, f'has {sizes[0]} numbers for {what}, not {sizes[1]}')
    try:
        values = values.astype('float64')
    except (TypeError, ValueError):
        raise _Fault(file, f'has {what} that are not numbers') from None
    if not np.isfinite(values).all():
        raise _Fault(file, f'has {what} that are not finite')
    return values


def _pairs(path, extension, deep=False):
    """Yield (name, image path, annotation path) of each image or annotation; the partner may not exist."""
    for folder, files in itertools.islice(files_in(path), None if deep else 1):
        named = [(stem, ending) for stem, ending in map(os.path.splitext, files) if not stem.startswith('.')]
        images = [(stem, ending) for stem, ending in named if ending.lower() in EXTENSIONS]
        annotations = {stem: ending for stem, ending in named if ending.lower() == extension}
        alone = set(annotations).difference(stem for stem, _ in images)
        for stem, ending in images + [(stem, '.jpg') for stem in alone]:
            image = os.path.join(folder, stem + ending)
            yield (os.path.relpath(image, path).replace(os.sep, '/'), image,
                   os.path.join(folder, stem + annotations.get(stem, extension)))


def _find_pairs(path, extension, deep, read):
    return [_Entry(name, image, file, functools.partial(read, file))
            for name, image, file in _pairs(path, extension, deep)]


def _find_300w_lp(path, with_flipped):
    points = os.path.join(path, 'landmarks')
    sets = {*LP_SETS, *(os.listdir(points) if os.path.isdir(points) else ())}
    for set_name, flipped in itertools.product(sets, (False, True) if with_flipped else (False,)):
        folder = set_name + '_Flip' * flipped
        for name, image, file in _pairs(os.path.join(path, folder), '.mat'):
            stem, extension = os.path.splitext(name)
            points_file = os.path.join(points, set_name, f'{stem}_pts.mat')
            # The copies of NAME.jpg are NAME_0.jpg, NAME_1.jpg and so on.
            yield _Entry(f'{folder}/{name}', image, points_file,
                         functools.partial(_read_300w_lp, image, file, points_file, flipped),
                         (stem.rpartition('_')[0] or stem) + extension)


def _read_300w_lp(image, file, points_file, flipped):
    points = _numbers(points_file, _load_mat(points_file, 'pts_3d'), (POINTS, 2), 'pts_3d') - ORIGIN['300w-lp']
    if flipped:
        points = mirror(points, _width(image))
    return points, _pose(file, _load_mat(file, 'Pose_Para'))


def _width(image):
    try:
        with Image.open(image) as picture:
            return picture.width
    except OSError:
        raise _Fault(image, 'is not an image of a known format') from None


def _read_aflw2000(file):
    points, parameters = _load_mat(file, 'pt3d_68', 'Pose_Para')
    points = _numbers(file, points, (3, POINTS), 'pt3d_68')
    return points[:2].T - ORIGIN['aflw2000-3d'], _pose(file, parameters)


def _pose(file, parameters):
    # Three angles, three shifts and the scale of a weak perspective projection.
    return _numbers(file, parameters, (1, 7), 'Pose_Para')[0, :3].astype('float32')


def _load_mat(file, *keys):
    try:
        content = read_matrices(file, keys)
    except FileNotFoundError:
        raise _Fault(file, 'does not exist') from None
    except (ValueError, OSError) as error:
        raise _Fault(file, f'is not a readable MATLAB file: it {error}') from error
    for key in keys:
        if key not in content:
            raise _Fault(file, f'has no {key}')
    return content[keys[0]] if len(keys) == 1 else [content[key] for key in keys]


def _read_t7(file):
    try:
        points = read_tensor(file)
    except ValueError as error:
        raise _Fault(file, f'is not a binary Torch tensor: {error}') from error
    return points - ORIGIN['ls3d-w'], None


def _read_pts(file):
    with open(file, encoding='utf-8', errors='replace') as lines:
        text = lines.read()
    try:
        rows = text[text.index('{') + 1:text.index('}')].split('\n')
        points = np.array([[real(value) for value in row.split()] for row in rows if row.strip()], dtype='float64')
    except ValueError:
        raise _Fault(file, 'is not a list of points "x y" in braces') from None
    return points - ORIGIN['pts'], None


def _find_dlib(path):
    try:
        images = ElementTree.parse(path).findall('images/image')
    except (ElementTree.ParseError, LookupError, ValueError) as error:
        raise _Fault(path, f'is not XML: {error}') from error
    names = [image.get('file', '').replace('\\', '/') for image in images]
    boxes = [(name, box) for name, image in zip(names, images)
             for box in image.findall('box') if box.get('ignore') != '1']
    counts, numbers = Counter(name for name, _ in boxes), Counter()
    for name, box in boxes:
        numbers[name] += 1
        number = f'#{numbers[name]}' if counts[name] > 1 else ''
        yield _Entry(name + number, os.path.join(os.path.dirname(path), name), path,
                     functools.partial(_read_dlib, f'{path} ({name}{number})', box))


def _read_dlib(place, box):
    try:
        parts = sorted((integer(part.get('name')), real(part.get('x')), real(part.get('y')))
                       for part in box.findall('part'))
    except (AttributeError, ValueError):
        raise _Fault(place, 'has a part whose name, x or y is not a number') from None
    if [part[0] for part in parts] != list(range(POINTS)):
        raise _Fault(place, f'has {len(parts)} parts, which are not named 0 to {POINTS - 1}')
    points = _numbers(place, [part[1:] for part in parts], (POINTS, 2), 'landmarks')
    return points - ORIGIN['dlib'], None


def _load_npz(path, keys):
    """Arrays of one length, by key."""
    try:
        with zipfile.ZipFile(path) as archive:
            # What an array announces is allocated before it is read.
            size = sum(_announced_bytes(archive, f'{key}.npy') for key in keys)
        if size > _MOST_BYTES:
            raise ValueError(f'they announce {size:,} bytes, more than {_MOST_BYTES:,}')
        with np.load(path) as archive:
            arrays = [archive[key] for key in keys]
        for array in arrays:
            # Of others Python makes strings that it cannot use.
            characters = np.frombuffer(array.tobytes(), 'uint32') if array.dtype.kind == 'U' else ()
            if np.max(characters, initial=0) > sys.maxunicode:
                raise ValueError('they have characters that do not exist')
        lengths = [len(array) for array in arrays]
    except Exception as error:
        # NumPy can raise almost any exception on damaged data.
        raise _Fault(path, f'is not an archive with the arrays {", ".join(keys)}: {error}') from error
    if len(set(lengths)) > 1:
        counts = ', '.join(f'{length} {key}' for length, key in zip(lengths, keys))
        raise _Fault(path, f'has arrays of different lengths: {counts}')
    return arrays


def _announced_bytes(archive, name):
    with archive.open(name) as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    return math.prod(shape) * dtype.itemsize


def _find_ytf68(path):
    names, points, identities = _load_npz(path, ('names', 'landmarks', 'identity'))
    folder = os.path.splitext(path)[0]
    for name, face, identity in zip(names.tolist(), points, identities.tolist()):
        yield _Entry(name, os.path.join(folder, name), path,
                     functools.partial(_read_ytf68, f'{path} ({name})', face), identity)


def _read_ytf68(place, points):
    return _numbers(place, points, (POINTS, 2), 'landmarks') - ORIGIN['ytf68'], None


def _find_aflw(path):
    names, points, yaws = _load_npz(path, ('names', 'points', 'yaw'))
    folder = re.sub('_labels$', '', os.path.splitext(path)[0])
    for name, face, yaw in zip(names.tolist(), points, yaws):
        yield _Entry(name, os.path.join(folder, name), path,
                     functools.partial(_read_aflw, f'{path} ({name})', face, yaw))


def _read_aflw(place, points, yaw):
    points = _numbers(place, points, (POINTS, 2), 'points') - ORIGIN['aflw']
    yaw = math.radians(_numbers(place, yaw, (), 'yaw'))
    return points, np.array([np.nan, yaw, np.nan], dtype='float32')


_300W_LP = 'a folder with AFW, HELEN, IBUG and LFPW (NAME.jpg, NAME.mat){} and landmarks/AFW/NAME_pts.mat and so on'

LAYOUTS = {
    '300w-lp': Layout(functools.partial(_find_300w_lp, with_flipped=False), _300W_LP.format('')),
    '300w-lp-flip': Layout(functools.partial(_find_300w_lp, with_flipped=True),
                           _300W_LP.format(', AFW_Flip and so on')),
    'aflw2000-3d': Layout(functools.partial(_find_pairs, extension='.mat', deep=False, read=_read_aflw2000),
                          'a folder of NAME.jpg and NAME.mat'),
    'ls3d-w': Layout(functools.partial(_find_pairs, extension='.t7', deep=True, read=_read_t7),
                     'a folder, of folders perhaps, of NAME.jpg (or .png and so on) and NAME.t7'),
    'pts': Layout(functools.partial(_find_pairs, extension='.pts', deep=True, read=_read_pts),
                  'a folder, of folders perhaps, of NAME.jpg (or .png and so on) and NAME.pts'),
    'dlib': Layout(_find_dlib, 'an .xml file of images with boxes of 68 parts, and paths relative to its folder'),
    'ytf68': Layout(_find_ytf68, 'an .npz file of names, landmarks and identity; NAME.npz has its images in NAME'),
    'aflw': Layout(_find_aflw, 'an .npz file of names, points and yaw; NAME.npz or NAME_labels.npz has its images in '
                               'NAME'),
}
