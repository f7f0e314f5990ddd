"""Trackers that cannot write: said once, in a line, and the run continues."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# No file can be written to from here on, as on a full disk.
FULL = """
import resource, signal, sys, time
from pathlib import Path
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
folder = Path(sys.argv[1])
"""
PRETRAINING = f"""
from intl_transfer.runs.trackers import Trackers
{FULL}
trackers = Trackers(folder, "id", "name", {{}})
for step in range(50):
    trackers.log(step, {{"loss": 1.0}})
    time.sleep(0.02)
trackers.close()
"""
DETECTION = f"""
from detectron2.utils.events import EventStorage
from detection.writers import writers
{FULL}
with EventStorage() as storage:
    made = writers(folder, 50)
    for step in range(50):
        storage.put_scalars(loss=1.0, lr=0.1, time=0.1, data_time=0.1)
        for writer in made:
            writer.write()
        storage.step()
        time.sleep(0.02)
    for writer in made:
        writer.close()
"""


@pytest.mark.parametrize(
    ("code", "names"),
    [(PRETRAINING, ["TensorBoard"]), (DETECTION, ["metrics.json", "TensorBoard"])],
)
def test_a_tracker_that_cannot_write_is_disabled_in_one_line(code, names, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print('went on')", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("went on\n")
    assert "Traceback" not in done.stderr + done.stdout
    for name in names:
        assert done.stderr.count(f"{name} failed and is disabled for this session") == 1
