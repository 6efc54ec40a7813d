// How well the account of single updates adds up to what was measured, and of what.
const KINDS = [["measured", "solid", "measured"], ["integrated", "dot", "integrated"],
  ["predicted", "dash", "first order"]];

// What earlier stages moved a type by.
const movedBefore = (run, type) => {
  const of = before(run);
  if (!of || !isStaged()) return 0;
  const curve = numbersOf(of).tracked.measured?.[type];
  return movedBefore(of, type) + (curve ? numbers(curve.y).at(-1) : 0);
};

function accountSection() {
  byId("account").hidden = isComparison || !anyRun((run) => filled(run.tracked.measured));
  if (byId("account").hidden) return;
  const line = (run, type, color, [kind, dash, text]) => {
    const curve = numbersOf(run).tracked[kind]?.[type];
    return curve ? [lineOf(type, shifted(numbers(curve.x), run),
      raised(numbers(curve.y), movedBefore(run, type)), { color, dash,
        width: LANE_WIDTHS[Math.min(lanes.get(run), 2)],
        hovered: ofRun(kind === "measured" ? type : `${type}, ${text}`, run) })] : [];
  };
  const nodes = TYPE_GROUPS.filter(([, types]) => anyRun((run) => types.some((type) =>
    type in run.tracked.measured))).map(([group, types]) =>
    lineChart(byId("tracked-charts"), () => ({
      title: `${group}: measured and accounted`, xLabel: "updates", yLabel: unitOf(),
      spans: stageSpans(),
      lines: shownRuns().flatMap((run) => types.flatMap((type, i) => KINDS.flatMap((kind) =>
        line(run, type, typeColor(type, i), kind)))) })));
  const laneCount = new Set(lanes.values()).size;
  if (laneCount > 1) {
    byId("tracked-charts").before(element("p", { className: "quiet" },
      laneKey(["thick", "medium", "thin"])));
  }
  if (anyRun((run) => filled(run.remainder))) nodes.push(remainderChart());
  onView(() => nodes.forEach(draw));
  causes();
}

function remainderChart() {
  const lines = () => shownRuns().flatMap((run, r) => Object.entries(run.remainder)
    .filter(([name]) => !several || name === "all types")
    .map(([name, { x, y }], i) => lineOf(ofRun(name, run), shifted(numbers(x), run), numbers(y), {
      color: name === "rounding floor" ? "var(--c7)" : `var(--c${(several ? r : i) % 9})`,
      dash: name === "rounding floor" ? "dot" : laneDash(run),
      width: name === "all types" ? 2.5 : 1.5 })));
  return lineChart(byId("remainder-chart"), () => ({ lines: lines(), isLog: true,
    title: "What first order misses of single updates, running median", xLabel: "updates",
    yLabel: "|measured − first order| / |measured|", spans: stageSpans() }));
}

function causes() {
  const able = runs.filter((run) => filled(run.parts) && filled(run.tracked.measured));
  byId("causes").hidden = !able.length;
  if (!able.length) return;
  const state = { run: able[0], type: "" };
  const types = choice("Type", [], (type) => { state.type = type; nodes.forEach(draw); });
  const fill = () => {
    const names = Object.keys(state.run.tracked.measured);
    types.fill(names.map((name) => [name, name]));
    if (!names.includes(state.type)) [state.type] = names;
    types.select.value = state.type;
  };
  const which = choice("Run", able.map((each, place) => [place, each.name]), (place) => {
    state.run = able[place];
    fill();
    nodes.forEach(draw);
  });
  byId("cause-controls").append(...(able.length > 1 ? [which.node] : []), types.node);
  fill();
  const curveOf = (kind) => numbersOf(state.run).tracked[kind]?.[state.type];
  const over = () => [
    ...Object.entries(numbersOf(state.run).parts).filter(([, curves]) => state.type in curves)
      .map(([part, curves]) => lineOf(partLabel(part), numbers(curves[state.type].x),
        numbers(curves[state.type].y), { color: partColor(part) })),
    ...(curveOf("measured") ? [lineOf("measured", numbers(curveOf("measured").x),
      numbers(curveOf("measured").y), { color: "var(--text)", dash: "dash", width: 2.5 })] : []),
  ];
  const parent = byId("cause-charts");
  const nodes = [
    lineChart(parent, () => ({ title: `Parts of the change of ${state.type}, ${state.run.name}`,
      xLabel: "updates", yLabel: unitOf(), lines: over() })),
    stackedBars(parent, () => ({ title: `Balance of every type, ${state.run.name}`,
      unit: unitOf(), totalName: "measured",
      bars: Object.entries(numbersOf(state.run).balances).map(([name, balance]) =>
        ({ name, ...barOf(balance) })) })),
  ];
  onView(() => nodes.forEach(draw));
}

