// The curves of one node, drawn by uPlot. The points are kept here, so they begin when the page is opened.

import { attribute, byId, el, text } from "./dom.js";
import { bytes, duration, rate, whole } from "./words.js";

const POINTS = 600; // five minutes
const HEIGHT = 104;
const SPAN_S = [60, 300]; // shown at first, and at most
const BINARY = [...Array(40).keys()].map((power) => 2 ** power);
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const CURVES = [
  { title: "Requests / s", least: 10, show: rate, series: [["reads", (node) => node.reads], ["writes", (node) => node.writes]] },
  { title: "Latency", least: 100, show: duration, series: [["median", (node) => node.p50_us], ["99 %", (node) => node.p99_us]] },
  { title: "Outbox", least: 10, show: whole, series: [["events that wait", (node) => node.outbox]] },
  { title: "Memory", least: 1 << 20, show: bytes, steps: BINARY, series: [["of the process", (node) => node.memory_kb === null ? null : node.memory_kb * 1024]] },
];

const points = new Map(); // by node id: {at: [], values: [curve][series][]}
let wanted = "";
let charts = [];

export function startCurves() {
  byId("curves-of").addEventListener("change", (event) => {
    wanted = event.target.value;
    drawAll();
  });
  new ResizeObserver(() => charts.forEach((chart) => chart.fit())).observe(byId("curves"));
}

/** Draws the charts with the colours of the present theme. */
export function redrawCurves() {
  charts.forEach((chart) => chart.plot.destroy());
  byId("curves").replaceChildren();
  charts = CURVES.map(makeChart);
  drawAll();
}

export function showCurves(picture) {
  const ids = picture.nodes.map((node) => node.id);
  if (!ids.includes(wanted)) wanted = picture.here || ids[0];
  choose(ids);
  for (const node of picture.nodes) add(node, picture.at);
  for (const id of points.keys()) if (!ids.includes(id)) points.delete(id);
  drawAll();
}

function choose(ids) {
  const select = byId("curves-of");
  if (select.options.length !== ids.length || ids.some((id, at) => select.options[at].value !== id)) {
    select.replaceChildren(...ids.map((id) => el("option", { value: id }, id)));
  }
  if (select.value !== wanted) select.value = wanted;
}

function add(node, at) {
  const kept = points.get(node.id) ?? { at: [], values: CURVES.map((curve) => curve.series.map(() => [])) };
  points.set(node.id, kept);
  const columns = [kept.at, ...kept.values.flat()];
  while (kept.at.at(-1) >= at) columns.forEach((column) => column.pop()); // the clock was set back
  kept.at.push(at);
  CURVES.forEach((curve, which) => curve.series.forEach(([, value], one) => {
    kept.values[which][one].push((node.state === "up" ? value(node) : null) ?? null);
  }));
  if (kept.at.length > POINTS) columns.forEach((column) => column.shift());
}

function drawAll() {
  if (document.hidden) return;
  charts.forEach((chart, which) => chart.draw(points.get(wanted), which));
}

function colour(name) {
  const probe = el("span", {});
  probe.style.color = `var(${name})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function makeChart(curve) {
  const colours = [colour("--curve-1"), colour("--curve-2")];
  const labels = curve.series.map(([name], one) => {
    const value = el("b", {}, "–");
    return { value, element: el("span", { class: "label" }, el("i", { class: `line line-${one + 1}` }), `${name} `, value) };
  });
  const holder = el("div", { class: "plot", role: "img" });
  byId("curves").append(el("div", { class: "curve" },
    el("div", { class: "legend" }, el("h3", {}, curve.title), ...labels.map((label) => label.element)), holder));
  const axis = { stroke: colour("--soft"), font: "11px system-ui", ticks: { show: false } };
  const grid = { stroke: colour("--line"), width: 1 };
  const plot = new uPlot({
    width: Math.max(100, holder.clientWidth), height: HEIGHT,
    padding: [6, 26, 0, 0],
    legend: { show: false },
    cursor: { sync: { key: "curves" }, y: false, drag: { x: false, y: false }, points: { size: 6 } },
    scales: {
      x: { range: (_, first, last) => [last - Math.max(SPAN_S[0], Math.min(SPAN_S[1], last - first)), last] },
      y: { range: (_, __, most) => [0, Math.max(curve.least, (most ?? 0) * 1.1)] },
    },
    axes: [
      { ...axis, grid: { show: false }, size: 20, gap: 3, space: 90, values: (_, splits) => splits.map((at) => CLOCK.format(at * 1000)) },
      { ...axis, grid, size: 62, gap: 6, space: 30, incrs: curve.steps, values: (_, splits) => splits.map(curve.show) },
    ],
    series: [{}, ...curve.series.map((_, one) => ({
      stroke: colours[one], width: 1.6, dash: one ? [5, 4] : undefined, points: { show: false },
      fill: one ? undefined : colours[one].replace(")", " / 10%)").replaceAll(",", ""),
    }))],
    hooks: { setCursor: [() => label()] },
  }, [[], ...curve.series.map(() => [])], holder);

  /** The values under the cursor, or the last ones. */
  function label() {
    const at = plot.cursor.idx ?? plot.data[0].length - 1;
    labels.forEach(({ value }, one) => text(value, curve.show(plot.data[one + 1][at] ?? null)));
  }

  return {
    plot,
    fit: () => plot.setSize({ width: Math.max(100, holder.clientWidth), height: HEIGHT }),
    draw: (kept, which) => {
      plot.setData(kept ? [kept.at, ...kept.values[which]] : [[], ...curve.series.map(() => [])]);
      label();
      const said = curve.series.map(([name], one) => `${name} ${curve.show(kept?.values[which][one].at(-1) ?? null)}`);
      attribute(holder, "aria-label", `${curve.title} of ${wanted}: ${said.join(", ")}`);
    },
  };
}
