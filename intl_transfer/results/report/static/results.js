// The first page: tables of results, and what one row of them is made of.

import { seedChart } from "./bars.js";
import { copyButtons } from "./copy.js";
import { DATA, fill, fixed, h, heading, place, several, when } from "./core.js";
import { evidenceOf, hideEvidence, saveLinks } from "./evidence.js";
import { columnWidths, figureColumns, figureNode, figureText } from "./figures.js";
import { rowCurves } from "./rows.js";
import { missingPage } from "./runs.js";
import { cell, choice, filterField, sortable, tick } from "./tables.js";

/** @type {(column: Table["columns"][number]) => string} */
const columnName = (column) => `${column.group} ${column.metric}`;

/** @type {(table: Table) => Column[]} */
const tableColumns = (table) => [
  { name: "initialization" },
  { name: "pretraining", class: "detail" },
  { name: "n", numeric: true, hint: "number of runs" },
  ...figureColumns(table),
];

/**
 * @param {Row} row
 * @param {{std: string, marks: string}[]} widths
 * @returns {Line}
 */
function tableLine(row, widths) {
  const evidence = row.evidence.lines;
  return {
    evidence,
    italic: row.published,
    notes: row.notes,
    words: row.runs.map((key) => DATA.runs[key].name).join(" "),
    cells: [
      cell(row.method, {
        node: [
          row.runs.length
            ? h("a", { href: `#/row/${row.key}`, ...evidenceOf(evidence) }, row.method)
            : h("span", { tabindex: "0", class: "source", ...evidenceOf(evidence) }, row.method),
        ],
        under: row.detail,
      }),
      cell(row.detail),
      cell(row.n),
      ...row.figures.map((value, i) => ({
        value: value?.mean,
        text: figureText(value),
        mean: value ? fixed(value.mean, place.digits) : "",
        beside: value ? figureText(value).slice(fixed(value.mean, place.digits).length).trim() : "",
        node: figureNode(value, widths[i]),
        best: Boolean(value?.best),
      })),
    ],
  };
}

/**
 * The title in two parts: the data set, and how the detector was trained.
 * @param {string} title
 */
function titleParts(title) {
  const comma = title.indexOf(", ");
  return comma < 0 ? [title, ""] : [title.slice(0, comma), title.slice(comma + 2)];
}

/** @type {(table: Table) => string[]} */
const partTitles = (table) =>
  table.parts.length ? table.parts.map((part) => part.title) : [table.title];
/**
 * The data sets of a table: its short name.
 * @type {(table: Table) => string}
 */
export const tableNames = (table) =>
  partTitles(table)
    .map((title) => titleParts(title)[0])
    .join(" and ");

/**
 * Rows in blocks: neighbors of one group below its name, and what is of none.
 * @param {Row[]} rows
 * @param {string} name of those at the beginning that are of no group
 * @param {string} kind
 * @param {(row: Row) => Line} line
 * @returns {Block[]}
 */
function groupBlocks(rows, name, kind, line) {
  /** @type {Block[]} */
  const blocks = [];
  rows.forEach((row, i) => {
    if (i === 0 || row.group !== rows[i - 1].group) {
      const after = blocks.length > 0;
      const apart = after && !row.group ? "apart" : "";
      const words = [kind, apart].filter(Boolean).join(" ");
      blocks.push({ name: row.group || (after ? "" : name), class: words || undefined, lines: [] });
    }
    blocks[blocks.length - 1].lines.push(line(row));
  });
  return blocks;
}

/** @param {Table} table */
function resultTable(table) {
  const shown = table.rows.filter((row) => place.published || !row.published);
  const widths = table.columns.map((_, i) => columnWidths(shown, i));
  /** @type {(row: Row) => Line} */
  const line = (row) => tableLine(row, widths);
  const [measured, published] = [
    shown.filter((row) => !row.published),
    shown.filter((row) => row.published),
  ];
  const made = sortable({
    id: table.key,
    title: table.title,
    columns: tableColumns(table),
    notes: table.notes,
    legend: table.legend,
    class: "results",
    blocks: [
      ...groupBlocks(measured, published.length ? "measured" : "", "", line),
      ...groupBlocks(published, "published", "published", line),
    ],
  });
  const used = new Set(shown.flatMap((row) => row.notes));
  const notes = table.notes.map((note, i) => used.has(i + 1) && h("li", { value: i + 1 }, note));
  const parts = partTitles(table);
  const node = h(
    "section",
    { class: "card", id: `card-${table.key}`, mouseleave: hideEvidence },
    h(
      "div",
      { class: "card-head" },
      heading(2, table.name),
      h("div", { class: "copy-all" }, copyButtons(made.sheet), saveLinks(table)),
      parts.map((title) =>
        h(
          "p",
          { class: "sub" },
          parts.length > 1 && h("b", null, `${titleParts(title)[0]}: `),
          titleParts(title)[1],
        ),
      ),
    ),
    made.node,
    used.size > 0 && h("ol", { class: "notes", "aria-label": "Notes" }, notes),
    table.legend.length > 0 && h("p", { class: "notes legend-line" }, table.legend.join(" ")),
    measured.length > 0 && h("div", { class: "folds" }, seedFold(table), curveFold(table)),
  );
  return { node, filter: made.filter };
}

/**
 * What leads to each table, where there are several.
 * @param {Table[]} tables
 */
function contents(tables) {
  if (tables.length < 2) return null;
  return h(
    "nav",
    { class: "contents", "aria-label": "Tables" },
    h(
      "details",
      null,
      h("summary", null, several(tables.length, "table")),
      h(
        "ol",
        null,
        tables.map((table) => h("li", null, h("a", { href: `#table-${table.key}` }, table.name))),
      ),
    ),
  );
}

/**
 * The first page, at one of its tables: where a table in a paper leads to.
 * @param {string} key
 */
export function tablePage(key) {
  const found = DATA.tables.some((table) => table.key === key);
  if (!found) return missingPage("table");
  requestAnimationFrame(() =>
    requestAnimationFrame(() => {
      const card = document.getElementById(`card-${key}`);
      card?.scrollIntoView();
      card?.querySelector("h2")?.setAttribute("tabindex", "-1");
      card?.querySelector("h2")?.focus({ preventScroll: true });
    }),
  );
  return overviewPage();
}

/**
 * A part that is made when it is first opened.
 * @param {string} title
 * @param {() => Child} make
 */
export function fold(title, make) {
  const body = h("div", { class: "fold-body" });
  return h(
    "details",
    {
      toggle: (event) => {
        if (event.currentTarget.open && !body.firstChild) fill(body, null, [make()]);
      },
    },
    h("summary", null, title),
    body,
  );
}

/** @param {Table} table */
function seedFold(table) {
  return fold("Seeds and spread", () => {
    const body = h("div");
    /** @type {Choice[]} */
    const names = table.columns.map((c, i) => [String(i), columnName(c)]);
    /** @type {(i: number) => void} */
    const draw = (i) => {
      const items = table.rows.flatMap((row) => {
        const { mean = null, std = null } = row.figures[i] ?? {};
        if (mean === null || (row.published && !place.published)) return [];
        return [
          {
            name: row.detail && row.published ? `${row.method} (${row.detail})` : row.method,
            mean,
            std,
            published: row.published,
            href: row.published ? null : `#/row/${row.key}`,
            seeds: row.each[i].filter((value) => value !== null),
          },
        ];
      });
      items.sort((a, b) => b.mean - a.mean);
      body.replaceChildren(
        seedChart(`${names[i][1]}, %`, items, {
          note: "Large point: mean; line: ± standard deviation; small points: single runs; hollow: published.",
        }),
      );
    };
    const first = Math.max(
      0,
      table.columns.findIndex(
        (c, i) => c.metric === "AP" && table.rows.some((row) => row.figures[i]),
      ),
    );
    draw(first);
    return [choice("Figure", names, String(first), (i) => draw(Number(i))), body];
  });
}

/** @type {(table: Table) => HTMLElement} */
const curveFold = (table) => fold("Curves over the training", () => rowCurves(table, table.rows));

/** Link, kind and name of each count that is not 0. */
function counts() {
  const runs = Object.values(DATA.runs);
  /** @type {(status: string, stage?: string) => number} */
  const number = (status, stage = "") =>
    runs.filter((run) => run.status === status && (!stage || run.stage === stage)).length;
  /** @type {[number, string, string, string][]} */
  const all = [
    [number("finished", "detection"), "detection run", "#/runs", "ok"],
    [number("finished", "pretrain"), "pretraining run", "#/runs", "ok"],
    [number("finished", "evaluation"), "evaluation run", "#/runs", "ok"],
    [number("running"), "running", "#/left-out", "run"],
    [number("stalled"), "stalled", "#/left-out", "warn"],
    [number("interrupted"), "interrupted", "#/left-out", "warn"],
    [number("failed"), "failed", "#/left-out", "bad"],
    [DATA.problems.length, "left out", "#/left-out", "warn"],
  ];
  return all
    .filter(([count]) => count > 0)
    .map(([count, name, href, kind]) =>
      h(
        "li",
        null,
        h(
          "a",
          { href, class: `count is-${kind}` },
          h("b", null, count.toLocaleString("en-GB")),
          h("span", null, name.endsWith("run") && count !== 1 ? `${name}s` : name),
        ),
      ),
    );
}

const overviewNote = () =>
  h(
    "p",
    { class: "legend-note" },
    "Figures in %, of the last iteration, mean ± sample standard deviation over n runs. A blank is a figure that does not exist. ",
    h("b", { class: "best" }, "Bold"),
    ": the highest measured mean of a primary metric (AP; top-1); no test. ",
    "(external): not measured by this project. (baseline): what other rows are tested against. †: a single run, beside means of several. ↑, ↓: significantly above, below the baseline. Small numbers lead to the notes below a table. ",
    h("i", null, "Italics"),
    ": published, with their source.",
  );

/**
 * The first page.
 * @returns {Child}
 */
export function overviewPage() {
  const cards = h("div", { class: "cards" });
  const nothing = h(
    "p",
    { class: "empty", hidden: true },
    "No row of any table has all of these words.",
  );
  /** @type {{node: HTMLElement, filter: (words: string) => number}[]} */
  let tables = [];
  const apply = () => {
    for (const table of tables)
      table.node.hidden = table.filter(place.filter) === 0 && place.filter.trim() !== "";
    nothing.hidden = !tables.length || tables.some((table) => !table.node.hidden);
  };
  const draw = () => {
    tables = DATA.tables
      .filter((table) => place.published || table.rows.some((row) => !row.published))
      .map(resultTable);
    cards.replaceChildren(...tables.map((table) => table.node));
    apply();
  };
  draw();
  return [
    heading(1, "Results"),
    h(
      "ul",
      { class: "counts", "aria-label": "Runs found" },
      counts(),
      h("li", { class: "built" }, `built ${when(DATA.built)}`),
    ),
    DATA.tables.length > 0 && overviewTools(draw, apply),
    contents(DATA.tables),
    cards,
    nothing,
    DATA.tables.length > 0
      ? overviewNote()
      : h(
          "p",
          { class: "empty" },
          "No finished detection run yet. What is under way is under “Runs”.",
        ),
  ];
}

/**
 * @param {() => void} draw
 * @param {() => void} apply
 */
function overviewTools(draw, apply) {
  /**
   * @template {keyof Place} K
   * @param {K} name
   * @param {Place[K]} value
   * @param {() => void} then
   */
  const keep = (name, value, then) => {
    place[name] = value;
    place.keep();
    then();
  };
  /** @type {Choice[]} */
  const digits = Array.from({ length: Math.max(3, DATA.digits) + 1 }, (_, n) => [`${n}`, `${n}`]);
  return h(
    "div",
    { class: "toolbar", role: "search" },
    filterField("Filter rows", place.filter, (words) => keep("filter", words, apply)),
    choice("Digits", digits, String(place.digits), (n) => keep("digits", Number(n), draw)),
    tick("± std", place.spread, (on) => keep("spread", on, draw)),
    DATA.tables.some((table) => table.rows.some((row) => row.published)) &&
      tick("published rows", place.published, (on) => keep("published", on, draw)),
  );
}
