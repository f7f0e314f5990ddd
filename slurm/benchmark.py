"""A benchmark: initializations x evaluations x seeds x learning rates, as a graph of jobs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from intl_transfer.data.loaders import rank_batch_size
from intl_transfer.data.roots import data_root
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.evaluation.command import configuration
from intl_transfer.evaluation.config import CLASSIFIER, EvaluationConfig
from intl_transfer.runs.aliases import standard_keys
from intl_transfer.runs.config import SEEDS, load_config
from intl_transfer.runs.controls import ControlConfig
from intl_transfer.runs.given import WORDS
from intl_transfer.runs.settings import deciding, fingerprint, select
from pretrain.checks import configuration as pretraining_configuration
from pretrain.config import PretrainConfig
from slurm.convert import command as conversion
from slurm.evaluations import Evaluation, kind_of, rate_text
from slurm.executors import with_sources
from slurm.launch_pretrain import pretraining
from slurm.ledger import Job
from slurm.local import fit
from slurm.made import OF_RUN, RANDOM, WEIGHTS
from slurm.module import command as of_module
from slurm.plan import OF_PLAN, Plan, check_name, refuse_own
from slurm.resources import SMALL, Resources, checked, in_time, layered, small, tasks_per_node

ROOT = Path(__file__).resolve().parents[1]
_STAGES = ("pretrain", "convert", "collect")


@dataclass
class Initialization:
    """The weights that evaluations start from: exactly one of the first four.

    Attributes:
        pretrain: a configuration in ``configs/pretrain/``, or a path, to pretrain with.
        supervised: a configuration of ``kind=semi`` in ``configs/evaluation/``, or a path, to train
            random weights on labels with.
        checkpoint: a finished pretraining run, or a checkpoint of any method.
        random: random initialization.
        overrides: ``key=value`` for ``pretrain`` or ``supervised``.
        seeds: of ``pretrain`` or ``supervised``; one run per seed.
    """

    pretrain: str | None = None
    supervised: str | None = None
    checkpoint: str | None = None
    random: bool = False
    overrides: list[str] = field(default_factory=list, metadata=WORDS)
    seeds: list[int] = field(default_factory=lambda: [0])


@dataclass
class Made:
    """A data set of ``intl-transfer data``, generated if it is missing.

    Attributes:
        make: generate it.
        spec: fields of its spec that differ from the defaults; the options of ``intl-transfer data
            NAME``.
    """

    make: bool = False
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass
class Control(ControlConfig):
    """Repeats evaluations of an initialization as a control; exactly one kind of control.

    Attributes:
        of: the initialization; with several pretraining seeds, the first.
        evaluations: names of the evaluations; empty for all.
        seeds: one run per seed; empty for the evaluation's first seed.
    """

    of: str = MISSING
    evaluations: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


@dataclass
class Benchmark:
    """A benchmark's configuration.

    Attributes:
        output_dir: parent of all its runs; null for ``runs/benchmark/NAME``.
        datasets: root of the data sets (``DETECTRON2_DATASETS``); null for the environment's.
        shapes: the embedded data set, in ``datasets``.
        photo_cutouts: the data set of photographs, in ``datasets`` (docs/photo-cutouts.md).
        initializations: by name; one table row each.
        evaluations: by name; one block of table columns each.
        controls: by name; one control row each.
        resources: fields of ``Resources`` for the jobs of a stage (``pretrain``, ``convert``,
            ``collect``); an evaluation has its own.
        published: include published rows in the report.
    """

    output_dir: str | None = None
    datasets: str | None = None
    shapes: Made = field(default_factory=Made)
    photo_cutouts: Made = field(default_factory=Made)
    initializations: dict[str, Initialization] = field(default_factory=dict)
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    controls: dict[str, Control] = field(default_factory=dict)
    resources: dict[str, dict[str, Any]] = field(default_factory=dict)
    published: bool = True


def read(name: str, overrides: list[str]) -> Benchmark:
    """Reads a benchmark's configuration and checks what can be checked without data.

    Args:
        name: a file in ``configs/benchmark/``, or a path.
        overrides: ``key=value`` with dotted keys.

    Raises:
        UserError: for an unknown name, key, type, kind or combination; suggests near matches.
    """
    benchmark = load_config(Benchmark, name, overrides, ROOT / "configs" / "benchmark")
    if not benchmark.initializations or not benchmark.evaluations:
        raise UserError(f"{name}: expected at least one of each of initializations and evaluations")
    for key, start in benchmark.initializations.items():
        where = f"{name}: initializations.{key}"
        check_name(key, where)
        named = [start.pretrain, start.supervised, start.checkpoint, start.random or None]
        if sum(value is not None for value in named) != 1:
            raise UserError(
                f"{where}: expected exactly one of pretrain, supervised, checkpoint and random"
            )
        if start.checkpoint is not None and not Path(start.checkpoint).exists():
            raise UserError(f"{where}: checkpoint {start.checkpoint} does not exist")
        if start.pretrain is not None or start.supervised is not None:
            _check_seeds(start.seeds, where)
            refuse_own(start.overrides, OF_PLAN, f"{where}.overrides")
            try:
                if start.pretrain is not None:
                    pretraining_config(start)
                else:
                    supervised_config(start)
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
    _check_distinct(benchmark, name)
    for key, evaluation in benchmark.evaluations.items():
        where = f"{name}: evaluations.{key}"
        check_name(key, where)
        kind_of(evaluation, where).check(evaluation, where)
        _check_seeds(evaluation.seeds, where)
        for rate in evaluation.learning_rates:
            if not 0 < rate < math.inf:
                raise UserError(f"{where}: learning_rates: {rate}; expected finite, above 0")
        checked({**evaluation.resources, "cluster": "slurm"}, f"{where}.resources")
    for key, control in benchmark.controls.items():
        _check_control(benchmark, key, control, f"{name}: controls.{key}")
    for stage, values in benchmark.resources.items():
        if stage not in _STAGES:
            raise UserError(
                f"{name}: resources: no stage '{stage}'; expected {', '.join(_STAGES)} (an "
                f"evaluation has its own resources).{did_you_mean(stage, _STAGES)}"
            )
        checked({**values, "cluster": "slurm"}, f"{name}: resources.{stage}")
    return benchmark


def _check_control(benchmark: Benchmark, key: str, control: Control, where: str) -> None:
    """Refuses a control of an unknown initialization or evaluation, or of not exactly one kind."""
    check_name(key, where)
    if control.seeds:
        _check_seeds(control.seeds, where)
    if control.of not in benchmark.initializations:
        known = list(benchmark.initializations)
        hint = did_you_mean(control.of, known)
        raise UserError(f"{where}: of is '{control.of}'; expected one of {', '.join(known)}.{hint}")
    for name in control.evaluations:
        if name not in benchmark.evaluations:
            hint = did_you_mean(name, list(benchmark.evaluations))
            raise UserError(f"{where}: no evaluation '{name}'.{hint}")
    if not 0 <= control.noise <= 1:
        raise UserError(f"{where}: noise is {control.noise}; expected 0 to 1")
    if sum((control.shuffle_labels, control.noise > 0, control.permute_weights)) != 1:
        raise UserError(
            f"{where}: expected exactly one of shuffle_labels, noise (above 0) and permute_weights"
        )
    if control.permute_weights and benchmark.initializations[control.of].random:
        raise UserError(
            f"{where}: permute_weights of '{control.of}', which is random; expected an "
            "initialization with trained weights"
        )


def _check_distinct(benchmark: Benchmark, name: str) -> None:
    """Refuses two initializations that would share a table row."""
    seen: dict[Any, str] = {}
    for key, start in benchmark.initializations.items():
        made: Any = "random"
        if start.checkpoint is not None:
            made = Path(start.checkpoint).resolve()
        elif start.pretrain is not None:
            made = fingerprint(deciding("pretrain", dataclasses.asdict(pretraining_config(start))))
        elif start.supervised is not None:
            config = dataclasses.asdict(supervised_config(start))
            settings = select("evaluation", config, "decides", "weights", "control")
            made = "supervised", fingerprint(settings)
        if made in seen:
            raise UserError(
                f"{name}: initializations.{key} is the same experiment as {seen[made]}: no setting "
                "that affects results differs. Keep one of them, with both seeds"
            )
        seen[made] = key


def _check_seeds(seeds: Sequence[int], where: str) -> None:
    """Refuses no seeds, and those that generators do not take."""
    if not seeds:
        raise UserError(f"{where}: seeds is empty; expected at least one")
    for seed in seeds:
        if seed not in SEEDS:
            raise UserError(f"{where}: seeds: {seed}; expected 0 to {SEEDS[-1]}")


def pretraining_config(start: Initialization) -> PretrainConfig:
    """The configuration of an initialization's pretraining run."""
    return pretraining_configuration(start.pretrain or "", start.overrides)


def supervised_config(start: Initialization) -> EvaluationConfig:
    """The configuration of a benchmark's supervised run.

    Raises:
        UserError: if it is invalid, or would not train the backbone.
    """
    config = configuration(start.supervised or "", start.overrides)
    if config.kind != "semi":
        raise UserError(f"supervised: expected a configuration of kind=semi, found {config.kind}")
    return config


@dataclass
class BenchmarkPlan(Plan[Benchmark]):
    """Makes the jobs of a benchmark, a configuration from :func:`read`."""

    def _every_job(self) -> list[Job]:
        starts: list[tuple[str, str, list[str]]] = []
        jobs: list[Job] = []
        for name, start in self.config.initializations.items():
            for label, weights, made in self._initialization(name, start):
                jobs += made
                starts.append((label, weights, [job.key for job in made[-1:]]))
        evaluated: list[Job] = []
        for name, evaluation in self.config.evaluations.items():
            evaluated += self._evaluation(name, evaluation, starts)
        for name, control in self.config.controls.items():
            evaluated += self._control(name, control, starts)
        return [*jobs, *evaluated, self._collecting(evaluated)]

    def _initialization(self, name: str, start: Initialization) -> list[tuple[str, str, list[Job]]]:
        """Per set of weights: its name in folders, its path, and the jobs that produce it."""
        if start.random:
            return [(name, RANDOM, [])]
        if start.checkpoint is not None:
            job = self._conversion(name, name, str(Path(start.checkpoint).resolve()))
            return [(name, job.target, [job])]
        train = self._pretraining if start.pretrain is not None else self._supervised
        requested = self._resources("pretrain", self.config.resources.get("pretrain", {}))
        found = []
        for seed in start.seeds:
            label = f"{name}_seed{seed}" if len(start.seeds) > 1 else name
            run, weights = train(name, start, seed, label, requested)
            run.must_finish = True
            job = self._conversion(name, label, weights, run)
            found.append((label, job.target, [run, job]))
        return found

    def _pretraining(
        self, name: str, start: Initialization, seed: int, label: str, requested: Resources
    ) -> tuple[Job, str]:
        """A pretraining run, and what is converted of it."""
        resolved = dataclasses.replace(pretraining_config(start), seed=seed)
        rank_batch_size(resolved.optim.batch_size, requested.nodes * tasks_per_node(requested))
        folder, title = self.folder / "pretrain" / label, f"{self.name}-pretrain-{name}"
        overrides, config = [*start.overrides, f"seed={seed}"], start.pretrain or ""
        run = pretraining(config, overrides, folder, requested, self.code, title, resolved)
        return run, str(folder)

    def _supervised(
        self, name: str, start: Initialization, seed: int, label: str, requested: Resources
    ) -> tuple[Job, str]:
        """Random weights trained on labels, by the stage that evaluates with few labels."""
        evaluation = Evaluation("classification", start.supervised or "", list(start.overrides))
        kind = kind_of(evaluation, name)
        folder, title = self.folder / kind.stage / name / label, f"{self.name}-{name}"
        run = kind.job(evaluation, RANDOM, seed, None, folder, requested, self.code, title)
        run.key = f"supervised/{label}"
        return run, str(folder / CLASSIFIER)

    def _conversion(self, name: str, label: str, source: str, run: Job | None = None) -> Job:
        """The conversion of a file or of what a run makes."""
        of_run = {}
        if run is not None:
            settings = {key: run.settings[key] for key in run.settings if key != WEIGHTS}
            of_run = {**deciding(run.stage, settings), "seed": settings["seed"]}
        target = self.folder / "weights" / f"{label}.pth"
        requested = self._resources("convert", self.config.resources.get("convert", {}), True)
        return Job(
            key=f"convert/{label}",
            stage="convert",
            target=str(target),
            command=conversion(self.code, source, target, name),
            resources=dataclasses.asdict(requested),
            parents=[] if run is None else [run.key],
            source=source,
            folder=str(Path.cwd()),
            settings={
                "source": source,
                "label": name,
                **{f"{OF_RUN}{key}": value for key, value in of_run.items()},
            },
            title=f"{self.name}-convert",
        )

    def _evaluation(
        self, name: str, evaluation: Evaluation, starts: list[tuple[str, str, list[str]]]
    ) -> list[Job]:
        kind = kind_of(evaluation, name)
        requested = kind.resources(self._resources(f"evaluations.{name}", evaluation.resources))
        made = []
        for label, weights, parents in starts:
            rates: list[float | None] = [*evaluation.learning_rates] or [None]
            for rate in rates:
                for seed in evaluation.seeds:
                    leaf = (
                        f"{label}_seed{seed}"
                        if rate is None
                        else f"{label}_lr{rate_text(rate)}_seed{seed}"
                    )
                    folder = self.folder / kind.stage / name / leaf
                    title = f"{self.name}-{name}"
                    job = kind.job(
                        evaluation, weights, seed, rate, folder, requested, self.code, title
                    )
                    job.key = f"{name}/{leaf}"
                    job.parents, job.must_finish = parents, True
                    made.append(job)
        return made

    def _control(
        self, name: str, control: Control, starts: list[tuple[str, str, list[str]]]
    ) -> list[Job]:
        """The evaluations that a control repeats, with the control applied."""
        seeds = self.config.initializations[control.of].seeds
        label = control.of if len(seeds) == 1 else f"{control.of}_seed{seeds[0]}"
        known = {own: (weights, parents) for own, weights, parents in starts}
        weights, parents = known.get(label) or known[control.of]
        made = []
        for key in control.evaluations or self.config.evaluations:
            evaluation = self.config.evaluations[key]
            changed = dataclasses.replace(
                evaluation,
                overrides=[*evaluation.overrides, *kind_of(evaluation, key).control(control)],
                seeds=control.seeds or evaluation.seeds[:1],
            )
            made += self._evaluation(key, changed, [(f"control_{name}", weights, parents)])
        return made

    def _collecting(self, evaluated: list[Job]) -> Job:
        requested = self._resources("collect", self.config.resources.get("collect", {}), True)
        target = self.folder / "report"
        command = [*of_module(self.code, "intl_transfer.results"), str(self.folder)]
        command += ["--out", f"{target}/"] + (["--published"] if self.config.published else [])
        requested.environment = with_sources(requested.environment, self.code)
        return Job(
            key="collect",
            stage="collect",
            target=str(target),
            command=command,
            resources=dataclasses.asdict(requested),
            parents=[job.key for job in evaluated],
            after="any",
            folder=str(Path.cwd()),
            settings={"published": self.config.published},
            title=f"{self.name}-collect",
        )

    def _resources(self, where: str, own: Mapping[str, Any], is_small: bool = False) -> Resources:
        """The profile's values, overridden by the job's own, then by the command line's."""
        options = {k: v for k, v in self.options.items() if not (is_small and k in SMALL)}
        if is_small:
            base = small(layered(self.site, options), f"{self.name}: {where}")
            values = layered(dataclasses.asdict(base), own)
        else:
            values = layered(self.site, own, options)
        if self.gpus is not None:  # one machine; batch sizes are global, so results do not change
            values["nodes"] = self.options.get("nodes", 1)
        environment = dict(values.get("environment") or {})
        if self.config.datasets is not None:
            environment["DETECTRON2_DATASETS"] = str(Path(self.config.datasets).resolve())
        where = f"{self.name}: {where}"
        requested = in_time(checked({**values, "environment": environment}, where), where)
        return fit(requested, self.gpus)


def make_data(benchmark: Benchmark, say: Any) -> None:
    """Generates the benchmark's own data sets that are missing.

    Args:
        benchmark: the configuration.
        say: prints a line of progress.

    Raises:
        UserError: if a value is invalid, a package is missing, or the folder contains a data set
            generated with other values.
    """
    from intl_transfer.data.made import MADE

    for name, made in MADE.items():
        made_set: Made = getattr(benchmark, name)
        if not made_set.make:
            continue
        known = [item.name for item in dataclasses.fields(made.spec)]
        values = standard_keys(made_set.spec, f"{name}.spec")
        for key in values:
            if key not in known:
                raise UserError(f"{name}.spec: no key '{key}'.{did_you_mean(key, known)}")
        spec = made.spec(**values)
        root = Path(benchmark.datasets or data_root()) / name
        if not made.is_complete(root, spec):
            say(f"generating the data set {name} in {root}")
            made.make(root, spec)


def resolved(benchmark: Benchmark) -> str:
    """The resolved configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(benchmark))
