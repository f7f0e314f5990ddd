from __future__ import annotations

import contextlib
import pickle

import torch

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
