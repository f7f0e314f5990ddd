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
 * @param {LineOptions} options
 * @returns {Chart}
 */
export function lineChart(title, series, options) {
  /** @type {Set<string>} */
  const hidden = new Set();
  let log = Boolean(options.log);
  const lines = series.map((line, i) => ({ ...line, index: line.index ?? i }));
  const shown = () => lines.filter((line) => !hidden.has(line.name));
  const redraw = () => chart.redraw();
  const legend =
    (lines.length > 1 || lines.some((line) => line.low)) &&
    h(
      "ul",
      { class: "legend" },
      lines.map((line) => h("li", null, legendButton(line, hidden, redraw))),
    );
  const controls =
    options.switchable &&
    pressed(
      "log scale",
      log,
      (on) => {
        log = on;
        redraw();
      },
      { class: "small" },
    );
  const chart = framed(title, (width) => drawLines(title, shown(), options, log, width), {
    legend,
    controls,
    note: options.note,
  });
  return chart;
}

/**
 * A button that is pressed or not.
 * @param {Child} name
 * @param {boolean} on
 * @param {(on: boolean) => void} changed
 * @param {Attributes} [props]
 */
function pressed(name, on, changed, props = {}) {
  /** @type {HTMLElement} */
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

/** @type {(line: DrawnSeries, hidden: Set<string>, redraw: () => void) => HTMLElement} */
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

/**
 * A curve's line and band, for a legend.
 * @param {DrawnSeries} line
 */
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

/**
 * The least and the largest of those that are usable; infinite where there is none.
 * @param {(Value[] | undefined)[]} lists
 * @param {(value: number) => boolean} usable
 * @returns {[number, number]}
 */
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

/**
 * What the upright axis spans: all values and references, with some room.
 * @param {Series[]} series
 * @param {Reference[]} references
 * @param {boolean} log
 * @param {(value: number) => boolean} usable
 * @returns {[number, number]}
 */
function valueRange(series, references, log, usable) {
  const values = series.flatMap((line) => [line.y, line.low, line.high]);
  const [low, high] = extent([...values, references.map((r) => r.value)], usable);
  if (log) return low === high ? [low / 2, high * 2] : [low / 1.05, high * 1.05];
  const room = low === high ? (Math.abs(low) || 1) * 0.1 : (high - low) * 0.05;
  return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
}

/**
 * @param {string} title
 * @param {DrawnSeries[]} series
 * @param {LineOptions} options
 * @param {boolean} log
 * @param {number} width
 * @returns {Element | Element[]}
 */
function drawLines(title, series, options, log, width) {
  /** @type {(value: number) => boolean} */
  const usable = log ? (v) => v > 0 : () => true;
  /**
   * @param {Value | undefined} v
   * @returns {v is number}
   */
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

/**
 * @param {Reference} reference
 * @param {Box} box
 * @param {Axis} y
 */
function referenceLine({ value, name }, box, y) {
  const at = y.at(value);
  return [
    s("line", { class: "reference", x1: box.left, x2: box.right, y1: at, y2: at }),
    s("text", { class: "reference-name", x: box.right, y: at - 4, "text-anchor": "end" }, name),
  ];
}

/**
 * @param {DrawnSeries} line
 * @param {Scale} x
 * @param {Scale} y
 * @param {Drawable} ok
 */
function curveMarks(line, x, y, ok) {
  const path = {
    class: `line ${color(line.index)}`,
    d: linePath(line, x, y, ok),
    "stroke-dasharray": dash(line.index),
  };
  const dots = line.x.length < 30 ? line.y : [];
  return [
    s("path", path),
    dots.map(
      (value, i) =>
        ok(value) &&
        s("circle", { class: `dot ${color(line.index)}`, cx: x(line.x[i]), cy: y(value), r: 2.4 }),
    ),
  ];
}

/**
 * A curve of one point says more as a number.
 * @param {Series[]} series
 * @param {number} at
 * @param {string} unit
 */
function onePoint(series, at, unit) {
  const where = `${unit} ${short(at)}`;
  /** @type {(line: Series) => HTMLElement} */
  const fact = (line) =>
    h(
      "div",
      null,
      h("dt", null, series.length > 1 ? `${line.name}, ${where}` : where),
      h("dd", null, short(line.y[0])),
    );
  return h("dl", { class: "head-facts" }, series.filter((line) => line.y[0] !== null).map(fact));
}

/**
 * What a screen reader says of a chart.
 * @param {string} title
 * @param {Series[]} series
 * @param {LineOptions} options
 */
function describe(title, series, options) {
  const ends = series.slice(0, 8).map((line) => {
    const i = line.y.map((v) => v !== null).lastIndexOf(true);
    return i < 0 ? "" : `${line.name}: ${short(line.y[i])} at ${short(line.x[i])}`;
  });
  return `${title} over ${options.x || "x"}. Last values: ${ends.filter(Boolean).join("; ")}. Arrow keys read values.`;
}

/**
 * @param {Series} line
 * @param {Scale} x
 * @param {Scale} y
 * @param {Drawable} ok
 */
function linePath(line, x, y, ok) {
  let path = "";
  let pen = false;
  for (let i = 0; i < line.x.length; i += 1) {
    const value = line.y[i];
    if (!ok(value)) {
      pen = false;
      continue;
    }
    path += `${pen ? "L" : "M"}${x(line.x[i]).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = true;
  }
  return path;
}

/**
 * @param {Series} line
 * @param {Scale} x
 * @param {Scale} y
 * @param {Drawable} ok
 */
function bandPath(line, x, y, ok) {
  const up = [];
  const down = [];
  for (const [i, at] of line.x.entries()) {
    const [low, high] = [line.low?.[i], line.high?.[i]];
    if (!ok(low) || !ok(high)) continue;
    up.push(`${x(at).toFixed(1)} ${y(high).toFixed(1)}`);
    down.push(`${x(at).toFixed(1)} ${y(low).toFixed(1)}`);
  }
  if (up.length < 2) return "";
  return `M${up.join("L")}L${down.reverse().join("L")}Z`;
}
