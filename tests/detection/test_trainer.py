from __future__ import annotations

import contextlib
import pickle

import torch
from detectron2.solver import build_lr_scheduler
from detectron2.utils.events import EventStorage

from detection.config import load_config
from detection.session import not_finite
from detection.trainer import AtomicCheckpointer, Trainer
from intl_transfer.errors import UserError
from intl_transfer.runs.stopping import StopRequest
from tests.detection.conftest import TINY


def trainer_of(folder, *options: str) -> Trainer:
    settings = ["MODEL.DEVICE", "cpu", "SEED", "0", "OUTPUT_DIR", str(folder), "MODEL.WEIGHTS", ""]
    return Trainer(
        load_config("shapes_voc_R18_C4", [*settings, *TINY, *options]), None, StopRequest()
    )


def test_a_checkpoint_holds_the_optimizer_and_the_scaler(registered, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    trainer = trainer_of(folder, "SOLVER.AMP.ENABLED", "True")
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    trainer.optimizer.step()
    trainer.iter = 6
    trainer.costs.seconds = 12.5
    trainer.checkpointer.save("model_0000006", iteration=6)
    content = torch.load(folder / "model_0000006.pth", weights_only=True)
    assert {"optimizer", "grad_scaler", "hooks", "iteration"} <= content["trainer"].keys()
    assert (folder / "last_checkpoint").read_text() == "model_0000006.pth"

    again = trainer_of(folder, "SOLVER.AMP.ENABLED", "True")
    again.load(folder / "model_0000006.pth")
    assert (again.start_iter, again.costs.seconds) == (7, 12.5)
    states = [t.optimizer.state_dict()["state"] for t in (trainer, again)]
    assert states[0].keys() == states[1].keys()
    for number, state in states[0].items():
        assert torch.equal(state["momentum_buffer"], states[1][number]["momentum_buffer"])


def test_a_continued_run_follows_its_own_rate_momentum_and_decay(registered, tmp_path):
    """At the rates of Detectron2's schedule, by the formula of SGD."""
    folder = tmp_path / "run"
    folder.mkdir()
    schedule = ["SOLVER.MAX_ITER", "8", "SOLVER.WARMUP_ITERS", "4"]
    schedule += ["SOLVER.CLIP_GRADIENTS.ENABLED", "False"]
    begun = trainer_of(folder, *schedule, "SOLVER.BASE_LR", "0.02")
    rates = begun._hooks[2]
    rates.before_train()

    def step(trainer, value):
        for parameter in trainer.model.parameters():
            parameter.grad = torch.full_like(parameter, value)
        trainer.optimizer.step()

    with EventStorage() as begun.storage:
        step(begun, 1.0)
        rates.after_step()
    begun.checkpointer.save("model_0000000", iteration=0)

    new = ["SOLVER.BASE_LR", "0.5", "SOLVER.WEIGHT_DECAY", "0.3", "SOLVER.MOMENTUM", "0.1"]
    cfg = load_config("shapes_voc_R18_C4", [*TINY, *schedule, *new])
    sgd = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    expected = build_lr_scheduler(cfg, sgd)
    sgd.step()
    expected.step()
    (rate,) = expected.get_last_lr()

    continued = trainer_of(folder, *schedule, *new)
    continued.load(folder / "model_0000000.pth")
    assert {group["lr"] for group in continued.optimizer.param_groups} == {rate}
    assert set(continued.scheduler.base_lrs) == {0.5}
    decays = {
        parameter: group["weight_decay"]
        for group in continued.optimizer.param_groups
        for parameter in group["params"]
    }
    assert set(decays.values()) == {0.3, 0.0}
    states = begun.optimizer.state, continued.optimizer.state
    buffers = [{p: s["momentum_buffer"].double() for p, s in state.items()} for state in states]
    weights = {p: p.detach().double() for p in decays}
    assert all(map(torch.equal, buffers[0].values(), buffers[1].values()))
    step(continued, -2.0)
    for parameter, decay in decays.items():
        before = weights[parameter]
        moved = before - rate * (0.1 * buffers[1][parameter] - 2.0 + decay * before)
        torch.testing.assert_close(parameter.detach().double(), moved, rtol=1e-5, atol=1e-6)
    continued.scheduler.step()
    expected.step()
    assert set(continued.scheduler.get_lr()) == set(expected.get_last_lr())


def test_gradients_are_clipped_where_it_is_asked_for(registered, tmp_path):
    clip = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"]
    trainer = trainer_of(tmp_path, *clip, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "1.0")
    weight = next(p for n, p in trainer.model.named_parameters() if n.endswith("conv1.weight"))
    before = weight.detach().clone()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    rate = trainer.optimizer.param_groups[0]["lr"]
    trainer.optimizer.step()
    moved = (weight.detach() - before).norm().item()
    assert 0 < moved <= rate * 1.1  # one of norm 1, and a little decay


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_nothing_in_a_checkpoint_is_run(tmp_path, capsys):
    torch.save({"model": {}, "trainer": Evil()}, tmp_path / "model_0000001.pth")
    checkpointer = AtomicCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.load(str(tmp_path / "model_0000001.pth"))  # a dead placeholder, of no use
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Evil(), "__author__": "x"}))
    with contextlib.suppress(UserError):  # no tensors in it
        checkpointer.load(str(tmp_path / "evil.pkl"))
    assert "code ran" not in capsys.readouterr().out


def test_a_loss_that_is_no_number_comes_with_advice():
    error = FloatingPointError("Loss became infinite or NaN at iteration=12!\nloss_dict = {...}")
    text = not_finite(error)
    assert text.startswith("Loss became infinite or NaN at iteration=12! Use a lower learning")
    assert "\n" not in text
