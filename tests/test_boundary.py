"""What a command says when something around it fails: real failures of the kernel and of torch."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset

from intl_transfer.boundary import TRACEBACKS, Boundary, explain
from intl_transfer.cli import main
from intl_transfer.errors import UserError
from intl_transfer.runs.atomic import clear_leftovers, write_atomically, write_json

FULL = "/dev/full"  # every write to it fails as on a full disk


def caught(work):
    try:
        work()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def write_to_full_disk():
    with open(FULL, "wb", buffering=0) as file:
        file.write(b"x")


def save_to_full_disk():
    torch.save({"x": torch.ones(1000)}, FULL)


class Workers(Dataset):
    def __init__(self, end):
        self.end = end

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if self.end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.end == "full":
            write_to_full_disk()
        if self.end == "missing":
            open("/nowhere/picture.jpg")  # noqa: SIM115
        return torch.zeros(1)


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (write_to_full_disk, r"the disk is full \(errno 28\); free some space"),
        (lambda: os.mkdir("/proc/none"), r"^/proc/none: does not exist"),
        (lambda: os.open("/proc/self/mem/x", os.O_RDWR), r"^/proc/self/mem/x: a part of the path"),
        (lambda: os.replace("/dev/null", "/proc/x"), r"/dev/null -> /proc/x: "),
        (lambda: list(DataLoader(Workers("full"), num_workers=1)), r"the disk is full"),
        (
            lambda: list(DataLoader(Workers("missing"), num_workers=1)),
            r"^/nowhere/picture.jpg: does not exist",
        ),
        (
            lambda: list(DataLoader(Workers("kill"), num_workers=1)),
            r"a data loading process died .*--shm-size.*data\.workers",
        ),
        (save_to_full_disk, r"could not be written .*see that the disk has space"),
        (lambda: torch.zeros(1 << 50), r"^out of memory .*fewer workers"),
        (lambda: np.zeros(1 << 50), r"^out of memory"),
    ],
)
def test_what_the_machine_did_is_explained_in_one_line(work, expected):
    import re

    line = explain(caught(work)) or ""
    assert re.search(expected, line), line
    assert "\n" not in line


def test_what_is_the_programs_own_fault_is_not_explained_away():
    for error in (
        KeyError("x"),
        ValueError("shape '[2]' is invalid"),
        RuntimeError("no"),
        TypeError(),
    ):
        assert explain(error) is None


def _peer(rank, port, ends):
    import torch.distributed as dist

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    dist.barrier()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        for _ in range(100):
            dist.all_reduce(torch.ones(4))
    except Exception as error:
        ends.put(explain(error))


def test_a_rank_whose_peer_died_says_so():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    ends = context.Queue()
    ranks = [context.Process(target=_peer, args=(rank, port, ends)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    line = ends.get(timeout=120)
    for process in ranks:
        process.join(60)
    assert line is not None
    assert line.startswith("another rank of this run ended, or its connection was lost"), line


def test_a_lost_rendezvous_is_explained():
    from datetime import timedelta

    import torch.distributed as dist

    error = caught(
        lambda: dist.TCPStore("127.0.0.1", 1, 2, is_master=False, timeout=timedelta(seconds=1))
    )
    assert (explain(error) or "").startswith("another rank of this run ended, or its connection")


def test_the_boundary_says_one_line_and_keeps_the_traceback(tmp_path, capsys):
    with Boundary("the same command continues") as boundary:
        boundary.folder = tmp_path
        write_to_full_disk()
    assert boundary.status == 1
    output = capsys.readouterr().err
    assert output.count("\n") == 1
    assert output.startswith(
        "error: the disk is full (errno 28); free some space; the same command"
    )
    assert output.rstrip().endswith(f"traceback: {tmp_path / TRACEBACKS}")
    kept = (tmp_path / TRACEBACKS).read_text()
    assert "Traceback (most recent call last)" in kept
    assert "write_to_full_disk" in kept


def test_an_error_nobody_foresaw_names_its_place(tmp_path, capsys):
    with Boundary("the same command continues") as boundary:
        boundary.folder = tmp_path
        raise KeyError("layer9")
    assert boundary.status == 1
    output = capsys.readouterr().err
    assert output.startswith("error: unexpected, in test_boundary.py:")
    assert "KeyError: 'layer9'" in output
    assert output.count("\n") == 1
    assert "continues" not in output  # nobody knows


def test_errors_of_users_and_ctrl_c_have_their_own_ends(capsys):
    with Boundary("the same command continues") as boundary:
        raise UserError("no such thing")
    assert boundary.status == 2
    assert capsys.readouterr().err == "error: no such thing\n"
    with Boundary("the same command continues") as boundary:
        raise KeyboardInterrupt
    assert boundary.status == 130
    assert capsys.readouterr().err == "stopped; the same command continues\n"
    with pytest.raises(SystemExit), Boundary() as boundary:
        raise SystemExit(75)


def test_where_nothing_can_be_written_the_cause_is_still_told(tmp_path, capsys, monkeypatch):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with Boundary() as boundary:
        write_to_full_disk()
    assert boundary.status == 1
    assert "the disk is full" in capsys.readouterr().err
    with Boundary() as boundary:
        raise KeyError("x")
    assert "Traceback (most recent call last)" in capsys.readouterr().err  # nowhere else to be had


def test_without_any_temporary_folder_the_cause_is_still_told(tmp_path, capsys, monkeypatch):
    """Where everything is on one full disk, Python finds none; and a lost disk answers nothing."""
    import tempfile

    def none_is_usable():
        raise FileNotFoundError(2, "No usable temporary directory found")

    def lost(self):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(tempfile, "gettempdir", none_is_usable)
    for broken in (False, True):
        with monkeypatch.context() as disk, Boundary() as boundary:
            if broken:
                disk.setattr(Path, "is_dir", lost)
            boundary.folder = tmp_path / "absent"
            write_to_full_disk()
        assert boundary.status == 1
        assert re.fullmatch(r"error: .*the disk is full.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_libraries_that_hide_the_error_of_a_write_are_seen_through(tmp_path, size):
    """A limit on the size of files is as real as a full disk: the kernel refuses the write."""
    path = tmp_path / "state.pt"
    write_json(path, {"old": 1})
    before = path.read_bytes()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, limit[1]))
    try:
        error = caught(
            lambda: write_atomically(path, lambda file: torch.save(torch.ones(size), file))
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert isinstance(error, OSError)
    assert error.errno == errno.EFBIG
    assert error.filename == str(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_leftovers_are_cleared_and_nothing_else(tmp_path):
    for name in (".manifest.json.abc12345.part", ".hidden", "x.part", "manifest.json"):
        (tmp_path / name).write_text("x")
    clear_leftovers(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        ".hidden",
        "manifest.json",
        "x.part",
    ]


def test_commands_end_in_one_line(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "report"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["collect", str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_run_is_stopped_as_asked_although_nobody_reads_its_output(tmp_path):
    """`2>&1 | tee log`, ended by the same Ctrl-C: nothing was saved, and the run had failed."""
    code = (
        "import os, signal, sys\n"
        "from intl_transfer.runs.progress import Progress\n"
        "from intl_transfer.runs.stopping import StopRequest\n"
        "with StopRequest() as stop:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    Progress(2, live=False).show(2, 'loss', 1.0)\n"
        "    Progress(2, live=False).say('stopped')\n"
        "    saved = stop.agreed()\n"
        "os._exit(75 if saved else 1)"
    )
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 75


def test_output_that_the_terminal_cannot_show_is_escaped():
    """`LC_ALL=C` with Python's UTF-8 mode off, or a name of a file that is no text."""
    code = (
        "import sys; from intl_transfer.boundary import Boundary\n"
        "with Boundary() as boundary: print('1 ± 2', '\\udce9')\n"
        "sys.exit(boundary.status)"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (0, b"1 \\xb1 2 \\udce9\n"), done.stderr


@pytest.mark.parametrize("work", ["[print('x' * 1000, flush=True) for _ in range(1000)]", "late()"])
def test_output_that_nobody_reads_any_more_is_no_error(work):
    """As `intl-transfer doctor | head -1` does; Python itself writes the last lines at its end."""
    words = "import sys, time; from intl_transfer.boundary import Boundary\n"
    words += "def late(): print('y' * 10, flush=True), time.sleep(0.3), print('x')\n"
    words += f"with Boundary() as b:\n  {work}\n"
    words += "sys.exit(b.status)"
    process = subprocess.Popen(
        [sys.executable, "-c", words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 1


def test_safetensors_errors_carry_the_systems_number():
    error = caught(lambda: save_file({"x": torch.ones(10)}, "/proc/none.safetensors"))
    assert isinstance(error, (SafetensorError, OSError))
    line = explain(error)
    assert line is not None
    assert "does not exist" in line


def test_a_log_on_a_full_disk_loses_lines_and_no_run(capsys):
    """Detectron2 writes its log with Python's logging, which prints a traceback for each line."""
    handler = logging.FileHandler(FULL)
    logger = logging.getLogger("a_full_log")
    logger.addHandler(handler)
    with Boundary() as boundary:
        for _ in range(3):
            logger.warning("a line")
        logger.removeHandler(handler)
    assert boundary.status == 0
    output = capsys.readouterr().err
    assert "Traceback" not in output
    assert output.count(f"warning: lines of {FULL} are lost: the disk is full (errno 28)") == 1
    with Boundary():  # a fault of the program's own is shown as Python shows it
        logging.getLogger("a_full_log").addHandler(logging.StreamHandler())
        logging.getLogger("a_full_log").warning("%d", "no number")
    assert "Traceback" in capsys.readouterr().err


def test_a_wrong_path_is_not_to_be_tried_again(tmp_path, capsys):
    (tmp_path / "file").touch()
    with Boundary("the same command continues") as boundary:
        (tmp_path / "file" / "inner").mkdir()
    assert boundary.status == 2
    said = capsys.readouterr().err
    assert "a part of the path is no folder" in said
    assert "continues" not in said
    assert "traceback" not in said
