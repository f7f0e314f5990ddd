"""YAML and interpolations: PyYAML's and OmegaConf's values on clean files, one line on others."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from intl_transfer.errors import UserError
from intl_transfer.files.yamls import parse_value, parse_yaml, read_yaml
from intl_transfer.runs.config import load_config

ROOT = Path(__file__).resolve().parents[2]
_SCALARS = st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(deadline=None, max_examples=150)
@given(value=_VALUES, flow=st.booleans())
def test_clean_values_are_pyyamls(value, flow):
    text = yaml.safe_dump(value, default_flow_style=flow)
    assert parse_yaml(text, "it") == yaml.safe_load(text) == value


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda f: f.stem)
def test_every_configuration_here_is_read(file):
    assert read_yaml(file) == yaml.safe_load(file.read_text())


def test_aliases_and_merged_keys():
    text = "a: &a {x: 1, y: [2]}\nb: *a\nc: {<<: *a, x: 3}"
    assert parse_yaml(text, "it") == yaml.safe_load(text)


ALIASES = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ALIASES, r", line 6, column \d\d: refused: more than 100,000 values"),
        (
            "a: &a [*a]",
            r", line 1, column 8: refused: more than any .* holds itself",
        ),
        (
            "a: &a {b: *a}",
            r", line 1, column 11: refused: more than any .* holds itself",
        ),
        ("[" * 100_000, r", line 1, column 51: refused: nested more than 50 deep"),
        ("x: !!python/object/apply:os.system [ls]", r"column 4: refused: the tag '!!python/obj"),
        ("x: !include other.yaml", r"column 4: refused: the tag '!include'"),
        ("x: !!binary aGk=", r"refused: the tag '!!binary'"),
        ("x: 1\nx: 2", r", line 2, column 1: the key 'x' a second time"),
        ("x: [1\ny: 2", r", line 2, column 2: not valid YAML"),
        ("x: *y", r", line 1, column 4: not valid YAML: found undefined alias"),
        ("x: " + "9" * 10_000, r", line 1, column 4: not valid YAML: Exceeds the limit"),
        ("x: \x07", r", line 1: not valid YAML: the character #x0007"),
        ('x: "\\ud800"', r", line 1, column [47]: "),
        ("? [a]\n: b", r"column 3: not valid YAML: found unhashable key"),
        ("a: 1\n---\nb: 2", r", line 2, column 1: a second document"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, reason):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    started = time.process_time()
    with pytest.raises(UserError, match=rf"^\S*my\.yaml{reason}|^\S*my\.yaml.*{reason}") as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 5


def test_a_refused_folder_is_not_left_open(tmp_path):
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UserError, match="is a folder"):
        read_yaml(tmp_path)
    assert os.listdir("/proc/self/fd") == before


def test_what_is_no_text_is_named(tmp_path):
    file = tmp_path / "my.yaml"
    cases = {
        b"a: 1\nb: \xff\xfe": "line 2: not UTF-8 text",
        b"a: 1\n\x00": "line 2: a zero byte",
        b"x" * (3 << 20): "has 3,145,728 bytes; expected a YAML file of at most",
        b"- 1": "expected keys and values, a mapping, found list",
    }
    for data, reason in cases.items():
        file.write_bytes(data)
        with pytest.raises(UserError, match=reason):
            read_yaml(file)
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes("a: é".encode(encoding))
        assert read_yaml(file) == {"a": "é"}
    file.unlink()
    os.mkfifo(file)  # opening it would wait for a writer
    with pytest.raises(UserError, match="no plain file"):
        read_yaml(file)
    with pytest.raises(UserError, match=r"absent\.yaml does not exist"):
        read_yaml(tmp_path / "absent.yaml")


@dataclass
class Part:
    rate: float = 0.1
    name: str = "a"


@dataclass
class Whole:
    seed: int = 0
    name: str = "x"
    part: Part = field(default_factory=Part)
    values: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def load(tmp_path):
    def do(text="", *overrides):
        (tmp_path / "my.yaml").write_text(text)
        return load_config(Whole, "my", overrides, tmp_path)

    return do


def test_keys_of_its_own_are_filled_in_as_omegaconf_does(load):
    text = (
        "seed: 3\nname: run${seed}_${part.rate}\n"
        "part: {rate: 1e-3, name: '${..name}/${.rate}'}\n"
        "values: ['${name}', '\\${literal}', '${oc.select:none,7}']\nmore: {keys: '${part}'}\n"
    )
    expected = OmegaConf.merge(OmegaConf.structured(Whole), OmegaConf.create(yaml.safe_load(text)))
    assert load(text) == OmegaConf.to_object(expected)


@pytest.mark.parametrize(
    "requested",
    [
        "${oc.env:WANDB_API_KEY}",
        "x${ oc.env:HOME,none }",
        "${oc.env:'HOME'}",
        "${oc.select:none,${oc.env:HOME}}",
        "${oc.${name}:HOME}",
        "${oc.decode:'${oc.env:HOME}'}",
        "${oc.decode:name}",
        "${oc.create:'{a: 1}'}",
        "${${name}}",
        "${hydra:runtime.cwd}",
    ],
)
def test_nothing_else_is_asked_for(load, monkeypatch, requested):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    for text, override in ((f'name: "{requested}"', []), ("", [f"name={requested}"])):
        with pytest.raises(UserError, match=r"refused|not valid YAML") as caught:
            load(text, *override)
        assert "secret" not in str(caught.value)
    with pytest.raises(UserError, match=r"my\.yaml: more\.a\[0\]: refused"):
        load(f'more: {{a: ["{requested}"]}}')


def test_documented_variables_may_be_asked_for(load, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", "/data")
    assert load("name: '${oc.env:DETECTRON2_DATASETS}/x'").name == "/data/x"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name: ${name}", "leads to itself"),
        ("name: ${part.name}\npart: {name: '${name}'}", "leads to itself"),
        ("more: {a: '${more}'}", "leads to itself"),
        ("name: ${absent}", "absent"),
        ("seed: ${name}", "seed"),
        (
            "name: '" + "x" * 100 + "'\nmore:\n  a0: '${name}'\n"
            + "".join(f"  a{i}: '{f'${{more.a{i - 1}}}' * 10}'\n" for i in range(1, 9)),
            "refused: its interpolations, written out, are more than",
        ),
        ("1: 2", "my.yaml"),
        ("more: {1.5: 2}", "my.yaml"),
    ],
)  # fmt: skip
def test_interpolations_end(load, text, reason):
    started = time.process_time()
    with pytest.raises(UserError, match=reason) as caught:
        load(text)
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "override",
    ["name=[", "name={a: ", "=1", "seed", "name=['x", "name=[!!python/name:os.system x]", "a..b=1",
     "seed[0]=1", "more.a=[&a [*a]]", "values=" + "[" * 1000, "name=${", "name='", "seed=x",
     "values=" + "x" * 200_000, ".=1", "part=3", "[0]=1"],
)  # fmt: skip
def test_overrides_that_cannot_be_are_one_line(load, override):
    with pytest.raises(UserError) as caught:
        load("", override)
    assert override[:4] in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_bases(load, tmp_path):
    (tmp_path / "a.yaml").write_text("base: b")
    (tmp_path / "b.yaml").write_text("base: my")
    with pytest.raises(
        UserError, match=r"'base' is circular: .*my\.yaml -> .*a\.yaml -> .*b\.yaml"
    ):
        load("base: a")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x01\x02")
    with pytest.raises(UserError, match=r"b\.yaml"):
        load("base: a")
    with pytest.raises(UserError, match=r"my\.yaml: base: no configuration 'none'"):
        load("base: none")
    with pytest.raises(UserError, match=r"my\.yaml: base is \['a'\]; expected"):
        load("base: [a]")


@pytest.mark.parametrize(
    "text", ["0123", "12:30", "0x10", "0b11", "1_000", "+5", "-0", "1:30.5", "1_0.5", "="]
)
def test_numbers_in_other_forms_stay_as_they_are_written(text):
    """YAML 1.1 reads other numbers, and a partition of that name was another one."""
    for parse in (parse_yaml, parse_value):
        assert parse(text, "x") == (text if text != "-0" else 0)
        assert parse("-12", "x") == -12
        assert [parse(one, "x") for one in ("1.5", "-.5", "2.e-3")] == [1.5, -0.5, 0.002]


@given(text=st.text("ab01 .:-+_#&*!|>%@,=x~yes", max_size=8))
def test_a_word_of_a_command_line_is_itself_or_what_a_file_has(text):
    """`output_dir=exp #2` was `exp`, and `&x` nothing."""
    value = parse_value(text, "x")
    assert value == text or value == parse_yaml(text, "x")


@pytest.mark.parametrize(
    "text",
    ["yes: 1\ntrue: 2", "null: 1\n~: 2", "1.0: a\n1.00: b", "{1: a, 1.0: b}", "a: 1\n'a': 2"],
)
def test_keys_of_one_value_are_one_key(text):
    """The last one won, as a dictionary has it."""
    with pytest.raises(UserError, match="a second time"):
        parse_yaml(text, "x")
    assert len(yaml.safe_load(text)) == 1


@pytest.mark.parametrize("text", ["!!bool maybe", '!!int ""', '!!float ""', "{!!bool maybe: 1}"])
def test_values_that_are_not_of_their_type_are_named(text):
    with pytest.raises(UserError, match=r"x, line 1, column [12]: not valid YAML: '.*' is not of"):
        parse_yaml(text, "x")
