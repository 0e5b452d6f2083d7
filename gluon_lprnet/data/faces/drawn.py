"""Computer-drawn faces for a quick start without a download: no photographs, no persons.

Each is a front view painted on the points of the generic head after these were varied, which `profiling` turns to a
pose and draws in three dimensions, its points moving along. ``python -m gluon_lprnet draw-faces FOLDER`` writes
``FOLDER/train`` and ``FOLDER/test`` in the layout of 300W-LP. They show that training and evaluation work;
what a network learns from them says little about photographs.
"""
import itertools
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
from tqdm import tqdm

from ...utils.files import PathLike
from ...utils.flags import add_parser, non_negative_int, positive_int
from ...utils.processes import default_workers, map_in_processes
from ..images import encode_jpeg
from .head_model import MODEL, PoseFit
from .lp_layout import new_folder, write_face
from .pose_synthesis import Profiler

_SIDE = 280
# Pixels per millimeter of the front view, and the position of the head's origin in it.
_SCALE = 0.92
_ORIGIN = np.array([_SIDE / 2, 0.5 * _SIDE])
_YAW, _PITCH, _ROLL = np.radians([90, 25, 25])

_TEST_PART = 5
_FACES_PER_TASK = 16

_SKINS = np.array([(241, 205, 178), (224, 172, 138), (198, 134, 96), (141, 85, 54), (90, 56, 40)], dtype='float64')
_HAIRS = np.array([(24, 18, 16), (60, 38, 24), (112, 72, 40), (190, 150, 90), (150, 60, 30), (170, 170, 172)],
                  dtype='float64')
_EYES = np.array([(70, 45, 25), (40, 28, 18), (70, 110, 150), (80, 120, 70)], dtype='float64')

_BROWS = (np.arange(17, 22), np.arange(22, 27))
_NOSE = np.arange(27, 36)
_BOTH_EYES = (np.arange(36, 42), np.arange(42, 48))
_MOUTH = np.arange(48, 68)
_OUTER_LIPS, _INNER_LIPS = np.arange(48, 60), np.arange(60, 68)
_LOWER_LIP = np.array([55, 56, 57, 58, 59, 65, 66, 67])
_CHIN = np.arange(4, 13)


def draw_face(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, PoseFit]:
    """Draw a face in a random pose.

    Parameters
    ----------
    rng : numpy.random.Generator

    Returns
    -------
    image : ndarray (side, side, 3) uint8
        RGB.
    landmarks : ndarray (68, 2)
        In pixels of the image.
    fit : face_model.Fit
    """
    points = _identity(rng) * _SCALE + _ORIGIN
    front = _paint(points, rng)
    pose = rng.uniform(-1, 1, 3) * [_PITCH, _YAW, _ROLL]
    image, landmarks, fit = Profiler(front, points).turned(pose)
    return _photographed(image, rng), landmarks, fit


def write_drawn_faces(folder: PathLike, count: int = 2000, seed: int = 0,
                      workers: Optional[int] = None) -> tuple[int, int]:
    """Write drawn faces in the layout of 300W-LP, ``train`` and a fifth as many in ``test``.

    Yaw is uniform from -90 to 90 degrees, pitch and roll from -25 to 25. The same seed gives the same files,
    whatever the number of workers.

    Parameters
    ----------
    folder : path
        New or empty; it appears when everything is written.
    count : int
        Faces for training.
    seed : int
        Not negative.
    workers : int, optional
        Processes; by default as many as CPUs, fewer for few faces.

    Returns
    -------
    tuple of int
        Faces for training and for testing.

    Raises
    ------
    InputError
        `folder` is not empty or cannot be written.
    """
    counts = count, max(1, count // _TEST_PART)
    # Drawing a face takes ten times as long as packing a photo, which the default is tuned for.
    workers = default_workers(10 * sum(counts)) if workers is None else workers
    with new_folder(folder) as root:
        tasks = ((str(root / part), range(first, min(first + _FACES_PER_TASK, total)), (seed, number))
                 for number, (part, total) in enumerate(zip(('train', 'test'), counts))
                 for first in range(0, total, _FACES_PER_TASK))
        results = itertools.chain.from_iterable(map_in_processes(_draw_files, tasks, workers))
        for _ in tqdm(results, desc='drawing', total=sum(counts), unit='face', disable=None,
                      leave=False):
            pass
    return counts


def add_commands(commands: Any) -> None:
    parser = add_parser(
        commands, 'draw-faces', help='computer-drawn faces at all yaws, for a quick start without a download',
        example='gluon-lprnet draw-faces drawn --count 500',
        description='Write drawn faces to FOLDER/train and FOLDER/test in the layout of 300W-LP: read each with '
                    '--layout 300w-lp.')
    parser.add_argument('folder', help='where to write; new or empty')
    parser.add_argument('--count', type=positive_int, default=2000, metavar='N',
                        help='faces for training; a fifth as many are drawn for testing (default: %(default)s)')
    parser.add_argument('--seed', type=non_negative_int, default=0,
                        help='seed of all random choices (default: %(default)s)')
    parser.add_argument('--workers', type=positive_int,
                        help='processes (default: as many as CPUs, fewer for few faces)')
    parser.set_defaults(run=_run)


def _run(args):
    train, test = write_drawn_faces(args.folder, args.count, args.seed, args.workers)
    print(f'{Path(args.folder) / "train"}: {train} drawn faces; {Path(args.folder) / "test"}: {test}')


def _draw_files(task):
    root, numbers, seeds = task
    for number in numbers:
        image, landmarks, fit = draw_face(np.random.default_rng([*seeds, number]))
        write_face(root, f'drawn_{number:06d}', encode_jpeg(image), landmarks, fit)
    return numbers


def _identity(rng):
    """The front view of another head with another expression: x, y (68, 2) in millimeters."""
    points = MODEL[:, :2].copy()
    height = points[:, 1] / 75
    # The whole head, then its parts: width that changes with height, and height.
    points[:, 0] *= 1 + 0.06 * rng.standard_normal() + 0.05 * rng.standard_normal() * height
    points[:, 1] *= 1 + 0.05 * rng.standard_normal()
    for part, spread in ((_MOUTH, 0.12), (_NOSE, 0.1), *((part, 0.1) for part in _BROWS + _BOTH_EYES)):
        middle = points[part].mean(axis=0)
        points[part] = middle + (points[part] - middle) * (1 + spread * rng.standard_normal(2))
    apart, brows = 2 * rng.standard_normal(2)
    for side, brow, eye in zip((-1, 1), _BROWS, _BOTH_EYES):
        points[np.concatenate([brow, eye]), 0] += side * apart
        points[brow, 1] += brows + 2 * rng.standard_normal()
        middle = points[eye, 1].mean()
        points[eye, 1] = middle + (points[eye, 1] - middle) * rng.uniform(0.4, 1.3)
    smile, opening = rng.normal(0, 3), max(0, rng.normal(0, 9))
    corners = (points[_MOUTH, 0] - points[_MOUTH, 0].mean()) / 29
    points[_MOUTH] += np.column_stack([smile * corners, -smile * corners ** 2])
    points[_LOWER_LIP, 1] += opening
    points[_CHIN, 1] += opening * np.array([0.2, 0.4, 0.6, 0.8, 0.9, 0.8, 0.6, 0.4, 0.2])
    return points + 0.4 * rng.standard_normal(points.shape)


def _paint(points, rng):
    """Paint the front view of a face: RGB uint8 (_SIDE, _SIDE, 3)."""
    skin = _between(_SKINS, rng)
    hair, shirt = _between(_HAIRS, rng), _dull(rng)
    image = _background(rng)
    chin, width = points[8], np.ptp(points[:17, 0])
    top = np.array([chin[0], points[17:27, 1].min() - 0.45 * width])
    middle = (chin + top) / 2
    long_hair = rng.random() < 0.4
    if long_hair:
        _ellipse(image, middle + [0, 0.15 * width], (0.64 * width, 0.95 * width), hair * 0.8)
    _ellipse(image, chin + [0, 0.95 * width], (rng.uniform(0.8, 1.1) * width, 0.65 * width), shirt)
    neck = rng.uniform(0.26, 0.34) * width
    _polygon(image, [chin + [-neck, -0.25 * width], chin + [neck, -0.25 * width], chin + [neck, 0.42 * width],
                     chin + [0, 0.5 * width], chin + [-neck, 0.42 * width]], skin * 0.72)
    _ellipse(image, middle - [0, 0.2 * width], (0.55 * width, 0.68 * width), hair)
    for side, ear in zip((-1, 1), points[[1, 15]]):
        _ellipse(image, ear + [2 * side, -0.02 * width], (0.055 * width, 0.15 * width), skin * 0.85)
    _face_skin(image, points, top, skin, rng)
    if rng.random() < 0.25:
        _beard(image, points, hair)
    _eyes_and_brows(image, points, skin, hair, rng)
    _nose(image, points, skin)
    _lips(image, points, skin, rng)
    _fringe(image, points, top, width, hair, rng)
    if rng.random() < 0.2:
        _glasses(image, points, rng.uniform(0, 90, 3))
    return image


def _background(rng):
    """A smooth gradient with clutter in front of it, out of focus."""
    corners = np.array([[_dull(rng), _dull(rng)], [_dull(rng), _dull(rng)]], dtype='float32')
    image = np.clip(cv2.resize(corners, (_SIDE, _SIDE), interpolation=cv2.INTER_LINEAR), 0, 255).astype('uint8')
    for _ in range(rng.integers(3, 16)):
        place, size, color = rng.uniform(0, _SIDE, 2), rng.uniform(8, 90, 2), _dull(rng)
        if rng.random() < 0.5:
            _ellipse(image, place, size, color, rng.uniform(0, 180))
        else:
            _polygon(image, place + rng.uniform(-1, 1, (4, 2)) * size, color)
    return cv2.GaussianBlur(image, (0, 0), rng.uniform(0.5, 5))


def _face_skin(image, points, top, skin, rng):
    """Jaw, cheeks and forehead, lit from one side, with a blush and rough skin."""
    temples = np.array([points[16], points[0]])
    arc = np.linspace(0, np.pi, 13)[1:-1]
    half, rise = (temples[0] - temples[1])[0] / 2, temples[:, 1].mean() - top[1]
    crown = np.column_stack([temples[:, 0].mean() + half * np.cos(arc), temples[:, 1].mean() - rise * np.sin(arc)])
    mask = np.zeros(image.shape[:2], dtype='uint8')
    _polygon(mask, np.concatenate([points[:17], crown]), 255)
    x, y = np.meshgrid(*2 * [np.arange(_SIDE, dtype='float32')])
    x, y = (x - points[30, 0]) / half, (y - points[30, 1]) / (1.5 * half)
    towards = np.sqrt(np.clip(1 - 0.85 * (x ** 2 + y ** 2), 0.05, 1))
    light = rng.uniform(-0.7, 0.7), rng.uniform(-0.7, 0.1)
    shade = rng.uniform(0.45, 0.75) + 0.5 * towards + 0.35 * (light[0] * x + light[1] * y)
    rough = cv2.GaussianBlur(rng.standard_normal(image.shape[:2], dtype='float32'), (0, 0), 1.5)
    layer = skin * np.clip(shade + 0.05 * rough, 0.2, 1.25)[..., None]
    blush = np.zeros(image.shape[:2], dtype='float32')
    for cheek in (points[31] + points[2], points[35] + points[14]):
        _ellipse(blush, cheek / 2, (10, 9), 0.2)
    layer[..., 1:] *= 1 - cv2.GaussianBlur(blush, (0, 0), 6)[..., None]
    _lay(image, layer, mask, 1)


def _beard(image, points, hair):
    mask = np.zeros(image.shape[:2], dtype='uint8')
    nose = points[33]
    _polygon(mask, np.concatenate([points[3:14], [points[13] * 0.5 + points[54] * 0.5, (points[35] + nose) / 2,
                                                  (points[31] + nose) / 2, points[3] * 0.5 + points[48] * 0.5]]), 190)
    _lay(image, np.broadcast_to(hair, image.shape), mask, 4)


def _eyes_and_brows(image, points, skin, hair, rng):
    iris_color, gaze = _between(_EYES, rng), rng.uniform(-1, 1, 2) * [4, 1.5]
    thickness = int(rng.integers(3, 8))
    for brow, eye in zip(_BROWS, _BOTH_EYES):
        lids, middle = points[eye], points[eye].mean(axis=0)
        width = np.ptp(lids[:, 0])
        socket = middle + 1.35 * (lids - middle) - [0, 2]
        _polygon(image, socket, skin * 0.75)
        mask = np.zeros(image.shape[:2], dtype='uint8')
        _polygon(mask, lids, 255)
        ball = np.full(image.shape, 232, dtype='uint8')
        for radius, color in ((0.24, iris_color), (0.11, (8, 8, 8))):
            _ellipse(ball, middle + gaze, (radius * width, radius * width), color)
        _ellipse(ball, middle + gaze + [-2, -2], (1.5, 1.5), (255, 255, 255))
        _lay(image, ball, mask, 0.6)
        _line(image, lids[:4], (30, 20, 18), 2)
        _line(image, lids[[3, 4, 5, 0]], skin * 0.5, 1)
        _line(image, points[brow], hair * 0.8, thickness)


def _nose(image, points, skin):
    bridge, underside = points[27:31], points[31:36]
    side = image.copy()
    _polygon(side, [bridge[0], bridge[3], underside[2], underside[4] + [2, 0]], skin * 0.78)
    cv2.addWeighted(cv2.GaussianBlur(side, (0, 0), 2), 0.6, image, 0.4, 0, dst=image)
    _line(image, bridge, np.minimum(skin * 1.2, 255), 3)
    _ellipse(image, bridge[3], (5, 4), np.minimum(skin * 1.25, 255))
    _line(image, underside, skin * 0.55, 2)
    for nostril in (underside[[0, 1]].mean(axis=0), underside[[3, 4]].mean(axis=0)):
        _ellipse(image, nostril + [0, 1], (4, 2.2), skin * 0.25)


def _lips(image, points, skin, rng):
    color = skin * [rng.uniform(0.8, 1.0), 0.55, 0.6]
    _polygon(image, points[_OUTER_LIPS], color)
    _line(image, points[_OUTER_LIPS[[0, 11, 10, 9, 8, 7, 6]]], color * 0.7, 1)
    inner = points[_INNER_LIPS]
    _polygon(image, inner, (50, 16, 18))
    if inner[6, 1] - inner[2, 1] > 7:
        teeth = inner.copy()
        teeth[4:] = (2 * inner[[4, 3, 2, 1]] + inner[4:]) / 3
        _polygon(image, teeth, (228, 224, 212))
    _line(image, inner[[0, 1, 2, 3, 4]], color * 0.45, 1)


def _fringe(image, points, top, width, hair, rng):
    """Hair from a random line on the forehead to above the head."""
    low = points[17:27, 1].min() - rng.uniform(0.08, 0.4) * width
    across = np.linspace(-0.52, 0.52, 9)
    line = np.column_stack([top[0] + across * width,
                            low + 0.35 * width * across ** 2 * rng.uniform(0.5, 3) + rng.uniform(-3, 3, 9)])
    arc = np.linspace(0, np.pi, 9)
    cap = np.column_stack([top[0] + 0.56 * width * np.cos(arc), top[1] + 0.2 * width - 0.36 * width * np.sin(arc)])
    mask = np.zeros(image.shape[:2], dtype='uint8')
    _polygon(mask, np.concatenate([line, cap]), 255)
    strands = cv2.GaussianBlur(rng.standard_normal(image.shape[:2], dtype='float32'), (0, 0), sigmaX=1, sigmaY=9)
    _lay(image, hair * np.clip(1 + 1.5 * strands, 0.4, 1.8)[..., None], mask, 1.5)


def _glasses(image, points, color):
    middles = [points[eye].mean(axis=0) for eye in _BOTH_EYES]
    radius = 0.36 * (middles[1] - middles[0])[0]
    for middle in middles:
        cv2.ellipse(image, _fixed(middle), _fixed((radius, 0.8 * radius)), 0, 0, 360, color.tolist(), 2,
                    cv2.LINE_AA, 4)
    _line(image, [middles[0] + [radius, 0], middles[1] - [radius, 0]], color, 2)
    _line(image, [middles[0] - [radius, 0], points[0]], color, 2)
    _line(image, [middles[1] + [radius, 0], points[16]], color, 2)


def _photographed(image, rng):
    """The image as a camera would take it: exposure, blur and noise."""
    exposed = image.astype('float32') * rng.uniform(0.88, 1.08, 3) * rng.uniform(0.6, 1.2) + rng.uniform(-10, 25)
    blurred = cv2.GaussianBlur(exposed, (0, 0), rng.uniform(0.3, 1.5))
    noise = rng.standard_normal(image.shape, dtype='float32')
    return np.clip(blurred + rng.uniform(1, 9) * noise, 0, 255).astype('uint8')


def _between(colors, rng):
    first, second = rng.choice(len(colors), 2)
    return colors[first] + rng.random() * (colors[second] - colors[first])


def _dull(rng):
    """A mostly gray color, as in rooms and streets."""
    return np.clip(rng.uniform(15, 240) + rng.normal(0, 25, 3), 0, 255)


def _lay(image, layer, mask, softness):
    """Blend an image over another where a mask of 0 to 255 with softened edges says so."""
    left, top, width, height = cv2.boundingRect(mask)
    margin = int(3 * softness) + 1
    area = np.s_[max(0, top - margin):top + height + margin, max(0, left - margin):left + width + margin]
    part = cv2.GaussianBlur(mask[area], (0, 0), softness)[..., None] / np.float32(255)
    image[area] = np.clip(part * layer[area] + (1 - part) * image[area], 0, 255)


def _fixed(values):
    """Pixels in sixteenths, for OpenCV's drawing functions with a shift of 4."""
    return np.round(np.asarray(values) * 16).astype('int32')


def _color(color):
    return np.clip(color, 0, 255).tolist()


def _polygon(image, points, color):
    cv2.fillPoly(image, [_fixed(points)], _color(color), cv2.LINE_AA, 4)


def _line(image, points, color, thickness):
    cv2.polylines(image, [_fixed(points)], False, _color(color), thickness, cv2.LINE_AA, 4)


def _ellipse(image, middle, axes, color, angle=0):
    cv2.ellipse(image, _fixed(middle).tolist(), _fixed(axes).tolist(), angle, 0, 360, _color(color), -1,
                cv2.LINE_AA, 4)
