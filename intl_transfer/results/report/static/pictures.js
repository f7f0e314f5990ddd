// What a detector saw: pictures with boxes and masks that can be shown or not.

import { openDialog } from "./copy.js";
import { details, h, s, section, several, short } from "./core.js";
import { tick } from "./tables.js";

/** @type {[name: string, label: string, on: boolean][]} */
const LAYERS = [
  ["truth-box", "true boxes", true],
  ["truth-mask", "true masks", false],
  ["found-box", "predicted boxes", true],
  ["found-mask", "predicted masks", true],
  ["label", "names", true],
];

/**
 * A detection run's pictures; null where there is none.
 * @param {string} key
 */
export function pictureSection(key) {
  const { pictures } = details(key);
  if (pictures.sheet) {
    return section(
      "Detections",
      h(
        "figure",
        { class: "sheet" },
        h("img", {
          src: pictures.sheet,
          alt: "Test pictures: truth at the left, predictions at the right",
        }),
        h("figcaption", null, "Truth at the left, predictions at the right."),
      ),
    );
  }
  if (!pictures.images?.length) return null;
  const least = pictures.least;
  const state = {
    score: Math.max(least, 0.5),
    layers: new Set(LAYERS.filter(([, , on]) => on).map(([name]) => name)),
  };
  const frames = pictures.images.map((image, i) => pictureFrame(image, pictures.classes, i));
  const apply = () => frames.forEach((frame) => frame.apply(state));
  const output = h("output", null, state.score.toFixed(2));
  /** @type {HTMLInputElement} */
  const slider = h("input", {
    type: "range",
    min: least,
    max: 1,
    step: 0.01,
    value: state.score,
    "aria-label": "least score of a prediction",
    input: () => {
      state.score = Number(slider.value);
      output.textContent = state.score.toFixed(2);
      apply();
    },
  });
  apply();
  return section(
    "Detections",
    h(
      "div",
      { class: "toolbar" },
      LAYERS.map(([name, label, on]) =>
        tick(label, on, (now) => {
          if (now) state.layers.add(name);
          else state.layers.delete(name);
          apply();
        }),
      ),
      h("label", { class: "field" }, h("span", null, "Score from"), slider, output),
    ),
    h(
      "p",
      { class: "picture-key" },
      h("span", { class: "key-truth" }, "truth"),
      h("span", { class: "key-found" }, "prediction"),
      "The worst pictures come first.",
    ),
    h(
      "div",
      { class: "pictures" },
      frames.map((frame) => frame.node),
    ),
  );
}

/** @type {(points: number[]) => string} */
const outline = (points) => {
  let path = "";
  for (let i = 0; i + 1 < points.length; i += 2)
    path += `${i ? "L" : "M"}${points[i]} ${points[i + 1]}`;
  return `${path}Z`;
};

/**
 * @param {Seen} object
 * @param {"truth" | "found"} kind
 * @param {string[]} classes
 * @param {Picture} image
 */
function drawObject(object, kind, classes, image) {
  const [x0, y0, x1, y1] = object.box;
  const size = { x: x0, y: y0, width: Math.max(0, x1 - x0), height: Math.max(0, y1 - y0) };
  const name = object.class === null ? "?" : classes[object.class];
  const text = object.score === null ? name : `${name} ${object.score.toFixed(2)}`;
  // As large as on a picture of 300 pixels; within it, above the box where there is room.
  const unit = image.width / 300;
  const y = y0 > 13 * unit ? y0 - 4 * unit : Math.min(image.height - 3 * unit, y0 + 12 * unit);
  const x = Math.max(unit, Math.min(x0 + unit, image.width - text.length * 6.5 * unit));
  return s(
    "g",
    { class: kind, "data-score": object.score ?? "" },
    s("path", { class: `mask ${kind}-mask`, d: object.polygons.map(outline).join("") }),
    s("rect", { class: `halo ${kind}-box`, ...size }),
    s("rect", { class: `box ${kind}-box`, ...size }),
    s(
      "text",
      {
        class: `label ${kind}-label`,
        x,
        y,
        style: `font-size: ${11 * unit}px; stroke-width: ${2.6 * unit}px`,
      },
      text,
    ),
  );
}

/**
 * @param {Picture} image
 * @param {string[]} classes
 * @param {number} index
 */
function pictureFrame(image, classes, index) {
  const found = image.predictions.map((object) => ({
    object,
    node: drawObject(object, "found", classes, image),
  }));
  const drawing = s(
    "svg",
    {
      viewBox: `0 0 ${image.width} ${image.height}`,
      role: "img",
      "aria-label": `picture ${index + 1}: ${several(image.truth.length, "true object")}, ${several(found.length, "prediction")}`,
    },
    s("image", { href: image.uri, width: image.width, height: image.height }),
    image.truth.map((object) => drawObject(object, "truth", classes, image)),
    found.map((f) => f.node),
  );
  const count = h("span");
  const node = h(
    "figure",
    { class: "picture" },
    drawing,
    h(
      "figcaption",
      null,
      h(
        "span",
        { class: "picture-facts" },
        image.error !== null && `error ${short(image.error)} · `,
        count,
      ),
      h(
        "button",
        {
          type: "button",
          class: "small",
          "aria-label": `enlarge picture ${index + 1}`,
          click: () => {
            const large = /** @type {SVGSVGElement} */ (drawing.cloneNode(true));
            large.classList.add("large");
            openDialog(`Picture ${index + 1}`, large);
          },
        },
        "Enlarge",
      ),
    ),
  );
  /** @type {(state: {score: number, layers: Set<string>}) => void} */
  const apply = ({ score, layers }) => {
    for (const [name] of LAYERS) drawing.classList.toggle(`no-${name}`, !layers.has(name));
    let shown = 0;
    for (const { object, node: group } of found) {
      const visible = object.score === null || object.score >= score;
      group.style.display = visible ? "" : "none";
      if (visible) shown += 1;
    }
    count.textContent = `${several(image.truth.length, "object")}, ${shown} of ${several(found.length, "prediction")}`;
  };
  return { node, apply };
}
