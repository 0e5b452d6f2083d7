#!/usr/bin/env python
"""Accuracy of landmark networks on faces of all poses, turned and in the dark.

    python benchmarks/faces.py runs/face --rec data/aflw2000_3d.rec data/300w_test.rec data/ytf_test.rec \
        --turn data/300w_test.rec

The boxes are those of the true landmarks, as in training; no detector has a part. NME is in percent of
sqrt(width * height) of that box. A network of two jaws is measured by both on every set: the one that the set's
landmarks have is marked with a star. Turned and dark faces are the first ones of the file ``--turn``.
"""
import argparse
import json
import os
import sys
from itertools import islice
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # noqa: F401  before MXNet
import cv2
import numpy as np

from gluon_lprnet.data.faces.landmarks import JAWS, TWO_JAWS, landmark_box, transform
from gluon_lprnet.data.faces.records import check_face_records, read_face_records
from gluon_lprnet.evaluate.landmarks import (
    BIN_NAMES,
    evaluate_landmarks,
    load_networks,
    normalized_mean_errors,
    predict_landmarks,
    summarize,
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
                        help='taken of it (default: %(default)s)')
    parser.add_argument('--format', choices=FORMATS, default='text')
    args = parser.parse_args()
    try:
        for rec in [*args.rec, *([args.turn] if args.turn else [])]:
            check_face_records(rec)
        networks = load_networks(args.networks)
    except InputError as error:
        sys.exit(f'{sys.argv[0]}: {error}')
    results = {}
    for label, (net, description) in networks.items():
        faces = list(islice(read_face_records(args.turn), args.faces)) if args.turn else []
        results[label] = {'sets': measure_sets(net, description, args.rec),
                          'turned': measure_turned(net, description, faces) if faces else None}
    print(json.dumps(results, indent=1) if args.format == 'json' else tables(results, args.format))


if __name__ == '__main__':
    main()
