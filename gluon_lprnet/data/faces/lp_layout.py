"""Faces written in the layout of 300W-LP, which ``read_faces(folder, '300w-lp', faults)`` reads back.

``SET/NAME.jpg`` is an image, ``SET/NAME.mat`` has its ``Pose_Para`` and 2-D landmarks ``pt2d``, and
``landmarks/SET/NAME_pts.mat`` has ``pts_2d`` and ``pts_3d``: the landmarks as visible in the image, and as
points on the head, hidden or not.
"""
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import numpy as np
import scipy.io

from ...utils.errors import InputError
from ...utils.files import PathLike, whole
from ...utils.signals import exit_on_sigterm
from .datasets import LP_SETS, ORIGIN
from .head_model import PoseFit

# The folder of faces that belong to no set of 300W-LP.
OTHER_SET = 'OTHER'


def set_of(name: str) -> str:
    """The folder for a face: that of the set whose name `name` starts with, or `OTHER_SET`."""
    return next((set_name for set_name in LP_SETS if name.upper().startswith(set_name)), OTHER_SET)


@contextlib.contextmanager
def new_folder(folder: PathLike) -> Iterator[Path]:
    """A folder that appears as `folder` when the ``with`` block ends, complete, or not at all.

    Raises
    ------
    InputError
        `folder` exists and is not empty, or cannot be made.
    """
    folder = Path(folder)
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise InputError(f'{folder} already exists and is not empty: remove it, or choose another.')
    with exit_on_sigterm(), whole(folder) as inside:
        inside.mkdir()
        yield inside


def write_face(root: PathLike, name: str, jpeg: bytes, landmarks: np.ndarray, fit: PoseFit,
               visible: Optional[np.ndarray] = None) -> None:
    """Write one face.

    Parameters
    ----------
    root : path
        The folder with the folders of the sets.
    name : str
        Of the files, without extension; :func:`set_of` says in which folder.
    jpeg : bytes
        The encoded image.
    landmarks : ndarray (68, 2)
        Points of the head in pixels of the image, with (0, 0) the center of the top left one.
    fit : face_model.Fit
        Its pose, translation and scale become ``Pose_Para``.
    visible : ndarray (68, 2), optional
        The landmarks as visible in the image, if they differ.
    """
    set_name = set_of(name)
    sets, points = Path(root) / set_name, Path(root) / 'landmarks' / set_name
    for folder in (sets, points):
        folder.mkdir(parents=True, exist_ok=True)
    in_3d = np.asarray(landmarks, dtype='float64') + ORIGIN['300w-lp']
    in_2d = in_3d if visible is None else np.asarray(visible, dtype='float64') + ORIGIN['300w-lp']
    (sets / f'{name}.jpg').write_bytes(jpeg)
    scipy.io.savemat(sets / f'{name}.mat', {
        'Pose_Para': np.concatenate([fit.pose, fit.translation + ORIGIN['300w-lp'], [0, fit.scale]])[None],
        'pt2d': in_2d.T})
    scipy.io.savemat(points / f'{name}_pts.mat', {'pts_2d': in_2d, 'pts_3d': in_3d})
