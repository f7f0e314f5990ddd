// What the report's modules hand to each other: elements, tables, charts, and what the page remembers.

/** What h() takes as children. */
type Child = Node | string | number | boolean | null | undefined | Child[];

/** Where it is null, undefined or false, there is no attribute; true is one without a value. */
type Attribute = string | number | boolean | null | undefined;

type AttributeName =
  | `aria-${string}`
  | `data-${string}`
  | "alt"
  | "autocomplete"
  | "class"
  | "colspan"
  | "cx"
  | "cy"
  | "d"
  | "download"
  | "dy"
  | "height"
  | "hidden"
  | "href"
  | "id"
  | "max"
  | "min"
  | "open"
  | "placeholder"
  | "r"
  | "readonly"
  | "role"
  | "rows"
  | "rx"
  | "scope"
  | "selected"
  | "spellcheck"
  | "src"
  | "step"
  | "stroke-dasharray"
  | "style"
  | "tabindex"
  | "text-anchor"
  | "title"
  | "transform"
  | "type"
  | "value"
  | "viewBox"
  | "width"
  | "x"
  | "x1"
  | "x2"
  | "y"
  | "y1"
  | "y2";

type Attributes = { [name in AttributeName]?: Attribute };

/** By the event's name; they are called for the element itself. */
type Listeners<E extends Element> = {
  [K in keyof GlobalEventHandlersEventMap]?: (
    event: GlobalEventHandlersEventMap[K] & { currentTarget: E },
  ) => void;
};

type Props<E extends Element> = (Attributes & Listeners<E>) | null | undefined;

// -- what is remembered ----------------------------------------------------------------------

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

// -- tables ----------------------------------------------------------------------------------

interface Column {
  name: string;
  /** Columns next to each other of one group share a heading. */
  group?: string;
  /** The first of its group. */
  start?: boolean;
  class?: string;
  hint?: string;
  numeric?: boolean;
  /** Its numbers are sorted from the smallest first. */
  up?: boolean;
  /** It is not sorted by. */
  fixed?: boolean;
  /** Its name is read out but not shown, and it is not copied. */
  silent?: boolean;
}

interface Cell {
  /** It is sorted by this, and shown and copied as the text. */
  value?: number | FileText;
  text: string;
  /** Shown in the text's place. */
  node?: Child;
  under?: string;
  /** Of a figure: the text's two parts. */
  mean?: string;
  beside?: string;
  best?: boolean;
  class?: string;
}

interface Line {
  cells: Cell[];
  /** Words by which it is found though they are not shown. */
  words?: string;
  italic?: boolean;
  /** Numbers, from 1. */
  notes?: number[];
  evidence?: Fact[];
}

interface Block {
  name?: string;
  class?: string;
  lines: Line[];
}

interface TableSpec {
  id: string;
  title: string;
  class?: string;
  /** The column that names a row; the first if it is not given. */
  head?: number;
  notes?: string[];
  legend?: string[];
  columns: Column[];
  blocks: Block[];
}

/** A table as it is shown, for copying. */
interface Sheet {
  title: string;
  columns: Column[];
  notes: string[];
  legend: string[];
  blocks: SheetRow[][];
}

interface SheetRow {
  cells: string[];
  means: (string | undefined)[];
  beside: (string | undefined)[];
  bold: boolean[];
  italic: boolean;
  notes: number[];
}

/** A column's letter for LaTeX, how many of LaTeX's columns it spans, and whether figures stand in it. */
interface LatexColumn {
  spec: string;
  span: number;
  figure: boolean;
}

/** A form's fields. */
type Choice = [value: string, name: string];

// -- charts ----------------------------------------------------------------------------------

/** A chart that can be drawn again. */
type Chart = HTMLElement & { redraw: () => void };

/** From a value to its place in a chart, in px. */
type Scale = (value: number) => number;

/** The part of a chart within its axes, in px. */
interface Box {
  left: number;
  right: number;
  top: number;
  bottom: number;
}

interface Axis {
  at: Scale;
  ticks: number[];
  label?: string;
}

interface Curve {
  x: number[];
  y: Value[];
}

/** A curve with its name, and its band where it is a mean. */
interface Series extends Curve {
  name: string;
  low?: Value[];
  high?: Value[];
  /** Its color; the place in its chart if it is not given. */
  index?: number;
}

type DrawnSeries = Series & { index: number };

/** Whether a value can be drawn. */
type Drawable = (value: Value | undefined) => value is number;

interface LineOptions {
  /** The axes' names; of x, the unit too. */
  x: string;
  y?: string;
  log?: boolean;
  logX?: boolean;
  /** Whether a button changes to the logarithm and back. */
  switchable?: boolean;
  /** What the axes span, in place of what the values do. */
  range?: [number, number];
  domain?: [number, number];
  references?: Reference[];
  note?: Child;
}

interface Reference {
  value: number;
  name: string;
}

/** A line chart as it is drawn. */
interface View {
  x: Axis;
  y: Axis;
  box: Box;
  width: number;
  /** What x spans. */
  first: number;
  last: number;
  ok: Drawable;
  /** Whether x is logarithmic. */
  log?: boolean;
  unit: string;
}

/** What the curves are at a place. */
interface Reading {
  line: DrawnSeries;
  value: number;
  low: Value | undefined;
  high: Value | undefined;
  px: number;
}

interface NamedValue {
  name: string;
  value: Value;
}

interface NamedPair {
  name: string;
  a: Value;
  b: Value;
}

/** A row of a table: the mean, its spread and every seed. */
interface NamedMean {
  name: string;
  mean: number;
  std: Value;
  seeds: number[];
  published: boolean;
  href: FileText;
}
