"""A fault at every file operation of every command, and the same command again.

    python -m tests.faults.campaign [COMMAND[:SITE,...] ...] [--in-turn]     # or: make faults

After a kill, half a write, or a full disk the same command has to end with the bits of a run that
nothing happened to. A full disk ends a command in one line, or is told of and survived; it never
gives exit status 75, nor a traceback.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from intl_transfer.data.shapes import ShapesSpec, make_shapes
from tests.faults import commands
from tests.faults.commands import Command
from tests.faults.injector import FULL, HALF, KILL, MODES, ONCE, Injector

_TEMPORARY = re.compile(r"\.[0-9a-f]{6}\d+-\w{8}(?=\.part)|convert-[\w-]{8}|tfevents\S+|\.tmp\w+")
_STARTS_FROM = {
    "convert": ("pretrain",),
    "convert-safetensors": ("pretrain",),
    "collect": ("pretrain", "evaluate"),
}
_LEFTOVER = re.compile(r"\.part$|\.convert-|\.tmp")


class Stand:
    """All that the commands start from, made once, and the server that runs them.

    Args:
        scratch: an empty folder.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        classes = scratch / "classes"
        for part, number in (("train", 8), ("test", 4)):
            _pictures(classes / part, number)
        spec = ShapesSpec(
            objects_train=8, objects_val=8, scenes_train=6, scenes_val=3, crowd_fraction=0.2
        )
        make_shapes(scratch / "datasets" / "shapes", spec)
        self.injector = Injector(
            scratch, commands.MODULES, DETECTRON2_DATASETS=str(scratch / "datasets")
        )
        runs = scratch / "runs"
        backbone = runs / "pretrain" / "backbone.safetensors"
        self.commands: dict[str, Command] = {
            "pretrain": commands.pretraining(classes / "train"),
            "evaluate": commands.evaluation(classes),
            "fine-tune": commands.fine_tuning(),
            "convert": commands.conversion(backbone, ".pth"),
            "convert-safetensors": commands.conversion(backbone, ".safetensors"),
            "collect": commands.collecting(runs),
            "chain": commands.chain(classes / "train"),
        }
        self.wanted: dict[str, Any] = {}
        self.sites: dict[str, list[str]] = {}

    def prepare(self, name: str) -> None:
        """Runs a command without a fault, and before it those whose work it starts from."""
        if name in self.wanted:
            return
        for earlier in _STARTS_FROM.get(name, ()):
            self.prepare(earlier)
        folder = self.scratch / f"reference-{name}"
        folder.mkdir()
        command = self.commands[name]
        outcome = self.injector.run(command.words(folder), folder)
        if outcome.status:
            raise RuntimeError(f"{name} ends with status {outcome.status}: {outcome.said}")
        self.sites[name] = outcome.sites
        self.wanted[name] = command.results(folder)
        if (folder / "run").exists():
            shutil.copytree(folder / "run", self.scratch / "runs" / name)

    def chosen(self, name: str) -> list[int]:
        """The numbers of a command's sites: of many writes to one file the first, middle, last.

        Of the chain one of each kind, at random: its stages are tried whole by themselves.
        """
        self.prepare(name)
        if name == "chain":
            kinds: dict[str, list[int]] = {}
            for site in range(1, len(self.sites[name]) + 1):
                kinds.setdefault(self.what(name, site), []).append(site)
            rng = random.Random(0)
            return sorted(rng.choice(kinds[kind]) for kind in sorted(kinds))
        found: list[int] = []
        sites = self.sites[name]
        begin = 0
        while begin < len(sites):
            end = begin
            while end + 1 < len(sites) and sites[end + 1] == sites[begin]:
                end += 1
            found += sorted({begin, (begin + end) // 2, end})
            begin = end + 1
        return [index + 1 for index in found]

    def what(self, name: str, site: int) -> str:
        """A site in words that are the same in every run."""
        text = self.sites[name][site - 1].replace(str(self.scratch / f"reference-{name}"), "")
        return _TEMPORARY.sub("", text)

    def try_one(self, name: str, site: int, mode: int) -> str | None:
        """One fault, and the same command again; what is wrong, or None."""
        folder = self.scratch / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        words = self.commands[name].words(folder)
        first = self.injector.run(words, folder, site, mode)
        if mode in (KILL, HALF):
            if first.status != -9 and first.status:
                return f"ended with status {first.status}: {first.said[-500:]}"
        elif first.status not in (0, 1, 2, 74):
            return f"ended with status {first.status}: {first.said[-500:]}"
        elif "Traceback (most recent call last)" in first.said:
            return f"a traceback: {first.said[-1500:]}"
        elif first.status and "error: " not in first.said:
            return f"status {first.status} without a word: {first.said[-500:]}"
        again = self.injector.run(words, folder)
        if again.status:
            return f"the same command ended with status {again.status}: {again.said[-1500:]}"
        try:
            made = self.commands[name].results(folder)
        except Exception as error:
            return f"results cannot be read: {type(error).__name__}: {error}"
        if made != self.wanted[name]:
            return "the results are not those of an uninterrupted run"
        left = [str(p.relative_to(folder)) for p in folder.rglob("*") if _LEFTOVER.search(p.name)]
        return f"left over: {', '.join(left)}" if left else None

    def all_of(self, name: str, in_turn: bool = False) -> Iterator[tuple[int, str]]:
        """Every chosen site with every mode; of the chain, or if asked, each in its turn."""
        for index, site in enumerate(self.chosen(name)):
            modes = list(MODES)
            for mode in [modes[index % len(modes)]] if in_turn or name == "chain" else modes:
                yield site, mode

    def close(self) -> None:
        """Ends the server."""
        self.injector.close()


def sample(stand: Stand, name: str, number: int, seed: int) -> list[tuple[int, str]]:
    """Some of a command's faults, of all kinds of sites alike."""
    rng = random.Random(seed)
    kinds: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for site, mode in stand.all_of(name):
        kinds.setdefault((stand.what(name, site), mode), []).append((site, mode))
    names = sorted(kinds)
    return [rng.choice(kinds[key]) for key in rng.sample(names, min(number, len(names)))]


def _pictures(folder: Path, number: int) -> None:
    rng = np.random.default_rng(0)
    for index, name in enumerate("abc"):
        (folder / name).mkdir(parents=True)
        color = np.zeros(3)
        color[index] = 150
        for picture in range(number):
            pixels = (60 * rng.random((24, 24, 3)) + color).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{picture}.png")


def main() -> int:
    """Every fault of the commands named, or of all; returns 1 if something was wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="*", metavar="COMMAND[:SITE,...]", help="default: all")
    parser.add_argument("--in-turn", action="store_true", help="one fault a site, not four")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        stand = Stand(Path(scratch))
        total, bad = 0, 0
        for text in arguments.commands or list(stand.commands):
            name, _, only = text.partition(":")
            sites = {int(number) for number in only.split(",")} if only else None
            began, outcomes, tried = time.monotonic(), Counter[str](), set[str]()
            for site, mode in stand.all_of(name, arguments.in_turn):
                if sites is not None and site not in sites:
                    continue
                problem = stand.try_one(name, site, MODES[mode])
                outcomes[mode] += 1
                tried.add(stand.what(name, site))
                total += 1
                if problem is not None:
                    bad += 1
                    where = f"{site} ({stand.what(name, site)})"
                    print(f"{name}, {mode} at {where}: {problem}", flush=True)
            print(
                f"{name}: {len(stand.sites[name])} file operations, {len(stand.chosen(name))} "
                f"sites, {sum(outcomes.values())} faults at {len(tried)} kinds of them, "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
        stand.close()
    print(f"{total} faults, {bad} not survived")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())

__all__ = ["FULL", "HALF", "KILL", "ONCE", "Stand", "sample"]
