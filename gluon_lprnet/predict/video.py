"""Videos and cameras: upright frames with their times, the faces of each, and H.264 with the sound in MP4.

Files are read and written with PyAV, the extra ``video``, without which this module does not import; a camera is read
with OpenCV.
"""
import collections
import math
import os
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, Optional, Union

import av
import cv2
import numpy as np
from tqdm import tqdm

from ..utils.errors import InputError
from ..utils.files import PathLike, whole

# x264 is in PyAV's wheels; builds that may not carry it for its license (GPL) have Cisco's OpenH264 (BSD).
_ENCODERS = ('libx264', 'libopenh264')
# What browsers play in MP4: it is copied, and other sound becomes AAC.
_COPIED_SOUND = ('aac', 'mp3', 'opus', 'flac')
_SOUND_RATE = 48_000
# Below it, FFmpeg writes no MP3 into MP4.
_LEAST_MP3_RATE = 16_000
# Seconds back in time that are more than a careless clock.
_JOINT = Fraction(1, 10)
# Seconds that sound may overlap the one before it: less than the 1024 samples that AAC is coded in, and more than what
# clocks of milliseconds are off.
_OVERLAP = Fraction(1, 100)
_FRAMES_PER_SECOND = 25
# Of ITU-T H.273, table 4; of FFmpeg's AVColorRange.
_BT601, _LIMITED = 6, 1
# Of the same table, those that FFmpeg converts by: BT.709, FCC, BT.601 of 625 and of 525 lines, SMPTE 240M, BT.2020.
_MATRICES = (1, 4, 5, 6, 7, 9, 10)
# Pixels of other shapes than this and its inverse are an error of the file: the widest of a standard is 2.
_WIDEST_PIXEL = 4
_CAMERA_CLOCK = Fraction(1, 90_000)


class Frame(NamedTuple):
    """A frame of a video.

    Attributes
    ----------
    picture : ndarray (height, width, 3) uint8
        BGR, upright, its pixels square.
    time : fractions.Fraction
        Seconds from the beginning of the video.
    duration : fractions.Fraction
        Seconds that it is shown; 0 if the video does not say.
    """

    picture: np.ndarray
    time: Fraction
    duration: Fraction = Fraction(0)


class VideoFile:
    """A video file, as an iterable of its frames and, between them, of the packets of its sound.

    Attributes
    ----------
    time_base : fractions.Fraction
        Seconds of the unit that all times are multiples of.
    rate : fractions.Fraction
        Frames per second in the mean.
    frames : int or None
        How many to expect.
    sounds : list of av.audio.stream.AudioStream
        May be empty.

    Raises
    ------
    InputError
        If it is not a video, its end is missing, or it has no stream of video that can be decoded.
    """

    def __init__(self, path: PathLike) -> None:
        self.name = str(path)
        try:
            # A list of addresses that is called a video would be fetched.
            # By its whole path: what has a colon before the first slash is taken for an address too.
            self._container = av.open(os.path.abspath(self.name), options={'protocol_whitelist': 'file'})
        except (av.FFmpegError, OSError) as error:
            raise InputError(f'{path} is not a video that can be read, or its end is missing ({_reason(error)}).'
                             ) from error
        streams = self._container.streams
        videos = [stream for stream in streams.video if not stream.disposition & av.stream.Disposition.attached_pic]
        self.sounds = [stream for stream in streams.audio if stream.codec_context]
        try:
            if not videos:
                raise InputError(f'{path} has no video in it' + (', only sound.' if self.sounds else '.'))
            self._video = videos[0]
            if not self._video.codec_context:
                raise InputError(f'{path} is coded in a way that PyAV {av.__version__} cannot decode: convert it to '
                                 'H.264.')
        except InputError:
            self._container.close()
            raise
        # None only of a stream that is not open.
        self.time_base: Fraction = self._video.time_base  # type: ignore[assignment]
        self.rate = self._video.average_rate or self._video.guessed_rate or Fraction(_FRAMES_PER_SECOND)
        self.start = Fraction(self._container.start_time or 0, av.time_base)
        self._length = (self._video.duration * self.time_base if self._video.duration
                        else Fraction(self._container.duration or 0, av.time_base))
        self.frames = self._video.frames or round(self._length * self.rate) or None
        self._undecodable = 0
        self._end = Fraction(0)
        self._shown: Optional[Fraction] = None
        self._finished = False

    def __iter__(self):
        size = None
        for packet in self._packets():
            if packet.stream.type == 'audio':
                if packet.dts is not None:
                    self._note_end(packet)
                    yield packet
                continue
            for decoded in self._decode(packet):
                frame = self._frame(decoded)
                size = size or frame.picture.shape[1::-1]
                if frame.picture.shape[1::-1] != size:
                    # Recordings of calls change their resolution on the way.
                    frame = frame._replace(picture=cv2.resize(frame.picture, size, interpolation=cv2.INTER_AREA))
                yield frame
        self._finished = True

    def damage(self) -> Optional[str]:
        """What went wrong on the way, or None."""
        if self._undecodable:
            return f'{self._undecodable} of its packets of video could not be decoded: it is damaged or cut off'
        # The last frame of many a video is shorter than declared, and so is the video than its sound.
        if self._finished and self._end < self._length * Fraction(19, 20) - 1:
            return f'it ends after {float(self._end):.1f} of {float(self._length):.1f} s: it is cut off'
        return None

    def close(self) -> None:
        self._container.close()

    def _packets(self):
        try:
            yield from self._container.demux(self._video, *self.sounds)
        except (av.FFmpegError, OSError):
            self._undecodable += 1

    def _decode(self, packet):
        try:
            return packet.decode()
        except av.FFmpegError:
            self._undecodable += 1
            return []

    def _frame(self, decoded):
        shown = decoded.pts * decoded.time_base - self.start if decoded.pts is not None else self._end
        if self._shown is not None and shown < self._shown - _JOINT:
            # Recordings that are joined end to end: the clock of each begins anew.
            self.start -= self._end - shown
            shown = self._end
        self._shown = shown
        duration = (decoded.duration or 0) * decoded.time_base
        self._end = max(self._end, shown + (duration or 1 / self.rate))
        picture = _bgr(decoded)
        if decoded.interlaced_frame:
            picture = _upper_field(picture)
        picture = _with_square_pixels(picture, self._video.sample_aspect_ratio)
        return Frame(_upright(picture, self._orientation(decoded)), shown, duration)

    def _note_end(self, packet):
        if packet.pts is not None:
            self._end = max(self._end, (packet.pts + (packet.duration or 0)) * packet.time_base - self.start)

    def _orientation(self, decoded):
        """Where the stored x axis and y axis point to on the screen, as rows of a (2, 2) array."""
        matrix = decoded.side_data.get('DISPLAYMATRIX')
        if matrix is not None:
            return np.frombuffer(matrix, '<i4').reshape(3, 3)[:2, :2] / 65536
        tags = {name.lower(): value for name, value in self._video.metadata.items()}
        try:
            angle = math.radians(int(tags.get('rotate', 0)))
        except ValueError:
            angle = 0
        return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


class Camera:
    """A camera, with the interface of :class:`VideoFile`; its frames' times are those of their arrival.

    Raises
    ------
    InputError
        If it does not open.
    """

    time_base = _CAMERA_CLOCK
    rate = Fraction(_FRAMES_PER_SECOND)
    frames = None
    start = Fraction(0)
    sounds = ()

    def __init__(self, number: int) -> None:
        self.name = f'--camera {number}'
        self._capture = cv2.VideoCapture(number)
        if not self._capture.isOpened():
            raise InputError(f'{self.name} does not open.')

    def __iter__(self):
        begin = None
        while True:
            there, picture = self._capture.read()
            if not there:
                return
            now = time.monotonic()
            begin = now if begin is None else begin
            yield Frame(picture, Fraction(round((now - begin) / _CAMERA_CLOCK)) * _CAMERA_CLOCK)

    def damage(self) -> Optional[str]:
        return None

    def close(self) -> None:
        self._capture.release()


class VideoWriter:
    """H.264 in MP4, which browsers play, with the times, the sound and the size of a source.

    An odd width or height gets a column or row more at the edge, which H.264 as browsers know it needs.

    Parameters
    ----------
    path : path
        Ends in .mp4.
    source : VideoFile or Camera

    Raises
    ------
    InputError
        If PyAV has no encoder.
    """

    def __init__(self, path: PathLike, source: Union[VideoFile, Camera]) -> None:
        self._encoder = next((name for name in _ENCODERS if name in av.codecs_available and _is_encoder(name)), None)
        if self._encoder is None:
            raise InputError(f'PyAV {av.__version__} has no encoder for H.264 here ({" or ".join(_ENCODERS)}): install '
                             'the package from PyPI, pip install --force-reinstall av.')
        self._path, self._source = str(path), source
        self._container: Any = None
        self._early: list[av.Packet] = []
        self._sounds: dict[int, Any] = {}
        # Of each sound, the last packet's time where it is copied, in its units; otherwise its end in seconds.
        self._sounded: dict[int, Union[int, Fraction]] = {}
        self._durations: collections.deque[int] = collections.deque()
        self._last = -1

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if self._container is not None:
            try:
                if kind is None:
                    self._finish()
            finally:
                self._container.close()

    def add(self, frame: Frame) -> None:
        """Add a :class:`Frame`."""
        height, width = frame.picture.shape[:2]
        if self._container is None:
            self._open(width + width % 2, height + height % 2)
        picture = cv2.copyMakeBorder(frame.picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        # As the stream is marked, and as readers take it that look at no marks.
        coded = av.VideoFrame.from_ndarray(picture, 'bgr24').reformat(
            format='yuv420p', dst_colorspace='SMPTE170M', dst_color_range='MPEG')
        self._last = max(self._last + 1, round(frame.time / self._source.time_base))
        coded.pts, coded.time_base = self._last, self._source.time_base
        self._durations.append(round(frame.duration / self._source.time_base))
        self._mux(self._video.encode(coded))

    def add_sound(self, packet: av.Packet) -> None:
        """Add a packet of one of the source's sounds."""
        if self._container is None:
            self._early.append(packet)
            return
        origin, target = packet.stream, self._sounds[packet.stream.index]
        if _is_copied(origin):
            shift = round(self._source.start / packet.time_base)
            packet.dts -= shift  # type: ignore[operator]  # a source gives no packet without one
            if packet.pts is not None:
                packet.pts -= shift
            # Where recordings are joined, some come twice.
            if packet.dts > self._sounded.get(origin.index, -math.inf):
                self._sounded[origin.index] = packet.dts
                packet.stream = target
                self._container.mux(packet)
            return
        try:
            decoded: Any = packet.decode()
        except av.FFmpegError:
            return
        for sound in decoded:
            if sound.pts is not None:
                sound.pts -= round(self._source.start / sound.time_base)
                # As above, where recordings are joined.
                begin = sound.pts * sound.time_base
                end = self._sounded.get(origin.index, begin)
                if begin < end - _OVERLAP:
                    continue
                self._sounded[origin.index] = max(end, begin + Fraction(sound.samples, sound.sample_rate))
            self._container.mux(target.encode(sound))

    def _open(self, width, height):
        # The index comes first, so that a page plays the video before all of it is there.
        self._container = av.open(self._path, 'w', options={'movflags': '+faststart'})
        # Without B-frames the first frame is at 0 in every player.
        self._video = video = self._container.add_stream(
            self._encoder, rate=self._source.rate,
            options={'preset': 'veryfast', 'crf': '20', 'bf': '0'} if self._encoder == 'libx264' else {})
        video.width, video.height, video.pix_fmt = width, height, 'yuv420p'
        video.codec_context.time_base = self._source.time_base
        video.colorspace, video.color_range = _BT601, _LIMITED
        if self._encoder != 'libx264':
            video.bit_rate = round(width * height * self._source.rate / 8)
        for sound in self._source.sounds:
            self._sounds[sound.index] = (
                self._container.add_stream_from_template(sound) if _is_copied(sound)
                else self._container.add_stream('aac', rate=_SOUND_RATE,
                                                layout='mono' if sound.codec_context.channels == 1 else 'stereo'))
        early, self._early = self._early, []
        for packet in early:
            self.add_sound(packet)

    def _mux(self, packets):
        for packet in packets:
            # The encoder knows the mean rate alone.
            packet.duration = self._durations.popleft() or packet.duration
            self._container.mux(packet)

    def _finish(self):
        self._mux(self._video.encode())
        for sound in self._source.sounds:
            if not _is_copied(sound):
                self._container.mux(self._sounds[sound.index].encode())


def align_video(source: Union[VideoFile, Camera], target: PathLike,
                draw_faces: Callable[[np.ndarray, float], list[dict[str, Any]]],
                add_frame: Callable[[dict[str, Any]], object], limit: Optional[int] = None,
                stop: Sequence[object] = ()) -> dict[str, Any]:
    """Write a video with the faces of its frames drawn, whole or not at all.

    Parameters
    ----------
    source : VideoFile or Camera
    target : path
        Ends in .mp4.
    draw_faces : callable
        Gets a frame's picture, BGR, and its time in seconds; draws into the picture, and returns the faces.
    add_frame : callable
        Gets a dict for each frame: ``frame`` (its number, from 0), ``time`` in seconds, ``faces``.
    limit : int, optional
        The number of frames to end after.
    stop : sequence
        Ends the video, as far as it is, once it has an element.

    Returns
    -------
    dict
        ``width``, ``height``, ``frames`` and ``seconds`` of what was written.

    Raises
    ------
    InputError
        If there is no frame, or the video cannot be written.
    """
    try:
        return _align_video(source, target, draw_faces, add_frame, limit, stop)
    except av.FFmpegError as error:
        raise InputError(f'{target} cannot be written: {_reason(error)}.') from error


def _align_video(source, target, draw_faces, add_frame, limit, stop):
    frames, size = 0, None
    with whole(target) as scratch, VideoWriter(scratch, source) as writer, \
            tqdm(desc=source.name, total=limit or source.frames, unit='frame', leave=False, disable=None) as bar:
        for item in source:
            if stop:
                break
            if not isinstance(item, Frame):
                writer.add_sound(item)
                continue
            faces = draw_faces(item.picture, float(item.time))
            writer.add(item)
            add_frame({'frame': frames, 'time': round(float(item.time), 6), 'faces': faces})
            size, seconds = item.picture.shape, item.time + item.duration
            frames += 1
            bar.update()
            if frames == limit:
                break
        if not frames:
            raise InputError(f'{source.name} gives no frame' + (f': {source.damage()}.' if source.damage() else '.'))
    return {'width': size[1], 'height': size[0], 'frames': frames, 'seconds': round(float(seconds), 6)}


def _is_copied(sound):
    # A decoder can have a name of its own, as mp3float.
    name = sound.codec_context.codec.canonical_name
    return name in _COPIED_SOUND and (name != 'mp3' or sound.codec_context.sample_rate >= _LEAST_MP3_RATE)


def _is_encoder(name):
    try:
        return av.codec.Codec(name, 'w').is_encoder
    except ValueError:
        return False


def _reason(error):
    return getattr(error, 'strerror', None) or str(error)


def _bgr(decoded):
    """The pixels of a frame (height, width, 3) uint8 by the matrix and the range that it is marked with."""
    if decoded.colorspace not in _MATRICES:
        return decoded.to_ndarray(format='bgr24')
    # Left alone, PyAV takes every matrix for that of BT.601.
    return decoded.reformat(format='bgr24', src_colorspace=decoded.colorspace, dst_colorspace='DEFAULT',
                            src_color_range=decoded.color_range, dst_color_range='JPEG').to_ndarray()


def _with_square_pixels(picture, ratio):
    """A picture of which a pixel is ``ratio`` times as wide as high (None: not known), enlarged to square ones."""
    if not ratio or ratio == 1 or not 1 / _WIDEST_PIXEL <= ratio <= _WIDEST_PIXEL:
        return picture
    height, width = picture.shape[:2]
    size = (round(width * ratio), height) if ratio > 1 else (width, round(height / ratio))
    return cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC)


def _upper_field(picture):
    """Of a picture whose even and odd rows were taken at two times, the even ones, with their means between them."""
    upper = picture[::2]
    picture = np.repeat(upper, 2, axis=0)[:len(picture)]
    picture[1:-1:2] = cv2.addWeighted(upper[:-1], 0.5, upper[1:], 0.5, 0)
    return picture


def _upright(picture, orientation):
    """Turn a picture by the multiple of 90 degrees that is nearest, mirrored if the axes say so."""
    (x_right, x_down), (y_right, y_down) = orientation
    if x_right * y_down < x_down * y_right:
        picture, x_right, x_down = picture[:, ::-1], -x_right, -x_down
    clockwise = round(math.degrees(math.atan2(x_down, x_right)) / 90)
    return np.ascontiguousarray(np.rot90(picture, -clockwise))
