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
 * Curves of rows, each a band over its runs; what was not measured alike, or on the way, is kept apart.
 * @param {Table} table
 * @param {Row[]} rows of it
 * @param {boolean} all
 */
export function rowCurves(table, rows, all = false) {
  /** @type {Map<string, Map<string, string[]>>} */
  const groups = new Map();
  for (const protocol of table.protocols) {
    for (const row of rows) {
      const name =
        rows.filter((r) => r.method === row.method).length > 1
          ? `${row.method}, ${row.detail}`
          : row.method;
      for (const key of row.measured.find((one) => one.key === protocol.key)?.runs ?? []) {
        const onTheWay = DATA.runs[key].stage === "pretrain";
        const group = onTheWay ? `pretraining, ${protocol.name}` : protocol.name;
        /** @type {Map<string, string[]>} */
        const lines = groups.get(group) ?? new Map();
        groups.set(group, lines);
        lines.set(name, [...(lines.get(name) || []), key]);
      }
    }
  }
  const names = [...groups.keys()];
  const body = h("div");
  /** @type {(name: string) => void} */
  const draw = (name) =>
    body.replaceChildren(
      ...[
        groupCurves(
          [...(groups.get(name) ?? [])].map(([line, runs]) => ({ name: line, runs })),
          all,
        ),
      ].flat(),
    );
  draw(names[0]);
  return [
    names.length > 1 &&
      choice(
        "Columns",
        names.map((name) => [name, name]),
        names[0],
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
  const cards = table.protocols.map((one) => rowCard(table, row, one)).filter(Boolean);
  return [
    h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Results"), " / ", table.title),
    heading(1, row.method),
    h("p", { class: "lead" }, row.detail),
    row.notes.map((n) => h("p", { class: "notice" }, table.notes[n - 1])),
    h("div", { class: "cards" }, cards),
    row.runs.length > 0 && section("Curves, seeds as bands", rowCurves(table, [row], true)),
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
 * What a mean is over: "3 runs", "2 pretrainings × 3".
 * @param {string} n
 */
const repetitions = (n) => (/^\d+$/.test(n) ? several(Number(n), "run") : n);

/**
 * The runs behind a row's figures of one protocol.
 * @param {Table} table
 * @param {Row} row
 * @param {Protocol} protocol of the table
 */
function rowCard(table, row, protocol) {
  const measured = row.measured.find((one) => one.key === protocol.key);
  const chosen = protocol.columns;
  if (!measured) return null;
  const lines = measured.runs
    .map((key) => ({
      key,
      run: DATA.runs[key],
      values: chosen.map((i) => row.each[i][row.runs.indexOf(key)] ?? null),
    }))
    .filter((line) => line.values.some((value) => value !== null));
  if (!lines.length) return null;
  const columns = figureColumns(table);
  const made = sortable({
    id: `row-${row.key}-${protocol.key}`,
    title: `${row.method}: ${protocol.title}`,
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
              cell(`mean ± std of ${repetitions(measured.n)}`),
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
      h("p", { class: "sub" }, protocol.title),
    ),
    made.node,
  );
}
