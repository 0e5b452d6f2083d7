"""Memory of the server while clients send large pictures and stop just before their end.

Prints what became of the connections, whether others are answered meanwhile, and the memory of the process on the port
and of Java. Example: ``python benchmarks/slow_clients.py --connections 358 --megabytes 15``.
"""
import argparse
import contextlib
import os
import socket
import sys
import tempfile
from collections import Counter
from typing import NamedTuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import gluon_lprnet  # noqa: F401  before MXNet
import numpy as np

from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.images import encode_jpeg
from gluon_lprnet.evaluate.network_flag import DEFAULTS
from gluon_lprnet.serving.load_client import Request, send
from gluon_lprnet.serving.server import MAX_REQUEST_BYTES, Server, free_port
from gluon_lprnet.utils.flags import positive_int


class Attack(NamedTuple):
    """How many connections wait, and were answered with which status (0: cut off); what other clients were answered.

    Memory is in bytes.
    """

    waiting: int
    refused: Counter
    others: list
    front: int
    java: int


def attack(server, model, photo, connections, size):
    """``connections`` clients announce the largest picture, send ``size`` bytes of it, and wait."""
    body, opened, refused = bytes(size), [], Counter()
    try:
        for _ in range(connections):
            client = socket.create_connection(server.address, timeout=60)
            opened.append(client)
            with contextlib.suppress(ConnectionError):
                client.sendall(f'POST /predictions/{model} HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n'
                               f'Content-Length: {MAX_REQUEST_BYTES}\r\n\r\n'.encode() + body)
        waiting = 0
        for client in opened:
            # Those that were refused have their answer, or were cut off while they sent.
            client.settimeout(0.01)
            try:
                refused[int((client.recv(12) or b'0').split()[-1])] += 1
            except ConnectionError:
                refused[0] += 1
            except OSError:
                waiting += 1
        others = [answer.status for answer in send(server, model, [Request('', photo, 'image/jpeg')] * 20, 4)]
        return Attack(waiting, refused, others, server.front.memory_info().rss, server.java.memory_info().rss)
    finally:
        for client in opened:
            client.close()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--connections', type=positive_int, default=358, help='default: %(default)s')
    parser.add_argument('--megabytes', type=positive_int, default=15, help='of each (default: %(default)s)')
    args = parser.parse_args(argv)
    photo = encode_jpeg(draw_face(np.random.default_rng(0))[0], 90)
    with tempfile.TemporaryDirectory() as folder, \
            Server([DEFAULTS['classification']], folder, port=free_port(), workers=1) as server:
        model, = server.models
        before = server.front.memory_info().rss, server.java.memory_info().rss
        found = attack(server, model, photo, args.connections, args.megabytes * 2 ** 20)
    print(f'{args.connections} connections: {found.waiting} wait, refused by status (0: cut off): '
          f'{dict(found.refused)}; 20 other requests: {dict(Counter(found.others))}')
    for process, first, last in zip(('the process on the port', 'Java'), before, (found.front, found.java)):
        print(f'memory of {process}: {first / 2 ** 20:.0f} MiB before, {last / 2 ** 20:.0f} MiB')


if __name__ == '__main__':
    main()
