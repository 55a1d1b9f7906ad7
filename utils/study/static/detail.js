// One run in full, in a drawer beside the table.
import { curves, losses } from "./charts.js";
import { COLOURS, COSTS, address, costOf, count, h, score, swatch, withoutShort } from "./format.js";

let shown = ""; // the run that is open
let said = ""; // what is known of it, and how it is drawn
let scenario = "";

export function closeDetail(dialog) {
  shown = said = "";
  if (dialog.open) dialog.close();
}

/** Open the drawer with a run, or bring it up to date. */
export async function showDetail(dialog, run, { label, marks, metrics }) {
  const answer = await fetch(address("data/run", run.name, ".json"), { cache: "no-cache" });
  if (!answer.ok) return closeDetail(dialog);
  const text = await answer.text();
  const now = JSON.stringify([text, run, matchMedia("(prefers-color-scheme: dark)").matches]);
  if (shown === run.name && said === now) return;
  const detail = JSON.parse(text);
  const top = shown === run.name ? dialog.scrollTop : 0;
  const unfolded = shown === run.name ? [...dialog.querySelectorAll("details[open] > summary")].map((e) => e.textContent) : ["Notes"];
  [shown, said] = [run.name, now];
  const more = (title, content) => h("details", { open: unfolded.includes(title) }, h("summary", {}, title), content);
  const names = Object.keys(detail.matrices);
  if (!names.includes(scenario)) scenario = names[0] ?? "";
  const accuracy = h("div", { class: "plot" });
  const loss = h("div", { class: "plot low" });
  const part = h("div");
  const legend = h("p", { class: "legend dim" });
  const choose = h("div", { class: "choice", role: "group", "aria-label": "Scenario" });
  const fill = () => {
    const press = (name) => () => { scenario = name; fill(); };
    choose.replaceChildren(...(names.length > 1 ? names : []).map((name) =>
      h("button", { type: "button", "aria-pressed": String(name === scenario), click: press(name) }, name)));
    const R = detail.matrices[scenario] ?? [];
    part.replaceChildren(keyNumbers(run, detail, metrics), matrix(R, detail.tasks));
    const lines = R.map((_, task) => ({
      name: detail.tasks[task] ?? `task ${task + 1}`, k: task,
      points: R.map((row) => (row[task] === null ? null : { mean: row[task], sd: null })),
    })).filter((line) => line.points.some(Boolean));
    if (lines.length) curves(accuracy, lines);
    const few = lines.length <= COLOURS.length;
    legend.replaceChildren(...(few ? lines : []).map((line) => h("span", {}, swatch(line.k), line.name)));
  };
  dialog.replaceChildren(h("div", {},
    h("form", { method: "dialog" }, h("button", { class: "close", "aria-label": "Close" }, "×")),
    h("h2", { id: "detail-title" }, label, h("span", { class: "dim" }, ` on ${run.dataset}, seed ${run.seed}`)),
    h("p", { class: `state ${run.state}` }, h("i", { class: "dot" }), `${run.state}, ${run.done} of ${count(run.tasks, "task")}`,
      detail.iterations ? `, ${count(detail.iterations, "iteration")}` : "", " ", marks),
    run.reason ? h("p", { class: "reason" }, run.reason) : null,
    h("p", { class: "links" },
      run.report ? h("a", { href: address("runs", run.name, "/report.html") }, "Open the report") : null,
      run.seeds_report ? h("a", { href: address("runs", run.seeds_report, "/report.html") }, "Report of all its seeds") : null),
    choose, part,
    names.length ? h("figure", {}, h("figcaption", {}, "Score on each task, in percent"), accuracy, legend) : null,
    Object.keys(detail.losses).length ? h("figure", {}, h("figcaption", {}, "Loss"), loss) : null,
    detail.chosen.length ? [h("h3", {}, "Options"), table(["option", "value", "origin"], detail.chosen)] : null,
    more(count(detail.others.length, "other option"), table(["option", "value", "origin"], detail.others)),
    more("Costs", table(["what", "value"], costs(run, detail))),
    more("Environment", table(["what", "value"], Object.entries(detail.environment))),
    Object.keys(detail.notes).length ? more("Notes", table(["about", "note"], Object.entries(detail.notes))) : null,
    h("p", { class: "dim path" }, run.name),
  ));
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = top;
  fill();
  if (Object.keys(detail.losses).length) losses(loss, detail.losses);
}

function keyNumbers(run, detail, metrics) {
  const found = Object.entries(detail.metrics[scenario] ?? {}).filter(([, value]) => value !== null);
  const time = costOf(run, COSTS[0]);
  const numbers = found.map(([name, value]) => {
    const [title, definition] = metrics[name] ?? [name, ""];
    return h("div", { title: definition }, h("dt", {}, withoutShort(title)), h("dd", {}, score(value)));
  });
  if (time !== null) numbers.push(h("div", {}, h("dt", {}, "Time"), h("dd", {}, COSTS[0].text(time))));
  return h("dl", { class: "numbers" }, numbers);
}

/** R as a heat map: row, the last task trained; column, the task that was scored. */
function matrix(R, tasks) {
  const rows = R.map((row, t) => [t, row]).filter(([, row]) => row.some((value) => value !== null));
  if (!rows.length) return h("p", { class: "dim" }, "Nothing evaluated yet.");
  const dense = R.length > 20; // no room for numbers
  const heat = (value) => {
    if (value === null) return h("td", { class: "none" });
    const element = h("td", { title: score(value) }, dense ? "" : value.toFixed(R.length > 10 ? 0 : 1));
    const share = Math.min(Math.max(value, 0), 100);
    element.style.setProperty("--share", `${share}%`);
    if (share > 55) element.className = "full";
    return element;
  };
  const told = (task) => (dense && (task + 1) % 5 ? "" : String(task + 1));
  const columns = R.map((_, task) => h("th", { scope: "col", title: tasks[task] ?? "" }, told(task)));
  const body = rows.map(([t, row]) => h("tr", {}, h("th", { scope: "row" }, told(t) && `after ${told(t)}`), row.map(heat)));
  return h("figure", {}, h("figcaption", {}, "Accuracy matrix: score on each task after each task, in percent"),
    h("div", { class: "scroll" }, h("table", { class: dense ? "matrix dense" : "matrix" }, h("thead", {}, h("tr", {}, h("th", {}, "task"), columns)), h("tbody", {}, body))));
}

function costs(run, detail) {
  const known = COSTS.map((cost) => [cost.title, costOf(run, cost), cost]).filter(([, value]) => value !== null);
  const texts = known.map(([title, value, cost]) => [title, cost.text(value)]);
  return [...texts, ...Object.entries(detail.costs).map(([name, value]) => [name, String(value)])];
}

function table(head, rows) {
  return h("table", { class: "plain" }, h("thead", {}, h("tr", {}, head.map((name) => h("th", {}, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((value) => h("td", {}, value))))));
}
