"""Worker processes: what they import, and that they need nothing of the caller's script."""
import subprocess
import sys
from pathlib import Path

from gluon_lprnet.data import pack, photos
from gluon_lprnet.data.faces import drawn, pose_synthesis, records
from gluon_lprnet.utils.processes import map_in_processes

ROOT = Path(__file__).resolve().parents[2]


def test_workers_of_packing_do_without_mxnet():
    functions = [pack._convert_files, photos._convert, records._convert_faces, drawn._draw_files,
                 pose_synthesis._profile_files]
    # A builtin, by which the worker imports the function's module and says what it has loaded.
    tasks = [f'[__import__("importlib").import_module("{function.__module__}"), __import__("sys").modules][1].keys() '
             '& {"gluon_lprnet", "mxnet"}' for function in functions]
    assert list(map_in_processes(eval, tasks, 2)) == [{'gluon_lprnet'}] * 5


def test_workers_that_need_mxnet_have_it_with_the_aliases_of_numpy():
    code = ('[__import__("importlib").import_module("gluon_lprnet.data.integrity").image_fault(b"no image"), '
            '__import__("gluon_lprnet._compat")._compat.import_mxnet().nd.ones((2, 2)).sum().asscalar()]')
    (fault, total), = map_in_processes(eval, [code], 2)
    assert fault == 'is not an image of a known format' and total == 4


def test_a_script_without_a_main_block_packs_in_several_processes(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text('from gluon_lprnet.utils.processes import map_in_processes\n'
                      'print(list(map_in_processes(abs, [-1, 2, -3], 2)))\n')
    done = subprocess.run([sys.executable, script], env={'PYTHONPATH': str(ROOT), 'PATH': ''}, capture_output=True,
                          text=True, timeout=300)
    assert (done.stdout, done.returncode) == ('[1, 2, 3]\n', 0), done.stderr
