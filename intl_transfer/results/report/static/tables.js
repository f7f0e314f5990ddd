// Tables that sort by a press on a column's name, and filter by words.

import { fixed, h, place, say } from "./core.js";
import { showEvidence } from "./evidence.js";

/**
 * A cell of text, sorted by the text.
 * @type {(text: FileText | undefined, more?: Partial<Cell>) => Cell}
 */
export const cell = (text, more = {}) => ({ text: text ?? "", value: text, ...more });
/**
 * A cell of a seed, sorted as the number that it is; none is a blank, not 0.
 * @type {(seed: FileText) => Cell}
 */
export const seedCell = (seed) =>
  cell(seed, { value: seed === null || Number.isNaN(Number(seed)) ? seed : Number(seed) });

/**
 * A cell of a number.
 * @type {(value: Value, digits: number, more?: Partial<Cell>) => Cell}
 */
export const figure = (value, digits, more = {}) => ({
  value,
  text: fixed(value, digits),
  ...more,
});

/**
 * @param {Cell} a
 * @param {Cell} b
 * @param {number} direction
 */
function compareCells(a, b, direction) {
  const [x, y] = [a.value, b.value];
  /** @type {(value: Cell["value"]) => boolean} */
  const missing = (v) => v === null || v === undefined || v === "";
  if (missing(x) || missing(y)) return Number(missing(x)) - Number(missing(y)); // blanks last, either way
  const order =
    typeof x === "number" && typeof y === "number"
      ? x - y
      : String(x).localeCompare(String(y), "en", { numeric: true });
  return order * direction;
}

/** @type {(line: Line, filter: string) => boolean} */
const matches = (line, filter) => {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const text = `${line.words || ""} ${line.cells.map((c) => c.text).join(" ")}`.toLowerCase();
  return words.every((word) => text.includes(word));
};

const ARROWS = { none: "↕", ascending: "↑", descending: "↓" };

/**
 * @param {Column} column
 * @param {number} i
 * @param {keyof typeof ARROWS} order
 * @param {() => void} sortBy
 */
function headerCell(column, i, order, sortBy) {
  const props = {
    scope: "col",
    class:
      [column.numeric && "number", column.start && "group-start", column.class]
        .filter(Boolean)
        .join(" ") || null,
  };
  if (column.fixed)
    return h("th", props, h("span", { class: column.silent ? "sr" : null }, column.name));
  const arrow = h("span", { class: "arrow", "aria-hidden": "true" }, ARROWS[order]);
  const label = `sort by ${column.group ? `${column.group} ${column.name}` : column.name}`;
  const button = {
    type: "button",
    class: "sort",
    "data-column": i,
    "aria-label": label,
    title: column.hint,
    click: sortBy,
  };
  // Figures stand at the right: there the arrow comes first.
  const content = column.numeric ? [arrow, column.name] : [column.name, arrow];
  return h("th", { ...props, "aria-sort": order }, h("button", button, content));
}

/**
 * The line above the columns' names: one cell a group.
 * @param {Column[]} columns
 */
function groupRow(columns) {
  if (!columns.some((column) => column.group)) return null;
  /** @type {{name: string, span: number, class?: string}[]} */
  const groups = [];
  for (const column of columns) {
    const last = groups.at(-1);
    if (last && column.group && last.name === column.group) last.span += 1;
    else groups.push({ name: column.group || "", span: 1, class: column.class });
  }
  /** @type {(group: {name: string, span: number, class?: string}) => HTMLElement} */
  const made = (group) =>
    group.name
      ? h("th", { scope: "colgroup", colspan: group.span, class: "group-start" }, group.name)
      : h("td", { class: group.class });
  return h("tr", { class: "groups" }, groups.map(made));
}

/**
 * @param {Cell} content
 * @param {Column} column
 * @param {boolean} first whether it names its row
 * @param {Child} notes
 */
function bodyCell(content, column, first, notes) {
  const classes = [
    column.numeric && "number",
    column.start && "group-start",
    column.class,
    content.best && "best",
    content.class,
  ];
  const props = { scope: first ? "row" : null, class: classes.filter(Boolean).join(" ") || null };
  return h(
    first ? "th" : "td",
    props,
    content.node ?? content.text,
    notes,
    content.under && h("span", { class: "under", "aria-hidden": "true" }, content.under),
    content.best && h("span", { class: "sr" }, " (bold)"),
  );
}

/**
 * @param {Line} line
 * @param {TableSpec} spec
 */
function bodyRow(line, spec) {
  const notes = line.notes?.length
    ? h(
        "sup",
        { title: line.notes.map((n) => spec.notes?.[n - 1]).join("\n") },
        line.notes.join(","),
      )
    : null;
  const { evidence } = line;
  return h(
    "tr",
    evidence && { mouseenter: (event) => showEvidence(event.currentTarget, evidence) },
    line.cells.map((content, i) =>
      bodyCell(content, spec.columns[i], i === (spec.head || 0), i === 0 && notes),
    ),
  );
}

/**
 * @param {Block} block
 * @param {TableSpec} spec
 */
function bodyBlock(block, spec) {
  const name =
    block.name &&
    h(
      "tr",
      { class: "block-name" },
      h("th", { scope: "rowgroup", colspan: spec.columns.length }, h("span", null, block.name)),
    );
  return h(
    "tbody",
    { class: block.class },
    name,
    block.lines.map((line) => bodyRow(line, spec)),
  );
}

/** @type {(width: number) => HTMLElement} */
const emptyBody = (width) =>
  h(
    "tbody",
    null,
    h("tr", null, h("td", { colspan: width, class: "empty" }, "No row has all of these words.")),
  );

/**
 * A block's rows that fit the filter, in the order asked for.
 * @param {Block} block
 * @param {string} filter
 * @param {[number, number] | []} order column and direction
 */
function arranged(block, filter, [column, direction = 1]) {
  const lines = block.lines.filter((line) => matches(line, filter));
  if (column !== undefined)
    lines.sort((a, b) => compareCells(a.cells[column], b.cells[column], direction));
  return { ...block, lines };
}

/**
 * What is copied: the columns and rows that are shown.
 * @param {TableSpec} spec
 * @param {Block[]} blocks
 * @returns {Sheet}
 */
function sheetOf(spec, blocks) {
  const kept = spec.columns
    .map((column, i) => (column.silent ? null : i))
    .filter((i) => i !== null);
  /** @type {(line: Line) => SheetRow} */
  const row = (line) => ({
    cells: kept.map((i) => line.cells[i].text),
    means: kept.map((i) => line.cells[i].mean),
    beside: kept.map((i) => line.cells[i].beside),
    bold: kept.map((i) => Boolean(line.cells[i].best)),
    italic: Boolean(line.italic),
    notes: line.notes || [],
  });
  return {
    title: spec.title,
    columns: kept.map((i) => spec.columns[i]),
    notes: spec.notes || [],
    legend: spec.legend || [],
    blocks: blocks.map((block) => block.lines.map(row)),
  };
}

/**
 * A table in a box that scrolls sideways.
 * @param {TableSpec} spec
 * @returns {{node: HTMLElement, sheet: () => Sheet, filter: (words: string) => number}}
 * its node, what is to be copied, and a filter that tells how many rows it leaves
 */
export function sortable(spec) {
  const { columns } = spec;
  const table = h("table", { class: spec.class });
  let filter = "";
  /** @returns {[number, number] | []} */
  const sorting = () => {
    const [column, direction] = place.sorts[spec.id] || [];
    const known = column !== undefined && direction !== undefined && column < columns.length;
    return known ? [column, direction] : [];
  };
  const visible = () => spec.blocks.map((block) => arranged(block, filter, sorting()));

  /** @param {number} i */
  function sortBy(i) {
    const [column, direction] = sorting();
    const first = columns[i].numeric && !columns[i].up ? -1 : 1; // of figures, the largest first
    if (column !== i) place.sorts[spec.id] = [i, first];
    else if (direction === first) place.sorts[spec.id] = [i, -first];
    else delete place.sorts[spec.id]; // the third press gives the table's own order back
    place.keep();
    draw();
    /** @type {HTMLElement | null} */
    const pressed = table.querySelector(`[data-column="${i}"]`);
    pressed?.focus();
    const [now, way = 1] = sorting();
    say(
      now === undefined
        ? "in the table's own order"
        : `sorted by ${columns[i].name}, ${way > 0 ? "ascending" : "descending"}`,
    );
  }

  function draw() {
    const blocks = visible().filter((block) => block.lines.length);
    const [sorted, direction = 1] = sorting();
    /** @type {(i: number) => keyof typeof ARROWS} */
    const order = (i) => (i !== sorted ? "none" : direction > 0 ? "ascending" : "descending");
    table.replaceChildren(
      h("caption", { class: "sr" }, spec.title),
      h(
        "thead",
        null,
        groupRow(columns),
        h(
          "tr",
          null,
          columns.map((column, i) => headerCell(column, i, order(i), () => sortBy(i))),
        ),
      ),
      ...(blocks.length
        ? blocks.map((block) => bodyBlock(block, spec))
        : [emptyBody(columns.length)]),
    );
    return blocks.reduce((sum, block) => sum + block.lines.length, 0);
  }

  draw();
  return {
    node: h(
      "div",
      { class: "scroll", role: "region", "aria-label": spec.title, tabindex: "0" },
      table,
    ),
    sheet: () => sheetOf(spec, visible()),
    filter: (words) => {
      filter = words;
      return draw();
    },
  };
}

/**
 * A field to filter by, which calls back at every key.
 * @param {string} label
 * @param {string} value
 * @param {(value: string) => void} changed
 */
export function filterField(label, value, changed) {
  /** @type {HTMLInputElement} */
  const input = h("input", {
    type: "search",
    value,
    placeholder: "all of these words",
    autocomplete: "off",
    spellcheck: "false",
    input: () => changed(input.value),
  });
  return h("label", { class: "field" }, h("span", null, label), input);
}

/**
 * A choice of one among several.
 * @param {string} label
 * @param {Choice[]} options
 * @param {string} value
 * @param {(value: string) => void} changed
 */
export function choice(label, options, value, changed) {
  /** @type {HTMLSelectElement} */
  const select = h(
    "select",
    { "aria-label": label, change: () => changed(select.value) },
    options.map(([key, name]) => h("option", { value: key, selected: key === value }, name)),
  );
  select.value = value;
  return h("label", { class: "field" }, h("span", null, label), select);
}

/**
 * A box to tick.
 * @param {string} label
 * @param {boolean} on
 * @param {(on: boolean) => void} changed
 */
export function tick(label, on, changed) {
  /** @type {HTMLInputElement} */
  const box = h("input", { type: "checkbox", change: () => changed(box.checked) });
  box.checked = on;
  return h("label", { class: "tick" }, box, label);
}
