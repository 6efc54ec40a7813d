// The balance of a ledger: parts that add up to what was measured.
const LEDGER_COLORS = { own: "var(--c0)", others: "var(--c1)", weight_decay: "var(--c7)",
  before: "var(--c3)", noise: "var(--c8)", rounding: "var(--c9)", quadrature: "var(--c6)" };

const ledgerColor = (whose) => LEDGER_COLORS[whose] ?? "var(--c2)";
const signColor = (value) => `rgb(var(--${value < 0 ? "down" : "up"}))`;
const isOfPairs = ({ sides }) => sides.length > 1;

function whoseName(ledger, whose) {
  const [one, many] = isOfPairs(ledger) ? ["pair", "pairs"] : ["example", "examples"];
  return { own: `its own ${one}`, others: `other ${many}`, weight_decay: "weight decay",
    before: "before the run" }[whose] ?? whose;
}

// What a ledger is about: all updates of a run, or the first ones.
const spanOf = ({ ledger, updates }) => ledger.num_steps < updates
  ? `the first ${number(ledger.num_steps)} updates` : "the run";

// What some responses moved by, on average: whose the parts are, and their sides.
function ledgerBalance(ledger, places) {
  const mean = (of) => sumOf(places.map(of)) / places.length;
  const columns = ledger.parts.map(([whose, side], i) =>
    ({ whose, side, value: mean((place) => ledger.balance[place][i]) }));
  const parts = ledger.whose.map((whose) => {
    const sides = columns.filter((column) => column.whose === whose);
    return { whose, name: whoseName(ledger, whose), color: ledgerColor(whose), sides,
      value: sumOf(sides.map(({ value }) => value)) };
  });
  return { parts: parts.filter(({ sides }) => sides.some(({ value }) => value !== 0)),
    total: mean((place) => ledger.responses[place].measured) };
}

// The same with the parts of examples in their sides.
const inSides = (parts) => parts.flatMap((part) => part.sides.length > 1
  ? part.sides.map(({ side, value }) => ({ ...part, name: `${part.name}, ${side}`, value }))
  : [part]);

// The balance of every type, one bar each: what lifted it, and what lowered it.
function originSection() {
  const able = runs.filter(({ ledger }) => ledger);
  byId("origins").hidden = !able.length;
  for (const run of able) {
    const { ledger, name } = run;
    const places = [...ledger.responses.keys()];
    const ofType = (type) => places.filter((place) => ledger.responses[place].type === type);
    const types = [...new Set(ledger.responses.map(({ type }) => type))];
    stackedBars(byId("origin-charts"), () => ({ unit: "nats",
      title: `Origins of the change of every type over ${spanOf(run)}, ${name}`,
      totalName: "measured",
      bars: types.map((type) => ({ name: type, ...ledgerBalance(ledger, ofType(type)) })) }));
  }
}

// ---- One response

// Each of the `parts` begins where those above it end, and all end at the `total`.
function waterfall(parent, make) {
  return chart(parent, () => {
    const content = make();
    const { parts, total } = content;
    return { ...content, label: [...parts.map(({ name, value }) => `${name} ${signed(value)}`),
      `measured ${signed(total)} nats`].join(", "),
    rows: () => [["part", "nats"], ...parts.map(({ name, value }) => [name, value]),
      ["measured", total]] };
  }, renderWaterfall);
}

function renderWaterfall({ node, body, content }) {
  let end = 0;
  const steps = content.parts.map((part) => ({ ...part, from: end, to: end += part.value }));
  steps.push({ name: "measured", value: content.total, from: 0, to: content.total,
    color: "var(--text)" });
  const width = Math.max(200, node.width);
  const isNarrow = width < 460;
  const [per, high, left] = isNarrow ? [38, 16, 4] : [26, 16, 150];
  const height = steps.length * per + 34;
  const ends = steps.map(({ to }) => to);
  const x = scaleOf([Math.min(0, ...ends), Math.max(0, ...ends)], [left + 4, width - 72]);
  const svg = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  const grid = drawn("g", { class: "grid" });
  const axis = drawn("g", { class: "axis" });
  for (const value of x.low < x.high ? ticks(x.low, x.high, Math.floor(width / 110)) : [0]) {
    grid.append(drawn("line", { x1: x(value), x2: x(value), y1: 2, y2: height - 32,
      class: value === 0 ? "zero" : "" }));
    axis.append(drawn("text", { x: x(value), y: height - 18, "text-anchor": "middle" },
      number(value)));
  }
  axis.append(drawn("text", { x: width - 4, y: height - 3, "text-anchor": "end" }, "nats"));
  svg.append(grid, drawn("line", { x1: x(content.total), x2: x(content.total), y1: 2,
    y2: height - 32, class: "span" }));
  steps.forEach(({ name, value, from, to, color }, i) => {
    const top = i * per + (isNarrow ? 16 : 5);
    const bar = drawn("rect", { x: Math.min(x(from), x(to)), y: top, height: high,
      width: Math.max(1, Math.abs(x(to) - x(from))), class: "part" },
    drawn("title", {}, `${name}: ${signed(value)} nats`));
    bar.style.fill = color;
    const style = i === steps.length - 1 ? "strong" : "";
    svg.append(bar);
    if (i < steps.length - 1) {
      svg.append(drawn("line", { x1: x(to), x2: x(to), y1: top + high, y2: top + per,
        class: "span" }));
    }
    axis.append(drawn("text", isNarrow ? { x: 4, y: top - 4, class: style } : { x: left - 4,
      y: top + high / 2, "text-anchor": "end", "dominant-baseline": "middle", class: style }, name),
    drawn("text", { x: width - 4, y: top + high / 2, "text-anchor": "end",
      "dominant-baseline": "middle", class: "strong" }, brief(value)));
  });
  svg.append(axis);
  body.replaceChildren(svg);
}

// What came from each layer, whatever lifted to the right and whatever lowered to the left.
function layerBars(parent, { names, sums }, place) {
  stackedBars(parent, () => ({ title: "What gradients and weight decay did, by layer", unit: "nats", totalName: "sum",
    bars: names.map((name, i) => {
      const value = sums[place][i];
      return { name, total: value, parts: [{ name: value < 0 ? "lowered" : "lifted", value,
        color: signColor(value) }] };
    }) }));
}
