"""The files of a run directory as typed records: what is written, what is read, and its schema.

``docs/run-directory.md`` describes every field, ``docs/schema/`` has the JSON schemas, made from
these classes. Further fields are kept as they are: a file of a later version, or of somebody's own
evaluator, loses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from intl_transfer.errors import UserError
from intl_transfer.runs.aliases import ALIASES, standard_key

#: Version of the form of ``manifest.json`` and ``results.json``.
SCHEMA = 1
STATUSES = ("running", "finished", "failed", "interrupted")
#: Where the fields are documented.
DOCUMENTED = "docs/run-directory.md"

Stage = Literal["pretrain", "detection", "evaluation"]
STAGES: tuple[Stage, ...] = ("pretrain", "detection", "evaluation")

#: Evidence for a fact about a checkpoint: see :mod:`intl_transfer.conversion.evidence`.
Evidence = Literal[
    "stated in the file",
    "read from its configuration",
    "told by the user",
    "inferred from names",
    "assumed",
]

_GUESSED: tuple[Evidence, ...] = ("inferred from names", "assumed")
_Percentage = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_SchemaVersion = Annotated[int, Field(ge=1, le=SCHEMA)]


class Record(BaseModel):
    """A JSON object with known fields.

    Fields are read as attributes; ``record["key"]``, ``"key" in record`` and ``==`` work as on the
    JSON object, by the names in the file.
    """

    model_config = ConfigDict(
        extra="allow",
        use_attribute_docstrings=True,
        strict=True,
        validate_by_name=True,
        protected_namespaces=(),
    )

    #: Names in files of fields with another name here.
    _files: ClassVar[dict[str, str]] = {"schema": "schema_version"}

    @model_validator(mode="before")
    @classmethod
    def _by_standard_names(cls, value: Any) -> Any:
        """Renames fields of earlier versions."""
        if not isinstance(value, Mapping):
            return value
        old = [k for k in ALIASES.keys() & value.keys() if ALIASES[k] in cls.model_fields]
        if not old:
            return value
        return {ALIASES[key] if key in old else key: inner for key, inner in value.items()}

    @classmethod
    def of(cls, value: Any, where: str) -> Self:
        """Reads a record from a JSON value.

        Args:
            value: a parsed JSON value.
            where: the file, for messages.

        Raises:
            UserError: naming the first invalid field, what is expected and found.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise UserError(f"{where}: {next(problems_of(error))}") from None

    def as_json(self) -> dict[str, Any]:
        """The JSON object, without fields that were never set."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def get(self, key: str, default: Any = None) -> Any:
        """A field by its name in the file, or the default if not set."""
        try:
            return self[key]
        except KeyError:
            return default

    def __eq__(self, other: object) -> bool:
        return self.as_json() == other if isinstance(other, dict) else super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as Python marks what cannot be hashed

    def __getitem__(self, key: str) -> Any:
        name = self._files.get(key, key)
        if name not in self.model_fields_set:
            raise KeyError(key)
        return getattr(self, name)

    def __setitem__(self, key: str, value: Any) -> None:
        setattr(self, self._files.get(key, key), value)

    def __contains__(self, key: object) -> bool:
        return self._files.get(str(key), key) in self.model_fields_set


class GitState(Record):
    """The revision of the source tree."""

    revision: str | None = None
    """Commit of the sources; null if they are not in a repository."""
    dirty: bool | None = None
    """Whether they had uncommitted changes."""


class Labels(Record):
    """The subset of a training set whose labels were used."""

    fraction: float | None = None
    """Fraction of the images; null for a user's list."""
    seed: int | None = None
    """Seed of the random subset; null for a user's list."""
    images: int | None = None
    """Number of images used."""
    available: int | None = None
    """Total number of images."""
    digest: str | None = None
    """SHA-256 of their sorted ids: equal for equal lists."""


class ImageSet(Record):
    """The content of a data set."""

    images: int | None = None
    """Number of images."""
    classes: int | None = None
    """Number of classes."""
    annotations: int | None = None
    """Number of annotated objects."""
    digest: str | None = None
    """SHA-256 over labels or annotations and the bytes of 64 images: equal for equal data sets."""
    labels: Labels | None = None
    """The subset used for training; null for all."""


class PretrainRun(Record):
    """The pretraining run of a backbone."""

    id: str | None = None
    """Id of its manifest; null if stated by the user."""
    name: str | None = None
    """Its name."""
    config_name: str | None = None
    """Its configuration's name."""
    method: str | None = None
    """Its name in tables."""
    epochs: int | float | str | None = None
    """Of pretraining, done when the weights were saved."""
    planned_epochs: int | float | None = None
    """Of its whole schedule, for weights of before its end; null for those of the end."""
    dataset: str | None = None
    """Data set used for pretraining."""
    seed: int | None = None
    """Its seed."""
    settings: dict[str, Any] | None = None
    """The deciding settings of its weights, by dotted key."""

    @field_validator("settings")
    @classmethod
    def _by_standard_keys(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return value and {standard_key(key): setting for key, setting in value.items()}


class FactSource(Record):
    """The source of one fact of a provenance."""

    level: Evidence
    """Kind of evidence; only the first two count as known."""
    detail: str = ""
    """What was read, or what it was inferred from."""


class Provenance(Record):
    """The source of converted weights."""

    source_path: str | None = None
    """Name of the converted file, with its folder if every run has a file of that name."""
    source_sha256: str | None = None
    """Its SHA-256."""
    source_format: str | None = None
    """Its format."""
    branch: str | None = None
    """`online`, or `target` for the moving-average copy; a prefix for unknown formats."""
    backbone: str | None = None
    """`resnet18` … `resnet152`."""
    method: str | None = None
    """Pretraining method, if known."""
    label: str | None = None
    """The user's name for it."""
    pretrain_run: PretrainRun | None = None
    """Its pretraining run, if known."""
    stem: str | None = None
    """`imagenet`, `cifar` or `cifar_published`."""
    stem_source: str | None = None
    """Evidence for the stem; null if assumed."""
    pixels: dict[str, Any] | None = None
    """Image preprocessing: channels, mean, std, and their source, null if assumed."""
    evidence: dict[str, FactSource] | None = None
    """By fact (`pixels`, `channels`, `strides`, `method`, `epochs`, `dataset`, `branch`, `stem`),
    its source; unknown facts are omitted.
    """


class Input(Record):
    """An input file of a run."""

    role: str | None = None
    """`weights`."""
    path: str | None = None
    """Its path."""
    sha256: str | None = None
    """Its SHA-256."""
    provenance: Provenance | None = None
    """Its recorded source."""
    pixels: dict[str, Any] | None = None
    """Image preprocessing: channels, mean, std."""


class Session(Record):
    """One session of a run."""

    started: str | None = None
    """In UTC, ISO 8601."""
    ended: str | None = None
    """In UTC, ISO 8601."""
    command: list[str] | str | None = None
    """The command line."""
    host: str | None = None
    """Host name."""
    pid: int | None = None
    """Process id."""
    world_size: int | None = None
    """Number of ranks."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Settings that differ from the previous session, by dotted key: `before`, `now`."""
    continues: dict[str, Any] | None = None
    """If the manifest did not record the run before: the `checkpoint` that was continued, and the
    id of its `run`, null if not stated.
    """


class Manifest(Record):
    """``manifest.json``: description of a run, its inputs, machine and code."""

    schema_version: _SchemaVersion = Field(validation_alias="schema", serialization_alias="schema")
    """Version of the schema."""
    id: str
    """32 hexadecimal digits, constant over sessions; "" for external results."""
    stage: str
    """`pretrain`, `detection` or `evaluation`."""
    name: str
    """Short name for tables and logs."""
    status: Literal["running", "finished", "failed", "interrupted"]
    """Status of the run."""
    config: dict[str, Any]
    """All resolved settings."""
    seed: int
    """The seed."""
    inputs: list[Input]
    """Input files."""
    sessions: list[Session]
    """One entry per session."""
    method: str | None = None
    """Its pretraining method."""
    config_name: str | None = None
    """Name of the configuration, as given."""
    git: GitState = Field(default_factory=GitState)
    """The sources."""
    versions: dict[str, str] = Field(default_factory=dict)
    """Of libraries."""
    hardware: dict[str, Any] = Field(default_factory=dict)
    """Host, processors, GPUs."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Further facts."""
    dataset: dict[str, ImageSet] = Field(default_factory=dict)
    """Content of the data sets, by name."""
    started: str | None = None
    """In UTC, ISO 8601."""
    ended: str | None = None
    """In UTC, ISO 8601; in an anonymous archive, seconds after the end of its first run."""
    error: str | None = None
    """The error's text of a failed run, the reason of an interrupted one."""
    failed_saves: int | None = None
    """Number of checkpoints that could not be written, in all sessions."""
    failed_save: str | None = None
    """Why the last one could not be; null if a later one was written."""


class Initialization(Record):
    """The initialization of a network."""

    kind: str = "pretrained"
    """`random`, `pretrained` or `supervised`."""
    method: str | None = None
    """Name of the pretraining method in tables."""
    weights_sha256: str | None = None
    """SHA-256 of the loaded file; null for random."""
    provenance: Provenance | None = None
    """Recorded source of that file."""
    pixels: dict[str, Any] | None = None
    """Image preprocessing: channels, mean, std."""
    detail: str | None = None
    """For tables, instead of the pretraining's configuration, epochs and data."""

    @property
    def method_is_inferred(self) -> bool:
        """Whether the method is inferred from names in a file; `--method` confirms it."""
        evidence = (self.provenance.evidence if self.provenance else None) or {}
        source = evidence.get("method")
        return self.method is not None and source is not None and source.level in _GUESSED


class Evaluator(Record):
    """The evaluator, as far as it affects metrics."""

    name: str | None = None
    """The evaluator."""
    metric: str | None = None
    """Definition of the metrics, if there are several."""
    version: str | None = None
    """Version, if it affects metrics."""


class Dataset(Record):
    """The data of an evaluation."""

    name: str
    """Name of the test set."""
    train: list[str] = Field(default_factory=list)
    """Names of the training sets."""
    layout: str | None = None
    """`coco` or `voc`."""
    images: int | None = None
    """Number of test images."""
    labels: Labels | None = None
    """The training images whose labels were used; null for all."""


class Architecture(Record):
    """The evaluated network."""

    backbone: str
    """`resnet50`, …."""
    meta: str = ""
    """`Mask R-CNN`, …."""
    head: str = ""
    """`C4`, `FPN`, …."""


class Schedule(Record):
    """The training schedule of a detector."""

    name: str = "not stated"
    """`1x`, `2x`, `24k`, or another name."""
    iterations: int | None = None
    """Of the training."""
    batch_size: int | None = None
    """Images per batch, over all processes."""
    base_lr: float | None = None
    """Learning rate."""


class Detector(Record):
    """Metadata in a detector's file, under ``detector``."""

    config: dict[str, Any]
    """All settings of the training, nested."""
    classes: list[str]
    """Names of the classes, in the order of its outputs."""
    architecture: Architecture
    """Its architecture."""
    initialization: Initialization
    """Its initialization."""
    train: list[str] = Field(default_factory=list)
    """Names of its training sets."""
    dataset: dict[str, ImageSet] = Field(default_factory=dict)
    """Their content, by name."""
    seed: int | None = None
    """Of the training."""
    run: str | None = None
    """Id of its run."""


class Results(Record):
    """``results.json``: fields of all stages."""

    schema_version: _SchemaVersion = Field(
        SCHEMA, validation_alias="schema", serialization_alias="schema"
    )
    """Version of the schema."""
    stage: str
    """As in the manifest."""
    seed: int
    """As in the manifest."""
    run: str | None = None
    """Id of the run, as in the manifest."""
    session: int | None = None
    """Number of the session that wrote this, which is the last one of a finished run."""
    external: str | None = None
    """Who or what measured this, if not this project."""
    source: str | None = None
    """Source file of external metrics."""
    copy_of: str | None = None
    """Of external results in an archive: digest of the original, of which this is a copy."""
    evaluator: Evaluator | None = None
    """The evaluator, as far as it affects metrics."""
    not_stated: list[str] = Field(default_factory=list)
    """Unknown facts of the protocol of external metrics, as text."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Further deciding settings; for runs without a manifest, all of them."""
    wall_time_s: _Seconds | None = None
    """Duration of all sessions, in seconds."""
    unreadable_images: int | None = None
    """Number of unreadable images."""
    skipped_steps: int | None = None
    """Number of non-finite steps, which were skipped."""
    gradient_overflows: int | None = None
    """Number of steps skipped while the loss scale of float16 is found; not included in
    `skipped_steps`."""

    @property
    def known_seed(self) -> int | None:
        """The seed of the run; None if nobody stated it, which ``seed`` has no value for."""
        return None if "seed" in self.not_stated else self.seed


class PretrainResults(Results):
    """``results.json`` of a pretraining run."""

    stage: Literal["pretrain"]
    """`pretrain`."""
    method: str | None = None
    """Its name in tables."""
    backbone: str | None = None
    """`resnet50`, …."""
    dataset: str | None = None
    """Name of the images."""
    epochs: int | float | None = None
    """Of the training."""
    steps: int | None = None
    """Of the training."""
    batch_size: int | None = None
    """Global."""
    final_loss: float | None = None
    """Loss of the last step."""
    knn_accuracy: _Percentage | None = None
    """k-NN accuracy in %, if measured."""
    knn_unreadable_images: int | None = None
    """Number of unreadable images among those of the k-NN evaluation."""
    backbone_file: str | None = None
    """The exported backbone."""
    backbone_sha256: str | None = None
    """Its SHA-256."""


class DetectionResults(Results):
    """``results.json`` of a detection run, or of another task by pixels or boxes."""

    stage: Literal["detection"]
    """`detection`: any task measured on a fine-tuned network."""
    dataset: Dataset
    """The data of an evaluation."""
    architecture: Architecture
    """The network."""
    initialization: Initialization
    """Its initialization."""
    metrics: dict[str, dict[str, Any]]
    """By task (`box`, `mask`, `voc`, or any other), metrics in % by name, higher is better;
    `per_class` is not shown in tables.
    """
    schedule: Schedule = Field(default_factory=Schedule)
    """Of the fine-tuning."""
    iteration: int | None = None
    """The evaluated iteration, equal to `schedule.iterations`."""
    images_per_second: float | None = None
    """During iterations."""
    data_share: float | None = None
    """Fraction of their time spent waiting for data."""
    peak_memory_mb: float | None = None
    """Of one GPU, or of the process on a CPU."""


class EvaluationResults(Results):
    """``results.json`` of an evaluation by classification."""

    stage: Literal["evaluation"]
    """`evaluation`."""
    kind: str
    """`linear`, `knn`, `semi` or a custom kind; for other evaluators, with `external`."""
    dataset: Dataset
    """The data of an evaluation."""
    architecture: Architecture
    """The network."""
    initialization: Initialization
    """Its initialization."""
    metrics: dict[str, float | None]
    """In %, higher is better: `top1`, `top5`, …."""
    protocol: dict[str, Any] = Field(default_factory=dict)
    """The protocol, which must agree for metrics to be comparable."""
    epoch: int | None = None
    """The evaluated epoch, equal to `protocol.epochs`."""


AnyResults = PretrainResults | DetectionResults | EvaluationResults
_RESULTS: dict[str, type[PretrainResults] | type[DetectionResults] | type[EvaluationResults]] = {
    "pretrain": PretrainResults,
    "detection": DetectionResults,
    "evaluation": EvaluationResults,
}


class MetricsLine(Record):
    """One line of ``metrics.jsonl``; further numbers have their own names."""

    time: float
    """Unix seconds."""
    step: int | None = None
    """Number of optimizer steps."""
    epoch: float | None = None
    """Number of passes over the data."""
    iteration: int | None = None
    """Number of iterations, for detection."""
    evaluation: dict[str, dict[str, float | None]] | None = None
    """Metrics of an intermediate evaluation, by task."""


def results_class(
    stage: Any,
) -> type[PretrainResults] | type[DetectionResults] | type[EvaluationResults] | None:
    """The record of a stage's results; None for an unknown stage."""
    return _RESULTS.get(stage) if isinstance(stage, str) else None


def results_of(value: Mapping[str, Any], where: str) -> AnyResults:
    """Reads the results of any stage from a JSON object.

    Args:
        value: a parsed ``results.json``.
        where: the file, for messages.

    Raises:
        UserError: naming the first invalid field, what is expected and found.
    """
    kind = results_class(value.get("stage"))
    if kind is None:
        raise UserError(
            f"{where}: stage is {value.get('stage')!r}; expected one of {', '.join(_RESULTS)}"
        )
    return kind.of(value, where)


#: What pydantic calls an error, in words; ``{...}`` are its own details.
_EXPECTED = {
    "missing": "it is missing",
    "string_type": "expected text",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "bool_type": "expected true or false",
    "list_type": "expected a list",
    "dict_type": "expected an object",
    "model_type": "expected an object",
    "finite_number": "expected a finite number",
    "greater_than_equal": "expected at least {ge:g}",
    "less_than_equal": "expected at most {le:g}",
    "literal_error": "expected {expected}",
}


def problems_of(error: ValidationError) -> Iterator[str]:
    """What is wrong with a record, a sentence for each field: its name, expected, found."""
    for detail in error.errors(include_url=False):
        place = ""
        for part in detail["loc"]:
            place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else str(part)
        if place == "schema" and detail["type"] == "less_than_equal":
            yield (
                f"written with schema {detail['input']}, this version reads up to {SCHEMA}; "
                "upgrade intl-transfer"
            )
            continue
        expected = _EXPECTED.get(detail["type"], detail["msg"][:1].lower() + detail["msg"][1:])
        expected = expected.format_map({"ge": 0, "le": 0, "expected": "", **detail.get("ctx", {})})
        found = "" if detail["type"] == "missing" else f", found {_shown(detail['input'])}"
        yield f"{place or 'the file'}: {expected}{found}"


def _shown(value: Any) -> str:
    if isinstance(value, (dict, Record)):
        return "an object"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 60 else f"{text[:60]}…"


def schemas() -> dict[str, dict[str, Any]]:
    """The JSON schemas, by file name: what ``docs/schema/`` holds."""
    results = TypeAdapter(Annotated[AnyResults, Field(discriminator="stage")])
    found = {
        "manifest.schema.json": Manifest.model_json_schema(),
        "results.schema.json": results.json_schema(),
        "metrics.schema.json": MetricsLine.model_json_schema(),
        "provenance.schema.json": Provenance.model_json_schema(),
    }
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {
        name: {**dialect, "title": name.split(".")[0], **value} for name, value in found.items()
    }


def write_schemas(folder: Path) -> list[Path]:
    """Writes the schemas to a folder; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, schema in schemas().items():
        file = folder / name
        file.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")
        files.append(file)
    return files
