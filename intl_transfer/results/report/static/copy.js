// Figures out of the page, as Markdown or LaTeX: the rows that are shown, in the order shown.

import { DATA, h, say } from "./core.js";

/** @type {(text: string) => string} */
const markdownText = (text) =>
  text.replace(/[\\`*_[\]<>|]/g, "\\$&").replace(/[\r\n\u2028\u2029]+/g, " ");

/** @type {Record<string, string>} */
const LATEX = {
  "\\": "\\textbackslash{}",
  "&": "\\&",
  "%": "\\%",
  $: "\\$",
  "#": "\\#",
  _: "\\_",
  "{": "\\{",
  "}": "\\}",
  "~": "\\textasciitilde{}",
  "^": "\\textasciicircum{}",
  "<": "\\textless{}",
  ">": "\\textgreater{}",
  "|": "\\textbar{}",
  "±": "$\\pm$",
  "−": "$-$",
  "→": "$\\to$",
  "†": "\\textsuperscript{\\dag}",
  "↑": "$\\uparrow$",
  "↓": "$\\downarrow$",
  "≤": "$\\leq$",
  "≥": "$\\geq$",
  "×": "$\\times$",
  "–": "--",
  "—": "---",
  "…": "\\dots{}",
  "’": "'",
  "“": "``",
  "”": "''",
  '"': "''",
  α: "$\\alpha$",
  β: "$\\beta$",
  λ: "$\\lambda$",
  μ: "$\\mu$",
  σ: "$\\sigma$",
  τ: "$\\tau$",
};

/**
 * A character as LaTeX prints it; what pdflatex has no letter for becomes its code point.
 * @param {string} c
 * @returns {string}
 */
function latexCharacter(c) {
  if (LATEX[c]) return LATEX[c];
  if (/[ -~À-ÖØ-öø-ž]/u.test(c)) return c;
  if (/[\s\u2028\u2029]/u.test(c)) return " ";
  const plain = c.normalize("NFKD").replace(/[^ -~]/gu, "");
  return plain
    ? [...plain].map(latexCharacter).join("")
    : `[U+${(c.codePointAt(0) ?? 0).toString(16).toUpperCase().padStart(4, "0")}]`;
}

// Between two characters that TeX would print as one: `--name` has no dash.
const LIGATURES = /(?<=-)(?=-)|(?<=[`?!])(?=`)|(?<=')(?=')|(?<=,)(?=,)/;

/**
 * Text for LaTeX; letters are composed first, since names from macOS have their accents apart.
 * @type {(text: string) => string}
 */
const latexText = (text) =>
  text
    .normalize("NFC")
    .split(LIGATURES)
    .map((part) => [...part].map(latexCharacter).join(""))
    .join("{}");

/**
 * The notes that visible rows use, renumbered.
 * @param {Sheet} sheet
 */
function usedNotes(sheet) {
  const used = [...new Set(sheet.blocks.flat().flatMap((row) => row.notes))].sort((a, b) => a - b);
  const numbers = new Map(used.map((note, i) => [note, i + 1]));
  return {
    texts: used.map((note) => sheet.notes[note - 1]),
    /** @type {(row: SheetRow) => string} */
    marks: (row) => row.notes.map((n) => numbers.get(n)).join(","),
  };
}

/**
 * What ± is where it is shown, and the table's own legend.
 * @param {Sheet} sheet
 */
function legendOf(sheet) {
  /** @type {(italic: boolean) => boolean} */
  const spread = (italic) =>
    sheet.blocks
      .flat()
      .some((row) => row.italic === italic && row.beside.some((text) => text?.includes("±")));
  return [
    spread(false) && DATA.spreads.measured,
    spread(true) && DATA.spreads.published,
    ...sheet.legend,
  ].filter((line) => line !== false);
}

/** @param {Sheet} sheet */
function asMarkdown(sheet) {
  const { texts, marks } = usedNotes(sheet);
  /** @type {(cells: string[]) => string} */
  const joined = (cells) => `| ${cells.join(" | ")} |`;
  const lines = [
    `### ${markdownText(sheet.title)}`,
    "",
    joined(sheet.columns.map((c) => markdownText(c.group ? `${c.group} ${c.name}` : c.name))),
    `|${sheet.columns.map((c) => (c.numeric ? "--:" : ":--")).join("|")}|`,
  ];
  for (const row of sheet.blocks.flat()) {
    lines.push(
      joined(
        row.cells.map((cell, i) => {
          let text = markdownText(cell);
          if (i === 0 && row.italic && text) text = `_${text}_`;
          if (row.bold[i] && text) text = `**${text}**`;
          return i === 0 && row.notes.length ? `${text} [${marks(row)}]` : text;
        }),
      ),
    );
  }
  const italics = sheet.blocks.flat().some((row) => row.italic)
    ? ["_In italics: published._  "]
    : [];
  const legend = legendOf(sheet).map((line) => `${markdownText(line)}  `);
  const foot = [
    ...italics,
    ...legend,
    ...texts.map((note, i) => `[${i + 1}] ${markdownText(note)}  `),
  ];
  return `${[...lines, ...(foot.length ? ["", ...foot] : [])].join("\n")}\n`;
}

/**
 * Columns of figures at the decimal point, with what stands beside a mean in a column of its own.
 * @param {Sheet} sheet
 * @returns {LatexColumn[]}
 */
function latexColumns(sheet) {
  const rows = sheet.blocks.flat();
  return sheet.columns.map((column, i) => {
    const means = rows.flatMap((row) => row.means[i] || []);
    if (!means.length) return { spec: column.numeric ? "r" : "l", span: 1, figure: false };
    /** @type {(part: number) => number} */
    const digits = (part) => Math.max(...means.map((m) => (m.split(".")[part] || "").length));
    const beside = rows.some((row) => row.beside[i]);
    return {
      spec: `S[table-format=${digits(0)}.${digits(1)}]${beside ? "@{}l" : ""}`,
      span: beside ? 2 : 1,
      figure: true,
    };
  });
}

/**
 * A row's cells, each figure as the mean and what stands beside it.
 * @param {SheetRow} row
 * @param {LatexColumn[]} columns
 * @param {(row: SheetRow) => string} marks
 */
function latexCells(row, columns, marks) {
  return row.cells.flatMap((cell, i) => {
    if (columns[i].figure) {
      const mean = row.bold[i] && row.means[i] ? `\\bfseries ${row.means[i]}` : row.means[i] || "";
      const beside = row.beside[i] ? `{\\scriptsize\\,${latexText(row.beside[i])}}` : "";
      return columns[i].span === 2 ? [mean, beside] : [mean];
    }
    let text = latexText(cell);
    // What begins with a bracket would be an argument of the \\ before it.
    if (i === 0 && /^[[*]/.test(text)) text = `{}${text}`;
    if (i === 0 && row.italic && text) text = `\\textit{${text}}`;
    return [i === 0 && row.notes.length ? `${text}\\textsuperscript{${marks(row)}}` : text];
  });
}

/** @param {Sheet} sheet */
function asLatex(sheet) {
  const { texts, marks } = usedNotes(sheet);
  const end = " \\\\";
  const columns = latexColumns(sheet);
  const wide = sheet.columns.length > 6 ? "table*" : "table";
  /** @type {(column: Column, i: number) => string} */
  const over = (column, i) =>
    columns[i].figure
      ? `\\multicolumn{${columns[i].span}}{c}{${latexText(column.name)}}`
      : column.name === "n"
        ? "$n$"
        : latexText(column.name);
  const lines = [
    "% needs \\usepackage{booktabs,graphicx,siunitx}",
    `\\begin{${wide}}`,
    "  \\centering",
    `  \\caption{${latexText(sheet.title)}}`,
    "  \\footnotesize\\setlength{\\tabcolsep}{3pt}\\sisetup{detect-weight=true}%",
    "  \\sbox0{%",
    `  \\begin{tabular}{${columns.map((c) => c.spec).join("")}}`,
    "    \\toprule",
  ];
  if (sheet.columns.some((c) => c.group)) {
    /** @type {{name: string, span: number}[]} */
    const groups = [];
    sheet.columns.forEach((column, i) => {
      const last = groups.at(-1);
      if (last && column.group && last.name === column.group) last.span += columns[i].span;
      else groups.push({ name: column.group || "", span: columns[i].span });
    });
    lines.push(
      `    ${groups.map((g) => (g.name ? `\\multicolumn{${g.span}}{c}{${latexText(g.name)}}` : "")).join(" & ")}${end}`,
    );
  }
  lines.push(`    ${sheet.columns.map(over).join(" & ")}${end}`, "    \\midrule");
  sheet.blocks
    .filter((block) => block.length)
    .forEach((block, k) => {
      if (k) lines.push("    \\midrule");
      for (const row of block)
        lines.push(`    ${latexCells(row, columns, marks).join(" & ")}${end}`);
    });
  lines.push(
    "    \\bottomrule",
    "  \\end{tabular}}%",
    "  \\ifdim\\wd0>\\linewidth\\resizebox{\\linewidth}{!}{\\usebox0}\\else\\usebox0\\fi",
  );
  const notes = [
    ...legendOf(sheet).map((line) => latexText(line).replace(/^Bold:/, "\\textbf{Bold}:")),
    ...texts.map((note, i) => `\\textsuperscript{${i + 1}}${latexText(note)}`),
  ];
  if (notes.length)
    lines.push(
      "  \\par\\smallskip\\begin{minipage}{\\linewidth}\\scriptsize\\raggedright",
      `    ${notes.join(" \\par\n    ")}`,
      "  \\end{minipage}",
    );
  return `${[...lines, `\\end{${wide}}`].join("\n")}\n`;
}

/**
 * Copies; where that is not allowed, shows what to copy.
 * @param {string} text
 * @param {string} what
 * @returns {Promise<boolean>} whether it was copied
 */
async function toClipboard(text, what) {
  try {
    await navigator.clipboard.writeText(text);
    say(`${what} copied`);
    return true;
  } catch {
    showText(text, what); // a browser that does not let a file write to the clipboard
    return false;
  }
}

/**
 * @param {string} text
 * @param {string} what
 */
function showText(text, what) {
  const area = h("textarea", { readonly: true, rows: 16, "aria-label": what, value: text });
  openDialog(`${what}: select and copy`, area);
  area.select();
}

/**
 * A modal window that Escape closes, and that gives the focus back.
 * @param {string} title
 * @param {...Child} children
 */
export function openDialog(title, ...children) {
  /** @type {HTMLDialogElement} */
  const dialog = h(
    "dialog",
    { "aria-label": title, close: () => dialog.remove() },
    h(
      "div",
      { class: "dialog-head" },
      h("strong", null, title),
      h("button", { type: "button", class: "small", click: () => dialog.close() }, "Close"),
    ),
    children,
  );
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/**
 * "Copy as Markdown" and "as LaTeX".
 * @param {() => Sheet} sheet
 */
export function copyButtons(sheet) {
  /** @type {(name: string, write: (sheet: Sheet) => string) => HTMLElement} */
  const button = (name, write) =>
    h(
      "button",
      {
        type: "button",
        class: "small",
        "aria-label": `Copy as ${name}`,
        click: async (event) => {
          const self = event.currentTarget;
          if (!(await toClipboard(write(sheet()), name))) return;
          self.textContent = "Copied";
          setTimeout(() => {
            self.textContent = name;
          }, 1400);
        },
      },
      name,
    );
  return h(
    "div",
    { class: "copy" },
    h("span", { "aria-hidden": "true" }, "Copy as"),
    button("Markdown", asMarkdown),
    button("LaTeX", asLatex),
  );
}
