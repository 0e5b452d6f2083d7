"""What listens on the server's port, before a server that tells what it was sent: no Java is needed."""
import asyncio
import contextlib
import itertools
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from types import SimpleNamespace

import pytest

from gluon_lprnet.serving.front import Front

SECONDS = 60
MOST = 2 ** 21
PATIENCE = 0.5


async def tell(reader, writer):
    """Answer requests with what they are; hang up, stay, or say nothing, when the body asks for it."""
    for number in itertools.count():
        head = (await reader.readuntil(b'\r\n\r\n')).decode().split('\r\n')
        fields = dict(line.split(': ', 1) for line in head[1:] if line)
        body = await reader.readexactly(int(fields['content-length']))
        if body == b'say nothing':
            await asyncio.sleep(SECONDS)
        if body != b'hang up':
            told = {'line': head[0], 'fields': fields, 'bytes': len(body), 'body': body[:99].decode(), 'number': number}
            answer = json.dumps(told).encode()
            writer.write(b'HTTP/1.1 418 Teapot\r\nconnection: keep-alive\r\nx-mark: 5\r\ncontent-length: %d\r\n\r\n'
                         % len(answer) + answer)
        if body != b'stay':
            break
    writer.close()


@pytest.fixture
def start(tmp_path):
    """A function that starts a front with limits, and gives its address and the front."""
    loop, servers = asyncio.new_event_loop(), []
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(SECONDS)

    def start(**limits):
        servers.append(run(asyncio.start_unix_server(tell, str(tmp_path / 'upstream'))))
        sock = socket.socket()
        sock.bind(('127.0.0.1', 0))
        servers.append(run(Front(str(tmp_path / 'upstream'), MOST, **limits).listen(sock)))
        return SimpleNamespace(address=sock.getsockname())

    yield start

    async def stop():
        for server in servers:
            server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        # To their ends, which need the loop.
        await asyncio.gather(*tasks, return_exceptions=True)
    run(stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def ask(connection, path='/predictions/net', body=b'body', method='POST', **headers):
    """Status and answer."""
    connection.request(method, path, body, {name.replace('_', '-'): value for name, value in headers.items()})
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def raw(front, data, then=b''):
    """All that comes back until the connection is closed."""
    with socket.create_connection(front.address, timeout=SECONDS) as connection:
        connection.sendall(data)
        if then:
            time.sleep(0.1)
            connection.sendall(then)
        with connection.makefile('rb') as file, contextlib.suppress(ConnectionError):
            return file.read()


def test_requests_are_handed_on_whole(start):
    connection = HTTPConnection(*start().address, timeout=SECONDS)
    for path, target in (('/predictions/a%20b', '/predictions/a%20b'), ('/models/net/invoke?top_k=1',) * 2,
                         ('/ping', '/ping'), ('/predictions/net?top_k=1&x=%3F', '/models/net/invoke?top_k=1&x=%3F'),
                         ('/predictions/net/x?top_k=1', '/predictions/net/x?top_k=1')):
        # On one connection.
        status, told = ask(connection, path, b'x' * MOST, content_type='image/png', X_Request_ID='7')
        assert status == 418 and told['line'] == f'POST {target} HTTP/1.1' and told['bytes'] == MOST
        assert told['fields']['content-type'] == 'image/png' and told['fields']['x-request-id'] == '7'
        assert 'connection' not in told['fields']
    assert ask(connection, '/ping', None, 'GET')[1]['line'] == 'GET /ping HTTP/1.1'
    connection.close()


def test_a_wish_for_another_protocol_is_left_out(start):
    answer = raw(start(), b'POST / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade, close\r\n'
                          b'Content-Length: 4\r\n\r\nbody')
    told = json.loads(answer.split(b'\r\n\r\n')[1])
    assert told['body'] == 'body' and 'upgrade' not in told['fields']


def test_chunks_become_a_body_of_a_length(start):
    answer = raw(start(), b'POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n',
                 b'A;name=value\r\n of chunks\r\n0\r\n\r\nGET /last HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n')
    first, second = (json.loads(part.split(b'\r\n\r\n')[1]) for part in answer.split(b'HTTP/1.1 418')[1:])
    assert first['body'] == 'body of chunks' and first['fields']['content-length'] == '14'
    assert 'transfer-encoding' not in first['fields'] and second['line'] == 'GET /last HTTP/1.1'


@pytest.mark.parametrize('line, closes', [('GET / HTTP/1.1\r\nHost: x\r\nConnection: close', True),
                                          ('GET / HTTP/1.0', True), ('GET / HTTP/1.1\r\nHost: x', False)])
def test_the_connection_stays_as_the_client_wishes(start, line, closes):
    answer = raw(start(idle_seconds=PATIENCE), f'{line}\r\n\r\n'.encode())
    assert answer.startswith(b'HTTP/1.1 418') and (b'Connection: close' in answer) == closes
    assert b'connection: keep-alive' not in answer and b'x-mark: 5' in answer


@pytest.mark.parametrize('fields, status, reason', [
    (f'Content-Length: {MOST + 1}', 413, '2,097,153 bytes, at most 2,097,152'),
    ('Content-Length: 4\r\nContent-Type: Application/X-WWW-Form-URLencoded; charset=x', 415, 'holds no image'),
    ('Content-Length: -4', 400, 'Content-Length'), ('Content-Length: 4\r\nContent-Length: 5', 400, 'Content-Length'),
    # Two servers in a row could see another end of it each.
    ('Content-Length: 4\r\nTransfer-Encoding: chunked', 400, 'Content-Length'),
    ('Transfer-Encoding: gzip, chunked', 501, 'Transfer-Encoding'), ('no field', 400, 'not a request'),
    ('Content-Length: 4\r\n folded', 400, 'not a request'), ('Content-Length : 4', 400, 'not a request'),
    ('X: ' + 'x' * 2 ** 15, 431, '16,384 bytes')])
@pytest.mark.parametrize('body', [b'', b'body' * 2 ** 18])
def test_what_is_refused_is_refused_before_its_body(start, fields, status, reason, body):
    answer = raw(start(), f'POST /predictions/net HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n'.encode() + body)
    assert answer.startswith(f'HTTP/1.1 {status} '.encode()) and answer.count(b'content-length: ') == 1
    assert reason in json.loads(answer.split(b'\r\n\r\n')[1])['error']


@pytest.mark.parametrize('line, status', [
    ('', 400), ('nonsense', 400), ('GET  / HTTP/1.1', 400), ('GET / HTTP/2.0', 400), ('get / HTTP/1.1', 405),
    ('HEAD / HTTP/1.1', 405)])
def test_other_protocols(start, line, status, caplog):
    assert raw(start(), f'{line}\r\nHost: x\r\n\r\n'.encode()).startswith(b'HTTP/1.1 %d ' % status)
    assert not caplog.records


@pytest.mark.parametrize('chunks, status', [
    (b'x\r\nbody\r\n', 400), (b'-4\r\nbody\r\n', 400), (b'4\r\nbodyandmore\r\n', 400), (b'9' * 2 ** 15, 431),
    (b'4\r\nbody\r\n0\r\nX: y\r\n\r\n', 418), (b'FFFFFFF\r\n' + bytes(MOST + 1), 413),
    (b'100000\r\n' + bytes(2 ** 20) + b'\r\n100001\r\n' + bytes(2 ** 20 + 1), 413)])
def test_damaged_endless_and_other_chunks(start, chunks, status):
    answer = raw(start(), b'POST /predictions/net HTTP/1.1\r\nHost: x\r\nConnection: close\r\n'
                 b'Transfer-Encoding: chunked\r\n\r\n' + chunks)
    assert answer.startswith(b'HTTP/1.1 %d ' % status) and answer.count(b'content-length: ') == 1


def test_a_body_that_is_asked_for(start):
    with socket.create_connection(start().address, timeout=SECONDS) as connection, connection.makefile('rb') as file:
        connection.sendall(b'POST /predictions/net HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n'
                           b'Content-Length: 4\r\n\r\n')
        assert file.readline() == b'HTTP/1.1 100 Continue\r\n' and file.readline() == b'\r\n'
        connection.sendall(b'body')
        assert file.readline().startswith(b'HTTP/1.1 418')


def test_connections_are_counted(start):
    front = start(max_connections=3)
    # Idle ones, and one with a part of a request.
    idle = [socket.create_connection(front.address, timeout=SECONDS) for _ in range(3)]
    idle[0].sendall(b'POST /predictions/net HTTP/1.1\r\n')
    until(lambda: b'too many connections' in (raw(front, b'') or b''))
    for connection in idle:
        connection.close()
    until(lambda: (raw(front, b'GET / HTTP/1.0\r\n\r\n') or b'').startswith(b'HTTP/1.1 418'))


def test_idle_and_slow_connections_are_closed(start):
    front = start(idle_seconds=PATIENCE, body_seconds=PATIENCE)
    assert raw(front, b'') == b''
    assert raw(front, b'POST /predictions/net HTTP/1.1\r\nHost') == b''
    answer = raw(front, b'POST /predictions/net HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nbody')
    assert answer.startswith(b'HTTP/1.1 408') and b'the body did not come within' in answer
    # After an answer too.
    assert raw(front, b'GET / HTTP/1.1\r\nHost: x\r\n\r\n').startswith(b'HTTP/1.1 418')


def test_large_bodies_that_are_waited_for_are_counted_and_leave_room_for_small_ones(start):
    """Room for one large body, with what is kept for small ones."""
    front = start(max_held=2 ** 26 + MOST, body_seconds=SECONDS)
    head = f'POST /predictions/net HTTP/1.0\r\nContent-Length: {MOST}\r\n\r\n'.encode()
    with socket.create_connection(front.address, timeout=SECONDS) as slow, slow.makefile('rb') as file:
        slow.sendall(head + bytes(MOST - 1))
        # It may take the second one before.
        until(lambda: b'too many uploads' in raw(front, head))
        chunked = raw(front, b'POST /predictions/net HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n')
        assert chunked.startswith(b'HTTP/1.1 503') and b'too many uploads' in chunked
        assert raw(front, b'POST / HTTP/1.0\r\nContent-Length: 1000\r\n\r\n' + bytes(1000)).startswith(b'HTTP/1.1 418')
        slow.sendall(b'\0')
        assert file.readline().startswith(b'HTTP/1.1 418')
    until(lambda: raw(front, head + bytes(MOST)).startswith(b'HTTP/1.1 418'))


@pytest.mark.parametrize('body, status', [(b'hang up', 502), (b'say nothing', 504)])
def test_a_server_that_does_not_answer(start, body, status):
    connection = HTTPConnection(*start(answer_seconds=PATIENCE).address, timeout=SECONDS)
    found, answer = ask(connection, body=body)
    assert found == status and 'see its logs' in answer['error']
    assert ask(connection)[0] == 418


def test_connections_to_the_server_are_used_again(start):
    """By another client, too; after one that the server has closed meanwhile, a new one."""
    front = start()
    for body, number in ((b'stay', 0), (b'stay', 1), (b'leave', 2), (b'stay', 0), (b'stay', 1), (b'hang up', None),
                         (b'stay', 0)):
        connection = HTTPConnection(*front.address, timeout=SECONDS)
        status, told = ask(connection, body=body)
        assert (status, told.get('number')) == ((418, number) if number is not None else (502, None))
        connection.close()


def test_an_answer_goes_to_its_own_client(start):
    """Also where the one before on the connection was given up."""
    front = start(answer_seconds=PATIENCE)

    def converse(client):
        connection = HTTPConnection(*front.address, timeout=SECONDS)
        for number in range(20):
            if number == 10 and client % 2:
                assert ask(connection, body=b'say nothing')[0] == 504
                connection = HTTPConnection(*front.address, timeout=SECONDS)
            status, told = ask(connection, f'/{client}/{number}', b'stay')
            assert status == 418 and told['line'] == f'POST /{client}/{number} HTTP/1.1'
        connection.close()
        return True

    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(converse, range(8)))


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
