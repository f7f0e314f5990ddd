"""Imports point down the table of CONTRIBUTING.md."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("intl_transfer", "pretrain", "detection", "slurm")


def table(text: str) -> dict[str, int]:
    """Each place of the table, as the start of a module's dotted name, with its row."""
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    found = {}
    for number, row in enumerate(rows):
        for place in re.findall(r"`([\w/]+(?:\.py|/))`", row.split("|")[1]):
            found[place.rstrip("/").removesuffix(".py").replace("/", ".")] = number
    return found


def row_of(module: str, rows: dict[str, int]) -> int | None:
    """The row of a module; None where the table does not have it."""
    if module.endswith(".__main__"):
        return rows["intl_transfer.__main__"]
    places = [p for p in rows if module == p or module.startswith(f"{p}.")]
    return rows[max(places, key=len)] if places else None


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import, also those within functions and for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module in PARTS:  # what is imported may be a module
                yield from ((node.lineno, f"{node.module}.{name.name}") for name in node.names)
            else:
                yield node.lineno, node.module


def violations(sources: dict[str, str], rows: dict[str, int]) -> list[str]:
    """Imports that point up, or from one stage to the other, of modules by dotted name."""
    found = []
    for module, source in sources.items():
        mine = row_of(module, rows)
        for line, imported in imports(ast.parse(source)):
            top = imported.split(".")[0]
            other = row_of(imported, rows)
            if top not in PARTS or other is None:
                continue  # of another project, or a name of the package itself
            apart = {module.split(".")[0], top} == {"pretrain", "detection"}
            if mine is None or other < mine or apart:
                found.append(f"{module}, line {line}: imports {imported}")
    return found


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    found = {}
    for part in PARTS:
        for file in (ROOT / part).rglob("*.py"):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file.read_text()
    return found


def test_imports_point_down(sources):
    rows = table((ROOT / "CONTRIBUTING.md").read_text())
    assert violations(sources, rows) == []


def test_every_module_has_its_row(sources):
    rows = table((ROOT / "CONTRIBUTING.md").read_text())
    missing = [module for module in sources if row_of(module, rows) is None]
    assert missing == ["intl_transfer"]


def test_an_import_that_points_up_is_found():
    rows = {"slurm": 0, "pretrain": 1, "detection": 1, "intl_transfer.runs": 2}
    code = {
        "intl_transfer.runs.a": "def f():\n    from pretrain.config import x",
        "pretrain.a": "import detection.b\nfrom intl_transfer import runs, __version__",
        "slurm.a": "import pretrain.config, torch",
    }
    assert violations(code, rows) == [
        "intl_transfer.runs.a, line 2: imports pretrain.config",
        "pretrain.a, line 1: imports detection.b",
    ]


def test_every_option_of_every_command_is_explained():
    missing = []
    for part in (*PARTS, "scripts", "benchmarks", "tests"):
        for file in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                called = getattr(node.func, "attr", "") if isinstance(node, ast.Call) else ""
                if called == "add_argument" and not _is_explained(node):
                    missing.append(f"{file.relative_to(ROOT)}, line {node.lineno}")
    assert missing == []


def _is_explained(call: ast.Call) -> bool:
    """Whether an option has help text; argparse knows `version` itself."""
    named = {word.arg: word.value for word in call.keywords}
    action = named.get("action")
    return "help" in named or (isinstance(action, ast.Constant) and action.value == "version")


def test_what_the_type_checker_is_to_ignore_has_a_reason():
    bare = []
    for part in (*PARTS, "scripts", "benchmarks"):
        for file in (ROOT / part).rglob("*.py"):
            lines = file.read_text().splitlines()
            for number, line in enumerate(lines):
                found = re.search(r"# type: ignore(\[[\w, -]+\])?(  # \S)?", line)
                above = lines[number - 1].lstrip().startswith("# ")
                if found and not (found[1] and (found[2] or above)):
                    bare.append(f"{file.relative_to(ROOT)}:{number + 1}")
    assert bare == []


def test_no_function_is_longer_than_a_screen():
    """Docstrings aside, 60 lines: what asks for more is two."""
    long = []
    for part in (*PARTS, "scripts", "benchmarks"):
        for file in (ROOT / part).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    lines = _lines_of_code(node)
                    if lines > 60:
                        place = f"{file.relative_to(ROOT)}, line {node.lineno}"
                        long.append(f"{place}: {node.name} has {lines} lines")
    assert long == []


def _lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without those of its docstring."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        described = function.body[0]
        lines -= described.end_lineno - described.lineno + 1
    return lines


def test_one_place_decides_what_torch_leaves_to_the_environment():
    """A stage that chose cuDNN's kernels on its own would have left TF32 to the container."""
    stages = ["pretrain/train.py", "intl_transfer/evaluation/stage.py", "detection/session.py"]
    for file in stages:
        assert "set_numerics(" in (ROOT / file).read_text(), file
    own = re.compile(r"cudnn\.benchmark\s*=|allow_tf32\s*=|set_float32_matmul_precision\(")
    folders = ("intl_transfer", "pretrain", "detection", "slurm", "scripts", "benchmarks")
    sources = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    found = {str(f.relative_to(ROOT)) for f in sources if own.search(f.read_text())}
    assert found == {"intl_transfer/devices.py", "intl_transfer/spectral/modes.py"}
