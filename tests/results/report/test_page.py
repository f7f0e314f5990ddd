"""The file itself, and rebuilding it while jobs run."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from importlib import resources
from pathlib import Path

import pytest

from intl_transfer.cli import main
from intl_transfer.errors import UserError
from intl_transfer.results import TableOptions, build_tables, collect
from intl_transfer.results.outputs import write_folder
from intl_transfer.results.report import watch, write_report
from intl_transfer.results.report.modules import as_script, in_order, one_script
from intl_transfer.results.report.payload import build_payload
from tests.results.report.conftest import report_of
from tests.results.report.study import detection, write_lines
from tests.results.synthetic import (
    detection_run,
    evaluation_run,
    external_run,
    hand_made_run,
    pretraining_run,
)


def part(page, name):
    (found,) = re.findall(rf'<script type="application/json" id="{name}">(.*?)</script>', page)
    return json.loads(found)


def test_one_file_that_names_no_other(report):
    assert [file.name for file in report.parent.iterdir()] == ["index.html"]
    page = report.read_text()
    assert "default-src 'none'" in page
    for word in ("http://", "https://"):
        outside = re.findall(rf"{word}[^\s\"'<>]*", page)
        # The name space of SVG is a name, not an address.
        assert set(outside) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(link|script|img|iframe)[^>]+(src|href)=\"(?!data:)", page)
    assert 'http-equiv="refresh"' not in page


def test_every_run_has_its_part_and_tables_name_only_these(report):
    page = report.read_text()
    overview = part(page, "overview")
    assert len(overview["runs"]) == 21
    for key in overview["runs"]:
        assert part(page, f"run-{key}")["series"]["curves"]
    named = {key for table in overview["tables"] for row in table["rows"] for key in row["runs"]}
    assert named <= set(overview["runs"])
    assert all(
        run["parent"] in overview["runs"] for run in overview["runs"].values() if run["parent"]
    )
    waiting = [
        r
        for r in overview["runs"].values()
        if r["status"] == "running" and r["stage"] == "detection"
    ]
    assert [overview["runs"][run["parent"]]["name"] for run in waiting] == ["pretrain INTL"]
    assert overview["refresh"] is None


def test_settings_are_kept_as_differences_and_come_back_whole(report, study):
    page = report.read_text()
    overview = part(page, "overview")
    (key,) = [k for k, run in overview["runs"].items() if run["name"] == "voc INTL seed 2"]
    stored = part(page, f"run-{key}")["config"]
    base = overview["configs"]["detection"]
    whole = {**base, **stored["changed"]}
    for name in stored["absent"]:
        del whole[name]
    config = json.loads((study / "detection/voc_INTL_seed2/manifest.json").read_text())["config"]
    assert whole["SOLVER.MAX_ITER"] == str(config["SOLVER"]["MAX_ITER"]) == "24000"
    assert whole["MODEL.RESNETS.NORM"] == "SyncBN"
    assert len(stored["changed"]) < len(whole)


def test_the_page_states_the_seeds_that_tables_state(tmp_path):
    """None where nobody stated it, also of a training that has no result yet."""
    for name in ("moco_v2", "byol_seed0"):
        external_run(tmp_path / "runs", name, 38.9)
    external_run(tmp_path / "runs", "going_on", final=44999)
    found = collect([tmp_path / "runs"], cache=False)
    known = {run.path.name: run.seed for run in found.runs}
    assert known == {"moco_v2": None, "byol_seed0": 0}
    payload = build_payload(found, build_tables(found))
    runs = payload.overview["runs"]
    assert {run["name"]: run["seed"] for run in runs.values()} == {
        "moco_v2": None,
        "byol_seed0": "0",
        "going_on": None,
    }
    facts = {runs[key]["name"]: part["facts"] for key, part in payload.details.items()}
    assert (facts["moco_v2"]["seed"], facts["byol_seed0"]["seed"]) == ("null", "0")


def test_runs_are_of_one_protocol_where_their_tables_have_them_in_one_column(tmp_path):
    """Shares of labels, lengths of pretraining and settings of a test are protocols apart."""
    for size in (800, 999):
        config = {"INPUT": {"MIN_SIZE_TEST": size}}
        for seed in (0, 1):
            detection_run(tmp_path, f"{size} {seed}", seed=seed, config=config)
    for share in (1, 10):
        few = {"epochs": 20, "labels_percent": share}
        evaluation_run(tmp_path, f"{share} %", kind="semi", protocol=few)
    for epochs in (100, 800):
        origin = {"sha": f"{epochs}", "epochs": epochs}
        large = {"dataset": "imagenet", "backbone": "resnet50", "origin": origin}
        evaluation_run(tmp_path, f"{epochs} ep", **large)
    evaluation_run(tmp_path, "linear", dataset="shapes")
    evaluation_run(tmp_path, "knn", kind="knn", dataset="shapes")
    pretraining_run(tmp_path, "without a figure")
    found = collect([tmp_path], cache=False)
    overview = build_payload(found, build_tables(found)).overview
    protocols = {one["key"]: one for table in overview["tables"] for one in table["protocols"]}
    of = {run["name"]: run["protocol"] for run in overview["runs"].values()}
    assert of.pop("without a figure") is None
    assert of["800 0"] == of["800 1"] != of["999 0"] == of["999 1"]
    assert set(of.values()) == set(protocols)
    assert len({one["title"] for one in protocols.values()}) == len(protocols) == 8
    assert protocols[of["999 0"]]["title"].endswith("INPUT.MIN_SIZE_TEST 999)")
    assert protocols[of["1 %"]]["name"] == "1 % labels"
    assert protocols[of["800 ep"]]["name"] == "top-1 800 ep"
    rows = [row for table in overview["tables"] for row in table["rows"]]
    (shares,) = [row for row in rows if len(row["measured"]) == 2]
    assert [len(one["runs"]) for one in shares["measured"]] == [1, 1]  # not averaged


def test_a_row_s_runs_state_what_its_mean_is_over(tmp_path):
    """The repetitions of the table: of pretrainings, where there are several."""
    for seed in range(2):
        sha = str(seed) * 64
        pretraining_run(tmp_path, f"p{seed}", sha, seed=seed)
        for own in range(3):
            detection_run(tmp_path, f"{seed} {own}", 30.0 + own, seed=own, sha=sha)
    found = collect([tmp_path], cache=False)
    tables = build_tables(found)
    (row,) = build_payload(found, tables).overview["tables"][0]["rows"]
    (measured,) = row["measured"]
    assert len(measured["runs"]) == 6
    assert measured["n"] == tables[0].count(tables[0].rows[0]) == "2 pretrainings × 3"
    assert row["figures"][0]["std"] == 0  # not that of the six runs


def test_an_external_row_of_the_same_name_has_its_own_page(tmp_path):
    """It leads to its own runs, and either one is named as a baseline."""
    start = {"kind": "pretrained", "method": "Alpha", "weights_sha256": "a" * 64}
    for seed in range(2):
        run = detection_run(tmp_path, f"own{seed}", 30.0 + seed, seed=seed, initialization=start)
        metrics = {"box": {"AP": 20.0 + seed}}
        common = {"initialization": start, "seed": seed, "metrics": metrics}
        results = json.loads((run.path / "results.json").read_text())
        schedule = {name: results[name] for name in ("dataset", "architecture", "schedule")}
        hand_made_run(tmp_path, f"other{seed}", **common, **schedule, iteration=90000)
    found = collect([tmp_path], cache=False)
    overview = build_payload(found, build_tables(found)).overview
    rows = {row["method"]: row for table in overview["tables"] for row in table["rows"]}
    assert set(rows) == {"Alpha", "Alpha (external)"}
    assert len({row["key"] for row in rows.values()}) == 2
    for row in rows.values():
        assert {overview["runs"][key]["row"] for key in row["runs"]} == {row["key"]}
    for name, row in rows.items():
        for given in (name, f"{name} ({row['detail']})"):
            (table,) = build_tables(found, options=TableOptions(baseline=given))
            assert [r.external for r in table.rows if r.baseline] == ["external" in name]
    with pytest.raises(UserError, match=r"fits 2 rows .* Alpha \(external\)"):
        build_tables(found, options=TableOptions(baseline="Alph*"))


def test_a_report_of_nothing(tmp_path):
    (tmp_path / "runs").mkdir()
    page = report_of(tmp_path / "runs", tmp_path / "new" / "report").read_text()
    assert part(page, "overview")["runs"] == {}


def test_the_page_begins_with_the_digits_and_spread_of_the_tables(tmp_path, monkeypatch):
    pictures = "intl_transfer.results.report.page.pictures_of"
    monkeypatch.setattr(pictures, lambda tables, privacy: [{} for _ in tables])  # which take long
    for seed in range(2):
        detection_run(tmp_path / "runs", f"{seed}", 30.0 + seed / 3, seed=seed)
    found = collect([tmp_path / "runs"], cache=False)
    tables = build_tables(found)
    shown = {}
    for spread in ("std", "none", "t"):
        out = tmp_path / spread
        write_folder(found, tables, out, {"precision": 4, "spread": spread})
        page = (out / "index.html").read_text()
        overview = part(page, "overview")
        assert overview["digits"] == 4
        assert "| 30.1667" in page  # of the page without scripts
        assert overview["spreads"]["measured"] in (tmp_path / "std" / "table.md").read_text()
        shown[spread] = overview["spread"]
    assert shown == {"std": True, "none": False, "t": False}


def test_many_runs_stay_a_page(tmp_path):
    for seed in range(60):
        folder = detection(tmp_path / "runs", "INTL", seed, 40.0, pictures=False)
        if seed % 3:
            (folder / "curves.json").unlink()
    found = collect([tmp_path / "runs"], cache=False)
    began = time.process_time()
    page = write_report(found, build_tables(found), tmp_path / "report")
    assert time.process_time() - began < 10
    assert page.stat().st_size < 5e6


def test_watching_rebuilds_on_change_only_and_ends_with_a_page_that_stays(tmp_path, monkeypatch):
    folder = detection(tmp_path, "INTL", 0, 0.0, status="running")
    built: list[int | None] = []
    looks = threading.Semaphore(0)
    sleeps = iter(range(7))

    def sleep(seconds):
        assert seconds == 3
        look = next(sleeps)
        if look == 1:
            write_lines(folder, [{"iteration": 1, "total_loss": 2.0}])
        if look == 3:
            detection(tmp_path, "INTL", 1, 40.0, pictures=False)
        if look == 5:
            raise KeyboardInterrupt
        looks.release()

    def build(refresh):
        built.append(refresh)
        if len(built) == 2:
            raise UserError("a disk went away")

    monkeypatch.setattr(time, "sleep", sleep)
    watch([tmp_path], build, every=3)
    assert built == [3, 3, 3, None]


def test_a_failed_rebuild_is_told(tmp_path, monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    def build(refresh):
        if refresh is not None:
            raise UserError("the folder is gone")

    monkeypatch.setattr(time, "sleep", stop)
    watch([tmp_path], build)
    assert "not rebuilt: the folder is gone" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["core.js", "run.js", "app.js"])
def test_scripts_never_make_markup_of_text(name):
    from intl_transfer.results.report.page import _static

    scripts = in_order(_static)
    assert name in scripts
    for script, text in scripts.items():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert word not in text, (script, word)
        assert "</script" not in text
        assert len(text.splitlines()) < 400


def test_modules_become_one_script(report):
    """All of them, in an order that needs nothing too early; no name twice, nothing left over."""
    from intl_transfer.results.report.page import _static

    texts = in_order(_static)
    folder = resources.files("intl_transfer.results.report") / "static"
    files = {file.name for file in folder.iterdir()}
    assert set(texts) == {name for name in files if name.endswith(".js")}
    assert next(iter(texts)) == "core.js"
    assert list(texts)[-1] == "app.js"
    script = one_script(_static)
    assert not re.search(r"^\s*(import|export)\b", script, re.MULTILINE)
    assert script in report.read_text()
    names = re.findall(r"^(?:async )?(?:function|class|const|let) (\w+)", script, re.MULTILINE)
    assert len(names) > 150
    assert sorted(set(names)) == sorted(names)


JAVASCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "javascript"


def declared(interface):
    """The names of an interface of the page's data, as the type checker is told them."""
    text = (JAVASCRIPT / "payload.d.ts").read_text()
    (body,) = re.findall(rf"^interface {interface} \{{\n(.*?)^}}", text, re.M | re.S)
    return set(re.findall(r"^  (\w+)\??:", body, re.M))


def test_the_type_checker_knows_the_page_s_data(report):
    page = report.read_text()
    overview = part(page, "overview")
    assert set(overview) == declared("Overview")
    for key, run in overview["runs"].items():
        assert set(run) == declared("Run")
        detail = part(page, f"run-{key}")
        assert set(detail) == declared("Details")
        assert set(detail["provenance"]) == declared("Provenance")
        assert all(set(session) == declared("Session") for session in detail["sessions"])
    for table in overview["tables"]:
        assert set(table) == declared("Table")
        assert all(set(row) == declared("Row") for row in table["rows"])
        figures = [figure for row in table["rows"] for figure in row["figures"] if figure]
        assert all(set(figure) == declared("Figure") for figure in figures)


def test_the_type_checker_accepts_real_pages(report, hostile, tmp_path):
    """Every value of two pages, by TypeScript itself; and it refuses what is none of theirs."""
    checker = JAVASCRIPT / "node_modules" / ".bin" / "tsc"
    if not checker.exists():
        pytest.skip("TypeScript is not installed: npm --prefix scripts/javascript ci")
    files = []
    for page in (report, hostile):
        parts = r'<script type="application/json" id="([\w-]+)">(.*?)</script>'
        values = dict(re.findall(parts, page.read_text()))
        overview = values.pop("overview")
        details = ",\n".join(f'"{name}": {value}' for name, value in values.items())
        files.append(tmp_path / f"{page.parent.name}.ts")
        files[-1].write_text(
            f"export const overview: Overview = {overview};\n"
            f"export const details: Record<string, Details> = {{{details}}};\n"
        )
    wrong = [
        "Run = { ...run, seed: 7 }",
        "Run = { ...run, last: { step: 1 } }",
        "Details = { ...detail, log: [{ name: 'log.txt', lines: [] }] }",
        "Details = { ...detail, more: 1 }",
    ]
    files.append(tmp_path / "wrong.ts")
    files[-1].write_text(
        "declare const run: Run;\ndeclare const detail: Details;\n"
        + "".join(f"// @ts-expect-error\nexport const w{i}: {w};\n" for i, w in enumerate(wrong))
    )
    options = ("--noEmit", "--strict", "--skipLibCheck", "--target", "ES2022")
    command = [checker, *options, JAVASCRIPT / "payload.d.ts", *files]
    checked = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout[:2000]


def test_a_module_runs_once_after_what_it_imports():
    texts = {
        "app.js": 'import { b, c } from "./b.js";\n\nexport const a = b;\n',
        "b.js": 'import {\n  c,\n} from "./c.js";\nimport { d } from "./d.js";\n\n'
        "export let b = 1;\nexport async function e() {}\n",
        "c.js": 'import { b } from "./b.js";\n\nexport const c = () => b; // export const\n',
        "d.js": "/** @type {number} */\nconst own = 1; /* kept */\n"
        "/**\n * In words.\n * @param {number} x\n */\n"
        "export function d(x) {\n  /** @type {1} */\n  const y = /** @type {1} */ (x);\n}\n",
    }
    found = in_order(texts.__getitem__)
    assert list(found) == ["c.js", "d.js", "b.js", "app.js"]
    assert [as_script(text) for text in found.values()] == [
        "const c = () => b; // export const\n",
        "const own = 1; /* kept */\nfunction d(x) {\n  const y = /** @type {1} */ (x);\n}\n",
        "let b = 1;\nasync function e() {}\n",
        "const a = b;\n",
    ]


def test_the_command_watches_a_folder(study, tmp_path, monkeypatch, capsys):
    out = tmp_path / "report"
    refreshes = []

    def sleep(_):
        refreshes.append(part((out / "index.html").read_text(), "overview")["refresh"])
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", sleep)
    assert main(["collect", str(study), "--no-cache", "--out", f"{out}/", "--watch"]) == 0
    assert refreshes == [10]
    assert part((out / "index.html").read_text(), "overview")["refresh"] is None
    assert (out / "table.md").exists()
    capsys.readouterr()
    assert main(["collect", str(study), "--watch", "--out", str(tmp_path / "table.md")]) == 2
    assert "--watch needs a folder" in capsys.readouterr().err
