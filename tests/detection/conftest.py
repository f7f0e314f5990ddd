from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from intl_transfer.data.shapes import ShapesSpec, make_shapes
from tests.ranks import run_stage

ROOT = Path(__file__).resolve().parents[2]

# A detector that trains in a second an iteration or less, and learns nothing.
TINY = [
    *["SOLVER.IMS_PER_BATCH", "2"],
    *["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MAX_SIZE_TRAIN", "64"],
    *["INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "64"],
    *["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"],
    *["TEST.PRECISE_BN.NUM_ITER", "1", "SOLVER.STEPS", "()"],
]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder for DETECTRON2_DATASETS with a small embedded set."""
    root = tmp_path_factory.mktemp("datasets")
    spec = ShapesSpec(
        objects_train=8, objects_val=8, scenes_train=6, scenes_val=3, crowd_fraction=0.2
    )
    make_shapes(root / "shapes", spec)
    return root


@pytest.fixture
def registered(data, monkeypatch):
    """The names of the embedded sets, registered where ``data`` is."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from detection import datasets

    monkeypatch.setenv("DETECTRON2_DATASETS", str(data))
    names = [f"shapes_{n}" for n in ("coco_train", "coco_val", "voc_trainval", "voc_test")]
    for name in names:
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
    datasets.register()
    yield names
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def stage(registered, monkeypatch):
    """The stage in this process: its exit status for a command line, without a new start."""
    from detection import datasets, train_net

    deterministic = torch.are_deterministic_algorithms_enabled()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_net.py", *map(str, arguments)])
        return train_net.main()

    known = dict(datasets._custom)
    yield run
    torch.use_deterministic_algorithms(deterministic)
    forget(set(datasets._custom) - set(known))


def forget(names):
    """Takes data sets of a test out of the catalogs."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from detection import datasets

    for name in names:
        datasets._custom.pop(name, None)
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory):
    """Converted weights of a ResNet-18 that is not at its start."""
    from intl_transfer.conversion import convert
    from tests.conversion.test_conversion import backbone_state

    folder = tmp_path_factory.mktemp("weights")
    torch.save(backbone_state(), folder / "in.pth")
    convert(folder / "in.pth", folder / "intl_r18.pth")
    return folder / "intl_r18.pth"


def _command(arguments):
    return [sys.executable, str(ROOT / "detection" / "train_net.py"), *map(str, arguments)]


def _environment(data):
    return {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": str(data)}


def _stage_alone(arguments, environment, cwd):
    """The stage, and what it and its own processes print."""
    os.environ.update(environment)
    os.chdir(cwd or ROOT)
    sys.argv[:] = arguments
    # Workers of the loader import the script that was started, which makes Detectron2 importable.
    sys.modules["__main__"].__file__, sys.modules["__main__"].__spec__ = arguments[0], None
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        from detection.train_net import main

        try:
            status = main()
        except SystemExit as exit:
            status = exit.code
        printed = []
        for stream, file in ((sys.stdout, out), (sys.stderr, err)):
            stream.flush()
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, status, *printed)


def start_train_net(data, *arguments):
    """Starts the stage and leaves it running."""
    return subprocess.Popen(
        _command(arguments),
        env=_environment(data),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def train_net(data, *arguments, check=True, cwd=None):
    """Runs the stage in a process of its own."""
    (done,) = run_stage(_stage_alone, 1, _command(arguments)[1:], _environment(data), cwd)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done
