// What the page is given (intl_transfer/results/report/payload.py and details.py), and what of it is
// remembered. A test holds these names against those of a real page.

type Value = number | null;
type Figures = Record<string, Value>;
/** A value of a file, as text. */
type FileText = string | null;

interface Overview {
  tables: Table[];
  runs: Record<string, Run>;
  /** Settings by stage, of its first run. */
  configs: Record<string, Record<string, string>>;
  problems: string[];
  built: string;
  /** Seconds after which the page loads itself again. */
  refresh: number | null;
}

interface Table {
  key: string;
  name: string;
  title: string;
  parts: { title: string; dataset: string; tasks: string[] }[];
  columns: { task: string; metric: string; group: string }[];
  notes: string[];
  legend: string[];
  rows: Row[];
  /** In base64, by form; empty where none is drawn. */
  pictures: Record<string, string>;
}

interface Row {
  key: string;
  method: string;
  detail: string;
  n: number;
  published: boolean;
  group: string;
  /** Names and texts: what is shown first, and every setting that decided its start. */
  evidence: { lines: [string, string][]; decided: [string, string][] };
  /** Their numbers, from 1. */
  notes: number[];
  figures: (Figure | null)[];
  runs: string[];
  /** By column, the figure of every run. */
  each: Value[][];
}

interface Figure {
  mean: Value;
  std: Value;
  best: boolean;
  alone: boolean;
  arrow: "" | "↑" | "↓";
  n: Value;
}

interface Run {
  name: string;
  path: string;
  stage: FileText;
  status: string;
  reason: FileText;
  external: any;
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
  wall_time: Value;
  figures: Record<string, number>;
  last: { step?: number; epoch?: number; time?: number; [key: string]: any };
  total: { iterations: Value; epochs: Value };
  /** The table's row that it stands in, and its pretraining run. */
  row: FileText;
  parent: FileText;
}

/** A run's own page. */
interface Details {
  series: any;
  spectra: any;
  metrics: Record<string, Figures>;
  classes: Record<string, Figures>;
  precision: Record<string, Record<string, PrecisionRecall>>;
  pictures: any;
  views: any;
  log: { name: string; lines: string[]; [key: string]: any }[];
  total: { iterations: Value; epochs: Value };
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

interface PrecisionRecall {
  recall: Value[];
  precision: Record<string, Value[]>;
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

/** What h() takes as children. */
type Child = Node | string | number | boolean | null | undefined | Child[];
type Props = Record<string, any> | null | undefined;

/** Kept in the browser from one look at the page to the next. */
interface Remembered {
  keep: () => void;
}
interface Place extends Remembered {
  filter: string;
  published: boolean;
  spread: boolean;
  digits: number;
  /** By table: column and direction (1 or -1). */
  sorts: Record<string, [number, number]>;
  chosen: string[];
  runs: string;
  status: string;
}

/** A curve, and its band where it is a mean. */
interface Series {
  name: string;
  x: Value[];
  y: Value[];
  low?: Value[];
  high?: Value[];
  index?: number;
}

/** A chart that can be drawn again. */
type Chart = HTMLElement & { redraw: () => void };

/** From a value to its place in a chart, in px. */
type Scale = (value: number) => number;
