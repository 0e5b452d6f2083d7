"""What listens on the port of ``python -m gluon_lprnet serve``, before multi-model-server.

multi-model-server closes no idle connection, counts none, and keeps in memory whatever has come of a body. Nothing sets
that: to a connection it adds Netty's HTTP decoder and aggregator and its own handlers (``ServerInitializer``), and a
plugin sees whole requests alone. So it listens on a socket in the file system, and this process on the port. It reads a
request within limits of number, size, memory and time, and hands it on when it is whole.

It is a program of its own, of the standard library and h11, which knows HTTP: it starts in no time, takes little
memory, and shares no interpreter with ``serve``. It ends when its standard input does, that is with the process that
started it.
"""
import asyncio
import contextlib
import json
import re
import socket
import sys
from http import HTTPStatus
from typing import Optional

import h11

# Connections at a time, the bytes of a request's head, and those of all the bodies that are there at a time. Some of
# these are for small bodies alone: large ones that come slowly shall not keep out all others.
MAX_CONNECTIONS = 256
_MAX_HEAD = 2 ** 14
MAX_HELD = 2 ** 29
_SMALL, _FOR_SMALL = 2 ** 20, 2 ** 26
# Connections that wait to be taken.
BACKLOG = 128
# Seconds: without a request, for a body to come, and for an answer; the server itself gives up after 120.
IDLE_SECONDS = 60
BODY_SECONDS = 120
_ANSWER_SECONDS = 150
# Of a client that was refused and still sends, and what is read of it at a time, in bytes.
_FAREWELL_SECONDS = 2
_PART = 2 ** 14
_METHODS = (b'GET', b'POST', b'PUT', b'PATCH', b'DELETE', b'OPTIONS')
# Of one connection, not of the next: they are made anew.
_OF_A_CONNECTION = (b'connection', b'content-length', b'expect', b'keep-alive', b'transfer-encoding', b'upgrade')


class Refused(Exception):
    """A request that is not handed on: the status and the reason of the answer."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def check_body(kind: str, length: int, most: int) -> None:
    """Raise Refused for a body that is not to be read: of this content type, of so many bytes of at most so many."""
    if length > most:
        raise Refused(413, f'the request has {length:,} bytes, at most {most:,} are taken: send a smaller picture')
    # Of one that does not decode as a form, the server would not say what is wrong, and answer with 500.
    if kind.split(';')[0].strip().lower() == 'application/x-www-form-urlencoded':
        raise Refused(415, 'application/x-www-form-urlencoded holds no image: send a picture as the body '
                           '(Content-Type: image/jpeg), or as the field "data" of a multipart form')


def target_of(target: bytes) -> bytes:
    """Where a request goes: at /predictions, multi-model-server does not read the query; at another address it does."""
    return re.sub(rb'^/predictions/([^/?]+)(\?.+)$', rb'/models/\1/invoke\2', target)


class Front:
    """Takes connections, and hands their requests on.

    Parameters
    ----------
    upstream : str
        The path of the socket that the server listens on.
    max_request_bytes : int
        Of a body; larger ones are refused with 413.
    max_connections, max_held : int
        Connections at a time, and bytes of all the bodies at a time; what is beyond is refused with 503.
    idle_seconds, body_seconds, answer_seconds : float
        After so long without a request (or with an answer that is not read), with a body that is not whole, or without
        an answer of the server's, a connection is closed: without a word, with 408, with 504.
    """

    def __init__(self, upstream: str, max_request_bytes: int, max_connections: int = MAX_CONNECTIONS,
                 max_held: int = MAX_HELD, idle_seconds: float = IDLE_SECONDS, body_seconds: float = BODY_SECONDS,
                 answer_seconds: float = _ANSWER_SECONDS) -> None:
        self._upstream = upstream
        self._most = max_request_bytes
        self._free, self._memory = max_connections, max_held
        self._idle_seconds, self._body_seconds, self._answer_seconds = idle_seconds, body_seconds, answer_seconds
        # Connections to the server that no request uses at the moment.
        self._spare: list[_Talk] = []

    async def listen(self, sock: socket.socket) -> asyncio.AbstractServer:
        """Take the connections of a bound socket."""
        return await asyncio.start_server(self._converse, sock=sock, backlog=BACKLOG)

    async def _converse(self, reader, writer):
        """One connection, request by request."""
        self._free -= 1
        client = _Talk(h11.SERVER, reader, writer)
        try:
            with contextlib.suppress(OSError):
                try:
                    if self._free < 0:
                        raise Refused(503, 'there are too many connections at the moment: try again later')
                    while await self._answer(client):
                        client.http.start_next_cycle()
                except Refused as refused:
                    client.write(refused.status, [(b'content-type', b'application/json'), (b'connection', b'close')],
                                 json.dumps({'error': str(refused)}).encode())
                    await client.let_finish()
        finally:
            self._free += 1
            writer.close()

    async def _answer(self, client):
        """Answer a request; whether another may come."""
        try:
            head = await asyncio.wait_for(client.event(), self._idle_seconds)
        except asyncio.TimeoutError:
            return False
        if not isinstance(head, h11.Request):
            return False
        client.wants_no_body = head.method == b'HEAD'
        fields = dict(head.headers)
        length = _length(head, fields)
        check_body(fields.get(b'content-type', b'').decode('latin-1'), length or 0, self._most)
        # Of one whose length is not known, the largest.
        held = self._most if length is None else length
        if held > self._memory - (_FOR_SMALL if held > _SMALL else 0):
            raise Refused(503, 'there are too many uploads at the moment: try again later')
        self._memory -= held
        try:
            client.ask_for_body()
            try:
                body = await asyncio.wait_for(client.body(self._most), self._body_seconds)
            except asyncio.TimeoutError:
                raise Refused(408, f'the body did not come within {self._body_seconds:.0f} seconds') from None
            answer, content = await self._ask(head, body)
        finally:
            self._memory += held
        client.write(answer.status_code, _kept(answer.headers), content, answer.reason)
        try:
            # Of a client that does not read.
            await asyncio.wait_for(client.writer.drain(), self._idle_seconds)
        except asyncio.TimeoutError:
            client.writer.transport.abort()
            return False
        return client.http.our_state is client.http.their_state is h11.DONE

    async def _ask(self, head, body):
        """The server's answer, and its body."""
        try:
            return await asyncio.wait_for(self._exchange(head, body), self._answer_seconds)
        except asyncio.TimeoutError:
            raise Refused(504, f'the server did not answer within {self._answer_seconds:.0f} seconds: see its logs, '
                               'and send the picture again') from None
        except (OSError, Refused):
            raise Refused(502, 'the server does not answer: see its logs, and send the picture again') from None

    async def _exchange(self, head, body):
        while self._spare:
            # The server may have closed it meanwhile: then the next one is asked, and in the end a new one.
            with contextlib.suppress(OSError, Refused):
                return await self._ask_by(self._spare.pop(), head, body)
        return await self._ask_by(_Talk(h11.CLIENT, *await asyncio.open_unix_connection(self._upstream)), head, body)

    async def _ask_by(self, server, head, body):
        is_spare = False
        try:
            # One of HTTP/1.0 may come without a host, and goes on as one of HTTP/1.1.
            host = [] if b'host' in dict(head.headers) else [(b'host', b'localhost')]
            server.ask(h11.Request(method=head.method, target=target_of(head.target), headers=[
                *_kept(head.headers), *host, (b'content-length', b'%d' % len(body))]), body)
            await server.writer.drain()
            answer = await server.event()
            if not isinstance(answer, h11.Response):
                raise ConnectionError
            content = await server.body()
            is_spare = server.http.our_state is server.http.their_state is h11.DONE
            return answer, content
        finally:
            if is_spare:
                server.http.start_next_cycle()
                self._spare.append(server)
            else:
                server.writer.close()


class _Talk:
    """A connection, in events of HTTP; what cannot be one raises Refused, and an end within one OSError."""

    def __init__(self, role, reader, writer):
        self.http = h11.Connection(role, max_incomplete_event_size=_MAX_HEAD)
        self.reader, self.writer = reader, writer
        # An answer to HEAD has the head alone.
        self.wants_no_body = False

    async def event(self):
        try:
            while True:
                event = self.http.next_event()
                if event is not h11.NEED_DATA:
                    return event
                self.http.receive_data(await self.reader.read(_PART))
        except h11.RemoteProtocolError as error:
            if self.reader.at_eof():
                raise ConnectionError from error
            status = error.error_status_hint
            what = f'a line, or the head, has more than {_MAX_HEAD:,} bytes' if status == 431 else error
            raise Refused(status, f'this is not a request of HTTP/1.1 that can be read: {what}') from None

    async def body(self, most=None):
        """The whole body of the request or answer whose head was read; Refused with more bytes than ``most``."""
        parts, size = [], 0
        while isinstance(event := await self.event(), h11.Data):
            size += len(event.data)
            if most is not None:
                check_body('', size, most)
            parts.append(bytes(event.data))
        return b''.join(parts)

    def ask_for_body(self):
        if self.http.they_are_waiting_for_100_continue:
            go_on = h11.InformationalResponse(status_code=100, headers=[], reason=b'Continue')
            self.writer.write(self.http.send(go_on))

    def ask(self, head, body):
        for event in (head, h11.Data(data=body), h11.EndOfMessage()):
            self.writer.write(self.http.send(event))

    def write(self, status, fields, content, reason=b''):
        self.ask(h11.Response(status_code=status, reason=reason or HTTPStatus(status).phrase.encode(),
                              headers=[*fields, (b'content-length', b'%d' % len(content))]),
                 b'' if self.wants_no_body else content)

    async def let_finish(self):
        """Drop what a client still sends: one that is cut off while it sends does not see why."""
        async def drop():
            while await self.reader.read(_PART):
                pass

        self.writer.write_eof()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(drop(), _FAREWELL_SECONDS)


def _kept(fields):
    return [(name, value) for name, value in fields if name not in _OF_A_CONNECTION]


def _length(head, fields):
    """Of a request's body, None if it comes in chunks; Refused of what is not handed on."""
    if head.http_version not in (b'1.0', b'1.1'):
        raise Refused(400, 'this is not a request of HTTP/1.1')
    if head.method not in _METHODS:
        raise Refused(405, f'{head.method.decode()} is not answered: send GET or POST')
    if b'transfer-encoding' not in fields:
        return int(fields.get(b'content-length', 0))
    if b'content-length' in fields:
        raise Refused(400, 'the request says twice how long it is: send a Content-Length alone')
    return None


async def _run(descriptor: int, front: Front) -> None:
    await front.listen(socket.socket(fileno=descriptor))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


def main(argv: Optional[list[str]] = None) -> None:
    """``front.py DESCRIPTOR UPSTREAM MAX_REQUEST_BYTES``: listen on a bound socket that was passed on."""
    descriptor, upstream, most = sys.argv[1:] if argv is None else argv
    asyncio.run(_run(int(descriptor), Front(upstream, int(most))))


if __name__ == '__main__':
    main()
