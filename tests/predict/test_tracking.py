"""Faces followed from frame to frame: on squares whose places are known, and on real faces that move."""
import math
import tracemalloc

import cv2
import numpy as np
import pytest

from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.evaluate.network_flag import DEFAULTS
from gluon_lprnet.predict.detectors import make_detector
from gluon_lprnet.predict.face_alignment import make_aligner
from gluon_lprnet.predict.tracking import FaceTracker, OneEuroFilter, overlap


class PaperFilter:
    """Algorithm 1 of Casiez, Roussel and Vogel (CHI 2012), a number at a time."""

    def __init__(self, mincutoff, beta, dcutoff):
        self.mincutoff, self.beta, self.dcutoff = mincutoff, beta, dcutoff
        self.first = True

    @staticmethod
    def alpha(rate, cutoff):
        tau = 1 / (2 * math.pi * cutoff)
        te = 1 / rate
        return 1 / (1 + tau / te)

    def __call__(self, x, rate):
        if self.first:
            self.first, dx, self.xhat, self.dxhat = False, 0, x, 0
        else:
            dx = (x - self.xhat) * rate
        edx = self.alpha(rate, self.dcutoff) * dx + (1 - self.alpha(rate, self.dcutoff)) * self.dxhat
        cutoff = self.mincutoff + self.beta * abs(edx)
        weight = self.alpha(rate, cutoff)
        self.xhat, self.dxhat = weight * x + (1 - weight) * self.xhat, edx
        return self.xhat


@pytest.mark.parametrize('mincutoff, beta, dcutoff', [(1, 0.007, 1), (0.3, 20, 1), (2, 0, 3)])
def test_the_filter_is_that_of_the_paper(mincutoff, beta, dcutoff):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(60, 2, 3)).cumsum(axis=0)
    # At a variable rate.
    steps = rng.uniform(0.01, 0.1, 60)
    filtered, expected = OneEuroFilter(mincutoff, beta, dcutoff), [PaperFilter(mincutoff, beta, dcutoff)
                                                                   for _ in range(6)]
    for value, step, time in zip(values, steps, steps.cumsum()):
        one_by_one = [each(number, 1 / step) for each, number in zip(expected, value.ravel())]
        np.testing.assert_allclose(filtered(value, time).ravel(), one_by_one, rtol=1e-12)


def test_the_filter_does_not_know_how_large_a_face_is():
    values, times = np.random.default_rng(1).normal(size=(30, 4)).cumsum(axis=0), np.arange(30) / 25
    small, large = OneEuroFilter(), OneEuroFilter()
    for value, time in zip(values, times):
        np.testing.assert_allclose(large(100 * value, time, scale=100), 100 * small(value, time), rtol=1e-9)


def test_the_filter_takes_jitter_and_adds_little_lag():
    """In face sizes: trembling by 1%, then one that moves by one size a second."""
    rng = np.random.default_rng(2)
    times = np.arange(150) / 30
    path = np.where(times < 2.5, 0, times - 2.5)
    noisy = path[:, None] + rng.normal(0, 0.01, (150, 100))
    smooth = OneEuroFilter()
    filtered = np.stack([smooth(value, time) for value, time in zip(noisy, times)])
    assert filtered[30:75].std(axis=0).mean() < 0.6 * noisy[30:75].std(axis=0).mean()
    # At one size a second, what is missing is the lag in seconds.
    assert (path[-30:] - filtered[-30:].mean(axis=1)).max() < 0.02


def test_times_that_go_back_begin_anew():
    smooth = OneEuroFilter()
    smooth(np.zeros(2), 5.0)
    np.testing.assert_array_equal(smooth(np.ones(2), 1.0), np.ones(2))
    np.testing.assert_array_equal(smooth(np.full(2, 3.0), 1.0), np.full(2, 3.0))


def test_overlap():
    assert overlap(np.array([0, 0, 4, 4.]), np.array([2, 0, 6, 4.])) == pytest.approx(8 / 24)
    assert overlap(np.array([0, 0, 4, 4.]), np.array([5, 5, 6, 6.])) == 0


SIZE = 40
# Around the center of a square, to its corners.
SHAPE = np.array([[-0.5, -0.5], [0.5, -0.5], [0.5, 0.5], [-0.5, 0.5]] * 17)


class World:
    """Squares of ``SIZE`` at known places stand for faces; an aligner of them.

    The detector is ``blind`` at times; of what it finds the aligner is ``sure``, of what is not there ``unsure``.
    """

    def __init__(self, sure=0.9, unsure=0.1):
        self.detections, self.blind, self.sure, self.unsure = 0, False, sure, unsure
        self.centers = {}

    def picture(self, **centers):
        self.centers = centers
        return np.zeros((300, 400, 3), 'uint8')

    def __call__(self, picture):
        self.detections += 1
        return [] if self.blind else [self.face(center, self.sure) for center in self.centers.values()]

    def follow(self, picture, faces):
        found = []
        for face in faces:
            middle = np.mean(face['points'], axis=0)
            near = [center for center in self.centers.values() if np.abs(center - middle).max() < 0.4 * SIZE]
            # A network answers also where there is no face.
            found.append(self.face(min(near, key=lambda center: np.abs(center - middle).sum()), self.sure) if near
                         else self.face(middle, self.unsure))
        return found

    @staticmethod
    def face(center, confidence):
        return {'points': (SHAPE * SIZE + center).tolist(), 'confidence': confidence}


def centers_by_id(faces):
    return {face['id']: np.mean(face['points'], axis=0).round(1).tolist() for face in faces}


def test_faces_that_pass_each_other_keep_their_numbers():
    world = World()
    tracker = FaceTracker(world, smooth=False)
    for frame in range(60):
        left, right = (60 + 4 * frame, 100), (340 - 4 * frame, 160)
        found = centers_by_id(tracker.update(world.picture(left=np.array(left), right=np.array(right)), frame / 30))
        assert found == {0: list(map(float, left)), 1: list(map(float, right))}
    # Looked for in 60 / 10 frames.
    assert world.detections == 6


def test_a_face_that_comes_later_is_found_and_one_that_left_does_not_stay():
    world = World()
    tracker = FaceTracker(world, smooth=False, detect_every=5)
    seen = []
    for frame in range(80):
        centers = {'first': np.array([100, 100])} if frame < 40 else {}
        if frame >= 12:
            centers['second'] = np.array([250, 150])
        seen.append(set(centers_by_id(tracker.update(world.picture(**centers), frame / 30))))
    # The detector looks at every fifth frame.
    assert seen[:12] == [{0}] * 12 and seen[17:40] == [{0, 1}] * 23 and seen[40:] == [{1}] * 40


def test_a_doubtful_face_is_not_taken():
    world = World(sure=0.15)
    assert FaceTracker(world).update(world.picture(a=np.array([100, 100])), 0) == []


def test_a_confidence_ends_a_track_at_once():
    world = World()
    tracker = FaceTracker(world, smooth=False)
    assert set(centers_by_id(tracker.update(world.picture(a=np.array([100, 100])), 0))) == {0}
    assert tracker.update(world.picture(), 1 / 30) == []


def test_a_number_is_not_given_again_but_after_a_moment():
    world = World()
    tracker = FaceTracker(world, smooth=False)
    there, gone = {'a': np.array([100, 100])}, {}

    def number(centers, time):
        return [face['id'] for face in tracker.update(world.picture(**centers), time)]
    assert number(there, 0.0) == [0] and number(gone, 0.1) == [] and number(there, 0.8) == [0]
    assert number(gone, 0.9) == [] and number(gone, 2.5) == [] and number(there, 2.6) == [1]
    assert tracker.count == 2


def test_a_face_that_the_detector_misses_is_followed():
    world = World()
    tracker = FaceTracker(world, smooth=False, detect_every=10)
    for frame in range(45):
        world.blind = frame > 0
        assert set(centers_by_id(tracker.update(world.picture(a=np.array([100 + frame, 100])), frame / 30))) == {0}


def test_two_tracks_of_one_face_become_one():
    world = World(unsure=0.9)
    tracker = FaceTracker(world, smooth=False)
    tracker.update(world.picture(a=np.array([100, 100]), b=np.array([150, 100])), 0)
    found = [set(centers_by_id(tracker.update(world.picture(a=np.array([100 + 10 * frame, 100])), frame / 30)))
             for frame in range(1, 9)]
    assert found[-1] in ({0}, {1})


def test_smoothing_is_of_one_face_alone():
    world = World()
    rng = np.random.default_rng(3)
    plain, smooth = [], []
    trackers = FaceTracker(world, smooth=False), FaceTracker(world)
    for frame in range(60):
        centers = {'a': [100, 100] + rng.normal(0, 0.4, 2), 'b': [250, 200] + rng.normal(0, 0.4, 2)}
        for tracker, rows in zip(trackers, (plain, smooth)):
            rows.append([face['points'][0] for face in tracker.update(world.picture(**centers), frame / 30)])
    plain, smooth = np.array(plain)[30:], np.array(smooth)[30:]
    assert (smooth.std(axis=0) < 0.7 * plain.std(axis=0)).all()
    np.testing.assert_allclose(smooth.mean(axis=0), plain.mean(axis=0), atol=0.5)


def test_memory_is_flat():
    """One frame a second, with a new face every ten."""
    world = World()
    tracker = FaceTracker(world)
    held = {}
    tracemalloc.start()
    try:
        for frame in range(800):
            tracker.update(world.picture(**({'a': np.array([100 + frame % 10, 100])} if frame % 10 < 6 else {})), frame)
            if frame in (199, 799):
                held[frame] = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    # 10 KB for each of the 60 faces between would be 600 KB.
    assert tracker.count == 80 and abs(held[799] - held[199]) < 20_000


def drawn(picture, landmarks, frames):
    """A face that swings and turns, and its true points, frame by frame."""
    height, width = picture.shape[:2]
    for frame in range(frames):
        phase = 2 * np.pi * frame / frames
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 12 * np.cos(phase), 1)
        matrix[:, 2] += [80 + 40 * np.cos(phase), 40 + 15 * np.cos(2 * phase)]
        yield (cv2.warpAffine(picture, matrix, (width + 160, height + 80), borderMode=cv2.BORDER_REPLICATE),
               landmarks @ matrix[:, :2].T + matrix[:, 2])


def test_real_faces_that_move_and_turn(shared_data):
    """NME of every frame against the true points; the network of the package, by the jaw that 300-W has."""
    faces = list(read_faces(shared_data / '300w' / 'test', 'pts', []))[7:500:250]
    if not faces:
        pytest.skip('no photos')
    align = make_aligner(DEFAULTS['landmarks'], make_detector(), 'contour')
    for face in faces:
        trackers = {smooth: FaceTracker(align, smooth=smooth) for smooth in (False, True)}
        errors = {False: [], True: []}
        for frame, (picture, truth) in enumerate(drawn(cv2.imread(face.image), face.landmarks, 24)):
            for smooth, tracker in trackers.items():
                found, = tracker.update(picture, frame / 24)
                assert found['id'] == 0
                errors[smooth].append(np.linalg.norm(np.array(found['points']) - truth, axis=1).mean()
                                      / math.sqrt(np.ptp(truth, axis=0).prod()))
        assert max(errors[False]) < 0.08 and np.mean(errors[False]) < 0.05
        # In a swing of a third of its size to each side in a second.
        assert np.mean(errors[True]) < np.mean(errors[False]) + 0.01


def test_a_face_is_followed_all_the_way_round(shared_data):
    """Turned in the picture by ten degrees a frame, which no detector of upright faces follows."""
    faces = list(read_faces(shared_data / '300w' / 'test', 'pts', []))
    if not faces:
        pytest.skip('no photos')
    picture, landmarks = cv2.imread(faces[7].image), faces[7].landmarks
    tracker = FaceTracker(make_aligner(DEFAULTS['landmarks'], make_detector(), 'contour'), smooth=False,
                          detect_every=1000)
    center = landmarks.mean(axis=0)
    side = int(4 * np.ptp(landmarks, axis=0).max())
    for frame in range(36):
        matrix = cv2.getRotationMatrix2D(center.tolist(), 10 * frame, 1)
        matrix[:, 2] += side / 2 - center
        found, = tracker.update(cv2.warpAffine(picture, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE),
                                frame / 25)
        truth = landmarks @ matrix[:, :2].T + matrix[:, 2]
        size = math.sqrt(np.ptp(landmarks, axis=0).prod())
        assert found['id'] == 0
        assert np.linalg.norm(np.array(found['points']) - truth, axis=1).mean() / size < 0.07
