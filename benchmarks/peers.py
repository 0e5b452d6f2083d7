#!/usr/bin/env python
"""Face aligners of other packages, for ``faces.py --peer``: a process that answers on one pipe what another asks it.

    PYTHON benchmarks/peers.py mediapipe

PYTHON is that of an environment with the aligner in it; nothing of this package is needed there:

    uv venv mp --python 3.11 && uv pip install --python mp/bin/python mediapipe==0.10.21
    uv venv dl --python 3.11 && uv pip install --python dl/bin/python dlib-bin face_recognition_models numpy

MediaPipe's models come with its wheel up to 0.10.21, dlib's with ``face_recognition_models`` (100 MB). face-alignment
is not here: it fetches its weights from its author's page.

Every line is JSON. The first one says ``peer``, the name and version, or ``error``, what is missing. Then for each
``{"shape": [height, width], "pixels": base64 of RGB, "box": [left, top, right, bottom]}``, the box of the landmarks,
there is an answer ``{"points": 68 of [x, y], or null where no face is found, "ms": the time of the
processor}``.
"""
import base64
import importlib.metadata
import importlib.util
import json
import os
import sys
import time

import numpy as np

# The 68 points among the 468 of MediaPipe's mesh, by a list in wide use; MediaPipe gives none.
MESH = (162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389, 71, 63, 105, 66, 107, 336,
        296, 334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305, 33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373,
        380, 61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87)


def square(box, shift, ratio):
    """A square of ``ratio`` times the box's longer side, ``shift`` sides below its center: left, top, right, bottom."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top)
    x, y, half = (left + right) / 2, (top + bottom) / 2 + shift * side, ratio * side / 2
    return x - half, y - half, x + half, y + half


def mediapipe(shift=0.0, ratio=1.5):
    """Its attention mesh in the square, in which its own detector finds the face first."""
    from mediapipe.python.solutions.face_mesh import FaceMesh
    mesh = FaceMesh(static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.1)

    def align(picture, box):
        left, top, right, bottom = (round(edge) for edge in square(box, shift, ratio))
        rows, columns = (np.clip(np.arange(*ends), 0, size - 1)
                         for ends, size in zip(((top, bottom), (left, right)), picture.shape))
        found = mesh.process(np.ascontiguousarray(picture[rows[:, None], columns])).multi_face_landmarks
        if not found:
            return None
        points = np.array([[found[0].landmark[number].x, found[0].landmark[number].y] for number in MESH])
        return points * [right - left, bottom - top] + [left - 0.5, top - 0.5]
    return align


def dlib(shift=-0.05, ratio=1.1):
    """Its regression trees, in the box that its detector would give."""
    import dlib
    models = importlib.util.find_spec('face_recognition_models').submodule_search_locations[0]
    predictor = dlib.shape_predictor(os.path.join(models, 'models', 'shape_predictor_68_face_landmarks.dat'))

    def align(picture, box):
        found = predictor(picture, dlib.rectangle(*(round(edge) for edge in square(box, shift, ratio))))
        return np.array([[point.x, point.y] for point in found.parts()], dtype=float)
    return align


# The squares are the best of a few on faces of 300-W's training part.
PEERS = {'mediapipe': (mediapipe, ('mediapipe',)), 'dlib': (dlib, ('dlib-bin', 'face_recognition_models'))}


def main():
    # Keeps what the packages print out of the answers.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

    def answer(**entries):
        print(json.dumps(entries), file=answers, flush=True)

    make, packages = PEERS[sys.argv[1]]
    try:
        versions = [importlib.metadata.version(package) for package in packages]
        align = make(*map(float, sys.argv[2:]))
    except ImportError as error:
        answer(error=f'{error} (needed: {", ".join(packages)})')
        return
    answer(peer=f'{packages[0]} {versions[0]}')
    for line in sys.stdin:
        question = json.loads(line)
        picture = np.frombuffer(base64.b64decode(question['pixels']), 'uint8').reshape(*question['shape'], 3)
        begin = time.process_time()
        points = align(picture, question['box'])
        milliseconds = 1e3 * (time.process_time() - begin)
        answer(points=None if points is None else points.tolist(), ms=milliseconds)


if __name__ == '__main__':
    main()
