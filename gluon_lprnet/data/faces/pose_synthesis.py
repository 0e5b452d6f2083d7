"""Faces turned to large poses ("face profiling"), as 300W-LP was made from faces that look at the camera.

After Zhu et al. 2016, "Face Alignment Across Large Poses", Section 4: an image becomes a surface in three
dimensions, which is turned and rendered again together with its landmarks. The depth there is that of a 3-D face model
fitted with dense features; here it is that of the generic head of `head_model`, in the pose that explains the
landmarks. Around the head the background is stretched between the turned head and the border of the new image.

``python -m gluon_lprnet profile SOURCE --layout LAYOUT --out FOLDER`` writes the faces of a data set and their turned
copies in the layout of 300W-LP.
"""
import itertools
import os
import re
import zlib
from typing import Any, NamedTuple, Optional

import cv2
import numpy as np
from scipy.interpolate import RBFInterpolator
from scipy.spatial import Delaunay
from tqdm import tqdm

from ...utils.errors import InputError
from ...utils.files import PathLike
from ...utils.flags import add_parser, non_negative_int, positive_int
from ...utils.processes import default_workers, map_in_processes
from ...utils.text import listing
from ..images import decode_image, encode_jpeg, read_file, rgb
from .datasets import LAYOUTS, read_faces
from .head_model import CROWN, JAW, MODEL, SKIN, PoseFit, fit_pose, mirror_points, rotation
from .landmarks import landmark_box
from .lp_layout import new_folder, write_face

# Faces beyond this angle hide too much of a cheek to be turned further.
MAX_SOURCE_YAW = np.radians(30)
# Faces beyond this angle are turned further to their own side only, which is the visible one.
_ONE_SIDED = np.radians(10)
_PITCH_SPREAD = np.radians(5)

_FACES_PER_TASK = 8
_FAULTS_SHOWN = 20

# Side of the images, as in 300W-LP, and the part of it taken by the longer side of the landmarks' box.
MAX_SIDE = 450
BOX_PART = 0.48

# Beyond the outline of jaw and crown the head recedes within a few millimeters of the image: factors of the
# outline's distance from the middle of the face, and millimeters of depth beyond the outline's.
_RINGS = ((1.07, 20), (1.15, 45))
# Where the stretched background has points, as fractions of the way from the last ring to the border.
_STEPS = (0.12, 0.3, 0.6, 1)
# Depth of the background in millimeters: behind every head.
_FAR = 200
_SPACING = 6


class Surface(NamedTuple):
    """An image as a surface that can be turned.

    Attributes
    ----------
    texture : ndarray (n, 2)
        Position of each point in the image: x, y in pixels.
    head : ndarray (m, 3)
        x, y, depth of the first m points, which belong to the head.
    rim : ndarray (k,)
        Indices of the points around the head, where the background begins.
    borders : ndarray (k, 2)
        Points beyond the border of the image, from the middle of the face through each of them.
    triangles : ndarray (t, 3)
        Indices of points.
    """

    texture: np.ndarray
    head: np.ndarray
    rim: np.ndarray
    borders: np.ndarray
    triangles: np.ndarray


class Profiler:
    """A face that can be rendered in other poses.

    Parameters
    ----------
    image : ndarray (height, width, 3) uint8
    landmarks : ndarray (68, 2)
        As visible in the image, in its pixels.

    Attributes
    ----------
    fit : gluon_lprnet.data.faces.head_model.PoseFit
    points : ndarray (68, 3)
        x, y, depth in pixels of the landmarks as points of the head.

    Raises
    ------
    ValueError
        If no head fits the landmarks.
    """

    def __init__(self, image: np.ndarray, landmarks: np.ndarray) -> None:
        landmarks = np.asarray(landmarks, dtype='float64')
        self.fit = fit_pose(landmarks)
        self.points = _lift(landmarks, self.fit)
        self._image = image
        self._landmarks = landmarks
        self._surface: Optional[Surface] = None

    def turned(self, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray, PoseFit]:
        """Render the face in another pose.

        Parameters
        ----------
        pose : array (3,)
            Pitch, yaw and roll in radians.

        Returns
        -------
        image : ndarray (side, side, 3) uint8
            The landmarks' box lies in its middle and its longer side takes `BOX_PART` of it. At most 450 pixels,
            and no more than the resolution of the image supports.
        landmarks : ndarray (68, 2)
            In pixels of the image, hidden or not.
        fit : gluon_lprnet.data.faces.head_model.PoseFit
            Of the generic head.
        """
        if self._surface is None:
            self._surface = _surface(self._landmarks, self.fit)
        surface = self._surface
        turn = rotation(pose) @ rotation(self.fit.pose).T
        pivot = np.append(self.fit.translation, 0)
        landmarks = (self.points - pivot) @ turn.T + pivot
        head = (surface.head - pivot) @ turn.T + pivot
        box = landmark_box(landmarks[:, :2])
        middle, length = (box[:2] + box[2:]) / 2, max(box[2:] - box[:2])
        # The background lies between the head's rim, which turns, and the border of the image, which does not.
        rim = head[surface.rim]
        far = np.column_stack([middle + surface.borders, np.full(len(rim), _FAR * self.fit.scale)])
        points = np.concatenate([head, *(rim + step * (far - rim) for step in _STEPS)])
        side = min(MAX_SIDE, int(round(length / BOX_PART)))
        factor = side * BOX_PART / length
        origin = middle - (side - 1) / 2 / factor
        points[:, :2] = (points[:, :2] - origin) * factor
        image, texture = self._image, surface.texture
        if factor < 1:
            image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
            texture = (texture + 0.5) * factor - 0.5
        picture = _draw(image, texture, points, surface.triangles, side)
        moved = PoseFit(np.array(pose, dtype='float64'), self.fit.scale * factor,
                        (self.fit.translation - origin) * factor, self.fit.scale * factor * MODEL @ rotation(pose)[2])
        return picture, (landmarks[:, :2] - origin) * factor, moved


class ProfileSummary(NamedTuple):
    """What :func:`profile_faces` wrote.

    Attributes
    ----------
    sources : int
        Faces of the data set.
    turned : int
        Copies in other poses.
    skipped : list of (str, str)
        Files that were left out, and what is wrong with each.
    """

    sources: int
    turned: int
    skipped: list


def profile_faces(source: PathLike, layout: str, folder: PathLike, copies: int = 3, seed: int = 0,
                  workers: Optional[int] = None, skip_bad: bool = False) -> ProfileSummary:
    """Write a data set's faces, and copies of them turned to large poses, in the layout of 300W-LP.

    ``NAME_0`` is the face as it is, ``NAME_1`` and so on are turned: the range from the face's own angle to 90
    degrees of yaw is cut into as many equal parts as there are copies, and each draws its yaw from one of them. Faces
    within 10 degrees of the camera's direction are turned to both sides, others to their own side, and those beyond 30
    degrees not at all. Pitch changes with a standard deviation of 5 degrees. ``pts_3d`` of every image, including
    the original face, are points on the head; the pose is that of the generic head.

    Faces whose names start with that of a set (AFW, HELEN, IBUG, LFPW) go to its folder, others to OTHER. The same
    input and seed give the same files, whatever the number of workers.

    Parameters
    ----------
    source : path
    layout : str
        As for :func:`gluon_lprnet.data.faces.datasets.read_faces`.
    folder : path
        New or empty; it appears when everything is written.
    copies : int
        Turned copies of each face.
    seed : int
        Not negative.
    workers : int, optional
        Processes; by default as many as CPUs, fewer for few faces.
    skip_bad : bool
        Skip invalid faces and report them, instead of failing.

    Returns
    -------
    ProfileSummary

    Raises
    ------
    InputError
        The source or (without `skip_bad`) any face is invalid, or `folder` cannot be written.
    """
    faults: list[tuple[str, str]] = []
    faces = list(read_faces(source, layout, faults))
    with new_folder(folder) as root:
        jobs = _named(faces, faults)
        # A turned copy takes five times as long as the photos the default is tuned for.
        workers = default_workers(5 * len(jobs) * copies) if workers is None else workers
        tasks = ((str(root), jobs[first:first + _FACES_PER_TASK], copies, seed)
                 for first in range(0, len(jobs), _FACES_PER_TASK))
        results = itertools.chain.from_iterable(map_in_processes(_profile_files, tasks, workers))
        sources = turned = 0
        for (face, _), (count, fault) in zip(jobs, tqdm(results, desc='profiling', total=len(jobs), unit='face',
                                                        disable=None, leave=False)):
            if fault:
                faults.append((face.image, fault))
            else:
                sources, turned = sources + 1, turned + count
        if faults and not skip_bad:
            raise InputError(f'{len(faults)} faces of {source} cannot be used:\n{_listing(faults)}\n'
                             'Mend or remove them, or give `skip_bad` to leave them out. Nothing was written.')
        if not sources:
            raise InputError(f'{source}: no face can be used:\n{_listing(faults)}')
    return ProfileSummary(sources, turned, faults)


def add_commands(commands: Any) -> None:
    parser = add_parser(
        commands, 'profile', help='turn faces to large poses, as 300W-LP was made',
        example='gluon-lprnet profile 300w/train --layout pts --out 300w_profiled',
        description='Write the faces of a data set, and copies turned to yaws up to 90 degrees, in the layout of '
                    '300W-LP: read it with --layout 300w-lp.')
    parser.add_argument('source', help='the data set\'s folder or file')
    parser.add_argument('--layout', required=True, choices=LAYOUTS, help='the layout of its files')
    parser.add_argument('--out', required=True, metavar='FOLDER', help='where to write; new or empty')
    parser.add_argument('--copies', type=positive_int, default=3, metavar='N',
                        help='turned copies of each face within 30 degrees of yaw (default: %(default)s)')
    parser.add_argument('--seed', type=non_negative_int, default=0, help='seed of the poses (default: %(default)s)')
    parser.add_argument('--workers', type=positive_int,
                        help='processes (default: as many as CPUs, fewer for few faces)')
    parser.add_argument('--skip-bad', action='store_true',
                        help='skip invalid faces instead of failing')
    parser.set_defaults(run=_run)


def _run(args):
    summary = profile_faces(args.source, args.layout, args.out, args.copies, args.seed, args.workers, args.skip_bad)
    print(f'{args.out}: {summary.sources} faces and {summary.turned} turned copies in the layout of 300W-LP; '
          f'{len(summary.skipped)} skipped')
    if summary.skipped:
        print(_listing(summary.skipped))


def _listing(faults):
    return listing([f'{file} {what}' for file, what in faults], _FAULTS_SHOWN)


def _named(faces, faults):
    """List (face, name without folders and extension); faces with a duplicate name go to `faults`."""
    named = {}
    for face in faces:
        name = re.sub(r'\.\w+(?=#|$)', '', face.name).replace('/', '_')
        if name in named:
            faults.append((face.image, f'would have the same name as {named[name].image}'))
        else:
            named[name] = face
    return [(face, name) for name, face in named.items()]


def _profile_files(task):
    """Write faces and turned copies; returns a list of (number of copies, what is wrong with the file or None)."""
    root, jobs, copies, seed = task
    results = []
    for face, name in jobs:
        try:
            results.append((_profile_file(root, face, name, copies, seed), None))
        except ValueError as error:
            results.append((0, str(error)))
    return results


def _profile_file(root, face, name, copies, seed):
    content = read_file(face.image)
    picture = decode_image(content)
    pixels = np.asarray(rgb(picture))
    profiler = Profiler(pixels, face.landmarks)
    write_face(root, f'{name}_0', content if picture.format == 'JPEG' else encode_jpeg(pixels),
               profiler.points[:, :2], profiler.fit, visible=face.landmarks)
    # Each face has its own generator, so the result does not depend on the order of the faces.
    rng = np.random.default_rng([seed, zlib.crc32(os.fsencode(name))])
    poses = _poses(profiler.fit.pose, copies, rng)
    for number, pose in enumerate(poses, 1):
        turned, landmarks, fit = profiler.turned(pose)
        write_face(root, f'{name}_{number}', encode_jpeg(turned), landmarks, fit)
    return len(poses)


def _poses(pose, copies, rng):
    """Poses (n, 3) to turn a face to: `copies`, or none for a face that is turned too far."""
    pitch, yaw, roll = pose
    if abs(yaw) > MAX_SOURCE_YAW:
        return np.empty((0, 3))
    sides = np.full(copies, np.sign(yaw)) if abs(yaw) > _ONE_SIDED else rng.choice([-1.0, 1.0], copies)
    parts = (np.arange(copies) + 1 - rng.random(copies)) / copies
    yaws = sides * (abs(yaw) + parts * (np.pi / 2 - abs(yaw)))
    return np.column_stack([pitch + _PITCH_SPREAD * rng.standard_normal(copies), yaws, np.full(copies, roll)])


def _lift(landmarks, fit):
    """Landmarks as points of the head: x, y, depth (68, 3).

    On a turned face, the far side of the jaw is annotated where the cheek hides it. The mirror image of the near side
    replaces it, more so the further the face is turned: not at all up to 5 degrees, completely from 25.
    """
    points = np.column_stack([landmarks, fit.depth])
    middle = np.append(fit.translation, 0)
    turn = rotation(fit.pose)
    upright = (points - middle) @ turn
    yaw = np.degrees(fit.pose[1])
    far_side = JAW[9:] if yaw < 0 else JAW[:8]
    part = np.clip((abs(yaw) - 5) / 20, 0, 1)
    upright[far_side] += part * (mirror_points(upright) - upright)[far_side]
    return upright @ turn.T + middle


def _surface(landmarks, fit):
    """The surface of an image whose landmarks fit the generic head in this pose."""
    # What lies between the landmarks moves with their deviation from the generic head's.
    generic = fit.place(np.concatenate([MODEL, SKIN, CROWN]))
    shift = RBFInterpolator(generic[:68, :2], landmarks - generic[:68, :2], kernel='linear', smoothing=fit.scale)
    placed = generic.copy()
    placed[68:, :2] += shift(generic[68:, :2])
    placed[:68, :2] = landmarks
    outline = _denser(np.concatenate([placed[JAW], placed[68 + len(SKIN):]]))
    box = landmark_box(landmarks)
    middle = (box[:2] + box[2:]) / 2
    rings = []
    for factor, depth in _RINGS:
        ring = outline.copy()
        ring[:, :2] = middle + factor * (outline[:, :2] - middle)
        ring[:, 2] += depth * fit.scale
        rings.append(ring)
    known = np.concatenate([placed[:68 + len(SKIN)], outline, *rings])
    # In millimeters, so that the smoothing, needed where eyelids or lips coincide, does not depend on the scale.
    depth = RBFInterpolator(known[:, :2] / fit.scale, known[:, 2], smoothing=1)
    rim = rings[-1]
    texture = np.concatenate([landmarks, _grid_inside(rim[:, :2], _SPACING * fit.scale)])
    head = np.concatenate([np.column_stack([texture, depth(texture / fit.scale)]), rim])
    to_rim = rim[:, :2] - middle
    half = 1.3 / 2 * max(box[2:] - box[:2]) / BOX_PART
    borders = to_rim * np.maximum(half / np.abs(to_rim).max(axis=1), 1.1)[:, None]
    texture = np.concatenate([head[:, :2], *(rim[:, :2] + step * (borders - to_rim) for step in _STEPS)])
    return Surface(texture, head, np.arange(len(head) - len(rim), len(head)), borders, Delaunay(texture).simplices)


def _denser(polygon):
    """A closed polygon (n, d) with the middles of its sides: (2n, d)."""
    middles = (polygon + np.roll(polygon, -1, axis=0)) / 2
    return np.stack([polygon, middles], axis=1).reshape(-1, polygon.shape[1])


def _grid_inside(polygon, spacing):
    """Points (n, 2) of a square grid inside a polygon, with a margin of half their distance."""
    low, high = polygon.min(axis=0), polygon.max(axis=0)
    points = np.stack(np.meshgrid(*(np.arange(a, b, spacing) for a, b in zip(low, high))), axis=-1).reshape(-1, 2)
    contour = polygon.astype('float32')
    return points[[cv2.pointPolygonTest(contour, point, True) > spacing / 2 for point in points.tolist()]]


def _draw(image, texture, points, triangles, side):
    """Draw triangles of points (n, 3), farthest first, textured with `image` at the points `texture`."""
    corners = points[triangles]
    owner = np.full((side, side), -1, dtype='int32')
    fixed = np.round(corners[..., :2] * 16).astype('int32')
    # A call takes 2 microseconds, less than NumPy needs to find the rows of pixels of all triangles at once.
    for number in np.argsort(-corners[..., 2].mean(axis=1)).tolist():
        cv2.fillConvexPoly(owner, fixed[number], number, shift=4)
    # Barycentric coordinates: affine in x and y, kept within the triangle for those that show on edge.
    a, b, c = (corners[:, i, :2] for i in range(3))
    area = np.cross(b - a, c - a)
    area = np.where(np.abs(area) < 1e-6, 1e-6, area)
    x = np.arange(side, dtype='float32')
    y = x[:, None]

    def coordinate(p, q):
        edge = (q - p) / area[:, None]
        along_x, along_y, offset = (each.astype('float32')[owner] for each in (
            -edge[:, 1], edge[:, 0], np.cross(edge, -p)))
        return np.clip(along_x * x + along_y * y + offset, 0, 1)

    second, third = coordinate(c, a), coordinate(a, b)
    third = np.minimum(third, 1 - second)
    # x and y apart: an array of numbers is picked from several times faster than one of pairs.
    start, to_b, to_c = (each.astype('float32').T for each in (
        texture[triangles[:, 0]], texture[triangles[:, 1]] - texture[triangles[:, 0]],
        texture[triangles[:, 2]] - texture[triangles[:, 0]]))
    where = [start[axis][owner] + second * to_b[axis][owner] + third * to_c[axis][owner] for axis in (0, 1)]
    return cv2.remap(image, *where, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
