// Rows of tables: their runs, and curves with a band a row.

import { copyButtons } from "./copy.js";
import { DATA, duration, h, heading, place, runLink, section, several } from "./core.js";
import { groupCurves } from "./curves.js";
import { figureColumns, figureNode, figureText } from "./figures.js";
import { fold } from "./results.js";
import { factsTable } from "./run.js";
import { missingPage } from "./runs.js";
import { cell, choice, figure, seedCell, sortable } from "./tables.js";

/**
 * Runs that may share a chart: of the same stage, data, detector and schedule.
 * @param {string} key
 */
function protocolOf(key) {
  const run = DATA.runs[key];
  return [run.stage === "pretrain" ? "pretraining" : "", run.dataset, run.detector, run.schedule]
    .filter(Boolean)
    .join(", ");
}

/**
 * Curves of rows, each a band over its runs; what was not trained alike is kept apart.
 * @param {Row[]} rows
 * @param {boolean} all
 */
export function rowCurves(rows, all = false) {
  /** @type {Map<string, Map<string, string[]>>} */
  const groups = new Map();
  for (const row of rows) {
    for (const key of row.runs) {
      const protocol = protocolOf(key);
      /** @type {Map<string, string[]>} */
      const lines = groups.get(protocol) ?? new Map();
      groups.set(protocol, lines);
      const name =
        rows.filter((r) => r.method === row.method).length > 1
          ? `${row.method}, ${row.detail}`
          : row.method;
      lines.set(name, [...(lines.get(name) || []), key]);
    }
  }
  const protocols = [...groups.keys()];
  const body = h("div");
  /** @type {(protocol: string) => void} */
  const draw = (protocol) =>
    body.replaceChildren(
      ...[
        groupCurves(
          [...(groups.get(protocol) ?? [])].map(([name, runs]) => ({ name, runs })),
          all,
        ),
      ].flat(),
    );
  draw(protocols[0]);
  return [
    protocols.length > 1 &&
      choice(
        "Trained on",
        protocols.map((p) => [p, p]),
        protocols[0],
        draw,
      ),
    body,
  ].filter(Boolean);
}

/**
 * The page of one row of a table.
 * @param {string} key
 * @returns {Child}
 */
export function rowPage(key) {
  const table = DATA.tables.find((t) => t.rows.some((row) => row.key === key));
  const row = table?.rows.find((r) => r.key === key);
  if (!table || !row) return missingPage("row of a table");
  const parts = table.parts.length ? table.parts : [{ title: table.title, tasks: null }];
  const cards = parts.map((part, k) => rowCard(table, row, part, k)).filter(Boolean);
  return [
    h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Results"), " / ", table.title),
    heading(1, row.method),
    h("p", { class: "lead" }, row.detail),
    row.notes.map((n) => h("p", { class: "notice" }, table.notes[n - 1])),
    h("div", { class: "cards" }, cards),
    row.runs.length > 0 && section("Curves, seeds as bands", rowCurves([row], true)),
    section(
      "Evidence",
      factsTable("Evidence", row.evidence.lines),
      row.evidence.decided.length > 0 &&
        fold(`What decided its start: ${several(row.evidence.decided.length, "setting")}`, () =>
          factsTable("What decided its start", row.evidence.decided),
        ),
    ),
  ];
}

/**
 * The runs behind a row's figures on one data set.
 * @param {Table} table
 * @param {Row} row
 * @param {{title: string, tasks: string[] | null}} part of the table
 * @param {number} number
 */
function rowCard(table, row, part, number) {
  const chosen = table.columns
    .map((_, i) => i)
    .filter((i) => !part.tasks || part.tasks.includes(table.columns[i].task));
  const lines = row.runs
    .map((key, k) => ({
      key,
      run: DATA.runs[key],
      values: chosen.map((i) => row.each[i][k] ?? null),
    }))
    .filter((line) => line.values.some((value) => value !== null));
  if (!lines.length) return null;
  const columns = figureColumns(table);
  const made = sortable({
    id: `row-${row.key}-${number}`,
    title: `${row.method}: ${part.title}`,
    class: "results",
    columns: [
      { name: "run" },
      { name: "seed", numeric: true, up: true },
      ...chosen.map((i) => columns[i]),
      { name: "time", numeric: true },
    ],
    blocks: [
      {
        lines: lines.map(({ key, run, values }) => ({
          cells: [
            cell(run.name, { node: runLink(key) }),
            seedCell(run.seed),
            ...values.map((value) => figure(value, place.digits + 1)),
            cell(duration(run.wall_time), { value: run.wall_time }),
          ],
        })),
      },
      {
        class: "summary",
        lines: [
          {
            cells: [
              cell(`mean ± std of ${several(lines.length, "run")}`),
              cell(""),
              ...chosen.map((i) => ({
                value: row.figures[i]?.mean,
                text: figureText(row.figures[i]),
                node: figureNode(row.figures[i]),
              })),
              cell(""),
            ],
          },
        ],
      },
    ],
  });
  return h(
    "section",
    { class: "card" },
    h(
      "div",
      { class: "card-head" },
      heading(2, several(lines.length, "run")),
      copyButtons(made.sheet),
      h("p", { class: "sub" }, part.title),
    ),
    made.node,
  );
}
