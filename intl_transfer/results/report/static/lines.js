// Curves: lines over steps, bands over seeds, a read-out under the pointer or the arrow keys.

import { h, s, short } from "./core.js";
import { attachReadout } from "./readout.js";
import {
  axes,
  color,
  dash,
  framed,
  linear,
  logTicks,
  logarithmic,
  tickText,
  ticks,
} from "./scale.js";

/**
 * A line chart.
 * @param {string} title
 * @param {Series[]} series
 * @param {{x?: string, y?: string, log?: boolean, logX?: boolean, switchable?: boolean, range?: number[], domain?: number[],
 *   references?: {value: number, name: string}[], note?: string}} options
 * @returns {Chart}
 */
export function lineChart(title, series, options = {}) {
  const state = { log: Boolean(options.log), hidden: new Set() };
  series.forEach((line, i) => {
    line.index ??= i;
  });
  const shown = () => series.filter((line) => !state.hidden.has(line.name));
  const redraw = () => chart.redraw();
  const legend =
    (series.length > 1 || series.some((line) => line.low)) &&
    h(
      "ul",
      { class: "legend" },
      series.map((line) => h("li", null, legendButton(line, state.hidden, redraw))),
    );
  const controls =
    options.switchable &&
    pressed(
      "log scale",
      state.log,
      (on) => {
        state.log = on;
        redraw();
      },
      { class: "small" },
    );
  const chart = framed(title, (width) => drawLines(title, shown(), options, state.log, width), {
    legend,
    controls,
    note: options.note,
  });
  return chart;
}

/** A button that is pressed or not. */
function pressed(name, on, changed, props = {}) {
  const button = h(
    "button",
    {
      type: "button",
      "aria-pressed": String(on),
      ...props,
      click: () => {
        const now = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", String(now));
        changed(now);
      },
    },
    name,
  );
  return button;
}

const legendButton = (line, hidden, redraw) =>
  pressed(
    [swatch(line), line.name],
    true,
    (on) => {
      if (on) hidden.delete(line.name);
      else hidden.add(line.name);
      redraw();
    },
    { title: "Show or hide this curve" },
  );

export function swatch(line) {
  return s(
    "svg",
    { class: "swatch", viewBox: "0 0 24 10", width: 24, height: 10, "aria-hidden": "true" },
    line.low &&
      s("rect", { class: `band ${color(line.index)}`, x: 0, y: 0, width: 24, height: 10 }),
    s("line", {
      class: `line ${color(line.index)}`,
      x1: 0,
      x2: 24,
      y1: 5,
      y2: 5,
      "stroke-dasharray": dash(line.index),
    }),
  );
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

/** What the upright axis spans: all values and references, with some room. */
function valueRange(series, references, log, usable) {
  const values = series.flatMap((line) => [line.y, line.low, line.high]);
  const [low, high] = extent([...values, references.map((r) => r.value)], usable);
  if (log) return low === high ? [low / 2, high * 2] : [low / 1.05, high * 1.05];
  const room = low === high ? (Math.abs(low) || 1) * 0.1 : (high - low) * 0.05;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

function drawLines(title, series, options, log, width) {
  const usable = log ? (v) => v > 0 : () => true;
  const ok = (v) => v !== null && v !== undefined && usable(v);
  const references = (options.references || []).filter((r) => usable(r.value));
  const [low, high] = options.range || valueRange(series, references, log, usable);
  const [first, last] =
    options.domain ||
    extent(
      series.map((line) => line.x),
      () => true,
    );
  if (!Number.isFinite(low) || !Number.isFinite(first))
    return h("p", { class: "empty" }, "Nothing to draw.");
  if (first === last) return onePoint(series, first, options.x);

  const height = Math.round(Math.min(300, Math.max(210, width * 0.48)));
  const yTicks = log ? logTicks(low, high) : ticks(low, high, 5);
  const letters = Math.max(0, ...tickText(yTicks).map((text) => text.length));
  const box = {
    left: 14 + 7 * letters,
    right: width - 12,
    top: options.y ? 20 : 10,
    bottom: height - 38,
  };
  const x = {
    at: (options.logX ? logarithmic : linear)(first, last, box.left, box.right),
    ticks: options.logX
      ? logTicks(first, last)
      : ticks(first, last, Math.max(2, Math.min(7, Math.floor(width / 85)))),
    label: options.x,
  };
  const y = {
    at: (log ? logarithmic : linear)(low, high, box.bottom, box.top),
    ticks: yTicks,
    label: options.y,
  };

  const marks = s("g", { class: "marks" });
  const props = { viewBox: `0 0 ${width} ${height}`, width: "100%", role: "img", tabindex: "0" };
  const root = s(
    "svg",
    { ...props, "aria-label": describe(title, series, options) },
    axes(box, x, y),
    references.map((r) => referenceLine(r, box, y)),
    series.map(
      (line) =>
        line.low &&
        s("path", { class: `band ${color(line.index)}`, d: bandPath(line, x.at, y.at, ok) }),
    ),
    series.map((line) => curveMarks(line, x.at, y.at, ok)),
    marks,
  );
  const readout = h("div", { class: "readout", hidden: true });
  attachReadout(root, marks, readout, series, {
    x,
    y,
    box,
    width,
    first,
    last,
    ok,
    log: options.logX,
    unit: options.x,
  });
  return [root, readout];
}

function referenceLine({ value, name }, box, y) {
  const at = y.at(value);
  return [
    s("line", { class: "reference", x1: box.left, x2: box.right, y1: at, y2: at }),
    s("text", { class: "reference-name", x: box.right, y: at - 4, "text-anchor": "end" }, name),
  ];
}

function curveMarks(line, x, y, ok) {
  const path = {
    class: `line ${color(line.index)}`,
    d: linePath(line, x, y, ok),
    "stroke-dasharray": dash(line.index),
  };
  const dots = line.x.length < 30 ? line.x.map((_, i) => i).filter((i) => ok(line.y[i])) : [];
  return [
    s("path", path),
    dots.map((i) =>
      s("circle", {
        class: `dot ${color(line.index)}`,
        cx: x(line.x[i]),
        cy: y(line.y[i]),
        r: 2.4,
      }),
    ),
  ];
}

/** A curve of one point says more as a number. */
function onePoint(series, at, unit) {
  const where = `${unit} ${short(at)}`;
  const fact = (line) =>
    h(
      "div",
      null,
      h("dt", null, series.length > 1 ? `${line.name}, ${where}` : where),
      h("dd", null, short(line.y[0])),
    );
  return h("dl", { class: "head-facts" }, series.filter((line) => line.y[0] !== null).map(fact));
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
    if (!ok(line.y[i])) {
      pen = false;
      continue;
    }
    path += `${pen ? "L" : "M"}${x(line.x[i]).toFixed(1)} ${y(line.y[i]).toFixed(1)}`;
    pen = true;
  }
  return path;
}

function bandPath(line, x, y, ok) {
  const there = line.x.map((_, i) => i).filter((i) => ok(line.low[i]) && ok(line.high[i]));
  if (there.length < 2) return "";
  const corner = (i, values) => `${x(line.x[i]).toFixed(1)} ${y(values[i]).toFixed(1)}`;
  const up = there.map((i) => corner(i, line.high));
  const down = there.map((i) => corner(i, line.low)).reverse();
  return `M${up.join("L")}L${down.join("L")}Z`;
}
