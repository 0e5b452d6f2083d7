"""The page of ``python -m gluon_lprnet serve --page-port``, on which a browser tries the served networks.

multi-model-server serves no files, and a browser lets a page read the answers of its own origin alone. So what serves
the page, threads of the command, hands its pictures on to the server. The alternative was to allow the page's origin in
the server (its ``cors_`` settings): two addresses for a browser to reach, and a server that answers to web pages. Here
nothing of the server is opened: what is handed on is a POST to the networks' own addresses. Programs take the server's
port.

Any other web page can have a browser send requests here, and could read the answers by a name of its own that it lets
point to this machine. So requests are only taken under an address, or a name of this machine.
"""
import base64
import contextlib
import hashlib
import ipaddress
import json
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Optional
from urllib.parse import unquote

from .front import Refused, check_body

__all__ = ['Page']

_HTML = Path(__file__).with_name('page.html').read_text(encoding='utf-8')
# Seconds: of a client that neither sends nor goes, and of a request that the server lost with a killed worker.
_IDLE_SECONDS = 60
_ANSWER_SECONDS = 60
# Of a client that was refused and still sends, and what is read of it at a time, in bytes.
_FAREWELL_SECONDS = 2
_PART = 1 << 16
# Connections at a time, each of which is a thread and may hold a request in memory.
MAX_CONNECTIONS = 64


def _source(element):
    """The page's only script or style, as its security policy names it."""
    text = re.search(f'<{element}>(.*?)</{element}>', _HTML, re.DOTALL)[1]
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


_HEADERS = {
    # Nothing of other origins, and no other script: not even a label that is one would run.
    'Content-Security-Policy': f"default-src 'none'; connect-src 'self'; img-src blob: data:; base-uri 'none'; "
                               f"form-action 'none'; frame-ancestors 'none'; script-src {_source('script')}; "
                               f"style-src {_source('style')}",
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'no-referrer',
    'Cache-Control': 'no-store',
}


_BUSY_REASON = json.dumps({'error': 'the page has too many visitors at the moment: try again later'}).encode()
_BUSY = (b'HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n'
         b'Content-Length: %d\r\n\r\n' % len(_BUSY_REASON)) + _BUSY_REASON


class Page(socketserver.ThreadingTCPServer):
    """The page, served from :meth:`start` to :meth:`stop`; its port is taken before.

    ``GET /`` is the page, ``GET /networks`` what it must know as JSON, ``POST /predictions/NAME`` as of the server, and
    ``GET /ready`` whether the networks take requests (200 or 503).

    Parameters
    ----------
    address : (str, int)
        Host and port to listen on.
    server : (str, int)
        Where the model server answers.
    tasks : dict of str to (str or None)
        The names of the networks, and what they are for.
    max_request_bytes : int
        Larger pictures are refused with 413.
    is_ready : callable
        Whether the server takes requests for all networks; may raise OSError.

    Raises
    ------
    OSError
        If the address cannot be listened on.
    """

    allow_reuse_address = True
    daemon_threads = True
    # Connections that wait until a thread is started.
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], server: tuple[str, int], tasks: Mapping[str, Optional[str]],
                 max_request_bytes: int, is_ready: Callable[[], bool]) -> None:
        super().__init__(address, _Handler)
        self.model_server = server
        self.tasks = tasks
        self.max_request_bytes = max_request_bytes
        self.is_ready = is_ready
        self.names = {'localhost', address[0], socket.gethostname().lower()}
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            with contextlib.suppress(OSError):
                request.sendall(_BUSY)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser leaves in the middle when another picture is dropped.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    timeout = _IDLE_SECONDS

    def do_GET(self):
        if not self._is_for_this_machine():
            return
        if self.path == '/':
            self._answer(200, _HTML.encode(), 'text/html; charset=utf-8')
        elif self.path == '/networks':
            self._answer(200, json.dumps({'networks': self.server.tasks,
                                          'max_request_bytes': self.server.max_request_bytes}).encode())
        elif self.path == '/ready':
            is_ready = False
            with contextlib.suppress(OSError):
                is_ready = self.server.is_ready()
            self._answer(200 if is_ready else 503, json.dumps({'ready': is_ready}).encode())
        else:
            self.send_error(404, 'there is nothing at this address')

    def _is_for_this_machine(self):
        """Whether the header Host is an address or a name of this machine; if not, the request is refused."""
        host = self.headers.get('Host', '')
        name = re.sub(r':\d*$', '', host).strip('[]').lower()
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        if name in self.server.names:
            return True
        self.send_error(421, f'this page is not reached as {host[:100]!r}: use the IP address of the machine')
        return False

    def handle_expect_100(self):
        """A client that asks before it sends a body is told at once what would be refused."""
        return self._is_taken() and super().handle_expect_100()

    def do_POST(self):
        if self._is_taken():
            self._hand_on(self.headers.get('Content-Type', ''), self.rfile.read(int(self.headers['Content-Length'])))

    def _is_taken(self):
        """Whether a request's head is one of a prediction; if not, it is refused, and its body is not kept."""
        if not self._is_for_this_machine():
            return False
        length = self.headers.get('Content-Length', '')
        try:
            if not re.fullmatch('[0-9]{1,15}', length):
                raise Refused(411, 'the request does not say how long it is: send a Content-Length')
            if self._model() not in self.server.tasks:
                raise Refused(404, 'no such network: POST to /predictions/ and one of '
                                   f'{", ".join(self.server.tasks)}')
            check_body(self.headers.get('Content-Type', ''), int(length), self.server.max_request_bytes)
        except Refused as refused:
            self.send_error(refused.status, str(refused))
            return False
        return True

    def _model(self):
        """The network that the address names; None if it names none."""
        path = self.path.partition('?')[0]
        return unquote(path[len('/predictions/'):]) if path.startswith('/predictions/') else None

    def _hand_on(self, kind, body):
        connection = HTTPConnection(*self.server.model_server, timeout=_ANSWER_SECONDS)
        try:
            connection.request('POST', self.path, body, {'Content-Type': kind} if kind else {})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, HTTPException):
            self.send_error(502, 'the model server does not answer: see its logs, and send the picture again')
        else:
            self._answer(response.status, answer)
        finally:
            connection.close()

    def send_error(self, code, message=None, explain=None):
        """A refusal, as the handler in the archive words it; also those that the base class sends, in HTML."""
        self.close_connection = True
        self._answer(code, json.dumps({'error': message or HTTPStatus(code).phrase}).encode())
        self._let_finish()

    def _let_finish(self):
        """Drop what the client still sends: one that is cut off while it sends does not see why."""
        self.wfile.flush()
        self.connection.settimeout(_FAREWELL_SECONDS)
        left = self.server.max_request_bytes
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while left > 0:
                part = self.connection.recv(_PART)
                if not part:
                    break
                left -= len(part)

    def _answer(self, status, body, kind='application/json'):
        self.send_response(status)
        for name, value in {**_HEADERS, 'Content-Type': kind, 'Content-Length': str(len(body))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header('Connection', 'close')
        self.end_headers()
        self.wfile.write(body)

    def version_string(self):
        """For the header Server: not which Python this is."""
        return 'gluon_lprnet'

    def log_message(self, *_):
        """The model server logs accesses."""
