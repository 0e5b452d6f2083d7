"""A client that sends many concurrent requests and knows the right answers."""
import json
import threading
import time
import zlib
from collections.abc import Iterable, Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any, NamedTuple
from urllib.parse import quote

import cv2
import numpy as np

from .server import Server, reachable_pair


class Request(NamedTuple):
    """A request, and the status that is expected."""

    name: str
    body: bytes
    content_type: str
    status: int = 200


class Answer(NamedTuple):
    """A response: status (0 if the connection broke), body, and how long it took."""

    request: Request
    status: int
    body: bytes
    seconds: float

    def is_right(self, references: Mapping[str, Any]) -> bool:
        """Whether the status and, for a valid request, the numbers are as expected."""
        if self.status != self.request.status:
            return False
        return self.status != 200 or same_answer(json.loads(self.body), references[self.request.name])


def form(image: bytes, **fields: object) -> tuple[bytes, str]:
    """A multipart form: its body and its content type."""
    boundary = 'part-of-the-form'
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="data"; filename="image"\r\n'
             'Content-Type: application/octet-stream\r\n\r\n'.encode() + image + b'\r\n']
    parts += [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
              for name, value in fields.items()]
    return b''.join(parts) + f'--{boundary}--\r\n'.encode(), f'multipart/form-data; boundary={boundary}'


def bad_requests(image: bytes) -> list[Request]:
    """Each kind of invalid request, made from a valid JPEG, with reasons of different lengths in the answers."""
    bomb = cv2.imencode('.png', np.zeros((1, 1), 'uint8'))[1].tobytes()
    # The header of 20,000 x 20,000 pixels; what follows is not reached.
    header = b'IHDR' + (20_000).to_bytes(4, 'big') * 2 + bomb[24:29]
    bomb = bomb[:12] + header + zlib.crc32(header).to_bytes(4, 'big') + bomb[33:]
    return [Request('not an image', b'not an image', 'image/jpeg', 400),
            Request('truncated JPEG', image[:len(image) // 2], 'image/jpeg', 400),
            Request('20,000 x 20,000 pixels', bomb, 'image/png', 413),
            Request('empty body', b'', 'image/jpeg', 400),
            Request('JSON that is not', b'{not JSON', 'application/json', 400),
            Request('JSON without base64', b'{"data": "!"}', 'application/json', 400),
            *(Request(f'no such field, {length} letters', *form(image, **{'x' * length: 1}), 400)
              for length in range(1, 17, 3)),
            Request('text that is not', b'\xff\xfe', 'text/plain', 415),
            Request('form of no picture', b'top_k=3', 'application/x-www-form-urlencoded', 415)]


def send(server: Server, model: str, requests: Iterable[Request], clients: int = 1,
         timeout: float = 60) -> list[Answer]:
    """Send requests from concurrent clients, each with a persistent connection; ``timeout`` is in seconds.

    Returns
    -------
    list of Answer
        In the requests' order.
    """
    requests = list(requests)
    answers: list[Any] = [None] * len(requests)
    path = f'/predictions/{quote(model)}'
    pending = iter(range(len(requests)))

    def client():
        connection = HTTPConnection(*reachable_pair(server.address), timeout=timeout)
        # Of a range, next() is atomic.
        for number in pending:
            request = requests[number]
            start = time.perf_counter()
            try:
                connection.request('POST', path, request.body, {'Content-Type': request.content_type})
                response = connection.getresponse()
                status, body = response.status, response.read()
            except (OSError, HTTPException):
                status, body = 0, b''
                connection.close()
            answers[number] = Answer(request, status, body, time.perf_counter() - start)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def same_answer(found: Any, expected: Any) -> bool:
    """Equality of JSON, with numbers equal to 0.01.

    A batch adds in a different order than a single image, and landmarks are rounded to a hundredth.
    """
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same_answer(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same_answer, found, expected))
    return abs(found - expected) <= 0.0101 if isinstance(expected, float) else found == expected
