// Horizontal charts of named figures: bars for one run, pairs of points for two, seeds as points.

import { fixed, h, place, s, signed } from "./core.js";
import { color, framed, linear, tickText, ticks } from "./scale.js";

/** @type {(text: string, room: number) => string} */
const clipped = (text, room) =>
  text.length > room ? `${text.slice(0, Math.max(1, room - 1))}…` : text;

/**
 * Room for names at the left, in pixels, and how many letters fit.
 * @param {string[]} names
 * @param {number} width
 */
function nameRoom(names, width) {
  const longest = Math.max(4, ...names.map((name) => name.length));
  const room = Math.min(longest * 7 + 12, Math.round(width * 0.42));
  return { room, letters: Math.floor((room - 10) / 7) };
}

/**
 * Grid lines of a figure that runs to the right.
 * @param {number[]} values
 * @param {Scale} at
 * @param {Box} box
 */
function upright(values, at, box) {
  const texts = tickText(values);
  return values.map((value, i) => [
    s("line", { class: "grid", x1: at(value), x2: at(value), y1: box.top, y2: box.bottom }),
    s("text", { x: at(value), y: box.bottom + 15, "text-anchor": "middle" }, texts[i]),
  ]);
}

/**
 * A name at the left, which may lead to a page.
 * @param {{name: string, href?: FileText}} item
 * @param {number} y
 * @param {number} room
 * @param {number} letters
 */
function rowName(item, y, room, letters) {
  const text = s(
    "text",
    { class: "row-name", x: room - 8, y, dy: "0.34em", "text-anchor": "end" },
    clipped(item.name, letters),
    s("title", null, item.name),
  );
  return item.href ? s("a", { href: item.href }, text) : text;
}

/**
 * One figure a name, as bars.
 * @param {string} title
 * @param {NamedValue[]} items
 * @param {{high?: number, index?: number, note?: Child}} options
 */
export function barChart(title, items, options = {}) {
  return framed(
    title,
    (width) => {
      const step = 22;
      const { room, letters } = nameRoom(
        items.map((item) => item.name),
        width,
      );
      const high = options.high || Math.max(1e-9, ...items.map((item) => item.value ?? 0));
      const box = { left: room, right: width - 44, top: 4, bottom: 4 + items.length * step };
      const at = linear(0, high, box.left, box.right);
      return s(
        "svg",
        {
          viewBox: `0 0 ${width} ${box.bottom + 22}`,
          width: "100%",
          role: "img",
          "aria-label": `${title}: ${items.map((i) => `${i.name} ${i.value === null ? "none" : fixed(i.value, 1)}`).join(", ")}`,
        },
        upright(ticks(0, high, Math.max(2, Math.floor(width / 110))), at, box),
        items.map((item, i) => {
          const y = box.top + (i + 0.5) * step;
          return s(
            "g",
            { class: "bar-row" },
            rowName(item, y, room, letters),
            item.value !== null &&
              s("rect", {
                class: `bar ${color(options.index || 0)}`,
                x: box.left,
                y: y - 6,
                width: Math.max(1, at(item.value) - box.left),
                height: 12,
                rx: 1.5,
              }),
            s(
              "text",
              {
                class: "value",
                x: (item.value === null ? box.left : at(item.value)) + 6,
                y,
                dy: "0.34em",
              },
              fixed(item.value, place.digits + 1),
            ),
          );
        }),
        s("line", {
          class: "axis",
          x1: box.left,
          x2: box.left,
          y1: box.top,
          y2: box.bottom,
        }),
      );
    },
    { class: "wide", note: options.note },
  );
}

/**
 * Two figures a name, joined, with their difference.
 * @param {string} title
 * @param {NamedPair[]} items
 * @param {string[]} names of the two runs
 */
export function pairChart(title, items, names) {
  const legend = h(
    "ul",
    { class: "legend" },
    names.map((name, i) => h("li", null, pointSwatch(i), name)),
  );
  return framed(
    title,
    (width) => {
      const step = 22;
      const { room, letters } = nameRoom(
        items.map((item) => item.name),
        width,
      );
      const values = items.flatMap((item) => [item.a, item.b]).filter((v) => v !== null);
      const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
      const box = {
        left: room + 6,
        right: width - 56,
        top: 4,
        bottom: 4 + items.length * step,
      };
      const at = linear(Math.min(low, high - 1), high, box.left, box.right);
      return s(
        "svg",
        {
          viewBox: `0 0 ${width} ${box.bottom + 22}`,
          width: "100%",
          role: "img",
          "aria-label": `${title}, ${names.join(" against ")}`,
        },
        upright(
          ticks(Math.min(low, high - 1), high, Math.max(2, Math.floor(width / 110))),
          at,
          box,
        ),
        items.map((item, i) => {
          const y = box.top + (i + 0.5) * step;
          const { a, b } = item;
          const both = a !== null && b !== null;
          return s(
            "g",
            { class: "bar-row" },
            rowName(item, y, room, letters),
            both &&
              s("line", {
                class: "pair",
                x1: at(a),
                x2: at(b),
                y1: y,
                y2: y,
              }),
            [a, b].map((value, k) => value !== null && point(k, at(value), y)),
            both &&
              s(
                "text",
                {
                  class: "value",
                  x: width - 2,
                  y,
                  dy: "0.34em",
                  "text-anchor": "end",
                },
                signed(b - a, 1),
              ),
          );
        }),
      );
    },
    { class: "wide", legend, note: "At the right: the second less the first." },
  );
}

/**
 * @param {number} k
 * @param {number} x
 * @param {number} y
 */
function point(k, x, y) {
  // Told apart by shape, too.
  if (k % 2 === 0) return s("circle", { class: `point ${color(k)}`, cx: x, cy: y, r: 5 });
  return s("rect", {
    class: `point ${color(k)}`,
    x: x - 4.5,
    y: y - 4.5,
    width: 9,
    height: 9,
    transform: `rotate(45 ${x} ${y})`,
  });
}

/**
 * A run's point, for a legend.
 * @type {(k: number) => SVGSVGElement}
 */
export const pointSwatch = (k) =>
  s(
    "svg",
    { class: "swatch", viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true" },
    point(k, 7, 7),
  );

/**
 * Rows of a table: the mean, its spread and every seed.
 * @param {string} title
 * @param {NamedMean[]} items
 * @param {{x?: string, note?: Child}} options
 */
export function seedChart(title, items, options = {}) {
  return framed(
    title,
    (width) => {
      const step = 28;
      const { room, letters } = nameRoom(
        items.map((item) => item.name),
        width,
      );
      const values = items.flatMap((item) => [
        item.mean - (item.std || 0),
        item.mean + (item.std || 0),
        ...item.seeds,
      ]);
      let [low, high] = [Math.min(...values), Math.max(...values)];
      if (high - low < 0.01) [low, high] = [low - 0.5, high + 0.5]; // nothing to spread out
      const pad = (high - low) * 0.06;
      const box = {
        left: room + 6,
        right: width - 64,
        top: 4,
        bottom: 4 + items.length * step,
      };
      const at = linear(low - pad, high + pad, box.left, box.right);
      return s(
        "svg",
        {
          viewBox: `0 0 ${width} ${box.bottom + 34}`,
          width: "100%",
          role: "group",
          "aria-label": `${title}: ${items.map((i) => `${i.name} ${fixed(i.mean, 1)}`).join(", ")}`,
        },
        upright(ticks(low - pad, high + pad, Math.max(2, Math.floor(width / 100))), at, box),
        s(
          "text",
          { class: "axis-name", x: box.right, y: box.bottom + 30, "text-anchor": "end" },
          options.x || "",
        ),
        items.map((item, i) => {
          const y = box.top + (i + 0.5) * step;
          return s(
            "g",
            { class: `bar-row ${item.published ? "published" : ""}` },
            rowName(item, y, room, letters),
            item.std !== null &&
              s("line", {
                class: "whisker",
                x1: at(item.mean - item.std),
                x2: at(item.mean + item.std),
                y1: y,
                y2: y,
              }),
            item.seeds.length > 1 &&
              item.seeds.map((value) =>
                s("circle", { class: "seed", cx: at(value), cy: y + 9, r: 2.2 }),
              ),
            item.published
              ? s("rect", {
                  class: "point hollow",
                  x: at(item.mean) - 4,
                  y: y - 4,
                  width: 8,
                  height: 8,
                  transform: `rotate(45 ${at(item.mean)} ${y})`,
                })
              : s("circle", { class: "point c0", cx: at(item.mean), cy: y, r: 5 }),
            s(
              "text",
              { class: "value", x: width - 2, y, dy: "0.34em", "text-anchor": "end" },
              fixed(item.mean, place.digits),
            ),
          );
        }),
      );
    },
    { class: "wide", note: options.note },
  );
}
