// What all charts show alike: which prompts, which unit, which runs, which axis.
const SETS = Object.entries(constants.sets).filter(([set]) =>
  anyRun((run) => filled(run.curves[set])));
const view = { set: SETS[0]?.[0] ?? "", unit: "response", axis: "stages", hidden: new Set() };
const watchers = [];
const onView = (follow) => watchers.push(follow);

function look(change) {
  Object.assign(view, change);
  for (const follow of watchers) follow();
}

const numbersOf = (run) => view.unit === "token" ? run.per_token : run;
const unitOf = () => view.unit === "token" ? "nats per token" : "nats";
const shownRuns = () => runs.filter((run) => !view.hidden.has(run));

function viewControls() {
  const parent = byId("view-controls");
  if (SETS.length > 1) {
    parent.append(choice("Prompts", SETS, (set) => look({ set })).node);
  }
  if (runs.every((run) => run.per_token)) {
    parent.append(choice("Unit", [["response", "nats per response"],
      ["token", "nats per token"]], (unit) => look({ unit })).node);
  }
  if (anyRun((run) => run.after !== null)) {
    parent.append(choice("Updates", [["stages", "stage after stage"],
      ["each", "of each stage"]], (axis) => look({ axis })).node);
  }
  if (several) {
    const toggle = (run) => {
      if (!view.hidden.delete(run)) view.hidden.add(run);
      look({});
    };
    parent.append(element("fieldset", {}, element("legend", {}, "Runs"),
      ...runs.map((run) => element("label", {}, element("input", { type: "checkbox",
        checked: true, onchange: () => toggle(run) }), run.name))));
  }
}

// ---- One axis for runs that follow each other

const before = (run) => run.after === null ? null : runs[run.after];
const root = (run) => before(run) ? root(before(run)) : run;
const updatesBefore = (run) => before(run) ? updatesBefore(before(run)) + before(run).updates : 0;

// The first run that goes on from another one goes on in its lane; all others begin one.
const lanes = new Map();
for (const run of [...runs].sort((a, b) => updatesBefore(a) - updatesBefore(b))) {
  const of = before(run);
  const isFirst = of && runs.find((each) => each.after === run.after) === run;
  lanes.set(run, isFirst ? lanes.get(of) : new Set(lanes.values()).size);
}
const LANE_DASHES = ["solid", "dash", "dot", "dashdot"];
const LANE_WIDTHS = [2.5, 1.75, 1];
const laneDash = (run) => LANE_DASHES[lanes.get(run) % 4];

const isStaged = () => view.axis === "stages";
const shifted = (xs, run) => isStaged() && before(run)
  ? Float64Array.from(xs, (x) => x + updatesBefore(run)) : xs;
const raised = (ys, by) => by ? Float32Array.from(ys, (y) => y + by) : ys;

// Where the stages of the axis begin.
const stageSpans = () => !several || !isStaged() ? [] : shownRuns()
  .filter((run) => lanes.get(run) === 0)
  .map((run) => ({ at: updatesBefore(run), text: run.name }));

const laneKey = (names) => {
  const of = (lane) => runs.filter((run) => lanes.get(run) === lane).map(({ name }) => name);
  return [...new Set(lanes.values())].map((lane) =>
    `${names[Math.min(lane, names.length - 1)]}: ${of(lane).join(", then ")}`).join("; ");
};

// The change of a type since the first stage began, or since the run's own start.
function levels(run, type) {
  const { x, y, error, start } = numbersOf(run).curves[view.set][type];
  const first = numbersOf(root(run)).curves[view.set]?.[type];
  const by = isStaged() && first ? start - first.start : 0;
  return { x: shifted(numbers(x), run), y: raised(numbers(y), by), error: numbers(error) };
}

const hasCurve = (run, type) => type in (numbersOf(run).curves[view.set] ?? {});

// ---- Types and their colours

const TYPE_GROUPS = (() => {
  const groups = Object.entries(constants.groups);
  const known = new Set(groups.flatMap(([, types]) => types));
  const found = new Set(runs.flatMap((run) =>
    [...Object.values(run.curves), run.tracked.measured].flatMap(Object.keys)));
  const others = [...found].filter((type) => !known.has(type));
  if (others.length) groups.unshift(["responses", others]);
  return groups.map(([group, types]) => [group, types.filter((type) => found.has(type))])
    .filter(([, types]) => types.length);
})();
const ALL_TYPES = TYPE_GROUPS.flatMap(([, types]) => types);

const typeColor = (type, place) => ({ chosen: "var(--c0)", rejected: "var(--c1)",
  greedy: "var(--c2)", margin: "var(--c3)" })[type] ?? `var(--c${[4, 5, 6, 8, 0, 1, 2, 3][place % 8]})`;

