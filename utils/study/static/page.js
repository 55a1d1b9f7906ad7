// The page over all runs: filters, comparison, table. It reads data/runs.json, again and again where runs may change.
import { clear, curves, forget, scatter, spark } from "./charts.js";
import { closeDetail, showDetail } from "./detail.js";
import { COSTS, FEW, MOST, address, ago, costOf, count, h, plusMinus, score, spread, swatch, withoutShort } from "./format.js";

const EVERY = 4000; // milliseconds between two looks
const AT_ONCE = { entries: 20, runs: 200 }; // rows of a table before it is asked for more
const LONGEST = 100; // runs whose ticks an address can hold
const FILTERS = ["model", "dataset", "setting", "state"];
const CHOICES = ["stream", "scenario", "metric", "cost", "sort"];
const $ = (id) => document.getElementById(id);

let listing = null;
let tag = null;
const all = { entries: false, runs: false }; // whether every row is shown
const ticked = new Set();
const state = Object.fromEntries([...FILTERS, ...CHOICES, "text", "run"].map((name) => [name, ""]));

// ---- where the page stands is in its address, which can be sent to somebody

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  for (const name of Object.keys(state)) state[name] = given.get(name) ?? "";
  ticked.clear();
  for (const name of given.getAll("tick")) ticked.add(name);
}

function writeAddress() {
  const given = new URLSearchParams(Object.entries(state).filter(([, value]) => value));
  for (const name of ticked.size > LONGEST ? [] : ticked) given.append("tick", name);
  history.replaceState(null, "", given.size ? `#${given}` : location.pathname);
}

function set(name, value) {
  state[name] = value;
  writeAddress();
  render();
}

// ---- what is shown

const streamOf = (run) => `${run.dataset}, ${run.setting}`;
const entryOf = (run) => listing.entries[run.entry];
const words = (run) =>
  [run.name, entryOf(run).label, run.reason, run.chosen_on, ...run.other, ...run.marks, ...run.leaks].join(" ").toLowerCase();

function filtered() {
  const texts = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  return listing.runs.filter(
    (run) =>
      FILTERS.every((name) => !state[name] || run[name] === state[name]) &&
      texts.every((text) => words(run).includes(text)),
  );
}

/** The runs that are compared: those that are ticked, or all that the filters leave and whose scores are alike. */
function compared(runs) {
  const chosen = listing.runs.filter((run) => ticked.has(run.name));
  if (chosen.length) return { pool: chosen, chosen: true };
  const scored = runs.filter((run) => run.state !== "failed" && run.done > 0);
  const alike = scored.filter((run) => !run.other.length);
  return { pool: alike.length ? alike : scored, chosen: false, left: alike.length ? scored.length - alike.length : 0 };
}

/** Entries of some runs with what is known of each, the best first. */
function gather(runs) {
  const groups = new Map();
  for (const run of runs) groups.set(run.entry, [...(groups.get(run.entry) ?? []), run]);
  const cost = COSTS[Number(state.cost) || 0];
  const out = [];
  for (const [entry, members] of [...groups].sort((a, b) => a[0] - b[0])) {
    const finished = members.filter((run) => run.state === "finished");
    const used = new Map(); // of a seed that ran twice the later run counts
    for (const run of finished.length ? finished : members) used.set(run.seed, run);
    const counted = [...used.values()];
    const values = (metric) => counted.map((run) => run.metrics[scenario()]?.[metric]);
    const length = Math.max(0, ...counted.map((run) => run.curves[scenario()]?.length ?? 0));
    const points = Array.from({ length }, (_, t) => {
      const at = counted.map((run) => run.curves[scenario()]?.[t] ?? null);
      return at.includes(null) ? null : spread(at);
    });
    const costs = counted.map((run) => costOf(run, cost));
    out.push({
      ...listing.entries[entry], entry, counted, points,
      open: !finished.length,
      value: spread(values(metric())),
      second: spread(values(second())),
      cost: spread(costs),
      runs: counted.map((run, i) => [costs[i], values(metric())[i] ?? null]).filter(([x, y]) => x !== null && y !== null),
    });
  }
  const sign = listing.metrics[metric()]?.[2] === "lower" ? 1 : -1;
  return out.sort((a, b) => sign * ((a.value.mean ?? sign * Infinity) - (b.value.mean ?? sign * Infinity)));
}

let scenarios = [];
let scoreName = "accuracy"; // of the stream that is compared
const scenario = () => (scenarios.includes(state.scenario) ? state.scenario : scenarios[0]);
const metric = () => (state.metric in listing.metrics ? state.metric : "acc");
const second = () => (metric() === "forgetting" ? "acc" : "forgetting"); // stands beside the metric that is chosen
const metricTitle = (name) =>
  name in listing.metrics ? withoutShort(listing.metrics[name][0]).replace(/accuracy/g, scoreName) : name;

function options(select, values, chosen, none, title = (value) => value) {
  const wanted = [...(none === null ? [] : [["", none]]), ...values.map((value) => [value, title(value)])];
  const key = JSON.stringify(wanted);
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    select.replaceChildren(...wanted.map(([value, text]) => h("option", { value }, text)));
  }
  select.value = chosen;
}

const distinct = (values) => [...new Set(values)].sort((a, b) => String(a).localeCompare(String(b), "en", { numeric: true }));

function render() {
  const runs = filtered();
  for (const name of FILTERS) options($(name), distinct(listing.runs.map((run) => run[name])), state[name], "all");
  if ($("text").value !== state.text) $("text").value = state.text;
  $("clear").hidden = ![...FILTERS, "text"].some((name) => state[name]) && !ticked.size;
  const of = (what) => listing.runs.filter((run) => run.state === what).length;
  const counts = [count(listing.runs.length, "run"), count(of("finished"), "finished").replace(/s$/, "")];
  for (const what of ["unfinished", "failed"]) if (of(what)) counts.push(`${of(what)} ${what}`);
  $("counts").textContent = counts.join(" · ");
  renderComparison(runs);
  renderRuns(runs);
}

function renderComparison(runs) {
  const { pool, chosen, left } = compared(runs);
  const sizes = new Map();
  for (const run of pool) sizes.set(streamOf(run), (sizes.get(streamOf(run)) ?? 0) + 1);
  const streams = [...sizes.keys()].sort();
  const most = [...sizes].sort((a, b) => b[1] - a[1])[0]?.[0];
  const stream = streams.includes(state.stream) ? state.stream : most;
  const mine = pool.filter((run) => streamOf(run) === stream);
  scoreName = mine.some((run) => run.score === "r2") ? "R²" : "accuracy";
  scenarios = [...new Set(mine.flatMap((run) => Object.keys(run.curves)))];
  const button = (name) =>
    h("button", { type: "button", "aria-pressed": String(name === stream), click: () => set("stream", name) }, name);
  $("streams").replaceChildren(...(streams.length > 1 ? streams.map(button) : []));
  options($("scenario"), scenarios, scenario() ?? "", null);
  const defined = Object.keys(listing.metrics).filter((name) => mine.some((run) => scenario() in run.metrics && run.metrics[scenario()][name] !== undefined));
  options($("metric"), defined, metric(), null, metricTitle);
  const known = COSTS.map((cost, i) => i).filter((i) => mine.some((run) => costOf(run, COSTS[i]) !== null));
  if (!known.includes(Number(state.cost) || 0)) state.cost = known.length ? String(known[0]) : "";
  options($("cost"), known.map(String), String(Number(state.cost) || 0), null, (i) => COSTS[i].title);

  const entries = gather(mine);
  const drawn = entries.slice(0, chosen ? MOST : FEW);
  [...drawn].sort((a, b) => a.entry - b.entry).forEach((entry, k) => (entry.k = k));
  const about = [];
  if (stream) about.push(`${stream}: ${chosen ? "the runs that are ticked" : "the runs that the filters leave"}.`);
  if (drawn.length < entries.length) about.push(`The best ${drawn.length} of ${entries.length} are drawn; tick others to see them.`);
  if (drawn.some((entry) => entry.points.some((point) => point?.sd))) about.push("Mean over seeds; band and whisker: one standard deviation.");
  if (left) about.push(`Left out: ${count(left, "run")} with other scores.`);
  if (!stream) about.push(listing.runs.length ? "No run with a score is left." : "No run is here yet: a run appears when it begins.");
  else if (!scenarios.length) about.push("They have no score yet.");
  $("comparison").parentElement.classList.toggle("nothing", !scenarios.length);
  $("about").textContent = about.join(" ");
  const warnings = warn(mine);
  $("warning").hidden = !warnings.length;
  $("warning").textContent = warnings.join(" ");

  const lines = drawn.filter((entry) => entry.points.some(Boolean));
  $("curves-title").textContent = `Average ${scoreName} over the tasks seen, in percent`;
  const cost = COSTS[Number(state.cost) || 0];
  $("scatter-title").textContent = `${metricTitle(metric())} against ${cost.title.replace(/^[A-Z](?=[a-z])/, (c) => c.toLowerCase())}`;
  if (lines.length) curves($("curves"), lines.map((entry) => ({ ...entry, name: entry.label })));
  else clear($("curves"));
  const points = drawn.filter((entry) => entry.runs.length && entry.value.mean !== null);
  if (points.length) {
    const shown = points.map((entry) => ({
      name: entry.label, k: entry.k, x: entry.cost.mean, y: entry.value.mean, sd: entry.value.sd, runs: entry.runs,
    }));
    scatter($("scatter"), shown, { xlabel: cost.title, text: cost.text });
  } else {
    clear($("scatter"));
    $("scatter").append(h("p", { class: "dim" }, "What a run costs is known at its end."));
  }
  renderEntries(entries, cost);
}

/** What a reader must know before these runs are put beside each other. */
function warn(runs) {
  const found = [];
  const kinds = distinct(runs.map((run) => run.other.join(", ")));
  if (kinds.length > 1) found.push(`Not the same kind of score: ${kinds.map((kind) => kind || "test score").join("; ")}.`);
  const chosen = distinct(runs.map((run) => run.chosen_on ?? ""));
  if (chosen.length > 1) found.push(`Options were chosen in different ways: ${chosen.map((on) => on || "by hand, or not recorded").join("; ")}.`);
  const leaking = runs.filter((run) => run.leaks.length).length;
  if (leaking) found.push(`${count(leaking, "run")} with a leak: see the marks.`);
  return found;
}

/** A method and what tells its entries apart, the latter dim. */
function label(entry) {
  const [model, ...rest] = entry.label.split(", ");
  return h("span", {}, h("b", {}, model), rest.length ? h("span", { class: "dim" }, ` ${rest.join(", ")}`) : null);
}

function cell(name, className, ...content) {
  return h("td", { "data-label": name, class: className || null }, ...content);
}

function renderEntries(entries, cost) {
  const title = metricTitle(metric());
  const names = ["method", "seeds", `${title}, ${scenario() ?? ""}`, metricTitle(second()).toLowerCase(), cost.title.toLowerCase().replace("flops", "FLOPs"), ""];
  $("entries").hidden = !entries.length;
  $("entries").tHead.replaceChildren(h("tr", {}, names.map((name, i) => h("th", { class: i && i < 5 ? "n" : null }, name))));
  const rows = part("entries", entries).map((entry) => {
    const marks = new Set(entry.counted.flatMap(marksOf).map((mark) => JSON.stringify(mark)));
    return h(
      "tr", {},
      cell("method", "name", swatch(entry.k), label(entry)),
      cell("seeds", "n", String(entry.counted.length), entry.open ? h("span", { class: "dim" }, " not finished") : null),
      cell(names[2], "n", h("b", {}, plusMinus(entry.value))),
      cell(names[3], "n", plusMinus(entry.second)),
      cell(names[4], "n", entry.cost.mean === null ? "–" : cost.text(entry.cost.mean)),
      cell("", "marks", [...marks].map((mark) => badge(JSON.parse(mark)))),
    );
  });
  $("entries").tBodies[0].replaceChildren(...rows);
}

/** The rows of a table that are shown at first, or all once that was asked for; a button asks. */
function part(name, values) {
  const shown = all[name] ? values : values.slice(0, AT_ONCE[name]);
  $(`more-${name}`).hidden = shown.length === values.length;
  $(`more-${name}`).textContent = `Show all ${values.length.toLocaleString("en")}`;
  return shown;
}

// ---- the table of runs

/** Marks of a run: [kind, text]. */
function marksOf(run) {
  return [
    ...run.leaks.map((text) => ["bad", `leak: ${text}`]),
    ...run.marks.map((text) => ["note", text]),
    ...run.other.map((text) => ["note", text]),
    ...(run.chosen_on ? [[run.chosen_on === "test" ? "bad" : "plain", `options chosen on ${run.chosen_on}`]] : []),
  ];
}

const badge = ([kind, text]) => h("span", { class: `badge ${kind}`, title: text }, text);

/** The scenario that is chosen above, where a run has it. */
const scenarioOf = (run) => (scenario() in run.curves ? scenario() : Object.keys(run.curves)[0]);
const valueOf = (run, name) => run.metrics[scenarioOf(run)]?.[name] ?? null;
const COLUMNS = {
  method: (run) => entryOf(run).label,
  stream: streamOf,
  seed: (run) => run.seed,
  state: (run) => run.state,
  score: (run) => valueOf(run, metric()),
  second: (run) => valueOf(run, second()),
  time: (run) => costOf(run, COSTS[0]),
  changed: (run) => run.changed,
};

function sorted(runs) {
  const [name, down] = (state.sort || "changed-down").split("-");
  const key = COLUMNS[name] ?? COLUMNS.changed;
  const sign = down ? -1 : 1;
  const compare = (a, b) => {
    if (a === b) return 0;
    if (a === null) return 1; // what is not known comes last, whichever way
    if (b === null) return -1;
    return sign * (typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true }));
  };
  return runs.map((run) => [key(run), run]).sort((a, b) => compare(a[0], b[0])).map(([, run]) => run);
}

function renderRuns(runs) {
  const [by, down] = (state.sort || "changed-down").split("-");
  const sort = (name) => {
    const falls = ["score", "second", "time", "changed"].includes(name); // numbers begin with the largest
    set("sort", by === name ? (down ? name : `${name}-down`) : falls ? `${name}-down` : name);
  };
  const titles = { score: metricTitle(metric()), second: metricTitle(second()).toLowerCase() };
  const head = Object.keys(COLUMNS).map((name) => {
    const order = by === name ? (down ? "descending" : "ascending") : null;
    const numeric = ["seed", "score", "second", "time", "changed"].includes(name) ? "n" : null;
    return h("th", { class: numeric, "aria-sort": order }, h("button", { type: "button", click: () => sort(name) }, titles[name] ?? name));
  });
  head.splice(5, 0, h("th", {}, "over tasks"));
  const every = runs.length && runs.every((run) => ticked.has(run.name));
  const tickAll = h("input", { type: "checkbox", "aria-label": "Compare all of these runs", change: () => tick(runs, !every) });
  tickAll.checked = every;
  $("runs").tHead.replaceChildren(h("tr", {}, h("th", {}, tickAll), head, h("th"), h("th")));
  $("runs-title").textContent = runs.length === listing.runs.length ? "Runs" : `Runs: ${runs.length} of ${listing.runs.length}`;
  $("runs").tBodies[0].replaceChildren(...part("runs", sorted(runs)).map(rowOf));
}

function tick(runs, on) {
  for (const run of runs) on ? ticked.add(run.name) : ticked.delete(run.name);
  writeAddress();
  render();
}

function rowOf(run) {
  const box = h("input", { type: "checkbox", "aria-label": "Compare this run", change: () => tick([run], box.checked) });
  box.checked = ticked.has(run.name);
  const value = valueOf(run, metric());
  const bar = h("span", { class: "share" });
  bar.style.setProperty("--share", `${Math.min(Math.max(value ?? 0, 0), 100)}%`);
  const open = h("a", { href: "#", click: (event) => { event.preventDefault(); set("run", run.name); openDetail(); } }, label(entryOf(run)));
  const progress = run.state === "finished" ? "" : ` ${run.done}/${run.tasks} tasks`;
  const time = costOf(run, COSTS[0]);
  const curve = run.curves[scenarioOf(run)];
  return h(
    "tr", { class: run.state, "aria-selected": run.name === state.run ? "true" : null },
    cell("compare", "tick", box),
    cell("method", "name", open, run.reason ? h("span", { class: "reason", title: run.reason }, run.reason) : null),
    cell("stream", "stream", h("span", {}, run.dataset, h("span", { class: "dim" }, ` ${run.setting}`))),
    cell("seed", "n", String(run.seed)),
    cell("state", "state", h("i", { class: "dot" }), run.state, progress ? h("span", { class: "dim" }, progress) : null),
    cell(metricTitle(metric()), "n", value === null ? "–" : [bar, score(value)]),
    cell("over tasks", "over", curve ? spark(curve, run.tasks) : null),
    cell(metricTitle(second()).toLowerCase(), "n", score(valueOf(run, second()))),
    cell("time", "n", time === null ? "–" : COSTS[0].text(time)),
    cell("changed", "n dim", ago(run.changed)),
    cell("", "marks", marksOf(run).map(badge)),
    cell("", "n", run.report ? h("a", { class: "report", href: address("runs", run.name, "/report.html") }, "report") : null),
  );
}

// ---- life

async function read() {
  const answer = await fetch("data/runs.json", { cache: "no-cache" });
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  const now = answer.headers.get("ETag") ?? "none";
  if (listing && now === tag && now !== "none") return false;
  [listing, tag] = [await answer.json(), now];
  return true;
}

async function look() {
  let changed = false;
  try {
    changed = await read();
    document.body.classList.remove("lost");
  } catch (error) {
    document.body.classList.add("lost");
    $("counts").textContent = listing ? "The server does not answer; this is what it said last." : `No runs: ${error.message}`;
    tag = null;
  }
  if (changed) {
    $("title").textContent = document.title = `Runs of ${listing.folder}`;
    document.querySelector("main").hidden = false;
    render();
  }
  if (listing) await openDetail().catch(() => null); // a server that does not answer is told above
  if (!listing || listing.live) setTimeout(look, EVERY);
}

async function openDetail() {
  const run = listing.runs.find((other) => other.name === state.run);
  if (run) await showDetail($("detail"), run, { label: entryOf(run).label, marks: marksOf(run).map(badge), metrics: listing.metrics });
  else closeDetail($("detail"));
  forget();
}

function listen() {
  for (const name of [...FILTERS, "scenario", "metric", "cost"]) $(name).addEventListener("change", (event) => set(name, event.target.value));
  $("text").addEventListener("input", (event) => set("text", event.target.value));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("clear").addEventListener("click", () => {
    for (const name of [...FILTERS, "text"]) state[name] = "";
    tick(listing.runs, false);
  });
  for (const name of Object.keys(all)) $(`more-${name}`).addEventListener("click", () => { all[name] = true; render(); });
  $("detail").addEventListener("click", (event) => event.target === $("detail") && $("detail").close()); // beside it
  $("detail").addEventListener("close", () => set("run", ""));
  addEventListener("hashchange", () => { readAddress(); if (listing) { render(); openDetail(); } });
  for (const query of ["(prefers-color-scheme: dark)", "print"]) {
    matchMedia(query).addEventListener("change", () => { if (listing) { render(); openDetail(); } });
  }
}

readAddress();
listen();
look();
