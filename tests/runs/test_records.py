from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from intl_transfer.errors import UserError
from intl_transfer.runs import read_manifest, read_metrics, read_results
from intl_transfer.runs.records import (
    DetectionResults,
    Manifest,
    MetricsLine,
    results_of,
    schemas,
)
from tests.results.synthetic import detection_run, evaluation_run, log_detection, pretraining_run

DOCS = Path(__file__).resolve().parents[2] / "docs"
MINIMAL = {
    "stage": "evaluation",
    "external": "my k-means probe 1.0",
    "kind": "k-means",
    "dataset": {"name": "imagenet"},
    "architecture": {"backbone": "resnet50"},
    "initialization": {"method": "MoCo v2", "detail": "800 ep"},
    "seed": 0,
    "metrics": {"NMI": 61.5},
}


def test_the_committed_schemas_are_those_of_the_code():
    for name, schema in schemas().items():
        text = (DOCS / "schema" / name).read_text()
        assert json.loads(text) == schema, f"{name}: run scripts/write_schemas.py"


def test_files_of_all_stages_fit_the_schemas(tmp_path):
    """By another validator than the one that wrote them."""
    runs = [
        pretraining_run(tmp_path, curves=10, knn_accuracy=50.0),
        detection_run(tmp_path, "detection", 38.0),
        evaluation_run(tmp_path, "evaluation"),
    ]
    log_detection(runs[1])
    for run in runs:
        for name in ("manifest", "results"):
            schema = schemas()[f"{name}.schema.json"]
            jsonschema.Draft202012Validator.check_schema(schema)
            jsonschema.validate(json.loads((run.path / f"{name}.json").read_text()), schema)
        for line in read_metrics(run.path):
            jsonschema.validate(line, schemas()["metrics.schema.json"])
    jsonschema.validate(MINIMAL, schemas()["results.schema.json"])


@pytest.mark.parametrize(
    "change",
    [{"seed": "0"}, {"metrics": {"top1": "high"}}, {"dataset": {}}, {"schema": 2}, {"stage": "x"}],
)
def test_schemas_and_records_refuse_the_same(change):
    wrong = {**MINIMAL, **change}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schemas()["results.schema.json"])
    with pytest.raises(UserError):
        results_of(wrong, "results.json")


def test_what_was_written_is_read_as_it_was(tmp_path):
    run = detection_run(tmp_path, "run", 38.0, further={"kept": [1, None]})
    results, manifest = read_results(run.path), read_manifest(run.path)
    assert isinstance(results, DetectionResults)
    assert results.as_json() == json.loads((run.path / "results.json").read_text())
    assert manifest.as_json() == json.loads((run.path / "manifest.json").read_text())
    assert results["further"] == {"kept": [1, None]}
    assert results["schema"] == results.schema_version == 1
    assert "unreadable_images" not in results
    with pytest.raises(KeyError):
        results["unreadable_images"]
    assert results.get("unreadable_images", 0) == 0


def test_errors_say_what_was_expected_and_found(tmp_path):
    run = detection_run(tmp_path, "run", 38.0)
    content = json.loads((run.path / "results.json").read_text())
    for change, message in (
        ({"schedule": {"iterations": 1.5}}, "schedule.iterations: expected a whole number, found"),
        ({"architecture": {"meta": "x"}}, "architecture.backbone: it is missing"),
        ({"metrics": {"box": [1, 2]}}, "metrics.box: expected an object, found a list of 2"),
        ({"schema": 9}, "written with schema 9, this version reads up to 1; upgrade"),
        ({"schema": 0}, "schema: expected at least 1, found 0"),
        ({"wall_time_s": float("nan")}, "wall_time_s: expected a finite number"),
    ):
        with pytest.raises(UserError, match=r"^f/results.json: ") as error:
            results_of({**content, **change}, "f/results.json")
        assert message in str(error.value)


def test_every_field_is_documented():
    """In the schema and on the page: a field that nobody explains is one that nobody can use."""
    page = (DOCS / "run-directory.md").read_text()
    for kind in (Manifest, MetricsLine, DetectionResults):
        for name, info in kind.model_fields.items():
            assert info.description, (kind.__name__, name)
            assert f"`{info.validation_alias or name}`" in page, (kind.__name__, name)
