from __future__ import annotations

import pytest

from tests.detection.conftest import data
from tests.pretrain.conftest import images
from tests.slurm.cluster import Cluster, why_not

__all__ = ["data", "images"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()
