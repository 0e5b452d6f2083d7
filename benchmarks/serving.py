#!/usr/bin/env python
"""Requests per second and latency of a served network, against the bare network and the bare handler, by form.

    python benchmarks/serving.py exported/lprnet_mobilenet_x0.5-deployed-symbol.json --image photo.jpg --batch-size 8

In each form (the operator library, MXNet alone), and for each of the archives that are given beside it, which may be of
another version of the package, the same picture is

- network: a prepared input that passes the network;
- handler: answered by the handler's functions, from JPEG to JSON;
- server: sent to multi-model-server on the loopback, by clients that each wait for their answer before they ask again;
- no port: sent to the socket that multi-model-server listens on, past the process on the port.

The server has a worker for each CPU; what is bare runs in as many processes as there are clients, at most as many as
workers, each with one thread as a worker has. All are interleaved over rounds; the table shows medians, of requests per
second and p99 with the smallest and the largest. The clients are threads of one process, as small as they can be; they
take their part of the CPUs, and so does whatever else runs. What a request takes of the processors, by process, is less
at the mercy of that: the second table.
"""
import argparse
import csv
import json
import multiprocessing
import os
import re
import socket
import statistics
import sys
import tempfile
import threading
import time
import zipfile
from contextlib import ExitStack
from pathlib import Path

# As of the server's workers.
os.environ.update(OMP_NUM_THREADS='1', MXNET_ENGINE_TYPE='NaiveEngine')
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import cv2
import numpy as np
import psutil
from tabulate import tabulate

import gluon_lprnet  # noqa: F401  before MXNet
from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.serving.archive import archive
from gluon_lprnet.serving.server import Server, free_port
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.utils.flags import positive_int

# The server refuses more than 100 that wait.
MOST_CLIENTS = 100
# The processes that a request goes through.
PARTS = 'clients', 'port', 'Java', 'workers'


def answer_alone(connection, folder, image):
    """A process without a server, with the handler of an unpacked archive.

    Asked for a number of passes, or of answers, it gives the seconds of each, and those of the processor for all. Asked
    for None, it ends.
    """
    cv2.setNumThreads(1)
    sys.path.insert(0, folder)
    import mxnet as mx
    from archived.serving import handler
    service = handler.load(folder)
    call, inputs = mx.gluon.SymbolBlock.__call__, []
    mx.gluon.SymbolBlock.__call__ = lambda net, data: inputs.append((net, data)) or call(net, data)
    service.answer([{'body': image}], [{}])
    mx.gluon.SymbolBlock.__call__ = call
    connection.send(len(inputs))
    if not inputs:
        return
    steps = {'network': lambda: [net(data).asnumpy() for net, data in inputs],
             'handler': lambda: json.dumps(service.answer([{'body': image}], [{}]))}
    for name, count in iter(connection.recv, None):
        times, of_processor = [], time.process_time()
        for _ in range(count):
            start = time.perf_counter()
            steps[name]()
            times.append(time.perf_counter() - start)
        connection.send((times, time.process_time() - of_processor))


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
    """Seconds of each request, and of the processors for all, by part."""
    asked = connections[:clients]
    for connection in asked:
        connection.send((name, requests // len(asked)))
    answers = [connection.recv() for connection in asked]
    return [seconds for times, _ in answers for seconds in times], {'workers': sum(spent for _, spent in answers)}


def ask_server(server, address, image, requests, clients):
    """The same of a server; ``address`` is a port's or the path of a socket."""
    asked = (f'POST /predictions/{server.models[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n'
             f'Content-Length: {len(image)}\r\n\r\n').encode() + image
    processes = {'clients': [psutil.Process()], 'port': [server.front], 'Java': [server.java],
                 'workers': server.workers_of(server.models[0])}
    times, failures, numbers = [], [], iter(range(requests))

    def client():
        with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as connection:
            connection.connect(address)
            # Of a range, next() is atomic.
            for _ in numbers:
                start = time.perf_counter()
                connection.sendall(asked)
                answer = read_answer(connection)
                times.append(time.perf_counter() - start)
                if not answer.startswith(b'HTTP/1.1 200 '):
                    failures.append(answer)

    threads = [threading.Thread(target=client) for _ in range(clients)]
    spent = {part: -seconds(each) for part, each in processes.items()}
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part, each in processes.items():
        spent[part] += seconds(each)
    if failures or len(times) < requests:
        raise InputError(f'{requests - len(times) + len(failures)} of {requests} requests of {clients} clients got no '
                         f'answer, the first: {(failures or [b"none"])[0][:300].decode()}')
    return times, spent


def read_answer(connection):
    """The head and the body of an answer."""
    answer = b''
    while b'\r\n\r\n' not in answer:
        answer += receive(connection)
    head = answer.index(b'\r\n\r\n') + 4
    length = int(re.search(rb'(?i)\r\ncontent-length: *(\d+)', answer)[1])
    while len(answer) < head + length:
        answer += receive(connection)
    return answer


def receive(connection):
    part = connection.recv(2 ** 16)
    if not part:
        raise ConnectionError('the server closed a connection')
    return part


def seconds(processes):
    """Of the processors, that processes have had."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def measure(ask, requests, clients):
    """Requests per second; p50 and p99 of their milliseconds; milliseconds of the processors a request, by part."""
    start = time.perf_counter()
    times, spent = ask(requests, clients)
    rate = len(times) / (time.perf_counter() - start)
    return rate, *(1000 * np.percentile(times, (50, 99))), {part: 1000 * spent.get(part, 0) / len(times)
                                                            for part in PARTS}


def spread(values, form):
    return f'{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})'


def median_ratio(values, others):
    return statistics.median(value / other for value, other in zip(values, others))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('network', metavar='NETWORK', help='-symbol.json of export, or another network')
    parser.add_argument('--image', type=Path, metavar='FILE', help='JPEG to send (default: a drawn face)')
    parser.add_argument('--forms', nargs='*', choices=('standard', 'library'), default=('standard', 'library'))
    parser.add_argument('--archives', nargs='+', default=(), metavar='FILE',
                        help='archives (.mar) to measure beside it')
    parser.add_argument('--requests', type=positive_int, default=600,
                        help='of each measurement, at least as many as clients (default: %(default)s)')
    parser.add_argument('--clients', nargs='+', type=positive_int, default=(1, 4, 16, 64))
    parser.add_argument('--rounds', type=positive_int, default=5)
    parser.add_argument('--workers', type=positive_int, help='default: one per CPU')
    parser.add_argument('--batch-size', type=positive_int, default=1, help="the server's (default: %(default)s)")
    parser.add_argument('--csv', type=Path, metavar='FILE', help='write the table there, too')
    args = parser.parse_args()
    most = max(args.clients)
    if args.requests < most or most > MOST_CLIENTS:
        parser.error(f'--requests {args.requests}, --clients {most}: give at most {MOST_CLIENTS} clients, and at least '
                     'one request for each.')
    try:
        image = args.image.read_bytes() if args.image else encode_jpeg(draw_face(np.random.default_rng(0))[0], 90)
    except OSError as error:
        parser.error(f'--image {args.image} cannot be read: {error.strerror}.')
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        try:
            archives = {form: archive(args.network, f'{folder}/{form}', form=form) for form in args.forms}
            archives.update((Path(path).name, path) for path in args.archives)
            asks = {}
            for form, path in archives.items():
                unpacked = f'{folder}/unpacked/{form}'
                with zipfile.ZipFile(path) as mar:
                    mar.extractall(unpacked)
                server = running.enter_context(Server([path], f'{folder}/run/{form}', port=free_port(),
                                                      workers=args.workers, batch_size=args.batch_size))
                print(f'{form}: {server.report_of(server.models[0]) or "an archive of before"}')
                alone = start_alone(server.workers, unpacked, image)
                asks.update({
                    (form, 'network'): lambda *how, alone=alone: ask_alone(alone, 'network', *how),
                    (form, 'handler'): lambda *how, alone=alone: ask_alone(alone, 'handler', *how),
                    (form, 'server'): lambda *how, server=server: ask_server(server, server.address, image, *how),
                    (form, 'no port'): lambda *how, server=server: ask_server(server, server._inference_socket, image,
                                                                              *how)})
            results = {(clients, *side): [] for clients in args.clients for side in asks}
            # Until each worker has touched the memory that it needs.
            for ask in asks.values():
                ask(50 * server.workers, server.workers)
            for _ in range(args.rounds):
                for (clients, form, side), measured in results.items():
                    measured.append(measure(asks[form, side], args.requests, clients))
        except InputError as error:
            sys.exit(f'{parser.prog}: {error}')
        workers = server.workers
    pixels = cv2.imdecode(np.frombuffer(image, 'uint8'), 1).shape
    print(f'{args.network}, a JPEG of {pixels[1]}x{pixels[0]} ({len(image):,} bytes), {workers} workers, batch size '
          f'{args.batch_size}, {args.requests} requests a measurement, {args.rounds} rounds')
    first = next(iter(archives))
    rates = {measured: [rate for rate, *_ in rounds] for measured, rounds in results.items()}
    rows, spent_rows, columns = [], [], []
    for (clients, form, side), rounds in results.items():
        found, p50, p99, spent = zip(*rounds)
        ratios = [median_ratio(found, rates[clients, other, 'network']) for other in (form, first)]
        parts = [statistics.median(each[part] for each in spent) for part in PARTS]
        rows.append((clients, form, side, spread(found, '.0f'), *(f'{ratio:.2f}' for ratio in ratios),
                     f'{statistics.median(p50):.1f}', spread(p99, '.1f')))
        spent_rows.append((clients, form, side, *(f'{part:.2f}' for part in parts), f'{sum(parts):.2f}'))
        columns.append((clients, form, side, *(f'{value:.1f}' for value in (statistics.median(found), min(found),
                                                                            max(found))),
                        *(f'{ratio:.3f}' for ratio in ratios), f'{statistics.median(p50):.2f}',
                        f'{statistics.median(p99):.2f}', *(f'{part:.3f}' for part in parts)))
    ports = [(clients, form, f'{median_ratio(rates[clients, form, "server"], rates[clients, form, "no port"]):.2f}')
             for clients in args.clients for form in archives]
    for names, table in (
            (('clients', 'form', '', 'requests/s', 'of its network\'s', f'of the network\'s, {first}', 'p50, ms',
              'p99, ms'), rows),
            (('clients', 'form', 'processor, ms a request:', *PARTS, 'all'), spent_rows),
            (('clients', 'form', 'requests/s with the process on the port, of those without'), ports)):
        print(f'\n{tabulate(table, names, tablefmt="github", disable_numparse=True)}')
    if args.csv:
        with open(args.csv, 'w', newline='') as file:
            csv.writer(file).writerows([('clients', 'form', 'measured', 'requests_per_second', 'minimum', 'maximum',
                                         'of_its_network', 'of_the_first_network', 'p50_ms', 'p99_ms',
                                         *(f'{part.lower()}_processor_ms' for part in PARTS)), *columns])


if __name__ == '__main__':
    main()
