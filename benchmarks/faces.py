#!/usr/bin/env python
"""Accuracy of landmark networks on faces of all poses, turned and in the dark.

    python benchmarks/faces.py runs/face --rec data/aflw2000_3d.rec data/300w_test.rec data/ytf_test.rec \
        --turn data/300w_test.rec

The boxes are those of the true landmarks, as in training; no detector has a part. NME is in percent of
sqrt(width * height) of that box. A network of two jaws is measured by both on every set: the one that the set's
landmarks have is marked with a star. Turned and dark faces are the first ones of the file ``--turn``.

``--peer mediapipe mp/bin/python`` measures an aligner of another package beside them, on the first faces of each set
and in the same boxes: its NME, and the time of the processor for one face, in turn with ours. ``benchmarks/peers.py``
says how to install them; one that is not installed is left out with a message. Each has points of its own convention,
so a part of its NME is not an error.
"""
import argparse
import base64
import json
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # noqa: F401  before MXNet
import cv2
import numpy as np
from peers import PEERS

from gluon_lprnet.data.faces.landmarks import JAWS, TWO_JAWS, landmark_box, transform
from gluon_lprnet.data.faces.records import check_face_records, read_face_records
from gluon_lprnet.evaluate.landmarks import (
    BIN_NAMES,
    evaluate_landmarks,
    load_networks,
    normalized_mean_errors,
    predict_landmarks,
    summarize,
    yaw_bins,
)
from gluon_lprnet.evaluate.nme import percent
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.utils.flags import positive_int
from gluon_lprnet.utils.text import FORMATS, render_table

ANGLES = (0, 30, 60, 90)
# Part of the light that is left.
DARK = 0.3
_BATCH_SIZE = 50


def turned(picture, landmarks, degrees):
    """A picture and its landmarks turned about the picture's center; what comes in from outside repeats the border."""
    height, width = picture.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    return (cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            transform(matrix, landmarks))


def errors_of(net, description, faces):
    """NME (N,) of faces given as (picture, landmarks, jaw)."""
    errors = []
    for first in range(0, len(faces), _BATCH_SIZE):
        pictures, truth, jaws = zip(*faces[first:first + _BATCH_SIZE])
        boxes = [landmark_box(points) for points in truth]
        predicted = predict_landmarks(net, description, list(zip(pictures, boxes)), jaws=jaws)
        errors.append(normalized_mean_errors(predicted, np.stack(truth)))
    return np.concatenate(errors)


def measure_sets(net, description, recs):
    """By set and jaw, what ``evaluate.landmarks.summarize`` gives, and whether that is the jaw the set has."""
    rows = []
    for rec in recs:
        records = list(read_face_records(rec))
        for jaw in JAWS if description['num_classes'] == TWO_JAWS else (None,):
            found = evaluate_landmarks(net, records, description, jaw=jaw)
            rows.append({'set': Path(rec).stem, 'jaw': jaw, 'own': jaw in (None, records[0].jaw),
                         **summarize(found.errors, found.yaw)})
    return rows


def measure_turned(net, description, records):
    """Mean NME by angle, of faces turned to both sides, and of the upright ones as they are in the dark."""
    faces = [(record.pixels(), record.landmarks.astype('float64'), record.jaw or JAWS[0]) for record in records]
    roll = {}
    for angle in ANGLES:
        roll[angle] = float(np.mean([
            errors_of(net, description, [(*turned(picture, landmarks, sign * angle), jaw)
                                         for picture, landmarks, jaw in faces]).mean() for sign in (1, -1)]))
    dark = errors_of(net, description, [(cv2.convertScaleAbs(picture, alpha=DARK), landmarks, jaw)
                                        for picture, landmarks, jaw in faces])
    return {'faces': len(faces), 'roll': roll, 'dark': float(dark.mean())}


class NotInstalled(Exception):
    """A peer that cannot be measured; the message says why."""


class Peer:
    """An aligner in a process of its own environment, spoken to as ``peers.py`` says."""

    def __init__(self, name, python):
        script = Path(__file__).with_name('peers.py')
        try:
            self._process = subprocess.Popen([python, str(script), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                             stderr=subprocess.DEVNULL, text=True)
        except OSError as error:
            raise NotInstalled(f'{python} cannot be run ({error.strerror})') from error
        greeting = self._read()
        if 'error' in greeting:
            raise NotInstalled(greeting['error'])
        self.label = greeting['peer']

    def __call__(self, picture, box, jaw=None):
        """Landmarks (68, 2), or None, and milliseconds of a face (height, width, 3) uint8, RGB, in its box.

        It knows one jaw.
        """
        pixels = base64.b64encode(picture.tobytes()).decode()
        question = {'shape': picture.shape[:2], 'pixels': pixels, 'box': box.tolist()}
        print(json.dumps(question), file=self._process.stdin, flush=True)
        answer = self._read()
        return answer['points'], answer['ms']

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _read(self):
        line = self._process.stdout.readline()
        if not line:
            raise NotInstalled(f'it ended with status {self._process.wait()}')
        return json.loads(line)


def start_peers(peers):
    """Those of (name, Python) that are installed; the others are named on standard error."""
    started = []
    for name, python in peers:
        try:
            started.append(Peer(name, python))
        except NotInstalled as error:
            print(f'{name} is left out: {error}.', file=sys.stderr)
    return started


def measure_peers(networks, peers, recs, count):
    """By set and aligner: faces, the share answered, NME of these and of those that all answer, milliseconds."""
    def ours(net, description, flip):
        def align(picture, box, jaw):
            begin = time.process_time()
            points, = predict_landmarks(net, description, [(picture, box)], jaws=jaw, flip=flip)
            return points, 1e3 * (time.process_time() - begin)
        return align

    aligners = {label + ', flip' * flip: ours(*network, flip)
                for label, network in networks.items() for flip in (False, True)}
    aligners.update({peer.label: peer for peer in peers})
    rows = []
    for rec in recs:
        records = list(islice(read_face_records(rec), count))
        answers = {label: [] for label in aligners}
        for record in records:
            picture = record.pixels()
            # In turn, so that all share whatever else the machine does.
            for label, align in aligners.items():
                answers[label].append(align(picture, record.box, record.jaw or JAWS[0]))
        truth = [record.landmarks for record in records]
        yaw = np.array([np.nan if record.pose is None else np.degrees(record.pose[1]) for record in records])
        errors = {label: np.array([np.nan if points is None else float(normalized_mean_errors([points], [true])[0])
                                   for (points, _), true in zip(found, truth)]) for label, found in answers.items()}
        by_all = np.isfinite(list(errors.values())).all(axis=0)
        for label, each in errors.items():
            answered = np.isfinite(each)
            bins = yaw_bins(yaw)
            rows.append({
                'set': Path(rec).stem, 'aligner': label, 'faces': len(each), 'answered': float(answered.mean()),
                'bin_nme': [mean(each[answered & (bins == index)]) for index in range(len(BIN_NAMES))],
                'mean': mean(each[answered]), 'mean_where_all_answer': mean(each[by_all]),
                'milliseconds': float(np.median([took for _, took in answers[label]]))})
    return rows


def mean(values):
    return float(values.mean()) if len(values) else None


def peer_table(rows, format):
    first = {row['set']: row['milliseconds'] for row in reversed(rows)}
    return render_table(
        ('set', 'aligner', 'faces', 'answered, %', *BIN_NAMES, 'mean', 'where all answer', 'CPU ms', 'ratio'),
        [(row['set'], row['aligner'], row['faces'], percent(row['answered'], 0), *map(percent, row['bin_nme']),
          percent(row['mean']), percent(row['mean_where_all_answer']), f'{row["milliseconds"]:.1f}',
          f'{row["milliseconds"] / first[row["set"]]:.2f}') for row in rows], format)


def tables(results, format):
    """Two tables as a string, of ``results`` by network."""
    sets = [(row['set'], label, f'{row["jaw"] or "the one it has"}{" *" if row["own"] else ""}', row['faces'],
             *map(percent, row['bin_nme']), percent(row['mean_of_bins']), percent(row['mean']))
            for label, result in results.items() for row in result['sets']]
    lines = [render_table(('set', 'network', 'jaw', 'faces', *BIN_NAMES, 'mean of bins', 'mean of faces'),
                          sorted(sets, key=lambda row: row[0]), format)]
    turns = [(label, *map(percent, found['roll'].values()), f'{found["roll"][60] / found["roll"][0]:.2f}',
              percent(found['dark']), f'{found["dark"] / found["roll"][0] - 1:+.1%}')
             for label, result in results.items() for found in [result['turned']] if found]
    if turns:
        lines.append(render_table(('network', *(f'turned {angle}' for angle in ANGLES), '60 / 0', f'light {DARK:g}',
                                   'change'), turns, format))
    return '\n\n'.join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('networks', nargs='+', metavar='NETWORK', help='run folder, checkpoint folder or -symbol.json')
    parser.add_argument('--rec', nargs='+', required=True, metavar='REC', help='test sets, packed by "pack faces"')
    parser.add_argument('--turn', metavar='REC', help='the set whose faces are turned and darkened')
    parser.add_argument('--faces', type=positive_int, default=100, metavar='N',
                        help='taken of it, and of each set for the peers (default: %(default)s)')
    parser.add_argument('--peer', nargs=2, action='append', default=[], metavar=('NAME', 'PYTHON'),
                        help=f'an aligner of another package, {" or ".join(PEERS)}, and the Python that has it')
    parser.add_argument('--format', choices=FORMATS, default='text')
    args = parser.parse_args()
    try:
        for rec in [*args.rec, *([args.turn] if args.turn else [])]:
            check_face_records(rec)
        networks = load_networks(args.networks)
    except InputError as error:
        sys.exit(f'{sys.argv[0]}: {error}')
    if args.peer:
        # One core for all: some take as many threads as there are.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        peers = start_peers(args.peer)
        rows = measure_peers(networks, peers, args.rec, args.faces)
        for peer in peers:
            peer.close()
        print(json.dumps(rows, indent=1) if args.format == 'json' else peer_table(rows, args.format))
        return
    results = {}
    for label, (net, description) in networks.items():
        faces = list(islice(read_face_records(args.turn), args.faces)) if args.turn else []
        results[label] = {'sets': measure_sets(net, description, args.rec),
                          'turned': measure_turned(net, description, faces) if faces else None}
    print(json.dumps(results, indent=1) if args.format == 'json' else tables(results, args.format))


if __name__ == '__main__':
    main()
