"""Ranks that find each other by a file; every port here is the system's."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from intl_transfer.errors import UserError
from intl_transfer.runs.distributed import process_group
from intl_transfer.runs.rendezvous import VARIABLE, address_of, meet, register


def add_up(rank, answers):
    value = torch.tensor([rank + 1.0])
    dist.all_reduce(value)
    answers.put(value.item())
    dist.barrier()


def join(rank, answers, file, port):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
    os.environ.update({"MASTER_PORT": str(port), VARIABLE: file, "GLOO_SOCKET_IFNAME": "lo"})
    with process_group("cpu", timeout_minutes=1):
        add_up(rank, answers)


def test_what_another_program_left_makes_no_rank(monkeypatch):
    """A single process with RANK=3 was rank 3 of 1: it trained, wrote no file, and ended with 0."""
    for name, value in (("RANK", "3"), ("LOCAL_RANK", "3"), ("WORLD_SIZE", "")):
        monkeypatch.setenv(name, value)
    with process_group("cpu") as ranks:
        assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.is_main) == (0, 1, 0, True)
    for value, message in (
        ("all", "WORLD_SIZE is 'all'; expected a number of at least 1"),
        ("0", "WORLD_SIZE is '0'; expected a number of at least 1"),
        ("2", "WORLD_SIZE is 2 but MASTER_ADDR, MASTER_PORT is not set"),
    ):
        monkeypatch.setenv("WORLD_SIZE", value)
        with pytest.raises(UserError, match=message), process_group("cpu"):
            pass
    monkeypatch.setenv("MASTER_ADDR", "x")
    monkeypatch.setenv("MASTER_PORT", "1")
    with (
        pytest.raises(UserError, match="RANK is 3, and WORLD_SIZE is 2; expected 0 to 1"),
        process_group("cpu"),
    ):
        pass


def join_by_address(rank, answers, file):
    register()
    register()  # does nothing
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", address_of(file, "127.0.0.1"), world_size=2, rank=rank)
    add_up(rank, answers)
    dist.destroy_process_group()


def check_that_two_ranks_meet(target, *arguments):
    """Starts two processes of ``target(rank, answers, *arguments)``, which add up 1 and 2."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    ranks = [context.Process(target=target, args=(rank, answers, *arguments)) for rank in range(2)]
    for process in ranks:
        process.start()
    assert [answers.get(timeout=60) for _ in ranks] == [3.0, 3.0]
    for process in ranks:
        process.join(30)
    assert [process.exitcode for process in ranks] == [0, 0]


@pytest.mark.slow
def test_ranks_meet_although_the_port_is_somebody_elses(tmp_path):
    """A program that accepts and says nothing: by torch's own way, rank 1 would wait for ever."""
    with socket.socket() as theirs:
        theirs.bind(("127.0.0.1", 0))
        theirs.listen()
        check_that_two_ranks_meet(join, str(tmp_path / "place"), theirs.getsockname()[1])


@pytest.mark.slow
def test_code_that_gives_torch_an_address_meets_there_too(tmp_path):
    """As Detectron2's launcher does; the folder has signs that addresses have a meaning for."""
    folder = tmp_path / "a b?c#d%20é"
    folder.mkdir()
    check_that_two_ranks_meet(join_by_address, folder / "place")
    host, _, port = (folder / "place").read_text().strip().rpartition(" ")
    assert host == "127.0.0.1"
    assert int(port) > 0


def test_an_address_keeps_hosts_of_version_six():
    assert address_of(Path("/a/b"), "fe80::1") == "intl-rendezvous://[fe80::1]/a/b"


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_place_that_is_out_of_date_is_read_again(tmp_path):
    """The file names a port that nobody listens at until rank 0 has begun again."""
    file = tmp_path / "place"
    file.write_text(f"127.0.0.1 {closed_port()}\n")
    made = []

    def begin():
        time.sleep(0.5)
        made.append(meet(file, 0, 2, "127.0.0.1"))
        made[0].set("key", "value")

    late = threading.Thread(target=begin)
    late.start()
    store = meet(file, 1, 2, "127.0.0.1", connect_seconds=2)
    late.join()
    assert store.get("key") == b"value"


def test_attempts_are_bounded_and_the_end_is_one_line(tmp_path):
    file = tmp_path / "place"
    with pytest.raises(UserError, match=r"rank 0 did not write .*place within 0 s"):
        meet(file, 1, 2, "127.0.0.1", start_seconds=0)
    port = closed_port()
    file.write_text(f"127.0.0.1 {port}\n")
    with pytest.raises(
        UserError, match=rf"cannot reach rank 0 at 127.0.0.1:{port} after 3 attempts"
    ):
        meet(file, 1, 2, "127.0.0.1", connect_seconds=0.5)
