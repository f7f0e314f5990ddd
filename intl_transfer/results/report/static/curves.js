// Curves of single runs and of groups of runs.

import { details, h, own, short, taskName } from "./core.js";
import { lineChart } from "./lines.js";
import { nearest } from "./readout.js";
import { choice } from "./tables.js";

const CURVE_NAMES = {
  total_loss: "Loss",
  loss: "Loss",
  mismatch: "Mismatch of the views",
  trace_loss: "Trace loss",
  lr: "Learning rate",
  images_per_second: "Images per second",
  data_time: "Waiting for data, s",
  ema_momentum: "Momentum of the moving average",
  knn_accuracy: "k-NN accuracy, %",
  test_top1: "top-1 of the test, %",
  test_top5: "top-5 of the test, %",
  train_top1: "top-1 of training batches, %",
  loss_cls: "classes",
  loss_box_reg: "boxes",
  loss_mask: "masks",
  loss_rpn_cls: "proposals: objectness",
  loss_rpn_loc: "proposals: boxes",
};

/**
 * A curve's name for people.
 * @param {string} name
 */
export function curveName(name) {
  const known = own(CURVE_NAMES, name);
  if (known) return known;
  const [kind, task, metric] = name.split("/");
  return kind === "evaluation" ? `${taskName(task)} ${metric}, %` : name;
}

/**
 * One curve of a run, or null.
 * @param {string} key
 * @param {string} name
 * @returns {Curve | null}
 */
export function curve(key, name) {
  for (const group of details(key).series.curves) {
    const y = own(group.y, name);
    if (y) return { x: group.x, y };
  }
  return null;
}

/**
 * The names of all curves of a run.
 * @type {(key: string) => string[]}
 */
export const curveNames = (key) =>
  details(key).series.curves.flatMap((group) => Object.keys(group.y));

/**
 * A curve's value between its steps; null beyond them.
 * @param {Curve} line
 * @param {number} at
 * @returns {Value}
 */
function interpolated(line, at) {
  const { x, y } = line;
  if (at < x[0] || at > x[x.length - 1]) return null;
  let i = nearest(x, at);
  if (x[i] === at) return y[i];
  if (x[i] > at) i -= 1;
  const [a, b] = [y[i], y[i + 1]];
  if (a === null || b === null || a === undefined || b === undefined) return null;
  return a + ((b - a) * (at - x[i])) / (x[i + 1] - x[i]);
}

/**
 * Mean, lowest and highest of several runs' curves, at the steps of the longest.
 * @param {string[]} keys
 * @param {string} name
 * @returns {Curve & {low?: Value[], high?: Value[]} | null}
 */
function together(keys, name) {
  const lines = keys.map((key) => curve(key, name)).filter((line) => line !== null);
  if (!lines.length) return null;
  if (lines.length === 1) return lines[0];
  const { x } = lines.reduce((best, line) => (line.x.length > best.x.length ? line : best));
  const same = lines.every(
    (line) => line.x.length === x.length && line.x.every((v, i) => v === x[i]),
  );
  /** @type {Value[][]} */
  const [y, low, high] = [[], [], []];
  x.forEach((at, i) => {
    const values = lines
      .map((line) => (same ? line.y[i] : interpolated(line, at)))
      .filter((v) => v !== null);
    y.push(values.length ? values.reduce((a, b) => a + b, 0) / values.length : null);
    low.push(values.length ? Math.min(...values) : null);
    high.push(values.length ? Math.max(...values) : null);
  });
  return { x, y, low, high };
}

/**
 * Each name once, what is looked for first at the front.
 * @type {(names: string[]) => string[]}
 */
export const byImportance = (names) => {
  const order = [
    "total_loss",
    "loss",
    "evaluation/box/AP",
    "evaluation/mask/AP",
    "evaluation/voc/AP",
    "knn_accuracy",
    "test_top1",
    "lr",
  ];
  return [...new Set(names)].sort(
    (a, b) => (order.indexOf(a) + 1 || 50) - (order.indexOf(b) + 1 || 50) || a.localeCompare(b),
  );
};

/**
 * What the curves of runs of one kind count by.
 * @type {(keys: string[]) => string}
 */
export const unitOf = (keys) => (keys.length ? details(keys[0]).series.unit : "step");

/**
 * Curves of groups of runs, a band a group; one figure chosen from all there are, or the main ones at once.
 * @param {{name: string, runs: string[]}[]} groups
 * @param {boolean} all
 * @returns {HTMLElement | HTMLElement[]}
 */
export function groupCurves(groups, all = false) {
  const keys = groups.flatMap((group) => group.runs);
  const names = byImportance(keys.flatMap(curveNames));
  if (!names.length) return h("p", { class: "empty" }, "These runs have no metrics.jsonl.");
  /** @type {(name: string) => Chart} */
  const draw = (name) => {
    const series = groups.flatMap((group, index) => {
      const curves = together(group.runs, name);
      const count = group.runs.length > 1 ? ` (${group.runs.length})` : "";
      return curves ? [{ name: `${group.name}${count}`, index, ...curves }] : [];
    });
    const banded = series.some((line) => "low" in line);
    return lineChart(curveName(name), series, {
      x: unitOf(keys),
      switchable: /loss|mismatch/.test(name),
      note: banded ? "Line: mean over runs; band: from the lowest to the highest." : undefined,
    });
  };
  if (all)
    return h(
      "div",
      { class: "grid-2" },
      names
        .filter((name) => !/data_time|AP50|AP75|per_second/.test(name))
        .slice(0, 12)
        .map(draw),
    );
  const body = h("div", null, draw(names[0]));
  return [
    choice(
      "Figure",
      names.map((name) => [name, curveName(name)]),
      names[0],
      (name) => body.replaceChildren(draw(name)),
    ),
    body,
  ];
}

/**
 * A chart of a run's curves of these names; null where it has none of them.
 * @type {(key: string, names: string[], title: string, options?: Partial<LineOptions>) => Chart | null}
 */
const single = (key, names, title, options = {}) => {
  const series = names.flatMap((name) => {
    const found = curve(key, name);
    return found ? [{ name: curveName(name), ...found }] : [];
  });
  return series.length ? lineChart(title, series, { x: unitOf([key]), ...options }) : null;
};

/**
 * Charts of a fine-tuning run.
 * @param {string} key
 * @returns {Child[]}
 */
export function detectionCurves(key) {
  const names = curveNames(key);
  const parts = names.filter((name) => name.startsWith("loss_"));
  /** @type {(metric: string) => string[]} */
  const evaluated = (metric) =>
    names.filter((name) => name.startsWith("evaluation/") && name.endsWith(`/${metric}`));
  return [
    single(key, ["total_loss"], "Loss", { switchable: true }),
    single(key, evaluated("AP"), "AP at evaluations, %"),
    single(key, parts, "Parts of the loss", { switchable: true }),
    single(key, ["lr"], "Learning rate"),
    single(key, ["images_per_second"], "Images per second"),
  ].filter(Boolean);
}

/**
 * Charts of a pretraining run.
 * @param {string} key
 * @returns {Child[]}
 */
export function pretrainingCurves(key) {
  return [
    single(key, ["loss"], "Loss", { switchable: true }),
    single(key, ["mismatch"], "Mismatch of the views", { switchable: true }),
    single(key, ["knn_accuracy"], "k-NN accuracy of frozen features, %"),
    single(key, ["lr"], "Learning rate"),
    single(key, ["ema_momentum"], "Momentum of the moving average"),
    single(key, ["images_per_second"], "Images per second"),
  ].filter(Boolean);
}

/**
 * Also of runs that others made in this form, under names of their own.
 * @param {string} key
 * @returns {Child[]}
 */
export function classificationCurves(key) {
  const known = ["loss", "test_top1", "train_top1", "test_top5", "lr", "images_per_second"];
  const others = byImportance(curveNames(key)).filter((name) => !known.includes(name));
  return [
    single(key, ["loss"], "Loss", { switchable: true }),
    single(key, ["test_top1", "train_top1"], "Top-1, %"),
    single(key, ["test_top5"], "Top-5, %"),
    single(key, ["lr"], "Learning rate"),
    single(key, ["images_per_second"], "Images per second"),
    ...others.slice(0, 6).map((name) => single(key, [name], curveName(name))),
  ].filter(Boolean);
}

/**
 * Of a stage that is not known here: all there is.
 * @type {(key: string) => Child[]}
 */
export const otherCurves = (key) =>
  byImportance(curveNames(key))
    .slice(0, 12)
    .map((name) => single(key, [name], curveName(name)));

// Of the largest eigenvalue; from products in float32, what is smaller is rounding.
const LEAST_EIGENVALUE = 1e-7;

/**
 * Eigenvalues over their rank, both axes logarithmic, at a few moments of the training.
 * @param {string} key
 */
function spectraChart(key) {
  const { spectra } = details(key);
  if (!spectra.length) return null;
  /** @type {(value: Value) => boolean} */
  const told = (value) => value !== null && value >= LEAST_EIGENVALUE;
  const lines = spectra.map(({ step, ranks, values }) => ({
    name: `step ${short(step)}`,
    x: ranks,
    y: values.map((value) => (told(value) ? value : null)),
  }));
  const rest = spectra.every(({ values }) => values.every(told))
    ? ""
    : " What is below 1e-7 is rounding and not drawn.";
  return lineChart("Spectrum: eigenvalues over the largest", lines, {
    x: "rank",
    log: true,
    logX: true,
    note: `Flat: all directions are used. A steep fall: few of them are.${rest}`,
  });
}

/**
 * What tells whether the embeddings keep their directions.
 * @param {string} key
 */
export function spectrumCurves(key) {
  const { collapse } = details(key);
  const bounds = collapse
    ? [
        { value: collapse.floor, name: `${short(collapse.floor)}: least possible` },
        {
          value: collapse.alarm,
          name: `${short(collapse.alarm)}: alarm, rank ${collapse.rank}`,
        },
      ]
    : [];
  const trace = curve(key, "trace_loss") ? "trace_loss" : "spectrum/trace_loss";
  /** @type {(name: string, title: string, options?: Partial<LineOptions>) => Chart | null} */
  const line = (name, title, options) => {
    const found = curve(key, name);
    return found && lineChart(title, [{ name: title, ...found }], { x: unitOf([key]), ...options });
  };
  const charts = [
    line(trace, "Trace loss", {
      references: bounds,
      note:
        collapse &&
        "Above the alarm the batch may have collapsed to few directions; below, it has not.",
    }),
    spectraChart(key),
    line("spectrum/effective_rank", "Effective rank (RankMe)"),
    line("spectrum/stable_rank", "Stable rank"),
    line("spectrum/condition", "Condition: lg of least over largest eigenvalue"),
    line("spectrum/alignment", "Alignment: distance of positive pairs"),
    line("spectrum/uniformity", "Uniformity"),
    line("spectrum/feature_std", "Deviation of normalized features"),
  ].filter(Boolean);
  const alarms = curve(key, "spectrum/collapsed");
  const raised = alarms ? alarms.x.filter((_, i) => (alarms.y[i] ?? 0) > 0) : [];
  return { charts, raised, looked: alarms ? alarms.x.length : 0 };
}
