// How far a run is, and what it wrote last.

import { h, short } from "./core.js";

/**
 * How far a run is, in words.
 * @param {Run} run
 */
export function progress(run) {
  const { last, total } = run;
  if (last.step === undefined) return "no line in metrics.jsonl yet";
  if (total.iterations) return `iteration ${short(last.step)} of ${short(total.iterations)}`;
  if (total.epochs && last.epoch !== null)
    return `epoch ${short(last.epoch)} of ${short(total.epochs)}`;
  return `step ${short(last.step)}`;
}

/**
 * The same as a bar, where it is known how far the run is to go.
 * @param {Run} run
 */
export function progressBar(run) {
  const { last, total } = run;
  const [at, end] = total.iterations ? [last.step, total.iterations] : [last.epoch, total.epochs];
  if (at === undefined || at === null || !end) return null;
  const share = at / end;
  return h("progress", { max: 1, value: Math.min(1, share), "aria-label": progress(run) });
}

/**
 * The end of a log, scrolled to its end.
 * @param {Child} name
 * @param {string[]} lines
 * @param {string} label
 * @param {boolean} open
 */
export function logBox(name, lines, label, open) {
  const box = h("pre", { tabindex: "0", "aria-label": label }, lines.join("\n"));
  return h(
    "details",
    {
      class: "log",
      open,
      toggle: () => {
        box.scrollTop = box.scrollHeight;
      },
    },
    h("summary", null, name),
    box,
  );
}
