"""The handler in a model archive: it runs in the worker processes of multi-model-server, without gluon_lprnet.

The archive carries this module and those that it imports, in the same folders below one of another name
(:mod:`gluon_lprnet.serving.archive`).

A request is one of

- an image, of any format that the package reads, as the body;
- a multipart form with the image as ``data``;
- JSON, ``{"data": "the image in base64"}``;
- JSON with several of these, ``{"instances": [{"data": ...}, ...]}``, as of KServe's protocol V1.

Forms and JSON may have one more field, as may the query of ``/models/NAME/invoke?FIELD=VALUE``: ``top_k``, how many
classes (classification), or ``boxes``, the landmarks' boxes as [[left, top, right, bottom], ...] in pixels (landmarks;
without it a detector looks for faces). Other fields are refused.

The answer is JSON: ``{"classes": [{"label", "index", "probability"}, ...]}``, the most probable first, or
``{"width", "height", "faces": [{"box", "points", ...}, ...]}``, the faces as ``align`` gives them, or
``{"error": reason}`` with a status of its own for each request of a batch. Instances are answered by
``{"predictions": [...]}``, with ``{"error": reason}`` in the place of one that cannot be answered; if none can, the
request is refused.
"""
import base64
import binascii
import contextlib
import json
import logging
import os
import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import cv2
import numpy as np

from ..data import images
from ..predict.aligner import Aligner
from ..predict.detectors import detect_turned, make_detector
from .forms import Network, load_network

MAX_FACES = 100
# In pixels, of a box's numbers: far beyond every image, and no sum or product of them overflows.
_MAX_COORDINATE = 1e6
_TOP_K = 5
# Images whose faces are kept for the network at once, which bounds memory.
_MAX_PREPARED = 8

MAX_INSTANCES = 32
# What the name of a file ends with, in the folder of an archive, that says in which form a network runs.
REPORT = '.form'

_FORM = ('send a picture as the body (Content-Type: image/jpeg), as the field "data" of a multipart form, or in base64 '
         'as {"data": "..."} (Content-Type: application/json)')
_JSON_FORM = 'send {"data": "..."} or {"instances": [{"data": "..."}, ...]}, with the picture in base64'
_JSON = 'application/json'
# In the place of a content type.
_BASE64 = 'base64'
# `model_name` is the server's own, in the query of its address /invocations.
_IMAGE_FIELDS = ('data', 'body', 'model_name')
_BINARY_TYPES = ('', 'application/octet-stream', 'binary/octet-stream')

# In bytes: of the sizes of the server's buffers, and what lies between two status numbers besides phrase and body (the
# status, five lengths, the next request's id and its content type).
_ALIGNMENT = 16
_BETWEEN = 4 + 5 * 4 + 36 + len(_JSON)

_service: Optional['_Service'] = None


def handle(data: Optional[list[dict[str, Any]]], context: Any) -> Optional[list[bytes]]:
    """Entry point of the server.

    Parameters
    ----------
    data : list of dict or None
        A batch: of each request its fields, bytes or str. None once, when the worker loads the model.
    context : mms.context.Context

    Returns
    -------
    list of bytes or None
        JSON, one per request; their statuses are set in ``context``.
    """
    global _service
    if _service is None:
        # Otherwise the server decodes JSON and text before this function sees it, and invalid ones kill the worker.
        os.environ['MMS_DECODE_INPUT_REQUEST'] = 'false'
        # One core per worker.
        cv2.setNumThreads(1)
        folder = Path(context.system_properties['model_dir'])
        _service = load(folder)
        logging.info('%s runs in %s', context.model_name, _service.report)
        # For who has started the server; another one may have put it where nothing can be written.
        with contextlib.suppress(OSError):
            (folder / f'{context.model_name}{REPORT}').write_text(_service.report)
    if data is None:
        return None
    # Not by set_response_content_type, which adds a header: see _aligned.
    context.get_response_content_type = lambda index: _JSON
    answers = []
    for index, (status, answer) in enumerate(_service.answer(data, [_types(context, index, fields)
                                                                   for index, fields in enumerate(data)])):
        phrase = '' if status == 200 else _PHRASES[status]
        context.set_response_status(status, phrase, index)
        answers.append(_aligned(json.dumps(answer, separators=(',', ':')).encode(), phrase))
    return answers


def _aligned(body, phrase):
    """An answer with spaces at its end, so that the server can read the batch that it is part of.

    The server (multi-model-server 1.1.11) begins to decode a batch's answers with whatever has arrived. It waits for
    more where that ends anywhere but in a status number or in the headers of an answer: there it fails, kills the
    worker, and answers the whole batch with 500. What has arrived is a multiple of 16 bytes until it is complete, since
    the server's buffers are. So there are no headers, and the status numbers begin 6 bytes after a multiple of 16: the
    first one, at byte 86, does by itself, and the others do if what lies between two of them is a multiple of 16.
    """
    return body + b' ' * (-(len(body) + len(phrase) + _BETWEEN) % _ALIGNMENT)


def _types(context, index, fields):
    """The content type of each field of a request, in lower case without parameters."""
    declared = ((name, context.get_request_header(index, name)) for name in fields)
    return {name: (entry or {}).get('content-type', '').split(';')[0].strip().lower()
            for name, entry in declared if entry is None or isinstance(entry, dict)}


def load(folder: Union[str, 'os.PathLike[str]']) -> '_Service':
    """The service of an unpacked archive: :class:`Classification` or :class:`Landmarks`.

    Raises
    ------
    InputError
        As of :func:`gluon_lprnet.serving.forms.load_network`.
    """
    folder = Path(folder)
    description = json.loads((folder / 'description.json').read_text())
    net = load_network(folder / 'network', description['input_size'], description['runs_in'])
    return _SERVICES[description['task']](net, description)


class BadRequest(Exception):
    """A request that cannot be answered, by its sender's fault.

    Parameters
    ----------
    reason : str
        What is wrong and what to do.
    status : int
        4xx.
    """

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


_PHRASES = {400: 'Bad Request', 413: 'Payload Too Large', 415: 'Unsupported Media Type', 500: 'Internal Server Error'}


class _Service:
    def __init__(self, net: Network, description: dict[str, Any]) -> None:
        self.report = net.report
        self._net = net
        self._description = description
        self._size = description['input_size']
        self._max_pixels = description.get('max_pixels', images.MAX_PIXELS)

    def answer(self, requests: list[dict[str, Any]],
               types: list[dict[str, str]]) -> list[tuple[int, dict[str, Any]]]:
        """Answer a batch; a fault of one request leaves the others alone.

        Parameters
        ----------
        requests : list of dict of str to bytes or str
        types : list of dict of str to str
            The content types of the fields.

        Returns
        -------
        list of (int, dict)
            Status and answer of each request.
        """
        unfolded = [self._attempt(_unfold, *request) for request in zip(requests, types)]
        instances = [instance for status, request in unfolded if status == 200 for instance in request.instances]
        answers = iter([answer for begin in range(0, len(instances), _MAX_PREPARED)
                        for answer in self._answer_each(instances[begin:begin + _MAX_PREPARED])])
        return [_fold(list(islice(answers, len(request.instances))), request.are_listed) if status == 200
                else (status, request) for status, request in unfolded]

    def _answer_each(self, instances):
        """Status and answer of each instance, which is its fields and their content types."""
        prepared = [self._attempt(self._checked, fields, types) for fields, types in instances]
        answers = iter(self._run_each([item for status, item in prepared if status == 200]))
        return [next(answers) if status == 200 else (status, item) for status, item in prepared]

    def _run_each(self, prepared):
        """Status and answer of each, together; one by one if that fails, so that the others are answered."""
        if len(prepared) > 1:
            status, answers = self._attempt(self.run, prepared)
            if status == 200:
                return [(200, answer) for answer in answers]
        return [self._attempt(lambda one: self.run([one])[0], each) for each in prepared]

    def _checked(self, fields, types):
        for name in fields:
            if name == self.other_field:
                raise BadRequest(f'{name} is not for this network, which {self.purpose}: leave it out')
            if name not in (*_IMAGE_FIELDS, self.field):
                raise BadRequest(f'there is no field {name[:40]!r}: this network takes data (the picture) and '
                                 f'{self.field}')
        return self.prepare(fields, types)

    def forward(self, data: np.ndarray) -> np.ndarray:
        """Outputs (N, outputs) for normalized inputs (N, 3, size, size), float32 ndarrays."""
        outputs = self._net(data)
        if not np.isfinite(outputs).all():
            raise ArithmeticError('the network returns NaN or infinite outputs')
        return outputs

    @staticmethod
    def _attempt(step, *arguments):
        try:
            return 200, step(*arguments)
        except BadRequest as error:
            return error.status, {'error': str(error)}
        except Exception:
            logging.exception('A request failed.')
            return 500, {'error': 'the model failed on this request; the server\'s log says why'}


class Classification(_Service):
    """Image to the most probable classes; the center crop is the one of gluon_lprnet's validation."""

    field, other_field, purpose = 'top_k', 'boxes', 'names classes'

    def __init__(self, net: Network, description: dict[str, Any]) -> None:
        super().__init__(net, description)
        self._names = description.get('class_names') or [str(index) for index in range(description['num_classes'])]

    def prepare(self, fields: Mapping[str, Any], types: Mapping[str, str]) -> tuple[np.ndarray, int]:
        top_k = _read_top_k(fields.get('top_k'), len(self._names))
        image = decode(find_image(fields, types), self._max_pixels, images.side_to_read(self._description))
        try:
            crop = images.center_crop(image, self._description)
        except images.ImageError as error:
            raise BadRequest(f'the image {error}') from error
        return images.normalize(crop, self._description), top_k

    def run(self, prepared: list[Any]) -> list[dict[str, Any]]:
        outputs = self.forward(np.stack([crop for crop, _ in prepared])).astype('float64')
        outputs = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return [{'classes': [{'label': self._names[index], 'index': index, 'probability': round(row[index], 7)}
                             for index in np.argsort(-row, kind='stable')[:top_k].tolist()]}
                for row, (_, top_k) in zip(outputs / outputs.sum(axis=1, keepdims=True), prepared)]


class Landmarks(_Service):
    """Image and optional boxes to the 68 points of each face, as :class:`gluon_lprnet.FaceAligner` finds them."""

    field, other_field, purpose = 'boxes', 'top_k', 'finds landmarks'

    def __init__(self, net: Network, description: dict[str, Any]) -> None:
        super().__init__(net, description)
        detect = make_detector()
        self._aligner = Aligner(self.forward, description, lambda image: detect_turned(detect, image)[:MAX_FACES])

    def prepare(self, fields: Mapping[str, Any], types: Mapping[str, str]) -> tuple[np.ndarray, Optional[list]]:
        boxes = _read_boxes(fields.get('boxes'))
        image = decode(find_image(fields, types), self._max_pixels)
        height, width = image.shape[:2]
        for left, top, right, bottom in boxes or ():
            if right < 0 or bottom < 0 or left > width - 1 or top > height - 1:
                raise BadRequest(f'boxes: [{left}, {top}, {right}, {bottom}] lies outside of the image, which is '
                                 f'{width}x{height} pixels')
        return cv2.cvtColor(image, cv2.COLOR_RGB2BGR), boxes

    def run(self, prepared: list[Any]) -> list[dict[str, Any]]:
        pictures, boxes = zip(*prepared)
        return [{'width': picture.shape[1], 'height': picture.shape[0], 'faces': faces}
                for picture, faces in zip(pictures, self._aligner.align(pictures, boxes))]


_SERVICES = {'classification': Classification, 'landmarks': Landmarks}


class _Unfolded(NamedTuple):
    """The instances of a request, fields and content types of each; whether they came as a list."""

    instances: list
    are_listed: bool


def _unfold(fields, types):
    """The instances of a request: one, unless its body is JSON with a list of them."""
    if types.get('body') != _JSON:
        return _Unfolded([(fields, types)], False)
    try:
        body = json.loads(fields['body'])
    except (ValueError, RecursionError) as error:
        raise BadRequest(f'the body is not JSON: {_JSON_FORM}') from error
    if not isinstance(body, dict):
        raise BadRequest(f'the body is not a JSON object: {_JSON_FORM}')
    listed = 'instances' in body
    if listed and len(body) > 1:
        raise BadRequest(f'there is no field {next(name for name in body if name != "instances")[:40]!r} beside '
                         '"instances": give it with each instance')
    instances = body['instances'] if listed else [body]
    if not isinstance(instances, list) or not all(isinstance(instance, dict) for instance in instances):
        raise BadRequest(f'"instances" is not a list of JSON objects: {_JSON_FORM}')
    if not 0 < len(instances) <= MAX_INSTANCES:
        raise BadRequest(f'"instances" has {len(instances)} entries: give 1 to {MAX_INSTANCES}')
    of_query = {name: value for name, value in fields.items() if name != 'body'}
    return _Unfolded([({**of_query, **instance}, {'data': _BASE64, 'body': _BASE64}) for instance in instances], listed)


def _fold(answers, are_listed):
    """Status and answer of a request, of those of its instances."""
    if not are_listed:
        return answers[0]
    if all(status != 200 for status, _ in answers):
        status, answer = answers[0]
        return status, {'error': f'none of the instances can be answered; the first one: {answer["error"]}'}
    return 200, {'predictions': [answer for _, answer in answers]}


def find_image(fields: Mapping[str, Any], types: Mapping[str, str]) -> bytes:
    """The image's bytes among the fields of a request.

    Raises
    ------
    BadRequest
        If there is none, or if its content type is another's.
    """
    name = next((name for name in ('data', 'body') if name in fields), None)
    if name is None:
        raise BadRequest(f'no image: {_FORM}')
    kind = types.get(name, '')
    if kind == _BASE64:
        return _from_base64(fields[name])
    if not (kind in _BINARY_TYPES or kind.startswith('image/')):
        raise BadRequest(f'the content type {kind} is not that of an image: {_FORM}', 415)
    if not fields[name]:
        raise BadRequest(f'the image is empty: {_FORM}')
    if isinstance(fields[name], str):
        raise BadRequest(f'the image is text: {_FORM}')
    return bytes(fields[name])


def _from_base64(text):
    try:
        # Some clients break it into lines.
        data = base64.b64decode(''.join(text.split()), validate=True)
    except (AttributeError, TypeError, ValueError) as error:
        raise BadRequest(f'data is not base64{f" ({error})" if isinstance(error, binascii.Error) else ""}: '
                         f'{_JSON_FORM}') from error
    if not data:
        raise BadRequest(f'the image is empty: {_JSON_FORM}')
    return data


def decode(data: bytes, max_pixels: int = images.MAX_PIXELS, least_side: Optional[int] = None) -> np.ndarray:
    """The pixels (height, width, 3) uint8, RGB, of a picture's bytes, as of ``read_image``; or BadRequest."""
    try:
        return images.read_image(data, max_pixels=max_pixels, least_side=least_side)
    except images.ImageError as error:
        raise BadRequest(f'the image {error}', 413 if isinstance(error, images.ImageTooLarge) else 400) from error


def _read_top_k(text, classes):
    """``top_k`` of a request, as text or as JSON has it, at most as many as there are classes by default."""
    if text is None:
        return min(_TOP_K, classes)
    if not isinstance(text, str):
        text = bytes(text).decode('utf-8', 'replace') if isinstance(text, (bytes, bytearray)) else json.dumps(text)
    if not re.fullmatch('[0-9]{1,9}', text.strip()) or not 1 <= int(text) <= classes:
        raise BadRequest(f'top_k is {text[:40]!r}: give a whole number from 1 to {classes}')
    return int(text)


def _read_boxes(text):
    """``boxes`` of a request, as text or as JSON has it: a list of lists of four numbers; None if it has none."""
    if text is None:
        return None
    form = 'give [[left, top, right, bottom], ...] in pixels, with left + 1 <= right and top + 1 <= bottom'
    try:
        boxes = json.loads(text) if isinstance(text, (bytes, bytearray, str)) else text
    except (ValueError, RecursionError) as error:
        raise BadRequest(f'boxes is not JSON: {form}') from error
    if not isinstance(boxes, list) or not all(isinstance(box, list) and len(box) == 4 for box in boxes):
        raise BadRequest(f'boxes is not a list of boxes: {form}')
    if len(boxes) > MAX_FACES:
        raise BadRequest(f'boxes has {len(boxes)} boxes: at most {MAX_FACES} are taken')
    for box in boxes:
        # Of type, since True is an int; the comparisons hold for no NaN and for whole numbers of any length.
        if not (all(type(number) in (int, float) and abs(number) <= _MAX_COORDINATE for number in box)
                and box[0] + 1 <= box[2] and box[1] + 1 <= box[3]):
            raise BadRequest(f'boxes: {json.dumps(box)[:80]} is not a box: {form}')
    return boxes
