from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def python(code: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs code in a fresh interpreter, where nothing is imported yet."""
    search = os.pathsep.join([str(p) for p in (path, ROOT) if p])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": search},
    )


def fake_detectron2(folder: Path, compiled: bool) -> Path:
    package = folder / "detectron2"
    (package / "layers").mkdir(parents=True)
    (package / "__init__.py").write_text("__version__ = '9.9'\n")
    (package / "layers" / "__init__.py").write_text("from detectron2 import _C\n")
    if compiled:
        (package / "_C.py").write_text("def nms_rotated():\n    return 'real'\n")
    return folder


def test_a_real_build_is_left_alone(tmp_path):
    path = fake_detectron2(tmp_path, compiled=True)
    done = python(
        "import intl_transfer.detectron2_compat as c\n"
        "from detectron2 import _C\n"
        "assert _C.nms_rotated() == 'real'\n"
        "import torch\n"
        "assert type(torch.ops.detectron2).__module__ == 'torch._ops'\n"
        "s = c.status()\n"
        "assert s.compiled_ops and s.version == '9.9', s\n"
        "assert not any('_C' in name for name in s.stood_in), s\n",
        path,
    )
    assert done.returncode == 0, done.stderr


def test_without_a_build_the_stand_in_says_how_to_get_one(tmp_path):
    path = fake_detectron2(tmp_path, compiled=False)
    done = python(
        "import intl_transfer.detectron2_compat as c\n"
        "s = c.status()\n"
        "assert s.installed and not s.compiled_ops, s\n"
        "from detectron2 import _C\n"
        "assert _C.get_compiler_version() == 'not compiled'\n"
        "import torch\n"
        "for op in (_C.nms_rotated, torch.ops.detectron2.nms_rotated):\n"
        "    try:\n        op(1)\n"
        "    except c.MissingCompiledOpError as e: print(e)\n"
        "@torch.library.custom_op('detectron2::registered', mutates_args=())\n"
        "def registered(x: torch.Tensor) -> torch.Tensor: return x + 1\n"
        "assert torch.ops.detectron2.registered(torch.zeros(1)) == 1\n",
        path,
    )
    assert done.returncode == 0, done.stderr
    assert "detectron2._C.nms_rotated is a compiled operator" in done.stdout
    assert "torch.ops.detectron2.nms_rotated is a compiled operator" in done.stdout
    assert "pip install --no-build-isolation" in done.stdout


def test_a_broken_detectron2_is_reported_not_raised(tmp_path):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("raise ImportError('libtorch is gone')\n")
    done = python("import intl_transfer.detectron2_compat as c\nprint(c.status().error)", tmp_path)
    assert "ImportError: libtorch is gone" in done.stdout


def test_the_installed_one_works_with_todays_libraries():
    done = python(
        "import intl_transfer.detectron2_compat as c\n"
        "c.install()  # a second call changes nothing\n"
        "import sys\n"
        "assert sum(f is c._StandInFinder for f in sys.meta_path) == 1\n"
        "import numpy, PIL.Image\n"
        "assert numpy.float is float and numpy.zeros(2, dtype=numpy.int).dtype == int\n"
        "assert PIL.Image.LINEAR == PIL.Image.BILINEAR\n"
        "from detectron2 import model_zoo\n"
        "from detectron2.utils.collect_env import collect_env_info\n"
        "print(collect_env_info())\n"
        "from detectron2.evaluation import COCOEvaluator\n"
        "from detectron2.modeling import build_model\n"
        "from detectron2.config import get_cfg\n"
        "import torch\n"
        "cfg = get_cfg()\n"
        "cfg.MODEL.DEVICE = 'cpu'\n"
        "cfg.MODEL.RPN.HEAD_NAME = 'StandardRPNHead'\n"
        "model = build_model(cfg).eval()\n"
        "with torch.no_grad():\n"
        "    out = model([{'image': torch.zeros(3, 64, 64)}])\n"
        "assert 'instances' in out[0]\n"
    )
    assert done.returncode == 0, done.stderr
    assert "detectron2" in done.stdout


def test_the_start_of_a_training_on_a_gpu_reports_the_environment():
    done = python(
        "import intl_transfer.detectron2_compat, torch\n"
        "torch.cuda.is_available = lambda: True\n"
        "torch.cuda.device_count = lambda: 0\n"
        "from detectron2.utils.collect_env import collect_env_info\n"
        "print(collect_env_info())\n"
    )
    assert done.returncode == 0, done.stderr
    assert "GPU available" in done.stdout


def test_rotated_boxes_say_what_they_need():
    done = python(
        "import intl_transfer.detectron2_compat as c, torch\n"
        "if c.status().compiled_ops: raise SystemExit('compiled')\n"
        "from detectron2.layers import nms_rotated\n"
        "from detectron2.layers.rotated_boxes import pairwise_iou_rotated\n"
        "calls = (\n"
        "    lambda: nms_rotated(torch.zeros(2, 5), torch.zeros(2), 0.5),\n"
        "    lambda: pairwise_iou_rotated(torch.zeros(2, 5), torch.zeros(2, 5)),\n"
        ")\n"
        "for call in calls:\n"
        "    try:\n        call()\n"
        "    except c.MissingCompiledOpError as e: print(e)\n"
    )
    if "compiled" in done.stderr:
        pytest.skip("this Detectron2 is compiled")
    assert done.returncode == 0, done.stderr
    assert "torch.ops.detectron2.nms_rotated is a compiled operator" in done.stdout
    assert "detectron2._C.box_iou_rotated is a compiled operator" in done.stdout


def test_the_model_zoo_finds_its_configurations():
    done = python(
        "import intl_transfer.detectron2_compat\n"
        "from detectron2 import model_zoo\n"
        "from pathlib import Path\n"
        "if not Path(model_zoo.__file__).with_name('configs').exists():\n"
        "    raise SystemExit('none')\n"
        "cfg = model_zoo.get_config('COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml')\n"
        "assert cfg.MODEL.MASK_ON and cfg.SOLVER.MAX_ITER == 90000\n"
    )
    if done.stderr.strip() == "none":
        pytest.skip("this Detectron2 was installed without the model zoo's configurations")
    assert done.returncode == 0, done.stderr


def test_importing_it_does_not_import_detectron2():
    done = python(
        "import intl_transfer.detectron2_compat, sys\n"
        "assert 'detectron2' not in sys.modules and 'torch' not in sys.modules\n"
    )
    assert done.returncode == 0, done.stderr
