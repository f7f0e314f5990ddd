// A table's figures, as they are shown and as they are copied.

import { fixed, h, place } from "./core.js";

/**
 * What stands behind a figure: how few runs have it, where others of the row do, and its signs.
 * @type {(value: Figure) => string}
 */
const marksOf = (value) =>
  [value.alone && "†", value.n && ` (n = ${value.n})`, value.arrow].filter(Boolean).join(" ");

/**
 * A figure as it is copied.
 * @param {Figure | null} value
 */
export function figureText(value) {
  if (!value) return "";
  const spread = place.spread && value.std !== null && `± ${fixed(value.std, place.digits)}`;
  return [fixed(value.mean, place.digits), spread, marksOf(value).trim()].filter(Boolean).join(" ");
}

/**
 * Widths that keep the means of a column below each other, whether a spread follows or not.
 * @param {Row[]} rows
 * @param {number} i
 */
export function columnWidths(rows, i) {
  const values = rows.map((row) => row.figures[i]).filter((value) => value !== null);
  /** @type {(texts: string[]) => string} */
  const longest = (texts) => texts.reduce((a, b) => (b.length > a.length ? b : a), "");
  return {
    std: place.spread
      ? longest(values.filter((v) => v.std !== null).map((v) => ` ± ${fixed(v.std, place.digits)}`))
      : "",
    marks: longest(values.map(marksOf)),
  };
}

/**
 * A figure as it is shown.
 * @param {Figure | null} value
 * @param {{std?: string, marks?: string}} widths
 * @returns {Child}
 */
export function figureNode(value, widths = {}) {
  if (!value) return "";
  /** @type {(name: "std" | "marks", text: string | false) => Child} */
  const part = (name, text) =>
    text
      ? h("span", { class: name }, text)
      : widths[name] && h("span", { class: `${name} ghost`, "aria-hidden": "true" }, widths[name]);
  return [
    h("span", { class: "mean" }, fixed(value.mean, place.digits)),
    part("std", place.spread && value.std !== null && ` ± ${fixed(value.std, place.digits)}`),
    part("marks", marksOf(value)),
  ];
}

/**
 * A table's columns of figures.
 * @type {(table: Table) => Column[]}
 */
export const figureColumns = (table) =>
  table.columns.map((column, i) => ({
    name: column.metric,
    group: column.group,
    numeric: true,
    start: i === 0 || table.columns[i - 1].task !== column.task,
  }));
