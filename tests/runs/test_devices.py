"""Which GPU a rank takes, and that ranks wait for each other on that one."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from intl_transfer.errors import UserError
from intl_transfer.runs import distributed
from intl_transfer.runs.distributed import Ranks, parallelize, process_group


@pytest.fixture
def gpus(monkeypatch):
    """A node with some GPUs, none of which is used."""

    def found(count, **environment):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
        monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: None)
        monkeypatch.setattr(distributed, "_store", lambda ranks, timeout: None)
        monkeypatch.setattr(distributed, "_check_gpus", lambda ranks, store: None)
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "1"}
        for name, value in {**place, "LOCAL_RANK": "1", **environment}.items():
            monkeypatch.setenv(name, value)

    return found


def test_a_rank_takes_the_gpu_of_its_number(gpus):
    gpus(4, TORCHELASTIC_RUN_ID="x")
    with process_group("cuda") as ranks:
        assert ranks.device == torch.device("cuda", 1)


@pytest.mark.parametrize(("count", "local", "index"), [(1, 3, 0), (2, 3, 1), (4, 3, 3)])
def test_a_task_takes_one_of_the_gpus_that_it_sees(gpus, monkeypatch, count, local, index):
    """As srun binds one or two to each task, or none; DDP is told the same one."""
    gpus(count, RANK="3", WORLD_SIZE="4", LOCAL_RANK=str(local))
    told = []

    def wrapped(self, module, forward_sync_buffers=None, **options):
        told.append(options["device_ids"])

    monkeypatch.setattr(distributed, "DistributedDataParallel", type("", (), {"__init__": wrapped}))
    with process_group("auto") as ranks:
        assert ranks.device == torch.device("cuda", index)
        parallelize(torch.nn.Linear(2, 2), ranks, share_buffers=True)
    assert told == [[index]]


@pytest.mark.parametrize("uuids", ["aabc", "abcd"])
def test_ranks_with_one_gpu_are_named(monkeypatch, uuids):
    """Every rank that shares one says so, and rank 0, which holds the store, leaves last."""
    store, outcomes = dist.HashStore(), dict[int, str]()
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=uuids[device.index]),
    )

    def check(rank):
        try:
            distributed._check_gpus(Ranks(rank, 4, rank, torch.device("cuda", rank)), store)
            outcomes[rank] = ""
        except UserError as error:
            outcomes[rank] = str(error)[:33]

    threads = [threading.Thread(target=check, args=(rank,)) for rank in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    shared = "ranks 0, 1 have one GPU (a); star" if uuids == "aabc" else ""
    assert outcomes == {0: shared, 1: shared, 2: "", 3: ""}


def test_ranks_of_torchrun_do_not_meet_on_one_gpu(gpus):
    gpus(1, TORCHELASTIC_RUN_ID="x")
    expected = "local rank 1 has no GPU: 1 found on this node; start at most"
    with pytest.raises(UserError, match=expected), process_group("auto"):
        pass


@pytest.mark.parametrize(("device", "expected"), [("cuda:2", [2]), ("cpu", None)])
def test_a_barrier_names_the_gpu(monkeypatch, device, expected):
    seen = []
    monkeypatch.setattr(distributed.dist, "barrier", lambda device_ids: seen.append(device_ids))
    Ranks(3, 4, 0, torch.device(device)).barrier()
    Ranks(0, 1, 0, torch.device(device)).barrier()  # alone, it waits for nobody
    assert seen == [expected]
