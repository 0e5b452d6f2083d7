#!/usr/bin/env python
"""Faces followed through drawn videos: jitter and lag with and without the filter, errors, numbers, and time.

    python benchmarks/video.py 300w/test

Each annotated picture of one face becomes two videos at 30 frames per second, with new noise in every frame: one in
which it is still, and one in which it swings half its size to each side and turns by 15 degrees, once in two seconds.
Jitter is the standard deviation of a still face's points, error is the NME, both in percent of sqrt(width * height) of
the box of the true landmarks. Lag is the time by which a face as a whole is behind its true motion.

With ``--memory MINUTES`` it measures the peak memory of ``align`` instead, on videos of these lengths at five frames a
second, in which the first face moves.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # noqa: F401  before MXNet
import av
import cv2
import numpy as np

from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.data.faces.landmarks import box_size, landmark_box, transform
from gluon_lprnet.evaluate.network_flag import DEFAULTS
from gluon_lprnet.evaluate.nme import percent
from gluon_lprnet.predict.detector_boxes import read_picture
from gluon_lprnet.predict.detectors import make_detector
from gluon_lprnet.predict.face_alignment import make_aligner
from gluon_lprnet.predict.tracking import FaceTracker
from gluon_lprnet.utils.flags import non_negative_float, positive_float, positive_int
from gluon_lprnet.utils.text import FORMATS, render_table

RATE = 30
SLOW_RATE = 5
SIDE = 384
SWING, TURN, PERIOD = 0.5, 15, 2


def draw(picture, landmarks, moving, seconds, noise, seed, rate=RATE):
    """The frames of a video of a face, with true landmarks (68, 2) and their velocity in pixels per second."""
    rng = np.random.default_rng(seed)
    box = landmark_box(landmarks)
    center, size = (box[:2] + box[2:]) / 2, box_size(box)
    # A third of the frame, so that it stays in it.
    scale = SIDE / 3 / size

    def place(moment):
        phase = 2 * np.pi * moment / PERIOD
        matrix = cv2.getRotationMatrix2D(center.tolist(), TURN * np.sin(phase) * moving, scale)
        matrix[:, 2] += SIDE / 2 - center + [SWING * SIDE / 3 * np.sin(phase) * moving, 0]
        return matrix

    for frame in range(rate * seconds):
        moment = frame / rate
        drawn = cv2.warpAffine(picture, place(moment), (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)
        noisy = drawn + rng.normal(0, noise, drawn.shape)
        before, after = (transform(place(moment + step), landmarks) for step in (-1e-4, 1e-4))
        yield np.clip(np.rint(noisy), 0, 255).astype('uint8'), (before + after) / 2, (after - before) / 2e-4, moment


def follow(tracker, frames):
    """Points (N, 68, 2), truth and velocity of the frames in which there is a face; numbers; milliseconds."""
    rows, numbers, taken = [], set(), []
    for picture, truth, velocity, moment in frames:
        begin = time.perf_counter()
        faces = tracker.update(picture, moment)
        taken.append(1000 * (time.perf_counter() - begin))
        numbers |= {face['id'] for face in faces}
        if faces:
            rows.append((np.array(faces[0]['points']), truth, velocity))
    return [np.stack(part) for part in zip(*rows)], numbers, taken


def measure(align, faces, seconds, noise, **options):
    """Means over the faces, as a dict."""
    found = {'jitter': [], 'still_nme': [], 'moving_nme': [], 'lag': [], 'frames': 0, 'followed': 0, 'numbers': 0,
             'milliseconds': []}
    for seed, face in enumerate(faces):
        picture = read_picture(face.image, upright=False)
        for moving in (False, True):
            frames = draw(picture, face.landmarks, moving, seconds, noise, seed)
            rows, numbers, taken = follow(FaceTracker(align, **options), frames)
            found['milliseconds'] += taken
            found['frames'] += RATE * seconds
            if not rows:
                continue
            points, truth, velocity = rows
            found['followed'] += len(points)
            found['numbers'] += len(numbers)
            size = box_size(landmark_box(truth)).mean()
            errors = np.linalg.norm(points - truth, axis=-1).mean() / size
            if moving:
                found['moving_nme'].append(errors)
                behind = truth - points
                # Of the face as a whole: how far its points are off does not move with it.
                behind, speed = behind.mean(axis=1), velocity.mean(axis=1)
                behind = behind - behind.mean(axis=0)
                found['lag'].append((behind * speed).sum() / (speed ** 2).sum())
            else:
                found['still_nme'].append(errors)
                # What the filter takes to settle is not jitter.
                found['jitter'].append(np.sqrt(points[RATE // 2:].var(axis=0).sum(axis=-1).mean()) / size)
    videos = len(found['jitter']) + len(found['lag'])
    return {**{name: float(np.mean(found[name])) for name in ('jitter', 'still_nme', 'moving_nme', 'lag')},
            'followed': found['followed'] / found['frames'], 'numbers_per_video': found['numbers'] / max(videos, 1),
            'milliseconds': float(np.median(found['milliseconds']))}


def write_video(path, frames, rate):
    """Write the pictures of `draw` as H.264 as they come."""
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('h264', rate=rate, options={'preset': 'ultrafast'})
        stream.width = stream.height = SIDE
        stream.pix_fmt = 'yuv420p'
        for picture, *_ in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format='bgr24')))
        container.mux(stream.encode())


def peak_memory(face, network, minutes, noise):
    """Peak memory in MB of ``align`` on a video of a face that moves, and the frames in which it was found."""
    # In a process of its own, whose peak is that of its child alone.
    measured = """
import json, resource, subprocess, sys
subprocess.run([sys.executable, "-m", "gluon_lprnet", "align", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(json.dumps(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / 'face.mp4'
        picture = read_picture(face.image, upright=False)
        write_video(video, draw(picture, face.landmarks, True, round(60 * minutes), noise, 0, SLOW_RATE), SLOW_RATE)
        kilobytes = json.loads(subprocess.run(
            [sys.executable, '-c', measured, str(video), '--network', network, '--out', f'{folder}/out'],
            check=True, stdout=subprocess.PIPE, cwd=Path(__file__).resolve().parents[1]).stdout)
        with open(f'{folder}/out/landmarks.jsonl', encoding='utf-8') as lines:
            found = sum(bool(json.loads(line)['faces']) for line in lines)
    return kilobytes / 1024, found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('folder', help='pictures with landmarks (.pts) beside them')
    parser.add_argument('--network', default=DEFAULTS['landmarks'], help='as of align (default: %(default)s)')
    parser.add_argument('--faces', type=positive_int, default=10, metavar='N', help='evenly among them '
                        '(default: %(default)s)')
    parser.add_argument('--seconds', type=positive_int, default=3, metavar='S', help='of each (default: %(default)s)')
    parser.add_argument('--noise', type=non_negative_float, default=8, metavar='LEVELS',
                        help='standard deviation of the noise, of 255 (default: %(default)s)')
    parser.add_argument('--memory', type=positive_float, nargs='+', metavar='MINUTES',
                        help='measure the peak memory of align on videos of these lengths')
    parser.add_argument('--format', choices=FORMATS, default='text')
    args = parser.parse_args()
    faces = list(read_faces(Path(args.folder), 'pts', []))
    if not faces:
        sys.exit(f'{sys.argv[0]}: {args.folder} has no pictures with landmarks (.pts) beside them.')
    faces = faces[::max(1, len(faces) // args.faces)][:args.faces]
    if args.memory:
        rows = [(minutes, SLOW_RATE * round(60 * minutes), *peak_memory(faces[0], args.network, minutes, args.noise))
                for minutes in args.memory]
        if args.format == 'json':
            print(json.dumps([dict(zip(('minutes', 'frames', 'peak_mb', 'frames_with_face'), row)) for row in rows]))
            return
        print(render_table(('minutes', 'frames', 'peak memory, MB', 'frames with a face'),
                           [(f'{minutes:g}', str(frames), f'{peak:.0f}', str(found))
                            for minutes, frames, peak, found in rows], args.format))
        return
    align = make_aligner(args.network, make_detector())
    ways = {'smoothed': {}, 'as found': {'smooth': False},
            'detected in every frame': {'smooth': False, 'detect_every': 1}}
    results = {name: measure(align, faces, args.seconds, args.noise, **options) for name, options in ways.items()}
    if args.format == 'json':
        print(json.dumps(results, indent=1))
        return
    print(render_table(('', 'jitter, %', 'error still, %', 'error moving, %', 'lag, ms', 'frames followed, %',
                        'numbers a video', 'ms a frame'),
                       [(name, f'{100 * row["jitter"]:.3f}', percent(row['still_nme']), percent(row['moving_nme']),
                         f'{1000 * row["lag"]:.1f}', f'{100 * row["followed"]:.1f}',
                         f'{row["numbers_per_video"]:.2f}', f'{row["milliseconds"]:.1f}')
                        for name, row in results.items()], args.format))


if __name__ == '__main__':
    main()
