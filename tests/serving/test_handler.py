"""The model archive, its handler in this process against the package's own functions, and what serve refuses."""
import base64
import io
import json
import shutil
import socket
import struct
import subprocess
import sys
import uuid
import zipfile
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from reference.artifacts import BOXES, assert_classes, assert_faces, expected_probabilities, faces_of_align
from reference.commands import command

from gluon_lprnet.data.images import AUTO, encode_jpeg
from gluon_lprnet.predict.classification import Classifier
from gluon_lprnet.serving import archive as archive_module
from gluon_lprnet.serving import handler, soak
from gluon_lprnet.serving import server as server_module
from gluon_lprnet.serving.archive import archive
from gluon_lprnet.serving.load_client import same_answer
from gluon_lprnet.utils.errors import InputError


@pytest.fixture(scope='module')
def folders(artifacts, tmp_path_factory):
    """The two archives, unpacked as the server does."""
    out = tmp_path_factory.mktemp('archives')
    for artifact in artifacts:
        path = archive(artifact, out)
        zipfile.ZipFile(path).extractall(out / path.stem)
    return [out / artifact.name[:-len('-symbol.json')] for artifact in artifacts]


@pytest.fixture(scope='module')
def services(folders):
    return [handler.load(folder) for folder in folders]


def ask(service, data, **fields):
    """Status and answer to one request."""
    (status, answer), = service.answer([{'data': data, **fields}], [{'data': 'image/jpeg'}])
    json.dumps(answer, allow_nan=False)
    return status, answer


def ask_json(service, body, **query):
    """Status and answer to one request with a JSON body, given as bytes or as what JSON encodes."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    (status, answer), = service.answer([{'body': bytearray(body), **query}], [{'body': 'application/json'}])
    json.dumps(answer, allow_nan=False)
    return status, answer


def in_base64(data):
    return base64.b64encode(data).decode()



def rotated(jpeg):
    """The photo as a camera on its side writes it."""
    exif = Image.Exif()
    exif[0x112] = 6
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).save(buffer, 'JPEG', exif=exif)
    return buffer.getvalue()


def as_png(jpeg, mode):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).convert(mode).save(buffer, 'PNG')
    return buffer.getvalue()


def progressive(jpeg):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize((300, 90)).save(buffer, 'JPEG', progressive=True, restart_marker_rows=1)
    return buffer.getvalue()


@pytest.mark.parametrize('change', [bytes, rotated, progressive, lambda jpeg: as_png(jpeg, 'RGBA'),
                                    lambda jpeg: as_png(jpeg, 'L'), lambda jpeg: as_png(jpeg, 'P')])
def test_classes_are_those_of_the_package(artifacts, services, photos, change, tmp_path):
    certain = []
    for photo in photos:
        data = change(photo)
        (tmp_path / 'photo').write_bytes(data)
        status, answer = ask(services[0], data)
        assert status == 200 and len(answer['classes']) == 3
        assert_classes(answer, expected_probabilities(artifacts[0], tmp_path / 'photo'))
        assert ask(services[0], data, top_k=b'2')[1]['classes'] == answer['classes'][:2]
        certain.append(answer['classes'][0]['probability'])
    # The network does tell pictures apart.
    assert max(certain) - min(certain) > 0.01


def test_a_large_jpeg_is_read_as_the_package_reads_it(artifacts, services, photos):
    averaged = {'inter_method': AUTO}
    service = handler.Classification(services[0]._net, {**services[0]._description, **averaged})
    classifier = Classifier(artifacts[0], description=averaged)
    for photo in photos:
        large = encode_jpeg(cv2.resize(cv2.imdecode(np.frombuffer(photo, 'uint8'), 1), (1800, 1500)))
        status, answer = ask(service, large)
        expected = {each.label: each.probability for each in classifier.predict(large)[0]}
        assert status == 200
        assert {each['label']: each['probability'] for each in answer['classes']} == pytest.approx(expected, abs=1e-5)


def test_landmarks_in_given_boxes_are_those_of_the_package(artifacts, services, photos):
    for photo in photos:
        # One at the network's scale, one that is averaged first.
        for data in (photo, cv2.imencode('.png', cv2.resize(cv2.imdecode(np.frombuffer(photo, 'uint8'), 1), None,
                                                            fx=3.3, fy=3.3))[1].tobytes()):
            picture = cv2.imdecode(np.frombuffer(data, 'uint8'), 1)
            boxes = np.round(np.array(BOXES) * picture.shape[0] / 256, 2).tolist()
            status, answer = ask(services[1], data, boxes=json.dumps(boxes).encode())
            assert status == 200 and (answer['height'], answer['width']) == picture.shape[:2]
            assert [face['box'] for face in answer['faces']] == boxes
            assert_faces(answer, faces_of_align(artifacts[1], picture, boxes))
            assert ask(services[1], data, boxes='[]')[1]['faces'] == []


def test_faces_found_are_those_of_align(artifacts, services, photos):
    found = 0
    for photo in photos:
        picture = cv2.imdecode(np.frombuffer(photo, 'uint8'), 1)
        # Also a face on its side, and two in a picture that the detector sees in parts.
        for shown in (picture, cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE),
                      cv2.resize(np.hstack([picture, picture]), None, fx=2.3, fy=2.3)):
            data = cv2.imencode('.png', shown)[1].tobytes()
            status, answer = ask(services[1], data)
            expected = faces_of_align(artifacts[1], shown)
            assert status == 200
            assert_faces(answer, expected)
            if expected and shown is picture:
                again = ask(services[1], data, boxes=json.dumps([face['box'] for face in answer['faces']]))[1]['faces']
                for face, same in zip(again, answer['faces']):
                    np.testing.assert_allclose(face['points'], same['points'], rtol=0, atol=0.021)
            found += len(expected)
    assert found >= 8


def test_a_batch_of_good_and_bad(services, photos):
    for service in services:
        requests = [{'body': photos[number % len(photos)]} for number in range(8)]
        requests[1] = {'body': photos[0][:500]}
        requests[4] = {'body': b''}
        requests[7] = {}
        answers = service.answer(requests, [{}] * 8)
        assert [status for status, _ in answers] == [200, 400, 200, 200, 400, 200, 200, 400]
        for (status, answer), request in zip(answers, requests):
            if status == 200:
                single = service.answer([request], [{}])[0][1]
                assert same_answer(answer, single)


def header_of(width, height):
    """A PNG of one pixel whose header says another size."""
    png = cv2.imencode('.png', np.zeros((1, 1), 'uint8'))[1].tobytes()
    header = b'IHDR' + width.to_bytes(4, 'big') + height.to_bytes(4, 'big') + png[24:29]
    return png[:12] + header + zlib.crc32(header).to_bytes(4, 'big') + png[33:]


JPEG = encode_jpeg(np.full((40, 50, 3), 99, 'uint8'))
HUGE = JPEG.replace(b'\x00\x28\x00\x32', b'\xff\xff\xff\xff')
PNG = cv2.imencode('.png', np.full((40, 50, 3), 99, 'uint8'))[1].tobytes()


@pytest.mark.parametrize('data, status, reason', [
    (b'no image', 400, 'not an image of a known format'),
    (b'GIF89a' + bytes(30), 400, 'not an image of a known format'),
    (b'', 400, 'empty'),
    ('text', 400, 'text'),
    (JPEG[:-2], 400, 'cut off'),
    (JPEG[:len(JPEG) // 2], 400, 'cut off'),
    (JPEG[:2], 400, 'not an image'),
    (b'\xff\xd8\xff\xd9', 400, 'not an image'),
    (JPEG[:20] + bytes(40) + JPEG[60:], 400, 'damaged'),
    (PNG[:-4], 400, 'cut off'),
    (PNG[:50], 400, 'cut off'),
    (PNG[:20], 400, 'cut off'),
    (PNG[:45] + b'\0' + PNG[46:], 400, 'damaged'),
    (header_of(20_000, 20_000), 413, 'more than 89,478,485 pixels'),
    (header_of(10_000, 10_000), 413, '10000x10000'),
    (header_of(40_000, 1), 413, '40000x1'),
    (header_of(0, 5), 400, 'not an image'),
    (HUGE, 413, 'more than 89,478,485 pixels'),
    # Headers that decoders do not believe, before and after the one that they do.
    (HUGE[:-2] + JPEG[2:], 413, 'more than 89,478,485 pixels'),
    (JPEG[:2] + b'\xff\x01\x40\x00' + HUGE[2:] + bytes(2 ** 14) + JPEG[2:], 400, 'not an image'),
])
def test_bad_images(services, data, status, reason):
    for service in services:
        found, answer = ask(service, data)
        assert found == status and reason in answer['error']


def test_bad_fields(services, photos):
    classification, landmarks = services
    for top_k in (b'0', b'4', b'x', b'-1', b'1.5', b'', b'\xff', b'9' * 5000):
        status, answer = ask(classification, photos[0], top_k=top_k)
        assert status == 400 and 'from 1 to 3' in answer['error']
    for boxes, reason in ((b'{', 'not JSON'), (b'[' * 100_000, 'not JSON'), (b'\xff', 'not JSON'),
                          (b'3', 'not a list'), (b'[[1, 2, 3]]', 'not a list'), (b'[[1, 2, 3, "4"]]', 'not a box'),
                          (b'[[1, 2, NaN, 4]]', 'not a box'), (b'[[1, 2, 1e999, 4]]', 'not a box'),
                          (b'[[1, 2, 1' + b'0' * 400 + b', 4]]', 'not a box'), (b'[[9, 2, 3, 4]]', 'not a box'),
                          (b'[[true, 2, 30, 40]]', 'not a box'), (b'[[9, 2, 9.5, 40]]', 'not a box'),
                          (b'[[5000, 2, 6000, 40]]', 'outside'),
                          (json.dumps([[0, 0, 9, 9]] * 101).encode(), 'at most 100')):
        status, answer = ask(landmarks, photos[0], boxes=boxes)
        assert status == 400 and reason in answer['error'], boxes[:30]
    for service, name, reason in (
            (classification, 'boxes', 'which names classes'), (landmarks, 'top_k', 'which finds landmarks'),
            (classification, 'image', "no field 'image'"), (landmarks, 'topk', "no field 'topk'")):
        status, answer = ask(service, photos[0], **{name: b'[[0, 0, 9, 9]]'})
        assert status == 400 and reason in answer['error']
    # The server's own, at its address /invocations.
    assert ask(classification, photos[0], model_name=b'x')[0] == 200
    # Far larger than the image, and as small as allowed.
    assert ask(landmarks, photos[0], boxes=b'[[-1e6, -1e6, 1e6, 1e6], [5, 5, 6, 6]]')[0] == 200


def test_too_long_and_narrow(services):
    """Its shorter side enlarged to the network's, its longer one would take gigabytes."""
    data = cv2.imencode('.png', np.zeros((1, 30_000, 3), 'uint8'))[1].tobytes()
    status, answer = ask(services[0], data)
    assert status == 400 and 'too long and narrow' in answer['error']
    assert ask(services[1], data, boxes=b'[[0, 0, 20, 20]]')[0] == 200


def test_json_has_the_answers_of_the_pictures_in_it(services, photos):
    classification, landmarks = services
    for photo in photos:
        for service, field, value in ((classification, 'top_k', 2), (landmarks, 'boxes', BOXES)):
            expected = ask(service, photo)
            assert ask_json(service, {'data': in_base64(photo)}) == expected
            # In lines, as some clients encode it.
            assert ask_json(service, {'data': base64.encodebytes(photo).decode()}) == expected
            predictions = {'predictions': [expected[1]]}
            assert ask_json(service, {'instances': [{'data': in_base64(photo)}]}) == (200, predictions)
            with_field = ask(service, photo, **{field: json.dumps(value).encode()})
            assert with_field[0] == 200 and with_field != expected
            assert ask_json(service, {'data': in_base64(photo), field: value}) == with_field
            assert ask_json(service, {'data': in_base64(photo)}, **{field: json.dumps(value).encode()}) == with_field


def test_several_pictures_in_json(services, photos):
    pictures = [photos[number % len(photos)] for number in range(11)]
    for service in services:
        status, answer = ask_json(service, {'instances': [{'data': in_base64(picture)} for picture in pictures]})
        assert status == 200 and len(answer['predictions']) == 11
        for found, picture in zip(answer['predictions'], pictures):
            assert same_answer(found, ask(service, picture)[1])
        status, answer = ask_json(service, {'instances': [{'data': in_base64(pictures[0])}, {'data': '!'},
                                                          {'data': in_base64(pictures[1])}, {'data': 'AAAA', 'x': 1}]})
        first, bad, second, other = answer['predictions']
        assert status == 200 and same_answer([first, second], [ask(service, picture)[1] for picture in pictures[:2]])
        assert list(bad) == list(other) == ['error'] and 'not base64' in bad['error'] and "'x'" in other['error']


@pytest.mark.parametrize('body, reason', [
    (b'', 'not JSON'), (b'{not JSON', 'not JSON'), (b'[' * 100_000, 'not JSON'), (b'\xff\xfe', 'not JSON'),
    (b'3', 'not a JSON object'), ([], 'not a JSON object'), ({}, 'no image'), ({'data': 3}, 'not base64'),
    ({'data': None}, 'not base64'), ({'data': 'a'}, 'not base64 ('), ({'data': 'AA-_'}, 'not base64'),
    ({'data': '\u00e9'}, 'not base64'), ({'data': ''}, 'empty'), ({'data': 'AAAA'}, 'not an image'),
    ({'data': in_base64(b'x'), 'top_k': True}, 'top_k'), ({'data': in_base64(b'x'), 'top_k': 1.5}, 'top_k'),
    ({'data': 'AAAA', 'other': 1}, "no field 'other'"), ({'instances': {}}, 'not a list'),
    ({'instances': []}, '0 entries'), ({'instances': [3]}, 'not a list of JSON objects'),
    ({'instances': [{}] * 33}, '33 entries: give 1 to 32'),
    ({'instances': [{}], 'top_k': 1}, "no field 'top_k' beside"),
    ({'instances': [{'data': 'AAAA'}, {}]}, 'the first one: the image is not an image'),
])
def test_bad_json(services, body, reason):
    status, answer = ask_json(services[0], body)
    assert status == 400 and reason in answer['error']


def test_content_types(services, photos):
    for kind, status in (('', 200), ('image/png', 200), ('application/octet-stream', 200), ('application/xml', 415),
                         ('text/plain', 415), ('video/mp4', 415)):
        (found, answer), = services[0].answer([{'body': photos[0]}], [{'body': kind}])
        assert found == status and (status == 200 or kind in answer['error'])


def test_a_network_that_fails_says_so_for_its_request_only(services, photos, monkeypatch):
    net, (bad, _) = services[0]._net, services[0].prepare({'body': photos[1]}, {})

    def fail(data):
        outputs = net(data)
        outputs[np.argmin(abs(data - bad).sum(axis=(1, 2, 3)))] = np.nan
        return outputs if len(data) > 1 or np.allclose(data[0], bad) else net(data)
    monkeypatch.setattr(services[0], '_net', fail)
    answers = services[0].answer([{'body': photo} for photo in photos[:2]], [{}, {}])
    assert [status for status, _ in answers] == [200, 500] and 'error' in answers[1][1]


class Context:
    """As much of the server's context as the handler uses."""

    def __init__(self, folder, headers=()):
        self.system_properties = {'model_dir': str(folder)}
        self.model_name = 'network'
        self._headers = headers
        self.statuses = {}

    def get_request_header(self, index, key):
        return self._headers[index].get(key)

    def set_response_status(self, code, phrase, idx):
        self.statuses[idx] = code, phrase


def test_entry_point(folders, photos, monkeypatch):
    monkeypatch.setattr(handler, '_service', None)
    monkeypatch.setenv('MMS_DECODE_INPUT_REQUEST', 'true')
    context = Context(folders[0], [{'body': {'content-type': 'Image/JPEG; q=1'}}, {'body': {'content-type': 'a/b'}},
                                   {'body': None, 'Host': 'x'}])
    assert handler.handle(None, context) is None
    answers = handler.handle([{'body': photos[0]}, {'body': photos[0]}, {'body': photos[1]}], context)
    assert context.statuses == {0: (200, ''), 1: (415, 'Unsupported Media Type'), 2: (200, '')}
    assert [context.get_response_content_type(index) for index in range(3)] == ['application/json'] * 3
    assert [list(json.loads(answer)) for answer in answers] == [['classes'], ['error'], ['classes']]


def decoded_by_the_server(received):
    """What ModelResponseDecoder of multi-model-server 1.1.11 makes of the bytes that have arrived.

    True where the message is complete, False where it waits for more, ValueError where it fails. Transcribed from its
    byte code.
    """
    at = 0

    def read(count):
        nonlocal at
        if not 0 <= count <= len(received) - at:
            raise ValueError('out of bounds')
        at += count
        return received[at - count:at]

    def read_length(most):
        if len(received) - at < 4:
            return None
        length, = struct.unpack('!i', read(4))
        if length > most:
            raise ValueError('message size exceeds limit')
        return None if length > len(received) - at else length

    def skip():
        length = read_length(2 ** 24)
        return length is not None and (length == -1 or read(length) is not None)

    if len(received) < 9:
        return False
    read(4)
    if not skip():
        return False
    while True:
        length = read_length(2 ** 24)
        if length in (None, -1):
            return length == -1
        read(length)                                # the request's id
        if not skip():                              # content type
            return False
        read(4)                                     # status
        if not skip():                              # reason
            return False
        headers = read_length(2 ** 24)
        if headers is None:
            return False
        for _ in range(2 * headers):
            length = read_length(len(received) - at)
            read(-3 if length is None else length)
        if not skip():                              # body
            return False


def test_no_read_of_the_server_ends_where_it_fails(folders, photos, monkeypatch):
    """Its buffers, and so its reads, are multiples of 16 bytes."""
    service = pytest.importorskip('mms.service')
    monkeypatch.setattr(handler, '_service', None)
    monkeypatch.setenv('MMS_DECODE_INPUT_REQUEST', 'false')
    for folder in folders:
        monkeypatch.setattr(handler, '_service', None)
        server = service.Service('net', str(folder), {}, handler.handle, None, 8)
        handler.handle(None, server.context)
        for length in range(20):
            requests = [{'requestId': str(uuid.uuid4()).encode(), 'parameters': [
                {'name': 'data', 'contentType': 'image/jpeg', 'value': bytearray(data)},
                *([{'name': 'x' * length, 'contentType': '', 'value': b''}] if length else ())]}
                for data in (photos[0], b'not an image', photos[1], b'')]
            message = bytes(server.predict(requests))
            statuses = [entry.get_response_status_code() for entry in server.context._request_processor]
            assert statuses == ([400] * 4 if length else [200, 400, 200, 400])
            assert decoded_by_the_server(message)
            assert not any(decoded_by_the_server(message[:end]) for end in range(0, len(message), 16))
            # The decoder does have the fault.
            with pytest.raises(ValueError, match='out of bounds'):
                [decoded_by_the_server(message[:end]) for end in range(len(message))]


def test_the_archive_needs_nothing_of_this_package(folders, tmp_path, photos):
    (tmp_path / 'photo.jpg').write_bytes(photos[0])
    script = '''
import sys
sys.path.insert(0, sys.argv[1])
import handler
from archived.serving.handler import load
service = load(sys.argv[1])
assert service.answer([{'body': open(sys.argv[2], 'rb').read()}], [{}])[0][0] == 200
assert 'gluon_lprnet' not in sys.modules
'''
    for folder in folders:
        subprocess.run([sys.executable, '-c', script, str(folder), str(tmp_path / 'photo.jpg')], check=True,
                       cwd=tmp_path, stderr=subprocess.DEVNULL)


def test_archive_command(artifacts, tmp_path, capsys):
    assert not command(archive_module, 'archive', *artifacts, '--out', tmp_path)
    output = capsys.readouterr().out
    for artifact in artifacts:
        path = tmp_path / f'{artifact.name[:-len("-symbol.json")]}.mar'
        assert f'{path} (' in output
        manifest = json.loads(zipfile.ZipFile(path).read('MAR-INF/MANIFEST.json'))
        assert manifest['model'] == {'modelName': path.stem, 'handler': 'handler.py:handle', 'modelVersion': '1.0'}
    assert not list(tmp_path.glob('.*'))


def test_networks_of_the_package_and_runs_are_archived_in_their_deployed_form(artifacts, services, photos, tmp_path):
    run = artifacts[0].parents[1] / 'run'
    for network, name in (('lprnet_mobilenet_x0.25.faces', 'lprnet_mobilenet_x0.25.faces'),
                          (run, 'lprnet_mobilenet_x0.25')):
        path = archive(network, tmp_path)
        assert path == tmp_path / f'{name}.mar'
        mar = zipfile.ZipFile(path)
        assert json.loads(mar.read('description.json'))['form'] == 'deployed'
        assert json.loads(mar.read('MAR-INF/MANIFEST.json'))['model']['modelName'] == name
        mar.extractall(tmp_path / name)
    for photo in photos:
        # The run was exported as the first of the artifacts.
        assert same_answer(ask(handler.load(tmp_path / name), photo)[1], ask(services[0], photo)[1])
        status, answer = ask(handler.load(tmp_path / 'lprnet_mobilenet_x0.25.faces'), photo)
        picture = cv2.imdecode(np.frombuffer(photo, 'uint8'), 1)
        assert status == 200
        assert_faces(answer, faces_of_align('lprnet_mobilenet_x0.25.faces', picture))


def test_what_flags_of_serve_mean(monkeypatch):
    """Networks by position, by --network, or those of the package, which come with the page."""
    served = []

    class Recorder:
        models, page_url, workers, run_dir = (), None, 1, Path('run')

        def __init__(self, networks, *arguments):
            served.append((networks, arguments[-4]))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def wait(self, *_):
            raise KeyboardInterrupt

    monkeypatch.setattr(server_module, 'Server', Recorder)
    for argv in ([], ['a', 'b'], ['--network', 'a', 'b'], ['a', '--network', 'b', '--page-port', '1']):
        assert command(server_module, 'serve', *argv) == 0
    assert served == [(['compressed_mobilenet_x0.75.imagenet', 'lprnet_mobilenet_x0.5.faces'], 8081),
                      (['a', 'b'], None), (['a', 'b'], None), (['a', 'b'], 1)]


def test_what_cannot_be_archived_is_named(artifacts, tmp_path):
    def copied(name, **changes):
        for file in artifacts[0].parent.iterdir():
            target = tmp_path / file.name.replace('lprnet_mobilenet_x0.25-deployed', name)
            shutil.copyfile(file, target)
        description = {**json.loads((tmp_path / f'{name}.json').read_text()), **changes}
        (tmp_path / f'{name}.json').write_text(json.dumps({key: value for key, value in description.items()
                                                           if value is not None}))
        return tmp_path / f'{name}-symbol.json'
    (tmp_path / 'x').write_text('')
    for path, message in ((tmp_path / 'x', 'give the folder of a run'),
                          (tmp_path / 'x.onnx', 'does not take ONNX files'),
                          (tmp_path / 'no-symbol.json', 'not exist'),
                          (copied('a b'), 'letters, digits'), (copied('untold', task=None), 'a task: add "task"'),
                          (copied('other', task='other'), '"task" is not'),
                          (copied('meanless', rgb_mean=None, crop_ratio=None), 'lacks crop_ratio, rgb_mean')):
        with pytest.raises(InputError, match=message):
            archive(path, tmp_path / 'out')
    (tmp_path / 'file').write_text('')
    with pytest.raises(InputError, match='is not a folder'):
        archive(artifacts[0], tmp_path / 'file')


def test_serve_without_java_or_package_says_how_to_install_them(artifacts, tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    monkeypatch.delenv('JAVA_HOME', raising=False)
    with pytest.raises(InputError, match='needs Java.*apt-get install default-jre-headless'):
        command(server_module, 'serve', artifacts[0], '--run-dir', tmp_path / 'run')
    monkeypatch.setenv('JAVA_HOME', str(tmp_path))
    with pytest.raises(InputError, match='JAVA_HOME has no bin/java'):
        command(server_module, 'serve', artifacts[0], '--run-dir', tmp_path / 'run')
    monkeypatch.setattr(server_module, 'find_java', lambda: 'java')
    monkeypatch.setattr(server_module.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match='pip install multi-model-server'):
        command(server_module, 'serve', artifacts[0], '--run-dir', tmp_path / 'run')


def test_what_cannot_be_served_is_named_before_java_starts(artifacts, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, 'find_java', lambda: 'java')
    monkeypatch.setattr(server_module.importlib.util, 'find_spec', lambda name: True)
    (tmp_path / 'bad.mar').write_text('no zip')
    (tmp_path / 'file').write_text('')
    mar = archive(artifacts[1], tmp_path)
    with socket.socket() as taken:
        port, free = server_module.free_port(), server_module.free_port()
        taken.bind(('127.0.0.1', port))
        taken.listen()
        for argv, message in (
                ([tmp_path / 'bad.mar'], 'bad.mar is not a model archive'),
                ([tmp_path / 'none.mar'], 'none.mar does not exist'),
                ([mar, mar], 'another network with the name'), ([mar, artifacts[1]], 'another network with the name'),
                ([mar, '--port', port], f'--port {port} cannot be listened on'),
                ([mar, '--port', free, '--management-port', free], 'are the same'),
                ([mar, '--management-port', 40_000], '--management-port is 40000: .* up to 32767'),
                ([mar, '--host', '8.8.8.8'], '--host 8.8.8.8 with'),
                ([mar, '--management-port', free, '--management-host', '8.8.8.8'], '--management-host 8.8.8.8 with'),
                ([mar, '--run-dir', tmp_path / 'file'], 'file is not a folder')):
            with pytest.raises(InputError, match=message):
                command(server_module, 'serve', '--run-dir', tmp_path / 'run', '--port', server_module.free_port(),
                        *argv)
    with pytest.raises(InputError, match='none.jpg cannot be read'):
        command(soak, 'soak', mar, '--images', tmp_path / 'none.jpg')
