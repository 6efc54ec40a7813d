// What a number is the sum of: bars of parts, from zero to both sides.
const PART_COLORS = {
  "part:chosen": "var(--c0)", "part:rejected": "var(--c1)", "part:update": "var(--c2)",
  "part:history": "var(--c3)", "part:history of chosen": "var(--c4)",
  "part:history of rejected": "var(--c5)", "part:history of update": "var(--c3)",
  "part:before": "var(--c8)", "part:accumulated": "var(--c10)",
  "part:weight_decay": "var(--c6)", "part:noise": "var(--c11)", "part:rounding": "var(--c7)",
  predicted: "var(--c2)", integrated: "var(--c2)", remainder: "var(--c9)",
  quadrature: "var(--c9)",
};

const partColor = (name) => PART_COLORS[name] ?? kindColor(name.replace(/^part:/, ""));
const partLabel = (name) => constants.parts[name] ?? name.replace(/^part:/, "");

// One bar: `parts` of `{ name, value, color }` and a `total` of `{ name, value }`.
function stackedBar(parent, { title, parts, total, unit = "nats" }) {
  return stackedBars(parent, () => ({ title, unit, totalName: total.name,
    bars: [{ name: "", parts, total: total.value }] }));
}

// A bar for each of some names; `bars` of `{ name, parts, total }`.
function stackedBars(parent, make) {
  return chart(parent, () => {
    const content = make();
    return { ...content, rows: () => [["bar", "part", content.unit],
      ...content.bars.flatMap(({ name, parts, total }) => [
        ...parts.map((part) => [name, part.name, part.value]),
        [name, content.totalName, total]])] };
  }, renderBars);
}

// Where the parts of a bar begin and end: those above zero to the right of it.
function stacked(parts) {
  let [up, down] = [0, 0];
  return parts.map((part) => {
    if (part.value >= 0) return { ...part, from: up, to: up += part.value };
    return { ...part, from: down, to: down += part.value };
  });
}

const extentOf = (bars) => bars.reduce(([low, high], { parts, total }) => {
  const ends = stacked(parts).map(({ to }) => to);
  return [Math.min(low, total, ...ends), Math.max(high, total, ...ends)];
}, [0, 0]);

function segments(parts, x, top, height) {
  return stacked(parts).map(({ name, value, color, from, to }) => {
    const [a, b] = [x(Math.min(from, to)), x(Math.max(from, to))];
    const node = drawn("rect", { x: a, y: top, width: Math.max(0, b - a), height, class: "part" },
      drawn("title", {}, `${name}: ${signed(value)}`));
    node.style.fill = color;
    return node;
  });
}

function totalMark(total, x, top, height) {
  return drawn("line", { x1: x(total), x2: x(total), y1: top - 2, y2: top + height + 2,
    class: "total" });
}

function renderBars({ node, body, legend, content }) {
  const { bars, unit, totalName } = content;
  const width = Math.max(200, node.width);
  const isNarrow = width < 460;
  const named = bars.some(({ name }) => name);
  const left = named && !isNarrow ? 150 : 4;
  const [per, high] = [named && isNarrow ? 38 : 26, 16];
  const height = bars.length * per + 34;
  const x = scaleOf(extentOf(bars), [left + 4, width - 64]);
  const svg = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const grid = drawn("g", { class: "grid" });
  const axis = drawn("g", { class: "axis" });
  for (const value of x.low < x.high ? ticks(x.low, x.high, Math.floor(width / 110)) : [0]) {
    grid.append(drawn("line", { x1: x(value), x2: x(value), y1: 2, y2: height - 32,
      class: value === 0 ? "zero" : "" }));
    axis.append(drawn("text", { x: x(value), y: height - 18, "text-anchor": "middle" },
      number(value)));
  }
  axis.append(drawn("text", { x: width - 4, y: height - 3, "text-anchor": "end" }, unit));
  svg.append(grid);
  bars.forEach(({ name, parts, total }, i) => {
    const top = i * per + (named && isNarrow ? 16 : 5);
    axis.append(drawn("text", isNarrow ? { x: 4, y: top - 4 } : { x: left - 4,
      y: top + high / 2, "text-anchor": "end", "dominant-baseline": "middle" }, name),
    drawn("text", { x: width - 4, y: top + high / 2, "text-anchor": "end",
      "dominant-baseline": "middle", class: "strong" }, brief(total)));
    svg.append(...segments(parts, x, top, high), totalMark(total, x, top, high));
  });
  svg.append(axis);
  body.replaceChildren(svg);
  const colors = new Map(bars.flatMap(({ parts }) => parts.map(({ name, color }) => [name, color])));
  legend.replaceChildren(...[...colors, [totalName, "var(--text)"]].map(([name, color]) =>
    element("span", { "aria-pressed": true }, mark(color), name)));
}

