// Two runs side by side: what was set otherwise, and what came of it.

import { pairChart, pointSwatch } from "./bars.js";
import { copyButtons } from "./copy.js";
import {
  DATA,
  badge,
  details,
  h,
  heading,
  own,
  place,
  runLink,
  section,
  settings,
  signed,
  taskName,
} from "./core.js";
import { byImportance, curve, curveName, curveNames, unitOf } from "./curves.js";
import { lineChart } from "./lines.js";
import { cell, choice, figure, sortable } from "./tables.js";

/**
 * What is compared is chosen here; "" stands for none.
 * @param {string} a
 * @param {string} b
 */
function compareChooser(a, b) {
  /** @type {Choice[]} */
  const runs = Object.entries(DATA.runs).map(([key, run]) => [
    key,
    `${run.name} (${run.stage ?? "no stage"})`,
  ]);
  /** @type {Choice[]} */
  const options = [["", "choose a run"], ...runs];
  /** @type {(first: string, second: string) => void} */
  const go = (first, second) => {
    location.hash = `#/compare/${[first, second].filter(Boolean).join("/")}`;
  };
  return h(
    "div",
    { class: "toolbar" },
    choice("First", options, a, (key) => go(key, b)),
    choice("Second", options, b, (key) => go(a, key)),
    a && b && h("button", { type: "button", class: "small", click: () => go(b, a) }, "Swap"),
  );
}

/**
 * @type {["stage" | "dataset" | "detector" | "schedule" | "batch_size" | "base_lr", string][]}
 */
const COMPARABLE = [
  ["stage", "stage"],
  ["dataset", "data set"],
  ["detector", "detector"],
  ["schedule", "schedule"],
  ["batch_size", "batch size"],
  ["base_lr", "learning rate"],
];

/**
 * The protocol of a run's row; undefined for runs that are in no table.
 * @param {Run} run
 */
const protocolOf = (run) =>
  DATA.tables.flatMap((table) => table.protocols).find((one) => one.key === run.protocol);

/**
 * Whether two runs' figures may be compared: as the tables do it.
 * @param {Run} first
 * @param {Run} second
 */
function comparability(first, second) {
  const [one, other] = [protocolOf(first), protocolOf(second)];
  if (one && one === other)
    return h(
      "p",
      { class: "notice is-ok" },
      `Of one protocol, in which figures may be compared: ${one.title}. One pair of runs says little without other seeds.`,
    );
  const differ = COMPARABLE.filter(([field]) => first[field] !== second[field])
    .map(([field, name]) => `${name} (${first[field] ?? "none"} and ${second[field] ?? "none"})`)
    .join(", ");
  const apart = one && other && `the tables keep apart ${one.title}, and ${other.title}`;
  const reason = differ ? `they differ in ${differ}` : apart;
  if (reason) return h("p", { class: "notice is-bad" }, `Not comparable: ${reason}.`);
  const left = [!one && first.name, !other && second.name].filter(Boolean).join(" and ");
  return h(
    "p",
    { class: "notice" },
    `Not known whether these figures may be compared: no table has ${left}.`,
  );
}

/**
 * @param {string} title
 * @param {string} id
 * @param {Record<string, string>} left
 * @param {Record<string, string>} right
 * @param {string[]} names of the two runs
 */
function differenceTable(title, id, left, right, names) {
  const all = [...new Set([...Object.keys(left), ...Object.keys(right)])];
  const lines = all
    .map((name) => [name, own(left, name), own(right, name)])
    .filter(([, x, y]) => x !== y)
    .map(([name, x, y]) => ({
      cells: [
        cell(name),
        cell(x ?? "", { class: x === undefined ? "absent" : "" }),
        cell(y ?? "", { class: y === undefined ? "absent" : "" }),
      ],
    }));
  const same = all.length - lines.length;
  if (!lines.length)
    return section(
      title,
      h("p", { class: "empty" }, all.length ? `All ${all.length} agree.` : "Nothing recorded."),
    );
  const made = sortable({
    id,
    title: `${title}: ${names.join(" and ")}`,
    class: "facts diff",
    columns: [{ name: "what" }, { name: names[0] }, { name: names[1] }],
    blocks: [{ lines }],
  });
  return section(
    title,
    h(
      "div",
      { class: "toolbar" },
      h("p", { class: "chart-note" }, `${lines.length} differ, ${same} agree.`),
      copyButtons(made.sheet),
    ),
    made.node,
  );
}

/**
 * @param {string} a
 * @param {string} b
 * @param {string[]} names of the two runs
 */
function metricDifference(a, b, names) {
  const [left, right] = [details(a).metrics, details(b).metrics];
  /** @type {(metrics: Record<string, Figures>) => Figures} */
  const flat = (metrics) =>
    Object.fromEntries(
      Object.entries(metrics).flatMap(([task, found]) =>
        Object.entries(found).map(([name, value]) => [`${taskName(task)} ${name}`, value]),
      ),
    );
  /** @type {(key: string) => Figures} */
  const add = (key) => ({
    ...flat(details(key).metrics),
    ...Object.fromEntries(
      Object.entries(DATA.runs[key].figures).filter(([name]) => !name.includes("/")),
    ),
  });
  const [x, y] = [add(a), add(b)];
  const all = [...new Set([...Object.keys(x), ...Object.keys(y)])];
  const digits = place.digits + 1;
  const lines = all.map((name) => {
    const [p, q] = [own(x, name) ?? null, own(y, name) ?? null];
    const known = p !== null && q !== null;
    return {
      cells: [
        cell(curveName(name)),
        figure(p, digits),
        figure(q, digits),
        {
          value: known ? q - p : null,
          text: known ? signed(q - p, digits) : "",
          class: known && !name.includes("loss") ? (q > p ? "up" : q < p ? "down" : "") : "",
        },
      ],
    };
  });
  if (!lines.length) return null;
  const made = sortable({
    id: "compare-metrics",
    title: `Figures: ${names.join(" and ")}`,
    class: "results pairs",
    columns: [
      { name: "figure" },
      { name: names[0], numeric: true },
      { name: names[1], numeric: true },
      { name: "difference", numeric: true },
    ],
    blocks: [{ lines }],
  });
  const tasks = Object.keys(left).filter(
    (task) => own(right, task) && own(details(a).classes, task) && own(details(b).classes, task),
  );
  const charts = tasks
    .map((task) => {
      const [p, q] = [details(a).classes[task], details(b).classes[task]];
      const items = [...new Set([...Object.keys(p), ...Object.keys(q)])].map((name) => ({
        name,
        a: own(p, name) ?? null,
        b: own(q, name) ?? null,
      }));
      items.sort((m, n) => (n.b ?? 0) - (n.a ?? 0) - ((m.b ?? 0) - (m.a ?? 0)));
      return items.length
        ? pairChart(`AP of each class, ${taskName(task)}, %`, items, names)
        : null;
    })
    .filter(Boolean);
  return [
    h(
      "section",
      { class: "card" },
      h("div", { class: "card-head" }, heading(2, "Figures"), copyButtons(made.sheet)),
      made.node,
    ),
    charts.length > 0 && section("Classes", h("div", { class: "grid-2" }, charts)),
  ];
}

/**
 * @param {string} a
 * @param {string} b
 * @param {string[]} names of the two runs
 */
function curveDifference(a, b, names) {
  const shared = byImportance(curveNames(a).filter((name) => curveNames(b).includes(name)));
  if (!shared.length) return null;
  const body = h("div");
  /** @type {(name: string) => void} */
  const draw = (name) =>
    body.replaceChildren(
      lineChart(
        curveName(name),
        [a, b].flatMap((key, index) => {
          const found = curve(key, name);
          return found ? [{ name: names[index], index, ...found }] : [];
        }),
        { x: unitOf([a]), switchable: /loss|mismatch/.test(name) },
      ),
    );
  draw(shared[0]);
  return section(
    "Curves",
    choice(
      "Figure",
      shared.map((name) => [name, curveName(name)]),
      shared[0],
      draw,
    ),
    body,
  );
}

/**
 * The page of two runs.
 * @param {string} a
 * @param {string} b
 * @returns {Child}
 */
export function comparePage(a, b) {
  const [first, second] = [own(DATA.runs, a), own(DATA.runs, b)];
  const head = [heading(1, "Compare two runs"), compareChooser(first ? a : "", second ? b : "")];
  if (!first || !second)
    return [
      ...head,
      h("p", { class: "empty" }, "Choose two runs here, or tick two in the list of runs."),
    ];
  const names =
    first.name === second.name
      ? [`${first.name} (first)`, `${second.name} (second)`]
      : [first.name, second.name];
  return [
    ...head,
    h(
      "div",
      { class: "versus" },
      [
        { key: a, run: first },
        { key: b, run: second },
      ].map(({ key, run }, k) =>
        h(
          "div",
          null,
          pointSwatch(k),
          runLink(key),
          " ",
          badge(run.status),
          h("div", { class: "path" }, run.path),
        ),
      ),
    ),
    comparability(first, second),
    metricDifference(a, b, names),
    curveDifference(a, b, names),
    differenceTable("Settings", "compare-settings", settings(a), settings(b), names),
    differenceTable(
      "Environment",
      "compare-environment",
      details(a).environment,
      details(b).environment,
      names,
    ),
  ];
}
