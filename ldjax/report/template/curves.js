// Every type over training, group by group, and the numbers of it.
function curveSection() {
  byId("curves").hidden = !SETS.length || isComparison;
  if (byId("curves").hidden) return;
  const nodes = TYPE_GROUPS.filter(([, types]) => anyRun((run) => types.some((type) =>
    SETS.some(([set]) => type in (run.curves[set] ?? {}))))).map(([group, types]) =>
    lineChart(byId("curve-charts"), () => ({
      title: group, label: `Lines over training: ${group}`, xLabel: "updates",
      yLabel: unitOf(), spans: stageSpans(),
      lines: shownRuns().flatMap((run) => types.filter((type) => hasCurve(run, type)).map(
        (type) => {
          const { x, y, error } = levels(run, type);
          return lineOf(type, x, y, { error, hovered: ofRun(type, run),
            color: typeColor(type, types.indexOf(type)), dash: laneDash(run) });
        })) })));
  const numbersTable = element("div");
  byId("curves").append(numbersTable);
  const fill = () => numbersTable.replaceChildren(folded("The numbers", endsTable));
  fill();
  onView(() => { nodes.forEach(draw); fill(); });
}

function endsTable() {
  const rows = runs.flatMap((run) => SETS.flatMap(([set, text]) =>
    Object.entries(numbersOf(run).curves[set] ?? {}).map(([type, { start, y, error, count }]) => [
      ...(several ? [run.name] : []), text, type, count, start, numbers(y).at(-1),
      numbers(error).at(-1), Math.max(...numbers(y)), Math.min(...numbers(y)),
    ])));
  return table([...(several ? ["run"] : []), "prompts", "type", "n", "start",
    `change (${unitOf()})`, "standard error", "highest", "lowest"], rows);
}

