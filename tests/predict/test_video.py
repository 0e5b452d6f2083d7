"""Videos in and out of align: what OpenCV and PyAV read of files whose frames, times and sound are known."""
import resource
import socket
import tracemalloc
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from reference import videos
from reference.videos import read_sound, read_video, smooth_pictures, turn, write_video

from gluon_lprnet.predict import video
from gluon_lprnet.predict.video import Frame, VideoFile, align_video
from gluon_lprnet.utils.errors import InputError


def read(path):
    """The frames of a file as the package reads them."""
    return [item for item in VideoFile(path) if isinstance(item, Frame)]


def copy(source, target, draw_faces=lambda picture, time: [], **options):
    """Align without faces: the summary, and what was said of each frame."""
    lines = []
    file = VideoFile(source)
    summary = align_video(file, target, draw_faces, lines.append, **options)
    return summary, lines, file.damage()


def assert_alike(pictures, expected, tolerance=10):
    assert [picture.shape for picture in pictures] == [picture.shape for picture in expected]
    assert max(cv2.absdiff(picture, other).mean() for picture, other in zip(pictures, expected)) < tolerance


def as_displayed(picture, matrix):
    """ISO 14496-12: the pixel (x, y) is shown at (a x + c y, b x + d y), moved to where all are positive."""
    a, b, c, d = matrix
    y, x = np.mgrid[:picture.shape[0], :picture.shape[1]]
    across, down = a * x + c * y, b * x + d * y
    across, down = across - across.min(), down - down.min()
    shown = np.zeros((down.max() + 1, across.max() + 1, 3), 'uint8')
    shown[down, across] = picture
    return shown


@pytest.mark.parametrize('matrix', [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0),
                                    (-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)])
def test_a_turned_or_mirrored_video_is_read_upright(tmp_path, matrix):
    pictures = smooth_pictures(3, 48, 64)
    write_video(tmp_path / 'a.mp4', pictures)
    turn(tmp_path / 'a.mp4', matrix)
    upright = [as_displayed(picture, matrix) for picture in pictures]
    assert_alike([frame.picture for frame in read(tmp_path / 'a.mp4')], upright)
    summary, *_ = copy(tmp_path / 'a.mp4', tmp_path / 'out.mp4')
    assert (summary['height'], summary['width']) == upright[0].shape[:2]
    # What is written is stored upright.
    assert_alike(read_video(tmp_path / 'out.mp4')[0], upright)
    assert_alike([frame.picture for frame in read(tmp_path / 'out.mp4')], upright)


def test_the_rotation_of_a_tag(tmp_path):
    pictures = smooth_pictures(3, 48, 64)
    write_video(tmp_path / 'a.mkv', pictures, tags={'rotate': '90'})
    assert_alike([frame.picture for frame in read(tmp_path / 'a.mkv')],
                 [cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE) for picture in pictures])


def test_times_of_a_variable_rate_stay(tmp_path):
    times = [0, .033, .066, .2, .21, .5, .7, .733, .766, 1.9, 1.97]
    write_video(tmp_path / 'a.mp4', smooth_pictures(len(times), 48, 64), times, options={'bf': '0'})
    summary, lines, damage = copy(tmp_path / 'a.mp4', tmp_path / 'out.mp4')
    assert damage is None and summary['frames'] == len(times)
    assert [line['time'] for line in lines] == pytest.approx(times, abs=1e-4)
    assert [line['frame'] for line in lines] == list(range(len(times)))
    np.testing.assert_allclose(read_video(tmp_path / 'out.mp4')[1], times, atol=1e-3)
    with av.open(str(tmp_path / 'a.mp4')) as before, av.open(str(tmp_path / 'out.mp4')) as after:
        assert after.duration == pytest.approx(before.duration, abs=2000)
        assert summary['seconds'] == pytest.approx(before.duration / 1e6, abs=2e-3)


def test_frames_of_one_time_do_not_shift_the_others(tmp_path):
    times = [0, .1, .1, .2, .2, .2, .3, 1]
    with av.open(str(tmp_path / 'a.mkv'), 'w') as container:
        stream = container.add_stream('mjpeg', rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, 'yuvj420p'
        for picture, time in zip(smooth_pictures(len(times), 48, 64), times):
            # Each picture by an encoder of its own, which does not mind the times.
            packets = av.codec.CodecContext.create('mjpeg', 'w')
            packets.width, packets.height, packets.pix_fmt = 64, 48, 'yuvj420p'
            packets.time_base = Fraction(1, 1000)
            for packet in packets.encode(av.VideoFrame.from_ndarray(picture, 'bgr24')):
                packet.stream, packet.time_base = stream, Fraction(1, 1000)
                packet.pts = packet.dts = round(1000 * time)
                container.mux(packet)
    summary, lines, damage = copy(tmp_path / 'a.mkv', tmp_path / 'out.mp4')
    assert damage is None and [line['time'] for line in lines] == pytest.approx(times, abs=1e-3)
    assert read_video(tmp_path / 'out.mp4')[1] == pytest.approx(times, abs=3e-3)


@pytest.mark.parametrize('name', ['a.ts', 'a.mkv', 'a.avi', 'a.webm'])
def test_times_count_from_the_beginning_in_every_container(tmp_path, name):
    codec = {'a.webm': 'libvpx-vp9', 'a.avi': 'mjpeg'}.get(name, 'libx264')
    pictures = smooth_pictures(12, 48, 64)
    write_video(tmp_path / name, pictures, rate=25, codec=codec, pixels='yuvj420p' if codec == 'mjpeg' else 'yuv420p')
    summary, lines, damage = copy(tmp_path / name, tmp_path / 'out.mp4')
    assert damage is None and summary['frames'] == 12
    assert [line['time'] for line in lines] == pytest.approx([index / 25 for index in range(12)], abs=1e-3)
    frames, times = read_video(tmp_path / 'out.mp4')
    assert_alike(frames, pictures)
    assert times == pytest.approx([index / 25 for index in range(12)], abs=1e-3)


def test_what_browsers_play(tmp_path):
    write_video(tmp_path / 'a.mp4', smooth_pictures(5, 48, 64))
    copy(tmp_path / 'a.mp4', tmp_path / 'out.mp4')
    with av.open(str(tmp_path / 'out.mp4')) as container:
        stream, = container.streams
        assert stream.codec_context.name == 'h264' and stream.codec_context.pix_fmt == 'yuv420p'
        assert container.format.name.split(',')[1] == 'mp4'
    content = (tmp_path / 'out.mp4').read_bytes()
    # The index before the pictures.
    assert content.index(b'moov') < content.index(b'mdat')


# Of ITU-T H.273, table 4: the weights of red and blue.
MATRICES = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('deep', [False, True])
@pytest.mark.parametrize('matrix', MATRICES)
def test_colors_by_the_matrix_of_the_source(tmp_path, matrix, deep, full):
    """BT.709 is that of nearly every video of high definition, BT.2020 of those of high dynamic range."""
    red, green, blue = 30, 180, 60
    of_red, of_blue = MATRICES[matrix]
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = [(color - luma) / 2 / (1 - weight) for color, weight in ((blue, of_blue), (red, of_red))]
    values = [luma, *(128 + each for each in chroma)] if full else [
        16 + luma * 219 / 255, *(128 + each * 224 / 255 for each in chroma)]
    frame = av.VideoFrame(64, 48, 'yuv420p10le' if deep else 'yuv420p')
    factor, kind = (4, 'uint16') if deep else (1, 'uint8')
    for plane, value in zip(frame.planes, values):
        plane.update(np.full(plane.buffer_size, round(value * factor), kind).tobytes()[:plane.buffer_size])
    with av.open(str(tmp_path / 'a.mkv'), 'w') as container:
        stream = container.add_stream('ffv1', rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, frame.format.name
        stream.colorspace = frame.colorspace = matrix
        stream.color_range = frame.color_range = 2 if full else 1
        frame.pts, frame.time_base = 0, Fraction(1, 25)
        container.mux([*stream.encode(frame), *stream.encode()])
    (seen,) = read(tmp_path / 'a.mkv')
    assert np.abs(seen.picture.astype(int) - [blue, green, red]).max() <= 3


@pytest.mark.parametrize('ratio, size', [(Fraction(4, 3), (64, 48)), (Fraction(8, 9), (48, 54)),
                                         (Fraction(99), (48, 48))])
@pytest.mark.parametrize('turned', [False, True])
def test_pixels_that_are_not_square(tmp_path, ratio, size, turned):
    """A recording of 1440x1080 is shown 1920 wide; a ratio that no video has is an error of its file."""
    pictures = smooth_pictures(2, 48, 48)
    with av.open(str(tmp_path / 'a.mp4'), 'w') as container:
        stream = container.add_stream('libx264', rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 48, 'yuv420p'
        stream.codec_context.sample_aspect_ratio = ratio
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, 'bgr24')
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    expected = [cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC) for picture in pictures]
    if turned:
        turn(tmp_path / 'a.mp4', (0, 1, -1, 0))
        expected = [cv2.rotate(picture, cv2.ROTATE_90_CLOCKWISE) for picture in expected]
    assert_alike([frame.picture for frame in read(tmp_path / 'a.mp4')], expected)


def test_a_name_with_a_colon(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video('plain.mp4', smooth_pictures(2, 48, 64))
    (tmp_path / 'plain.mp4').rename('2024-05-01T12:30:00.mp4')
    assert len(read('2024-05-01T12:30:00.mp4')) == 2


def test_colors_are_those_of_the_standard(tmp_path):
    """BT.601, limited range, as the stream is marked."""
    blue, green, red = 40, 90, 200
    picture = np.full((48, 64, 3), (blue, green, red), 'uint8')
    write_video(tmp_path / 'a.mkv', [picture] * 3, codec='ffv1', pixels='bgr0')
    copy(tmp_path / 'a.mkv', tmp_path / 'out.mp4')
    with av.open(str(tmp_path / 'out.mp4')) as container:
        frame = next(container.decode(video=0))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    expected = [16 + luma * 219 / 255, 128 + (blue - luma) / 1.772 * 224 / 255, 128 + (red - luma) / 1.402 * 224 / 255]
    assert [np.frombuffer(plane, 'uint8')[20] for plane in frame.planes] == pytest.approx(expected, abs=2)
    assert (frame.colorspace, frame.color_range) == (6, 1)


@pytest.mark.parametrize('sound', ['aac', 'libmp3lame'])
def test_sound_is_copied(tmp_path, sound):
    write_video(tmp_path / 'a.mp4', smooth_pictures(24, 48, 64), sound=sound)
    copy(tmp_path / 'a.mp4', tmp_path / 'out.mp4')
    packets, _, _, begin = read_sound(tmp_path / 'a.mp4')
    assert len(packets) > 50
    assert read_sound(tmp_path / 'out.mp4')[0] == packets and read_sound(tmp_path / 'out.mp4')[3] == begin
    copy(tmp_path / 'a.mp4', tmp_path / 'short.mp4', limit=12)
    short = read_sound(tmp_path / 'short.mp4')[0]
    assert short == packets[:len(short)] and 0.3 < len(short) / len(packets) < 0.8
    write_video(tmp_path / 'silent.mp4', smooth_pictures(3, 48, 64))
    copy(tmp_path / 'silent.mp4', tmp_path / 'still silent.mp4')
    with av.open(str(tmp_path / 'still silent.mp4')) as container:
        assert not container.streams.audio


def test_mp3_that_mp4_does_not_take_becomes_aac(tmp_path, monkeypatch):
    """As old cameras wrote it."""
    monkeypatch.setattr(videos, 'SOUND_RATE', 8_000)
    write_video(tmp_path / 'a.avi', smooth_pictures(24, 48, 64), sound='libmp3lame')
    copy(tmp_path / 'a.avi', tmp_path / 'out.mp4')
    with av.open(str(tmp_path / 'out.mp4')) as container:
        assert container.streams.audio[0].codec_context.name == 'aac'


@pytest.mark.parametrize('name, sound', [('a.mov', 'pcm_s16le'), ('a.mkv', 'ac3')])
def test_sound_that_browsers_do_not_play_becomes_aac(tmp_path, name, sound):
    """All of it, also by a clock of milliseconds: a frame of AC-3 is 34.8 of them."""
    write_video(tmp_path / name, smooth_pictures(24, 48, 64), sound=sound)
    copy(tmp_path / name, tmp_path / 'out.mp4')
    with av.open(str(tmp_path / 'out.mp4')) as container:
        assert container.streams.audio[0].codec_context.name == 'aac'
    _, samples, rate, _ = read_sound(tmp_path / 'out.mp4')
    assert len(samples) / rate == pytest.approx(2, abs=0.06)
    middle = samples[rate // 2:3 * rate // 2]
    assert np.abs(np.fft.rfft(middle)).argmax() * rate / len(middle) == pytest.approx(440, abs=2)
    assert np.abs(middle).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize('height, width', [(47, 64), (48, 63), (47, 63)])
def test_odd_sizes_get_a_row_or_a_column_more(tmp_path, height, width):
    pictures = smooth_pictures(3, height, width)
    write_video(tmp_path / 'a.mkv', pictures, codec='ffv1', pixels='bgr0')
    seen = []
    summary, *_ = copy(tmp_path / 'a.mkv', tmp_path / 'out.mp4',
                       lambda picture, time: seen.append(picture.copy()) or [])
    assert_alike(seen, pictures, 1)
    assert (summary['height'], summary['width']) == (height, width)
    frames, _ = read_video(tmp_path / 'out.mp4')
    assert frames[0].shape == (48, 64, 3)
    assert_alike([frame[:height, :width] for frame in frames], pictures)


@pytest.mark.parametrize('codec, pixels', [('ffv1', 'yuv420p10le'), ('libx264', 'yuv422p'), ('libx264', 'gray'),
                                           ('mjpeg', 'yuvj444p')])
def test_pixels_of_other_kinds(tmp_path, codec, pixels):
    pictures = smooth_pictures(3, 48, 64)
    write_video(tmp_path / 'a.mkv', pictures, codec=codec, pixels=pixels)
    if pixels == 'gray':
        pictures = [cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR) for picture in pictures]
    assert_alike([frame.picture for frame in read(tmp_path / 'a.mkv')], pictures)
    copy(tmp_path / 'a.mkv', tmp_path / 'out.mp4')
    assert_alike(read_video(tmp_path / 'out.mp4')[0], pictures)


def test_interlaced_video_stays_at_its_times(tmp_path):
    pictures = smooth_pictures(6, 64, 64)
    write_video(tmp_path / 'a.ts', pictures, rate=25, options={'x264-params': 'tff=1'})
    with av.open(str(tmp_path / 'a.ts')) as container:
        assert next(container.decode(video=0)).interlaced_frame
    summary, lines, damage = copy(tmp_path / 'a.ts', tmp_path / 'out.mp4')
    assert damage is None and [line['time'] for line in lines] == pytest.approx([n / 25 for n in range(6)], abs=1e-3)
    assert_alike(read_video(tmp_path / 'out.mp4')[0], pictures)
    with av.open(str(tmp_path / 'out.mp4')) as container:
        assert not next(container.decode(video=0)).interlaced_frame


def test_fields_are_not_mixed(tmp_path):
    """Of a picture that moves 40 pixels from one field to the next, a frame shows the first one."""
    gray = cv2.cvtColor(smooth_pictures(1, 96, 160)[0], cv2.COLOR_BGR2GRAY)
    firsts = [np.repeat(np.roll(gray, 80 * number, axis=1)[..., None], 3, axis=2) for number in range(4)]
    mixed = []
    for first in firsts:
        mixed.append(first.copy())
        mixed[-1][1::2] = np.roll(first, 40, axis=1)[1::2]
    assert min(cv2.absdiff(both, first).mean() for both, first in zip(mixed, firsts)) > 15
    write_video(tmp_path / 'a.mp4', mixed, rate=25, options={'x264-params': 'tff=1', 'crf': '5'})
    assert_alike([frame.picture for frame in read(tmp_path / 'a.mp4')], firsts, tolerance=5)


@pytest.mark.parametrize('height', [5, 6])
def test_the_upper_field_by_rows(height):
    picture = np.random.default_rng(0).integers(0, 256, (height, 3, 3), 'uint8')
    found = video._upper_field(picture)
    for row in range(height):
        above = picture[row - row % 2].astype(float)
        below = picture[row + 1] if row % 2 and row + 1 < height else above
        assert abs(found[row] - (above + below) / 2).max() <= 0.5


@pytest.mark.parametrize('sound', ['aac', 'libmp3lame', 'mp2', 'ac3'])
def test_recordings_joined_end_to_end(tmp_path, sound):
    """The second one begins at its own time, and has another resolution."""
    pictures = smooth_pictures(8, 96, 128)
    smaller = [cv2.resize(picture, (64, 48), interpolation=cv2.INTER_AREA) for picture in pictures[4:]]
    write_video(tmp_path / 'a.ts', pictures[:4], sound=sound)
    write_video(tmp_path / 'b.ts', smaller, sound=sound)
    (tmp_path / 'c.ts').write_bytes((tmp_path / 'a.ts').read_bytes() + (tmp_path / 'b.ts').read_bytes())
    summary, lines, _ = copy(tmp_path / 'c.ts', tmp_path / 'out.mp4')
    assert summary['frames'] == 8 and (summary['height'], summary['width']) == (96, 128)
    times = [line['time'] for line in lines]
    # The second's frames are together; the first's sound may be longer than its frames.
    assert np.diff(times) == pytest.approx(1 / 12, abs=0.06) and np.diff(times)[4:] == pytest.approx(1 / 12, abs=1e-3)
    # OpenCV counts from the first frame, a moment after the sound begins.
    assert read_video(tmp_path / 'out.mp4')[1] == pytest.approx(np.subtract(times, times[0]), abs=1e-3)
    _, samples, rate, _ = read_sound(tmp_path / 'out.mp4')
    # The sound that comes before the second's first frame is lost.
    assert 4 / 12 <= len(samples) / rate < 8 / 12 + 0.1
    assert_alike(read_video(tmp_path / 'out.mp4')[0], pictures)


def test_a_video_that_is_cut_off_is_done_as_far_as_it_is_and_says_so(tmp_path):
    write_video(tmp_path / 'a.mkv', smooth_pictures(60, 48, 64), codec='mjpeg', pixels='yuvj420p')
    content = (tmp_path / 'a.mkv').read_bytes()
    assert copy(tmp_path / 'a.mkv', tmp_path / 'whole.mp4')[2] is None
    (tmp_path / 'cut.mkv').write_bytes(content[:len(content) // 2])
    summary, _, damage = copy(tmp_path / 'cut.mkv', tmp_path / 'out.mp4')
    assert 15 < summary['frames'] < 45 and 'cut off' in damage
    assert len(read_video(tmp_path / 'out.mp4')[0]) == summary['frames']
    # The index at the beginning.
    copy(tmp_path / 'a.mkv', tmp_path / 'b.mp4')
    content = (tmp_path / 'b.mp4').read_bytes()
    (tmp_path / 'cut.mp4').write_bytes(content[:len(content) * 2 // 3])
    summary, _, damage = copy(tmp_path / 'cut.mp4', tmp_path / 'out.mp4')
    assert 15 < summary['frames'] < 60 and 'damaged or cut off' in damage
    # Ended on purpose, it is not said to be damaged.
    assert copy(tmp_path / 'a.mkv', tmp_path / 'out.mp4', limit=3)[2] is None


def test_a_damaged_video_says_so(tmp_path):
    write_video(tmp_path / 'a.mp4', smooth_pictures(60, 48, 64), options={'g': '10', 'bf': '0'})
    content = bytearray((tmp_path / 'a.mp4').read_bytes())
    begin = content.index(b'mdat') + (content.index(b'moov') - content.index(b'mdat')) // 2
    content[begin:begin + 300] = bytes(value ^ 0xff for value in content[begin:begin + 300])
    (tmp_path / 'b.mp4').write_bytes(content)
    summary, _, damage = copy(tmp_path / 'b.mp4', tmp_path / 'out.mp4')
    assert 30 < summary['frames'] <= 60 and 'damaged' in damage


def write_sound_alone(path):
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('aac', rate=44_100, layout='mono')
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44_100), 'float32'), format='fltp', layout='mono')
        frame.sample_rate = 44_100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_no_frames(path):
    write_video(path, smooth_pictures(3, 48, 64), options={'bf': '0'})
    content = path.read_bytes()
    # Without what the index points to.
    place = content.index(b'mdat')
    size = int.from_bytes(content[place - 4:place], 'big')
    path.write_bytes(content[:place + 4] + bytes(size - 8) + content[place - 4 + size:])


def write_without_index(path):
    write_video(path, smooth_pictures(30, 48, 64))
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize('write, message', [
    (lambda path: path.write_bytes(b'no video'), 'is not a video that can be read'),
    (lambda path: path.write_bytes(b''), 'is not a video that can be read'),
    (write_without_index, 'is not a video that can be read, or its end is missing'),
    (write_sound_alone, 'has no video in it, only sound'),
    (write_no_frames, r'gives no frame: .* could not be decoded'),
])
def test_what_is_no_video_is_named_and_leaves_nothing(tmp_path, write, message):
    write(tmp_path / 'a.mp4')
    with pytest.raises(InputError, match=message) as error:
        copy(tmp_path / 'a.mp4', tmp_path / 'out' / 'a.mp4')
    assert str(error.value).startswith(str(tmp_path / 'a.mp4'))
    assert not list(tmp_path.glob('out/*')) and not list(tmp_path.glob('out/.*'))


def test_nothing_is_fetched(tmp_path):
    """A list of addresses that is called a video."""
    with socket.create_server(('127.0.0.1', 0)) as server:
        server.settimeout(0.5)
        address = f'http://127.0.0.1:{server.getsockname()[1]}/a.ts'
        (tmp_path / 'a.mp4').write_text(f'#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{address}\n#EXT-X-ENDLIST\n')
        with pytest.raises(InputError):
            copy(tmp_path / 'a.mp4', tmp_path / 'out.mp4')
        with pytest.raises(TimeoutError):
            server.accept()


def test_an_error_leaves_no_file_and_a_stop_one_that_plays(tmp_path):
    write_video(tmp_path / 'a.mp4', smooth_pictures(20, 48, 64), sound='aac')
    stop = []

    def fail(picture, time):
        raise InputError('no such face')

    def stop_in_the_tenth(picture, time):
        if time > 9 / 12 - 0.01:
            stop.append(15)
        return []
    (tmp_path / 'out').mkdir()
    with pytest.raises(InputError, match='no such face'):
        copy(tmp_path / 'a.mp4', tmp_path / 'out' / 'a.mp4', fail)
    with pytest.raises(KeyboardInterrupt):
        copy(tmp_path / 'a.mp4', tmp_path / 'out' / 'a.mp4', lambda picture, time: (_ for _ in ()).throw(
            KeyboardInterrupt))
    assert list((tmp_path / 'out').iterdir()) == []
    summary, lines, damage = copy(tmp_path / 'a.mp4', tmp_path / 'out' / 'a.mp4', stop_in_the_tenth, stop=stop)
    assert summary['frames'] == len(lines) == 10 and damage is None
    assert len(read_video(tmp_path / 'out' / 'a.mp4')[0]) == 10
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['a.mp4']


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    rng = np.random.default_rng(0)
    write_video(tmp_path / 'a.mp4', [rng.integers(0, 256, (96, 128, 3), 'uint8') for _ in range(40)])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match='out.mp4 cannot be written: File too large'):
            copy(tmp_path / 'a.mp4', tmp_path / 'out.mp4')
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']


@pytest.mark.parametrize('encoder', ['libx264', 'libopenh264'])
def test_each_encoder(tmp_path, monkeypatch, encoder):
    try:
        av.codec.Codec(encoder, 'w')
    except ValueError:
        pytest.skip(f'PyAV {av.__version__} has no {encoder}')
    monkeypatch.setattr(video, '_ENCODERS', (encoder,))
    times = [0, .04, .08, .5, .54, 1, 1.2, 1.24]
    pictures = smooth_pictures(len(times), 120, 160)
    write_video(tmp_path / 'a.mp4', pictures, times)
    copy(tmp_path / 'a.mp4', tmp_path / 'out.mp4')
    frames, found = read_video(tmp_path / 'out.mp4')
    assert_alike(frames, pictures)
    np.testing.assert_allclose(found, times, atol=2e-3)


def test_what_the_encoder_refuses_is_said(tmp_path, monkeypatch):
    write_video(tmp_path / 'a.mp4', smooth_pictures(3, 48, 64))

    def refuse(self, frame):
        raise av.error.UnknownError(1313558101, 'no such size')
    monkeypatch.setattr(video.VideoWriter, 'add', refuse)
    with pytest.raises(InputError, match='out.mp4 cannot be written: no such size'):
        copy(tmp_path / 'a.mp4', tmp_path / 'out.mp4')
    assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']


def test_a_missing_encoder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(video, '_ENCODERS', ('no_such_encoder',))
    write_video(tmp_path / 'a.mp4', smooth_pictures(3, 48, 64))
    with pytest.raises(InputError, match=r'has no encoder for H.264 here \(no_such_encoder\)'):
        copy(tmp_path / 'a.mp4', tmp_path / 'out.mp4')


def resident_megabytes():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


def test_memory_does_not_grow_with_the_frames(tmp_path):
    """What Python holds, and what the process does, over 600 frames with sound after the first 600."""
    write_video(tmp_path / 'a.mp4', smooth_pictures(2, 48, 64) * 625, rate=25, sound='aac',
                options={'preset': 'ultrafast'})
    python, process = {}, {}
    frames = 0

    def measure(picture, time):
        nonlocal frames
        frames += 1
        if frames in (600, 1200):
            python[frames], process[frames] = tracemalloc.get_traced_memory()[0], resident_megabytes()
        return [{'box': [1, 1, 9, 9], 'points': [[3.0, 3.0]] * 3}]
    tracemalloc.start()
    try:
        align_video(VideoFile(tmp_path / 'a.mp4'), tmp_path / 'out.mp4', measure, lambda line: None)
    finally:
        tracemalloc.stop()
    # Pixels of a frame are 9 KB, a face with its points is 10 KB.
    assert abs(python[1200] - python[600]) < 200_000
    assert process[1200] - process[600] < 4
