"""``python -m gluon_lprnet serve``: networks behind the real multi-model-server."""
import contextlib
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
from http.client import HTTPConnection
from itertools import combinations
from pathlib import Path
from urllib.parse import quote, urlencode

from ..utils.errors import InputError
from ..utils.files import lock, make_folder
from ..utils.flags import non_negative_int, positive_int
from ..utils.processes import available_cpus
from .archive import archive
from .page import Page

__all__ = ['Server']
LOOPBACK = '127.0.0.1'
# Larger uploads are refused with 413 before a worker sees them.
MAX_REQUEST_BYTES = 16 * 2 ** 20
# The server takes the number for a signed one of 16 bits.
MAX_PORT = 32_767
# Requests that wait for a worker; one more is refused with 503.
QUEUE = 100
_START_SECONDS = 120
_STOP_SECONDS = 10
# Ends the processes of a group when its own standard input does, which is when the process that writes to it has died
# in whatever way.
_WATCH = 'read -r _; kill -s KILL -- "-$1"; rm -rf -- "$2" "$3"'


def find_java():
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
        Archives (.mar), or exported networks (``NAME-symbol.json``), which are archived.
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

    Raises
    ------
    InputError
        If Java, the package, a network or a port is not to be had, ``run_dir`` is in use by another server or cannot
        be written to, or the server does not start.
    """

    def __init__(self, networks, run_dir, host=LOOPBACK, port=8080, management_host=LOOPBACK, management_port=None,
                 workers=None, batch_size=1, max_batch_delay=10, page_port=None):
        self.run_dir = Path(run_dir).absolute()
        self.address = host, port
        self._management = (management_host, management_port) if management_port else None
        self._page_address = (host, page_port) if page_port else None
        self.workers = workers or available_cpus()
        self._loading = {'batch_size': batch_size, 'max_batch_delay': max_batch_delay, 'initial_workers': self.workers,
                         'synchronous': 'true'}
        self._networks = networks
        self.models = []
        self._process = self._watch = self._scratch = self._page = self._folder = None
        self._lock = contextlib.ExitStack()

    def __enter__(self):
        java = find_java()
        package = importlib.util.find_spec('mms')
        if package is None:
            raise InputError('the server is not installed: pip install multi-model-server==1.1.11.')
        for folder in (self.run_dir, self.run_dir / 'logs'):
            make_folder(folder)
        self._lock.enter_context(lock(self.run_dir / '.serve.lock', f'`run_dir` {self.run_dir} is in use by another '
                                      'server: give another folder.'))
        try:
            self._folder = Path(tempfile.mkdtemp(prefix='serving-', dir=self.run_dir))
            models = [self._store(network) for network in self._networks]
            self._listen()
            self._start(java, Path(package.origin).parent)
            for model in models:
                self._load(model)
                self.models.append(model)
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

    def url(self, model):
        """Where to POST images to."""
        return f'http://{_reachable(self.address)}/predictions/{quote(model)}'

    @property
    def page_url(self):
        """The page's address for a browser; None if there is no page."""
        return f'http://{_reachable(self._page_address)}/' if self._page_address else None

    @property
    def java(self):
        """The server's own process, a psutil.Process."""
        return self._psutil.Process(self._process.pid)

    def loader_of(self, model):
        """The process that has loaded a network and that its workers are forked from; None if it died."""
        for process in self.java.children():
            try:
                arguments = process.cmdline()
                if ('--model-name', model) in zip(arguments, arguments[1:]):
                    return process
            except self._psutil.NoSuchProcess:
                pass
        return None

    def workers_of(self, model):
        """A network's workers: a list of psutil.Process."""
        loader = self.loader_of(model)
        try:
            return [worker for worker in loader.children() if worker.status() != 'zombie'] if loader else []
        except self._psutil.NoSuchProcess:  # between the two calls
            return self.workers_of(model)

    def wait(self):
        """Keep the networks served until the server ends, which it does not by itself.

        The server replaces workers that died, but not the process that they are forked from; this does, and loads
        the network again. Requests that wait for a worker at that moment stay without an answer.

        Raises
        ------
        InputError
            When the server ended, or does not load a network again.
        """
        while self._process.poll() is None:
            time.sleep(1)
            try:
                for model in self.models:
                    if self.loader_of(model) is None:
                        self._manage('DELETE', f'/models/{quote(model)}')
                        self._load(model)
            except (OSError, self._psutil.NoSuchProcess):
                # The server has ended meanwhile, or does not answer: seen to, or tried again, in a second.
                continue
        raise InputError(f'the server ended by itself with status {self._process.returncode}: see '
                         f'{self.run_dir / "logs"}.')

    def stop(self):
        """End the server and its workers; of no effect if they have ended."""
        process, watch, page = self._process, self._watch, self._page
        self._process = self._watch = self._page = None
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
            if process is not None:
                # Workers do not end by SIGTERM.
                _signal_group(process, signal.SIGKILL)
                process.wait()
            if watch is not None:
                watch.kill()
                watch.communicate()
            # Folders of tempfile, which nobody else knows.
            for folder in filter(None, (self._scratch, self._folder)):
                shutil.rmtree(folder, ignore_errors=True)
            self._lock.close()

    def _store(self, network):
        """Put an archive into the folder that the server loads from; returns the model's name."""
        path = Path(network)
        archived = path.suffix == '.mar'
        name = path.stem if archived else path.name[:-len('-symbol.json')]
        if (self._folder / f'{name}.mar').exists():
            raise InputError(f'{path}: there is another network of this name; rename one.')
        if not archived:
            archive(path, self._folder)
        elif zipfile.is_zipfile(path):
            shutil.copyfile(path, self._folder / path.name)
        else:
            raise InputError(f'{path} {"is not a model archive" if path.exists() else "does not exist"}.')
        return name

    def _listen(self):
        """Take the page's port, and see that the server will get its own."""
        given = [each for each in (('host', 'port', self.address, _probe),
                                   ('management_host', 'management_port', self._management, _probe),
                                   ('host', 'page_port', self._page_address, self._take_page_port)) if each[2]]
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

    def _take_page_port(self, address):
        self._page = Page(address, reachable_pair(self.address), self.models, MAX_REQUEST_BYTES)

    def _start(self, java, package):
        # Its path is short, since those of sockets in it may have 108 characters.
        self._scratch = tempfile.mkdtemp(prefix='mms-')
        properties = {
            'inference_address': 'http://{}:{}'.format(*self.address),
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
        config.write_text(''.join(f'{key}={value}\n' for key, value in properties.items()))
        logs = self.run_dir / 'logs'
        environment = {key: value for key, value in os.environ.items() if not key.startswith('MMS_')}
        # A worker is one thread: small networks lose more by threads than they gain.
        environment.update(OMP_NUM_THREADS='1', MXNET_ENGINE_TYPE='NaiveEngine', LOG_LOCATION=str(logs),
                           METRICS_LOCATION=str(logs))
        command = [java, f'-Dmodel_server_home={package.parent}', f'-Djava.io.tmpdir={self._scratch}',
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

    @property
    def _management_socket(self):
        return f'{self._scratch}/management'

    def _load(self, model):
        try:
            answer, status = self._manage('POST', '/models?' + urlencode({'url': f'{model}.mar', 'model_name': model,
                                                                          **self._loading}))
        except OSError:
            answer, status = {}, 'no answer'
        if status != 200:
            raise InputError(f'{model}.mar: the server does not load it ({answer.get("message", status)}): see '
                             f'{self.run_dir / "logs" / "model_log.log"}.')

    def _manage(self, method, path):
        """The answer and the status of the management interface."""
        connection = (HTTPConnection(*reachable_pair(self._management), timeout=_START_SECONDS) if self._management
                      else _SocketConnection(self._management_socket, timeout=_START_SECONDS))
        try:
            connection.request(method, path)
            response = connection.getresponse()
            answer = json.loads(response.read())
            return (answer[0] if isinstance(answer, list) else answer), response.status
        finally:
            connection.close()


class _SocketConnection(HTTPConnection):
    """HTTP over a socket of the file system; the host is its path."""

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.host)


def _probe(address):
    with socket.socket() as probe:
        # As the server binds: a port that was in use a minute ago is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


def reachable_pair(address):
    host, port = address
    return (LOOPBACK if host == '0.0.0.0' else host), port


def _reachable(address):
    return '{}:{}'.format(*reachable_pair(address))


def _signal_group(process, number):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def free_port():
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


def add_commands(commands):
    parser = commands.add_parser(
        'serve', help='networks behind multi-model-server, until Ctrl-C',
        description='Serve networks over HTTP: POST a picture to http://HOST:PORT/predictions/NAME. Needs Java and '
                    'pip install multi-model-server==1.1.11.')
    parser.add_argument('networks', nargs='+', metavar='NETWORK', help='archive (.mar) or -symbol.json of export')
    parser.add_argument('--host', default=LOOPBACK, help='address to listen on (default: %(default)s, this machine '
                       'alone; 0.0.0.0: all)')
    parser.add_argument('--port', type=positive_int, default=8080, help='default: %(default)s')
    parser.add_argument('--page-port', type=positive_int,
                       help='serve a page, too, on which a browser tries the networks: drop a picture, see its classes '
                            'or landmarks (default: none)')
    parser.add_argument('--management-port', type=positive_int,
                       help='listen for the management of the server, too: who reaches it can have any code run here '
                            '(default: none, only a socket of this user)')
    parser.add_argument('--management-host', default=LOOPBACK, help='address of that port (default: %(default)s)')
    parser.add_argument('--max-batch-delay', type=non_negative_int, default=10, metavar='MS',
                       help='how long a request waits for others of its batch (default: %(default)s)')
    add_server_flags(parser, 'runs/serve')
    parser.set_defaults(run=_run)


def add_server_flags(parser, run_dir):
    """The flags that ``serve`` and ``soak`` share; ``run_dir`` is the default of ``--run-dir``."""
    parser.add_argument('--workers', type=positive_int, help='processes of each network (default: one per CPU)')
    parser.add_argument('--batch-size', type=positive_int, default=1,
                        help='requests that pass a network together at most (default: %(default)s)')
    parser.add_argument('--run-dir', default=run_dir, metavar='DIR',
                        help="the server's configuration, archives and logs (default: %(default)s)")


def _run(args):
    with Server(args.networks, args.run_dir, args.host, args.port, args.management_host, args.management_port,
                args.workers, args.batch_size, args.max_batch_delay, args.page_port) as server:
        for model in server.models:
            print(f'{server.url(model)}\n  curl -F data=@photo.jpg {server.url(model)}')
        if server.page_url:
            print(f'In a browser: {server.page_url}')
        print(f'Workers of each: {server.workers}. Logs: {server.run_dir / "logs"}. Ctrl-C stops the server.',
              flush=True)
        try:
            server.wait()
        except (KeyboardInterrupt, SystemExit):
            # By a signal, as a server is meant to end.
            return 0
