"""A sweep as a graph of jobs: pretraining per setting and seed, evaluations, a report, a plot."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from intl_transfer.analysis.sweeps import Sweep, override, run_name, settings_of, varied
from intl_transfer.data.loaders import rank_batch_size
from intl_transfer.errors import UserError
from intl_transfer.runs.config import load_config
from intl_transfer.runs.settings import below, deciding, fingerprint
from pretrain.checks import configuration
from pretrain.config import PretrainConfig
from slurm.benchmark import Benchmark, Made, make_data
from slurm.evaluations import Classification, Evaluation
from slurm.executors import with_sources
from slurm.launch_pretrain import pretraining
from slurm.ledger import Job
from slurm.local import fit
from slurm.module import command as of_module
from slurm.plan import OF_PLAN, Plan, check_name, refuse_own
from slurm.resources import Resources, checked, in_time, layered, small, tasks_per_node

ROOT = Path(__file__).resolve().parents[1]


def read(name: str, overrides: list[str]) -> Sweep:
    """Reads a sweep's configuration.

    Args:
        name: a file in ``configs/analysis/``, or a path.
        overrides: ``key=value`` with dotted keys.

    Raises:
        UserError: for an unknown name, key or type; suggests near matches.
    """
    return load_config(Sweep, name, overrides, ROOT / "configs" / "analysis")


def make_shapes_of(sweep: Sweep, folder: Path, say: Any) -> None:
    """Generates the embedded data set in the sweep's folder, if the sweep uses it."""
    if sweep.shapes:
        datasets = str(folder / "datasets")
        make_data(Benchmark(datasets=datasets, shapes=Made(True, sweep.shapes)), say)


class SweepPlan(Plan[Sweep]):
    """Makes the jobs of a sweep, a configuration from :func:`read`."""

    def _every_job(self) -> list[Job]:
        """All jobs, parents before children.

        Raises:
            UserError: if a run's settings are invalid, or two runs are the same experiment.
        """
        trained, evaluated = [], []
        kind = Classification()
        for label, words, config in self._runs():
            run = self._pretraining(label, words, config)
            trained.append(run)
            for name, swept in self.config.evaluations.items():
                check_name(name, f"{self.name}: evaluations")
                evaluation = Evaluation("classification", swept.config, self._data(swept))
                where = f"{self.name}: evaluations.{name}"
                kind.check(evaluation, where)
                requested = self._resources(where)
                folder = self.folder / "evaluation" / name / label
                title = f"{self.name}-{name}"
                where_to = (folder, requested, self.code, title)
                job = kind.job(evaluation, run.target, config.seed, None, *where_to)
                job.key = f"{name}/{label}"
                job.parents, job.must_finish = [run.key], True
                evaluated.append(job)
        return [*trained, *evaluated, *self._drawing([*trained, *evaluated])]

    def _runs(self) -> Iterator[tuple[str, list[str], PretrainConfig]]:
        """Name, overrides and configuration of each run, checked."""
        seen: dict[str, str] = {}
        refuse_own(self.config.overrides, OF_PLAN, f"{self.name}: overrides")
        named = varied(self.config)
        for settings in settings_of(self.config):
            shown = {key: settings[key] for key in named if key in settings}
            for seed in self.config.seeds:
                label = f"{run_name(shown)}_seed{seed}"
                try:
                    words, config = self._configured(settings, seed)
                except UserError as error:
                    raise UserError(f"{self.name}: {label}: {error}") from None
                decides = deciding("pretrain", dataclasses.asdict(config))
                made = fingerprint({**decides, "seed": seed})
                if made in seen:
                    raise UserError(
                        f"{self.name}: {label} is the same experiment as {seen[made]}: no "
                        "setting that affects results differs"
                    )
                seen[made] = label
                yield label, words, config

    def _overrides(self, settings: dict[str, Any]) -> list[str]:
        words = list(self.config.overrides)
        if self.config.shapes:
            words = [f"data.root={self._shapes}/train", "data.name=shapes", *words]
        return words + [override(key, value) for key, value in settings.items()]

    @property
    def _shapes(self) -> Path:
        return self.folder / "datasets" / "shapes" / "classification"

    def _data(self, swept: Any) -> list[str]:
        if not self.config.shapes:
            return list(swept.overrides)
        root = self._shapes
        return [f"data.train={root}/train", f"data.test={root}/val", *swept.overrides]

    def _configured(self, settings: dict[str, Any], seed: int) -> tuple[list[str], PretrainConfig]:
        words = [*self._overrides(settings), f"seed={seed}"]
        config = configuration(self.config.pretrain, words)
        if self.config.shapes and config.knn.epochs and config.knn.test is None:
            config.knn.test = f"{self._shapes}/val"
            words = [f"knn.test={config.knn.test}", *words]
        return words, config

    def _pretraining(self, label: str, words: list[str], config: PretrainConfig) -> Job:
        requested = self._resources("pretrain")
        rank_batch_size(config.optim.batch_size, requested.nodes * tasks_per_node(requested))
        folder, title = self.folder / "pretrain" / label, f"{self.name}-pretrain"
        run = pretraining(self.config.pretrain, words, folder, requested, self.code, title, config)
        run.must_finish = True
        return run

    def _drawing(self, parents: list[Job]) -> Iterator[Job]:
        """The report of all runs and the sweep's plot; made even if some runs fail."""
        tools = {
            "report": ["intl_transfer.results", str(self.folder), "--out"],
            "figure": ["intl_transfer", "figure", "sweep", str(self.folder), "--out"],
        }
        for name, (tool, *words) in tools.items():
            target = self.folder / name
            site = {**self.site, **{k: v for k, v in self.options.items() if k == "cluster"}}
            requested = small(site, f"{self.name}: {name}")
            requested.environment = with_sources(requested.environment, self.code)
            yield Job(
                key=name,
                stage="collect",
                target=str(target),
                command=[*of_module(self.code, tool), *words, f"{target}/"],
                resources=dataclasses.asdict(requested),
                parents=[job.key for job in parents],
                after="any",
                folder=str(Path.cwd()),
                settings=below("plot", dataclasses.asdict(self.config.plot))
                if name == "figure"
                else {},
                title=f"{self.name}-{name}",
            )

    def _resources(self, where: str) -> Resources:
        values = layered(self.site, self.config.resources, self.options)
        where = f"{self.name}: {where}"
        return fit(in_time(checked(values, where), where), self.gpus)
