"""Run directories, checkpoints and the process group, shared by all stages."""

from intl_transfer.runs.atomic import sha256_file, write_atomically, write_json
from intl_transfer.runs.directory import (
    MANIFEST,
    RESULTS,
    RunDirectory,
    read_manifest,
    read_results,
)
from intl_transfer.runs.metrics import METRICS, read_metrics

__all__ = [
    "MANIFEST",
    "METRICS",
    "RESULTS",
    "RunDirectory",
    "read_manifest",
    "read_metrics",
    "read_results",
    "sha256_file",
    "write_atomically",
    "write_json",
]
