// Lines over training, with bands of two standard errors.
const DASHES = { solid: "none", dash: "7 4", dot: "2 3", dashdot: "8 3 2 3" };
const MARGINS = { left: 52, right: 10, top: 34, bottom: 38 };
const HEIGHT = 280;

// A line: `name` in its legend, `hovered` in what is read out, `x`, `y` and a look.
function lineOf(name, x, y, look = {}) {
  return { name, hovered: name, x, y, color: "var(--c0)", dash: "solid", width: 2, ...look };
}

function lineChart(parent, make) {
  return chart(parent, () => {
    const content = make();
    return { ...content, rows: () => lineRows(content) };
  }, renderLines);
}

function lineRows({ lines, xLabel, yLabel }) {
  return [["line", xLabel, yLabel, "standard error"], ...lines.flatMap(
    ({ hovered, x, y, error }) => [...x].map((at, i) => [hovered, at, y[i], error?.[i] ?? null]))];
}

const isSeen = (value, isLog) => Number.isFinite(value) && (!isLog || value > 0);

function rangeOf(lines, [low, high], isLog) {
  let [least, most] = [Infinity, -Infinity];
  for (const { x, y, error } of lines) {
    for (let i = 0; i < x.length; i++) {
      if (x[i] < low || x[i] > high || !isSeen(y[i], isLog)) continue;
      const spread = 2 * (error?.[i] || 0);
      least = Math.min(least, y[i] - spread);
      most = Math.max(most, y[i] + spread);
    }
  }
  if (least > most) return isLog ? [0.1, 1] : [-1, 1];
  if (isLog) return [least / 1.2, most * 1.2];
  const pad = 0.05 * (most - least) || 1;
  return [least - pad, most + pad];
}

function renderLines({ node, body, legend, buttons, content }) {
  const { lines, xLabel, yLabel, isLog = false, spans = [] } = content;
  const shown = lines.filter(({ name }) => !node.hiddenKeys.has(name));
  const ends = lines.flatMap(({ x }) => x.length ? [x[0], x.at(-1)] : []);
  const whole = ends.length ? [Math.min(...ends), Math.max(...ends)] : [0, 1];
  const range = node.zoom ?? (whole[0] < whole[1] ? whole : [whole[0] - 1, whole[0] + 1]);
  const width = Math.max(200, node.width);
  const x = scaleOf(range, [MARGINS.left, width - MARGINS.right]);
  const y = scaleOf(rangeOf(shown, range, isLog), [HEIGHT - MARGINS.bottom, MARGINS.top], isLog);
  const svg = drawn("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}` });
  axes(svg, x, y, { xLabel, yLabel, isLog });
  const clip = `clip${clips++}`;
  svg.append(drawn("clipPath", { id: clip }, drawn("rect", { x: x.from, y: y.to - 1,
    width: x.to - x.from, height: y.from - y.to + 2 })));
  const inside = drawn("g", { "clip-path": `url(#${clip})` });
  for (const { at, text } of spans.filter(({ at }) => at >= range[0] && at < range[1])) {
    inside.append(drawn("line", { x1: x(at), x2: x(at), y1: y.to, y2: y.from, class: "span" }));
    svg.append(drawn("text", { x: x(at) + 4, y: y.to - 8, class: "stage" }, text));
  }
  inside.append(...shown.filter(({ error }) => error).map((line) => band(line, x, y)),
    ...shown.map((line) => path(line, x, y, isLog)));
  svg.append(inside);
  body.replaceChildren(svg);
  const hints = { shown, x, y, xLabel };
  body.onpointermove = (event) => follow(node, body, svg, hints, event);
  body.onpointerdown = (event) => { if (event.pointerType === "mouse") node.from = event.offsetX; };
  body.onpointerup = (event) => zoomTo(node, x, event);
  body.onpointerleave = () => { node.from = undefined; point(body, svg, hints); };
  body.ondblclick = () => zoomOut(node);
  body.onkeydown = (event) => step(body, svg, hints, event);
  body.onblur = () => point(body, svg, hints);
  if (node.zoom) {
    buttons.prepend(element("button", { type: "button", className: "small",
      onclick: () => zoomOut(node) }, "whole run"));
  }
  legend.replaceChildren(...legendOf(node, lines));
}

let clips = 0;

function legendOf(node, lines) {
  const firsts = new Map(lines.toReversed().map((line) => [line.name, line]));
  const names = [...new Set(lines.map(({ name }) => name))];
  const toggle = (name) => {
    if (!node.hiddenKeys.delete(name)) node.hiddenKeys.add(name);
    draw(node);
    [...node.querySelectorAll(".legend button")].find(({ textContent }) =>
      textContent === name)?.focus();
  };
  return names.map((name) => {
    const { color, dash } = firsts.get(name);
    return element("button", { type: "button", "aria-pressed": !node.hiddenKeys.has(name),
      onclick: () => toggle(name) }, mark(color, dash !== "solid"), name);
  });
}

function path({ x: xs, y: ys, color, dash, width, joins = false }, x, y, isLog) {
  let d = "";
  let isOpen = false;
  for (let i = 0; i < xs.length; i++) {
    if (isSeen(ys[i], isLog)) {
      d += `${isOpen ? "L" : "M"}${x(xs[i]).toFixed(1)} ${y(ys[i]).toFixed(1)}`;
      isOpen = true;
    } else if (!joins) {
      isOpen = false;
    }
  }
  const node = drawn("path", { d, fill: "none", "stroke-width": width,
    "stroke-dasharray": DASHES[dash], "stroke-linejoin": "round" });
  node.style.stroke = color;
  return node;
}

function band({ x: xs, y: ys, error, color }, x, y) {
  const places = [...xs.keys()].filter((i) => Number.isFinite(ys[i]) && error[i] >= 0);
  const edge = (i, side) => `${x(xs[i]).toFixed(1)} ${y(ys[i] + side * 2 * error[i]).toFixed(1)}`;
  const d = [...places.map((i) => edge(i, 1)), ...places.toReversed().map((i) => edge(i, -1))];
  const node = drawn("path", { d: d.length ? `M${d.join("L")}Z` : "", "fill-opacity": 0.16 });
  node.style.fill = color;
  return node;
}

// Where the pointer or the arrow keys are.
function point(body, svg, { shown, x, y, xLabel }, at) {
  svg.querySelector(".cursor")?.remove();
  readout(body);
  body.at = at;
  if (at === undefined) return;
  const near = shown.flatMap((line) => {
    const i = nearest(line.x, at);
    return Math.abs(line.x[i] - at) <= spacing(line.x, i) && Number.isFinite(line.y[i])
      ? [{ line, i }] : [];
  }).sort((a, b) => b.line.y[b.i] - a.line.y[a.i]);
  const cursor = drawn("g", { class: "cursor" },
    drawn("line", { x1: x(at), x2: x(at), y1: y.to, y2: y.from }),
    ...near.map(({ line, i }) => {
      const dot = drawn("circle", { cx: x(line.x[i]), cy: y(line.y[i]), r: 3 });
      dot.style.fill = line.color;
      return dot;
    }));
  svg.append(cursor);
  readout(body, near.slice(0, 16).map(({ line, i }) => ({ name: line.hovered,
    color: line.color, value: number(+line.y[i].toPrecision(4)) +
      (line.error?.[i] >= 0 ? ` ± ${number(+line.error[i].toPrecision(2))}` : "") })),
  `${number(+at.toPrecision(6))} ${xLabel}`, x(at));
}

function nearest(xs, at) {
  let [low, high] = [0, xs.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= at) low = middle;
    else high = middle;
  }
  return Math.abs(xs[low] - at) <= Math.abs(xs[high] - at) ? low : high;
}

const spacing = (xs, i) => Math.max(
  (xs[i] ?? 0) - (xs[i - 1] ?? xs[i]), (xs[i + 1] ?? xs[i]) - (xs[i] ?? 0)) / 2 + 1e-9;

function follow(node, body, svg, hints, event) {
  const { x, y, shown } = hints;
  const { left } = svg.getBoundingClientRect();
  const place = Math.max(x.from, Math.min(x.to, event.clientX - left));
  svg.querySelector(".zoom")?.remove();
  if (node.from !== undefined && event.buttons) {
    svg.append(drawn("rect", { class: "zoom", x: Math.min(node.from, place), y: y.to,
      width: Math.abs(place - node.from), height: y.from - y.to }));
  }
  const wanted = x.back(place);
  const all = shown.flatMap((line) => line.x.length ? [line.x[nearest(line.x, wanted)]] : []);
  if (all.length) {
    point(body, svg, hints, all.reduce((best, each) =>
      Math.abs(each - wanted) < Math.abs(best - wanted) ? each : best));
  }
}

function step(body, svg, hints, event) {
  const all = [...new Set(hints.shown.flatMap((line) => [...line.x]))].sort((a, b) => a - b);
  const now = body.at === undefined ? -1 : all.indexOf(body.at);
  const to = { ArrowRight: now + 1, ArrowLeft: now < 0 ? all.length - 1 : now - 1, Home: 0,
    End: all.length - 1 }[event.key];
  if (event.key === "Escape") point(body, svg, hints);
  if (to === undefined || all[to] === undefined) return;
  event.preventDefault();
  point(body, svg, hints, all[to]);
}

function zoomTo(node, x, event) {
  const from = node.from;
  node.from = undefined;
  if (from === undefined || Math.abs(event.offsetX - from) < 8) return;
  const ends = [from, event.offsetX].map((place) =>
    x.back(Math.max(x.from, Math.min(x.to, place)))).sort((a, b) => a - b);
  node.zoom = ends;
  draw(node);
}

function zoomOut(node) {
  node.zoom = null;
  draw(node);
}

