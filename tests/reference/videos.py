"""Videos made with PyAV for tests, and read again with OpenCV."""
import struct
from fractions import Fraction

import av
import cv2
import numpy as np

SOUND_RATE = 44_100


def write_video(path, pictures, times=None, rate=12, codec='libx264', pixels='yuv420p', sound=None, tags=None,
                options=None):
    """Write BGR pictures, at times in seconds or at a rate; with a tone of 440 Hz coded by ``sound``."""
    clock = Fraction(1, 1000 if times is not None else rate)
    times = [Fraction(index, rate) for index in range(len(pictures))] if times is None else times
    with av.open(str(path), 'w') as container:
        video = container.add_stream(codec, rate=rate, options=options or {})
        video.width, video.height, video.pix_fmt = *pictures[0].shape[1::-1], pixels
        video.codec_context.time_base = clock
        video.metadata.update(tags or {})
        audio = container.add_stream(sound, rate=SOUND_RATE, layout='mono') if sound else None
        for index, (picture, time) in enumerate(zip(pictures, times)):
            frame = av.VideoFrame.from_ndarray(picture, 'bgr24')
            frame.pts, frame.time_base = round(time / clock), clock
            container.mux(video.encode(frame))
            if audio:
                container.mux(audio.encode(tone(index * SOUND_RATE // rate, SOUND_RATE // rate, audio.format.name)))
        container.mux(video.encode())
        if audio:
            container.mux(audio.encode())


def tone(begin, count, format):
    """Samples ``begin`` to ``begin + count`` of a tone of 440 Hz, as a frame of sound."""
    wave = 0.5 * np.sin(2 * np.pi * 440 / SOUND_RATE * np.arange(begin, begin + count))[None]
    if format.startswith('flt'):
        samples = wave.astype('float32')
    elif format.startswith('s32'):
        samples = (wave * (2 ** 31 - 1)).astype('int32')
    else:
        samples = (wave * 32767).astype('int16')
    frame = av.AudioFrame.from_ndarray(samples, format=format, layout='mono')
    frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, begin, Fraction(1, SOUND_RATE)
    return frame


def turn(path, matrix):
    """Write the four numbers (a, b, c, d) of a display matrix into the header of an MP4's first track."""
    content = bytearray(path.read_bytes())
    # ISO 14496-12: version and flags, five times of 4 bytes, 16 bytes, then the matrix.
    place = content.index(b'tkhd') + 4 + 4 + 20 + 16
    a, b, c, d = matrix
    content[place:place + 36] = struct.pack('>9i', *(round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0)),
                                            1 << 30)
    path.write_bytes(content)


def read_video(path):
    """By OpenCV: the frames of a video, BGR as stored, and their times in seconds."""
    capture = cv2.VideoCapture(str(path))
    capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
    frames, times = [], []
    while True:
        there, picture = capture.read()
        if not there:
            return frames, times
        frames.append(picture)
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)


def read_sound(path):
    """By PyAV: the packets of a file's first sound as bytes, its samples (N,), its rate and the time of the first."""
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(container.streams.audio[0]) if packet.size]
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.audio[0]))
    samples = np.concatenate([frame.to_ndarray().reshape(len(frame.layout.channels), -1)[0] for frame in frames])
    return packets, samples, frames[0].sample_rate, frames[0].time


def smooth_pictures(count, height, width, seed=0):
    """Pictures that survive a codec: soft patches of color that drift."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(40, 216, (5, 5 + count, 3), 'uint8')
    return [cv2.resize(coarse[:, index:index + 5], (width, height), interpolation=cv2.INTER_CUBIC)
            for index in range(count)]
