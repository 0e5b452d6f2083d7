#!/usr/bin/env python
"""What compress keeps of a MobileNetV1 trained on ImageNet, before any tuning.

    python benchmarks/compress_imagenet.py mobilenetv1_x0.5.npz --input-size 160 --ranks 1/8 1/4 --budgets 0.9 0.8 \\
        --calibrate photos.rec --photos 500 --test ILSVRC2012_VAL_SET/dataset.txt

`photos.rec` is any photos, as `pack photos` writes them; the test is a list, lines "path label". `error` is the mean
squared error of the outputs over their variance, on the calibration photos and on those of the test; `agreement` is the
share of the test on which the network names the class that the original names.
"""
import argparse
import itertools
import os
import sys
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # before MXNet
import mxnet as mx
import numpy as np
from tqdm import tqdm

from gluon_lprnet.complexity import count
from gluon_lprnet.compression import Budget, Fraction, compress, import_mobilenetv1
from gluon_lprnet.data.batches import validation_batches
from gluon_lprnet.data.integrity import check_records
from gluon_lprnet.predict.classification import preprocess
from gluon_lprnet.train.config import rank
from gluon_lprnet.utils.flags import positive_int
from gluon_lprnet.utils.text import render_table

BATCH = 50


def test_set(path, description):
    """Batches of pictures, and their labels."""
    lines = [line.replace(',', ' ').split() for line in Path(path).read_text().splitlines() if line.strip()]
    photos = [Path(path).parent / photo for photo, _ in lines]
    batches = [mx.nd.concat(*(preprocess(photo, description) for photo in photos[begin:begin + BATCH]), dim=0)
               for begin in tqdm(range(0, len(photos), BATCH), 'reading photos', leave=False, disable=None)]
    return batches, np.array([int(label) for _, label in lines])


def outputs_of(net, batches):
    return np.concatenate([net(batch).asnumpy() for batch in batches])


def relative_error(found, expected):
    return np.square(found - expected).sum() / np.square(expected - expected.mean(axis=0)).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('arrays')
    parser.add_argument('--input-size', type=positive_int, required=True)
    parser.add_argument('--ranks', type=rank, nargs='+', default=[], help='fractions of the width')
    parser.add_argument('--budgets', type=float, nargs='+', default=[], help='fractions of the multiply-adds')
    parser.add_argument('--no-residual', action='store_true')
    parser.add_argument('--calibrate', required=True, metavar='REC')
    parser.add_argument('--photos', type=positive_int, default=500)
    parser.add_argument('--test', required=True, metavar='LIST')
    args = parser.parse_args()
    net, description = import_mobilenetv1(args.arrays, args.input_size)
    net.hybridize(static_alloc=True)
    shape = (1, 3, args.input_size, args.input_size)
    records = validation_batches(check_records(args.calibrate), description, BATCH, 1)
    photos = [batch.data.copyto(mx.cpu()) for batch in itertools.islice(records.epoch(0), args.photos // BATCH)]
    images, labels = test_set(args.test, description)
    expected = [outputs_of(net, photos), outputs_of(net, images)]
    classes = expected[1].argmax(axis=1)
    rows = [('original', f'{count(net, shape).multiply_adds / 1e6:.1f}M', '', '', '',
             f'{100 * (classes == labels).mean():.1f}', '')]
    choices = [(f'm/{1 / share:g}', Fraction(share)) for share in args.ranks]
    choices += [(f'{share:g} of the multiply-adds', Budget(share)) for share in args.budgets]
    for name, ranks in choices:
        begin = time.perf_counter()
        compressed, report = compress(net, ranks, residual=not args.no_residual, calibration=photos)
        seconds = time.perf_counter() - begin
        found = [outputs_of(compressed, photos), outputs_of(compressed, images)]
        named = found[1].argmax(axis=1)
        rows.append((name, f'{report.after.multiply_adds / 1e6:.1f}M',
                     *(f'{relative_error(*each):.3f}' for each in zip(found, expected)),
                     f'{100 * (named == classes).mean():.1f}', f'{100 * (named == labels).mean():.1f}',
                     f'{seconds:.0f}'))
        print(rows[-1], [layer.rank for layer in report.layers if layer.rank], flush=True)
    print(f'\n{Path(args.arrays).stem}, {args.input_size}x{args.input_size}; {len(expected[0])} photos to calibrate '
          f'on, {len(labels)} to test on; gluon_lprnet {gluon_lprnet.__version__}')
    print(render_table(('ranks', 'multiply-adds', 'error, calibration', 'error, test', 'agreement %', 'top-1 %',
                        'seconds'), rows, 'markdown'))


if __name__ == '__main__':
    main()
