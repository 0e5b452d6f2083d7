"""``python -m gluon_lprnet soak``: a load test of serving."""
import base64
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import cv2
import numpy as np

from ..data.faces.drawn import draw_face
from ..data.images import encode_jpeg
from ..evaluate.network_flag import DEFAULTS, add_network_alone, with_network
from ..utils.errors import InputError
from ..utils.files import PathLike
from ..utils.flags import Commands, add_parser, positive_int
from .load_client import Answer, Request, bad_requests, send
from .server import JAVA_LIMIT, QUEUE, Server, add_server_flags, free_port

# Of the requests, with the memory after each.
_PARTS = 10


def soak(network: PathLike, run_dir: PathLike, images: Sequence[bytes], requests: int = 10_000, clients: int = 8,
         workers: Optional[int] = None, batch_size: int = 1, report: Callable[[str], object] = print) -> list[str]:
    """Serve a network to many clients, with every fifth request invalid, then kill a worker.

    Parameters
    ----------
    network, run_dir, workers, batch_size
        As of :class:`Server`.
    images : sequence of bytes
        Files of pictures.
    requests, clients : int
    report : callable
        Called with each line of the report.

    Returns
    -------
    list of str
        The expectations that were not met.
    """
    good, bad = mixed_requests(images)

    def plan(count):
        return [bad[number // 5 % len(bad)] if number % 5 == 4 else good[number % len(good)]
                for number in range(count)]

    failed: list[str] = []

    def expect(holds, line):
        report(line)
        if not holds:
            failed.append(line)

    with Server([network], run_dir, port=free_port(), workers=workers, batch_size=batch_size) as server:
        model, = server.models
        # One by one and before the others, so that answers from batches are compared with single ones.
        references = {answer.request.name: json.loads(answer.body) for answer in send(server, model, good)
                      if answer.status == 200}
        if len(references) < len(good):
            raise InputError(f'{len(good) - len(references)} of the images are not pictures that the server reads.')
        # Until every worker has touched all the memory it needs.
        send(server, model, plan(max(requests // 10, 50 * server.workers)), clients)
        memory = [_resources(server, model)]
        answers: list[Answer] = []
        seconds = 0.0
        report(f'warmed up: {memory[0]}')
        asked = plan(requests)
        while len(answers) < requests:
            start = time.perf_counter()
            answers += send(server, model, asked[len(answers):][:-(-requests // _PARTS)], clients)
            seconds += time.perf_counter() - start
            memory.append(_resources(server, model))
            # As they come: a long test may be interrupted.
            report(f'{len(answers):,} requests in {seconds:.0f} s: {memory[-1]}; {_counted(answers)}')

        statuses = Counter(answer.status for answer in answers)
        took = np.percentile([answer.seconds for answer in answers if answer.status == 200] or [np.nan], (50, 99)) * 1e3
        report(f'{requests:,} requests of {clients} clients to {server.workers} workers in {seconds:.1f} s '
               f'({requests / seconds:.0f}/s); valid ones: p50 {took[0]:.1f} ms, p99 {took[1]:.1f} ms')
        expect(not any(status == 0 or status >= 500 for status in statuses), f'statuses (0: no answer): '
               f'{_counted(answers)}')
        wrong = Counter(answer.request.name for answer in answers if not answer.is_right(references))
        expect(not wrong, f'answers that are not the expected ones: {sum(wrong.values())}'
               + ''.join(f'; {name}: {count}' for name, count in wrong.most_common(5)))
        before, after = memory[0], memory[-1]
        growth = {process: after.workers[process] / size - 1 for process, size in before.workers.items()
                  if process in after.workers}
        expect(len(growth) == server.workers, f'workers of before that still run: {len(growth)} of {server.workers}')
        sizes = [sum(each.workers.values()) for each in (before, after)]
        expect(abs(sizes[1] / sizes[0] - 1) <= 0.05,
               f"workers' memory: {_mebibytes(sizes[0])} before, {_mebibytes(sizes[1])} after "
               f'({sizes[1] / sizes[0] - 1:+.1%}, allowed: 5%; of one worker at most '
               f'{max(growth.values(), default=0):+.1%})')
        # It grows to what Java was allowed, however little is in use.
        expect(after.java <= JAVA_LIMIT, f"the server's own memory: {_mebibytes(before.java)} before, "
               f'{_mebibytes(after.java)} after (allowed: {_mebibytes(JAVA_LIMIT)})')
        expect(after.front <= 2 * before.front, f'memory of the process on the port: {_mebibytes(before.front)} '
               f'before, {_mebibytes(after.front)} after (allowed: twice as much)')
        # Connections that are kept for the next request have one at either end.
        kept = 2 * clients
        expect(after.descriptors <= before.descriptors + kept, f'open file descriptors of all processes: '
               f'{before.descriptors} before, {after.descriptors} after (allowed: {kept} more)')
        seconds, lost = _recover(server, model, good[0], references)
        expect(seconds <= 5, f'after SIGKILL of a worker: all back and right in {seconds:.2f} s (at most 5); requests '
               f'lost meanwhile: {lost}')
    return failed


def mixed_requests(images: Sequence[bytes]) -> tuple[list[Request], list[Request]]:
    """The valid requests of a soak test, with these pictures, and the invalid ones."""
    good = [Request(f'image {number}', image, 'image/jpeg') for number, image in enumerate(images)]
    good.append(Request('image 0 in JSON', json.dumps({'data': base64.b64encode(images[0]).decode()}).encode(),
                        'application/json'))
    return good, bad_requests(cv2.imencode('.jpg', np.full((64, 64, 3), 128, 'uint8'))[1].tobytes())


class Resources(NamedTuple):
    """Memory of each worker by its process, of Java and of the process on the port, in bytes; their descriptors."""

    workers: dict
    java: int
    front: int
    descriptors: int

    def __str__(self) -> str:
        return (f'workers {" + ".join(_mebibytes(size) for _, size in sorted(self.workers.items()))}, Java '
                f'{_mebibytes(self.java)}, the process on the port {_mebibytes(self.front)}')


def _resources(server, model):
    # Until the server has closed the connections of clients that left.
    time.sleep(2)
    workers = server.workers_of(model)
    return Resources({worker.pid: worker.memory_info().rss for worker in workers}, server.java.memory_info().rss,
                     server.front.memory_info().rss,
                     sum(process.num_fds() for process in [*workers, server.java, server.front]))


def _counted(answers):
    counts = Counter(answer.status for answer in answers)
    return ', '.join(f'{status}: {count:,}' for status, count in sorted(counts.items()))


def _mebibytes(size):
    return f'{size / 2 ** 20:,.0f} MiB'


def _recover(server, model, request, references):
    """Kill a worker: seconds (at most 60) until as many as before answer correctly, and how many requests failed."""
    lost = 0
    server.workers_of(model)[0].kill()
    start = time.perf_counter()
    while time.perf_counter() - start < 60:
        # The requests the worker was handling get an error or, if its batch was not full, never an answer.
        wrong = sum(not answer.is_right(references)
                    for answer in send(server, model, [request] * server.workers, server.workers, timeout=3))
        lost += wrong
        if not wrong and len(server.workers_of(model)) == server.workers:
            break
    return time.perf_counter() - start, lost


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'soak', help='load test of serving: many requests, some of them invalid, and a killed worker',
        example='gluon-lprnet soak --network exported/net-deployed-symbol.json --images folder/*.jpg --batch-size 4',
        description='Serve a network on free ports of this machine and send it requests. Exit status 1 if something '
                    'was not as it should be.')
    add_network_alone(parser, 'trained network of the package, run or checkpoint folder, -symbol.json, or archive '
                              f'(.mar) (default: {DEFAULTS["classification"]})')
    parser.add_argument('--images', nargs='+', metavar='FILE', help='pictures to send (default: drawn faces)')
    parser.add_argument('--requests', type=positive_int, default=10_000, help='how many to send (default: %(default)s)')
    parser.add_argument('--clients', type=positive_int, default=8,
                        help=f'concurrent clients; more than {QUEUE} waiting are refused (default: %(default)s)')
    add_server_flags(parser, 'runs/soak')
    parser.set_defaults(run=_run)


def _run(args):
    try:
        images = [Path(file).read_bytes() for file in args.images or ()]
    except OSError as error:
        raise InputError(f'--images {error.filename} cannot be read: {error.strerror}.') from error
    rng = np.random.default_rng(0)
    images = images or [encode_jpeg(draw_face(rng)[0], 90) for _ in range(16)]
    args = with_network('soak', args, DEFAULTS['classification'])
    failed = soak(args.network, args.run_dir, images, args.requests, args.clients, args.workers, args.batch_size)
    print(f'Not as expected: {len(failed)}' if failed else 'All as expected.')
    return 1 if failed else 0
