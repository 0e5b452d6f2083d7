"""What listens on the port of ``python -m gluon_lprnet serve``, before multi-model-server.

multi-model-server closes no idle connection, counts none, and keeps in memory whatever has come of a body. Nothing sets
that: to a connection it adds Netty's HTTP decoder and aggregator and its own handlers (``ServerInitializer``), and a
plugin sees whole requests alone. So it listens on a socket in the file system, and this process on the port. It reads a
request within limits of number, size, memory and time, and hands it on when it is whole.

It is a program of its own, of the standard library alone: it starts in no time, takes little memory, and shares no
interpreter with ``serve``. It ends when its standard input does, that is with the process that started it.
"""
import asyncio
import contextlib
import json
import re
import socket
import sys
from http import HTTPStatus
from typing import NamedTuple, Optional

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
_PART = 2 ** 16
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_END = b'\r\n\r\n'


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


def target_of(target: str) -> str:
    """Where a request goes: at /predictions, multi-model-server does not read the query; at another address it does."""
    found = re.fullmatch(r'/predictions/([^/?]+)(\?.+)', target)
    return f'/models/{found[1]}/invoke{found[2]}' if found else target


class _Request(NamedTuple):
    """The head of a request; names of fields are in lower case."""

    method: str
    target: str
    version: str
    fields: list

    def field(self, name):
        """The value of a field, '' if there is none; Refused if there are several that differ."""
        values = {value for each, value in self.fields if each == name}
        if len(values) > 1:
            raise Refused(400, f'the request has several different fields {name}')
        return values.pop() if values else ''

    @property
    def closes(self):
        """Whether the client wants no other request on the connection."""
        wish = self.field('connection').lower()
        return 'close' in wish or self.version == 'HTTP/1.0' and 'keep-alive' not in wish


def _parse(data):
    line, *lines = data[:-len(_END)].decode('latin-1').split('\r\n')
    found = re.fullmatch('([A-Z]+) ([!-~]+) (HTTP/1[.][01])', line)
    fields = [_FIELD.fullmatch(each) for each in lines]
    if not found or not all(fields):
        raise Refused(400, 'this is not a request of HTTP/1.1')
    return _Request(*found.groups(), [(field[1].lower(), field[2]) for field in fields])


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

    async def listen(self, sock: socket.socket) -> asyncio.AbstractServer:
        """Take the connections of a bound socket."""
        return await asyncio.start_server(self._converse, sock=sock, limit=_MAX_HEAD, backlog=BACKLOG)

    async def _converse(self, reader, writer):
        """One connection, request by request."""
        self._free -= 1
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if self._free < 0:
                    writer.write(_refusal(Refused(503, 'there are too many connections at the moment: try again '
                                                       'later')))
                    return
                try:
                    while await self._answer(reader, writer):
                        pass
                except Refused as refused:
                    writer.write(_refusal(refused))
                    await self._let_finish(reader, writer)
        finally:
            self._free += 1
            writer.close()

    async def _answer(self, reader, writer):
        """Answer a request; whether another may come."""
        try:
            head = _parse(await asyncio.wait_for(reader.readuntil(_END), self._idle_seconds))
        except asyncio.TimeoutError:
            return False
        except asyncio.LimitOverrunError:
            raise Refused(431, f'the head of the request has more than {_MAX_HEAD:,} bytes') from None
        if head.method == 'HEAD':
            raise Refused(405, 'HEAD is not answered: send GET or POST')
        length = self._length(head)
        check_body(head.field('content-type'), length or 0, self._most)
        # Of one whose length is not known, the largest.
        held = self._most if length is None else length
        if held > self._memory - (_FOR_SMALL if held > _SMALL else 0):
            raise Refused(503, 'there are too many uploads at the moment: try again later')
        self._memory -= held
        try:
            if head.field('expect').lower() == '100-continue':
                writer.write(b'HTTP/1.1 100 Continue\r\n\r\n')
            try:
                body = await asyncio.wait_for(self._body(reader, length), self._body_seconds)
            except asyncio.TimeoutError:
                raise Refused(408, f'the body did not come within {self._body_seconds:.0f} seconds') from None
            answer, is_last = await self._ask(head, body)
        finally:
            self._memory += held
        writer.write(answer)
        try:
            # Of a client that does not read.
            await asyncio.wait_for(writer.drain(), self._idle_seconds)
        except asyncio.TimeoutError:
            writer.transport.abort()
            return False
        return not is_last

    @staticmethod
    def _length(head):
        """Of a request's body, None if it comes in chunks; Refused if two readers could see it differently."""
        coding, length = head.field('transfer-encoding').lower(), head.field('content-length')
        if coding and (coding != 'chunked' or length) or not re.fullmatch('[0-9]{0,15}', length):
            raise Refused(400, 'the request does not say in one way how long it is: send a Content-Length')
        return None if coding else int(length or 0)

    async def _body(self, reader, length):
        if length is not None:
            return await reader.readexactly(length)
        parts, size = [], 0
        while length != 0:
            found = None
            with contextlib.suppress(asyncio.LimitOverrunError):
                line = await reader.readuntil(b'\r\n')
                found = re.fullmatch(b'([0-9A-Fa-f]{1,8})[ \t]*(;.*)?\r\n', line)
            if not found:
                raise Refused(400, 'the chunks of the body do not say how long they are')
            length = int(found[1], 16)
            size += length
            check_body('', size, self._most)
            part = await reader.readexactly(length + 2)
            if not part.endswith(b'\r\n'):
                raise Refused(400, 'the chunks of the body are not as long as they say')
            parts.append(part[:-2])
        return b''.join(parts)

    async def _ask(self, head, body):
        """The server's answer, as bytes, and whether the connection is to be closed after it."""
        try:
            return await asyncio.wait_for(self._exchange(head, body), self._answer_seconds)
        except asyncio.TimeoutError:
            raise Refused(504, f'the server did not answer within {self._answer_seconds:.0f} seconds: see its logs, '
                               'and send the picture again') from None
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise Refused(502, 'the server does not answer: see its logs, and send the picture again') from None

    async def _exchange(self, head, body):
        kept = [(name, value) for name, value in head.fields
                if name not in ('connection', 'content-length', 'expect', 'transfer-encoding')]
        reader, writer = await asyncio.open_unix_connection(self._upstream, limit=_MAX_HEAD)
        try:
            writer.write(_head(f'{head.method} {target_of(head.target)} HTTP/1.1',
                               [*kept, ('content-length', len(body))]))
            writer.write(body)
            await writer.drain()
            line, *lines = (await reader.readuntil(_END))[:-len(_END)].decode('latin-1').split('\r\n')
            fields = [(name.strip().lower(), value.strip())
                      for name, _, value in (each.partition(':') for each in lines)]
            content = await reader.readexactly(int(dict(fields).get('content-length', 0)))
        finally:
            writer.close()
        fields = [(name, value) for name, value in fields if name != 'connection']
        return _head(line, [*fields, *([('connection', 'close')] if head.closes else ())]) + content, head.closes

    @staticmethod
    async def _let_finish(reader, writer):
        """Drop what a client still sends: one that is cut off while it sends does not see why."""
        async def drop():
            while await reader.read(_PART):
                pass

        writer.write_eof()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(drop(), _FAREWELL_SECONDS)


def _head(line, fields):
    return '\r\n'.join([line, *(f'{name}: {value}' for name, value in fields), '', '']).encode('latin-1')


def _refusal(refused):
    """The answer that says why, as the networks' handler words it."""
    reason = json.dumps({'error': str(refused)}).encode()
    return _head(f'HTTP/1.1 {refused.status} {HTTPStatus(refused.status).phrase}',
                 [('content-type', 'application/json'), ('content-length', len(reason)),
                  ('connection', 'close')]) + reason


async def _run(descriptor: int, front: Front) -> None:
    await front.listen(socket.socket(fileno=descriptor))
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)


def main(argv: Optional[list[str]] = None) -> None:
    """``front.py DESCRIPTOR UPSTREAM MAX_REQUEST_BYTES``: listen on a bound socket that was passed on."""
    descriptor, upstream, most = sys.argv[1:] if argv is None else argv
    asyncio.run(_run(int(descriptor), Front(upstream, int(most))))


if __name__ == '__main__':
    main()
