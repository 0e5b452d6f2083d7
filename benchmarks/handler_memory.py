"""Memory of the server's handler over many requests, in one process without the server.

The requests are those of ``soak``: pictures as bodies and in JSON, and every fifth one invalid. Prints the resident
memory of the process. Example: ``python benchmarks/handler_memory.py --calls 50000``.
"""
import argparse
import gc
import json
import os
import sys
import tempfile
import zipfile

# As of the server's workers.
os.environ.update(OMP_NUM_THREADS='1', MXNET_ENGINE_TYPE='NaiveEngine')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cv2
import numpy as np
import psutil

import gluon_lprnet  # noqa: F401  before MXNet
from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.evaluate.network_flag import DEFAULTS
from gluon_lprnet.serving import handler
from gluon_lprnet.serving.archive import archive
from gluon_lprnet.serving.soak import mixed_requests
from gluon_lprnet.utils.flags import positive_int


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('network', nargs='?', default=DEFAULTS['classification'], help='default: %(default)s')
    parser.add_argument('--calls', type=positive_int, default=50_000, help='requests (default: %(default)s)')
    parser.add_argument('--batch-size', type=positive_int, default=8, help='default: %(default)s')
    parser.add_argument('--every', type=positive_int, default=2000, help='requests between two lines')
    args = parser.parse_args(argv)
    cv2.setNumThreads(1)
    chance = np.random.default_rng(0)
    good, bad = mixed_requests([encode_jpeg(draw_face(chance)[0], 90) for _ in range(16)])
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(archive(args.network, folder)) as mar:
            mar.extractall(folder)
        service = handler.load(folder)
    requests = [({'body': each.body}, {'body': each.content_type})
                for number in range(80) for each in [bad[number // 5 % len(bad)] if number % 5 == 4
                                                     else good[number % len(good)]]]
    done, printed = 0, -1
    while done < args.calls:
        batch = [requests[(done + number) % len(requests)] for number in range(args.batch_size)]
        json.dumps(service.answer([fields for fields, _ in batch], [types for _, types in batch]))
        done += args.batch_size
        if done // args.every > printed:
            printed = done // args.every
            print(f'{done:>6,} requests: {psutil.Process().memory_info().rss / 2 ** 20:.1f} MiB, '
                  f'{len(gc.get_objects()):,} objects', flush=True)


if __name__ == '__main__':
    main()
