// Charts: figures that are drawn anew when their content or their width changes.
const charts = new Map();
// Those of the start, drawn when everything else is there.
let waiting = [];

const resized = new ResizeObserver((entries) => {
  for (const { target, contentRect } of entries) {
    const node = target.closest(".chart");
    if (charts.has(node) && node.width !== undefined &&
      Math.abs(contentRect.width - node.width) > 1) draw(node);
  }
});

// `make` says what is shown: a title, rows for a file, and what `render` draws of it.
function chart(parent, make, render) {
  const body = element("div", { className: "plot", tabIndex: 0, role: "img" });
  const head = element("figcaption");
  const buttons = element("span", { className: "buttons" });
  const legend = element("div", { className: "legend" });
  const node = element("figure", { className: "chart" },
    element("div", { className: "head" }, head, buttons), body, legend);
  Object.assign(node, { hiddenKeys: new Set(), zoom: null });
  parent.append(node);
  charts.set(node, () => {
    const content = make();
    node.content = content;
    node.width = body.clientWidth;
    head.replaceChildren(content.title);
    body.setAttribute("aria-label", content.label ?? content.title);
    buttons.replaceChildren(exportButtons(node, content.title, content.rows));
    render({ node, body, legend, buttons, content });
  });
  resized.observe(body);
  if (waiting) waiting.push(node);
  else draw(node);
  return node;
}

const draw = (node) => {
  for (const gone of charts.keys()) if (!gone.isConnected) charts.delete(gone);
  charts.get(node)?.();
};

function ticks(low, high, most = 6) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((each) => each * power >= rough) ?? 10);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; i++) {
    found.push(+(i * step).toPrecision(12));
  }
  return found;
}

function powers(low, high) {
  const found = [];
  const per = high / low > 100 ? [1] : [1, 2, 5];
  for (let i = Math.floor(Math.log10(low)); 10 ** i <= high; i++) {
    found.push(...per.map((each) => +(each * 10 ** i).toPrecision(12)));
  }
  return found.filter((value) => value >= low && value <= high);
}

function scaleOf([low, high], [from, to], isLog = false) {
  const of = isLog ? Math.log10 : (value) => value;
  const [a, b] = [of(low), of(high)];
  const at = (value) => from + (of(value) - a) / (b - a || 1) * (to - from);
  return Object.assign(at, { low, high, from, to,
    back: (place) => a + (place - from) / (to - from || 1) * (b - a) });
}

// The box of a plot with its grid, its numbers and what they are.
function axes(svg, x, y, { xLabel, yLabel, isLog, isWhole = true }) {
  const grid = drawn("g", { class: "grid" });
  const texts = drawn("g", { class: "axis" });
  for (const value of isLog ? powers(y.low, y.high) : ticks(y.low, y.high)) {
    grid.append(drawn("line", { x1: x.from, x2: x.to, y1: y(value), y2: y(value),
      class: value === 0 ? "zero" : "" }));
    texts.append(drawn("text", { x: x.from - 6, y: y(value), "text-anchor": "end",
      "dominant-baseline": "middle" }, number(value)));
  }
  const across = ticks(x.low, x.high, Math.max(2, Math.floor((x.to - x.from) / 80)));
  for (const value of across.filter((each) => !isWhole || Number.isInteger(each))) {
    texts.append(drawn("text", { x: x(value), y: y.from + 16, "text-anchor": "middle" },
      number(value)));
  }
  texts.append(
    drawn("text", { x: x.to, y: y.from + 32, "text-anchor": "end" }, xLabel),
    drawn("text", { x: 4, y: 10 }, yLabel));
  svg.append(grid, texts);
}

// What is at a place, beside it.
function readout(body, rows, head, left) {
  body.querySelector(".readout")?.remove();
  if (!rows) return;
  const node = element("div", { className: "readout", role: "status" },
    element("strong", {}, head), ...rows.map(({ name, value, color }) =>
      element("div", {}, mark(color), `${name}: ${value}`)));
  body.append(node);
  const most = body.clientWidth - node.offsetWidth;
  const beside = left + 14 > most ? left - node.offsetWidth - 14 : left + 14;
  node.style.left = `${Math.max(0, Math.min(most, beside))}px`;
}

function mark(color, isDashed = false) {
  const node = element("span", { className: `mark${isDashed ? " dashed" : ""}` });
  node.style.backgroundColor = color;
  return node;
}

