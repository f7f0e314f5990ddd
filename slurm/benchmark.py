"""A benchmark: initializations x evaluations x seeds x learning rates, as a graph of jobs."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from intl_transfer.data.loaders import rank_batch_size
from intl_transfer.errors import UserError, did_you_mean
from intl_transfer.evaluation.command import configuration
from intl_transfer.evaluation.config import CLASSIFIER, EvaluationConfig
from intl_transfer.runs.aliases import standard_keys
from intl_transfer.runs.config import load_config
from intl_transfer.runs.controls import ControlConfig
from intl_transfer.runs.settings import deciding, fingerprint
from pretrain.checks import check
from pretrain.config import PretrainConfig
from slurm.convert import command as conversion
from slurm.evaluations import RANDOM, Evaluation, kind_of
from slurm.executors import with_sources
from slurm.launch_pretrain import pretraining
from slurm.ledger import Node
from slurm.local import fit
from slurm.resources import SMALL, Resources, checked, layered, small, tasks_per_node

ROOT = Path(__file__).resolve().parents[1]
_STAGES = ("pretrain", "convert", "collect")


@dataclass
class Initialization:
    """Where fine-tuning starts; exactly one of the first four.

    Attributes:
        pretrain: a configuration in ``configs/pretrain/``, or a path; its runs are made.
        supervised: a configuration of ``kind=semi`` in ``configs/evaluation/``, or a path; its runs
            train random weights on labels.
        checkpoint: a finished pretraining run, or a checkpoint of any method.
        random: from scratch.
        overrides: ``key=value`` for ``pretrain`` or ``supervised``.
        seeds: of ``pretrain`` or ``supervised``, one run each.
    """

    pretrain: str | None = None
    supervised: str | None = None
    checkpoint: str | None = None
    random: bool = False
    overrides: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0])


@dataclass
class Made:
    """A data set of ``intl-transfer data``, made where it is missing.

    Attributes:
        make: make it.
        spec: fields of its spec that differ from the defaults, as options of ``intl-transfer
            data NAME``.
    """

    make: bool = False
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass
class Control(ControlConfig):
    """Evaluations of one initialization again, with something taken from them; exactly one thing.

    Attributes:
        of: the initialization; of several pretrainings, the first.
        evaluations: names of the evaluations; empty takes all.
        seeds: one run each; empty takes the first of the evaluation.
    """

    of: str = MISSING
    evaluations: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)


@dataclass
class Benchmark:
    """A whole benchmark.

    Attributes:
        output_dir: folder of all its runs; null makes ``runs/benchmark/NAME``.
        datasets: root of the data sets (``DETECTRON2_DATASETS``); null leaves the environment's.
        shapes: the embedded data set below it.
        photo_cutouts: the set of photographs below it (docs/photo-cutouts.md).
        initializations: by name; a row of the table each.
        evaluations: by name; a block of the table each.
        controls: by name; a row of their own kind each.
        resources: by stage (``pretrain``, ``convert``, ``collect``) fields of ``Resources`` that
            its jobs need; those of an evaluation are its own.
        published: show published rows in the report.
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
    """A benchmark's configuration, checked as far as that goes without data.

    Args:
        name: a file in ``configs/benchmark/``, or a path.
        overrides: ``key=value`` with dotted keys.

    Raises:
        UserError: for an unknown name, key, type, kind or combination; names the near matches.
    """
    benchmark = load_config(Benchmark, name, overrides, ROOT / "configs" / "benchmark")
    if not benchmark.initializations or not benchmark.evaluations:
        raise UserError(f"{name}: expected at least one of each of initializations and evaluations")
    for key, start in benchmark.initializations.items():
        where = f"{name}: initializations.{key}"
        _check_name(key, where)
        named = [start.pretrain, start.supervised, start.checkpoint, start.random or None]
        if sum(value is not None for value in named) != 1:
            raise UserError(
                f"{where}: expected exactly one of pretrain, supervised, checkpoint and random"
            )
        if start.checkpoint is not None and not Path(start.checkpoint).exists():
            raise UserError(f"{where}: checkpoint {start.checkpoint} does not exist")
        if start.pretrain is not None or start.supervised is not None:
            if not start.seeds:
                raise UserError(f"{where}: seeds is empty; expected at least one")
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
        _check_name(key, where)
        kind_of(evaluation, where).check(evaluation, where)
        if not evaluation.seeds:
            raise UserError(f"{where}: seeds is empty; expected at least one")
        checked({**evaluation.resources, "cluster": "slurm"}, f"{where}.resources")
    for key, control in benchmark.controls.items():
        _check_control(benchmark, key, control, f"{name}: controls.{key}")
    for stage, values in benchmark.resources.items():
        if stage not in _STAGES:
            raise UserError(
                f"{name}: resources: no stage '{stage}'; expected {', '.join(_STAGES)} (those of "
                f"an evaluation are in it).{did_you_mean(stage, _STAGES)}"
            )
        checked({**values, "cluster": "slurm"}, f"{name}: resources.{stage}")
    return benchmark


def _check_control(benchmark: Benchmark, key: str, control: Control, where: str) -> None:
    """Refuses a control of nothing, of what is not there, or of more than one thing."""
    _check_name(key, where)
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
            f"{where}: permute_weights of '{control.of}', which has learned nothing; expected an "
            "initialization with weights"
        )


def _check_distinct(benchmark: Benchmark, name: str) -> None:
    """Refuses two initializations that would be one row of the table."""
    seen: dict[Any, str] = {}
    for key, start in benchmark.initializations.items():
        made: Any = "random"
        if start.checkpoint is not None:
            made = Path(start.checkpoint).resolve()
        elif start.pretrain is not None:
            made = fingerprint(deciding("pretrain", dataclasses.asdict(pretraining_config(start))))
        elif start.supervised is not None:
            settings = dataclasses.asdict(supervised_config(start))
            made = "supervised", fingerprint(deciding("evaluation", settings))
        if made in seen:
            raise UserError(
                f"{name}: initializations.{key} is the same experiment as {seen[made]}: nothing "
                "that decides a result differs. Give one of them, with both seeds"
            )
        seen[made] = key


def _check_name(name: str, where: str) -> None:
    if not name.replace("_", "").replace("-", "").replace(".", "").isalnum():
        raise UserError(f"{where}: names of folders are made of it; use letters, digits, _ - .")


def pretraining_config(start: Initialization) -> PretrainConfig:
    """What a pretraining run of the benchmark will be."""
    folder = ROOT / "configs" / "pretrain"
    config = load_config(PretrainConfig, start.pretrain or "", start.overrides, folder)
    check(config)
    return config


def supervised_config(start: Initialization) -> EvaluationConfig:
    """What a supervised run of the benchmark will be.

    Raises:
        UserError: if it cannot be, or would not train the backbone.
    """
    config = configuration(start.supervised or "", start.overrides)
    if config.kind != "semi":
        raise UserError(f"supervised: expected a configuration of kind=semi, found {config.kind}")
    return config


@dataclass
class Plan:
    """Makes the nodes of a benchmark.

    Attributes:
        benchmark: from :func:`read`.
        name: the benchmark's.
        folder: of all its runs.
        code: the sources that jobs run.
        site: resources of the profile.
        options: resources of the command line, which win over all others.
        gpus: of this machine where jobs run here; None on SLURM.
    """

    benchmark: Benchmark
    name: str
    folder: Path
    code: Path
    site: Mapping[str, Any]
    options: Mapping[str, Any]
    gpus: int | None = None

    def nodes(self) -> list[Node]:
        """All nodes, parents before children."""
        starts: list[tuple[str, str, list[str]]] = []
        nodes: list[Node] = []
        for name, start in self.benchmark.initializations.items():
            for label, weights, made in self._initialization(name, start):
                nodes += made
                starts.append((label, weights, [node.key for node in made[-1:]]))
        evaluated: list[Node] = []
        for name, evaluation in self.benchmark.evaluations.items():
            evaluated += self._evaluation(name, evaluation, starts)
        for name, control in self.benchmark.controls.items():
            evaluated += self._control(name, control, starts)
        return [*nodes, *evaluated, self._collecting(evaluated)]

    def _initialization(
        self, name: str, start: Initialization
    ) -> list[tuple[str, str, list[Node]]]:
        """(name in folders, weights, the nodes that make them) of each start."""
        if start.random:
            return [(name, RANDOM, [])]
        if start.checkpoint is not None:
            node = self._conversion(name, name, str(Path(start.checkpoint).resolve()), [])
            return [(name, node.target, [node])]
        if start.supervised is not None:
            return self._supervised(name, start)
        found = []
        requested = self._resources("pretrain", self.benchmark.resources.get("pretrain", {}))
        batch = pretraining_config(start).optim.batch_size
        rank_batch_size(batch, requested.nodes * tasks_per_node(requested))
        for seed in start.seeds:
            label = f"{name}_seed{seed}" if len(start.seeds) > 1 else name
            folder = self.folder / "pretrain" / label
            overrides = [*start.overrides, f"seed={seed}"]
            title = f"{self.name}-pretrain-{name}"
            config = start.pretrain or ""
            resolved = dataclasses.replace(pretraining_config(start), seed=seed)
            run = pretraining(config, overrides, folder, requested, self.code, title, resolved)
            run.must_finish = True
            node = self._conversion(name, label, str(folder), [run.key])
            found.append((label, node.target, [run, node]))
        return found

    def _supervised(self, name: str, start: Initialization) -> list[tuple[str, str, list[Node]]]:
        """Random weights trained on labels, by the same stage that evaluates with few."""
        overrides = list(start.overrides)
        evaluation = Evaluation("classification", start.supervised or "", overrides, start.seeds)
        kind = kind_of(evaluation, name)
        requested = self._resources("pretrain", self.benchmark.resources.get("pretrain", {}))
        found = []
        for seed in start.seeds:
            label = f"{name}_seed{seed}" if len(start.seeds) > 1 else name
            folder, title = self.folder / kind.stage / name / label, f"{self.name}-{name}"
            run = kind.node(evaluation, RANDOM, seed, None, folder, requested, self.code, title)
            run.key, run.must_finish = f"supervised/{label}", True
            node = self._conversion(name, label, str(folder / CLASSIFIER), [run.key])
            found.append((label, node.target, [run, node]))
        return found

    def _conversion(self, name: str, label: str, source: str, parents: list[str]) -> Node:
        target = self.folder / "weights" / f"{label}.pth"
        requested = self._resources("convert", self.benchmark.resources.get("convert", {}), True)
        return Node(
            key=f"convert/{label}",
            stage="convert",
            target=str(target),
            command=conversion(self.code, source, target, name),
            resources=dataclasses.asdict(requested),
            parents=parents,
            source=source,
            folder=str(Path.cwd()),
            settings={"source": source, "label": name},
            title=f"{self.name}-convert",
        )

    def _evaluation(
        self, name: str, evaluation: Evaluation, starts: list[tuple[str, str, list[str]]]
    ) -> list[Node]:
        kind = kind_of(evaluation, name)
        requested = kind.resources(self._resources(f"evaluations.{name}", evaluation.resources))
        made = []
        for label, weights, parents in starts:
            rates: list[float | None] = [*evaluation.learning_rates] or [None]
            for rate in rates:
                for seed in evaluation.seeds:
                    leaf = (
                        f"{label}_seed{seed}" if rate is None else f"{label}_lr{rate:g}_seed{seed}"
                    )
                    folder = self.folder / kind.stage / name / leaf
                    title = f"{self.name}-{name}"
                    node = kind.node(
                        evaluation, weights, seed, rate, folder, requested, self.code, title
                    )
                    node.key = f"{name}/{leaf}"
                    node.parents, node.must_finish = parents, True
                    made.append(node)
        return made

    def _control(
        self, name: str, control: Control, starts: list[tuple[str, str, list[str]]]
    ) -> list[Node]:
        """The evaluations that a control repeats."""
        seeds = self.benchmark.initializations[control.of].seeds
        label = control.of if len(seeds) == 1 else f"{control.of}_seed{seeds[0]}"
        known = {own: (weights, parents) for own, weights, parents in starts}
        weights, parents = known.get(label) or known[control.of]
        made = []
        for key in control.evaluations or self.benchmark.evaluations:
            evaluation = self.benchmark.evaluations[key]
            changed = dataclasses.replace(
                evaluation,
                overrides=[*evaluation.overrides, *kind_of(evaluation, key).control(control)],
                seeds=control.seeds or evaluation.seeds[:1],
            )
            made += self._evaluation(key, changed, [(f"control_{name}", weights, parents)])
        return made

    def _collecting(self, evaluated: list[Node]) -> Node:
        requested = self._resources("collect", self.benchmark.resources.get("collect", {}), True)
        target = self.folder / "report"
        command = [sys.executable, "-m", "intl_transfer.results", str(self.folder)]
        command += ["--out", f"{target}/"] + (["--published"] if self.benchmark.published else [])
        requested.environment = with_sources(requested.environment, self.code)
        return Node(
            key="collect",
            stage="collect",
            target=str(target),
            command=command,
            resources=dataclasses.asdict(requested),
            parents=[node.key for node in evaluated],
            after="any",
            folder=str(Path.cwd()),
            title=f"{self.name}-collect",
        )

    def _resources(self, where: str, own: Mapping[str, Any], is_small: bool = False) -> Resources:
        """The site's values, over them the work's own, over them the command line's."""
        options = {k: v for k, v in self.options.items() if not (is_small and k in SMALL)}
        if is_small:
            base = small(layered(self.site, options), f"{self.name}: {where}")
            values = layered(dataclasses.asdict(base), own)
        else:
            values = layered(self.site, own, options)
        if self.gpus is not None:  # one machine; batches are global, so that results stay the same
            values["nodes"] = self.options.get("nodes", 1)
        environment = dict(values.get("environment") or {})
        if self.benchmark.datasets is not None:
            environment["DETECTRON2_DATASETS"] = str(Path(self.benchmark.datasets).resolve())
        requested = checked({**values, "environment": environment}, f"{self.name}: {where}")
        return fit(requested, self.gpus)


def make_data(benchmark: Benchmark, say: Any) -> None:
    """Makes the data sets that the benchmark wants made and that are missing.

    Args:
        benchmark: the configuration.
        say: told of what is made.

    Raises:
        UserError: if a value cannot be, a package is missing, or the folder holds a set made with
            other values.
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
        root = Path(benchmark.datasets or "datasets") / name
        if not made.is_complete(root, spec):
            say(f"making the data set {name} in {root}")
            made.make(root, spec)


def resolved(benchmark: Benchmark) -> str:
    """The whole configuration as YAML."""
    return OmegaConf.to_yaml(OmegaConf.structured(benchmark))
