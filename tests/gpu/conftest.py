"""What is the same on a GPU as on the CPU, and what only a GPU shows.

Collected where CUDA works; ``GPU_TESTS_ON=cpu`` runs those elsewhere that can.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.detection.conftest import backbone_file, data  # noqa: F401
from tests.evaluation.conftest import classes, trained  # noqa: F401
from tests.pretrain.conftest import cache, images  # noqa: F401

KIND = os.environ.get("GPU_TESTS_ON", "cuda")
collect_ignore_glob = [] if KIND == "cpu" or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(scope="session")
def device():
    return torch.device(KIND, 0) if KIND == "cuda" else torch.device(KIND)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("cuda") and KIND != "cuda":
            item.add_marker(pytest.mark.skip(reason="of GPUs alone"))
