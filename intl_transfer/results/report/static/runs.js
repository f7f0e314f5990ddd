// The list of all runs, and of those that are in no table.

import { copyButtons } from "./copy.js";
import {
  DATA,
  badge,
  details,
  duration,
  fixed,
  h,
  heading,
  own,
  place,
  runLink,
  section,
  short,
  taskName,
  when,
} from "./core.js";
import { logBox, progress, progressBar } from "./progress.js";
import { cell, choice, filterField, seedCell, sortable } from "./tables.js";

/**
 * The one figure that a run is listed with.
 * @param {Run} run
 */
function headline(run) {
  for (const name of ["box/AP", "voc/AP", "mask/AP", "top1", "knn_accuracy"]) {
    const value = own(run.figures, name);
    if (value !== undefined)
      return {
        value,
        text: fixed(value, place.digits),
        name: name.includes("/")
          ? `${taskName(name.split("/")[0])} AP`
          : name === "top1"
            ? "top-1"
            : "k-NN",
      };
  }
  const loss = own(run.figures, "final_loss");
  return loss === undefined
    ? { value: null, text: "", name: "" }
    : { value: loss, text: short(loss), name: "loss" };
}

/**
 * @param {string} key
 * @param {Run} run
 * @param {() => void} changed
 */
function pickBox(key, run, changed) {
  /** @type {HTMLInputElement} */
  const box = h("input", {
    type: "checkbox",
    "aria-label": `choose ${run.name} to compare`,
    change: () => {
      place.chosen = place.chosen.filter((other) => other !== key);
      if (box.checked) place.chosen = [...place.chosen, key].slice(-2);
      place.keep();
      changed();
    },
  });
  box.checked = place.chosen.includes(key);
  box.setAttribute("data-pick", key);
  return box;
}

/** @type {Column[]} */
const RUN_COLUMNS = [
  { name: "compare", fixed: true, silent: true },
  { name: "run" },
  { name: "status" },
  { name: "stage" },
  { name: "method" },
  { name: "data" },
  { name: "schedule" },
  { name: "seed", numeric: true, up: true },
  { name: "figure", numeric: true },
  { name: "time", numeric: true },
  { name: "started" },
];

/**
 * @param {string} key
 * @param {Run} run
 * @param {() => void} changed
 */
function runLine(key, run, changed) {
  const main = headline(run);
  const time = run.status === "finished" ? duration(run.wall_time) : progress(run);
  return {
    words: [run.path, run.config_name, run.reason].filter(Boolean).join(" "),
    status: run.status,
    cells: [
      cell("", { node: pickBox(key, run, changed) }),
      cell(run.name, { node: runLink(key) }),
      cell(run.status, { node: badge(run.status) }),
      cell(run.stage),
      cell(run.method, { class: "nowrap" }),
      cell(run.dataset),
      cell(run.schedule),
      seedCell(run.seed),
      { ...main, node: main.name && [main.text, h("small", null, ` ${main.name}`)] },
      cell(time, { value: run.wall_time }),
      cell(when(run.started).split(",")[0], { value: run.started, class: "nowrap" }),
    ],
  };
}

/** What is to be done with the runs ticked so far. */
function pickHint() {
  const known = place.chosen.filter((key) => own(DATA.runs, key));
  if (known.length === 2)
    return h(
      "a",
      { class: "button", href: `#/compare/${known.join("/")}` },
      "Compare the two chosen runs",
    );
  return h(
    "span",
    { class: "chart-note" },
    known.length ? "Tick one more run to compare." : "Tick two runs to compare them.",
  );
}

/**
 * The page of all runs.
 * @returns {Child}
 */
export function runsPage() {
  const bar = h("div", { class: "pick-bar" }, pickHint());
  const changed = () => {
    /** @type {NodeListOf<HTMLInputElement>} */
    const boxes = document.querySelectorAll("[data-pick]");
    for (const box of boxes)
      box.checked = place.chosen.includes(box.getAttribute("data-pick") || "");
    bar.replaceChildren(pickHint());
  };
  const lines = Object.entries(DATA.runs).map(([key, run]) => runLine(key, run, changed));
  /** @type {Choice[]} */
  const statuses = [...new Set(lines.map((line) => line.status))].map((name) => [name, name]);
  if (!statuses.some(([name]) => name === place.status)) place.status = "";
  const block = { lines };
  const made = sortable({
    id: "runs",
    title: "Runs",
    class: "runs",
    head: 1,
    blocks: [block],
    columns: RUN_COLUMNS,
  });
  const apply = () => {
    block.lines = lines.filter((line) => !place.status || line.status === place.status);
    made.filter(place.runs);
  };
  apply();
  /** @type {(name: "runs" | "status") => (value: string) => void} */
  const keep = (name) => (value) => {
    place[name] = value;
    place.keep();
    apply();
  };
  return [
    heading(1, "Runs"),
    h(
      "div",
      { class: "toolbar", role: "search" },
      filterField("Filter runs", place.runs, keep("runs")),
      choice("Status", [["", "all"], ...statuses], place.status, keep("status")),
      copyButtons(made.sheet),
    ),
    bar,
    h("section", { class: "card" }, made.node),
  ];
}

/**
 * The page of what is in no table.
 * @returns {Child}
 */
export function leftOutPage() {
  const waiting = Object.entries(DATA.runs).filter(
    ([, run]) => !["finished", "superseded"].includes(run.status),
  );
  const order = { failed: 0, stalled: 1, interrupted: 2, running: 3 };
  /** @type {(run: Run) => number} */
  const urgency = (run) => own(order, run.status) ?? 4;
  waiting.sort(([, x], [, y]) => urgency(x) - urgency(y));
  return [
    heading(1, "Not in the tables"),
    h(
      "p",
      { class: "lead" },
      "What was found and does not count, and why. Nothing is dropped in silence.",
    ),
    section(
      `Unfinished runs (${waiting.length})`,
      waiting.length
        ? h(
            "ul",
            { class: "waiting" },
            waiting.map(([key, run]) => {
              const { log } = details(key);
              return h(
                "li",
                null,
                h(
                  "div",
                  { class: "title-line" },
                  h("strong", null, runLink(key)),
                  badge(run.status),
                  h(
                    "span",
                    { class: "chart-note" },
                    progress(run),
                    run.last.time
                      ? ` · last line ${when(new Date(run.last.time * 1000).toISOString())}`
                      : "",
                  ),
                ),
                progressBar(run),
                run.status === "failed" &&
                  details(key).error &&
                  h("p", { class: "notice is-bad" }, details(key).error),
                h("div", { class: "path" }, run.path),
                log.length > 0 &&
                  logBox(
                    "Last log lines",
                    log[0].lines.slice(-15),
                    `last log lines of ${run.name}`,
                    false,
                  ),
              );
            }),
          )
        : h("p", { class: "empty" }, "Every run has finished."),
    ),
    section(
      `Left out (${DATA.problems.length})`,
      DATA.problems.length
        ? h(
            "ul",
            { class: "problems" },
            DATA.problems.map((line) => h("li", null, line.replace(/^left out: /, ""))),
          )
        : h("p", { class: "empty" }, "Nothing was left out."),
    ),
  ];
}

/**
 * In the place of what an old link leads to.
 * @param {string} what
 * @returns {Child}
 */
export function missingPage(what) {
  return [
    heading(1, "Not here"),
    h(
      "p",
      { class: "lead" },
      `This page has no such ${what}. It may have been left out since the link was made.`,
    ),
    h("p", null, h("a", { href: "#/" }, "To the results")),
  ];
}
