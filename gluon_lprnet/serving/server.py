"""``python -m gluon_lprnet serve``: networks behind the real multi-model-server."""
import argparse
import contextlib
import glob
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn, Optional, Union
from urllib.parse import quote, urlencode

from ..data.images import MAX_PIXELS
from ..deployment.operators import build_library
from ..evaluate.network_flag import DEFAULTS
from ..utils.errors import InputError
from ..utils.files import PathLike, lock, make_folder, write_errors, write_file
from ..utils.flags import Commands, add_parser, non_negative_int, positive_int
from ..utils.processes import available_cpus
from . import front
from .archive import add_archive_flags, archive, read_task, unpack_archive
from .handler import REPORT
from .page import Page

__all__ = ['Server']
LOOPBACK = '127.0.0.1'
PACKAGE = 'multi-model-server==1.1.11'
# Of the page that comes with the networks of the package.
PAGE_PORT = 8081
# Larger uploads are refused with 413 before a worker sees them.
MAX_REQUEST_BYTES = 16 * 2 ** 20
# The server takes the number for a signed one of 16 bits.
MAX_PORT = 32_767
# Requests that wait for a worker; one more is refused with 503.
QUEUE = 100
# Bytes of memory that Java may take for objects, where requests are until they are answered, and for its buffers; it
# needs some of its own besides. Slow clients with large pictures could otherwise take all of the machine's.
_HEAP, _BUFFERS, _OWN = 2 ** 31, 2 ** 29, 2 ** 29
JAVA_LIMIT = _HEAP + _BUFFERS + _OWN
_START_SECONDS = 120
_STOP_SECONDS = 10
# Ends the processes of a group when its own standard input does, which is when the process that writes to it has died
# in whatever way.
_WATCH = 'read -r _; kill -s KILL -- "-$1"; rm -rf -- "$2" "$3"'


# Loads a model as a worker does.
_LOAD = """
import sys
from mms.model_loader import ModelLoaderFactory
folder, handler = sys.argv[1:]
sys.path.append(folder)
ModelLoaderFactory.get_model_loader(folder).load('model', folder, handler, None, 1)
"""


def find_java() -> str:
    """The path of the Java program.

    Raises
    ------
    InputError
        If there is none.
    """
    home = os.environ.get('JAVA_HOME')
    java = shutil.which(f'{home}/bin/java' if home else 'java')
    if java is None:
        raise InputError(f'the server needs Java, and JAVA_HOME has no bin/java: {home} is not Java; mend it.' if home
                         else 'the server needs Java: install it (on Debian: apt-get install default-jre-headless).')
    return java


class Server:
    """multi-model-server with some networks, for the length of a ``with`` statement.

    Parameters
    ----------
    networks : sequence of path
        Archives (.mar), or trained networks as :func:`gluon_lprnet.serving.archive.archive` takes them.
    run_dir : path
        Gets the logs, and for the time of serving a folder of the configuration and the archives; made if it is not
        there. One server at a time uses it, and nothing else in it is touched.
    host : str
        Address to listen on.
    port : int
    management_host : str
    management_port : int, optional
        Where to listen for the management of the server, too: who reaches it, if only by a web page in this
        machine's browser, can have any code run. By default a socket in a folder that is this user's alone.
    workers : int, optional
        Processes of each network; by default as many as CPUs.
    batch_size : int
        Requests that pass a network together at most.
    max_batch_delay : int
        Milliseconds that a request waits for others; of no effect with a batch size of 1.
    page_port : int, optional
        Where to listen for browsers, too, at the same host: a page to try the networks.
    max_pixels : int
        Of a picture, as of :func:`gluon_lprnet.serving.archive.archive`; archives have a limit of their own.
    form : str
        In which networks run, as of :func:`gluon_lprnet.serving.forms.load_network`; archives have one of their own.
    on_lock : callable
        Called once ``run_dir`` is this server's, before it starts.

    Attributes
    ----------
    models : list of str
        The names of the networks.

    Raises
    ------
    InputError
        If Java, the package, a network or a port is missing or does not work, ``run_dir`` is in use by another server
        or cannot be written to, the operator library is asked for and cannot be built, or the server does not start.
    """

    def __init__(self, networks: Sequence[PathLike], run_dir: PathLike, host: str = LOOPBACK, port: int = 8080,
                 management_host: str = LOOPBACK, management_port: Optional[int] = None, workers: Optional[int] = None,
                 batch_size: int = 1, max_batch_delay: int = 10, page_port: Optional[int] = None,
                 max_pixels: int = MAX_PIXELS, form: str = 'auto',
                 on_lock: Callable[[], object] = lambda: None) -> None:
        self._on_lock = on_lock
        self.run_dir = Path(run_dir).absolute()
        self.address = host, port
        self._management = (management_host, management_port) if management_port else None
        self._page_address = (host, page_port) if page_port else None
        self.workers = workers or available_cpus()
        self._loading = {'batch_size': batch_size, 'max_batch_delay': max_batch_delay, 'initial_workers': self.workers,
                         'synchronous': 'true'}
        self._networks = networks
        self._max_pixels, self._form = max_pixels, form
        self.models: list[str] = []
        # Networks that have had a loader, and those of them that had none at the last look.
        self._loaded: set[str] = set()
        self._missing: set[str] = set()
        # Networks that are being loaded again or could not be, and the size of the server's log when that began.
        self._failed: dict[str, int] = {}
        # A Popen while it runs.
        self._process: Any = None
        self._watch: Optional[subprocess.Popen[bytes]] = None
        self._page: Optional[Page] = None
        self._socket: Optional[socket.socket] = None
        self._front: Any = None
        self._scratch: Optional[str] = None
        self._folder: Optional[Path] = None
        self._lock = contextlib.ExitStack()

    def __enter__(self):
        for folder in (self.run_dir, self.run_dir / 'logs'):
            make_folder(folder)
        self._lock.enter_context(lock(self.run_dir / '.serve.lock', f'`run_dir` {self.run_dir} is in use by another '
                                      'server: give another folder.'))
        try:
            self._on_lock()
            java = find_java()
            package = importlib.util.find_spec('mms')
            if package is None:
                raise InputError(f'the server is not installed: pip install {PACKAGE}.')
            self._folder = Path(tempfile.mkdtemp(prefix='serving-', dir=self.run_dir))
            archives = [self._store(network) for network in self._networks]
            self._build_library()
            self._listen({path.stem: read_task(path) for path in archives})
            for network in self._networks:
                if Path(network).suffix == '.mar':
                    self._check_archive(network)
            self._start(java, Path(package.origin).parent)
            for path in archives:
                self._load(path.stem, path.name, self._loading)
                self.models.append(path.stem)
            self._loaded.update(self.models)
            self._start_front()
            if self._page is not None:
                self._page.start()
        except OSError as error:
            self.stop()
            raise InputError(f'`run_dir` {self.run_dir} cannot be written to: {error}.') from error
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def url(self, model: str) -> str:
        """Where to POST images to."""
        return f'http://{_reachable(self.address)}/predictions/{quote(model)}'

    @property
    def page_url(self) -> Optional[str]:
        """The page's address for a browser; None if there is no page."""
        return f'http://{_reachable(self._page_address)}/' if self._page_address else None

    def report_of(self, model: str) -> Optional[str]:
        """In which form a network runs, in words; None of one that does not say, in an archive of another program."""
        reports = Path(str(self._scratch), 'models').glob(f'*/{glob.escape(model)}{REPORT}')
        return next((path.read_text() for path in reports), None)

    @property
    def java(self) -> Any:
        """The server's own process, a psutil.Process."""
        return self._psutil.Process(self._process.pid)

    @property
    def front(self) -> Any:
        """The process that listens on the port, a psutil.Process."""
        return self._psutil.Process(self._front.pid)

    def loader_of(self, model: str) -> Any:
        """The process that has loaded a network and that its workers are forked from; None if it died."""
        for process in self.java.children():
            try:
                arguments = process.cmdline()
                if ('--model-name', model) in zip(arguments, arguments[1:]):
                    return process
            except self._psutil.NoSuchProcess:
                pass
        return None

    def workers_of(self, model: str) -> list[Any]:
        """A network's workers: a list of psutil.Process."""
        loader = self.loader_of(model)
        try:
            return [worker for worker in loader.children() if worker.status() != 'zombie'] if loader else []
        except self._psutil.NoSuchProcess:  # between the two calls
            return self.workers_of(model)

    def wait(self, on_ready: Callable[[bool], object] = lambda is_ready: None,
             report: Callable[[str], object] = print) -> NoReturn:
        """Keep the networks served until the server ends, which it does not by itself.

        The server replaces workers that died, but not the process that they are forked from; this does, and loads
        the network again. Requests that wait for a worker at that moment stay without an answer. What is changed over
        the management interface stays as it was changed: a network that was taken away, or whose workers were, is not
        loaded again.

        Parameters
        ----------
        on_ready : callable
            Called with what :meth:`is_ready` returns, first of all and whenever it changes.
        report : callable
            Called with a line about each network that is loaded again, or cannot be.

        Raises
        ------
        InputError
            When the server ended.
        """
        was_ready = None
        while self._process.poll() is None:
            is_ready = False
            if self._front.poll() is not None:
                self._start_front()
                report('the process that listens on the port died, and was started again.')
            # The server has ended meanwhile, or does not answer: seen to, or tried again, in a second.
            dead = []
            with contextlib.suppress(OSError, self._psutil.NoSuchProcess):
                dead = self._find_dead()
                is_ready = not dead and self.is_ready()
            if is_ready != was_ready:
                on_ready(is_ready)
            was_ready = is_ready
            with contextlib.suppress(OSError):
                for network in dead:
                    self._load_again(network, report)
            time.sleep(1)
        raise InputError(f'the server ended by itself with status {self._process.returncode}: see '
                         f'{self.run_dir / "logs"}.')

    def is_ready(self) -> bool:
        """Whether each network has a worker that takes requests, and there are networks.

        A network whose workers were taken away over the management interface does not count; one that died and could
        not be loaded again does.
        """
        wanted = self._wanted()
        are_ready = all(any(worker['status'] == 'READY' for worker in network['workers'])
                        for network in wanted.values())
        return bool(wanted) and are_ready and not self._failed

    def _wanted(self):
        """What the server says about each network that is to have workers: a dict by name."""
        listed, _ = self._manage('GET', '/models?limit=1000')
        described = [self._manage('GET', f'/models/{quote(entry["modelName"])}') for entry in listed['models']]
        # It may be taken away between the two.
        return {network['modelName']: network for network, status in described
                if status == 200 and network['minWorkers'] > 0}

    def _find_dead(self):
        """The networks, as the server describes them, whose loader died.

        It must be missing twice in a row, and have been there before: a network that is just being loaded, here or by
        somebody else over the management interface, has none yet.
        """
        wanted = self._wanted()
        missing = {model for model in wanted if self.loader_of(model) is None}
        self._failed = {model: size for model, size in self._failed.items()
                        if model not in wanted.keys() - missing and not self._was_deleted(model, size)}
        self._loaded = (self._loaded | wanted.keys() - missing) & wanted.keys()
        missed_before, self._missing = self._missing, missing & self._loaded
        return [wanted[model] for model in sorted(missed_before & self._missing)]

    def _load_again(self, network, report):
        model = network['modelName']
        self._failed[model] = self._log_size()
        _, status = self._manage('DELETE', f'/models/{quote(model)}')
        if status == 404:  # somebody else took it away since it was seen to be dead
            del self._failed[model]
            return
        # Behind the line of this deletion, which is not somebody else's.
        self._failed[model] = self._log_size()
        try:
            self._load(model, network['modelUrl'], {**self._loading, 'batch_size': network['batchSize'],
                                                    'max_batch_delay': network['maxBatchDelay'],
                                                    'initial_workers': network['minWorkers']})
            del self._failed[model]
            report(f'{model}: its process died, and it was loaded again.')
        except InputError as error:
            report(f'{error} Its process had died. The other networks are still served.')

    @property
    def _access_log(self):
        return self.run_dir / 'logs' / 'access_log.log'

    def _log_size(self):
        return self._access_log.stat().st_size if self._access_log.exists() else 0

    def _was_deleted(self, model, size):
        """Whether somebody took a network away since the server's log had so many bytes.

        The server's answers do not tell: it lists some of those that it could not load, and others not.
        """
        with contextlib.suppress(FileNotFoundError), open(self._access_log, 'rb') as file:
            file.seek(size)
            return f'"DELETE /models/{quote(model)} ' in file.read().decode(errors='replace')
        return False

    def stop(self) -> None:
        """End the server and its workers; of no effect if they have ended."""
        process, watch, page, front_process = self._process, self._watch, self._page, self._front
        self._process = self._watch = self._page = self._front = None
        try:
            if page is not None:
                page.stop()
            if process is not None:
                _signal_group(process, signal.SIGTERM)
                process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            # Also at a second Ctrl-C.
            if front_process is not None:
                front_process.kill()
                front_process.communicate()
            if self._socket is not None:
                self._socket.close()
            if process is not None:
                # Workers do not end by SIGTERM.
                _signal_group(process, signal.SIGKILL)
                process.wait()
            if watch is not None:
                watch.kill()
                watch.communicate()
            # Folders of tempfile, which nobody else knows.
            folders: list[Union[str, Path, None]] = [self._scratch, self._folder]
            for folder in folders:
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)
            self._lock.close()

    def _build_library(self):
        """Once, before several processes want it at a time, and before the server waits for them."""
        if self._form != 'standard':
            try:
                build_library()
            except InputError:
                # Each network says in its report what is missing.
                if self._form == 'library':
                    raise

    def _store(self, network):
        """Put an archive into the folder that the server loads from; returns its path there."""
        path = Path(network)
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            if path.suffix != '.mar':
                archived = archive(network, scratch, self._max_pixels, self._form)
            elif self._max_pixels != MAX_PIXELS:
                raise InputError(f'`max_pixels` is not for {path}, which has a limit of its own: give the network, or '
                                 'archive it again.')
            elif self._form != 'auto':
                raise InputError(f'`form` is not for {path}, which has one of its own: give the network, or archive '
                                 'it again.')
            elif zipfile.is_zipfile(path):
                archived = Path(shutil.copyfile(path, Path(scratch) / path.name))
            else:
                raise InputError(f'{path} {"is not a model archive" if path.exists() else "does not exist"}.')
            target = self._folder / archived.name
            if target.exists():
                raise InputError(f'{network}: there is another network with the name {target.stem}; rename one.')
            return archived.rename(target)

    def _check_archive(self, path):
        """Load an archive as a worker does: where it does not load, the server would only say that no worker starts."""
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            handler = unpack_archive(path, folder)
            try:
                loaded = subprocess.run([sys.executable, '-c', _LOAD, folder, handler], cwd=folder, capture_output=True,
                                        text=True, timeout=_START_SECONDS, env={**os.environ, 'OMP_NUM_THREADS': '1'})
            except subprocess.TimeoutExpired:
                raise InputError(f'{path} does not load within {_START_SECONDS} seconds.') from None
        if loaded.returncode:
            lines = loaded.stderr.strip().splitlines() or [f'its handler ended the process ({loaded.returncode})']
            raise InputError(f'{path} does not load: {lines[-1]}')

    def _listen(self, tasks):
        """Take the ports, and see that the server will get its own, of the management."""
        given = [each for each in (('host', 'port', self.address, self._take_port),
                                   ('management_host', 'management_port', self._management, _probe),
                                   ('host', 'page_port', self._page_address,
                                    lambda address: self._take_page_port(address, tasks))) if each[2]]
        for (_, name, (_, port), _), (_, other, (_, same), _) in combinations(given, 2):
            if port == same:
                raise InputError(f'`{name}` and `{other}` are the same: give another one.')
        for host_name, port_name, (host, port), listen in given:
            if port > MAX_PORT:
                raise InputError(f'`{port_name}` is {port}: the server takes ports up to {MAX_PORT} only.')
            try:
                listen((host, port))
            except OSError as error:
                raise InputError(f'`{host_name}` {host} with `{port_name}` {port} cannot be listened on: '
                                 f'{error.strerror}.') from error

    def _take_port(self, address):
        # Connections are refused until the networks are loaded.
        self._socket = _bound(address)

    def _take_page_port(self, address, tasks):
        self._page = Page(address, reachable_pair(self.address), tasks, MAX_REQUEST_BYTES, self.is_ready)

    def _start(self, java, package):
        # Its path is short, since those of sockets in it may have 108 characters.
        self._scratch = tempfile.mkdtemp(prefix='mms-')
        properties = {
            'inference_address': f'unix:{self._inference_socket}',
            'management_address': ('http://{}:{}'.format(*self._management) if self._management
                                   else f'unix:{self._management_socket}'),
            'model_store': self._folder,
            'job_queue_size': QUEUE,
            'max_request_size': MAX_REQUEST_BYTES,
            'max_response_size': MAX_REQUEST_BYTES,
            'number_of_gpu': 0,
            # Workers are forked from a process that has loaded the network: they share its memory, and one that
            # died is replaced without loading again.
            'preload_model': 'true',
        }
        config = self._folder / 'config.properties'
        # Java reads ISO 8859-1 with JSON's escapes.
        config.write_text(''.join(f'{key}={json.dumps(str(value))[1:-1]}\n' for key, value in properties.items()))
        logs = self.run_dir / 'logs'
        environment = {key: value for key, value in os.environ.items() if not key.startswith('MMS_')}
        # A worker is one thread: small networks lose more by threads than they gain.
        environment.update(OMP_NUM_THREADS='1', MXNET_ENGINE_TYPE='NaiveEngine', LOG_LOCATION=str(logs),
                           METRICS_LOCATION=str(logs))
        command = [java, f'-Xmx{_HEAP}', f'-XX:MaxDirectMemorySize={_BUFFERS}',
                   f'-Dmodel_server_home={package.parent}', f'-Djava.io.tmpdir={self._scratch}',
                   '-cp', str(package / 'frontend' / '*'), 'com.amazonaws.ml.mms.ModelServer',
                   '--python', sys.executable, '-f', str(config)]
        with open(logs / 'java.log', 'a') as log:
            # A group of its own, so that Ctrl-C reaches this process alone and stop() reaches all of them.
            self._process = subprocess.Popen(command, cwd=self.run_dir, env=environment, stdin=subprocess.DEVNULL,
                                             stdout=subprocess.DEVNULL, stderr=log, start_new_session=True)
        self._watch = subprocess.Popen(['/bin/sh', '-c', _WATCH, 'sh', str(self._process.pid), self._scratch,
                                        str(self._folder)],
                                       stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       start_new_session=True)
        # It comes with the server.
        self._psutil = importlib.import_module('psutil')
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                self._manage('GET', '/models')
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise InputError(f'the server does not start: see {logs}.') from error
                time.sleep(0.1)

    def _start_front(self):
        """Let a process take the connections of the port; the socket stays this one's, for another such process."""
        # Here, so that connections wait for the process, and are not refused.
        self._socket.listen(front.BACKLOG)
        self._front = subprocess.Popen(
            [sys.executable, front.__file__, str(self._socket.fileno()), self._inference_socket,
             str(MAX_REQUEST_BYTES)], pass_fds=[self._socket.fileno()], stdin=subprocess.PIPE,
            # Not reached by Ctrl-C: this process ends it.
            stdout=subprocess.DEVNULL, start_new_session=True)

    @property
    def _inference_socket(self):
        return f'{self._scratch}/inference'

    @property
    def _management_socket(self):
        return f'{self._scratch}/management'

    def _load(self, model, url, loading):
        try:
            answer, status = self._manage('POST', '/models?' + urlencode({'url': url, 'model_name': model, **loading}))
        except OSError:
            answer, status = {}, 'no answer'
        if status != 200:
            raise InputError(f'{url}: the server does not load it ({answer.get("message", status)}): see '
                             f'{self.run_dir / "logs" / "model_log.log"}.')

    def _manage(self, method, path):
        """The answer and the status of the management interface; OSError if there is none."""
        connection = (HTTPConnection(*reachable_pair(self._management), timeout=_START_SECONDS) if self._management
                      else _SocketConnection(self._management_socket, timeout=_START_SECONDS))
        try:
            connection.request(method, path)
            response = connection.getresponse()
            answer = json.loads(response.read())
            return (answer[0] if isinstance(answer, list) else answer), response.status
        except (HTTPException, json.JSONDecodeError) as error:
            raise OSError(f'the server breaks off its answer: {error!r}') from error
        finally:
            connection.close()


class _SocketConnection(HTTPConnection):
    """HTTP over a socket of the file system; the host is its path."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


def _probe(address):
    _bound(address).close()


def _bound(address):
    sock = socket.socket()
    try:
        # As Java binds: a port that was in use a minute ago is free.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def reachable_pair(address: tuple[str, int]) -> tuple[str, int]:
    host, port = address
    return (LOOPBACK if host == '0.0.0.0' else host), port


def _reachable(address):
    return '{}:{}'.format(*reachable_pair(address))


def _signal_group(process, number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    while True:
        # The system's own choice would be above MAX_PORT.
        port = random.randrange(20_000, MAX_PORT)
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
                return port
            except OSError:
                continue


def add_commands(commands: Commands) -> None:
    parser = add_parser(
        commands, 'serve', help='networks behind multi-model-server, until Ctrl-C',
        example='gluon-lprnet serve\n'
                'gluon-lprnet serve --network runs/latest other-symbol.json --page-port 8081',
        description='Serve networks over HTTP: POST a picture to http://HOST:PORT/predictions/NAME. Needs Java and '
                    'multi-model-server (docs/deploying.md).')
    parser.add_argument('networks', nargs='*', metavar='NETWORK',
                        help='trained network of the package, run or checkpoint folder, -symbol.json, or archive '
                             f'(.mar) (default: {" and ".join(DEFAULTS.values())})')
    parser.add_argument('--network', nargs='+', default=[], metavar='NETWORK', dest='named',
                        help='the same, as the other commands have it')
    parser.add_argument('--host', default=LOOPBACK,
                        help='address to listen on (default: %(default)s, for this machine only; 0.0.0.0: for all)')
    parser.add_argument('--port', type=positive_int, default=8080, help='port of the server (default: %(default)s)')
    parser.add_argument('--page-port', type=positive_int, metavar='PORT',
                        help='also serve a page to try the networks in a browser: drop a picture, see its classes or '
                             f'landmarks (default: {PAGE_PORT} if no network is named, otherwise no page)')
    parser.add_argument('--ready-file', metavar='FILE',
                        help='a file that exists while every network takes requests')
    parser.add_argument('--management-port', type=positive_int, metavar='PORT',
                        help='also listen for the management of the server: anyone who reaches this port can run any '
                             'code here (default: none, only a socket of this user)')
    parser.add_argument('--management-host', default=LOOPBACK, help='address of that port (default: %(default)s)')
    parser.add_argument('--max-batch-delay', type=non_negative_int, default=10, metavar='MS',
                       help='how long a request waits for others of its batch (default: %(default)s)')
    add_archive_flags(parser)
    add_server_flags(parser, 'runs/serve')
    parser.set_defaults(run=_run)


def add_server_flags(parser: argparse.ArgumentParser, run_dir: str) -> None:
    """The flags that ``serve`` and ``soak`` share; ``run_dir`` is the default of ``--run-dir``."""
    parser.add_argument('--workers', type=positive_int, help='processes of each network (default: one per CPU)')
    parser.add_argument('--batch-size', type=positive_int, default=1,
                        help='requests that pass a network together at most (default: %(default)s)')
    parser.add_argument('--run-dir', default=run_dir, metavar='DIR',
                        help="the server's configuration, archives and logs (default: %(default)s)")


def _mark_ready(path, is_ready):
    """Make the file of ``--ready-file`` (None: no file), or remove it."""
    if path and is_ready:
        write_file(path, '')
    elif path:
        with write_errors(path):
            Path(path).unlink(missing_ok=True)


def _run(args):
    networks = [*args.networks, *args.named]
    page_port = args.page_port or (None if networks else PAGE_PORT)
    networks = networks or list(DEFAULTS.values())
    print(f'Starting the server with {", ".join(map(str, networks))} ...', file=sys.stderr, flush=True)
    with Server(networks, args.run_dir, args.host, args.port, args.management_host, args.management_port,
                args.workers, args.batch_size, args.max_batch_delay, page_port, args.max_pixels, args.form,
                # A server that was killed leaves the file.
                lambda: _mark_ready(args.ready_file, False)) as server:
        for model in server.models:
            if report := server.report_of(model):
                print(f'{model} runs in {report}.', file=sys.stderr)
            print(f'{server.url(model)}\n  curl -F data=@photo.jpg {server.url(model)}')
        if server.page_url:
            print(f'In a browser: {server.page_url}')
        print(f'Ready. Workers of each network: {server.workers}. Logs: {server.run_dir / "logs"}. Ctrl-C stops the '
              'server.', flush=True)
        try:
            server.wait(lambda is_ready: _mark_ready(args.ready_file, is_ready),
                        lambda line: print(line, file=sys.stderr, flush=True))
        except (KeyboardInterrupt, SystemExit):
            # By a signal, as a server is meant to end.
            return 0
        finally:
            # Before the server ends, which takes a while.
            _mark_ready(args.ready_file, False)
