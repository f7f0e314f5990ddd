// Curves: lines over steps, bands over seeds, a read-out under the pointer or the arrow keys.

/**
 * A line chart.
 * @param {string} title
 * @param {{name: string, x: number[], y: (number|null)[], low?: number[], high?: number[], index?: number}[]} series
 * @param {{x?: string, y?: string, log?: boolean, switchable?: boolean, range?: number[], references?: {value: number, name: string}[], note?: string}} options
 */
function lineChart(title, series, options = {}) {
  const state = { log: Boolean(options.log), hidden: new Set(), at: null };
  series.forEach((line, i) => { line.index ??= i; });
  const shown = () => series.filter((line) => !state.hidden.has(line.name));
  let figure;
  const legend = (series.length > 1 || series.some((line) => line.low)) && h("ul", { class: "legend" }, series.map((line) => h("li", null,
    h("button", {
      type: "button", "aria-pressed": "true", title: "Show or hide this curve",
      click: (event) => {
        const on = state.hidden.delete(line.name);
        if (!on) state.hidden.add(line.name);
        event.currentTarget.setAttribute("aria-pressed", String(on));
        figure.redraw();
      },
    }, swatch(line), line.name))));
  const controls = options.switchable && h("button", {
    type: "button", class: "small", "aria-pressed": String(state.log),
    click: (event) => {
      state.log = !state.log;
      event.currentTarget.setAttribute("aria-pressed", String(state.log));
      figure.redraw();
    },
  }, "log scale");
  figure = framed(title, (width) => drawLines(title, shown(), options, state, width), { legend, controls, note: options.note });
  return figure;
}

function swatch(line) {
  return s("svg", { class: "swatch", viewBox: "0 0 24 10", width: 24, height: 10, "aria-hidden": "true" },
    line.low && s("rect", { class: `band ${colour(line.index)}`, x: 0, y: 0, width: 24, height: 10 }),
    s("line", { class: `line ${colour(line.index)}`, x1: 0, x2: 24, y1: 5, y2: 5, "stroke-dasharray": dash(line.index) }));
}

function extent(lists, usable) {
  let low = Infinity;
  let high = -Infinity;
  for (const list of lists) {
    for (const value of list || []) {
      if (value !== null && usable(value)) {
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
  }
  return [low, high];
}

function drawLines(title, series, options, state, width) {
  const height = Math.round(Math.min(300, Math.max(210, width * 0.48)));
  const usable = state.log ? (v) => v > 0 : () => true;
  const references = (options.references || []).filter((r) => usable(r.value));
  let [low, high] = options.range || extent(series.flatMap((line) => [line.y, line.low, line.high]), usable);
  if (!options.range) [low, high] = extent([[low, high].filter(Number.isFinite), references.map((r) => r.value)], usable);
  const [first, last] = options.domain || extent(series.map((line) => line.x), () => true);
  if (!Number.isFinite(low) || !Number.isFinite(first)) return h("p", { class: "empty" }, "Nothing to draw.");
  if (first === last && !options.domain) return onePoint(series, first, options.x);
  if (!options.range) {
    if (low === high) [low, high] = state.log ? [low / 2, high * 2] : [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
    else if (state.log) [low, high] = [low / 1.05, high * 1.05];
    else {
      const room = (high - low) * 0.05;
      [low, high] = [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
    }
  }
  const yTicks = state.log ? logTicks(low, high) : ticks(low, high, 5);
  const margin = 14 + 7 * Math.max(...tickText(yTicks.length ? yTicks : [low]).map((t) => t.length));
  const box = { left: margin, right: width - 12, top: options.y ? 20 : 10, bottom: height - 38 };
  const x = { at: linear(first, last, box.left, box.right), ticks: ticks(first, last, Math.max(2, Math.min(7, Math.floor(width / 85)))), label: options.x };
  const y = { at: (state.log ? logarithmic : linear)(low, high, box.bottom, box.top), ticks: yTicks, label: options.y };
  const ok = (v) => v !== null && v !== undefined && usable(v);
  const marks = s("g", { class: "marks" });
  const root = s("svg", {
    viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", tabindex: "0", "aria-label": describe(title, series, options),
  },
  axes(box, x, y),
  references.map((r) => [
    s("line", { class: "reference", x1: box.left, x2: box.right, y1: y.at(r.value), y2: y.at(r.value) }),
    s("text", { class: "reference-name", x: box.right, y: y.at(r.value) - 4, "text-anchor": "end", "aria-hidden": "true" }, r.name),
  ]),
  series.map((line) => line.low && s("path", { class: `band ${colour(line.index)}`, d: bandPath(line, x.at, y.at, ok) })),
  series.map((line) => [
    s("path", { class: `line ${colour(line.index)}`, d: linePath(line, x.at, y.at, ok), "stroke-dasharray": dash(line.index) }),
    line.x.length < 30 && line.x.map((at, i) => ok(line.y[i]) && s("circle", { class: `dot ${colour(line.index)}`, cx: x.at(at), cy: y.at(line.y[i]), r: 2.4 })),
  ]),
  marks);
  const readout = h("div", { class: "readout", hidden: true });
  attachReadout(root, marks, readout, series, { x, y, box, width, first, last, ok, unit: options.x });
  return [root, readout];
}

/** A curve of one point says more as a number. */
function onePoint(series, at, unit) {
  return h("dl", { class: "head-facts" }, series.filter((line) => line.y[0] !== null).map((line) => h("div", null,
    h("dt", null, series.length > 1 ? `${line.name}, ${unit} ${short(at)}` : `${unit} ${short(at)}`), h("dd", null, short(line.y[0])))));
}

function describe(title, series, options) {
  const ends = series.slice(0, 8).map((line) => {
    const i = line.y.findLastIndex((v) => v !== null);
    return i < 0 ? "" : `${line.name}: ${short(line.y[i])} at ${short(line.x[i])}`;
  });
  return `${title} over ${options.x || "x"}. Last values: ${ends.filter(Boolean).join("; ")}. Arrow keys read values.`;
}

function linePath(line, x, y, ok) {
  let path = "";
  let pen = false;
  for (let i = 0; i < line.x.length; i += 1) {
    if (!ok(line.y[i])) { pen = false; continue; }
    path += `${pen ? "L" : "M"}${x(line.x[i]).toFixed(1)} ${y(line.y[i]).toFixed(1)}`;
    pen = true;
  }
  return path;
}

function bandPath(line, x, y, ok) {
  const there = line.x.map((_, i) => i).filter((i) => ok(line.low[i]) && ok(line.high[i]));
  if (there.length < 2) return "";
  const point = (i, values) => `${x(line.x[i]).toFixed(1)} ${y(values[i]).toFixed(1)}`;
  const up = there.map((i) => point(i, line.high));
  const down = there.map((i) => point(i, line.low)).reverse();
  return `M${up.join("L")}L${down.join("L")}Z`;
}

function nearest(sorted, value) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
}

function attachReadout(root, marks, readout, series, view) {
  const { x, y, box, width, first, last, ok, unit } = view;
  const longest = series.reduce((best, line) => (line.x.length > (best ? best.x.length : 0) ? line : best), null);
  let at = null;
  const show = (value, aloud) => {
    at = longest.x[nearest(longest.x, value)];
    const px = x.at(at);
    const rows = series.map((line) => {
      const i = nearest(line.x, at);
      return { line, value: line.y[i], low: line.low?.[i], high: line.high?.[i], px: x.at(line.x[i]) };
    }).filter((row) => ok(row.value) && Math.abs(row.px - px) < 40);
    rows.sort((a, b) => b.value - a.value);
    marks.replaceChildren(
      s("line", { class: "cursor", x1: px, x2: px, y1: box.top, y2: box.bottom }),
      ...rows.map((row) => s("circle", { class: `dot ${colour(row.line.index)}`, cx: row.px, cy: y.at(row.value), r: 3.6 })));
    readout.replaceChildren(h("div", { class: "readout-x" }, `${unit || ""} ${short(at)}`.trim()),
      ...rows.map((row) => h("div", null, swatch(row.line), h("span", null, row.line.name), h("b", null, short(row.value)),
        row.low !== undefined && row.low !== row.high && h("small", null, ` ${short(row.low)}–${short(row.high)}`))));
    readout.hidden = false;
    const right = px > width / 2;
    readout.style.left = right ? "" : `${px + 10}px`;
    readout.style.right = right ? `${width - px + 10}px` : "";
    if (aloud) say(`${unit || ""} ${short(at)}: ${rows.map((row) => `${row.line.name} ${short(row.value)}`).join(", ")}`);
  };
  const hide = () => { readout.hidden = true; marks.replaceChildren(); };
  if (!longest) return;
  fill(root, {
    pointermove: (event) => {
      const bounds = root.getBoundingClientRect();
      const px = ((event.clientX - bounds.left) / bounds.width) * width;
      show(first + ((px - box.left) / (box.right - box.left)) * (last - first), false);
    },
    pointerleave: hide,
    blur: hide,
    keydown: (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 }[event.key];
      if (event.key === "Escape") hide();
      if (!move) return;
      event.preventDefault();
      const start = at === null ? (move > 0 ? -1 : longest.x.length) : nearest(longest.x, at);
      const i = start + move;
      show(longest.x[Math.max(0, Math.min(longest.x.length - 1, i))], true);
    },
  }, []);
}
