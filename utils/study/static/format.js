// Elements, numbers and times as the page writes them.

/** An element: its attributes (a function is a listener), then children; text is never read as markup. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// Okabe and Ito's colours without their orange, which is too near to vermilion, and five that are far from all of them.
export const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#888888",
  "#8E5BD0", "#B59A00", "#9C5A3C", "#D6336C", "#7BC043"];
const DASHES = [undefined, [9, 4], [2, 3]];

/** The colour of the k-th entry, and how often all colours were taken before: its dashes and its shape tell that. */
export const colour = (k) => COLOURS[k % COLOURS.length];
export const round = (k) => Math.floor(k / COLOURS.length) % DASHES.length;
export const dash = (k) => DASHES[round(k)];
export const FEW = 8; // entries that are drawn unless some are ticked
export const MOST = COLOURS.length * DASHES.length; // entries that can be told apart

/** The mark of the k-th entry in a legend; none without a number. */
export function swatch(k) {
  const mark = h("i", { class: `swatch ${k === undefined ? "none" : ["", "dashed", "dotted"][round(k)]}`.trim() });
  if (k !== undefined) mark.style.setProperty("--colour", colour(k));
  return mark;
}

const UNITS = { B: 1024, FLOPs: 1000, "": 1000 };
const PREFIXES = { 1024: ["", "Ki", "Mi", "Gi", "Ti"], 1000: ["", "k", "M", "G", "T", "P", "E"] };

/** A number in at most three digits with the prefix that suits it: 96232 B is 94.0 KiB. */
function prefixed(value, unit) {
  const base = UNITS[unit];
  const power = Math.min(Math.max(Math.floor(Math.log(value || 1) / Math.log(base)), 0), PREFIXES[base].length - 1);
  const scaled = value / base ** power;
  return `${digits(scaled)} ${PREFIXES[base][power]}${unit}`.trim();
}

const digits = (value) => (value >= 99.95 || Number.isInteger(value) ? value.toFixed(0) : value.toPrecision(2 + (value >= 10)));

export function seconds(value) {
  if (value < 120) return `${digits(value)} s`;
  return value < 7200 ? `${digits(value / 60)} min` : `${digits(value / 3600)} h`;
}

// What a run may cost: keys of its costs that are summed, title, how it is written.
export const COSTS = [
  { keys: ["seconds", "seconds_training"], title: "Time", text: seconds },
  { keys: ["flops_training"], title: "FLOPs of training", text: (value) => prefixed(value, "FLOPs") },
  { keys: ["inference_seconds_per_1000"], title: "Time per 1,000 predictions", text: seconds },
  {
    keys: [],
    sum: [
      ["bytes_parameters", "bytes_buffer", "bytes_teachers", "bytes_statistics"],
      ["network_bytes", "method_bytes"],
    ],
    title: "Memory of network and method",
    text: (value) => prefixed(value, "B"),
  },
  { keys: ["peak_memory_bytes"], title: "Peak memory", text: (value) => prefixed(value, "B") },
  { keys: ["parameters"], title: "Parameters", text: (value) => prefixed(value, "") },
];

/** What a run cost in one of `COSTS`, null where that is not known. */
export function costOf(run, cost) {
  for (const key of cost.keys) if (key in run.costs) return run.costs[key];
  for (const keys of cost.sum ?? []) {
    if (keys[0] in run.costs) return keys.reduce((sum, key) => sum + (run.costs[key] ?? 0), 0);
  }
  return null;
}

export const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));

/** Mean and sample standard deviation of what is known of the values; a deviation of one value is null. */
export function spread(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  const n = known.length;
  if (!n) return { n, mean: null, sd: null };
  const mean = known.reduce((a, b) => a + b) / n;
  const sd = n > 1 ? Math.sqrt(known.reduce((sum, value) => sum + (value - mean) ** 2, 0) / (n - 1)) : null;
  return { n, mean, sd };
}

export const plusMinus = ({ mean, sd }) => score(mean) + (sd === null ? "" : ` ± ${sd.toFixed(2)}`);

/** A title without its short name at the end: Average accuracy (ACC). */
export const withoutShort = (title) => title.replace(/ \((?=[\w-]*[A-Z]{2})[\w-]+\)$/, "");

export const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;

/** How long ago a time in seconds was. */
export function ago(time) {
  const passed = Math.max(Date.now() / 1000 - time, 0);
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (passed >= size) return `${Math.floor(passed / size)} ${unit} ago`;
  }
  return "just now";
}

/** The address of a file of a run. */
export const address = (folder, name, file) =>
  `${folder}/${name.split("/").map(encodeURIComponent).join("/")}${file}`;
