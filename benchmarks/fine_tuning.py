#!/usr/bin/env python
"""Fine-tuning from few photos of a class: from the ImageNet weights of the package against from nothing.

    python benchmarks/fine_tuning.py --train grocery/dataset/train/*/* --test grocery/dataset/test/*/*
    python benchmarks/fine_tuning.py --train caltech101/101_ObjectCategories/*

Each folder is a class; those with too few photos are left out, and `--classes` of the others are taken, evenly spread.
Without --test the photos to test on are of the same folders. Photos are chosen by chance, the test's first. From the
weights the new output layer alone is trained, as in docs/training.md; from nothing the whole network is, twice as long.
Fewer photos are seen more often: packed several times, so that an epoch has as many whatever their number.
"""
import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from gluon_lprnet.__main__ import main as gluon_lprnet
from gluon_lprnet.train.journal import read_epochs
from gluon_lprnet.utils.flags import positive_int
from gluon_lprnet.utils.text import render_table

WEIGHTS = 'compressed_mobilenet_x0.5.imagenet'
# What it begins with: the flags.
STARTS = {
    WEIGHTS: ['--model', WEIGHTS, '--freeze', 'features', '--num-epochs', '6', '--lr', '0.1'],
    'nothing': ['--model', 'mobilenetv1_x0.5', '--num-epochs', '12', '--warmup-epochs', '1', '--lr', '0.03'],
}
SIZE = ['--input-size', '128', '--tuning-epochs', '0', '--batch-size', '16', '--min-random-scale', '0.9', '-j', '1']


def photos_of(folder, rng):
    photos = sorted(path for path in folder.rglob('*') if path.suffix.lower() in ('.jpg', '.jpeg', '.png'))
    rng.shuffle(photos)
    return photos


def chosen(args, per_class):
    """By class: the photos to train on, as many as the most of any run takes, and those to test on."""
    rng, found = random.Random(args.seed), {}
    test = {folder.name: folder for folder in map(Path, args.test or args.train) if folder.is_dir()}
    for folder in sorted(folder for folder in map(Path, args.train) if folder.is_dir() and folder.name in test):
        photos = photos_of(folder, rng)
        others = photos_of(test[folder.name], rng) if args.test else photos
        tested, photos = others[:args.tests], photos if args.test else photos[args.tests:]
        if len(tested) == args.tests and len(photos) >= per_class:
            found[folder.name] = photos[:per_class], tested
    if len(found) < args.classes:
        sys.exit(f'{len(found)} of the folders have photos enough, not {args.classes}.')
    names = list(found)[::len(found) // args.classes][:args.classes]
    return {name: found[name] for name in names}


def pack(photos_by_class, folder, times=1):
    """The photos, each so many times, as a RecordIO file."""
    for name, photos in photos_by_class.items():
        (folder / name).mkdir(parents=True)
        for number, photo in enumerate(photos * times):
            (folder / name / f'{number}{photo.suffix}').symlink_to(photo.resolve())
    records = folder.with_name(f'{folder.name}-records')
    if gluon_lprnet(['pack', 'images', str(folder), '--out', str(records), '--resize', '160']):
        sys.exit(1)
    return f'{records}.rec'


def trained(flags, train, test, run, seed):
    """Top-1 of the last epoch, and the processor's seconds."""
    begin = time.process_time()
    if gluon_lprnet(['train-imagenet', *flags, *SIZE, '--rec-train', train, '--rec-val', test, '--save-dir', str(run),
                     '--seed', str(seed)]):
        sys.exit(1)
    return read_epochs(run)[-1]['val_top1'], time.process_time() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--train', nargs='+', required=True, metavar='FOLDER')
    parser.add_argument('--test', nargs='+', metavar='FOLDER')
    parser.add_argument('--classes', type=positive_int, default=10)
    parser.add_argument('--per-class', type=positive_int, nargs='+', default=[5, 20, 60])
    parser.add_argument('--tests', type=positive_int, default=20, help='photos of each class to test on')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    classes = chosen(args, max(args.per_class))
    print(f'{", ".join(classes)}; {args.tests} photos of each to test on', flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        test = pack({name: photos for name, (_, photos) in classes.items()}, Path(scratch) / 'test')
        for number in args.per_class:
            train = pack({name: photos[:number] for name, (photos, _) in classes.items()}, Path(scratch) / f'{number}',
                         max(args.per_class) // number)
            for start, flags in STARTS.items():
                top1, seconds = trained(flags, train, test, Path(scratch) / f'{start}-{number}', args.seed)
                rows.append((number, start, f'{100 * top1:.1f}', f'{seconds:.0f}'))
                print(*rows[-1], flush=True)
    print(render_table(('photos of a class', 'begins with', 'top-1 %', 'seconds'), rows, 'markdown'))


if __name__ == '__main__':
    main()
