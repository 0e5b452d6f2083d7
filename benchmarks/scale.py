#!/usr/bin/env python
"""What jobs on records cost as the records grow: CPU seconds and peak memory, for up to a given number of photos.

    OMP_NUM_THREADS=1 python benchmarks/scale.py --counts 1000 10000 --folder /tmp/scale
    OMP_NUM_THREADS=1 python benchmarks/scale.py --counts 10000 100000 --side 32 --resize 0
    OMP_NUM_THREADS=1 python benchmarks/scale.py --counts 1281167 --side 32 --without-packing

The photos are a few drawn ones under many names (hard links), listed in a text: what is measured is what each photo
costs, not how a disk finds them. ImageNet's number of them takes little room, and little time to decode, as pictures
of 32x32. `start` is what a training does before its first step, with a network in memory: by the index alone, by the
headers of records whose manifest is gone, with all records read, and with the stamp that this leaves. `im2rec` is
MXNet's own packer, with one thread and the same quality; it does not verify what it writes, and `pack` does. `write` is
how records are written that are not packed, by `--without-packing`. Memory is that of the largest process of a job.
"""
import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np

from gluon_lprnet.utils.text import render_table

DRAWN = 64
CLASSES = 10
IM2REC = Path(importlib.util.find_spec('mxnet').origin).parent / 'tools' / 'im2rec.py'
# MXNet's script, with the NumPy that it needs.
RUN_IM2REC = '''
import sys, runpy, gluon_lprnet
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name='__main__')
'''
WRITE = '''
import itertools, sys
from pathlib import Path
from gluon_lprnet.data.images import MAX_SIDE
from gluon_lprnet.data.recordio import write_records
images = itertools.cycle([path.read_bytes() for path in Path(sys.argv[1]).iterdir()])
write_records(sys.argv[2], ((i % 10, next(images)) for i in range(int(sys.argv[3]))), details={'max_side': MAX_SIDE})
'''
START = '''
import sys
from gluon_lprnet.train import imagenet
imagenet.build_task(imagenet.ClassificationConfig(model='lprnet_mobilenet_x0.25', num_classes=10, rec_train=sys.argv[1],
                                                  rec_val=sys.argv[2], data_check=sys.argv[3]))
'''


def draw(folder, side):
    """A few square JPEGs with the detail of photos."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(DRAWN):
        coarse = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{number}.jpg'), cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC))


def list_photos(drawn, folder, count):
    """``count`` photos, with their lists for `pack` and for im2rec."""
    photos = folder / 'photos'
    with open(folder / 'list.txt', 'w') as text, open(folder / 'im2rec.lst', 'w') as lst:
        for number in range(count):
            name = f'{number // 1000}/{number}.jpg'
            if number % 1000 == 0:
                (photos / str(number // 1000)).mkdir(parents=True)
            os.link(drawn / f'{number % DRAWN}.jpg', photos / name)
            text.write(f'{name} {number % CLASSES}\n')
            lst.write(f'{number}\t{number % CLASSES}\t{name}\n')


def cost(*command):
    """(CPU seconds, peak megabytes) of a command and the processes that it has waited for."""
    process = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f'{command} failed:\n{errors}')
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000


def jobs(folder, count, args):
    """The name and the command of each job, in their order."""
    rec = folder / 'set.rec'
    package = '-m', 'gluon_lprnet'
    if args.without_packing:
        yield 'write', ('-c', WRITE, folder / 'drawn', folder / 'set', count)
    else:
        photos = folder / 'photos'
        list_photos(folder / 'drawn', folder, count)
        yield 'pack', (*package, 'pack', 'images', folder / 'list.txt', '--root', photos, '--out', folder / 'set',
                       '--resize', args.resize)
        yield 'im2rec', ('-c', RUN_IM2REC, IM2REC, folder / 'im2rec', photos, '--resize', args.resize, '--quality', 95,
                         '--num-thread', 1)
    yield 'start, by the index', ('-c', START, rec, rec, 'structure')
    yield 'start, all read', ('-c', START, rec, rec, 'stamp')
    yield 'start, by the stamp', ('-c', START, rec, rec, 'stamp')
    yield 'check', (*package, 'check', rec)
    for name in ('set.json', 'set.checked.json'):
        (folder / name).unlink()
    yield 'start, by headers', ('-c', START, rec, rec, 'structure')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--counts', type=int, nargs='+', default=[1000, 10000], metavar='N', help='photos')
    parser.add_argument('--folder', help='where there is room: at the sizes below about 0.2 MB a photo (default: a '
                                         'temporary one)')
    parser.add_argument('--side', type=int, default=500, metavar='N',
                        help='of the square photos (default: %(default)s)')
    parser.add_argument('--resize', type=int, default=480, metavar='N',
                        help='shorter side in records; 0: as they are (default: %(default)s)')
    parser.add_argument('--without-packing', action='store_true',
                        help='write the records directly: of a million photos packing takes long')
    args = parser.parse_args()
    rows = []
    for count in args.counts:
        with tempfile.TemporaryDirectory(prefix='scale-', dir=args.folder) as scratch:
            folder = Path(scratch)
            draw(folder / 'drawn', args.side)
            for name, command in jobs(folder, count, args):
                seconds, megabytes = cost(*command)
                rows.append([name, f'{count:,}', f'{seconds:.1f}', f'{1000 * seconds / count:.2f}', f'{megabytes:.0f}'])
                print(*rows[-1], sep=', ', file=sys.stderr, flush=True)
    print(render_table(['job', 'photos', 'CPU seconds', 'ms a photo', 'MB'], rows, 'markdown'))


if __name__ == '__main__':
    main()
