"""Landmarks of the faces in pictures and videos: ``python -m gluon_lprnet align``."""
import contextlib
import csv
import json
import os
import signal
import sys
from pathlib import Path
from typing import NamedTuple, Optional

import cv2
from tqdm import tqdm

from ..artifact import contents_of
from ..data.faces.landmarks import JAWS, POINTS
from ..data.images import EXTENSIONS, encode_image, images_in, is_image_file
from ..data.recordio import file_crc32
from ..evaluate.network_flag import add_network_flag, split_networks
from ..formats.symbol_files import read_json
from ..utils.errors import InputError
from ..utils.files import write_errors, write_file
from ..utils.flags import Commands, add_parser, non_negative_int, positive_int
from ..utils.signals import noted
from .classification import check_not_empty
from .detector_boxes import add_detector_flag, read_picture
from .detectors import default_detector, make_detector
from .face_alignment import draw_faces, fault_of_box, make_aligner, upright_crop
from .tracking import FaceTracker

_CAMERA = 'camera'
_CROPS = 'crops'
_CSV = ('image', 'frame', 'time', 'face', 'left', 'top', 'right', 'bottom', 'score', 'confidence', 'yaw', 'pitch',
        'roll', *(f'{axis}{number}' for number in range(POINTS) for axis in 'xy'))
# Flags that shape the results.
_SETTINGS = 'jaw', 'detector', 'boxes', 'crops', 'pose'
_CONTENTS = 'contents'
# What a run writes besides the pictures and videos.
_LINES, _FOUND, _RUN = 'landmarks.jsonl', 'landmarks.json', 'settings.json'
_VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg', '.3gp', '.ts', '.mts')


class _Source(NamedTuple):
    """Something to align: the name of what is written for it, and its path (None for the camera)."""

    name: str
    path: Optional[Path] = None


def _find_sources(arguments, out, crops=False):
    """The pictures, and the videos, that the arguments name; with ``crops``, faces are cut out of the pictures."""
    pictures, videos = [], []
    # What is in the folder of an earlier run was written by it, except what it took itself.
    written_in = out.resolve() if any((out / name).exists() for name in (_LINES, _FOUND)) else None
    taken = {stamp[0] for stamp in _earlier_sources(out).values() if stamp}
    for argument in arguments:
        check_not_empty(argument)
        path = Path(argument)
        extension = path.suffix.lower()
        if argument == _CAMERA:
            videos.append(_Source('camera.mp4'))
        elif path.is_dir():
            inside = images_in(path)
            if written_in and path.resolve() in written_in.parents:
                inside = [file for file in inside
                          if written_in not in file.resolve().parents or str(file.resolve()) in taken]
            if not inside:
                raise InputError(f'{path} holds no pictures ({", ".join(EXTENSIONS)}).')
            pictures += [_Source(file.relative_to(path).as_posix(), file) for file in inside]
        elif not path.exists():
            raise InputError(f'{path} does not exist: give pictures, folders of pictures, videos, or {_CAMERA}.')
        elif extension in EXTENSIONS or is_image_file(path):
            pictures.append(_Source(path.name, path))
        elif extension in _VIDEOS:
            videos.append(_Source(f'{path.stem}.mp4', path))
        else:
            raise InputError(f'{path} has the extension of neither a picture ({", ".join(EXTENSIONS)}) nor a video '
                             f'({", ".join(_VIDEOS)}).')
    sources = {}
    paths = {source.path.resolve(): source.path for source in pictures + videos if source.path}
    for source in pictures + videos:
        if source.name in sources:
            raise InputError(f'{source.path or _CAMERA} and {sources[source.name].path or _CAMERA} would both be '
                             f'written to {out / source.name}: align them in two runs, each with its --out.')
        if crops and source.name.startswith(f'{_CROPS}/'):
            raise InputError(f'{source.path} would be written to {out / source.name}, among the crops: give the '
                             f'folder {_CROPS} itself, or align it in a run without --crops.')
        target = (out / source.name).resolve()
        if target in paths:
            raise InputError(f'--out {out} would overwrite {paths[target]}: give another folder.')
        sources[source.name] = source
    return pictures, videos


def _stamp(path):
    """Path, size and time of change of a source, to tell it from another of the same name; None without a file."""
    # What cannot be read is said when that is tried.
    with contextlib.suppress(OSError):
        if path is not None:
            status = path.stat()
            return [str(path.resolve()), status.st_size, status.st_mtime_ns]
    return None


def _earlier_sources(out):
    """What the runs whose results are in a folder took: the names of the results, with the :func:`_stamp` of each."""
    if not ((out / _LINES).exists() and (out / _RUN).exists()):
        return {}
    return read_json(out / _RUN, 'the settings of a run').get('sources', {})


def _contents(network, *others):
    """Checksums of the network, and of the others where they are files."""
    return {**contents_of(network), **{str(file): file_crc32(file) for file in others if file and Path(file).is_file()}}


def _read_boxes(file):
    """The boxes by picture, of a file ``{"name": [[left, top, right, bottom], ...]}``."""
    try:
        boxes = json.loads(Path(file).read_text(encoding='utf-8'))
    except OSError as error:
        raise InputError(f'--boxes {file} cannot be read: {error.strerror}.') from error
    except ValueError as error:
        raise InputError(f'--boxes {file} is not JSON: {error}.') from error
    form = 'give {"NAME.jpg": [[left, top, right, bottom], ...], ...}'
    if not isinstance(boxes, dict):
        raise InputError(f'--boxes {file}: {form}.')
    for name, of_picture in boxes.items():
        if not isinstance(of_picture, list):
            raise InputError(f'--boxes {file}, {name}: not a list of boxes: {form}.')
        for box in of_picture:
            fault = fault_of_box(box)
            if fault:
                raise InputError(f'--boxes {file}, {name}: {box} {fault}.')
    return boxes


class _Results:
    """What is found: a line for each picture and frame as it comes, and at the end all but the frames in one file.

    ``settings`` are what shapes the results, ``sources`` the :func:`_stamp` of each source by name. With ``resume``
    those of an earlier run with the same settings stay, except of pictures that come from another source now and of
    videos that are named again; ``done`` has the names of its pictures. With ``form``, json or csv, what comes is
    printed too.
    """

    def __init__(self, out, settings, sources, resume=False, form=None):
        self.path, self._lines = out / _FOUND, out / _LINES
        self._network = settings['network']
        self._form, self._table = form, csv.writer(sys.stdout)
        if form == 'csv':
            self._table.writerow(_CSV)
        self.done = set()
        self.videos = []
        earlier = _earlier_sources(out)
        if resume:
            _check_same(out / _RUN, settings)
            theirs = [name for name in sources if name not in earlier and os.path.lexists(out / name)]
            if theirs:
                raise InputError(f'--resume would overwrite {out / theirs[0]}, which that run did not write: move it, '
                                 'or give another folder.')
            self._keep(out, {name for name in sources if earlier.get(name) != sources[name]}, sources)
        else:
            # First: it sums up the lines that go now.
            if self.path.exists():
                self.path.unlink()
            write_file(self._lines, '')
        # After the lines: a kill between the two leaves none that is of another source than this says.
        write_file(out / _RUN, json.dumps({**settings, 'sources': {**earlier, **sources}}, indent=1) + '\n')
        self.pictures = len(self.done)

    def _keep(self, out, changed, sources):
        """Of an earlier run, what is of pictures that have not changed, and of videos that are not begun anew."""
        if self.path.exists():
            self.videos = [entry for entry in read_json(self.path, 'the results of a run').get('videos', ())
                           if entry['video'] not in sources and (out / entry['video']).exists()]
        videos = {entry['video'] for entry in self.videos}

        def copy(path):
            with open(path, 'w', encoding='utf-8') as file:
                for line, entry in self._entries():
                    if entry.get('video') in videos:
                        file.write(line)
                    name = entry.get('image')
                    if name and name not in self.done and name not in changed and (out / name).exists():
                        self.done.add(name)
                        file.write(line)
        write_file(self._lines, copy)

    def _entries(self):
        """The lines, each with what it says."""
        with open(self._lines, encoding='utf-8') as file:
            for line in file:
                # A kill, or a full disk, can have cut the last one off.
                with contextlib.suppress(json.JSONDecodeError):
                    yield line, json.loads(line)

    def add_image(self, entry):
        self.pictures += 1
        self._add_line(entry)

    def add_frame(self, video, frame):
        """``video`` is the name; the frame is not kept in memory."""
        self._add_line({'video': video, **frame})

    def write(self):
        """The file, from the lines: no more than one is in memory."""
        def copy(path):
            with open(path, 'w', encoding='utf-8') as file:
                file.write(f'{{"network": {json.dumps(self._network)}, "images": [')
                pictures = (line for line, entry in self._entries() if 'image' in entry)
                for number, line in enumerate(pictures):
                    file.write(', ' * bool(number) + line.rstrip())
                file.write(f'], "videos": {json.dumps(self.videos)}}}\n')
        write_file(self.path, copy)

    def _add_line(self, entry):
        # Opened for each line, so that a kill or a full disk loses no other one.
        with write_errors(self._lines), open(self._lines, 'a', encoding='utf-8') as file:
            file.write(json.dumps(entry) + '\n')
        if self._form == 'json':
            print(json.dumps(entry))
        elif self._form == 'csv':
            self._table.writerows(_rows(entry))


def _check_same(file, settings):
    """Refuse to go on with a run of other settings."""
    if not file.exists():
        raise InputError(f'--resume: there is no {file}, and so no run to go on with: leave the flag out to start '
                         'one, or give the folder of the run.')
    before = read_json(file, 'the settings of a run')
    if _CONTENTS not in before:
        raise InputError(f'--resume: {file} is of a version before, which did not write what it took: give '
                         '--overwrite, or another folder.')
    changed = [f'--{name} (was {before.get(name)!r}, is {value!r})' for name, value in settings.items()
               if name != _CONTENTS and before.get(name) != value]
    changed = changed or [f'{name} (which has changed since)' for name, crc in settings[_CONTENTS].items()
                          if before.get(_CONTENTS, {}).get(name) != crc]
    if changed:
        raise InputError(f'--resume: {", ".join(changed)} would change the results. Leave it as it was, or give '
                         'another folder.')


def _rows(entry):
    """The faces of a picture or frame as rows of ``_CSV``; one that was not detected has no score."""
    # A name of other bytes than UTF-8 is printed with replacements.
    name = entry.get('image', entry.get('video')).encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')
    for number, face in enumerate(entry['faces'], 1):
        yield (name, entry.get('frame'), entry.get('time'), face.get('id', number), *face['box'], face.get('score'),
               face['confidence'], *(face['pose'][angle] for angle in ('yaw', 'pitch', 'roll')),
               *(number for point in face['points'] for number in point))


def _check_free(sources, out, crops):
    """Refuse to replace the results of another run, or a file of the user."""
    names = [_FOUND, _LINES, _RUN, *(source.name for source in sources), *[_CROPS] * crops]
    existing = [name for name in names if os.path.lexists(out / name)]
    if existing:
        raise InputError(f'--out {out} holds {existing[0]}' + (f' and {len(existing) - 1} more' if existing[1:] else '')
                         + ' of what this would write: give another folder, --resume to go on with a run that was '
                         'stopped, or --overwrite.')


def _align_picture(aligner, source, picture, boxes, boxes_file):
    """The faces of a picture (BGR)."""
    given = None
    if boxes is not None:
        if source.name not in boxes:
            raise InputError(f'{source.path}: --boxes {boxes_file} has no {source.name!r}.')
        given = boxes[source.name]
        for box in given:
            fault = fault_of_box(box, picture.shape[1::-1])
            if fault:
                raise InputError(f'{source.path}: the box {box} of --boxes {boxes_file} {fault}.')
    return aligner(picture, given)


def _write_picture(path, picture):
    """Write a BGR picture as its extension says."""
    write_file(path, encode_image(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), path.suffix))


def _write_crops(out, name, picture, faces, size):
    extension = '.png' if name.lower().endswith('.png') else '.jpg'
    for number, face in enumerate(faces, 1):
        _write_picture(out / _CROPS / f'{name}-{number}{extension}', upright_crop(picture, face, size))
    # Of a picture that was there before, and had more faces.
    number = len(faces) + 1
    while (before := out / _CROPS / f'{name}-{number}{extension}').exists():
        before.unlink()
        number += 1


def _import_video():
    """The module of videos, for which pictures do not wait."""
    try:
        from . import video
    except ImportError as error:
        raise InputError("a video needs PyAV: pip install 'av>=15.1', or, from a clone, pip install '.[video]'."
                         ) from error
    return video


def _align_video(aligner, source, args, target, results, stop, report):
    """The video with its landmarks is written; its entry of the JSON."""
    tracker = FaceTracker(aligner, smooth=not args.no_smoothing)
    seen = 0

    def draw(picture, time):
        nonlocal seen
        faces = tracker.update(picture, time)
        draw_faces(picture, faces, args.pose)
        seen += bool(faces)
        return faces

    video = _import_video()
    with contextlib.closing(video.Camera(args.camera) if source.path is None else video.VideoFile(source.path)) as file:
        written = video.align_video(file, target, draw, lambda frame: results.add_frame(source.name, frame),
                                    args.frames, stop)
        damage = file.damage()
    entry = {'video': source.name, **written, 'frames_with_faces': seen, 'faces': tracker.count,
             **({'damage': damage} if damage else {})}
    results.videos.append(entry)
    report(f'{source.name}: {entry["frames"]} frames, {_count(entry["faces"])}, in {seen} of the frames')
    return entry


def add_commands(commands: Commands) -> None:
    align = add_parser(
        commands, 'align', help='landmarks of the faces in pictures, videos or of a camera',
        example='gluon-lprnet align photo.jpg folder video.mp4 --out aligned\n'
                'gluon-lprnet align photo.jpg --network runs/face --crops 256 --pose --out crops',
        description='Find faces and their 68 landmarks. DIR gets the pictures and videos with the landmarks drawn, '
                    'landmarks.json, and landmarks.jsonl with a line for each picture or frame as it comes. '
                    'Exit status 1 if a source could not be read; the others are done. Ctrl-C or SIGTERM ends a video '
                    'early and keeps what is done. Videos need PyAV and become MP4 with their sound.')
    align.add_argument('sources', nargs='+', metavar='SOURCE',
                       help=f'picture, folder of pictures, video, or {_CAMERA}')
    add_network_flag(align, 'landmarks')
    align.add_argument('--jaw', choices=JAWS, default='3d',
                       help='of a network that knows both: that of the head, also where it is hidden, or the visible '
                            'contour (default: %(default)s)')
    align.add_argument('--out', default='aligned', metavar='DIR', help='folder to write to (default: %(default)s)')
    again = align.add_mutually_exclusive_group()
    again.add_argument('--overwrite', action='store_true',
                       help='replace what an earlier run wrote there; its pictures of other names stay')
    again.add_argument('--resume', action='store_true',
                       help='go on with a run that was stopped, with the same flags: its pictures are not done again; '
                            'videos that are named again are begun anew')
    where = align.add_mutually_exclusive_group()
    where.add_argument('--boxes', metavar='FILE.json',
                       help="boxes of the landmarks instead of a detector's, for pictures: "
                            '{"NAME.jpg": [[left, top, right, bottom], ...]}; names in a folder are relative to it')
    add_detector_flag(where)
    align.add_argument('--crops', type=positive_int, metavar='SIZE',
                       help='of pictures, also write crops/NAME-N.jpg (of a PNG, .png): a square of SIZE pixels for '
                            'each face, its eyes level')
    align.add_argument('--pose', action='store_true', help="of pictures, draw the heads' axes too")
    align.add_argument('--camera', type=non_negative_int, default=0, metavar='N',
                       help=f'number of the camera that {_CAMERA} means (default: %(default)s)')
    align.add_argument('--frames', type=positive_int, metavar='N', help='of a video or the camera, only the first N')
    align.add_argument('--no-smoothing', action='store_true',
                       help='of a video or the camera, the landmarks of each frame as they are found, unfiltered')
    form = align.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true', help='also print the lines of landmarks.jsonl')
    form.add_argument('--csv', action='store_true',
                      help='also print comma-separated values, a row for each face: where it is, its box, score, '
                           'confidence, pose and the coordinates of its points')
    align.set_defaults(run=_run)


def _run(args):
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise InputError(f'--out {out} is a file: give a folder.')
    (network,), sources = split_networks('align', 'landmarks', args.sources, args.network)
    pictures, videos = _find_sources(sources, out, args.crops is not None)
    if videos:
        _import_video()
    if not (args.overwrite or args.resume):
        _check_free(pictures + videos, out, args.crops is not None)
    for flag in ('boxes', 'crops'):
        if videos and getattr(args, flag):
            raise InputError(f'--{flag} is for pictures, and {videos[0].path or _CAMERA} is a video.')
    boxes = _read_boxes(args.boxes) if args.boxes else None
    aligner = make_aligner(network, make_detector(args.detector), args.jaw)
    form = 'json' if args.json else 'csv' if args.csv else None
    settings = {'network': str(network), **{name: getattr(args, name) for name in _SETTINGS},
                'detector': None if args.boxes else args.detector or default_detector(),
                _CONTENTS: _contents(network, args.boxes, args.detector)}
    results = _Results(out, settings, {source.name: _stamp(source.path) for source in pictures + videos}, args.resume,
                       form)
    faults = 0

    def report(line):
        tqdm.write(line, file=sys.stderr if form else sys.stdout)

    try:
        for source in tqdm([source for source in pictures if source.name not in results.done], 'pictures',
                           unit='picture', leave=False, disable=None):
            try:
                picture = read_picture(source.path)
                faces = _align_picture(aligner, source, picture, boxes, args.boxes)
            except InputError as error:
                faults += 1
                tqdm.write(f'{error}', file=sys.stderr)
                continue
            if args.crops:
                _write_crops(out, source.name, picture, faces, args.crops)
            draw_faces(picture, faces, args.pose)
            _write_picture(out / source.name, picture)
            height, width = picture.shape[:2]
            results.add_image({'image': source.name, 'width': width, 'height': height, 'faces': faces})
            report(f'{source.name}: {_count(len(faces))}')
        for source in videos:
            with noted() as signals:
                try:
                    entry = _align_video(aligner, source, args, out / source.name, results, signals, report)
                except InputError as error:
                    faults += 1
                    print(error, file=sys.stderr)
                else:
                    if 'damage' in entry:
                        faults += 1
                        print(f'{source.path}: {entry["damage"]}; what there is of it was done.', file=sys.stderr)
            # Ctrl-C is how a camera is switched off.
            if signals and (source.path is not None or signals != [signal.SIGINT]):
                signal.raise_signal(signals[0])
    finally:
        results.write()
        report(f'Written: {results.path}; pictures: {results.pictures}, videos: {len(results.videos)}'
               + (f', not done (named above): {faults}' if faults else ''))
    return 1 if faults else 0


def _count(faces):
    return 'no face found' if not faces else '1 face' if faces == 1 else f'{faces} faces'
