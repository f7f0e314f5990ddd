// Figures out of the page, as Markdown or LaTeX: the rows that are shown, in the order shown.

/**
 * @typedef {{title: string, columns: {name: string, group?: string, numeric?: boolean}[],
 *   blocks: {cells: string[], bold: boolean[], italic: boolean, notes: number[]}[][], notes: string[]}} Sheet
 */

const markdownText = (text) =>
  text.replace(/[\\`*_[\]<>|]/g, "\\$&").replace(/[\r\n\u2028\u2029]+/g, " ");

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

/** A character as LaTeX prints it; what pdflatex has no letter for becomes its code point. */
function latexCharacter(c) {
  if (LATEX[c]) return LATEX[c];
  if (/[ -~À-ÖØ-öø-ž]/u.test(c)) return c;
  if (/[\s\u2028\u2029]/u.test(c)) return " ";
  const plain = c.normalize("NFKD").replace(/[^ -~]/gu, "");
  return plain
    ? [...plain].map(latexCharacter).join("")
    : `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`;
}

const latexText = (text) => [...text].map(latexCharacter).join("");

/** The notes that visible rows use, numbered anew. */
function usedNotes(sheet) {
  const used = [...new Set(sheet.blocks.flat().flatMap((row) => row.notes))].sort((a, b) => a - b);
  const numbers = new Map(used.map((note, i) => [note, i + 1]));
  return {
    texts: used.map((note) => sheet.notes[note - 1]),
    marks: (row) => row.notes.map((n) => numbers.get(n)).join(","),
  };
}

/** @param {Sheet} sheet */
function asMarkdown(sheet) {
  const { texts, marks } = usedNotes(sheet);
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
  const bold = sheet.blocks.flat().some((row) => row.bold.some(Boolean))
    ? ["**Bold**: best measured mean of its column.  "]
    : [];
  const legend = (sheet.legend || []).map((line) => `${markdownText(line)}  `);
  const foot = [
    ...italics,
    ...bold,
    ...legend,
    ...texts.map((note, i) => `[${i + 1}] ${markdownText(note)}  `),
  ];
  return `${[...lines, ...(foot.length ? ["", ...foot] : [])].join("\n")}\n`;
}

/** @param {Sheet} sheet */
function asLatex(sheet) {
  const { texts, marks } = usedNotes(sheet);
  const end = " \\\\";
  const lines = [
    "% needs \\usepackage{booktabs}",
    "\\begin{table}",
    "  \\centering",
    `  \\caption{${latexText(sheet.title)}}`,
    `  \\begin{tabular}{${sheet.columns.map((c) => (c.numeric ? "r" : "l")).join("")}}`,
    "    \\toprule",
  ];
  if (sheet.columns.some((c) => c.group)) {
    const groups = [];
    for (const column of sheet.columns) {
      const last = groups.at(-1);
      if (last && column.group && last.name === column.group) last.span += 1;
      else groups.push({ name: column.group || "", span: 1 });
    }
    lines.push(
      `    ${groups.map((g) => (g.name ? `\\multicolumn{${g.span}}{c}{${latexText(g.name)}}` : "")).join(" & ")}${end}`,
    );
  }
  lines.push(
    `    ${sheet.columns.map((c) => (c.name === "n" ? "$n$" : latexText(c.name))).join(" & ")}${end}`,
    "    \\midrule",
  );
  sheet.blocks
    .filter((block) => block.length)
    .forEach((block, k) => {
      if (k) lines.push("    \\midrule");
      for (const row of block) {
        lines.push(
          `    ${row.cells
            .map((cell, i) => {
              let text = latexText(cell);
              // What begins with a bracket would be an argument of the \\ before it.
              if (i === 0 && /^[[*]/.test(text)) text = `{}${text}`;
              if (i === 0 && row.italic && text) text = `\\textit{${text}}`;
              if (row.bold[i] && text) text = `\\textbf{${text}}`;
              return i === 0 && row.notes.length ? `${text}\\textsuperscript{${marks(row)}}` : text;
            })
            .join(" & ")}${end}`,
        );
      }
    });
  lines.push("    \\bottomrule", "  \\end{tabular}");
  const bold = sheet.blocks.flat().some((row) => row.bold.some(Boolean))
    ? ["\\textbf{Bold}: best measured mean of its column."]
    : [];
  [...bold, ...(sheet.legend || []).map(latexText)].forEach((line) =>
    lines.push(`  \\par\\footnotesize ${line}`),
  );
  texts.forEach((note, i) =>
    lines.push(`  \\par\\footnotesize\\textsuperscript{${i + 1}}${latexText(note)}`),
  );
  return `${[...lines, "\\end{table}"].join("\n")}\n`;
}

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

function showText(text, what) {
  const area = h("textarea", { readonly: true, rows: 16, "aria-label": what, value: text });
  openDialog(`${what}: select and copy`, area);
  area.select();
}

/** A modal window that Escape closes, and that gives the focus back. */
function openDialog(title, ...children) {
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
function copyButtons(sheet) {
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
