"""Faces that keep their number from frame to frame, and landmarks that do not tremble."""
import math
from typing import Any, Optional

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..data.faces.landmarks import landmark_box
from .aligner import Aligner

# Cutoff of a still face in Hz, and Hz more for each face size per second.
MIN_CUTOFF, BETA, DERIVATIVE_CUTOFF = 0.3, 20.0, 1.0
# Frames from one look for new faces to the next.
DETECT_EVERY = 10
# Overlap of two boxes of one face, over their union.
_SAME_FACE = 0.3
_REPEATED = 0.6
# Seconds that a lost face is remembered.
_REMEMBERED = 1.0
# What a box may do between two frames: move by this part of its side, and grow or shrink by this factor.
_SHIFT, _GROWTH = 0.5, 1.5


class OneEuroFilter:
    """The low-pass filter of Casiez, Roussel and Vogel (CHI 2012): the faster a signal, the higher its cutoff.

    Parameters
    ----------
    min_cutoff : float
        Of a signal at rest, in Hz: a lower one takes more of the jitter.
    beta : float
        Hz of cutoff for each unit of speed: a higher one takes more of the lag.
    derivative_cutoff : float
        Of the speed, in Hz.
    """

    def __init__(self, min_cutoff: float = MIN_CUTOFF, beta: float = BETA,
                 derivative_cutoff: float = DERIVATIVE_CUTOFF) -> None:
        self._min_cutoff, self._beta, self._derivative_cutoff = min_cutoff, beta, derivative_cutoff
        self._time: Optional[float] = None

    def __call__(self, values: np.ndarray, time: float, scale: float = 1.0) -> np.ndarray:
        """The filtered values of an array, each filtered by itself.

        Parameters
        ----------
        values : ndarray
            Of the shape of those before.
        time : float
            Seconds; values of the same time as those before, or of an earlier one, begin anew.
        scale : float
            The unit of the speed, in that of the values.
        """
        values = np.asarray(values, dtype='float64')
        if self._time is None or time <= self._time:
            self._filtered, self._speed = values, np.zeros_like(values)
        else:
            step = time - self._time
            speed = (values - self._filtered) / step
            self._speed = self._speed + _smoothing(step, self._derivative_cutoff) * (speed - self._speed)
            cutoff = self._min_cutoff + self._beta * np.abs(self._speed) / scale
            self._filtered = self._filtered + _smoothing(step, cutoff) * (values - self._filtered)
        self._time = time
        return self._filtered


def _smoothing(step, cutoff):
    """Weight of the new value in an exponential average, of steps in seconds and cutoffs in Hz."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * step))


class _Track:
    """A face on its way through the frames."""

    def __init__(self, number):
        self.number = number

    def move(self, face, time):
        """Go on to the face found now."""
        points = np.array(face['points'])
        self.found, self.box, self.time = face, landmark_box(points), time
        if self.filter is not None:
            points = self.filter(points, time, math.sqrt((self.box[2:] - self.box[:2]).prod()))
        self.face = {'id': self.number, **face, 'points': np.round(points, 2).tolist()}


class FaceTracker:
    """Follows the faces of a video or a live stream.

    In most frames a face is looked for where it was in the one before, which is quicker than to search the whole
    picture and follows faces that a detector would miss; every ``detect_every`` frames, and as soon as one is lost,
    the detector looks for others. What is kept in memory does not grow with the number of frames.

    Parameters
    ----------
    aligner : gluon_lprnet.predict.aligner.Aligner
    smooth : bool
        Filter the points of a face against jitter, by :class:`OneEuroFilter`.
    detect_every : int
        In frames.
    least_confidence : float
        A face of less is not taken, and one that is followed is lost.
    """

    def __init__(self, aligner: Aligner, smooth: bool = True,
                 detect_every: int = DETECT_EVERY, least_confidence: float = 0.2) -> None:
        self._aligner = aligner
        self._smooth = smooth
        self._detect_every = detect_every
        self._least_confidence = least_confidence
        self._followed: list[_Track] = []
        self._lost: list[_Track] = []
        self._until_detection = 0
        self.count = 0

    def update(self, picture: np.ndarray, time: float) -> list[dict[str, Any]]:
        """The faces of the next frame.

        Parameters
        ----------
        picture : ndarray (height, width, 3) uint8
            BGR.
        time : float
            Seconds, growing from call to call.

        Returns
        -------
        list of dict
            As the aligner gives them, with ``id``, a number from 0 that no other face gets.
        """
        lost_one = self._follow(picture, time)
        self._until_detection -= 1
        if lost_one or not self._followed or self._until_detection <= 0:
            self._until_detection = self._detect_every
            self._detect(picture, time)
        self._lost = [track for track in self._lost if time - track.time <= _REMEMBERED]
        return [track.face for track in self._followed]

    def _follow(self, picture, time):
        """Move the tracks to where their faces are now; whether one was lost."""
        if not self._followed:
            return False
        tracks, self._followed = self._followed, []
        for track, face in zip(tracks, self._aligner.follow(picture, [track.found for track in tracks])):
            if self._goes_on(track, face, picture.shape) and not self._repeats(face):
                track.move(face, time)
                self._followed.append(track)
            else:
                self._lost.append(track)
        return len(self._followed) < len(tracks)

    def _goes_on(self, track, face, shape):
        box = _box(face)
        side, side_before = (max(of[2:] - of[:2]) for of in (box, track.box))
        center, center_before = ((of[:2] + of[2:]) / 2 for of in (box, track.box))
        return (face['confidence'] >= self._least_confidence
                and np.abs(center - center_before).max() <= _SHIFT * side_before
                and 1 / _GROWTH <= side / side_before <= _GROWTH
                and (center >= 0).all() and (center < shape[1::-1]).all())

    def _repeats(self, face):
        return any(overlap(_box(face), track.box) > _REPEATED for track in self._followed)

    def _detect(self, picture, time):
        """Look for faces in all of the picture: of lost tracks, which go on, and new ones."""
        found = [face for face in self._aligner(picture) if face['confidence'] >= self._least_confidence]
        tracks = self._followed + self._lost
        overlaps = np.array([[overlap(_box(face), track.box) for face in found]
                             for track in tracks]).reshape(len(tracks), len(found))
        matched = {column: tracks[row] for row, column in zip(*linear_sum_assignment(-overlaps))
                   if overlaps[row, column] >= _SAME_FACE}
        for column, face in enumerate(found):
            track = matched.get(column)
            if track in self._followed or track is None and self._repeats(face):
                continue
            if track is None:
                track = _Track(self.count)
                self.count += 1
            else:
                self._lost.remove(track)
            track.filter = OneEuroFilter() if self._smooth else None
            track.move(face, time)
            self._followed.append(track)


def _box(face):
    return landmark_box(np.array(face['points']))


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    """Of two boxes (left, top, right, bottom), the area in common over that of their union."""
    common = np.maximum(np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]), 0).prod()
    return common / ((box[2:] - box[:2]).prod() + (other[2:] - other[:2]).prod() - common)
