// Addresses, theme, and the page that keeps itself up to date.

import { comparePage } from "./compare.js";
import { DATA, choices, delivered, h, own, several, when } from "./core.js";
import { overviewPage, tablePage } from "./results.js";
import { rowPage } from "./rows.js";
import { runPage } from "./run.js";
import { leftOutPage, missingPage, runsPage } from "./runs.js";

/**
 * By the first part of an address; the others may be missing.
 * @type {Record<string, (...parts: string[]) => Child>}
 */
const ROUTES = {
  "": () => overviewPage(),
  table: (key = "") => tablePage(key),
  runs: () => runsPage(),
  compare: (a = "", b = "") => comparePage(a, b),
  "left-out": () => leftOutPage(),
  run: (key = "") => runPage(key),
  row: (key = "") => rowPage(key),
};

const main = delivered("main");

function route() {
  return location.hash
    .replace(/^#table-/, "#/table/") // as tables in papers lead here
    .replace(/^#\/?/, "")
    .split("/")
    .map((part) => {
      try {
        return decodeURIComponent(part);
      } catch {
        return part;
      }
    });
}

/** @param {boolean} first whether the page was just loaded */
function show(first) {
  const [name, ...rest] = route();
  const found = own(ROUTES, name);
  const content = found ? found(...rest) : missingPage("page");
  main.replaceChildren(...[content].flat(3).filter((node) => node instanceof Node));
  const title = main.querySelector("h1");
  document.title = `${title ? title.textContent : "Results"} · Transfer results`;
  document.querySelectorAll("#nav a").forEach((link) => {
    const active =
      link.getAttribute("href") ===
      `#/${name === "run" ? "runs" : name === "row" || name === "table" ? "" : name}`;
    if (active) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
  if (!first) {
    title?.setAttribute("tabindex", "-1");
    title?.focus({ preventScroll: true });
  }
  // The page is as high as it was once its charts are drawn.
  /** @type {unknown} */
  const kept = history.state;
  const scroll = kept instanceof Object && "scroll" in kept ? Number(kept.scroll) : 0;
  scrollTo(0, scroll);
  if (scroll) requestAnimationFrame(() => requestAnimationFrame(() => scrollTo(0, scroll)));
}

const waiting =
  Object.values(DATA.runs).filter((run) => !["finished", "superseded"].includes(run.status))
    .length + DATA.problems.length;
delivered("nav").append(
  ...[
    ["#/", "Results"],
    ["#/runs", "Runs"],
    ["#/compare", "Compare"],
    ["#/left-out", "Not in the tables"],
  ].map(([href, name]) =>
    h(
      "a",
      { href },
      name,
      href === "#/left-out" && waiting > 0 && h("span", { class: "pill" }, waiting),
    ),
  ),
);

// -- theme: as the system says, or light, or dark ------------------------------------------

const THEMES = { auto: "light", light: "dark", dark: "auto" };
const themeButton = h("button", {
  type: "button",
  class: "small",
  click: () => {
    choices.theme = own(THEMES, choices.theme) || "auto";
    choices.keep();
    setTheme();
  },
});
function setTheme() {
  const theme = own(THEMES, choices.theme) ? choices.theme : "auto";
  if (theme === "auto") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", theme);
  themeButton.textContent = `Theme: ${theme}`;
}
setTheme();
delivered("tools").append(themeButton);

// -- keeping up to date --------------------------------------------------------------------

/** Notes how far this page is scrolled, for a reload and for the way back. */
const keepScroll = () => history.replaceState({ scroll: scrollY }, "");
history.scrollRestoration = "manual";
/** @type {number | undefined} */
let resting;
addEventListener("scroll", () => {
  clearTimeout(resting);
  resting = setTimeout(keepScroll, 100);
});

/** Whether a reload would take something out of somebody's hands. */
function busy() {
  const active = document.activeElement;
  return (
    document.hidden ||
    document.querySelector("dialog[open]") ||
    /^(INPUT|SELECT|TEXTAREA)$/.test(active?.tagName || "") ||
    getSelection()?.isCollapsed === false
  );
}

const built = h("span", null, `Built ${when(DATA.built)}`);
delivered("footer").append(
  built,
  h(
    "span",
    null,
    several(Object.keys(DATA.runs).length, "run"),
    `, ${several(DATA.tables.length, "table")}`,
  ),
);
if (DATA.refresh) {
  let live = true;
  const button = h(
    "button",
    {
      type: "button",
      class: "small live",
      "aria-pressed": "true",
      title: `Loads the page again every ${DATA.refresh} s, unless something is being typed or selected`,
      click: () => {
        live = !live;
        button.setAttribute("aria-pressed", String(live));
        button.textContent = live ? "Live" : "Paused";
      },
    },
    "Live",
  );
  delivered("tools").prepend(button);
  setInterval(() => {
    if (live && !busy()) {
      keepScroll();
      location.reload();
    }
  }, DATA.refresh * 1000);
}

// What is folded would be missing on paper.
/** @type {HTMLDetailsElement[]} */
let folded = [];
addEventListener("beforeprint", () => {
  folded = /** @type {HTMLDetailsElement[]} */ ([
    ...document.querySelectorAll("details.log:not([open])"),
  ]);
  folded.forEach((d) => {
    d.open = true;
  });
});
addEventListener("afterprint", () =>
  folded.forEach((d) => {
    d.open = false;
  }),
);

addEventListener("hashchange", () => show(false));
document.querySelector(".skip")?.addEventListener("click", (event) => {
  event.preventDefault(); // addresses after # are pages here
  main.focus();
});
show(true);
