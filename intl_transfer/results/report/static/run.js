// The page of one run.

import { barChart } from "./bars.js";
import { copyButtons } from "./copy.js";
import {
  DATA,
  badge,
  details,
  duration,
  h,
  heading,
  own,
  place,
  section,
  settings,
  several,
  short,
  taskName,
  when,
} from "./core.js";
import {
  classificationCurves,
  detectionCurves,
  otherCurves,
  pretrainingCurves,
  spectrumCurves,
} from "./curves.js";
import { lineChart } from "./lines.js";
import { pictureSection } from "./pictures.js";
import { logBox, progress, progressBar } from "./progress.js";
import { provenanceChain } from "./provenance.js";
import { missingPage } from "./runs.js";
import { cell, choice, figure, filterField, sortable } from "./tables.js";

/**
 * Names and what is stated of them.
 * @param {string} title
 * @param {Fact[]} entries
 */
export function factsTable(title, entries) {
  if (!entries.length) return h("p", { class: "empty" }, "Nothing recorded.");
  return h(
    "div",
    { class: "scroll", role: "region", "aria-label": title, tabindex: "0" },
    h(
      "table",
      { class: "facts" },
      h("caption", { class: "sr" }, title),
      h(
        "tbody",
        null,
        entries.map(([name, value]) =>
          h("tr", null, h("th", { scope: "row" }, name), h("td", null, value ?? "")),
        ),
      ),
    ),
  );
}

/** @param {string} key */
function settingsTable(key) {
  const lines = Object.entries(settings(key)).map(([name, value]) => ({
    cells: [cell(name), cell(value)],
  }));
  if (!lines.length) return h("p", { class: "empty" }, "No settings recorded.");
  const made = sortable({
    id: "settings",
    title: "Settings",
    class: "facts",
    columns: [{ name: "setting" }, { name: "value" }],
    blocks: [{ lines }],
  });
  return [
    h(
      "div",
      { class: "toolbar" },
      filterField("Filter settings", "", made.filter),
      copyButtons(made.sheet),
    ),
    h("div", { class: "tall" }, made.node),
  ];
}

/** @param {Run} run */
function headFacts(run) {
  const { schedule, batch_size: batch, base_lr: rate } = run;
  const plan = [schedule, batch && `batch ${batch}`, rate && `lr ${rate}`];
  return h(
    "dl",
    { class: "head-facts" },
    [
      ["Stage", own({ pretrain: "pretraining" }, run.stage) || run.stage],
      ["Method", run.method],
      ["Seed", run.seed],
      [run.stage === "detection" ? "Detector" : "Backbone", run.detector],
      ["Data", run.dataset],
      ["Schedule", schedule && plan.filter(Boolean).join(", ")],
      ["Epochs", run.epochs],
      ["Started", when(run.started)],
      ["Ended", when(run.ended)],
      ["Time", duration(run.wall_time)],
    ]
      .filter(([, value]) => value)
      .map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))),
  );
}

/**
 * @param {string} key
 * @param {Run} run
 */
function metricTable(key, run) {
  const { metrics } = details(key);
  const tasks = Object.keys(metrics).filter((task) => Object.keys(metrics[task]).length);
  if (!tasks.length) return null;
  const names = [...new Set(tasks.flatMap((task) => Object.keys(metrics[task])))];
  const made = sortable({
    id: "metrics",
    title: `${run.name}: figures in %`,
    class: "results",
    columns: [
      { name: "%", fixed: true },
      ...names.map((name) => ({ name, numeric: true, fixed: true })),
    ],
    blocks: [
      {
        lines: tasks.map((task) => ({
          cells: [
            cell(taskName(task)),
            ...names.map((name) => figure(own(metrics[task], name) ?? null, place.digits + 1)),
          ],
        })),
      },
    ],
  });
  return h(
    "section",
    { class: "card" },
    h("div", { class: "card-head" }, heading(2, "Figures"), copyButtons(made.sheet)),
    made.node,
  );
}

/** @param {string} key */
function classSection(key) {
  const { classes } = details(key);
  const tasks = Object.keys(classes).filter((task) => Object.keys(classes[task]).length);
  if (!tasks.length) return null;
  const body = h("div");
  /** @type {(task: string) => void} */
  const draw = (task) => {
    const items = Object.entries(classes[task]).map(([name, value]) => ({ name, value }));
    items.sort((a, b) => (b.value ?? -1) - (a.value ?? -1));
    body.replaceChildren(
      barChart(`AP of each class, ${taskName(task)}, %`, items, {
        note: items.some((item) => item.value === null) ? "No bar: a class without objects." : null,
      }),
    );
  };
  draw(tasks[0]);
  return section(
    "Classes",
    tasks.length > 1 &&
      choice(
        "Task",
        tasks.map((task) => [task, taskName(task)]),
        tasks[0],
        draw,
      ),
    body,
  );
}

/** @param {string} key */
function precisionSection(key) {
  const { precision } = details(key);
  const tasks = Object.keys(precision);
  if (!tasks.length) return null;
  const body = h("div");
  const state = { task: tasks[0], name: "mean" };
  /** @type {(task: string) => string[]} */
  const namesOf = (task) => [
    ...new Set(Object.values(precision[task]).flatMap((found) => Object.keys(found.precision))),
  ];
  const classes = h("span");
  const draw = () => {
    /** @type {(name: string, first: number) => Series[]} */
    const curvesOf = (name, first) =>
      Object.entries(precision[state.task]).flatMap(([overlap, found], i) => {
        const y = own(found.precision, name);
        return y ? [{ name: `${name}, IoU ${overlap}`, x: found.recall, y, index: first + i }] : [];
      });
    const series = curvesOf(state.name, 0);
    const others = state.name !== "mean" ? curvesOf("mean", 4) : [];
    body.replaceChildren(
      lineChart(`Precision over recall, ${taskName(state.task)}`, [...series, ...others], {
        x: "recall",
        y: "precision",
        range: [0, 1],
        domain: [0, 1],
      }),
    );
  };
  /** @type {(task: string) => void} */
  const chooseTask = (task) => {
    state.task = task;
    state.name = "mean";
    const names = namesOf(task).sort(
      (a, b) => Number(b === "mean") - Number(a === "mean") || a.localeCompare(b),
    );
    classes.replaceChildren(
      choice(
        "Class",
        names.map((name) => [name, name === "mean" ? "mean of all" : name]),
        "mean",
        (name) => {
          state.name = name;
          draw();
        },
      ),
    );
    draw();
  };
  chooseTask(tasks[0]);
  return section(
    "Precision and recall",
    h(
      "div",
      { class: "toolbar" },
      tasks.length > 1 &&
        choice(
          "Task",
          tasks.map((task) => [task, taskName(task)]),
          tasks[0],
          chooseTask,
        ),
      classes,
    ),
    body,
  );
}

/** @param {string} key */
function logSection(key) {
  const { log, error } = details(key);
  if (!log.length && !error) return null;
  return section(
    "Last log lines",
    error && h("p", { class: "notice is-bad" }, error),
    log.map(({ file, lines }, i) =>
      logBox(h("span", { class: "path" }, file), lines, `last lines of ${file}`, i === 0),
    ),
  );
}

/** @param {string} key */
function sessionSection(key) {
  const { environment, sessions } = details(key);
  return section(
    "Environment",
    factsTable("Environment", Object.entries(environment)),
    sessions.map((session, i) =>
      h(
        "details",
        { class: "log" },
        h(
          "summary",
          null,
          `Session ${i + 1}: ${when(session.started)}, ${session.host || "unknown host"}, ${session.ranks || "?"} rank(s)`,
        ),
        h("pre", { tabindex: "0", "aria-label": "command" }, session.command),
        Object.keys(session.changes).length > 0 &&
          factsTable("Changed settings", Object.entries(session.changes)),
      ),
    ),
  );
}

/** @param {string} key */
function spectrumSection(key) {
  const { charts, raised, looked } = spectrumCurves(key);
  if (!charts.length) return null;
  return section(
    "Spectrum and collapse",
    looked > 0 &&
      (raised.length
        ? h(
            "p",
            { class: "notice is-bad" },
            `Collapse alarm at ${raised.length} of ${several(looked, "look")}, first at step ${short(raised[0])}, last at step ${short(raised.at(-1))}.`,
          )
        : h(
            "p",
            { class: "notice is-ok" },
            `No collapse alarm at any of ${several(looked, "look")}.`,
          )),
    h("div", { class: "grid-3" }, charts),
  );
}

/** @param {string} key */
function comparePicker(key) {
  /** @type {Choice[]} */
  const others = Object.entries(DATA.runs)
    .filter(([other]) => other !== key)
    .map(([other, run]) => [other, run.name]);
  if (!others.length) return null;
  const select = choice("Compare with", [["", "choose a run"], ...others], "", (other) => {
    if (other) location.hash = `#/compare/${key}/${other}`;
  });
  return h("div", { class: "toolbar" }, select);
}

/**
 * The page of one run.
 * @param {string} key
 * @returns {Child}
 */
export function runPage(key) {
  const run = own(DATA.runs, key);
  if (!run) return missingPage("run");
  const pretraining = run.stage === "pretrain";
  const detail = details(key);
  const charts = (
    own(
      {
        pretrain: pretrainingCurves,
        detection: detectionCurves,
        evaluation: classificationCurves,
      },
      run.stage,
    ) || otherCurves
  )(key);
  const words = [
    run.reason !== detail.error ? run.reason : null,
    run.status !== "finished" ? progress(run) : null,
  ].filter(Boolean);
  return [
    h("p", { class: "crumbs" }, h("a", { href: "#/runs" }, "Runs"), " / ", run.config_name),
    h("div", { class: "title-line" }, heading(1, run.name), badge(run.status)),
    words.length > 0 && h("p", { class: "lead" }, words.join(" · ")),
    run.status !== "finished" && progressBar(run),
    h("p", { class: "path" }, run.path),
    headFacts(run),
    comparePicker(key),
    run.status !== "finished" && logSection(key),
    metricTable(key, run),
    section("Provenance", provenanceChain(key)),
    charts.length > 0 && section("Curves", h("div", { class: "grid-2" }, charts)),
    pretraining && spectrumSection(key),
    pretraining &&
      detail.views &&
      section(
        "Views",
        h(
          "figure",
          { class: "sheet" },
          h("img", { src: detail.views, alt: "A row an image, a column a view" }),
          h("figcaption", null, "What the network sees: a row an image, a column a view."),
        ),
      ),
    classSection(key),
    precisionSection(key),
    pictureSection(key),
    section("Settings", settingsTable(key)),
    Object.keys(detail.facts).length > 0 &&
      section("Results file", factsTable("Results file", Object.entries(detail.facts))),
    sessionSection(key),
  ];
}
