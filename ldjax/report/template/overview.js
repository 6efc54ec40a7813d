// The run at a glance: one picture, one table of types and stages, three sentences each.
function overviewSection() {
  const main = ["chosen", "rejected", "margin", "greedy"].filter((type) => ALL_TYPES.includes(type));
  const types = main.length ? main : ALL_TYPES.slice(0, 6);
  if (SETS.length && !isComparison) {
    const node = lineChart(byId("picture"), () => ({
      title: `Change of the mean log-prob, ${constants.sets[view.set]}`,
      xLabel: "updates", yLabel: unitOf(), spans: stageSpans(),
      lines: shownRuns().flatMap((run) => types.filter((type) => hasCurve(run, type)).map(
        (type, i) => lineOf(type, ...Object.values(levels(run, type)).slice(0, 2), {
          error: levels(run, type).error, color: typeColor(type, i), dash: laneDash(run),
          hovered: ofRun(type, run) }))) }));
    onView(() => draw(node));
    if (new Set(lanes.values()).size > 1) {
      byId("picture").append(element("p", { className: "quiet" },
        laneKey(["solid", "dashed", "dotted", "dash-dotted"])));
    }
  }
  stageTable();
  byId("stages").append(...runs.map(stageText));
}

function stageText(run) {
  const paragraph = (text, className = "") => element("p", { className }, ...explained(text));
  return element("article", {}, element("h3", {}, run.name),
    ...(run.headline ? [element("p", { className: "quiet" }, run.headline)] : []),
    ...run.notes.map((note) => paragraph(note, "note")),
    ...run.sentences.map((sentence) => paragraph(sentence)),
    ...verdictLine(run));
}

function verdictLine(run) {
  const verdicts = Object.values(run.signatures).flat().filter(({ verdict }) =>
    verdict !== "not applicable");
  const parts = [];
  const count = (all, good, what) => all.length && parts.push(
    good === all.length ? `all ${all.length} ${what} hold` : `${good} of ${all.length} ${what} hold`);
  count(verdicts, verdicts.filter(({ verdict }) => verdict === "holds").length,
    "published signatures");
  count(run.checks, run.checks.filter(({ holds }) => holds).length, "checks");
  const text = parts.join("; ");
  return text ? [element("p", {}, element("a", { href: "#signatures" },
    `${text[0].toUpperCase()}${text.slice(1)}.`))] : [];
}

// ---- The table

function stageTable() {
  const parent = byId("stage-table");
  const detail = byId("balance-detail");
  const stages = runs.filter((run) => filled(run.curves) || filled(run.balances));
  let now = 0;
  const tabs = element("div", { className: "tabs", role: "group", "aria-label": "Stage shown" });
  const fill = () => {
    const has = (run, type) => hasCurve(run, type) || type in numbersOf(run).balances;
    const types = ALL_TYPES.filter((type) => stages.some((run) => has(run, type)));
    if (!types.length) return;
    parent.replaceChildren(
      element("p", { className: "quiet" }, ...explained(`Every type of response, in ` +
        `${unitOf()}: mean at the start, mean change ± standard error, its course, and the ` +
        "balance of the tracked ones. A bar opens its numbers.")),
      element("div", { className: `scroll stages${stages.length > 3 ? " many" : ""}`,
        tabIndex: 0 }, element("table", {}, tableHead(stages),
        element("tbody", {}, ...types.map((type) => element("tr", {},
          element("th", { scope: "row" }, term(type)),
          ...stages.flatMap((run, i) => stageCells(run, type, i, showBalance))))))),
      partsLegend(stages));
    show(now);
  };
  const show = (place) => {
    now = place;
    for (const cell of parent.querySelectorAll("[data-of]")) {
      cell.classList.toggle("other", +cell.dataset.of !== now);
    }
    [...tabs.children].forEach((tab, i) => tab.setAttribute("aria-pressed", i === now));
  };
  const showBalance = (run, type) => {
    clear(detail);
    detail.append(...balanceDetail(detail, run, type));
    detail.scrollIntoView({ block: "nearest" });
  };
  tabs.append(...stages.map((run, i) => element("button", { type: "button",
    onclick: () => show(i) }, run.name)));
  tabs.hidden = stages.length < 2;
  parent.before(tabs);
  fill();
  onView(() => { fill(); clear(detail); });
}

// The colours of the bars.
function partsLegend(stages) {
  const names = new Set(stages.flatMap((run) =>
    Object.values(numbersOf(run).balances).flatMap(({ parts }) => Object.keys(parts))));
  const node = element("div", { className: "legend" }, ...[...names].map((name) =>
    element("span", {}, mark(partColor(name)), partLabel(name))));
  if (names.size) node.append(element("span", {}, mark("var(--text)"), "measured"));
  return node;
}

// How many make a mean, where it is the same number for all types.
function sharedCount(of, what) {
  const found = [...new Set(Object.values(of).map(({ count }) => count))];
  return found.length === 1 ? [`${found[0]} ${what}`] : [];
}

function tableHead(stages) {
  const cell = (i, text, more = {}) => element("th", { scope: "col", "data-of": i, ...more }, text);
  return element("thead", {},
    element("tr", {}, element("th", { scope: "col", rowSpan: 2 }, "type"),
      ...stages.map((run, i) => {
        const { curves, balances } = numbersOf(run);
        const n = [...sharedCount(curves[view.set] ?? {}, "prompts"),
          ...sharedCount(balances, "tracked")].join(", ");
        return cell(i, element("span", {}, run.name, element("small", {}, n && ` n = ${n}`)),
          { colSpan: 4, scope: "colgroup" });
      })),
    element("tr", {}, ...stages.flatMap((_, i) => [cell(i, "start"), cell(i, "change"),
      cell(i, "course"), cell(i, term("balance"))])));
}

function stageCells(run, type, i, showBalance) {
  const cell = (...content) => element("td", { "data-of": i }, ...content);
  const number_ = (...content) => element("td", { "data-of": i, className: "number" }, ...content);
  const { curves, balances } = numbersOf(run);
  const curve = curves[view.set]?.[type];
  const isShared = sharedCount(curves[view.set] ?? {}, "").length;
  const n = curve && !isShared ? [element("small", {}, ` n ${curve.count}`)] : [];
  const of = curve ? [number_(brief(curve.start, type === "margin")),
    number_(element("strong", {}, brief(numbers(curve.y).at(-1))),
      element("small", {}, ` ± ${brief(numbers(curve.error).at(-1), false)}`), ...n),
    cell(spark(curve, typeColor(type, 0)))] : [number_("–"), number_("–"), cell()];
  const balance = balances[type];
  if (!balance || !filled(balance.parts)) return [...of, cell()];
  const scale = extentOf(Object.values(balances).map(barOf));
  return [...of, cell(element("button", { type: "button", className: "bar",
    "aria-label": `Balance of ${type} in ${run.name}: ${balanceText(balance)}`,
    onclick: () => showBalance(run, type) }, miniBar(barOf(balance), scale)))];
}

function spark({ x, y }, color) {
  const [xs, ys] = [numbers(x), numbers(y)];
  const [width, height] = [72, 26];
  const finite = [...ys].filter(Number.isFinite);
  const toX = scaleOf([xs[0], xs.at(-1)], [2, width - 4]);
  const toY = scaleOf([Math.min(0, ...finite), Math.max(0, ...finite)], [height - 3, 3]);
  const node = path({ x: xs, y: ys, color, dash: "solid", width: 1.75 }, toX, toY);
  const dot = drawn("circle", { cx: toX(xs.at(-1)), cy: toY(ys.at(-1)), r: 2.5 });
  dot.style.fill = color;
  return drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "spark",
    "aria-hidden": "true" },
    drawn("line", { x1: 0, x2: width, y1: toY(0), y2: toY(0), class: "zero" }), node,
    ...(Number.isFinite(ys.at(-1)) ? [dot] : []));
}

// ---- The balance

const partsOf = ({ parts }) => Object.entries(parts).map(([name, value]) =>
  ({ name: partLabel(name), value, color: partColor(name) }));
const barOf = (balance) => ({ parts: partsOf(balance), total: balance.measured });

const balanceText = (balance) => [...partsOf(balance).map(({ name, value }) =>
  `${name} ${signed(value)}`), `measured ${signed(balance.measured)}`].join(", ");

function miniBar({ parts, total }, scale) {
  const [width, height] = [92, 20];
  const x = scaleOf(scale, [3, width - 3]);
  return drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`,
    "aria-hidden": "true" },
    drawn("line", { x1: x(0), x2: x(0), y1: 0, y2: height, class: "zero" }),
    ...segments(parts, x, 5, 10), totalMark(total, x, 5, 10));
}

function balanceDetail(parent, run, type) {
  const balance = numbersOf(run).balances[type];
  const { count, measured, predicted, integrated, floor } = balance;
  const title = `What the change of ${type} in ${run.name} is the sum of`;
  const figure = element("div");
  parent.append(figure);
  stackedBar(figure, { title, parts: partsOf(balance), unit: unitOf(),
    total: { name: "measured", value: measured } });
  const sum = sumOf(Object.values(balance.parts));
  const said = [`Mean of ${count} tracked response${count > 1 ? "s" : ""}: measured ` +
    `${signed(measured)}, the parts add up to ${signed(sum)}`,
  ...(integrated === null ? [] : [`integrated ${signed(integrated)}`]),
  `first order ${signed(predicted)}`,
  ...(floor === null ? [] : [`rounding floor ${number(+floor.toPrecision(2))}`])];
  const rows = partsOf(balance).map(({ name, value }) => [name, value,
    measured ? percent(value / measured) : "–"]);
  return [figure, element("p", {}, ...explained(`${said.join("; ")} ${unitOf()}.`)),
    table(["part", unitOf(), "of measured"], rows)];
}

