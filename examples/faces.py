"""Draw faces at eight angles, find the landmarks of each with the network of the package, and make one picture of them.

    python examples/faces.py [OUT.jpg]

The faces are drawn by program, so that their landmarks are known: the error of each is printed. Takes a few seconds.
"""
import sys

import gluon_lprnet                                             # before mxnet and cv2
import cv2
import numpy as np

from gluon_lprnet.data.faces.drawn import draw_face
from gluon_lprnet.data.faces.landmarks import crop_matrix, landmark_box, transform, warp_crop
from gluon_lprnet.data.images import encode_image
from gluon_lprnet.evaluate.landmarks import normalized_mean_errors
from gluon_lprnet.utils.files import write_file

YAWS = (-75, -50, -25, 0, 20, 40, 60, 75)
SIDE = 200


def main(out='faces.jpg'):
    rng = np.random.default_rng(6)
    drawn = [draw_face(rng) for _ in range(60)]
    yaw = np.array([np.degrees(fit.pose[1]) for _, _, fit in drawn])
    chosen = [drawn[np.abs(yaw - wanted).argmin()] for wanted in YAWS]

    aligner = gluon_lprnet.FaceAligner()
    # A detector of upright faces does not find them at every pose; for photos, leave the boxes out.
    found = aligner.predict([picture for picture, _, _ in chosen],
                            boxes=[[landmark_box(landmarks)] for _, landmarks, _ in chosen])

    panels = []
    for (picture, landmarks, fit), (face,) in zip(chosen, found):
        error = normalized_mean_errors([face.landmarks], [landmarks])[0]
        print(f'yaw {np.degrees(fit.pose[1]):4.0f} degrees: NME {100 * error:.1f}%')
        matrix = crop_matrix(face.box, SIDE, 1.4)
        panel = warp_crop(picture, matrix, SIDE)
        for x, y in np.rint(16 * transform(matrix, face.landmarks)).astype(int).tolist():
            cv2.circle(panel, (x, y), 2 * 16, (60, 255, 60), cv2.FILLED, cv2.LINE_AA, shift=4)
        panels.append(panel)
    columns = len(panels) // 2
    grid = np.vstack([np.hstack(panels[:columns]), np.hstack(panels[columns:])])
    write_file(out, encode_image(grid, '.jpg'))
    print(f'Written: {out}')


if __name__ == '__main__':
    main(*sys.argv[1:])
