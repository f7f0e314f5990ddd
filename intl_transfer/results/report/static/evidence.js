// What stands behind a row, on hover and on keyboard focus; and a table as a picture.

import { h } from "./core.js";

/** @type {HTMLElement | undefined} */
let evidenceBox;
/** @type {HTMLElement | undefined} */
let explained;
/**
 * The box, below what it explains, inside the window.
 * @param {HTMLElement} anchor
 * @param {Fact[]} lines
 */
export function showEvidence(anchor, lines) {
  if (!evidenceBox) {
    evidenceBox = h("dl", { id: "evidence", class: "evidence", role: "tooltip", hidden: true });
    document.body.append(evidenceBox);
    addEventListener("keydown", (event) => event.key === "Escape" && hideEvidence());
    addEventListener("scroll", placeEvidence, { passive: true });
    addEventListener("hashchange", hideEvidence);
  }
  evidenceBox.replaceChildren(
    ...lines.flatMap(([name, text]) => [h("dt", null, name || "note"), h("dd", null, text)]),
  );
  evidenceBox.hidden = false;
  explained = anchor;
  placeEvidence();
}

/** Follows what it explains, for as long as that is to be seen. */
function placeEvidence() {
  if (!explained || !evidenceBox || evidenceBox.hidden) return;
  const place_ = explained.getBoundingClientRect();
  if (!explained.isConnected || place_.bottom < 0 || place_.top > innerHeight)
    return hideEvidence();
  const size = evidenceBox.getBoundingClientRect();
  const below = place_.bottom + 6 + size.height < innerHeight;
  evidenceBox.style.top = `${below ? place_.bottom + 6 : Math.max(4, place_.top - size.height - 6)}px`;
  evidenceBox.style.left = `${Math.max(8, Math.min(place_.left + 24, innerWidth - size.width - 8))}px`;
}

/** Hides the box. */
export function hideEvidence() {
  if (evidenceBox) evidenceBox.hidden = true;
}

/**
 * Listeners of a name that shows its evidence on focus, and has it read out.
 * @param {Fact[]} lines
 * @returns {Attributes & Listeners<HTMLElement>}
 */
export const evidenceOf = (lines) => ({
  "aria-description": lines.map(([name, text]) => `${name} ${text}`.trim()).join("; "),
  focus: (event) =>
    event.currentTarget.matches(":focus-visible") && showEvidence(event.currentTarget, lines),
  blur: hideEvidence,
});

/**
 * A picture of the table, with error bars, to be saved.
 * @param {Table} table
 */
export function saveLinks(table) {
  const { svg, pdf } = table.pictures;
  const name = table.name.replace(/[^\w.-]+/g, "_");
  /** @type {(form: string, kind: string, content: string) => HTMLElement} */
  const link = (form, kind, content) =>
    h(
      "a",
      {
        class: "button small",
        href: `data:${kind};base64,${content}`,
        download: `${name}.${form}`,
        "aria-label": `Save a picture of ${table.name} as ${form.toUpperCase()}`,
      },
      form.toUpperCase(),
    );
  if (!svg && !pdf) return null;
  return h(
    "div",
    { class: "copy" },
    h("span", { "aria-hidden": "true" }, "Picture"),
    svg && link("svg", "image/svg+xml", svg),
    pdf && link("pdf", "application/pdf", pdf),
  );
}
