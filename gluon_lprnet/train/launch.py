"""``gluon-lprnet launch``: the processes of a training with MXNet's parameter servers, started and watched.

They are a scheduler, servers and workers, told by the variables ``DMLC_*`` what they are. The training ends when all
workers have; when one fails, it is named and the others are ended, because they would wait for it forever.
"""
import argparse
import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from .._compat import default_threads
from ..utils.errors import InputError
from ..utils.flags import add_parser, positive_int
from ..utils.signals import noted
from ..utils.text import integer

_LOCALHOST = '127.0.0.1'
_PORT_ON_HOSTS = 9091
_SECONDS_BETWEEN_LOOKS = 0.1
# To say what is wrong, after one has failed, and to save a checkpoint, after a signal.
_SECONDS_TO_END, _SECONDS_TO_SAVE = 5, 120
# A host that cannot be reached any more is noticed after three times this many seconds.
_SSH = ['ssh', '-tt', '-o', 'BatchMode=yes', '-o', 'ServerAliveInterval=10', '-o', 'ServerAliveCountMax=3']
_CTRL_C = b'\x03'


class _Process(NamedTuple):
    name: str
    process: 'subprocess.Popen[bytes]'

    def interrupt(self) -> None:
        """Ask it to end; ssh does not pass a signal on, but what is typed."""
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(_CTRL_C)
        else:
            self.process.send_signal(signal.SIGTERM)


def launch(command: Sequence[str], workers: int, servers: Optional[int] = None,
           hosts: Sequence[str] = (_LOCALHOST,), port: Optional[int] = None) -> int:
    """Run a command of the package as several workers that train together.

    Parameters
    ----------
    command : sequence of str
        Of ``gluon-lprnet``, with its flags, ``--kvstore dist_sync`` among them; or a Python script (``*.py``) with its
        arguments.
    workers : int
        In all, dealt to the hosts in turn.
    servers : int, optional
        In all; by default one a host.
    hosts : sequence of str
        Names or addresses by which the hosts reach each other. Others than this machine (127.0.0.1) are reached by
        ``ssh``, without a password; they have the same folders.
    port : int, optional
        Of the scheduler, which runs on the first host. By default a free one on this machine, 9091 on others.

    Returns
    -------
    int
        Exit status: 0; that of the worker that failed first; 128 + signal when stopped.

    Raises
    ------
    InputError
        If a host's name has no address.
    """
    addresses = [_address(host) for host in hosts]
    port = port or (_free_port() if hosts[0] == _LOCALHOST else _PORT_ON_HOSTS)
    threads = default_threads(-(-workers // len(hosts)))
    group = dict(DMLC_PS_ROOT_URI=addresses[0], DMLC_PS_ROOT_PORT=str(port), DMLC_NUM_WORKER=str(workers),
                 DMLC_NUM_SERVER=str(servers or len(hosts)),
                 # Workers of a host share its cores; the variable of this process may ask for fewer.
                 OMP_NUM_THREADS=str(min(threads, _asked_for() or threads)))
    with contextlib.ExitStack() as running, noted() as signals:
        def start(role: str, number: int, argv: Sequence[str]) -> _Process:
            place = number % len(hosts)
            variables = {**group, 'DMLC_ROLE': role, 'DMLC_NODE_HOST': addresses[place]}
            process = running.enter_context(_started(argv, variables, hosts[place]))
            return _Process(f'{role} {number + 1} on {hosts[place]} (process {process.pid})', process)

        python = [sys.executable, '-c', 'import gluon_lprnet']
        helpers = [start('scheduler', 0, python),
                   *(start('server', number, python) for number in range(servers or len(hosts)))]
        of_package = [] if command[0].endswith('.py') else ['-m', 'gluon_lprnet']
        training = [start('worker', number, [sys.executable, *of_package, *command]) for number in range(workers)]
        return _watch(training, helpers, signals)


def _asked_for() -> Optional[int]:
    """The threads that OpenMP's variable names, the first of a list by levels; None where it names none."""
    try:
        return integer(os.environ.get('OMP_NUM_THREADS', '').split(',')[0])
    except ValueError:
        return None


def _watch(training: list[_Process], helpers: list[_Process], signals: list[int]) -> int:
    """Wait for the workers; the exit status of the whole."""
    while not signals:
        failed = [each for each in (*training, *helpers) if each.process.poll()]
        if failed:
            return _end(failed[0], training)
        if all(each.process.poll() == 0 for each in training):
            return 0
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    for each in training:
        each.interrupt()
    _wait(training, _SECONDS_TO_SAVE)
    return 128 + signals[0]


def _end(failed: _Process, training: list[_Process]) -> int:
    # Those that have failed for the same reason say so themselves.
    _wait(training, _SECONDS_TO_END)
    left = sum(each.process.poll() is None for each in training)
    status = failed.process.returncode
    how = f'was killed by {signal.Signals(-status).name}' if status < 0 else f'ended with exit status {status}'
    print(f'launch: {failed.name} {how}; ending the {left} workers that are left. Go on from the last checkpoint with '
          '--resume.', file=sys.stderr)
    return 128 - status if status < 0 else status


def _wait(processes: list[_Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for each in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            each.process.wait(max(0.0, deadline - time.monotonic()))


@contextlib.contextmanager
def _started(argv: Sequence[str], variables: dict[str, str], host: str) -> Iterator['subprocess.Popen[bytes]']:
    """As a context: a process, on this machine or by ssh on another, that does not outlive the block."""
    stdin = subprocess.DEVNULL
    if host != _LOCALHOST:
        there = ['env', *(f'{name}={value}' for name, value in variables.items()), *argv]
        argv, variables = [*_SSH, host, f'cd {shlex.quote(os.getcwd())} && exec {shlex.join(there)}'], {}
        stdin = subprocess.PIPE
    # A session of its own: Ctrl-C is for this process, which passes it on.
    with subprocess.Popen(argv, bufsize=0, env={**os.environ, **variables}, stdin=stdin,
                          start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _address(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise InputError(f'the host {host} has no address: {error}.') from error


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_LOCALHOST, 0))
        return found.getsockname()[1]


def _read_hosts(path: str) -> list[str]:
    try:
        hosts = [line.split()[0] for line in Path(path).read_text().splitlines()
                 if line.strip() and not line.startswith('#')]
    except (OSError, ValueError) as error:
        raise InputError(f'{path} cannot be read: {error}.') from error
    if not hosts:
        raise InputError(f'{path} names no hosts: write one on each line.')
    return hosts


def add_commands(commands: Any) -> None:
    parser = add_parser(
        commands, 'launch', help='start and watch a training in several processes',
        example='gluon-lprnet launch --workers 2 -- train-imagenet --kvstore dist_sync --rec-train data/train.rec \\\n'
                '    --rec-val data/val.rec --save-dir runs/two',
        description="Start a training as several workers, with the scheduler and servers of MXNet's KVStore, on this "
                    'machine or by ssh on others, and end all when one fails.')
    parser.add_argument('--workers', type=positive_int, required=True, metavar='N', help='workers in all')
    parser.add_argument('--servers', type=positive_int, metavar='N', help='servers in all (default: one a host)')
    parser.add_argument('--hosts', metavar='FILE',
                        help='text with a host on each line; they have the same folders, and ssh reaches them without '
                             'a password (default: this machine)')
    parser.add_argument('--port', type=positive_int, metavar='N',
                        help='of the scheduler, on the first host (default: a free one here, '
                             f'{_PORT_ON_HOSTS} elsewhere)')
    parser.add_argument('command', nargs=argparse.REMAINDER, metavar='-- COMMAND',
                        help='the training and its flags, or a Python script (*.py) with its arguments')
    parser.set_defaults(run=_run)


def _run(args):
    command = args.command[1:] if args.command[:1] == ['--'] else args.command
    if not command:
        raise InputError('launch: name the training after --, for example -- train-imagenet --kvstore dist_sync.')
    return launch(command, args.workers, args.servers, _read_hosts(args.hosts) if args.hosts else (_LOCALHOST,),
                  args.port)
