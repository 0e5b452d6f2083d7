import argparse

import numpy as np

from gluon_lprnet.data.faces import drawn
from gluon_lprnet.data.faces.datasets import read_faces
from gluon_lprnet.data.faces.head_model import fit_pose
from gluon_lprnet.data.images import decode_image


def test_faces_of_all_yaws_are_read_as_300w_lp(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    drawn.add_commands(parser.add_subparsers())
    args = parser.parse_args(['draw-faces', str(tmp_path / 'drawn'), '--count', '40', '--workers', '1'])
    args.run(args)
    assert '40 drawn faces' in capsys.readouterr().out
    for part, count in (('train', 40), ('test', 8)):
        faults = []
        faces = list(read_faces(tmp_path / 'drawn' / part, '300w-lp', faults))
        assert len(faces) == count and not faults
        for face in faces:
            width, height = decode_image(open(face.image, 'rb').read()).size
            assert (face.landmarks > 0).all() and (face.landmarks < (width, height)).all()
            assert max(face.box[2:] - face.box[:2]) >= 100
    yaws = np.degrees([face.pose[1] for face in read_faces(tmp_path / 'drawn' / 'train', '300w-lp', [])])
    assert yaws.min() < -60 and yaws.max() > 60 and (abs(yaws) < 30).sum() > 5


def test_the_pose_is_that_of_the_landmarks():
    for seed in range(5):
        _, landmarks, fit = drawn.draw_face(np.random.default_rng(seed))
        assert abs(np.degrees(fit_pose(landmarks).pose[1] - fit.pose[1])) < 8


def test_the_seed_decides_and_the_workers_do_not(tmp_path):
    for name, seed, workers in (('one', 0, 1), ('two', 0, 2), ('other', 1, 1)):
        drawn.write_drawn_faces(tmp_path / name, 20, seed, workers)
    one, two, other = ([(face.name, face.landmarks.tolist(), open(face.image, 'rb').read())
                        for face in read_faces(tmp_path / name / 'train', '300w-lp', [])]
                       for name in ('one', 'two', 'other'))
    assert one == two
    assert one != other
    assert len({pixels for _, _, pixels in one}) == 20
