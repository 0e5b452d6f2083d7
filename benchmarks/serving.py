#!/usr/bin/env python
"""Requests per second and latency of a served network, against the bare network and the bare handler.

    python benchmarks/serving.py exported/lprnet_mobilenet_x0.5-deployed-symbol.json --image photo.jpg

The same picture is (1) a prepared input that passes the network, (2) answered by the handler's functions, from JPEG to
JSON, and (3) sent to multi-model-server on the loopback, by 1 to 64 clients that each wait for their answer before
they ask again. The server has a worker for each CPU; what is bare runs in as many processes as there are clients, at
most as many as workers, each with one thread as a worker has. The three are interleaved over rounds; the table shows
medians, of requests per second and p99 with the smallest and the largest. The clients, threads of one process, take
their part of the CPUs.
"""
import argparse
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import zipfile
from pathlib import Path

# As of the server's workers.
os.environ.update(OMP_NUM_THREADS='1', MXNET_ENGINE_TYPE='NaiveEngine')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cv2
import numpy as np
from tabulate import tabulate

import gluon_lprnet  # noqa: F401  before MXNet
from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.serving import handler
from gluon_lprnet.serving.archive import archive
from gluon_lprnet.serving.load_client import Request, send
from gluon_lprnet.serving.server import Server, free_port
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.utils.flags import positive_int

# The server refuses more than 100 that wait.
CLIENTS = 1, 4, 16, 64
ROUNDS = 5


def answer_alone(connection, folder, image):
    """A process without a server: the seconds of each of as many passes, or answers, as it is asked for.

    Asked for None, it ends.
    """
    cv2.setNumThreads(1)
    service = handler.load(folder)
    net, inputs = service._net, []
    service._net = lambda data: inputs.append(data) or net(data)
    service.answer([{'body': image}], [{}])
    service._net = net
    connection.send(len(inputs))
    if not inputs:
        return
    steps = {'network': lambda: [net(data).asnumpy() for data in inputs],
             'handler': lambda: json.dumps(service.answer([{'body': image}], [{}]))}
    for name, count in iter(connection.recv, None):
        times = []
        for _ in range(count):
            start = time.perf_counter()
            steps[name]()
            times.append(time.perf_counter() - start)
        connection.send(times)


def start_alone(count, folder, image):
    """Connections to processes of :func:`answer_alone`, once they are ready."""
    spawning = multiprocessing.get_context('spawn')
    connections = []
    for _ in range(count):
        ours, theirs = spawning.Pipe()
        spawning.Process(target=answer_alone, args=(theirs, folder, image), daemon=True).start()
        connections.append(ours)
    if not all(connection.recv() for connection in connections):
        raise InputError('no face is found in the picture: give another --image.')
    return connections


def ask_alone(connections, name, requests, clients):
    """Seconds of each request."""
    asked = connections[:clients]
    for connection in asked:
        connection.send((name, requests // len(asked)))
    return [seconds for connection in asked for seconds in connection.recv()]


def ask_server(server, image, requests, clients):
    answers = send(server, server.models[0], [Request('', image, 'image/jpeg')] * requests, clients)
    refused = [answer for answer in answers if answer.status != 200]
    if refused:
        raise InputError(f'{len(refused)} of {requests} requests of {clients} clients got no answer, the first '
                         f'{refused[0].status}: {refused[0].body[:200].decode()}')
    return [answer.seconds for answer in answers]


def measure(ask, requests, clients):
    """Requests per second, and p50 and p99 of their milliseconds."""
    start = time.perf_counter()
    times = ask(requests, clients)
    return len(times) / (time.perf_counter() - start), *(1000 * np.percentile(times, (50, 99)))


def spread(values, form):
    return f'{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('network', metavar='NETWORK', help='-symbol.json of export')
    parser.add_argument('--image', type=Path, metavar='FILE', help='JPEG to send (default: a drawn face)')
    parser.add_argument('--requests', type=positive_int, default=600,
                        help='of each measurement, at least as many as clients (default: %(default)s)')
    parser.add_argument('--workers', type=positive_int, help='default: one per CPU')
    parser.add_argument('--batch-size', type=positive_int, default=1, help="the server's (default: %(default)s)")
    args = parser.parse_args()
    if args.requests < max(CLIENTS):
        parser.error(f'--requests {args.requests}: give at least {max(CLIENTS)}, one for each client.')
    try:
        image = args.image.read_bytes() if args.image else encode_jpeg(draw_face(np.random.default_rng(0))[0], 90)
    except OSError as error:
        parser.error(f'--image {args.image} cannot be read: {error.strerror}.')
    with tempfile.TemporaryDirectory() as folder:
        try:
            mar = archive(args.network, folder)
            zipfile.ZipFile(mar).extractall(f'{folder}/unpacked')
            with Server([mar], f'{folder}/run', port=free_port(), workers=args.workers,
                        batch_size=args.batch_size) as server:
                alone = start_alone(server.workers, f'{folder}/unpacked', image)
                sides = {'network': lambda *how: ask_alone(alone, 'network', *how),
                         'handler': lambda *how: ask_alone(alone, 'handler', *how),
                         'server': lambda *how: ask_server(server, image, *how)}
                results = {(clients, side): [] for clients in CLIENTS for side in sides}
                # Until each worker has touched the memory that it needs.
                for ask in sides.values():
                    ask(50 * server.workers, server.workers)
                for _ in range(ROUNDS):
                    for clients, side in results:
                        results[clients, side].append(measure(sides[side], args.requests, clients))
                for connection in alone:
                    connection.send(None)
        except InputError as error:
            sys.exit(f'{parser.prog}: {error}')
    pixels = cv2.imdecode(np.frombuffer(image, 'uint8'), 1).shape
    print(f'{mar.stem}, a JPEG of {pixels[1]}x{pixels[0]} ({len(image):,} bytes), {server.workers} workers, batch size '
          f'{args.batch_size}, {args.requests} requests a measurement, {ROUNDS} rounds')
    rows = []
    for (clients, side), rounds in results.items():
        rates, p50, p99 = zip(*rounds)
        rates_of_network = [rate / bare for rate, (bare, *_) in zip(rates, results[clients, 'network'])]
        rows.append((clients, side, spread(rates, '.0f'), f'{statistics.median(rates_of_network):.2f}',
                     f'{statistics.median(p50):.1f}', spread(p99, '.1f')))
    print(tabulate(rows, ('clients', '', 'requests/s', 'of the network\'s', 'p50, ms', 'p99, ms'), tablefmt='github',
                   disable_numparse=True))


if __name__ == '__main__':
    main()
