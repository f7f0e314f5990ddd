from __future__ import annotations

import os

import pytest

from tests.detection.conftest import data
from tests.pretrain.conftest import images
from tests.slurm.cluster import CONF, Cluster, like_a_site, why_not

__all__ = ["data", "images"]


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    yield from started(tmp_path_factory.mktemp("slurm"))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A cluster that binds tasks to cores."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a node of two cores needs two")
    yield from started(tmp_path_factory.mktemp("site"), like_a_site(CONF))


def started(folder, conf=CONF):
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    made = Cluster(folder, conf)
    try:
        made.start()
        yield made
    finally:
        made.stop()
