from __future__ import annotations

import pytest

from tests.results.synthetic import standard_set


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch):
    """A cache folder of each test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def standard(tmp_path_factory):
    """The fixed set of runs, read only."""
    return standard_set(tmp_path_factory.mktemp("standard"))
