from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from omegaconf import MISSING

from intl_transfer.errors import UserError
from intl_transfer.evaluation.command import weights_label
from intl_transfer.results.starts import _word
from intl_transfer.runs.config import config_name, load_config
from intl_transfer.runs.given import WORDS, check_given
from intl_transfer.runs.records import PretrainRun, Provenance
from slurm.launch_detection import weights_name


@dataclass
class Inner:
    rate: float = 0.1
    sizes: list[int] = field(default_factory=lambda: [1])


@dataclass
class Outer:
    name: str = MISSING
    seed: int = 0
    inner: Inner = field(default_factory=Inner)
    items: list[Inner] = field(default_factory=list)
    words: dict[str, list[str]] = field(default_factory=dict)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "base.yaml").write_text("name: base\ninner: {rate: 0.5, sizes: [1, 2]}\n")
    (tmp_path / "child.yaml").write_text("base: base\nname: child\nitems: [{rate: 2}]\n")
    return tmp_path


def test_bases_and_overrides(folder):
    config = load_config(Outer, "child", ["inner.rate=3", "seed=7"], folder)
    assert config == Outer("child", 7, Inner(3.0, [1, 2]), [Inner(2.0, [1])])
    assert load_config(Outer, str(folder / "base.yaml"), [], folder).name == "base"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sed=1"], "no key 'sed'. Did you mean 'seed'"),
        (["rate=1"], "no key 'rate'. Did you mean 'inner.rate' or 'items.rate'"),
        (["inner.rates=1"], "no key 'inner.rates'. Did you mean 'inner.rate'"),
        (["seed=many"], "seed: Value 'many' of type 'str' could not be converted to Integer"),
        (["seed"], "expected key=value"),
    ],
)
def test_wrong_overrides_say_what_is_near(folder, overrides, message):
    with pytest.raises(UserError, match=message):
        load_config(Outer, "child", overrides, folder)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("name=no", r"name is a text, and YAML reads it as a truth value \(False\)"),
        ("name=12.10", r"name is a text, and YAML reads it as a number \(12\.1\)"),
        ("words={a: [x, on]}", r"words\.a\[1\] is a text, and YAML reads it as a truth"),
        ("inner.sizes=3", r"inner\.sizes is 3; expected a list: inner\.sizes=\[3\]"),
    ],
)
def test_values_are_what_was_written(folder, override, message):
    """`name: no` was the name "False"."""
    with pytest.raises(UserError, match=message):
        load_config(Outer, "child", [override], folder)
    key, _, value = override.partition("=")
    outer, _, inner = key.partition(".")
    text = f"{outer}: {{{inner}: {value}}}" if inner else f"{key}: {value}"
    (folder / "mine.yaml").write_text(f"base: base\n{text}\n")
    with pytest.raises(UserError, match=message):
        load_config(Outer, "mine", [], folder)
    assert (
        load_config(Outer, "child", ["name='no'", "words={a: [2024-01-01]}"], folder).name == "no"
    )


@pytest.mark.parametrize("text", ["0123", "exp #2", "&x", "# x", "a: b", "x ", "12:30", "1e5"])
def test_texts_of_a_command_line_are_what_was_written(folder, text):
    """Another YAML than that of files read them: data.root=0123 was the folder 83."""
    assert load_config(Outer, "child", [f"name={text}"], folder).name == text


def test_the_home_is_meant_by_a_tilde(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "mine.yaml").write_text("base: ~/base\nname: ~/x\nwords: {a: [~/y]}\n")
    config = load_config(Outer, "~/mine.yaml", [], folder / "absent")
    assert (config.name, config.words) == (f"{folder}/x", {"a": [f"{folder}/y"]})
    assert load_config(Outer, "base", ["name=~/z"], folder).name == f"{folder}/z"


def test_a_base_does_not_depend_on_the_working_directory(folder, tmp_path, monkeypatch):
    mine, elsewhere = folder / "mine", folder / "elsewhere"
    for place in (mine, elsewhere):
        place.mkdir()
        (place / "above.yaml").write_text(f"name: {place.name}\n")
    (mine / "run.yaml").write_text("base: above\nseed: 1\n")
    (mine / "base.yaml").write_text("base: base\nseed: 2\n")  # of the folder
    for place in (mine, elsewhere, tmp_path):
        monkeypatch.chdir(place)
        assert load_config(Outer, str(mine / "run.yaml"), [], folder).name == "mine"
        assert load_config(Outer, str(mine / "base.yaml"), [], folder).name == "base"
    (mine / "run.yaml").write_text("base: child2\n")
    with pytest.raises(UserError, match=rf"looked in {mine} and {folder}\. Did you mean 'child'"):
        load_config(Outer, str(mine / "run.yaml"), [], folder)


def test_wrong_files_say_so(folder):
    with pytest.raises(UserError, match=r"no configuration 'chid'.*Did you mean 'child'"):
        load_config(Outer, "chid", [], folder)
    (folder / "typo.yaml").write_text("name: x\ninner: {rat: 1}\n")
    with pytest.raises(UserError, match=r"typo\.yaml: no key 'inner\.rat'"):
        load_config(Outer, "typo", [], folder)
    (folder / "items.yaml").write_text("name: x\nitems: [{rat: 1}]\n")
    with pytest.raises(UserError, match=r"items\.yaml: no key .*rat"):
        load_config(Outer, "items", [], folder)
    (folder / "loop.yaml").write_text("base: loop\n")
    with pytest.raises(UserError, match="is circular"):
        load_config(Outer, "loop", [], folder)
    (folder / "unnamed.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match="no value for name"):
        load_config(Outer, "unnamed", [], folder)


def test_names_with_dots_are_names_of_their_own():
    """Of learning rates: runs of `resnet_lr0.1` and `resnet_lr0.2` had one folder."""
    names = {"a": "a", "a.yaml": "a", "x/a_lr0.1": "a_lr0.1", "x/a_lr0.1.yaml": "a_lr0.1"}
    assert {name: config_name(name) for name in names} == names
    weights = {"w/a_lr0.1.pth": "a_lr0.1", "moco_0199.pth.tar": "moco_0199", "dino": "dino"}
    assert {name: weights_label(name) for name in weights} == weights


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("checkpoints/step_00000100.pt", "{run}_step_00000100"),
        ("model_0000005.pth", "{run}_model_0000005"),
        *((file, "{run}") for file in ("backbone.safetensors", "model_final.pth", "model.bin")),
        ("r50_lr0.1.pth.tar", "r50_lr0.1"),
    ],
)
def test_files_that_any_run_has_are_named_after_theirs(tmp_path, file, name):
    """The same by every command that makes something from weights."""
    for run in ("a", "b"):
        path = tmp_path / run / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        expected = name.format(run=run)
        word = _word(Provenance(source_path=str(path)), PretrainRun())
        assert {weights_label(str(path)), weights_name(str(path)), word} == {expected}


def test_a_tag_that_runs_code_is_refused(folder, tmp_path):
    mark = tmp_path / "ran"
    (folder / "evil.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{mark}']\n")
    with pytest.raises(UserError, match="refused"):
        load_config(Outer, "evil", [], folder)
    assert not mark.exists()


def test_words_of_a_command_line_are_what_yaml_reads():
    """As of Detectron2: ``overrides: [SOLVER.BASE_LR, 0.02, MODEL.MASK_ON, False]``."""

    @dataclass
    class Part:
        overrides: list[str] = field(default_factory=list, metadata=WORDS)
        names: list[str] = field(default_factory=list)

    check_given(Part, {"overrides": ["a", 0.02, False], "names": ["a"]}, "x")
    with pytest.raises(UserError, match=r"x: names\[1\] is a text, and YAML reads it as a number"):
        check_given(Part, {"names": ["a", 0.10]}, "x")
    with pytest.raises(UserError, match=r"x: overrides is 0\.02; expected a list"):
        check_given(Part, {"overrides": 0.02}, "x")
