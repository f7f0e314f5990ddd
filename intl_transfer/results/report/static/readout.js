// What is under the pointer, or under the arrow keys, in numbers.

import { fill, h, own, s, say, short } from "./core.js";
import { swatch } from "./lines.js";
import { color } from "./scale.js";

/**
 * The index of what is nearest to a value.
 * @param {number[]} sorted
 * @param {number} value
 */
export function nearest(sorted, value) {
  let low = 0;
  let high = sorted.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle;
    else high = middle;
  }
  return Math.abs(sorted[low] - value) <= Math.abs(sorted[high] - value) ? low : high;
}

/**
 * The points of all curves nearest to a place, the highest first.
 * @param {number} at
 * @param {DrawnSeries[]} series
 * @param {View} view
 * @returns {Reading[]}
 */
function pointsAt(at, series, { x, ok }) {
  const px = x.at(at);
  const rows = series.flatMap((line) => {
    const i = nearest(line.x, at);
    const [value, place] = [line.y[i], x.at(line.x[i])];
    if (!ok(value) || Math.abs(place - px) >= 40) return [];
    return [{ line, value, low: line.low?.[i], high: line.high?.[i], px: place }];
  });
  return rows.sort((a, b) => b.value - a.value);
}

/** @param {Reading} reading */
function readoutRow({ line, value, low, high }) {
  return h(
    "div",
    null,
    swatch(line),
    h("span", null, line.name),
    h("b", null, short(value)),
    low !== undefined && low !== high && h("small", null, ` ${short(low)}–${short(high)}`),
  );
}

const STEPS = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -1e9, End: 1e9 };

/**
 * Shows what the curves are under the pointer, or under the arrow keys.
 * @param {SVGSVGElement} root
 * @param {SVGGElement} marks
 * @param {HTMLElement} readout
 * @param {DrawnSeries[]} series
 * @param {View} view
 */
export function attachReadout(root, marks, readout, series, view) {
  const { x, y, box, width, first, last, log, unit } = view;
  if (!series.length) return;
  const longest = series.reduce((best, line) => (line.x.length > best.x.length ? line : best));
  /** @type {number | null} */
  let at = null;

  /** @type {(value: number, aloud: boolean) => void} */
  const read = (value, aloud) => {
    at = longest.x[nearest(longest.x, value)];
    const px = x.at(at);
    const where = `${unit || ""} ${short(at)}`.trim();
    const rows = pointsAt(at, series, view);
    marks.replaceChildren(
      s("line", { class: "cursor", x1: px, x2: px, y1: box.top, y2: box.bottom }),
      ...rows.map((row) =>
        s("circle", {
          class: `dot ${color(row.line.index)}`,
          cx: row.px,
          cy: y.at(row.value),
          r: 3.6,
        }),
      ),
    );
    readout.replaceChildren(h("div", { class: "readout-x" }, where), ...rows.map(readoutRow));
    readout.hidden = false;
    const right = px > width / 2;
    readout.style.left = right ? "" : `${px + 10}px`;
    readout.style.right = right ? `${width - px + 10}px` : "";
    if (aloud)
      say(`${where}: ${rows.map((row) => `${row.line.name} ${short(row.value)}`).join(", ")}`);
  };
  const hide = () => {
    readout.hidden = true;
    marks.replaceChildren();
  };
  /** @type {(event: PointerEvent) => void} */
  const hover = (event) => {
    const bounds = root.getBoundingClientRect();
    const px = ((event.clientX - bounds.left) / bounds.width) * width;
    const share = (px - box.left) / (box.right - box.left);
    read(log ? first * (last / first) ** share : first + share * (last - first), false);
  };
  /** @type {(event: KeyboardEvent) => void} */
  const key = (event) => {
    if (event.key === "Escape") hide();
    const move = own(STEPS, event.key);
    if (!move) return;
    event.preventDefault();
    const start = at === null ? (move > 0 ? -1 : longest.x.length) : nearest(longest.x, at);
    read(longest.x[Math.max(0, Math.min(longest.x.length - 1, start + move))], true);
  };
  fill(root, { pointermove: hover, pointerleave: hide, blur: hide, keydown: key }, []);
}
