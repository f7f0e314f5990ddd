"""Which GPU a rank takes, and that ranks wait for each other on that one."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from intl_transfer.errors import UserError
from intl_transfer.runs import distributed
from intl_transfer.runs.distributed import Ranks, process_group


@pytest.fixture
def gpus(monkeypatch):
    """A node with some GPUs, none of which is used."""

    def found(count, **environment):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
        monkeypatch.setattr(dist, "init_process_group", lambda *args, **kwargs: None)
        monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
        place = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "host", "MASTER_PORT": "1"}
        for name, value in {**place, "LOCAL_RANK": "1", **environment}.items():
            monkeypatch.setenv(name, value)

    return found


def test_a_rank_takes_the_gpu_of_its_number(gpus):
    gpus(4, TORCHELASTIC_RUN_ID="x")
    with process_group("cuda") as ranks:
        assert ranks.device == torch.device("cuda", 1)


def test_a_task_that_sees_one_gpu_takes_it(gpus):
    gpus(1)  # as srun binds them
    with process_group("auto") as ranks:
        assert ranks.device == torch.device("cuda", 0)


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
