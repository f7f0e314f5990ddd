"""Makes Detectron2 v0.6 from PyPI, and upstream main, work on today's libraries.

Import this before the first ``import detectron2``, or call :func:`install`:

    from intl_transfer import detectron2_compat

    detectron2_compat.install()

It adds only what is missing. With a real build, including the compiled ``detectron2._C``, it only
restores names that numpy and Pillow have removed.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOW_TO_BUILD = (
    "Install a compiled build: get the source of upstream Detectron2 and run "
    "`pip install --no-build-isolation PATH_TO_IT` in this environment (a C++ compiler is needed; "
    "about two minutes)."
)


class MissingCompiledOpError(RuntimeError):
    """A compiled operator of Detectron2 was called, and this installation has none."""


@dataclass(frozen=True)
class Detectron2Status:
    """The state of Detectron2 in this environment.

    Attributes:
        installed: whether it can be imported.
        version: its version.
        location: its folder.
        compiled_ops: whether its C++ and CUDA operators are available.
        stood_in: replacements installed by this module.
        error: why it cannot be imported, if it cannot.
    """

    installed: bool
    version: str | None = None
    location: str | None = None
    compiled_ops: bool = False
    stood_in: list[str] = field(default_factory=list)
    error: str | None = None


_stood_in: list[str] = []


class _StandInC(types.ModuleType):
    """Replaces ``detectron2._C``: importable, with clear errors when called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # Needed by `detectron2.utils.collect_env`, at the start of every training.
        if name in ("get_compiler_version", "get_cuda_version"):
            return lambda: "not compiled"
        if name == "has_cuda":
            return lambda: False
        return _missing(f"detectron2._C.{name}")


class _StandInOps:
    """Replaces ``torch.ops.detectron2`` without a compiled build."""

    def __init__(self, namespace: Any) -> None:
        self._namespace = namespace

    def __getattr__(self, name: str) -> Any:
        try:
            return getattr(self._namespace, name)  # registered meanwhile
        except AttributeError:
            if name.startswith("__"):
                raise
            return _missing(f"torch.ops.detectron2.{name}")


def _missing(name: str) -> Callable[..., None]:
    def missing(*_: Any, **__: Any) -> None:
        raise MissingCompiledOpError(
            f"{name} is a compiled operator, and this Detectron2 has none (rotated boxes, "
            f"deformable convolution and the fast COCO evaluator need them). {HOW_TO_BUILD}"
        )

    return missing


class _StandInFinder:
    """Finds ``detectron2._C`` if no other finder does."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "detectron2._C":
            return None
        return importlib.machinery.ModuleSpec(name, _StandInLoader(), origin="stand-in")


class _StandInLoader(importlib.abc.Loader):
    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        import torch

        _note("detectron2._C (compiled operators)")
        vars(torch.ops)["detectron2"] = _StandInOps(torch.ops.detectron2)
        module = _StandInC(spec.name)
        # As a real one has; `collect_env` prints what it finds there.
        module.__file__ = "(stand-in)"
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing runs: the module is what it is."""


def _note(what: str) -> None:
    if what not in _stood_in:
        _stood_in.append(what)


def install() -> None:
    """Adds what is missing; called on import; idempotent."""
    # Detectron2 and fvcore script functions when imported; torch warns of each.
    warnings.filterwarnings("ignore", message=".*torch.jit.*", category=FutureWarning)
    _restore_numpy_names()
    _restore_pillow_names()
    _restore_pkg_resources()
    if not any(isinstance(finder, type) and finder is _StandInFinder for finder in sys.meta_path):
        # Last, so that a real extension module is found first.
        sys.meta_path.append(_StandInFinder)


def _restore_numpy_names() -> None:
    """Restores numpy's aliases of Python's types, removed in 1.24 and used by v0.6."""
    import numpy

    for name, value in {
        "bool": bool,
        "int": int,
        "float": float,
        "object": object,
        "str": str,
    }.items():
        if name not in numpy.__dict__:
            setattr(numpy, name, value)
            _note(f"numpy.{name}")


def _restore_pillow_names() -> None:
    """Restores old names of Pillow's filters, removed in 10."""
    from PIL import Image

    for name, value in {
        "LINEAR": Image.Resampling.BILINEAR,
        "CUBIC": Image.Resampling.BICUBIC,
        "ANTIALIAS": Image.Resampling.LANCZOS,
    }.items():
        if not hasattr(Image, name):
            setattr(Image, name, value)
            _note(f"PIL.Image.{name}")


def _restore_pkg_resources() -> None:
    """Replaces the function of pkg_resources (removed in setuptools 81) used by ``model_zoo``."""
    if "pkg_resources" in sys.modules or importlib.util.find_spec("pkg_resources") is not None:
        return

    def resource_filename(package: str, resource: str) -> str:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"no package named '{package}'")
        return str(Path(spec.origin).parent / resource)

    module = types.ModuleType("pkg_resources", "One function of setuptools' former pkg_resources.")
    # A module created here.
    module.resource_filename = resource_filename  # type: ignore[attr-defined]
    module.__spec__ = importlib.machinery.ModuleSpec("pkg_resources", None)
    sys.modules["pkg_resources"] = module
    _note("pkg_resources.resource_filename")


def status() -> Detectron2Status:
    """Imports Detectron2 and reports on it."""
    try:
        import detectron2
        import detectron2.layers  # the first import that needs the operators
        from detectron2 import _C  # type: ignore[attr-defined]  # compiled, or ours
    except Exception as error:
        return Detectron2Status(False, error=f"{type(error).__name__}: {error}")
    return Detectron2Status(
        installed=True,
        version=getattr(detectron2, "__version__", "unknown"),
        location=str(Path(detectron2.__file__ or "").parent),
        compiled_ops=not isinstance(_C, _StandInC),
        stood_in=list(_stood_in),
    )


install()
