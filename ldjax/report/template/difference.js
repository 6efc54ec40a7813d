// Where in the model two checkpoints differ: layers and kinds of matrices.
const compared = runs.filter(({ difference }) => difference);
// A page about nothing else has no training to show.
const isComparison = compared.length === runs.length;
if (isComparison) constants.sets.train = "watched prompts";

const KIND_COLORS = { query: "var(--c0)", key: "var(--c1)", value: "var(--c2)", out: "var(--c3)",
  qkv: "var(--c0)", gate: "var(--c4)", up: "var(--c5)", down: "var(--c6)", norm: "var(--c7)",
  bias: "var(--c8)", embedding: "var(--c9)", head: "var(--c10)", positions: "var(--c11)" };
const kindColor = (kind) => KIND_COLORS[kind.replace(/ adapter$/, "")] ?? "var(--c8)";

// The values at the places of a model as rows of layers; where there is none, no number.
function gridOf({ layers, kinds, places }, values) {
  const grid = new Float32Array(layers.length * kinds.length).fill(NaN);
  places.forEach(([layer, kind], i) => { grid[layer * kinds.length + kind] = values[i]; });
  return grid;
}

// What each layer (0) or kind (1) did.
function sumsBy({ layers, kinds, places }, values, axis) {
  const sums = new Array([layers, kinds][axis].length).fill(0);
  places.forEach((place, i) => { sums[place[axis]] += values[i]; });
  return sums;
}

function differenceSection() {
  byId("difference").hidden = !compared.length;
  if (!compared.length) return;
  const state = { run: compared[0], type: 0 };
  const types = choice("Type", [], (type) => { state.type = +type; redraw(); });
  const fill = () => {
    types.fill(state.run.difference.types.map((type, i) => [i, type]));
    state.type = 0;
  };
  const which = choice("Comparison", compared.map(({ name }, i) => [i, name]), (i) => {
    state.run = compared[i];
    fill();
    redraw();
  });
  byId("difference-controls").append(...(compared.length > 1 ? [which.node] : []), types.node);
  fill();
  const means = () => row(state.run.difference.means, state.type);
  const typeName = () => state.run.difference.types[state.type];
  const [wide, two] = [byId("difference-map"), byId("difference-bars")];
  const nodes = [
    placesMap(wide, () => state.run.difference, means, () =>
      `What each layer and kind did to ${typeName()}, mean nats`),
    stackedBars(two, () => ({ title: "By kind of matrix, every type", unit: "nats",
      totalName: "measured", bars: state.run.difference.types.map((type, i) => ({
        name: type, total: measuredOf(state.run, type),
        parts: sumsBy(state.run.difference, row(state.run.difference.means, i), 1)
          .map((value, k) => ({ name: state.run.difference.kinds[k], value,
            color: kindColor(state.run.difference.kinds[k]) })) })) })),
    stackedBars(two, () => ({ title: `By layer, ${typeName()}`, unit: "nats",
      totalName: "sum", bars: sumsBy(state.run.difference, means(), 0).map((value, i) => ({
        name: state.run.difference.layers[i], total: value,
        parts: [{ name: value < 0 ? "lowered" : "lifted", value, color: signColor(value) }],
      })) })),
  ];
  const ends = byId("difference-ends");
  const redraw = () => {
    nodes.forEach(draw);
    ends.replaceChildren(endsOf(state.run.difference));
  };
  ends.replaceChildren(endsOf(state.run.difference));
}

const measuredOf = ({ difference }, type) =>
  difference.ends.find((of) => of.type === type)?.measured ?? NaN;

// What first order says at the first checkpoint, and at the second.
const endsOf = ({ ends }) => table(["type", "n", "measured", "integrated",
  "first order, before", "first order, after", "rounding floor"],
ends.map(({ type, count, measured, integrated, predicted, from_after, floor }) =>
  [type, count, measured, integrated, predicted, from_after, floor]));

function placesMap(parent, of, values, title) {
  return heatChart(parent, () => {
    const { layers, kinds } = of();
    return { title: title(), columns: kinds.length, rowNames: layers, columnNames: kinds,
      values: gridOf(of(), values()) };
  });
}

// The same of one response.
function showPlaces(parent, { difference }, probe, type) {
  const place = difference.responses.findIndex(([of, kind]) => of === probe && kind === type);
  if (place < 0) return;
  const grid = element("div", { className: "charts wide" });
  parent.append(grid);
  placesMap(grid, () => difference, () => row(difference.values, place),
    () => "What each layer and kind did to it, nats");
}

