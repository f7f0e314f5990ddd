"""Configurations: YAML files over typed dataclasses, with dotted overrides."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from intl_transfer.errors import UserError, did_you_mean

Schema = TypeVar("Schema")


def load_config(
    schema: type[Schema], name: str, overrides: Sequence[str] = (), folder: str | Path = "."
) -> Schema:
    """Reads a configuration file into a dataclass, every key and type checked.

    A file may start from another with ``base: NAME``; its own values win, and ``key=value``
    overrides win over both. Lists are replaced as a whole.

    Args:
        schema: the dataclass, nested dataclasses allowed, every field with a default or
            ``omegaconf.MISSING``.
        name: a file in ``folder``, with or without ``.yaml``, or a path.
        overrides: ``key=value`` with dotted keys, as on the command line.
        folder: where names resolve.

    Returns:
        An instance of ``schema``.

    Raises:
        UserError: for an unknown name, key or type; names the near matches.
    """
    folder = Path(folder)
    path = resolve_config(name, folder)
    config = OmegaConf.structured(schema)
    known = list(_dotted_names(schema))
    for file, values in _with_bases(path, folder):
        config = _merge(config, OmegaConf.create(values), str(file), known)
    for override in overrides:
        if "=" not in override:
            raise UserError(f"'{override}': expected key=value, for example seed=1")
        override_config = OmegaConf.from_dotlist([override])
        config = _merge(config, override_config, f"'{override}'", known)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"{path}: no value for {', '.join(missing)}; give it as key=value")
    return cast(Schema, OmegaConf.to_object(config))


def check_values(
    choices: Mapping[str, tuple[Any, Collection[str]]],
    rules: Mapping[str, tuple[Any, bool, str]],
) -> None:
    """Refuses values that a configuration's types allow and that cannot be used.

    Args:
        choices: by key, the value and those that it may have.
        rules: by key, the value, whether it is good, and what was expected.

    Raises:
        UserError: naming the first that is wrong.
    """
    for key, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"{key} is '{value}'; expected one of {', '.join(known)}")
    for key, (found, is_good, expected) in rules.items():
        if not is_good:
            raise UserError(f"{key} is {found}; expected {expected}")


def resolve_config(name: str, folder: str | Path) -> Path:
    """The file that a configuration's name stands for.

    Args:
        name: a file's stem or name in ``folder``, or a path to a file.
        folder: where names resolve.

    Raises:
        UserError: if there is none; names the near matches and where they were looked for.
    """
    folder = Path(folder)
    for candidate in (folder / name, folder / f"{name}.yaml", Path(name)):
        if candidate.is_file():
            return candidate
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    hint = did_you_mean(Path(name).stem, names)
    raise UserError(
        f"no configuration '{name}': looked in {folder}/ and as a path.{hint} "
        f"There are: {', '.join(names) or 'none'}."
    )


def _with_bases(path: Path, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and what it starts from, furthest first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    following: Path | None = path
    while following is not None:
        if any(following == seen for seen, _ in chain):
            raise UserError(f"{following}: 'base' leads back to the file itself")
        values = read_yaml(following)
        base = values.pop("base", None)
        chain.append((following, values))
        following = resolve_config(str(base), folder) if base is not None else None
    return chain[::-1]


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping safely: tags that would run code are refused.

    Raises:
        UserError: if it is not valid YAML, holds such a tag, or is not a mapping.
    """
    try:
        value = yaml.safe_load(path.read_text())
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"{path}: refused: {error.problem} ({error.problem_mark})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a mapping of keys to values")
    return value


def _merge(config: DictConfig, values: Any, where: str, known: Sequence[str]) -> DictConfig:
    try:
        return cast(DictConfig, OmegaConf.merge(config, values))
    except OmegaConfBaseException as error:
        key = error.full_key or str(error.key)
        reason = str(error.msg or error).splitlines()[0]
        bare = re.sub(r"\[\d+\]", "", key)
        if bare not in known:
            raise UserError(f"{where}: no key '{key}'.{_near_keys(bare, known)}") from None
        raise UserError(f"{where}: {key}: {reason}") from None


def _near_keys(key: str, known: Sequence[str]) -> str:
    # A right name in the wrong place (batch_size for optim.batch_size) comes before a misspelling.
    leaf = key.rsplit(".", 1)[-1]
    places = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    if places:
        return " Did you mean " + " or ".join(f"'{place}'" for place in places) + "?"
    top = sorted({name.split(".", 1)[0] for name in known})
    return did_you_mean(key, known) or f" Known at the top: {', '.join(top)}."


def _dotted_names(schema: Any, prefix: str = "") -> Iterator[str]:
    import typing

    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        name = f"{prefix}{field.name}"
        yield name
        inner = [hints[field.name], *typing.get_args(hints[field.name])]
        for kind in inner:
            if dataclasses.is_dataclass(kind):
                yield from _dotted_names(kind, f"{name}.")
