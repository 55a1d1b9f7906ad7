// Curves and points by uPlot, in the page's colours.
import { colour, dash, h, round, score } from "./format.js";

const drawn = new Map(); // element -> its plot

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** A colour half transparent. */
const faint = (hex, share) => hex + Math.round(share * 255).toString(16).padStart(2, "0");

function axis(more) {
  const grid = { stroke: ink("--line"), width: 1 };
  const font = `12px ${getComputedStyle(document.body).fontFamily}`;
  return { stroke: ink("--dim"), grid, ticks: { show: false }, font, labelFont: font, labelSize: 18, ...more };
}

/** The range of scores: some room around them, and percent never beyond 0 and 100 where none is. */
function room(plot, low, high) {
  if (low === null || high === null) return [0, 100];
  const more = Math.max((high - low) * 0.08, 1);
  return [low >= 0 && low - more < 0 ? 0 : low - more, high <= 100 && high + more > 100 ? 100.5 : high + more];
}

const whole = (plot, values) => values.map((value) => (Number.isInteger(value) ? value : ""));

/** Draw options and data into an element, in the place of what was there. */
function draw(element, options, data) {
  clear(element);
  const size = () => ({ width: element.clientWidth, height: element.clientHeight });
  const plot = new uPlot({ ...size(), legend: { show: false }, ...options }, data, element);
  const observer = new ResizeObserver(() => element.isConnected && plot.setSize(size()));
  observer.observe(element);
  drawn.set(element, { plot, observer });
  return plot;
}

export function clear(element) {
  const before = drawn.get(element);
  before?.observer.disconnect();
  before?.plot.destroy();
  drawn.delete(element);
  element.replaceChildren();
}

/** Forget the plots of elements that have left the page. */
export function forget() {
  for (const element of [...drawn.keys()]) if (!element.isConnected) clear(element);
}

/** A note that follows the mouse: `lines(plot)` gives [colour, text] of what is under it. */
function tip(lines) {
  let note;
  const hide = () => (note.hidden = true);
  return {
    hooks: {
      init: (plot) => plot.over.append((note = h("div", { class: "tip", hidden: true }))),
      setCursor: (plot) => {
        const found = plot.cursor.left < 0 ? [] : lines(plot);
        if (!found.length) return hide();
        note.replaceChildren(
          ...found.map(([stroke, text]) => {
            const mark = stroke && h("i");
            if (mark) mark.style.background = stroke;
            return h("div", {}, mark, text);
          }),
        );
        note.hidden = false;
        const right = plot.cursor.left > plot.over.clientWidth / 2;
        note.style.left = right ? "auto" : `${plot.cursor.left + 14}px`;
        note.style.right = right ? `${plot.over.clientWidth - plot.cursor.left + 14}px` : "auto";
        note.style.top = "4px";
      },
    },
  };
}

/**
 * Curves over tasks, each with a band of one standard deviation.
 * lines: [{name, k, points: [{mean, sd} or null], open}], k tells the colour; open: of runs that are not finished.
 */
export function curves(element, lines, { xlabel = "tasks trained", first = 1 } = {}) {
  const length = Math.max(...lines.map((line) => line.points.length), 1);
  const data = [Array.from({ length }, (_, t) => t + first)];
  const series = [{}];
  const bands = [];
  for (const line of lines) {
    const stroke = colour(line.k);
    const at = (value) => Array.from({ length }, (_, t) => (line.points[t] ? value(line.points[t]) : null));
    data.push(at((point) => point.mean));
    const points = { show: length <= 30, size: 6, fill: stroke, stroke };
    series.push({ label: line.name, stroke, width: 2, dash: line.open ? [3, 4] : dash(line.k), points });
    if (line.points.some((point) => point?.sd)) {
      const none = { stroke: "transparent", width: 0, points: { show: false } };
      const floor = line.points.some((point) => point?.mean < 0) ? -Infinity : 0; // R² alone may be below 0
      data.push(at(({ mean, sd }) => Math.min(mean + (sd ?? 0), 100)), at(({ mean, sd }) => Math.max(mean - (sd ?? 0), floor)));
      series.push({ ...none, edge: true }, { ...none, edge: true });
      bands.push({ series: [series.length - 2, series.length - 1], fill: faint(stroke, 0.14) });
    }
  }
  const under = (plot) => {
    const t = plot.cursor.idx;
    if (t === null || t === undefined) return [];
    const found = lines.filter((line) => line.points[t]);
    found.sort((a, b) => b.points[t].mean - a.points[t].mean);
    const values = found.map((line) => {
      const { mean, sd } = line.points[t];
      return [colour(line.k), `${score(mean)}${sd ? ` ± ${sd.toFixed(2)}` : ""}  ${line.name}`];
    });
    return values.length ? [[null, `${xlabel}: ${data[0][t]}`], ...values] : [];
  };
  draw(
    element,
    {
      series,
      bands,
      plugins: [tip(under)],
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
      scales: {
        x: { time: false, range: [first - (length > 1 ? 0.15 : 0.5), length - 1 + first + (length > 1 ? 0.15 : 0.5)] },
        y: { range: room },
      },
      axes: [axis({ label: xlabel, values: whole, incrs: [1, 2, 5, 10, 20, 50, 100], size: 32 }), axis({ size: 44 })],
    },
    data,
  );
}

/** Loss terms over iterations: losses is {term: [steps, values]}. */
export function losses(element, terms) {
  const names = Object.keys(terms);
  const steps = [...new Set(names.flatMap((name) => terms[name][0]))].sort((a, b) => a - b);
  const data = [steps];
  for (const name of names) {
    const values = new Map(terms[name][0].map((step, i) => [step, terms[name][1][i]]));
    data.push(steps.map((step) => values.get(step) ?? null));
  }
  const series = names.map((name, k) => ({
    label: name, stroke: colour(k), width: 1.5, dash: dash(k), spanGaps: true, points: { show: steps.length < 3 },
  }));
  const under = (plot) => {
    const i = plot.cursor.idx;
    const found = names.map((name, k) => [colour(k), `${data[k + 1][i]?.toPrecision(4) ?? "–"}  ${name}`]);
    return i === null || i === undefined ? [] : [[null, `iteration ${steps[i].toLocaleString("en")}`], ...found];
  };
  draw(
    element,
    {
      series: [{}, ...series],
      plugins: [tip(under)],
      cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
      scales: { x: { time: false } },
      axes: [axis({ label: "iterations", size: 32 }), axis({ size: 50 })],
    },
    data,
  );
}

/**
 * Cost against score: a large point per entry with a whisker of one standard deviation, a small one per run.
 * points: [{name, k, x, y, sd, runs: [[x, y]]}]; text writes a cost.
 */
export function scatter(element, points, { xlabel, text }) {
  const all = points.flatMap((point) => [[point.x, point.y], ...point.runs]);
  const xs = all.map(([x]) => x);
  const wide = Math.min(...xs) > 0 && Math.max(...xs) / Math.min(...xs) > 8;
  const order = all.map((_, i) => i).sort((a, b) => all[a][0] - all[b][0]);
  const data = [order.map((i) => all[i][0]), order.map((i) => all[i][1])];
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  const more = (high - low) * 0.12 || Math.abs(high) * 0.1 || 1;
  const range = wide ? [low / 1.6, high * 1.9] : [low - more < 0 && low >= 0 ? 0 : low - more, high + 1.6 * more];
  const ys = [...all.map(([, y]) => y), ...points.flatMap(({ y, sd }) => [y - (sd ?? 0), y + (sd ?? 0)])];
  const marks = (plot) => {
    const { ctx } = plot;
    const unit = devicePixelRatio;
    const place = (x, y) => [plot.valToPos(x, "x", true), plot.valToPos(y, "y", true)];
    const shape = (k, x, y, radius, fill) => {
      const r = radius * unit;
      ctx.beginPath();
      if (round(k) === 1) ctx.rect(x - r, y - r, 2 * r, 2 * r);
      else if (round(k) === 2) [[0, -1.4], [1.4, 0], [0, 1.4], [-1.4, 0]].forEach(([dx, dy]) => ctx.lineTo(x + dx * r, y + dy * r));
      else ctx.arc(x, y, r, 0, 2 * Math.PI);
      ctx.fillStyle = fill;
      ctx.fill();
    };
    ctx.save();
    const taken = [];
    for (const point of points) {
      for (const run of point.runs) {
        const [x, y] = place(...run);
        shape(point.k, x, y, 2.5, faint(colour(point.k), 0.45));
        taken.push([x - 3 * unit, y - 3 * unit, x + 3 * unit, y + 3 * unit]);
      }
    }
    for (const point of points) {
      const [x, y] = place(point.x, point.y);
      taken.push([x - 8 * unit, y - 8 * unit, x + 8 * unit, y + 8 * unit]);
      if (point.sd) {
        ctx.strokeStyle = colour(point.k);
        ctx.lineWidth = 1.5 * unit;
        ctx.beginPath();
        ctx.moveTo(x, plot.valToPos(point.y - point.sd, "y", true));
        ctx.lineTo(x, plot.valToPos(point.y + point.sd, "y", true));
        ctx.stroke();
      }
      shape(point.k, x, y, 5.5, ink("--ground"));
      shape(point.k, x, y, 4.5, colour(point.k));
    }
    ctx.font = `${12 * unit}px ${getComputedStyle(document.body).fontFamily}`;
    ctx.fillStyle = ink("--ink");
    ctx.textBaseline = "middle";
    ctx.textAlign = "left";
    for (const point of points) {
      const [x, y] = place(point.x, point.y);
      const width = ctx.measureText(point.name).width;
      for (const [dx, dy] of [[9, 0], [-9 - width / unit, 0], ...[14, -14, 26, -26].flatMap((y) => [[9, y], [-9 - width / unit, y]])]) {
        const left = x + dx * unit;
        const box = [left, y + (dy - 7) * unit, left + width, y + (dy + 7) * unit];
        const { left: l0, top: t0, width: w0, height: h0 } = plot.bbox;
        const inside = left > l0 && box[2] < l0 + w0 && box[1] > t0 - 4 && box[3] < t0 + h0 + 4;
        if (!inside || taken.some(([l, t, r, b]) => l < box[2] && r > box[0] && t < box[3] && b > box[1])) continue;
        taken.push(box);
        ctx.fillText(point.name, left, y + dy * unit);
        break;
      }
    }
    ctx.restore();
  };
  const under = (plot) => {
    const far = (point) =>
      Math.hypot(plot.valToPos(point.x, "x") - plot.cursor.left, plot.valToPos(point.y, "y") - plot.cursor.top);
    const [nearest] = [...points].sort((a, b) => far(a) - far(b));
    if (!nearest || far(nearest) > 40) return [];
    const spread = nearest.sd ? ` ± ${nearest.sd.toFixed(2)}` : "";
    return [[colour(nearest.k), nearest.name], [null, `${score(nearest.y)}${spread}, ${text(nearest.x)}`]];
  };
  // Of a logarithmic axis, 1, 2 and 5 of each power.
  const filter = (plot, splits) => splits.map((value) => (/^[125](e|\.0*e)/.test(value.toExponential()) ? value : null));
  const few = wide ? { space: 30, filter, grid: { stroke: ink("--line"), width: 1, filter } } : { space: 70 };
  const ticks = (plot, values) => values.map((value) => (value === null ? "" : text(value)));
  draw(
    element,
    {
      series: [{}, { stroke: "transparent", paths: () => null, points: { show: false } }],
      plugins: [tip(under), { hooks: { draw: marks } }],
      cursor: { x: false, y: false, drag: { x: false, y: false }, points: { show: false } },
      scales: {
        x: { time: false, distr: wide ? 3 : 1, range },
        y: { range: room(null, Math.min(...ys), Math.max(...ys)) },
      },
      axes: [
        axis({ label: xlabel, values: ticks, size: 32, ...few }),
        axis({ size: 44 }),
      ],
    },
    data,
  );
}

/** A curve as small as a word: the scores after each task, between 0 and 100. */
export function spark(values, tasks) {
  const known = values.map((value, t) => [t, value]).filter(([, value]) => value !== null);
  if (known.length < 2) return null;
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 72 20");
  svg.setAttribute("class", "spark");
  svg.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(svg.namespaceURI, "polyline");
  const place = ([t, value]) => `${(2 + (68 * t) / Math.max(tasks - 1, 1)).toFixed(1)},${(18 - 0.16 * Math.max(value, 0)).toFixed(1)}`;
  line.setAttribute("points", known.map(place).join(" "));
  svg.append(line);
  return svg;
}
