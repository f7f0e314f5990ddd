// Where a figure comes from: from the pretraining run to the row of the table.

import { DATA, details, h, hash, own, runLink, several } from "./core.js";
import { tableNames } from "./results.js";

/** @param {FileText} rowKey */
function tableOf(rowKey) {
  for (const table of DATA.tables)
    for (const row of table.rows) if (row.key === rowKey) return { table, row };
  return null;
}

/**
 * One station: what it is, its name, and facts; `state` is "", "missing" or "here".
 * One station: what it is, its name, and facts; `state` is "", "missing" or "here".
 * @type {(kind: string, name: Child, facts: Child[], state?: string) => HTMLElement}
 */
const station = (kind, name, facts, state) =>
  h(
    "li",
    { class: `station ${state || ""}` },
    h("div", { class: "station-kind" }, kind),
    h("div", { class: "station-name" }, name),
    facts
      .filter((fact) => fact !== "" && fact !== null && fact !== undefined)
      .map((fact) => h("div", { class: "station-fact" }, fact)),
  );

/** @type {(sha: FileText) => Child} */
const hashFact = (sha) => sha && ["sha256 ", hash(sha)];

/**
 * From the start of a run's weights to its figures.
 * @param {string} key
 */
export function provenanceChain(key) {
  const run = DATA.runs[key];
  const { provenance: from } = details(key);
  return h(
    "ol",
    { class: "chain" },
    run.stage === "pretrain" ? pretrainingStations(key, run, from) : detectionStations(run, from),
  );
}

/**
 * @param {string} key
 * @param {Run} run
 * @param {Provenance} from
 */
function pretrainingStations(key, run, from) {
  const children = Object.entries(DATA.runs).filter(([, other]) => other.parent === key);
  const rows = [...new Set(children.map(([, child]) => child.row).filter(Boolean))]
    .map(tableOf)
    .filter((found) => found !== null);
  return [
    station("pretraining run", run.name, [run.config_name, run.dataset], "here"),
    station(
      "backbone",
      from.backbone_file || "not written yet",
      [hashFact(from.backbone_sha256)],
      from.backbone_sha256 ? "" : "missing",
    ),
    station(
      "made of it",
      children.length ? several(children.length, "run") : "none among the folders read",
      children
        .slice(0, 12)
        .map(([child]) => /** @type {Child} */ (runLink(child)))
        .concat(children.length > 12 ? [`and ${children.length - 12} more`] : []),
      children.length ? "" : "missing",
    ),
    rows.length > 0 &&
      station(
        "table",
        several(rows.length, "row"),
        rows.map(({ table, row }) =>
          h("a", { href: `#/row/${row.key}` }, `${row.method}: ${tableNames(table)}`),
        ),
      ),
  ];
}

/**
 * Where the weights have no hash to follow.
 * @param {Run} run
 * @param {Provenance} from
 */
function startStation(run, from) {
  if (from.kind === "random" || run.method === "random init")
    return station("start", "random initialization", []);
  if (!from.weights_path) return station("start", "weights not recorded", [], "missing");
  const facts = [pathFact(from.weights_path), "its hash is not known"];
  return station("weights", lastPart(from.weights_path), facts, "missing");
}

/**
 * By what each fact of the weights is known, folded: there are many.
 * @param {Provenance} from
 */
function foldedEvidence(from) {
  const facts = Object.entries(from.evidence || {});
  if (!facts.length) return null;
  return h(
    "details",
    {},
    h("summary", {}, `evidence of ${several(facts.length, "fact")}`),
    facts.map(([fact, source]) => h("div", {}, `${fact}: ${source}`)),
  );
}

/** @type {(path: string) => string} */
const lastPart = (path) => path.slice(path.lastIndexOf("/") + 1);
/** @type {(path: FileText) => Child} */
const pathFact = (path) => path && h("span", { class: "path" }, path);
/** @type {(dataset: FileText | undefined, epochs: FileText | undefined) => Child} */
const trainedOn = (dataset, epochs) => dataset && `${dataset}${epochs ? `, ${epochs} epochs` : ""}`;

/**
 * The pretraining run, if it was found; else what the weights say of it.
 * @param {Run} run
 * @param {Provenance} from
 */
function originStation(run, from) {
  const { parent: key } = run;
  const parent = own(DATA.runs, key);
  if (key !== null && parent) {
    const same = details(key).provenance.backbone_sha256 === from.source_sha256;
    return station("pretraining run", runLink(key), [
      parent.config_name,
      trainedOn(parent.dataset, parent.epochs),
      same ? "found by its backbone’s hash" : "found by its id; the hash differs",
    ]);
  }
  const { origin } = from;
  if (!Object.keys(origin).length)
    return station("pretraining", run.method || "unknown", ["no run of this project"], "missing");
  return station(
    "pretraining run",
    origin.name || "unnamed",
    [origin.config_name, trainedOn(origin.dataset, origin.epochs), "not among the folders read"],
    "missing",
  );
}

/** @param {Run} run */
function rowStation(run) {
  const found = tableOf(run.row);
  const why = run.status === "finished" ? "not used" : `the run is ${run.status}`;
  if (!found) return station("row of the table", "none", [why], "missing");
  return station("row of the table", h("a", { href: `#/row/${found.row.key}` }, found.row.method), [
    tableNames(found.table),
    `n = ${found.row.n}`,
  ]);
}

/**
 * @param {Run} run
 * @param {Provenance} from
 */
function detectionStations(run, from) {
  const facts = [
    run.config_name,
    run.seed && `seed ${run.seed}`,
    run.schedule && `schedule ${run.schedule}`,
  ];
  const kind = run.stage ? `${run.stage} run` : "run";
  const end = [station(kind, run.name, facts, "here"), rowStation(run)];
  if (!from.weights_sha256 && !from.source_sha256) return [startStation(run, from), ...end];
  const backbone = from.source_path ? lastPart(from.source_path) : "file";
  const weights = from.weights_path ? lastPart(from.weights_path) : "file";
  // Classification reads a backbone as it is.
  const converted =
    from.weights_sha256 && from.source_sha256 && from.weights_sha256 !== from.source_sha256;
  return [
    originStation(run, from),
    from.source_sha256 &&
      station("backbone", backbone, [
        hashFact(from.source_sha256),
        from.source_format,
        from.branch && `branch ${from.branch}`,
        pathFact(from.source_path),
        foldedEvidence(from),
      ]),
    converted &&
      station("conversion", "intl-transfer convert", [
        from.backbone && `${from.backbone} → Detectron2`,
      ]),
    (converted || !from.source_sha256) &&
      station("weights", weights, [hashFact(from.weights_sha256), pathFact(from.weights_path)]),
    ...end,
  ];
}
