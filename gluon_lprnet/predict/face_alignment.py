"""The 68 landmarks of each face of a picture."""
import cv2
import numpy as np

from ..evaluate.landmarks import load_landmark_network, predict_landmarks
from ..utils.errors import InputError


class Aligner:
    """A landmark network with a detector.

    Parameters
    ----------
    network : path
        As of :func:`gluon_lprnet.evaluate.landmarks.load_landmark_network`.
    detect : callable
        :class:`HaarDetector` or :class:`YuNetDetector`.
    """

    def __init__(self, network, detect):
        self.network = network
        self._net, self._description = load_landmark_network(network)
        self._detect = detect

    def __call__(self, picture, boxes=None):
        """The faces of a picture.

        Parameters
        ----------
        picture : ndarray (height, width, 3) uint8
            BGR.
        boxes : sequence of (left, top, right, bottom), optional
            Of the faces' landmarks, in pixels; by default the detector looks for faces.

        Returns
        -------
        list of dict
            With ``box``, of the landmarks as given or expected, and ``points``, 68 of (x, y); of detected faces
            also ``detected`` (the detector's box), ``detector`` and ``score``. Pixels, to a hundredth.

        Raises
        ------
        InputError
            If the network gives NaN or infinite landmarks.
        """
        if boxes is None:
            detections = self._detect(picture)
            faces = [{'box': _rounded(detection.landmark_box()), 'detected': _rounded(detection.box),
                      'detector': detection.kind, 'score': detection.score} for detection in detections]
        else:
            faces = [{'box': _rounded(np.array(box))} for box in boxes]
        if faces:
            rgb = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            predicted = predict_landmarks(self._net, self._description, [(rgb, face['box']) for face in faces])
            if not np.isfinite(predicted).all():
                raise InputError(f'{self.network} gives NaN or infinite landmarks: train it again.')
            for face, points in zip(faces, predicted):
                face['points'] = _rounded(points)
        return faces


def draw_faces(picture, faces):
    """Draw boxes and landmarks, as of :class:`Aligner`, into a BGR picture."""
    for face in faces:
        box = np.array(face['box'])
        size = max(1, round((box[2:] - box[:2]).max() / 120))
        left, top, right, bottom = np.rint(box).astype(int).tolist()
        cv2.rectangle(picture, (left, top), (right, bottom), (255, 160, 0), size, cv2.LINE_AA)
        for x, y in np.rint(face['points']).astype(int).tolist():
            cv2.circle(picture, (x, y), size, (0, 255, 0), cv2.FILLED, cv2.LINE_AA)


def _rounded(numbers):
    return np.round(numbers, 2).tolist()
