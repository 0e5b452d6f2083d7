"""The page of ``serve --page-port``: in a real browser before the real server, and its own answers without them."""
import contextlib
import importlib.util
import io
import itertools
import json
import re
import shutil
import socket
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer

import cv2
import numpy as np
import pytest
from PIL import Image
from reference.artifacts import CLASSES, expected_probabilities, faces_of_align, pixels_off

from gluon_lprnet.data.images import read_image
from gluon_lprnet.serving import page as page_module
from gluon_lprnet.serving import server as server_module
from gluon_lprnet.serving.load_client import form
from gluon_lprnet.serving.page import MAX_CONNECTIONS, Page
from gluon_lprnet.serving.server import Server
from gluon_lprnet.utils.errors import InputError

CLASSIFICATION, LANDMARKS = 'lprnet_mobilenet_x0.25-deployed', 'lprnet_mobilenet_x0.25'
SECONDS = 60
MAX_BYTES = 1000
# The fill of a drawn landmark.
GREEN = 0, 230, 118


# The last one holds.
READY = [True]


class ModelServer(BaseHTTPRequestHandler):
    """Tells what it was sent."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length']))
        if body == b'hang up':
            return
        answer = json.dumps([self.path, self.headers['Content-Type'], body.decode()]).encode()
        self.send_response(418)
        self.send_header('Content-Length', str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture(scope='module')
def page():
    model_server = HTTPServer(('127.0.0.1', 0), ModelServer)
    threading.Thread(target=model_server.serve_forever, daemon=True).start()
    page = Page(('127.0.0.1', 0), model_server.server_address, {'net': 'classification', 'a b': None}, MAX_BYTES,
                lambda: READY[-1])
    page.start()
    yield page
    page.stop()
    model_server.shutdown()
    model_server.server_close()


def request(page, method, path, body=None, headers=()):
    """Status, headers and body of the answer."""
    connection = HTTPConnection(*page.server_address, timeout=SECONDS)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def test_the_page_is_one_file_that_loads_nothing(page):
    status, headers, body = request(page, 'GET', '/')
    assert status == 200 and headers['Content-Type'] == 'text/html; charset=utf-8'
    assert "default-src 'none'" in headers['Content-Security-Policy']
    assert "'unsafe-" not in headers['Content-Security-Policy']
    # Namespaces are names, not addresses.
    assert not re.search(rb'https?://(?!www\.w3\.org/(1999/xhtml|2000/svg)[\'"])|@import|url\(|innerHTML', body)
    assert json.loads(request(page, 'GET', '/networks')[2]) == {
        'networks': {'net': 'classification', 'a b': None}, 'max_request_bytes': MAX_BYTES}


def test_it_says_whether_the_networks_are_ready(page):
    for is_ready, status in ((True, 200), (False, 503)):
        READY.append(is_ready)
        found, _, answer = request(page, 'GET', '/ready')
        assert found == status and json.loads(answer) == {'ready': is_ready}
    READY.append(True)


@pytest.mark.parametrize('host, status', [
    ('127.0.0.1:8081', 200), ('localhost', 200), ('[::1]:8081', 200), ('192.168.1.5:80', 200), ('LOCALHOST:1', 200),
    (socket.gethostname(), 200), ('attacker.example', 421), ('attacker.example:8081', 421), ('', 421),
    ('127.0.0.1.attacker.example', 421)])
def test_a_name_that_is_not_this_machines_is_refused(page, host, status):
    """A web page could let it point here, and then read what is answered (DNS rebinding)."""
    for method, path in (('GET', '/'), ('GET', '/networks'), ('POST', '/predictions/net')):
        found, _, answer = request(page, method, path, b'x' if method == 'POST' else None, {'Host': host})
        assert found == (418 if (method, status) == ('POST', 200) else status)
        assert status == 200 or 'use the IP address' in json.loads(answer)['error']


def test_connections_are_limited(page):
    """Each is a thread; those that are refused are told so, and when some go others get in."""
    before = threading.active_count()
    idle = [socket.create_connection(page.server_address, timeout=SECONDS) for _ in range(MAX_CONNECTIONS)]
    try:
        def answer():
            with socket.create_connection(page.server_address, timeout=SECONDS) as connection:
                connection.sendall(b'GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
                with connection.makefile('rb') as file, contextlib.suppress(ConnectionError):
                    return file.read()

        refused = answer()
        assert refused is None or refused.startswith(b'HTTP/1.1 503 ') and b'too many visitors' in refused
        assert threading.active_count() <= before + MAX_CONNECTIONS
    finally:
        for connection in idle:
            connection.close()
    deadline = time.monotonic() + SECONDS
    while not (answer() or b'').startswith(b'HTTP/1.1 200 '):
        assert time.monotonic() < deadline


def test_idle_connections_are_closed(page, monkeypatch):
    monkeypatch.setattr(page_module._Handler, 'timeout', 0.2)
    for sent in b'', b'GET /ready HTTP/1.1\r\nHo', b'GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n':
        with socket.create_connection(page.server_address, timeout=SECONDS) as connection:
            connection.sendall(sent)
            with connection.makefile('rb') as file:
                # To the end, which only the page can bring.
                assert file.read().startswith(b'HTTP/1.1 200 ' if sent.endswith(b'\r\n\r\n') else b'')


def test_pictures_are_handed_on_as_they_are(page):
    for name, kind in (('net', 'image/png'), ('a%20b', 'multipart/form-data; boundary=x'), ('net', None)):
        headers = {'Content-Type': kind} if kind else {}
        status, headers, body = request(page, 'POST', f'/predictions/{name}', 'body', headers)
        assert status == 418 and json.loads(body) == [f'/predictions/{name}', kind, 'body']
        _, _, body = request(page, 'POST', f'/predictions/{name}?top_k=1', 'body', {'Content-Type': kind or 'a/b'})
        assert json.loads(body) == [f'/predictions/{name}?top_k=1', kind or 'a/b', 'body']
        assert headers['Content-Type'] == 'application/json'


@pytest.mark.parametrize('method, path, body, headers, status, reason', [
    ('GET', '/models', None, {}, 404, 'nothing at this address'),
    ('GET', '/../../etc/passwd', None, {}, 404, 'nothing at this address'),
    ('POST', '/models', b'x', {}, 404, 'no such network: POST to /predictions/ and one of net, a b'),
    ('POST', '/predictions/<b>', b'x', {}, 404, 'no such network'),
    ('POST', '/predictions/net/../../models', b'x', {}, 404, 'no such network'),
    ('POST', '/predictions/net', None, {'Content-Length': '-5'}, 411, 'Content-Length'),
    ('POST', '/predictions/net', None, {'Transfer-Encoding': 'chunked'}, 411, 'Content-Length'),
    ('POST', '/predictions/net', None, {'Content-Length': str(2 ** 30)}, 413, '1,073,741,824 bytes, at most 1,000'),
    ('POST', '/predictions/net', b'x', {'Content-Type': 'application/x-www-form-urlencoded'}, 415, 'holds no image'),
    ('POST', '/predictions/net', b'x', {'Content-Type': 'Application/X-WWW-form-urlencoded; a=b'}, 415, 'as the body'),
    ('POST', '/predictions/net', b'hang up', {}, 502, 'does not answer'),
    ('DELETE', '/models/net', None, {}, 501, 'DELETE'),
    ('OPTIONS', '/predictions/net', None, {}, 501, 'OPTIONS'),
])
def test_refusals_say_why(page, method, path, body, headers, status, reason):
    found, answered, answer = request(page, method, path, body, headers)
    assert found == status and reason in json.loads(answer)['error']
    assert answered['Content-Type'] == 'application/json' and answered['X-Content-Type-Options'] == 'nosniff'


@pytest.mark.parametrize('path, kind, length, status', [
    ('/predictions/none', 'image/png', 500, 404), ('/models', 'image/png', 500, 404),
    ('/predictions/net', 'application/x-www-form-urlencoded', 500, 415),
    ('/predictions/net', 'image/png', 10 ** 9, 413)])
@pytest.mark.parametrize('asks', ['', 'Expect: 100-continue\r\n'])
def test_what_is_refused_is_refused_before_its_body_is_sent(page, path, kind, length, status, asks):
    with socket.create_connection(page.server_address, timeout=SECONDS) as connection:
        connection.sendall(f'POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{asks}'
                           f'Content-Length: {length}\r\n\r\n'.encode())
        with connection.makefile('rb') as file:
            assert file.readline().startswith(f'HTTP/1.1 {status} '.encode())
            # The end of the answer, not of the patience.
            assert b'"error"' in file.read()


def test_a_body_that_is_sent_all_the_same_does_not_hide_the_reason(page):
    for _ in range(20):
        status, _, answer = request(page, 'POST', '/predictions/none', bytes(MAX_BYTES), {'Content-Type': 'image/png'})
        assert status == 404 and 'no such network' in json.loads(answer)['error']


def test_a_body_that_is_asked_for_is_taken(page):
    with socket.create_connection(page.server_address, timeout=SECONDS) as connection:
        connection.sendall(b'POST /predictions/net HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n'
                           b'Expect: 100-continue\r\nConnection: close\r\nContent-Length: 4\r\n\r\n')
        with connection.makefile('rb') as file:
            assert file.readline().startswith(b'HTTP/1.1 100 ') and file.readline() == b'\r\n'
            connection.sendall(b'body')
            assert file.readline().startswith(b'HTTP/1.1 418 ')


def test_a_port_in_use_is_named(page, tmp_path, monkeypatch):
    monkeypatch.setattr(server_module, 'find_java', lambda: 'java')
    monkeypatch.setattr(server_module.importlib.util, 'find_spec', lambda name: True)
    host, port = page.server_address
    monkeypatch.setattr(server_module, 'MAX_PORT', 65_535)
    with pytest.raises(InputError, match=f'`host` 127.0.0.1 with `page_port` {port} cannot be listened on'):
        Server([], tmp_path, port=server_module.free_port(), page_port=port).__enter__()
    with pytest.raises(InputError, match='`port` and `page_port` are the same'):
        Server([], tmp_path, port=port, page_port=port).__enter__()


@pytest.fixture(scope='module')
def server(artifacts, tmp_path_factory):
    for package in ('mms', 'psutil'):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f'{package} is not installed (see requirements.txt)')
    try:
        server_module.find_java()
    except InputError as error:
        pytest.skip(str(error))
    with Server(artifacts, tmp_path_factory.mktemp('run'), port=server_module.free_port(), workers=1,
                page_port=server_module.free_port()) as server:
        yield server


class Browser:
    """Headless Chromium with the page of a server."""

    def __init__(self, driver, url, folder, downloads):
        self.driver = driver
        self._folder = folder
        self._downloads = downloads
        self._numbers = itertools.count()
        driver.get(url)
        self._wait(lambda: self.run('return document.getElementById("network").length'))

    def _wait(self, condition):
        # Of the page's scripts alone, and of a network: never a fixed time.
        from selenium.webdriver.support.ui import WebDriverWait
        WebDriverWait(self.driver, SECONDS, 0.05).until(lambda _: condition())

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def element(self, name):
        return self.driver.find_element('id', name)

    def choose_network(self, name):
        from selenium.webdriver.support.ui import Select
        Select(self.element('network')).select_by_value(name)

    def send(self, data, suffix='.jpg', drop=False):
        """Choose or drop a file, and wait for what comes of it."""
        path = self._folder / f'{next(self._numbers)}{suffix}'
        if drop:
            self.run('''
                const dataTransfer = new DataTransfer();
                dataTransfer.items.add(new File([new Uint8Array(arguments[0])], arguments[1], {type: "image/jpeg"}));
                document.querySelector("main").dispatchEvent(
                    new DragEvent("drop", {dataTransfer, bubbles: true, cancelable: true}));''', list(data), path.name)
        else:
            path.write_bytes(data)
            self.element('file').send_keys(str(path))
        self._wait(lambda: self.element('name').text == path.name)
        self.wait_for_answer()

    def download(self, button):
        """The name and the bytes of the file that a button gives."""
        for file in self._downloads.iterdir():
            file.unlink()
        self.element(button).click()

        def done():
            return [file for file in self._downloads.iterdir() if file.suffix in ('.png', '.json')]
        self._wait(done)
        file, = done()
        return file.name, file.read_bytes()

    def wait_for_answer(self):
        self._wait(lambda: not self.element('status').text.startswith('Asking'))

    @property
    def fault(self):
        fault = self.element('fault')
        assert not (fault.is_displayed() and self.element('table').is_displayed())
        return fault.text if fault.is_displayed() else None

    def table(self):
        """The texts of the table's cells, row by row."""
        table = self.element('table')
        return self.run('return [...arguments[0].tBodies[0].rows].map(row => '
                        '[...row.cells].map(cell => cell.textContent))', table) if table.is_displayed() else []

    def points(self):
        """Of each face the landmarks (68, 2) as they are drawn, in pixels of the picture."""
        points = self.run('return [...arguments[0].querySelectorAll("circle")].map('
                          'each => [each.cx.baseVal.value, each.cy.baseVal.value])', self.element('drawing'))
        return np.array(points).reshape(-1, 68, 2)

    def rectangle(self, name):
        """Left, top, width and height on the screen."""
        return self.run('const {x, y, width, height} = arguments[0].getBoundingClientRect();'
                        'return [x, y, width, height]', self.element(name))

    def screenshot(self):
        """RGB pixels (height, width, 3) of what the window shows."""
        return cv2.imdecode(np.frombuffer(self.driver.get_screenshot_as_png(), 'uint8'), 1)[..., ::-1]


@pytest.fixture(scope='module')
def browser(server, photos, tmp_path_factory):
    webdriver = pytest.importorskip('selenium.webdriver')
    chromium, driver_path = shutil.which('chromium'), shutil.which('chromedriver')
    if chromium is None or driver_path is None:
        pytest.skip('no Chromium with its driver (on Debian: apt-get install chromium chromium-driver)')
    downloads, film = tmp_path_factory.mktemp('downloads'), tmp_path_factory.mktemp('film') / 'film.mjpeg'
    film.write_bytes(2 * photos[0])
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ('headless', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-sync',
                 'disable-background-networking', 'disable-component-update', 'force-device-scale-factor=1',
                 'window-size=1200,1400', f'user-data-dir={tmp_path_factory.mktemp("profile")}',
                 # The camera shows a photo, and the user lets pages see it.
                 'use-fake-device-for-media-stream', 'use-fake-ui-for-media-stream',
                 f'use-file-for-fake-video-capture={film}'):
        options.add_argument(f'--{flag}')
    options.add_experimental_option('prefs', {'download.default_directory': str(downloads)})
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options, webdriver.ChromeService(driver_path))
    try:
        yield Browser(driver, server.page_url, tmp_path_factory.mktemp('pictures'), downloads)
    finally:
        driver.quit()


def test_it_lists_the_networks_and_asks_its_own_server_alone(browser, server):
    options = browser.element('network').find_elements('tag name', 'option')
    assert [option.get_attribute('value') for option in options] == server.models
    assert [option.text for option in options] == [f'{CLASSIFICATION} (classes)', f'{LANDMARKS} (landmarks of faces)']
    asked = browser.run('return performance.getEntriesByType("resource").map(each => each.name)')
    assert asked == [server.page_url + 'networks']
    # Its policy lets its own script and style through.
    assert browser.driver.get_log('browser') == []
    assert browser.element('choose').value_of_css_property('cursor') == 'pointer'


def test_keyboard(browser):
    from selenium.webdriver import ActionChains
    browser.run('document.activeElement.blur()')
    reached = []
    for _ in range(3):
        # Keys that are sent to the element itself would be a file's name.
        ActionChains(browser.driver).send_keys('\ue004').perform()
        reached.append(browser.run('return document.activeElement.id'))
    assert reached == ['network', 'file', 'camera']


@pytest.mark.parametrize('drop', [False, True])
def test_classes_are_the_networks(browser, artifacts, photos, drop, tmp_path):
    browser.choose_network(CLASSIFICATION)
    for photo in photos:
        (tmp_path / 'photo.jpg').write_bytes(photo)
        expected = expected_probabilities(artifacts[0], tmp_path / 'photo.jpg')
        browser.send(photo, drop=drop)
        assert browser.fault is None
        table = browser.table()
        assert [label for label, _, _ in table] == [CLASSES[index] for index in np.argsort(-expected)]
        np.testing.assert_allclose([float(text.rstrip('%')) for *_, text in table], 100 * -np.sort(-expected),
                                   atol=0.06)
        bars = browser.run('return [...document.querySelectorAll(".bar div")].map(bar => '
                           'bar.offsetWidth / bar.parentElement.clientWidth)')
        assert sorted(bars, reverse=True) == bars and bars[0] > 0
        assert browser.points().size == 0


def test_landmarks_are_drawn_where_the_network_finds_them(browser, artifacts, photos):
    browser.choose_network(LANDMARKS)
    found, drawn = [], []
    for photo in photos:
        one = cv2.imdecode(np.frombuffer(photo, 'uint8'), 1)
        # As large as the page has room for, and with more faces than that.
        for picture in (one, cv2.resize(np.hstack([one, one]), None, fx=3.3, fy=3.3)):
            expected = faces_of_align(artifacts[1], picture)
            browser.send(cv2.imencode('.png', picture)[1].tobytes(), '.png')
            assert browser.fault is None and len(browser.table()) == len(expected)
            found.append(len(expected))
            if not expected:
                assert 'No face' in browser.element('status').text
                continue
            points = browser.points()
            off = max(pixels_off(face['box']) for face in expected)
            np.testing.assert_allclose(points, [face['points'] for face in expected], rtol=0, atol=off)
            boxes = browser.run('return [...arguments[0].querySelectorAll("rect")].map(each => ["x", "y", "width", '
                                '"height"].map(name => each[name].baseVal.value))', browser.element('drawing'))
            corners = np.hstack([np.array(boxes)[:, :2], np.array(boxes)[:, :2] + np.array(boxes)[:, 2:]])
            np.testing.assert_allclose(corners, [face['box'] for face in expected], rtol=0, atol=off)
            # The drawing covers the picture, and each point lies on its pixel's center.
            left, top, width, height = browser.rectangle('picture')
            np.testing.assert_allclose(browser.rectangle('drawing'), [left, top, width, height], atol=0.05)
            scale = width / picture.shape[1]
            assert scale <= 1 and height / picture.shape[0] == pytest.approx(scale, rel=0.01)
            on_screen = np.floor((points.reshape(-1, 2) + 0.5) * scale + [left, top]).astype(int)
            # The network is not trained: many of its points lie outside of the picture, and are not drawn.
            inside = (on_screen > [left + 1, top + 1]) & (on_screen < [left + width - 2, top + height - 2])
            drawn.extend(browser.screenshot()[tuple(on_screen[inside.all(axis=1)].T[::-1])].astype(int))
    assert max(found) > 1 and len(drawn) > 50
    # Blended with their dark edges, or under another's edge.
    differences = abs(np.array(drawn) - GREEN).max(axis=1)
    assert np.median(differences) < 10 and (differences < 100).mean() > 0.9


def test_camera(browser, artifacts, photos, tmp_path):
    browser.choose_network(CLASSIFICATION)
    live, camera = browser.element('live'), browser.element('camera')
    for button in 'stop', 'shoot':
        camera.click()
        browser._wait(lambda: browser.run('return video.videoWidth'))
        assert live.is_displayed() and not camera.is_displayed()
        assert browser.run('return [video.videoWidth, video.videoHeight]') == list(
            Image.open(io.BytesIO(photos[0])).size)
        browser.run('window.track = video.srcObject.getTracks()[0]')
        browser.element(button).click()
        # The camera is off, whichever button it was.
        assert browser.run('return [window.track.readyState, video.srcObject]') == ['ended', None]
        assert not live.is_displayed() and camera.is_displayed()
    browser._wait(lambda: browser.element('name').text == 'camera.jpg')
    browser.wait_for_answer()
    assert browser.fault is None
    taken = bytes(browser.driver.execute_async_script('sent.arrayBuffer().then('
                                                      'data => arguments[0]([...new Uint8Array(data)]))'))
    # What was sent is what the camera saw, and the answer is that for it.
    assert abs(read_image(taken).astype(int) - read_image(photos[0])).mean() < 12
    (tmp_path / 'taken.jpg').write_bytes(taken)
    expected = expected_probabilities(artifacts[0], tmp_path / 'taken.jpg')
    np.testing.assert_allclose([float(text.rstrip('%')) for *_, text in browser.table()], 100 * -np.sort(-expected),
                               atol=0.06)


@pytest.mark.parametrize('name, reason', [('NotAllowedError', 'allow it'), ('NotFoundError', 'no camera'),
                                          ('NotReadableError', 'another program'), (None, 'only over HTTPS')])
def test_a_camera_that_cannot_be_had(browser, name, reason):
    browser.run('''
        window.devices = Object.getOwnPropertyDescriptor(Navigator.prototype, "mediaDevices");
        Object.defineProperty(Navigator.prototype, "mediaDevices", {configurable: true, get: () => arguments[0] && {
            getUserMedia: () => Promise.reject(new DOMException("details", arguments[0]))}});''', name)
    try:
        browser.element('camera').click()
        browser._wait(lambda: browser.element('fault').is_displayed())
        assert reason in browser.element('fault').text and browser.element('camera').is_enabled()
    finally:
        browser.run('Object.defineProperty(Navigator.prototype, "mediaDevices", window.devices)')


def test_the_answer_can_be_downloaded(browser, server, artifacts, photos):
    browser.choose_network(LANDMARKS)
    photo = next(photo for photo in photos
                 if faces_of_align(artifacts[1], cv2.imdecode(np.frombuffer(photo, 'uint8'), 1)))
    browser.send(photo)
    assert re.fullmatch(r'Answered in \d+ ms\.', browser.element('status').text)
    stem = browser.element('name').text[:-len('.jpg')]
    name, saved = browser.download('save-answer')
    expected = json.loads(request(server._page, 'POST', f'/predictions/{LANDMARKS}', photo,
                                  {'Content-Type': 'image/jpeg'})[2])
    assert name == f'{stem}.json'
    assert json.loads(saved) == {'picture': f'{stem}.jpg', 'network': LANDMARKS, **expected}
    name, png = browser.download('save-picture')
    pixels, before = (cv2.imdecode(np.frombuffer(data, 'uint8'), 1)[..., ::-1].astype(int) for data in (png, photo))
    assert name == f'{stem}-annotated.png' and pixels.shape == before.shape
    points = np.rint(np.concatenate([face['points'] for face in expected['faces']])).astype(int)
    inside = points[((points >= 0) & (points < pixels.shape[1::-1])).all(axis=1)]
    assert len(inside) > 4 and np.median(abs(pixels[tuple(inside.T[::-1])] - GREEN).max(axis=1)) < 10
    # What was drawn covers a part, and leaves the rest.
    differs = abs(pixels - before).max(axis=-1) > 40
    assert 0.002 < differs.mean() < 0.3

    browser.choose_network(CLASSIFICATION)
    browser.wait_for_answer()
    assert json.loads(browser.download('save-answer')[1])['network'] == CLASSIFICATION
    pixels = cv2.imdecode(np.frombuffer(browser.download('save-picture')[1], 'uint8'), 1)[..., ::-1].astype(int)
    # A line for each of the three classes, from the top.
    differs = abs(pixels - before).max(axis=-1) > 60
    assert differs[:len(before) // 5].mean() > 5 * differs[len(before) // 4:].mean()


def oriented(photo, orientation, kind):
    """The photo's pixels as they are, with an EXIF tag that says how they are to be turned."""
    exif = Image.Exif()
    exif[0x112] = orientation
    buffer = io.BytesIO()
    # Neither square nor alike when turned.
    Image.open(io.BytesIO(photo)).convert('RGB').crop((0, 0, 220, 256)).save(buffer, kind, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_browser_and_network_turn_a_picture_by_its_exif_tag_alike(browser, artifacts, photos, kind):
    browser.choose_network(LANDMARKS)

    def decoded(data):
        return np.ascontiguousarray(read_image(data)[..., ::-1])

    # Not every drawn face is one to the detector.
    photo = next(photo for photo in photos if faces_of_align(artifacts[1], decoded(oriented(photo, 1, kind))))
    for orientation in range(1, 9):
        data = oriented(photo, orientation, kind)
        pixels = decoded(data)
        expected = faces_of_align(artifacts[1], pixels)
        browser.send(data, f'.{kind.lower()}')
        assert browser.fault is None
        np.testing.assert_allclose(browser.points(), np.reshape([face['points'] for face in expected], (-1, 68, 2)),
                                   rtol=0, atol=0.021)
        width, height, *shown = browser.run('''
            const picture = document.getElementById("picture"), canvas = document.createElement("canvas");
            canvas.width = picture.naturalWidth; canvas.height = picture.naturalHeight;
            canvas.getContext("2d").drawImage(picture, 0, 0);
            return [canvas.width, canvas.height,
                    ...canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data];''')
        assert (height, width) == pixels.shape[:2]
        shown = np.reshape(shown, (height, width, 4))[..., 2::-1].astype(int)
        assert abs(shown - pixels).mean() < 3


def test_what_is_wrong_with_a_file_is_said_and_the_next_one_works(browser, photos):
    browser.choose_network(CLASSIFICATION)
    for data, suffix, reason in ((b'not an image', '.jpg', 'The network cannot use this file'),
                                 (b'not an image', '.jpg', 'not an image of a known format'),
                                 (b'some text', '.txt', 'This file is not a picture'),
                                 (b'some text', '.txt', 'the content type text/plain is not that of an image'),
                                 (photos[0][:len(photos[0]) // 2], '.jpg', 'damaged or cut off'),
                                 (b'', '.png', 'the image is empty'),
                                 (bytes(server_module.MAX_REQUEST_BYTES + 1), '.jpg',
                                  '16,777,217 bytes, and the server takes at most 16,777,216'),
                                 (bytes(server_module.MAX_REQUEST_BYTES + 1), '.jpg', 'This picture is too large'),
                                 # Its name is text.
                                 (b'', '<img src=x onerror=alert(1)>.jpg', 'the image is empty')):
        browser.send(data, suffix)
        assert reason in browser.fault and browser.table() == []
        browser.send(photos[0])
        assert browser.fault is None and len(browser.table()) == len(CLASSES)


def test_another_network_sees_the_same_picture(browser, photos):
    browser.choose_network(CLASSIFICATION)
    browser.send(photos[0])
    assert len(browser.table()) == len(CLASSES)
    browser.choose_network(LANDMARKS)
    browser.wait_for_answer()
    assert browser.table() == [] or len(browser.table()[0]) == 4


def test_only_what_is_the_pages_is_reached_through_its_port(server, photos):
    """In front of the real server: forms, bodies that the server answers with 500, and its management."""
    for body, kind, status in ((photos[0], 'image/jpeg', 200), (*form(photos[0], top_k=1), 200),
                               (photos[0], 'application/x-www-form-urlencoded', 415), (b'{}', 'application/json', 400),
                               (b'x', 'multipart/form-data', 415)):
        found, _, answer = request(server._page, 'POST', f'/predictions/{CLASSIFICATION}', body, {'Content-Type': kind})
        assert found == status and ('classes' if status == 200 else 'error') in json.loads(answer)
    for method, path in (('GET', '/models'), ('POST', '/models?url=http://127.0.0.1/x.mar'), ('GET', '/ping')):
        assert request(server._page, method, path)[0] == 404


def test_it_says_that_the_server_is_gone(browser, server, photos):
    """The last test of this file: it ends the server."""
    server.stop()
    browser.send(photos[0])
    assert 'server does not answer' in browser.fault
