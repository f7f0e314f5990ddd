// The page's data, as intl_transfer/results/report/payload.py and details.py write it. A test lets the type
// checker read a real page's data against this.

/** A finite number; null for what is none, or was not recorded. */
type Value = number | null;
/** Numbers by name. */
type Figures = Record<string, Value>;
/** A value of a file, as text; null where the file says nothing. */
type FileText = string | null;
/** A name and what is stated of it. */
type Fact = [string, string];

interface Overview {
  tables: Table[];
  /** By key: what a run's address and the element of its own page's data are named by. */
  runs: Record<string, Run>;
  /** Settings by stage ("" where a run states none), of its first run. */
  configs: Record<string, Record<string, string>>;
  problems: string[];
  /** ISO 8601. */
  built: string;
  /** Seconds after which the page loads itself again. */
  refresh: number | null;
  /** Digits after the point, and whether deviations are shown, at first. */
  digits: number;
  spread: boolean;
  /** What ± is, for copies. */
  spreads: { measured: string; published: string };
}

interface Table {
  key: string;
  name: string;
  title: string;
  parts: { title: string; dataset: string; tasks: string[] }[];
  /** What was measured alike: columns in which the same runs have figures. */
  protocols: Protocol[];
  columns: { task: string; metric: string; group: string }[];
  notes: string[];
  legend: string[];
  rows: Row[];
  /** In base64, by form; empty where none is drawn. */
  pictures: { svg?: string; pdf?: string };
}

/** Figures are compared, and averaged, only within one. */
interface Protocol {
  key: string;
  /** Its columns' headings. */
  name: string;
  /** Data set and protocol in words, which no other has. */
  title: string;
  /** Indices of the columns that are shown. */
  columns: number[];
}

interface Row {
  key: string;
  method: string;
  detail: string;
  /** Repetitions, for each part where they differ: "3", "1, 5"; "" where that is not known. */
  n: string;
  published: boolean;
  group: string;
  /** What is shown first, and every setting that decided its start. */
  evidence: { lines: Fact[]; decided: Fact[] };
  /** Their numbers, from 1. */
  notes: number[];
  /** By column. */
  figures: (Figure | null)[];
  runs: string[];
  /** By protocol (its key): the runs, and how many repetitions their means are over. */
  measured: { key: string; n: string; runs: string[] }[];
  /** By column, the figure of every run. */
  each: Value[][];
}

interface Figure {
  mean: Value;
  std: Value;
  /** The highest of its column. */
  best: boolean;
  /** A single run's, beside means of several. */
  alone: boolean;
  /** Significantly above or below the baseline. */
  arrow: "" | "↑" | "↓";
  /** Repetitions, where they are not its row's; else "". */
  n: string;
}

interface Run {
  name: string;
  path: string;
  stage: FileText;
  status: string;
  reason: FileText;
  /** Not made by this project. */
  external: boolean;
  method: FileText;
  config_name: FileText;
  seed: FileText;
  started: FileText;
  ended: FileText;
  dataset: FileText;
  detector: FileText;
  schedule: FileText;
  batch_size: FileText;
  base_lr: FileText;
  epochs: FileText;
  /** Seconds. */
  wall_time: Value;
  figures: Record<string, number>;
  last: LastLine;
  total: Total;
  /** The table's row that it stands in, the key of its protocol, and its pretraining run. */
  row: FileText;
  protocol: FileText;
  parent: FileText;
}

/** Of metrics.jsonl: where the run is, and when that was, in seconds since 1970. Empty: no line yet. */
type LastLine =
  | { step: number; epoch: Value; time: Value }
  | { step?: undefined; epoch?: undefined; time?: undefined };

/** How far a run is to go. */
interface Total {
  iterations: Value;
  epochs: Value;
}

/** A run's own page. */
interface Details {
  series: { unit: "step" | "iteration"; curves: CurveGroup[]; last: LastLine };
  spectra: Spectrum[];
  metrics: Record<string, Figures>;
  classes: Record<string, Figures>;
  /** By task and overlap. */
  precision: Record<string, Record<string, PrecisionRecall>>;
  pictures: NoPictures | ContactSheet | Pictures;
  /** A data URI. */
  views: FileText;
  log: { file: string; lines: string[] }[];
  total: Total;
  provenance: Provenance;
  facts: Record<string, string>;
  environment: Record<string, string>;
  sessions: Session[];
  error: FileText;
  /** The least trace loss, the one at which collapse is announced, and at which rank that is. */
  collapse: { floor: number; alarm: number; rank: number } | null;
  /** Settings that differ from the stage's first run. */
  config: { changed: Record<string, string>; absent: string[] };
}

/** Curves that share their steps. */
interface CurveGroup {
  x: number[];
  y: Record<string, Value[]>;
}

interface Spectrum {
  step: number;
  /** 1: the largest eigenvalue. */
  ranks: number[];
  /** Over the largest. */
  values: Value[];
}

interface PrecisionRecall {
  recall: number[];
  /** By class. */
  precision: Record<string, Value[]>;
}

interface NoPictures {
  sheet?: undefined;
  images?: undefined;
}

/** One picture of them all, a data URI. */
interface ContactSheet {
  sheet: string;
  images?: undefined;
}

interface Pictures {
  sheet?: undefined;
  classes: string[];
  images: Picture[];
  /** The score below which nothing was kept. */
  least: number;
}

/** A picture as a data URI, and what is on it in its pixels. */
interface Picture {
  uri: string;
  width: number;
  height: number;
  error: Value;
  truth: Seen[];
  predictions: Seen[];
}

/** An object on a picture. */
interface Seen {
  class: Value;
  score: Value;
  /** Left, top, right, bottom. */
  box: [number, number, number, number];
  /** x and y of corner after corner. */
  polygons: number[][];
}

interface Provenance {
  kind: FileText;
  weights_path: FileText;
  weights_sha256: FileText;
  source_path: FileText;
  source_sha256: FileText;
  source_format: FileText;
  branch: FileText;
  evidence: Record<string, string>;
  backbone: FileText;
  origin: Record<string, FileText>;
  backbone_file: FileText;
  backbone_sha256: FileText;
}

interface Session {
  started: FileText;
  ended: FileText;
  host: FileText;
  ranks: FileText;
  command: string;
  changes: Record<string, string>;
}
