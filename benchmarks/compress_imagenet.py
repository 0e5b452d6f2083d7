#!/usr/bin/env python
"""What compress keeps of a MobileNetV1 trained on ImageNet, on photos that it was not calibrated on.

    python benchmarks/compress_imagenet.py mobilenetv1_x0.25.npz --input-size 128 --ranks 1/8 1/4 1/3 \\
        --calibrate imagenette/train imagenet_samples --photos 500 --test imagenet_samples

Of each folder of --calibrate, which has a folder of photos for each class, an equal number of photos is taken, evenly
spaced by name; the test is on all photos of --test that are not among them. `agreement` is the share of these on which
the network names the class that the original names. `top-1` takes the folders of --test, sorted by name, as the
classes; photos that the original was trained on may be among them, so that it is for comparison only.
"""
import argparse
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
from gluon_lprnet.predict.classification import preprocess
from gluon_lprnet.train.config import rank
from gluon_lprnet.utils.flags import positive_int
from gluon_lprnet.utils.text import render_table

BATCH = 50


def photos_of(folder):
    return sorted(path for path in Path(folder).glob('*/*') if path.is_file())


def images_of(paths, description):
    return [mx.nd.concat(*(preprocess(path, description) for path in paths[begin:begin + BATCH]), dim=0)
            for begin in tqdm(range(0, len(paths), BATCH), 'reading photos', unit='batch', leave=False, disable=None)]


def classes_of(net, images):
    return np.concatenate([net(batch).argmax(axis=1).asnumpy() for batch in images])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('arrays')
    parser.add_argument('--input-size', type=positive_int, required=True)
    parser.add_argument('--ranks', type=rank, nargs='+', default=[1 / 8, 1 / 4], help='fractions of the width')
    parser.add_argument('--budgets', type=float, nargs='+', default=[], help='fractions of the multiply-adds')
    parser.add_argument('--calibrate', nargs='+', required=True, metavar='FOLDER')
    parser.add_argument('--photos', type=positive_int, default=500)
    parser.add_argument('--test', required=True, metavar='FOLDER')
    args = parser.parse_args()
    net, description = import_mobilenetv1(args.arrays, args.input_size)
    net.hybridize(static_alloc=True)
    chosen = []
    for folder in args.calibrate:
        found = photos_of(folder)
        share = min(args.photos // len(args.calibrate), len(found))
        chosen += [found[number * len(found) // share] for number in range(share)]
    test = [path for path in photos_of(args.test) if path not in set(chosen)]
    wnids = sorted(path.name for path in Path(args.test).iterdir() if path.is_dir())
    labels = np.array([wnids.index(path.parent.name) for path in test])
    calibration, images = images_of(chosen, description), images_of(test, description)
    expected = classes_of(net, images)
    shape = (1, 3, args.input_size, args.input_size)
    rows = [('original', f'{count(net, shape).multiply_adds:,}', '', f'{(expected == labels).mean():.3f}', '')]
    for ranks in [*map(Fraction, args.ranks), *map(Budget, args.budgets)]:
        begin = time.perf_counter()
        compressed, report = compress(net, ranks, calibration=calibration)
        seconds = time.perf_counter() - begin
        print(f'\n{report}', flush=True)
        classes = classes_of(compressed, images)
        rows.append((ranks, f'{report.after.multiply_adds:,}', f'{(classes == expected).mean():.3f}',
                     f'{(classes == labels).mean():.3f}', f'{seconds:.0f}'))
    print(f'\n{Path(args.arrays).stem}, {args.input_size}x{args.input_size}; {len(chosen)} photos to calibrate on, '
          f'{len(test)} others to test on; gluon_lprnet {gluon_lprnet.__version__}')
    print(render_table(('', 'multiply-adds', 'agreement', 'top-1', 'seconds'), rows, 'markdown'))


if __name__ == '__main__':
    main()
