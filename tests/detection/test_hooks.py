from __future__ import annotations

from detection.hooks import Checkpoints, Evaluation, Seeds  # isort: skip  # prepares Detectron2
import math
import multiprocessing
import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from detectron2.engine import HookBase, SimpleTrainer

from detection.checkpoints import newest_checkpoint
from detection.trainer import AtomicCheckpointer
from intl_transfer.errors import UserError
from intl_transfer.runs.finite import StateNotFiniteError
from intl_transfer.runs.stopping import CONTINUE, Stopped, StopRequest, passed_on
from tests.ranks import run_ranks


class Regression(torch.nn.Module):
    """The smallest model that Detectron2's loop can train."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, batch):
        return {"loss": self.layer(batch).square().mean() + torch.rand(()) * 0}


def small_trainer(folder, stop, period=100, evaluation_period=0):
    model = Regression()
    loader = [torch.ones(4, 2)] * 1000
    trainer = SimpleTrainer(model, loader, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.cfg = SimpleNamespace(SOLVER=SimpleNamespace(IMS_PER_BATCH=4))
    trainer.checkpointer = AtomicCheckpointer(model, str(folder))
    trainer.evaluated = []
    trainer.evaluate = trainer.evaluated.append
    trainer.register_hooks(
        [Checkpoints(stop, period, evaluation_period), Evaluation(stop, evaluation_period)]
    )
    return trainer


class StopAt(HookBase):
    """Asks the process to stop in an iteration."""

    def __init__(self, number):
        self.number = number

    def after_step(self):
        if self.trainer.iter == self.number + 1:
            os.kill(os.getpid(), signal.SIGTERM)


def names(folder):
    return sorted(path.name for path in folder.glob("model_*.pth"))


def test_saved_periodically_before_evaluations_and_at_the_end(tmp_path):
    with StopRequest() as stop:
        trainer = small_trainer(tmp_path, stop, period=3, evaluation_period=4)
        trainer.train(0, 9)
    assert trainer.evaluated == [4, 8, 9]
    # After iterations 3, 4, 6, 8 (the newest two are kept) and 9.
    assert names(tmp_path) == ["model_0000005.pth", "model_0000007.pth", "model_final.pth"]
    assert torch.load(tmp_path / "model_final.pth", weights_only=True)["iteration"] == 8


@pytest.mark.parametrize("place", ["weights", "momentum"])
def test_what_is_not_finite_is_never_saved_nor_taken(tmp_path, capsys, place):
    """Gradients overflow in iteration 5 of a finite loss: the next save ends the run."""
    with StopRequest() as stop:
        trainer = small_trainer(tmp_path, stop, period=1)
        trainer.optimizer.param_groups[0]["momentum"] = 0.9
        trainer.checkpointer.add_checkpointable("optimizer", trainer.optimizer)

        class Poison(HookBase):
            def after_step(self):
                if self.trainer.iter == 4 and place == "weights":
                    self.trainer.model.layer.weight.data.fill_(math.inf)
                elif self.trainer.iter == 4:
                    state = self.trainer.optimizer.state[self.trainer.model.layer.bias]
                    state["momentum_buffer"].fill_(math.nan)

        trainer.register_hooks([Poison()])
        trainer._hooks.insert(0, trainer._hooks.pop())  # before the checkpoint is taken
        with pytest.raises(StateNotFiniteError, match=r"model_0000004\.pth was not written.*NaN"):
            trainer.train(0, 9)
    assert names(tmp_path) == ["model_0000002.pth", "model_0000003.pth"]
    # One that an older version wrote is named and passed over.
    content = torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    if place == "weights":
        content["model"]["layer.weight"][0, 0] = math.nan
    else:
        content["optimizer"]["state"][1]["momentum_buffer"][0] = math.inf
    torch.save(content, tmp_path / "model_0000004.pth")
    output = r"skipped: .*model_0000004\.pth contains NaN or infinity in"
    with pytest.warns(UserWarning, match=output):
        assert newest_checkpoint(tmp_path) == tmp_path / "model_0000003.pth"
    for name in names(tmp_path)[:2]:
        (tmp_path / name).unlink()
    with (
        pytest.warns(UserWarning, match=output),
        pytest.raises(UserError, match="none of the 1 checkpoints"),
    ):
        newest_checkpoint(tmp_path)
    (tmp_path / "model_0000004.pth").unlink()
    assert newest_checkpoint(tmp_path) is None


def test_a_full_disk_does_not_end_the_training(tmp_path, monkeypatch, capsys):
    save = torch.save

    def full(content, file):
        if content["iteration"] == 3:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    monkeypatch.setattr(torch, "save", full)
    with StopRequest() as stop:
        small_trainer(tmp_path, stop, period=2).train(0, 5)
    assert names(tmp_path) == ["model_0000001.pth", "model_final.pth"]
    assert not list(tmp_path.glob(".*part"))
    assert "model_0000003.pth was not written" in capsys.readouterr().err
    # A request to stop meanwhile finds that nothing was saved.
    with StopRequest() as stop:
        trainer = small_trainer(tmp_path / "stopped", stop)
        trainer.register_hooks([StopAt(2)])
        trainer._hooks.insert(0, trainer._hooks.pop())
        with pytest.raises(Stopped):
            trainer.train(2, 9)
    assert trainer.saved is False
    # The last one cannot be gone without.
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with StopRequest() as stop, pytest.raises(OSError, match="full"):
        small_trainer(tmp_path, stop).train(0, 1)


def test_a_request_during_an_evaluation_is_answered_at_once(tmp_path):
    with StopRequest() as stop:
        trainer = small_trainer(tmp_path, stop, evaluation_period=2)

        def evaluate(_):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

        trainer.evaluate = evaluate
        began = time.monotonic()
        with pytest.raises(Stopped):
            trainer.train(0, 9)
        assert time.monotonic() - began < 20
        assert names(tmp_path) == ["model_0000001.pth"]
        with pytest.raises(Stopped), stop.at_once():  # it stays asked
            raise AssertionError


def _stopped_rank(rank, world_size, folder):
    from pathlib import Path

    with StopRequest() as stop:
        trainer = small_trainer(folder, stop)
        before = trainer.run_step

        def run_step():
            if rank == 1 and trainer.iter == 3:
                os.kill(os.getpid(), signal.SIGUSR2)
            before()

        trainer.run_step = run_step
        try:
            trainer.train(0, 50)
        except Stopped:
            return trainer.iter, sorted(p.name for p in Path(folder).glob("model_*"))
    return None


def test_all_ranks_stop_after_the_iteration_that_is_saved(tmp_path):
    (last, _), (last_too, _) = run_ranks(_stopped_rank, 2, str(tmp_path))
    assert last == last_too == 4  # one iteration after the signal
    assert names(tmp_path) == ["model_0000004.pth"]


def _wait_for_a_signal(ready):
    with StopRequest() as stop:
        ready.set()
        for _ in range(600):
            if stop.agreed():
                sys.exit(CONTINUE)
            time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_requests_are_passed_on_to_the_processes_of_the_gpus(number):
    context = multiprocessing.get_context("fork")
    children = []
    for _ in range(2):
        ready = context.Event()
        child = context.Process(target=_wait_for_a_signal, args=(ready,))
        child.start()
        assert ready.wait(30)
        children.append(child)
    with passed_on() as request:
        assert request.signal is None
        os.kill(os.getpid(), number)
        for child in children:
            child.join(30)
    assert request.signal == number.name
    assert [child.exitcode for child in children] == [CONTINUE, CONTINUE]


def test_random_numbers_of_an_iteration_do_not_depend_on_earlier_ones():
    drawn = {}
    for first in (0, 3):
        hook = Seeds(7)
        for iteration in range(first, 6):
            hook.trainer = SimpleNamespace(iter=iteration)
            hook.before_step()
            value = torch.rand(()).item()
            assert drawn.setdefault(iteration, value) == value
            torch.rand(iteration + first)
    assert len(set(drawn.values())) == 6
