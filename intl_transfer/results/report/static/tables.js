// Tables that sort by a press on a column's name, and filter by words.

/**
 * @typedef {{value?: number|string|null, text: string, node?: Node|Node[], best?: boolean, class?: string}} Cell
 * @typedef {{cells: Cell[], words?: string, italic?: boolean, notes?: number[]}} Line
 */

const cell = (text, more = {}) => ({ text: text ?? "", value: text, ...more });
const figure = (value, digits, more = {}) => ({ value, text: fixed(value, digits), ...more });

function compareCells(a, b, direction) {
  const [x, y] = [a.value, b.value];
  const missing = (v) => v === null || v === undefined || v === "";
  if (missing(x) || missing(y)) return Number(missing(x)) - Number(missing(y)); // blanks last, either way
  const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", { numeric: true });
  return order * direction;
}

const matches = (line, filter) => {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  const text = `${line.words || ""} ${line.cells.map((c) => c.text).join(" ")}`.toLowerCase();
  return words.every((word) => text.includes(word));
};

/**
 * A table in a box that scrolls sideways.
 * @param {{id: string, title: string, columns: {name: string, group?: string, numeric?: boolean, fixed?: boolean, hint?: string, up?: boolean}[],
 *   blocks: {name?: string, class?: string, lines: Line[]}[], notes?: string[]}} spec
 */
function sortable(spec) {
  const { columns } = spec;
  const table = h("table", { class: spec.class });
  const state = { filter: "" };
  const sheet = () => ({
    title: spec.title, columns: columns.filter((c) => !c.silent), notes: spec.notes || [], legend: spec.legend || [],
    blocks: visible().map((block) => block.lines.map((line) => {
      const cells = line.cells.filter((_, i) => !columns[i].silent);
      return { cells: cells.map((c) => c.text), bold: cells.map((c) => Boolean(c.best)), italic: Boolean(line.italic), notes: line.notes || [] };
    })),
  });

  function visible() {
    const [column, direction] = place.sorts[spec.id] || [];
    return spec.blocks.map((block) => {
      const lines = block.lines.filter((line) => matches(line, state.filter));
      if (column < columns.length) lines.sort((a, b) => compareCells(a.cells[column], b.cells[column], direction));
      return { ...block, lines };
    });
  }

  function sortBy(i) {
    const [column, direction] = place.sorts[spec.id] || [];
    const first = columns[i].numeric && !columns[i].up ? -1 : 1; // of figures, the largest first
    if (column !== i) place.sorts[spec.id] = [i, first];
    else if (direction === first) place.sorts[spec.id] = [i, -first];
    else delete place.sorts[spec.id]; // the third press gives the table's own order back
    place.keep();
    draw();
    table.querySelector(`[data-column="${i}"]`).focus();
    const now = place.sorts[spec.id];
    say(now ? `sorted by ${columns[i].name}, ${now[1] > 0 ? "ascending" : "descending"}` : "in the table's own order");
  }

  function header(column, i) {
    const [sorted, direction] = place.sorts[spec.id] || [];
    const order = sorted !== i ? "none" : direction > 0 ? "ascending" : "descending";
    const name = column.group ? `${column.group} ${column.name}` : column.name;
    return h("th", { scope: "col", class: `${column.numeric ? "number" : ""} ${column.start ? "group-start" : ""} ${column.class || ""}`, "aria-sort": column.fixed ? null : order },
      column.fixed ? h("span", { class: column.silent ? "sr" : "" }, column.name) : h("button", { type: "button", class: "sort", "data-column": i, "aria-label": `sort by ${name}`, title: column.hint, click: () => sortBy(i) },
        column.numeric ? [arrow(order), column.name] : [column.name, arrow(order)]));
  }

  const arrow = (order) => h("span", { class: "arrow", "aria-hidden": "true" }, { none: "↕", ascending: "↑", descending: "↓" }[order]);

  function groups() {
    if (!columns.some((c) => c.group)) return null;
    const made = [];
    for (const column of columns) {
      const last = made.at(-1);
      if (last && column.group && last.name === column.group) last.span += 1;
      else made.push({ name: column.group || "", span: 1, class: column.class });
    }
    return h("tr", { class: "groups" }, made.map((g) => (g.name ? h("th", { scope: "colgroup", colspan: g.span, class: "group-start" }, g.name) : h("td", { class: g.class }))));
  }

  function row(line) {
    return h("tr", { class: line.class }, line.cells.map((c, i) => {
      const column = columns[i];
      const tag = i === (spec.head || 0) ? "th" : "td";
      return h(tag, {
        scope: tag === "th" ? "row" : null,
        class: [column.numeric && "number", column.start && "group-start", column.class, c.best && "best", c.class].filter(Boolean).join(" ") || null,
      }, c.node ?? c.text, i === 0 && line.notes?.length ? h("sup", { title: line.notes.map((n) => spec.notes[n - 1]).join("\n") }, line.notes.join(",")) : null,
      c.under && h("span", { class: "under", "aria-hidden": "true" }, c.under), c.best && h("span", { class: "sr" }, " (best)"));
    }));
  }

  function draw() {
    const blocks = visible();
    const count = blocks.reduce((sum, block) => sum + block.lines.length, 0);
    table.replaceChildren(...[
      h("caption", { class: "sr" }, spec.title),
      h("thead", null, groups(), h("tr", null, columns.map(header))),
      ...blocks.filter((block) => block.lines.length).map((block) => h("tbody", { class: block.class },
        block.name && h("tr", { class: "block-name" }, h("th", { scope: "rowgroup", colspan: columns.length }, h("span", null, block.name))),
        block.lines.map(row))),
      count ? null : h("tbody", null, h("tr", null, h("td", { colspan: columns.length, class: "empty" }, "No row has all of these words."))),
    ].filter(Boolean));
    return count;
  }

  draw();
  const box = h("div", { class: "scroll", role: "region", "aria-label": spec.title, tabindex: "0" }, table);
  return { node: box, sheet, filter: (words) => { state.filter = words; return draw(); } };
}

/** A field to filter by, which calls back at every key. */
function filterField(label, value, changed) {
  const input = h("input", { type: "search", value, placeholder: "all of these words", autocomplete: "off", spellcheck: "false", input: () => changed(input.value) });
  return h("label", { class: "field" }, h("span", null, label), input);
}

function choice(label, options, value, changed) {
  const select = h("select", { "aria-label": label, change: () => changed(select.value) }, options.map(([key, name]) => h("option", { value: key, selected: key === value }, name)));
  select.value = value;
  return h("label", { class: "field" }, h("span", null, label), select);
}

function tick(label, on, changed) {
  const box = h("input", { type: "checkbox", change: () => changed(box.checked) });
  box.checked = on;
  return h("label", { class: "tick" }, box, label);
}
