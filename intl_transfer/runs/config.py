"""Configurations: YAML files over typed dataclasses, with dotted overrides."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.files.interpolation import check_interpolations, check_size
from intl_transfer.files.texts import is_file
from intl_transfer.files.yamls import parse_value, read_yaml
from intl_transfer.places import expanded
from intl_transfer.runs.aliases import standard_keys
from intl_transfer.runs.given import check_given
from intl_transfer.runs.settings import flatten, rule_of

Schema = TypeVar("Schema")
_LONGEST_OVERRIDE = 100_000
#: By key: the value, whether it is valid, and what is expected.
Rules = Mapping[str, tuple[Any, bool, str]]


def load_config(
    schema: type[Schema],
    name: str,
    overrides: Sequence[str] = (),
    folder: str | Path = ".",
    defaults: Mapping[str, Any] | None = None,
    own: Collection[str] = (),
) -> Schema:
    """Reads a configuration file into a dataclass, checking all keys and types.

    A file can extend another with ``base: NAME``, beside it or in ``folder``; its values override
    the base's, and ``key=value`` overrides both. Lists are replaced, not merged. ``~`` in paths is
    the home.

    Args:
        schema: the dataclass, nested dataclasses allowed, every field with a default or
            ``omegaconf.MISSING``.
        name: a file in ``folder``, with or without ``.yaml``, or a path.
        overrides: ``key=value`` with dotted keys, as on the command line.
        folder: where names resolve.
        defaults: by dotted key, values that replace the schema's defaults.
        own: top-level keys that are not inherited through ``base``.

    Returns:
        An instance of ``schema``.

    Raises:
        UserError: for an unknown name, key or type; suggests near matches.
    """
    folder = Path(folder)
    file = resolve_config(name, folder)
    config = OmegaConf.structured(schema)
    known = list(_dotted_names(schema))
    for key, value in (defaults or {}).items():
        OmegaConf.update(config, key, value)
    for one, values in _with_bases(file, folder):
        if not _same_file(one, file):
            values = {key: value for key, value in values.items() if key not in own}
        config = _merge(schema, config, values, str(one), known)
    for override in overrides:
        config = _merge(schema, config, _parsed(override), f"'{override}'", known)
    check_size(config, str(file))  # before OmegaConf resolves them
    missing = _missing(config, file)
    if missing:
        raise UserError(f"{file}: no value for {', '.join(missing)}; give it as key=value")
    return cast(Schema, resolved(config, str(file)))


def _missing(config: Any, file: Path) -> list[str]:
    try:
        return sorted(OmegaConf.missing_keys(config))
    except Exception as error:  # of an interpolation that cannot be resolved
        raise UserError(f"{file}: {_reason(error)}") from None


def resolved(config: Any, where: str) -> Any:
    """The object of a configuration, with interpolations resolved.

    Args:
        config: OmegaConf's, with its interpolations checked by
            :func:`~intl_transfer.files.interpolation.check_interpolations` when it was read.
        where: its source, for messages.

    Raises:
        UserError: if an interpolation cannot be resolved, is circular, or has the wrong type.
    """
    check_size(config, where)
    try:
        return OmegaConf.to_object(config)
    except Exception as error:  # of OmegaConf, its grammar, or the dataclass
        raise UserError(f"{where}: {_reason(error)}") from None


def _parsed(override: str) -> Any:
    """The configuration of a ``key=value`` override."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"'{override}': expected key=value, for example seed=1")
    where = f"'{override}'"
    if len(override) > _LONGEST_OVERRIDE:
        raise UserError(f"'{override[:60]}…': an override of {len(override):,} characters")
    config = OmegaConf.create({})
    given = parse_value(value, where)
    check_interpolations(given, where)
    try:
        OmegaConf.update(config, key, given)
        return config
    except Exception as error:  # of OmegaConf, or its grammar
        raise UserError(f"{where}: expected key=value; {_reason(error)}") from None


def _reason(error: Exception) -> str:
    key = getattr(error, "full_key", None)
    text = str(getattr(error, "msg", None) or error) or type(error).__name__
    reason = text.splitlines()[0]
    return f"{key}: {reason}" if key else reason


#: Seeds that numpy's and torch's generators take.
SEEDS = range(2**32)


def _number_rules(config: Any) -> dict[str, tuple[Any, bool, str]]:
    """Rules that hold for the numbers of every configuration: its seed, and finite fractions."""
    found: dict[str, tuple[Any, bool, str]] = {
        key: (value, math.isfinite(value), "a finite number")
        for key, value in flatten(dataclasses.asdict(config)).items()
        if isinstance(value, float)
    }
    expected = f"a whole number from 0 to {SEEDS[-1]}"
    return {**found, "seed": (config.seed, config.seed in SEEDS, expected)}


def check_values(
    config: Any,
    choices: Mapping[str, tuple[Any, Collection[str]]],
    rules: Rules,
) -> None:
    """Refuses values that have the right type but are invalid.

    Beside the rules given, seeds are those that generators take, and fractions are finite.

    Args:
        config: the configuration, a dataclass, nested ones included.
        choices: by key, the value and the allowed values.
        rules: by key, the value, whether it is valid, and what is expected.

    Raises:
        UserError: naming the first invalid one.
    """
    for key, (value, known) in choices.items():
        if value not in known:
            raise UserError(f"{key} is '{value}'; expected one of {', '.join(known)}")
    for key, (found, is_good, expected) in (*_number_rules(config).items(), *rules.items()):
        if not is_good:
            raise UserError(f"{key} is {found}; expected {expected}")


def check_effects(stage: str, config: Any, overrides: Sequence[str]) -> None:
    """Refuses settings of the command line that the other settings leave without effect.

    Those of files are ignored: a base states them for all that extend it.

    Args:
        stage: of :data:`intl_transfer.runs.settings.RULES`.
        config: the configuration, a dataclass.
        overrides: ``key=value``, as given.

    Raises:
        UserError: naming the first such setting, and the one that leaves it without effect.
    """
    settings = flatten(dataclasses.asdict(config))
    for key, override in given_keys(overrides).items():
        rule = rule_of(stage, key, settings)
        if rule is not None and rule.when is not None:
            other = rule.when[0]
            raise UserError(
                f"'{override}' has no effect: {key} {rule.reason}, and {other} is "
                f"{settings[other]}. Leave it away, or change {other}"
            )


def given_keys(overrides: Sequence[str]) -> dict[str, str]:
    """The dotted keys that a command line sets, each with the last override that does.

    Args:
        overrides: ``key=value``, valid ones.
    """
    found: dict[str, str] = {}
    for override in overrides:
        given: Any = OmegaConf.to_container(_parsed(override), resolve=False)
        found |= dict.fromkeys(flatten(given), override)
    return found


def resolve_config(name: str, folder: str | Path) -> Path:
    """The file of a configuration's name.

    Args:
        name: a file's stem or name in ``folder``, or a path to a file.
        folder: where names resolve.

    Raises:
        UserError: if there is none; lists near matches and where it was searched for.
    """
    folder, name = Path(folder), expanded(name)
    for candidate in (folder / name, folder / f"{name}.yaml", Path(name)):
        if is_file(candidate):
            return candidate
    names = sorted(file.stem for file in folder.glob("*.yaml"))
    hint = did_you_mean(Path(name).stem, names)
    raise UserError(
        f"no configuration '{name}': looked in {folder}/ and as a path.{hint} "
        f"There are: {', '.join(names) or 'none'}."
    )


def resolve_base(base: str, file: Path, folder: str | Path) -> Path:
    """The file that a configuration extends, whatever the working directory.

    Args:
        base: a name or a path, as in the file: one beside it, or else in ``folder``.
        file: the configuration.
        folder: where names resolve.

    Raises:
        UserError: if there is none.
    """
    name = expanded(base)
    places = dict.fromkeys((file.parent, Path(folder)))
    found = [p for at in places for p in (at / name, at / f"{name}.yaml") if is_file(p)]
    # A file may extend the one of the project that it is named after.
    others = [candidate for candidate in found if not _same_file(candidate, file)]
    if found:
        return (others or found)[0]
    names = sorted({other.stem for place in places for other in place.glob("*.yaml")} - {file.stem})
    raise UserError(
        f"{file}: base: no configuration '{base}': looked in {' and '.join(map(str, places))}."
        f"{did_you_mean(Path(name).stem, names)}"
    )


def config_name(name: str) -> str:
    """What runs of a configuration are called after: its file's name, without ``.yaml``.

    ``resnet_lr0.1`` and ``resnet_lr0.2`` are two names: only the ending of a file is cut off.
    """
    file = Path(name).name
    return next((file[: -len(end)] for end in (".yaml", ".yml") if file.endswith(end)), file)


def _with_bases(file: Path, folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and its bases, outermost base first."""
    chain: list[tuple[Path, dict[str, Any]]] = []
    following: Path | None = file
    while following is not None:
        if any(_same_file(following, seen) for seen, _ in chain):
            names = " -> ".join(str(one) for one in [*(seen for seen, _ in chain), following])
            raise UserError(f"{file}: 'base' is circular: {names}")
        values = read_yaml(following)
        base = values.pop("base", None)
        chain.append((following, values))
        if base is None:
            return chain[::-1]
        if not isinstance(base, str):
            raise UserError(f"{following}: base is {base!r}; expected a configuration's name")
        following = resolve_base(base, following, folder)
    return chain[::-1]


def _same_file(one: Path, other: Path) -> bool:
    return one == other or one.resolve() == other.resolve()


def _merge(
    schema: Any, config: DictConfig, values: Any, where: str, known: Sequence[str]
) -> DictConfig:
    if isinstance(values, dict):
        check_interpolations(values, where)
    else:
        values = OmegaConf.to_container(values, resolve=False)
    values = expanded(standard_keys(values, where))
    check_given(schema, values, where)
    try:
        return cast(DictConfig, OmegaConf.merge(config, values))
    except OmegaConfBaseException as error:
        key = error.full_key or str(error.key)
        reason = str(error.msg or error).splitlines()[0]
        bare = re.sub(r"\[\d+\]", "", key)
        if bare not in known and isinstance(error, ConfigAttributeError | ConfigKeyError):
            raise UserError(f"{where}: no key '{key}'.{_near_keys(bare, known)}") from None
        raise UserError(f"{where}: {key}: {reason}") from None
    except Exception as error:  # OmegaConf's own, for example for keys that are not strings
        raise UserError(f"{where}: invalid ({_reason(error)})") from None


def _near_keys(key: str, known: Sequence[str]) -> str:
    # A correct name at the wrong level (batch_size for optim.batch_size) precedes misspellings.
    leaf = key.rsplit(".", 1)[-1]
    places = [name for name in known if name.rsplit(".", 1)[-1] == leaf]
    if places:
        return " Did you mean " + " or ".join(f"'{place}'" for place in places) + "?"
    top = sorted({name.split(".", 1)[0] for name in known})
    return did_you_mean(key, known) or f" Known top-level keys: {', '.join(top)}."


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
