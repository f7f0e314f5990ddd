"""Jobs whose work is over in an instant, and leaves a run directory as a stage does."""

from __future__ import annotations

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slurm.ledger import Job
from slurm.resources import checked

# Fails while the file FAIL is beside the run, and holds on while HOLD is.
SCRIPT = """
import json, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
while (folder.parent / "HOLD").exists():
    time.sleep(0.1)
folder.mkdir(exist_ok=True)
manifest = json.loads(sys.argv[2])
failed = (folder.parent / f"FAIL-{folder.name}").exists()
manifest["status"] = "failed" if failed else "finished"
with open(folder / "starts", "a") as file:
    file.write("start\\n")
(folder / "manifest.json").write_text(json.dumps(manifest))
if failed:
    sys.exit("error: asked to fail")
(folder / "results.json").write_text("{}")
"""
MANIFEST = {
    "schema": 1,
    "id": "0",
    "stage": "pretrain",
    "name": "work",
    "status": "running",
    "config": {"optim": {"epochs": 4}},
    "seed": 0,
    "inputs": [],
    "sessions": [],
}


@functools.lru_cache
def _checked(requested: str) -> str:
    return json.dumps(dataclasses.asdict(checked(json.loads(requested), "test")))


def make_job(
    root: Path,
    name: str,
    parents: Sequence[str] = (),
    cluster: str = "slurm",
    after: str = "ok",
    **resources: Any,
) -> Job:
    """A job whose job takes as long as Python's start."""
    requested = {"cluster": cluster, "gpus_per_node": 0, "cpus_per_gpu": 1, "time": 60, **resources}
    return Job(
        key=name,
        stage="pretrain",
        target=str(root / name),
        command=[sys.executable, "-c", SCRIPT, str(root / name), json.dumps(MANIFEST)],
        resources=json.loads(_checked(json.dumps(requested))),
        parents=list(parents),
        after=after,
        folder=str(root),
        must_finish=True,
        settings={"optim.epochs": 4},
        title="work",
    )


def chain(root: Path, cluster: str = "slurm") -> list[Job]:
    """One parent, two children that are alike, and one that takes whatever they leave."""
    return [
        make_job(root, "parent", cluster=cluster),
        make_job(root, "one", ["parent"], cluster),
        make_job(root, "two", ["parent"], cluster),
        make_job(root, "last", ["one", "two"], cluster, after="any"),
    ]


def starts(folder: Path) -> int:
    """How often the job's work was begun."""
    file = folder / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0
