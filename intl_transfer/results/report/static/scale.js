// What all charts share: ticks, scales, colors, and a frame that is drawn at the width it has.

import { h, s } from "./core.js";

const COLORS = 8;
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 2", "1 2", "12 4", "4 4"];
/**
 * The class that colors a series.
 * @type {(index: number) => string}
 */
export const color = (index) => `c${index % COLORS}`;
/**
 * The dashes of a series: colors come again after eight, the dashes then differ.
 * @type {(index: number) => string}
 */
export const dash = (index) => DASHES[(index + Math.floor(index / COLORS)) % DASHES.length];

/**
 * Round values that span a range, about so many.
 * @param {number} low
 * @param {number} high
 */
export function ticks(low, high, count = 5) {
  if (!(high > low)) return [low];
  const raw = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((m) => m >= raw * 0.999) ?? power;
  const made = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1)
    made.push(i * step);
  return made;
}

/**
 * The same on a logarithmic axis.
 * @param {number} low above 0
 * @param {number} high
 */
export function logTicks(low, high) {
  const made = [];
  const steps =
    Math.log10(high / low) > 2.5
      ? [1]
      : Math.log10(high / low) > 1
        ? [1, 2, 5]
        : [1, 1.5, 2, 3, 4, 5, 7];
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p += 1) {
    for (const m of steps)
      if (m * 10 ** p >= low * 0.999 && m * 10 ** p <= high * 1.001) made.push(m * 10 ** p);
  }
  return made;
}

/**
 * Ticks as text, with as many digits as tell them apart.
 * @param {number[]} values
 */
export function tickText(values) {
  const largest = Math.max(...values.map(Math.abs));
  if (largest >= 1e6 || (largest > 0 && largest < 1e-3))
    return values.map((v) =>
      v ? Number(v.toPrecision(3)).toExponential().replace("e+", "e") : "0",
    );
  const least = Math.min(...values);
  if (least > 0 && largest / least >= 1e4)
    return values.map((v) =>
      v < 1e-3 || v >= 1e6 ? v.toExponential().replace("e+", "e") : String(v),
    );
  if (largest >= 1e4 && values.every((v) => v % 1000 === 0))
    return values.map((v) => (v ? `${v / 1000}k` : "0"));
  return values.map((v) => String(Number(v.toPrecision(6))).replace("-", "−"));
}

/**
 * Values from low to high, at places from one to the other.
 * @param {number} low
 * @param {number} high
 * @param {number} from
 * @param {number} to
 * @returns {Scale}
 */
export function linear(low, high, from, to) {
  const span = high - low || 1;
  return (value) => from + ((value - low) / span) * (to - from);
}

/**
 * The same by the logarithm; values are above 0.
 * @param {number} low
 * @param {number} high
 * @param {number} from
 * @param {number} to
 * @returns {Scale}
 */
export function logarithmic(low, high, from, to) {
  const inner = linear(Math.log(low), Math.log(high), from, to);
  return (value) => inner(Math.log(value));
}

/**
 * A chart that is drawn again when its width changes.
 * @param {Child} title
 * @param {(width: number) => (Node | string) | (Node | string)[]} draw
 * @param {{class?: string, legend?: Child, controls?: Child, note?: Child}} options
 * @returns {Chart}
 */
export function framed(title, draw, options = {}) {
  const canvas = h("div", { class: "canvas" });
  const figure = h(
    "figure",
    { class: `chart ${options.class || ""}` },
    h("figcaption", null, h("span", { class: "chart-title" }, title), options.controls),
    options.legend,
    canvas,
    options.note && h("p", { class: "chart-note" }, options.note),
  );
  let drawn = 0;
  /** @type {(width: number) => void} */
  const redraw = (width) => {
    drawn = width;
    canvas.replaceChildren(...[draw(width)].flat());
  };
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && Math.abs(width - drawn) > 1) redraw(width);
  }).observe(canvas);
  return Object.assign(figure, { redraw: () => void (drawn && redraw(drawn)) });
}

/**
 * Axes with ticks, grid lines and names.
 * @param {Box} box
 * @param {Axis} x
 * @param {Axis} y
 */
export function axes(box, x, y) {
  const xTexts = tickText(x.ticks);
  const yTexts = tickText(y.ticks);
  return s(
    "g",
    { class: "axes" },
    y.ticks.map((value, i) => [
      s("line", {
        class: "grid",
        x1: box.left,
        x2: box.right,
        y1: y.at(value),
        y2: y.at(value),
      }),
      s("text", { x: box.left - 7, y: y.at(value), dy: "0.34em", "text-anchor": "end" }, yTexts[i]),
    ]),
    x.ticks.map((value, i) => [
      s("line", {
        class: "tick",
        x1: x.at(value),
        x2: x.at(value),
        y1: box.bottom,
        y2: box.bottom + 4,
      }),
      s("text", { x: x.at(value), y: box.bottom + 17, "text-anchor": "middle" }, xTexts[i]),
    ]),
    s("line", { class: "axis", x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom }),
    x.label &&
      s(
        "text",
        { class: "axis-name", x: box.right, y: box.bottom + 32, "text-anchor": "end" },
        x.label,
      ),
    y.label && s("text", { class: "axis-name", x: 0, y: 10 }, y.label),
  );
}
