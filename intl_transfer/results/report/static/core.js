// Elements, data, numbers as text, and what the page remembers.
// Text from users' files only ever becomes a text node or an attribute's value, never markup.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Sets properties and adds children; functions among the properties become listeners.
 * @template {Element} E
 * @param {E} element
 * @param {Props<E>} props
 * @param {Child[]} children
 * @returns {E}
 */
export function fill(element, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    // The name and the listener's kind of event belong together: Props says so.
    if (typeof value === "function")
      element.addEventListener(name, /** @type {EventListener} */ (value));
    else if (name === "value") Object.assign(element, { value });
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(3)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/**
 * An HTML element.
 * @template {keyof HTMLElementTagNameMap} T
 * @param {T} tag
 * @param {Props<HTMLElementTagNameMap[T]>} [props]
 * @param {...Child} children
 */
export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);

/**
 * An SVG element.
 * @template {keyof SVGElementTagNameMap} T
 * @param {T} tag
 * @param {Props<SVGElementTagNameMap[T]>} [props]
 * @param {...Child} children
 */
export const s = (tag, props, ...children) =>
  fill(document.createElementNS(SVG, tag), props, children);

/**
 * One of the elements that the page is delivered with.
 * @param {string} id
 */
export function delivered(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`no element #${id}`);
  return element;
}

/** @type {(id: string) => unknown} */
const parse = (id) => JSON.parse(delivered(id).textContent || "");
export const DATA = /** @type {Overview} */ (parse("overview"));

/**
 * A value by a key that comes from a file: names that every object has ("constructor") must not be
 * met by accident.
 * @template V
 * @param {Record<string, V> | null | undefined} object
 * @param {string | null | undefined} key
 * @returns {V | undefined}
 */
export const own = (object, key) =>
  object && typeof key === "string" && Object.hasOwn(object, key) ? object[key] : undefined;

/** @type {Map<string, Details>} */
const parsed = new Map();
/**
 * What a run's own page shows, read when it is first asked for.
 * @param {string} key
 * @returns {Details}
 */
export function details(key) {
  const found = parsed.get(key) ?? /** @type {Details} */ (parse(`run-${key}`));
  parsed.set(key, found);
  return found;
}

/**
 * All settings of a run by dotted name: those its stage shares, with its own changes.
 * @param {string} key
 * @returns {Record<string, string>}
 */
export function settings(key) {
  const run = DATA.runs[key];
  const { changed, absent } = details(key).config;
  const all = { ...own(DATA.configs, run.stage ?? ""), ...changed };
  for (const name of absent) delete all[name];
  return all;
}

// -- what the page remembers ---------------------------------------------------------------

/**
 * Values kept in the browser; where that is not allowed for files, the page forgets.
 * @template {object} T
 * @param {"localStorage"|"sessionStorage"} kind
 * @param {string} name
 * @param {T} start values to begin with
 * @returns {T & Remembered}
 */
function remembered(kind, name, start) {
  const keep = () => {
    try {
      window[kind].setItem(name, JSON.stringify(value));
    } catch {
      /* not allowed, or full */
    }
  };
  const value = Object.assign({}, start, { keep });
  try {
    Object.assign(value, JSON.parse(window[kind].getItem(name) ?? "null"), { keep });
  } catch {
    /* not allowed, or not ours */
  }
  return value;
}

// The theme is chosen for all reports; what is sorted and filtered belongs to one, and a reload.
export const choices = remembered("localStorage", "intl-transfer", { theme: "auto" });
/** @type {Place} */
export const place = remembered("sessionStorage", `intl-transfer ${location.pathname}`, {
  filter: "",
  published: true,
  spread: DATA.spread,
  digits: DATA.digits,
  sorts: {},
  chosen: [],
  runs: "",
  status: "",
});

// -- numbers and words ---------------------------------------------------------------------

/**
 * A figure with so many digits after the point, halves away from zero: of the number as it is
 * written (12 significant digits), not of its binary form. The same rule as `rounded` in
 * rounding.py, by which the tables beside this page are written.
 * @param {number} value
 * @param {number} digits
 */
function roundedText(value, digits) {
  const [mantissa, power] = Math.abs(value).toExponential(11).split("e");
  const all = mantissa.replace(".", ""); // d.ddd…e±p as digits, the point after 1 + p of them
  const kept = 1 + Number(power) + digits;
  const whole = kept < 0 ? "" : all.slice(0, kept).padEnd(Math.max(kept, 0), "0");
  let number = BigInt(whole || "0");
  if (kept >= 0 && kept < all.length && all[kept] >= "5") number += 1n;
  const text = String(number).padStart(digits + 1, "0");
  const sign = value < 0 && number > 0n ? "-" : "";
  return sign + (digits ? `${text.slice(0, -digits)}.${text.slice(-digits)}` : text);
}

/**
 * A figure with so many digits; nothing for none.
 * @type {(value: Value | undefined, digits: number) => string}
 */
export const fixed = (value, digits) =>
  value === null || value === undefined ? "" : roundedText(value, digits);

/**
 * A number of any size in about four digits.
 * @param {Value | undefined} value
 */
export function short(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace("e+", "e");
  if (Number.isInteger(value)) return value.toLocaleString("en-GB");
  return String(Number(value.toPrecision(4)));
}

/**
 * A difference with its sign.
 * @type {(value: number, digits: number) => string}
 */
export const signed = (value, digits) => {
  const text = fixed(Math.abs(value), digits);
  return Number(text) === 0 ? text : (value < 0 ? "−" : "+") + text;
};

/**
 * Seconds in the unit that suits them.
 * @param {Value} seconds
 */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  const hours = Math.round(seconds / 3600);
  return hours < 48 ? `${hours} h` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/**
 * "25 Nov 2026, 02:19 UTC"; anything that is no time, as it is.
 * @param {FileText | undefined} text
 */
export function when(text) {
  const time = text ? new Date(text) : null;
  if (!time || Number.isNaN(time.getTime())) return text || "";
  const day = time.toLocaleDateString("en-GB", {
    day: "numeric",
    month: "short",
    year: "numeric",
    timeZone: "UTC",
  });
  return `${day}, ${time.toISOString().slice(11, 16)} UTC`;
}

/**
 * A count with its noun.
 * @type {(count: number, one: string, more?: string) => string}
 */
export const several = (count, one, more = `${one}s`) =>
  `${count.toLocaleString("en-GB")} ${count === 1 ? one : more}`;
const TASKS = { box: "box", mask: "mask", voc: "VOC" };
/**
 * What people call a task.
 * @type {(task: string) => string}
 */
export const taskName = (task) => own(TASKS, task) || task;

/**
 * Has a screen reader say something.
 * @type {(text: string) => void}
 */
export const say = (text) => {
  delivered("live").textContent = text;
};

/**
 * The run's link.
 * @param {string} key of a run that is there
 * @param {Child} [words] in place of its name
 */
export function runLink(key, words) {
  const run = DATA.runs[key];
  return h("a", { href: `#/run/${key}` }, words || run.name);
}

/**
 * A run's state.
 * @type {(status: string) => HTMLElement}
 */
export const badge = (status) =>
  h(
    "span",
    {
      class: `badge is-${["finished", "running", "failed", "interrupted", "stalled", "superseded"].includes(status) ? status : "other"}`,
    },
    status || "unknown",
  );

/**
 * The beginning of a hash; all of it on hover.
 * @type {(sha: string) => Child}
 */
export const hash = (sha) =>
  sha ? h("code", { class: "hash", title: sha }, sha.slice(0, 12)) : "";

/**
 * A heading of a level.
 * @type {(level: 1 | 2 | 3, text: Child, ...more: Child[]) => HTMLElement}
 */
export const heading = (level, text, ...more) =>
  h(/** @type {"h1"} */ (`h${level}`), null, text, ...more);

/**
 * A part of a page with its heading.
 * @param {Child} title
 * @param {...Child} children
 */
export function section(title, ...children) {
  return h("section", { class: "part" }, heading(2, title), children);
}
