from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import intl_transfer.spectral

MODULES = [
    "intl_transfer.spectral",
    *(
        module.name
        for module in pkgutil.walk_packages(
            intl_transfer.spectral.__path__, "intl_transfer.spectral."
        )
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_public_name_is_described():
    for name in intl_transfer.spectral.__all__:
        if name != "Axis":  # a Literal
            assert getattr(intl_transfer.spectral, name).__doc__, name


def test_every_loss_and_transformation_has_an_example():
    requested = [
        "intl_loss",
        "intl_ema_loss",
        "trace_loss",
        "spectral_loss",
        "iternorm",
        "power_transform",
        "spectral_transform",
        "cholesky_whitening",
        "barlow_twins_loss",
        "vicreg_loss",
        "nt_xent_loss",
        "w_mse_loss",
    ]
    for name in requested:
        assert ">>>" in getattr(intl_transfer.spectral, name).__doc__, name
