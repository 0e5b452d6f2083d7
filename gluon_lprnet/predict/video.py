"""The faces of each frame of a video."""
import os

import cv2
from tqdm import tqdm

from ..utils.errors import InputError
from ..utils.files import make_folder
from .face_alignment import draw_faces

# The extensions of videos' names.
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')
_FRAMES_PER_SECOND = 25


def _native_path(path):
    """A video's path for OpenCV's native code, which ends the process on one that is not UTF-8."""
    try:
        return os.fsencode(path).decode()
    except UnicodeDecodeError:
        raise InputError(f'{path} has a name that is not UTF-8, which OpenCV does not take for a video: rename it.'
                         ) from None


def align_video(aligner, path, camera, limit, target, entry, add_frame):
    """Write a video, or of ``path`` None the camera, with landmarks to ``target``, as far as it comes.

    ``entry`` is what the JSON says of it; each frame's faces go to ``add_frame(entry, frame)``.
    """
    native = _native_path(target)
    capture = cv2.VideoCapture(camera if path is None else _native_path(path))
    writer = None
    try:
        if not capture.isOpened():
            raise InputError(f'--camera {camera} does not open.' if path is None else
                             f'{path} is not a video that can be read.')
        rate = capture.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else _FRAMES_PER_SECOND
        known = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT))) if path else 0
        with tqdm(desc=target.name, total=limit or known or None, unit='frame', leave=False, disable=None) as bar:
            while limit is None or len(entry['frames']) < limit:
                there, picture = capture.read()
                if not there:
                    break
                if writer is None:
                    make_folder(target.parent)
                    code = cv2.VideoWriter_fourcc(*('MJPG' if target.suffix == '.avi' else 'mp4v'))
                    writer = cv2.VideoWriter(native, code, rate, picture.shape[1::-1])
                    if not writer.isOpened():
                        raise InputError(f'{target} cannot be written: OpenCV has no encoder for it here.')
                    entry.update(width=picture.shape[1], height=picture.shape[0], frames_per_second=rate)
                faces = aligner(picture)
                draw_faces(picture, faces)
                writer.write(picture)
                add_frame(entry, {'frame': len(entry['frames']), 'faces': faces})
                bar.update()
    finally:
        # An interrupted video is still closed as one that can be played.
        capture.release()
        if writer is not None:
            writer.release()
    if not entry['frames']:
        raise InputError(f'{path or f"--camera {camera}"} gives no frame.')
    # OpenCV does not say that a disk is full.
    written = cv2.VideoCapture(native)
    count = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
    written.release()
    if count < len(entry['frames']):
        raise InputError(f'{target}: only {count} of {len(entry["frames"])} frames could be written. Check the free '
                         'space of the disk.')
