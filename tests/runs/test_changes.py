"""What a session finds in its run directory: the same for every stage."""

from __future__ import annotations

import argparse

import pytest
from torch.utils.data import DataLoader

from intl_transfer.errors import UserError
from intl_transfer.runs import RunDirectory, write_json
from intl_transfer.runs.changes import Continuation
from intl_transfer.runs.checkpoint import CheckpointNotWrittenError, keep_newest, try_to_save
from intl_transfer.runs.directory import Origin
from intl_transfer.runs.records import ImageSet

#: By stage, a configuration, a key of it that decides and one that does not.
CONFIGS = {
    "pretrain": ({"optim": {"epochs": 3}, "output_dir": "a"}, "optim.epochs"),
    "evaluation": ({"kind": "linear", "optim": {"lr": 3}, "output_dir": "a"}, "optim.lr"),
    "detection": ({"SOLVER": {"MAX_ITER": 3}, "OUTPUT_DIR": "a"}, "SOLVER.MAX_ITER"),
}
IMAGES = {"train": ImageSet(images=3, classes=2, digest="0" * 64)}


def begun(folder, stage, config, **more):
    return RunDirectory.start(
        folder, stage=stage, name="run", config_name="c", config=config, seed=0, **more
    )


def changed(config, key, value):
    section, name = key.split(".")
    return {**config, section: {**config[section], name: value}}


@pytest.mark.parametrize("stage", CONFIGS)
def test_other_settings_are_refused_or_recorded_in_every_stage(tmp_path, stage):
    config, key = CONFIGS[stage]
    folder = tmp_path / "run"
    fresh = Continuation(folder, stage, config, images=IMAGES)
    assert (fresh.exists, fresh.changes, fresh.is_finished) == (False, {}, False)
    begun(folder, stage, config, dataset=IMAGES)
    place = "OUTPUT_DIR" if stage == "detection" else "output_dir"
    same = Continuation(folder, stage, {**config, place: "b"})
    assert (same.exists, same.changes, same.is_finished) == (True, {}, False)
    other = changed(config, key, 4)
    expected = (
        rf"contains a run with different settings \({key}: 3 before, 4 now\).*--output-dir DIR"
    )
    with pytest.raises(UserError, match=expected):
        Continuation(folder, stage, other)
    allowed = Continuation(folder, stage, other, allow=True)
    assert allowed.changes == {key: {"before": 3, "now": 4}}


@pytest.mark.parametrize("stage", CONFIGS)
def test_a_finished_run_is_done_unless_something_changed(tmp_path, stage):
    config, key = CONFIGS[stage]
    begun(tmp_path, stage, config)._close("finished", None)
    assert Continuation(tmp_path, stage, config).is_finished
    assert not Continuation(tmp_path, stage, changed(config, key, 9), allow=True).is_finished


def test_other_images_and_weights_are_refused_whenever_they_are_known(tmp_path):
    config, _ = CONFIGS["detection"]
    weights = {"role": "weights", "path": "w", "sha256": "1" * 64}
    begun(tmp_path, "detection", config, dataset=IMAGES, inputs=[weights])
    earlier = Continuation(tmp_path, "detection", config, [weights])
    earlier.add_images(IMAGES)
    more = {"train": ImageSet(images=4, classes=2, digest="0" * 64)}
    with pytest.raises(UserError, match=r"dataset\.train\.images: 3 before, 4 now"):
        earlier.add_images(more)
    with pytest.raises(UserError, match="weights sha256"):
        Continuation(tmp_path, "detection", config, [{**weights, "sha256": "2" * 64}])
    both = Continuation(tmp_path, "detection", config, images=more, allow=True)
    assert both.changes.keys() == {"weights sha256", "dataset.train.images"}


def interrupted(folder, stage, step, **optim):
    """A run of 26 images, and what its newest checkpoint states."""
    config = {"optim": {"epochs": 4, "batch_size": 8, **optim}}
    run = begun(folder, stage, config, dataset={"train": ImageSet(images=26)})
    return Origin(folder / f"checkpoints/step_{step:08d}.pt", run.manifest)


@pytest.mark.parametrize("stage", ["pretrain", "evaluation"])
@pytest.mark.parametrize("has_manifest", [True, False])
@pytest.mark.parametrize("batch", [4, 7, 8, 16, 26])
def test_steps_stay_the_epochs_that_they_were(tmp_path, stage, has_manifest, batch):
    """Whether an epoch has as many batches is torch's loader to say."""
    newest = interrupted(tmp_path, stage, 3)
    if not has_manifest:
        (tmp_path / "manifest.json").unlink()
    config = {"optim": {"epochs": 4, "batch_size": batch}}
    earlier = Continuation(tmp_path, stage, config, allow=True, newest=newest)
    lengths = [len(DataLoader(range(26), size, drop_last=True)) for size in (8, batch)]
    if lengths[0] == lengths[1]:
        earlier.add_images({"train": ImageSet(images=26)})
        assert ("optim.batch_size" in earlier.changes) == (batch != 8)
    else:
        with pytest.raises(UserError, match=rf"{lengths[0]} an epoch; .* there are {lengths[1]},"):
            earlier.add_images({"train": ImageSet(images=26)})


@pytest.mark.parametrize(("step", "epochs", "fits"), [(6, 3, True), (6, 2, False), (7, 2, False)])
def test_fewer_epochs_than_are_done_are_refused(tmp_path, step, epochs, fits):
    newest = interrupted(tmp_path, "pretrain", step)
    config = {"optim": {"epochs": epochs, "batch_size": 8}}
    earlier = Continuation(tmp_path, "pretrain", config, allow=True, newest=newest)
    images = {"train": ImageSet(images=26)}
    if fits:
        earlier.add_images(images)
    else:
        with pytest.raises(UserError, match=f"epochs; optim.epochs is {epochs}. Expected more"):
            earlier.add_images(images)


def test_a_run_whose_last_checkpoint_is_its_end_goes_on_to_its_results(tmp_path):
    newest = interrupted(tmp_path, "pretrain", 12)
    config = {"optim": {"epochs": 4, "batch_size": 8}}
    earlier = Continuation(tmp_path, "pretrain", config, newest=newest)
    earlier.add_images({"train": ImageSet(images=26)})
    assert earlier.changes == {}


def test_the_option_is_the_same_in_every_stage():
    parser = argparse.ArgumentParser()
    Continuation.add_option(parser)
    assert parser.parse_args(["--allow-config-change"]).allow_config_change


def test_a_checkpoint_that_cannot_be_written_costs_no_run(tmp_path, capsys):
    run = begun(tmp_path / "run", "pretrain", CONFIGS["pretrain"][0])
    full = OSError(28, "No space left on device")

    def fail():
        raise CheckpointNotWrittenError("step_2.pt was not written (disk full)") from full

    assert not try_to_save(run, fail, lambda: [tmp_path / "step_1.pt"])
    assert "the run continues, the newest is step_1.pt" in capsys.readouterr().err
    assert (run.manifest.failed_saves, run.manifest.failed_save is None) == (1, False)
    assert not try_to_save(run, fail, list)
    assert "the run continues, there is none yet" in capsys.readouterr().err
    with pytest.raises(OSError, match="No space left") as raised:
        try_to_save(run, fail, list, is_needed=True)
    assert raised.value is full
    assert run.manifest.failed_saves == 3
    assert try_to_save(run, lambda: write_json(tmp_path / "a", {}), list)
    assert run.manifest.failed_save is None


def test_the_newest_stay(tmp_path):
    files = [tmp_path / name for name in "abcd"]
    for file in files[:3]:
        file.touch()
    keep_newest(files, 2)
    assert [file.exists() for file in files] == [True, True, False, False]
