"""The real multi-model-server with small networks: answers, bad requests, killed workers, and its end."""
import base64
import csv
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import cv2
import numpy as np
import pytest
from reference.artifacts import BOXES, assert_classes, assert_faces, expected_probabilities, faces_of_align
from reference.commands import command
from reference.pictures import every_kind

import gluon_lprnet
from gluon_lprnet.__main__ import main
from gluon_lprnet.data.recordio import read_records
from gluon_lprnet.serving import front, soak
from gluon_lprnet.serving import server as server_module
from gluon_lprnet.serving.archive import archive
from gluon_lprnet.serving.load_client import Request, bad_requests, form, same_answer, send
from gluon_lprnet.serving.server import Server
from gluon_lprnet.utils.errors import InputError
from gluon_lprnet.utils.files import lock

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))

if importlib.util.find_spec('mms') is None:
    pytest.skip('multi-model-server is not installed (pip install multi-model-server==1.1.11)', allow_module_level=True)
try:
    server_module.find_java()
except InputError as error:
    pytest.skip(str(error), allow_module_level=True)

psutil = pytest.importorskip('psutil')

CLASSIFICATION, LANDMARKS = 'lprnet_mobilenet_x0.25-deployed', 'lprnet_mobilenet_x0.25'
# Waits for the rest of its batch for so many seconds that a client gives up before.
BATCHED, DELAY = 'batched', 600


@pytest.fixture(scope='module')
def server(artifacts, tmp_path_factory):
    with Server(artifacts, tmp_path_factory.mktemp('run'), port=server_module.free_port(), workers=1) as server:
        assert server.models == [CLASSIFICATION, LANDMARKS]
        # The same network once more, in batches.
        answer, status = server._manage('POST', '/models?' + urlencode(dict(
            url=f'{CLASSIFICATION}.mar', model_name=BATCHED, batch_size=8, max_batch_delay=1000 * DELAY,
            initial_workers=1, synchronous='true')))
        assert status == 200, answer
        yield server


def post(server, model, body, content_type='image/jpeg'):
    """Status and answer to one request."""
    answer, = send(server, model, [Request('', body, content_type)])
    return answer.status, json.loads(answer.body)


def test_networks_run_in_the_fastest_form(server):
    for model in server.models:
        assert re.match(r"(the operator library|MXNet's fusion|MXNet): \d+\.\d ms a picture, ", server.report_of(model))


def test_classes_are_the_networks(server, artifacts, photos, tmp_path):
    for photo in photos:
        (tmp_path / 'photo.jpg').write_bytes(photo)
        expected = expected_probabilities(artifacts[0], tmp_path / 'photo.jpg')
        png = cv2.imencode('.png', cv2.imread(str(tmp_path / 'photo.jpg')))[1].tobytes()
        for body, content_type in ((photo, 'image/jpeg'), (png, 'image/png'), form(photo)):
            status, answer = post(server, CLASSIFICATION, body, content_type)
            assert status == 200 and len(answer['classes']) == 3
            assert_classes(answer, expected)
        status, answer = post(server, CLASSIFICATION, *form(photo, top_k=1))
        assert status == 200 and len(answer['classes']) == 1
        assert_classes(answer, expected)


def test_every_kind_of_picture_has_the_answer_of_predict(server, artifacts, tmp_path):
    different = []
    for name, (data, extension) in every_kind().items():
        path = tmp_path / f'picture.{extension}'
        path.write_bytes(data)
        expected = expected_probabilities(artifacts[0], path)
        status, answer = post(server, CLASSIFICATION, data, 'application/octet-stream')
        assert status == 200, (name, answer)
        found = {entry['index']: entry['probability'] for entry in answer['classes']}
        np.testing.assert_allclose([found[index] for index in range(3)], expected, rtol=0, atol=1e-5, err_msg=name)
        different.append(expected)
    # The network does tell pictures apart.
    assert np.ptp(different, axis=0).max() > 0.05


def test_landmarks_are_the_networks(server, artifacts, photos):
    found = 0
    for photo in photos:
        picture = cv2.imdecode(np.frombuffer(photo, 'uint8'), 1)
        for (body, content_type), boxes in ((form(photo, boxes=json.dumps(BOXES)), BOXES),
                                            ((photo, 'image/jpeg'), None)):
            status, answer = post(server, LANDMARKS, body, content_type)
            expected = faces_of_align(artifacts[1], picture, boxes)
            assert status == 200
            assert_faces(answer, expected)
        found += len(expected)
    assert found


def test_a_batch_has_single_answers_and_a_status_for_each(server, artifacts, photos, tmp_path):
    bad = {1: b'not an image', 4: photos[0][:1000], 6: b''}
    requests = [Request(str(number), bad.get(number, photos[number % len(photos)]), 'image/jpeg')
                for number in range(8)]
    # They are one batch: a smaller one would have no answer.
    answers = send(server, BATCHED, requests, clients=8)
    assert [answer.status for answer in answers] == [400 if number in bad else 200 for number in range(8)]
    for answer in answers:
        if answer.status == 200:
            (tmp_path / 'photo.jpg').write_bytes(answer.request.body)
            assert_classes(json.loads(answer.body), expected_probabilities(artifacts[0], tmp_path / 'photo.jpg'))
        else:
            assert json.loads(answer.body)['error']


def test_answers_of_any_length_in_a_batch(server, photos):
    """The server fails where a batch's answers arrive in parts that end at certain bytes."""
    workers = server.workers_of(BATCHED)
    requests = [Request(str(number), *form(photos[number % len(photos)], **({'x' * (number % 41 + 1): 1} if number % 2
                                                                            else {})), 400 if number % 2 else 200)
                for number in range(8 * 41)]
    answers = send(server, BATCHED, requests, clients=8)
    assert [answer.status for answer in answers] == [request.status for request in requests]
    assert all('x' * min(number % 41 + 1, 40) in json.loads(answer.body)['error']
               for number, answer in enumerate(answers) if number % 2)
    assert server.workers_of(BATCHED) == workers


def test_json(server, photos):
    data = [base64.b64encode(photo).decode() for photo in photos]
    # A box that has a face: where there is none, the least difference can turn the answer.
    for model, field, value in (CLASSIFICATION, 'top_k', 2), (LANDMARKS, 'boxes', [[45, 50, 195, 200]]):
        expected = [post(server, model, *form(photo, **{field: json.dumps(value)})) for photo in photos]
        assert {status for status, _ in expected} == {200}
        assert [post(server, model, json.dumps({'data': each, field: value}).encode(), 'application/json')
                for each in data] == expected
        instances = [{'data': each, field: value} for each in data]
        status, answer = post(server, model, json.dumps({'instances': instances}).encode(), 'application/json; a=b')
        assert status == 200 and same_answer(answer, {'predictions': [answer for _, answer in expected]})
        instances[1] = {'data': '?'}
        status, answer = post(server, model, json.dumps({'instances': instances}).encode(), 'application/json')
        assert status == 200 and 'not base64' in answer['predictions'].pop(1)['error']
        assert same_answer(answer['predictions'], [answer for _, answer in expected[:1] + expected[2:]])


def test_fields_in_the_query(server, photos):
    """multi-model-server itself hands on no query of /predictions."""
    def ask(path):
        connection = server_module.HTTPConnection(*server.address)
        connection.request('POST', path, photos[0], {'Content-Type': 'image/jpeg'})
        response = connection.getresponse()
        answer = json.loads(response.read())
        connection.close()
        return response.status, answer

    for model, query, status, reason in (
            (CLASSIFICATION, 'top_k=1', 200, None), (CLASSIFICATION, 'top_k=4', 400, 'from 1 to 3'),
            (CLASSIFICATION, 'boxes=[]', 400, 'boxes is not for this network'),
            (LANDMARKS, 'top_k=1', 400, 'top_k is not for this network'), (LANDMARKS, 'boxes=[]', 200, None),
            (LANDMARKS, 'limit=3', 400, "no field 'limit'")):
        for path in (f'/predictions/{model}', f'/models/{model}/invoke', f'/{model}/predict'):
            found, answer = ask(f'{path}?{query}')
            assert found == status, path
            assert reason in answer['error'] if reason else [len(each) for each in answer.values()
                                                             if isinstance(each, list)] == [int(query == 'top_k=1')]


def assert_unharmed(server, model, workers, photo):
    """The next request is answered, by the same worker."""
    assert post(server, model, photo)[0] == 200
    assert server.workers_of(model) == workers


@pytest.mark.parametrize('model', [CLASSIFICATION, LANDMARKS])
def test_bad_requests(server, photos, model):
    workers = server.workers_of(model)
    requests = bad_requests(photos[0]) + [
        Request('', *form(photos[0], **{'top_k' if model == CLASSIFICATION else 'boxes': 'x'}), 400),
        Request('', *form(b''), 400), Request('', b'{}', 'application/json', 400),
        Request('', photos[0], 'text/html; charset=utf-8', 415), Request('', b'x', 'multipart/form-data', 415),
        Request('', b'x', 'multipart/form-data; boundary=y', 400)]
    for request in requests:
        status, answer = post(server, model, request.body, request.content_type)
        assert status == request.status and answer['error'], request
    assert_unharmed(server, model, workers, photos[0])


def test_no_image_in_the_address_or_by_get(server):
    for path, status in (('/predictions/none', 404), ('/models', 404), (f'/predictions/{CLASSIFICATION}', 400)):
        connection = server_module.HTTPConnection(*server.address)
        connection.request('GET', path)
        response = connection.getresponse()
        assert response.status == status and json.loads(response.read())
        connection.close()


def test_a_body_said_to_be_a_form_that_does_not_decode(server, photos):
    """What some clients say by default. multi-model-server itself answers with 500, and does not say why."""
    workers = server.workers_of(CLASSIFICATION)
    status, answer = post(server, CLASSIFICATION, photos[0], 'application/x-www-form-urlencoded')
    assert status == 415 and 'holds no image' in answer['error']
    assert_unharmed(server, CLASSIFICATION, workers, photos[0])


@pytest.mark.parametrize('announced', [True, False])
def test_huge_uploads(server, photos, announced):
    """1 GB in the header, and more than the limit in chunks without a word before."""
    workers = server.workers_of(CLASSIFICATION)
    with socket.create_connection(server.address, timeout=30) as connection:
        length = f'Content-Length: {2 ** 30}' if announced else 'Transfer-Encoding: chunked'
        connection.sendall(f'POST /predictions/{CLASSIFICATION} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\n'
                           f'{length}\r\n\r\n'.encode())
        if not announced:
            chunk = b'100000\r\n' + bytes(2 ** 20) + b'\r\n'
            for _ in range(server_module.MAX_REQUEST_BYTES // 2 ** 20 + 1):
                connection.sendall(chunk)
        assert connection.recv(100).startswith(b'HTTP/1.1 413')
    assert_unharmed(server, CLASSIFICATION, workers, photos[0])


def test_slow_clients_do_not_take_the_memory(server, photos):
    """Together they send 900 MB: some are refused, and others are answered meanwhile."""
    import slow_clients
    found = slow_clients.attack(server, CLASSIFICATION, photos[0], 60, 15 * 2 ** 20)
    assert 0 < found.waiting <= front.MAX_HELD // server_module.MAX_REQUEST_BYTES and found.refused[503] > 0
    assert found.others == [200] * 20
    # Java sees whole requests alone.
    assert found.front < 1.2 * front.MAX_HELD + 2 ** 26 and found.java < 2 ** 29
    # What they had is free again.
    until(lambda: post(server, CLASSIFICATION, np.random.default_rng(0).bytes(2 ** 23))[0] == 400)


def test_only_this_machine_reaches_it_and_its_management_this_user_only(server):
    processes = [server.front, server.java, *server.java.children(recursive=True)]
    listening = {connection.laddr for process in processes for connection in process.net_connections('tcp')
                 if connection.status == psutil.CONN_LISTEN}
    assert [(address.ip.replace('::ffff:', ''), address.port) for address in listening] == [server.address]
    assert os.stat(os.path.dirname(server._management_socket)).st_mode & 0o077 == 0


def test_workers_are_one_thread_of_the_simple_engine(server):
    worker, = server.workers_of(CLASSIFICATION)
    environment = worker.environ()
    assert environment['OMP_NUM_THREADS'] == '1' and environment['MXNET_ENGINE_TYPE'] == 'NaiveEngine'
    assert worker.num_threads() <= 2


def test_a_killed_worker_comes_back(server, photos):
    worker, = server.workers_of(CLASSIFICATION)
    expected = post(server, CLASSIFICATION, photos[0])

    def is_back():
        return post(server, CLASSIFICATION, photos[0]) == expected and server.workers_of(CLASSIFICATION) != [worker]
    worker.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while not is_back() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert is_back()


def test_soak_command(artifacts, photos, tmp_path, capsys):
    for number, photo in enumerate(photos):
        (tmp_path / f'{number}.jpg').write_bytes(photo)
    status = command(soak, 'soak', artifacts[0], '--images', *sorted(tmp_path.glob('*.jpg')), '--requests', 300,
                     '--clients', 4, '--workers', 2, '--run-dir', tmp_path / 'run')
    output = capsys.readouterr().out
    assert not status, output
    assert re.search(r'300 requests of 4 clients to 2 workers .* p50 .* p99', output) and 'All as expected' in output
    assert '200: 240, 400: ' in output


def answers_within(seconds, address, photo):
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        # A request of the moment without workers may stay without an answer.
        connection = server_module.HTTPConnection(*address, timeout=5)
        try:
            connection.request('POST', f'/predictions/{LANDMARKS}', photo, {'Content-Type': 'image/jpeg'})
            if connection.getresponse().status == 200:
                return True
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    return False


def start_command(artifact, folder, *flags):
    """``serve`` as a process of its own, with one network or with those of the package."""
    return subprocess.Popen(
        [sys.executable, '-m', 'gluon_lprnet', 'serve', *([str(artifact)] if artifact else ()), '--run-dir',
         str(folder / 'run'), *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(Path(server_module.__file__).parents[2])})


def started_by(process):
    """The server, its loader and its workers."""
    java, = (child for child in psutil.Process(process.pid).children() if child.name() == 'java')
    return [java, *java.children(recursive=True)]


def runs(process):
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_serve_command_mends_itself_and_ends_without_orphans(artifacts, photos, tmp_path, capsys):
    port, management = server_module.free_port(), server_module.free_port()
    process = start_command(artifacts[1], tmp_path, '--port', port, '--management-port', management, '--workers', 2,
                            '--form', 'standard')
    try:
        url = f'http://127.0.0.1:{port}/predictions/{LANDMARKS}'
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines[0] == url + '\n' and f'curl -F data=@photo.jpg {url}' in lines[1] and 'Ctrl-C' in lines[2]
        folder, = (tmp_path / 'run').glob('serving-*')
        assert 'inference_address=unix:' in (folder / 'config.properties').read_text()
        # Another one leaves the first and its archives alone.
        assert main(['serve', str(artifacts[0]), '--run-dir', str(tmp_path / 'run'), '--port',
                     str(server_module.free_port())]) == 2
        assert f'--run-dir {tmp_path / "run"} is in use by another server' in capsys.readouterr().err
        assert [path.name for path in folder.glob('*.mar')] == [f'{LANDMARKS}.mar']
        connection = server_module.HTTPConnection('127.0.0.1', management)
        connection.request('GET', '/models')
        assert json.loads(connection.getresponse().read())['models'][0]['modelName'] == LANDMARKS
        connection.close()
        java, loader, *workers = started_by(process)
        assert len(workers) == 2 and loader.ppid() == java.pid
        # Without the process that workers are forked from, none of them is replaced until that is.
        for each in (*workers, loader):
            each.kill()
        assert answers_within(120, ('127.0.0.1', port), photos[0])
        started = started_by(process)
        watching = [child for child in psutil.Process(process.pid).children() if child not in started]
        # What watches, and what listens on the port.
        assert len(started) == 4 and len(watching) == 2
        process.terminate()
        _, error = process.communicate(timeout=30)
        assert process.returncode == 0 and f'{LANDMARKS} runs in MXNet' in error and 'library' not in error, error
        assert not any(map(runs, [*started, *watching])) and not folder.exists()
    finally:
        process.terminate()
        process.wait(30)


def test_nothing_survives_a_serve_command_that_was_killed(artifacts, tmp_path):
    port, page_port = server_module.free_port(), server_module.free_port()
    process = start_command(artifacts[1], tmp_path, '--port', port, '--page-port', page_port, '--workers', 1)
    try:
        lines = [process.stdout.readline() for _ in range(4)]
        assert lines[2] == f'In a browser: http://127.0.0.1:{page_port}/\n' and 'Ctrl-C' in lines[3]
        started = psutil.Process(process.pid).children(recursive=True)
        watching, = (each for each in started if each.name() == 'sh')
        folders = watching.cmdline()[-2:]
        assert len(started) == 5 and all(map(os.path.isdir, folders))
    finally:
        process.kill()
        process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while any(map(runs, started)) + any(map(os.path.isdir, folders)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(runs, started)) and not any(map(os.path.isdir, folders))


def test_what_the_management_changes_stays_and_what_died_comes_back(artifacts, photos, tmp_path):
    reports, ready = [], []
    with Server(artifacts, tmp_path / 'run', port=server_module.free_port(), workers=1) as server:
        waiting = threading.Thread(target=lambda: pytest.raises(InputError, server.wait, ready.append, reports.append))
        waiting.start()

        def models():
            return [entry['modelName'] for entry in server._manage('GET', '/models')[0]['models']]

        try:
            # A network dies, and comes back.
            server.loader_of(LANDMARKS).kill()
            until(lambda: reports)
            assert reports == [f'{LANDMARKS}: its process died, and it was loaded again.']
            assert post(server, LANDMARKS, photos[0])[0] == 200
            until(lambda: ready == [True, False, True])
            # What listens on the port dies, and comes back.
            server.front.kill()
            until(lambda: 'listens on the port died' in reports[-1])
            assert post(server, LANDMARKS, photos[0])[0] == 200
            # It dies, and is taken away while it is loaded again. The server neither ends nor brings it back. (On a
            # busy machine it is taken away before it is seen to have died, and there is nothing to report.) Java loses
            # a DELETE that comes while it enters the network in its list, before it has a worker.
            dead = server.loader_of(LANDMARKS)
            dead.kill()
            until(lambda: server.loader_of(LANDMARKS) not in (None, dead)
                  and server._manage('GET', f'/models/{LANDMARKS}')[0].get('workers'))
            assert server._manage('DELETE', f'/models/{LANDMARKS}')[1] == 200
            time.sleep(5)
            until(lambda: models() == [CLASSIFICATION] and ready[-1])
            seen = len(reports)
            assert waiting.is_alive() and post(server, CLASSIFICATION, photos[0])[0] == 200
            # Its workers are taken away, and then the network: for longer than it takes to see that it is missing.
            server._load(LANDMARKS, f'{LANDMARKS}.mar', server._loading)
            until(lambda: LANDMARKS in server._loaded)
            assert server._manage('PUT', f'/models/{LANDMARKS}?min_worker=0&synchronous=true')[1] == 200
            time.sleep(5)
            assert server._manage('GET', f'/models/{LANDMARKS}')[0]['minWorkers'] == 0
            assert server._manage('DELETE', f'/models/{LANDMARKS}')[1] == 200
            time.sleep(5)
            assert models() == [CLASSIFICATION] and server.is_ready() and len(reports) == seen
            # It is taken away between the look that found its process dead and the loading.
            server._load_again({'modelName': LANDMARKS, 'modelUrl': f'{LANDMARKS}.mar', 'batchSize': 1,
                                'maxBatchDelay': 10, 'minWorkers': 1}, reports.append)
            assert models() == [CLASSIFICATION] and len(reports) == seen
            assert waiting.is_alive() and post(server, CLASSIFICATION, photos[0])[0] == 200
        finally:
            server.java.kill()
            waiting.join(60)
        assert not waiting.is_alive()


def write_archive(path, handler):
    """An archive of another program."""
    manifest = {'specificationVersion': '1.0', 'implementationVersion': '1.0', 'modelServerVersion': '1.0',
                'runtime': 'python', 'model': {'modelName': path.stem, 'handler': 'handler.py:handle',
                                               'modelVersion': '1.0'}}
    with zipfile.ZipFile(path, 'w') as mar:
        mar.writestr('MAR-INF/MANIFEST.json', json.dumps(manifest))
        mar.writestr('handler.py', handler)
    return path


SOUND = "def handle(data, context):\n    return data and [b'ok'] * len(data)\n"


def test_a_network_that_died_and_does_not_load_is_not_ready(tmp_path):
    broken, reports, ready = tmp_path / 'broken', [], []
    fragile = (f'import os\n\n\ndef handle(data, context):\n    if os.path.exists({str(broken)!r}):\n'
               '        raise MemoryError\n' + SOUND.splitlines()[1])
    archives = [write_archive(tmp_path / f'{name}.mar', handler) for name, handler in (('a', fragile), ('b', SOUND))]
    with Server(archives, tmp_path / 'run', port=server_module.free_port(), workers=1) as server:
        waiting = threading.Thread(target=lambda: pytest.raises(InputError, server.wait, ready.append, reports.append))
        waiting.start()
        try:
            until(lambda: ready == [True])
            broken.touch()
            server.loader_of('a').kill()
            until(lambda: reports)
            assert 'Its process had died' in reports[0]
            # For longer than it takes to see what has changed.
            time.sleep(5)
            assert ready == [True, False] and not server.is_ready() and len(reports) == 1
            # It is taken away, and then served again.
            assert server._manage('DELETE', '/models/a')[1] == 200
            until(lambda: ready == [True, False, True])
            broken.unlink()
            server._load('a', 'a.mar', server._loading)
            assert server.is_ready()
        finally:
            server.java.kill()
            waiting.join(60)


def test_folders_of_any_name(tmp_path, monkeypatch):
    """Java reads its configuration in ISO 8859-1."""
    mar = write_archive(tmp_path / 'a.mar', SOUND)
    with tempfile.TemporaryDirectory(prefix='δ') as scratch:
        monkeypatch.setattr(tempfile, 'tempdir', scratch)
        with Server([mar], tmp_path / 'Jörg Ω \\u0041', port=server_module.free_port(), workers=1) as server:
            assert server._scratch.startswith(scratch)
            answer, = send(server, 'a', [Request('', b'x', 'image/jpeg')])
            assert (answer.status, answer.body) == (200, b'ok')


def test_the_ready_file_of_a_server_that_was_killed_is_removed_first(tmp_path, capsys):
    ready, run = tmp_path / 'ready', tmp_path / 'run'
    ready.touch()
    flags = ['serve', str(tmp_path / 'none.mar'), '--run-dir', str(run), '--ready-file', str(ready)]
    run.mkdir()
    # But not that of a server that runs.
    with lock(run / '.serve.lock', ''):
        assert main(flags) == 2
        assert 'in use by another server' in capsys.readouterr().err and ready.exists()
    assert main(flags) == 2
    assert 'none.mar does not exist' in capsys.readouterr().err and not ready.exists()


def test_a_rolling_update_loses_no_request(artifacts, photos, tmp_path):
    """The new archive is added, 20 clients change to it, and the old one goes; meanwhile `serve` watches."""
    old, new, errors, counts = CLASSIFICATION, 'second', [], Counter()
    with zipfile.ZipFile(archive(artifacts[0], tmp_path)) as before, \
            zipfile.ZipFile(tmp_path / f'{new}.mar', 'w') as changed:
        for name in before.namelist():
            content = before.read(name)
            if name == 'description.json':
                description = json.loads(content)
                description['class_names'] = [f'new {label}' for label in description['class_names']]
                content = json.dumps(description)
            changed.writestr(name, content)
    with Server([artifacts[0]], tmp_path / 'run', port=server_module.free_port(), workers=1) as server:
        waiting = threading.Thread(target=lambda: pytest.raises(InputError, server.wait))
        waiting.start()
        serving, stopped = [old], threading.Event()

        def client():
            while not stopped.is_set():
                model = serving[-1]
                status, answer = post(server, model, photos[0])
                are_new = [entry['label'].startswith('new ') for entry in answer.get('classes', ())]
                if status != 200 or are_new != [model == new] * 3:
                    errors.append((model, status, answer))
                counts[model] += 1
                # 20 that never pause would leave the loading no processor.
                stopped.wait(0.2)

        clients = [threading.Thread(target=client) for _ in range(20)]
        for each in clients:
            each.start()
        try:
            until(lambda: counts[old] > 40)
            shutil.copy(tmp_path / f'{new}.mar', server._folder)
            server._manage('POST', '/models?' + urlencode({**server._loading, 'url': f'{new}.mar', 'model_name': new,
                                                           'synchronous': 'false'}))
            until(lambda: any(worker['status'] == 'READY'
                              for worker in server._manage('GET', f'/models/{new}')[0].get('workers', ())))
            serving.append(new)
            # Each client has had an answer to what it asked for before it changed.
            until(lambda: counts[new] > 40 + len(clients))
            assert server._manage('DELETE', f'/models/{old}')[1] == 200
            seen = counts[new]
            until(lambda: counts[new] > seen + 40)
            # Longer than it takes to see that a network is missing.
            time.sleep(5)
            assert [entry['modelName'] for entry in server._manage('GET', '/models')[0]['models']] == [new]
        finally:
            stopped.set()
            for each in clients:
                each.join()
            assert waiting.is_alive()
            server.java.kill()
            waiting.join(60)
    assert not errors and min(counts.values()) > 40


def test_pictures_of_more_pixels_than_the_flag_allows_are_refused(artifacts, photos, tmp_path, capsys):
    height, width = cv2.imdecode(np.frombuffer(photos[0], 'uint8'), 1).shape[:2]
    with Server([artifacts[0]], tmp_path / 'run', port=server_module.free_port(), workers=1,
                max_pixels=width * height) as server:
        assert post(server, CLASSIFICATION, photos[0])[0] == 200
        larger = cv2.imencode('.png', np.zeros((height, width + 1, 3), 'uint8'))[1].tobytes()
        status, answer = post(server, CLASSIFICATION, larger)
        assert status == 413 and f'at most {width * height:,} pixels' in answer['error']
        assert post(server, CLASSIFICATION, json.dumps({'data': base64.b64encode(larger).decode()}).encode(),
                    'application/json')[0] == 413
    with pytest.raises(InputError, match='`max_pixels` is 0: give a number from 1 to 89478485'):
        archive(artifacts[0], tmp_path, 0)
    mar = archive(artifacts[0], tmp_path)
    assert main(['serve', str(mar), '--run-dir', str(tmp_path / 'run'), '--max-pixels', '1000']) == 2
    assert f'--max-pixels is not for {mar}, which has a limit of its own' in capsys.readouterr().err


def until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_serve_without_networks_serves_those_of_the_package(photos, tmp_path):
    port, page_port, ready = server_module.free_port(), server_module.free_port(), tmp_path / 'ready'
    process = start_command(None, tmp_path, '--port', port, '--page-port', page_port, '--workers', 1, '--ready-file',
                            ready)
    try:
        lines = [process.stdout.readline() for _ in range(6)]
        assert lines[-2] == f'In a browser: http://127.0.0.1:{page_port}/\n' and lines[-1].startswith('Ready.')
        until(ready.exists)
        for name, task in ('lprnet_mobilenet_x0.5.faces', 'faces'), ('compressed_mobilenet_x0.75.imagenet', 'classes'):
            assert f'http://127.0.0.1:{port}/predictions/{name}\n' in lines
            for address in ('127.0.0.1', port), ('127.0.0.1', page_port):
                answer, = send(SimpleNamespace(address=address), name, [Request('', photos[0], 'image/jpeg')])
                assert answer.status == 200
            if task == 'classes':
                expected = gluon_lprnet.load(name).predict(photos[0])[0]
                for entry, guess in zip(json.loads(answer.body)['classes'], expected):
                    assert entry['label'] == guess.label and abs(entry['probability'] - guess.probability) < 1e-5
            else:
                assert_faces(json.loads(answer.body),
                             faces_of_align(name, cv2.imdecode(np.frombuffer(photos[0], 'uint8'), 1)))
        connection = server_module.HTTPConnection('127.0.0.1', page_port)
        connection.request('GET', '/ready')
        assert connection.getresponse().status == 200
        connection.close()
        # While it loads the networks again it is not ready.
        java, *_ = started_by(process)
        for loader in java.children():
            loader.kill()
        until(lambda: not ready.exists())
        until(ready.exists)
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode == 0 and not ready.exists()
    finally:
        process.terminate()
        process.wait(30)


def test_an_archive_that_does_not_load_says_why(artifacts, tmp_path, monkeypatch):
    """Before Java starts, which would only say that no worker does."""
    monkeypatch.setattr(server_module, 'find_java', lambda: 'no Java is started')
    for handler, reason in (('import none_of_this', "No module named 'none_of_this'"),
                            ('def handle(data, context): raise OSError("no license")', 'OSError: no license')):
        mar = archive(artifacts[1], tmp_path / 'sound')
        with zipfile.ZipFile(mar) as sound, zipfile.ZipFile(tmp_path / 'broken.mar', 'w') as broken:
            for name in sound.namelist():
                broken.writestr(name, handler if name == 'handler.py' else sound.read(name))
        with pytest.raises(InputError, match=f'broken.mar does not load: .*{reason}'):
            Server([tmp_path / 'broken.mar'], tmp_path / 'run').__enter__()
    with zipfile.ZipFile(tmp_path / 'empty.mar', 'w'):
        pass
    with pytest.raises(InputError, match='empty.mar is not a model archive: its MAR-INF/MANIFEST.json'):
        Server([tmp_path / 'empty.mar'], tmp_path / 'run').__enter__()


def test_forms_on_a_machine_without_a_compiler(artifacts, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('CXX', 'no-such-compiler')
    with Server([artifacts[0]], tmp_path / 'run', port=server_module.free_port(), workers=1) as server:
        assert post(server, CLASSIFICATION, photos[0])[0] == 200
        assert re.match(r'MXNet.*; the operator library cannot be built \(no-such-compiler: ',
                        server.report_of(CLASSIFICATION))
    # Before Java starts.
    monkeypatch.setattr(Server, '_start', None)
    assert main(['serve', str(artifacts[0]), '--run-dir', str(tmp_path / 'run'), '--form', 'library']) == 2
    assert 'the operator library cannot be built (no-such-compiler: ' in capsys.readouterr().err
    mar = archive(artifacts[0], tmp_path, form='library')
    assert main(['serve', str(mar), '--run-dir', str(tmp_path / 'run')]) == 2
    assert re.search(r'\.mar does not load: .*the operator library cannot be built', capsys.readouterr().err)
    assert main(['serve', str(mar), '--run-dir', str(tmp_path / 'run'), '--form', 'standard']) == 2
    assert f'--form is not for {mar}, which has one of its own' in capsys.readouterr().err


@pytest.mark.slow
def test_benchmark(artifacts, photos, tmp_path):
    (tmp_path / 'photo.jpg').write_bytes(photos[0])
    script = Path(server_module.__file__).parents[2] / 'benchmarks' / 'serving.py'
    if not script.exists():
        pytest.skip('not in a checkout')
    mar = archive(artifacts[0], tmp_path)
    output = subprocess.run([sys.executable, str(script), str(artifacts[0]), '--image', str(tmp_path / 'photo.jpg'),
                             '--requests', '40', '--clients', '1', '4', '--rounds', '2', '--workers', '1', '--archives',
                             str(mar), '--csv', str(tmp_path / 'table.csv')], check=True, cwd=tmp_path, text=True,
                            capture_output=True).stdout
    expected = [(clients, form, side) for clients in ('1', '4') for form in ('standard', 'library', mar.name)
                for side in ('network', 'handler', 'server', 'no port')]
    rates = re.findall(r'^\| +(\d+) +\| (\S+) +\| (\w+(?: \w+)?) +\| (\d+) \(\d+ to \d+\) ', output, re.MULTILINE)
    assert [tuple(row[:3]) for row in rates] == expected and all(int(rate) > 0 for *_, rate in rates)
    with open(tmp_path / 'table.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['clients'], row['form'], row['measured']) for row in rows] == expected
    assert all(float(row['workers_processor_ms']) > 0 for row in rows)


def test_what_is_in_the_run_folder_stays(artifacts, photos, tmp_path):
    """Also an archive there that is served."""
    run = tmp_path / 'run'
    mar = archive(artifacts[1], run / 'models')
    theirs = {path: f'of the user: {path}'.encode() for path in (
        run / 'models' / 'epoch60' / 'best.params', run / 'config.properties', run / 'logs' / 'java.log',
        run / 'notes')}
    for path, content in theirs.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    theirs[mar] = mar.read_bytes()
    with Server([mar], run, port=server_module.free_port(), workers=1) as server:
        assert post(server, LANDMARKS, photos[0])[0] == 200
    with pytest.raises(InputError, match='does not exist'):
        Server([run / 'none.mar'], run, port=server_module.free_port()).__enter__()
    for path, content in theirs.items():
        assert path.read_bytes().startswith(content)
    assert {path.name for path in run.iterdir()} == {'models', 'config.properties', 'logs', 'notes', '.serve.lock'}


def test_archives_of_version_0_1_are_served(tmp_path):
    """With the handler that is packed in them: the answers are those of then."""
    folder = Path(__file__).parents[1] / 'fixtures' / 'v0.1'
    answers = json.loads((folder / 'answers.json').read_text())
    for task, records in ('classification', 'shapes'), ('landmarks', 'faces'):
        mar, = (folder / 'exported' / task).glob('*.mar')
        picture = next(read_records(folder / 'records' / f'{records}.rec'))[1]
        with Server([mar], tmp_path / task, port=server_module.free_port(), workers=1) as server:
            status, answer = post(server, *server.models, picture)
        assert status == 200 and answer.keys() == answers[task].keys()
        if task == 'classification':
            assert [entry['label'] for entry in answer['classes']] == ['square', 'disc']
            for found, expected in zip(answer['classes'], answers[task]['classes']):
                assert found['probability'] == pytest.approx(expected['probability'], abs=1e-4)
        else:
            for found, expected in zip(answer['faces'], answers[task]['faces']):
                np.testing.assert_allclose(found['points'], expected['points'], atol=0.05)
