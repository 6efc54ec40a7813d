"use strict";
// Texts of a run reach the page as text nodes only: `element` makes all of it.
(async () => {
function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

function textOf(id) {
  const bytes = bytesOf(document.getElementById(id).textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

const [library, data] = await Promise.all([textOf("library"), textOf("data")]);
const { constants, runs } = JSON.parse(data);
const several = runs.length > 1;
const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"];
const RUN_DASHES = ["solid", "dot", "dashdot", "longdash"];
const RUN_WIDTHS = [3, 1.75, 1];
const PART_COLORS = {
  "part:chosen": "#0072B2", "part:rejected": "#E69F00", "part:update": "#009E73",
  "part:history": "#CC79A7", "part:weight_decay": "#8a8f98", remainder: "#b0b5bd",
  "part:accumulated": "#8c6d31", "part:noise": "#7a68a6", "part:rounding": "#d0d3d8",
};
// A double click on a chart goes back to all of it.
const CONFIG = { responsive: true, displayModeBar: false };

// ---- Elements

const byId = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  node.append(...children);  // first: `dir` looks at them each time one comes
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  return node;
}

function choice(label, options, onchange) {
  const select = element("select", { onchange: () => onchange(select.value) });
  const fill = (pairs) => select.replaceChildren(
    ...pairs.map(([value, text]) => element("option", { value }, text)));
  fill(options);
  return { node: element("label", {}, label, select), select, fill };
}

function boxes(legend, names, onchange) {
  const shown = new Set(names.keys());
  const toggle = (place) => {
    if (!shown.delete(place)) shown.add(place);
    onchange();
  };
  const labels = names.map((name, place) => element("label", {},
    element("input", { type: "checkbox", checked: true, onchange: () => toggle(place) }),
    name));
  const node = element("fieldset", {}, element("legend", {}, legend), ...labels);
  return { node, shown };
}

function table(heads, rows) {
  const cell = (content) => typeof content === "number"
    ? element("td", { className: "number" }, number(content))
    : element("td", { dir: "auto" }, content);
  return element("div", { className: "scroll", tabIndex: 0 }, element("table", {},
    element("thead", {}, element("tr", {},
      ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {},
      ...rows.map((row) => element("tr", {}, ...row.map(cell))))));
}

const runChoice = (onchange) => choice(
  "Run", runs.map((run, place) => [place, run.name]), (place) => onchange(runs[place]));

// ---- Numbers

const TYPES = { f4: Float32Array, i4: Int32Array };
const unpacked = new WeakMap();

function numbers(packed) {
  if (!unpacked.has(packed)) {
    unpacked.set(packed, new TYPES[packed.dtype](bytesOf(packed.bdata).buffer));
  }
  return unpacked.get(packed);
}

const shape = (packed) => packed.shape.split(",").map(Number);

function column(packed, place) {
  const [rows, columns] = shape(packed);
  const all = numbers(packed);
  return Float32Array.from({ length: rows }, (_, row) => all[row * columns + place]);
}

function row(packed, place) {
  const columns = shape(packed)[1];
  return numbers(packed).subarray(place * columns, (place + 1) * columns);
}

function number(value) {
  if (value === null || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size >= 1e-3 && size < 1e5 ? String(+value.toPrecision(4)) : value.toExponential(2);
}

const signed = (value) =>
  `${value < 0 ? "−" : "+"}${number(Math.abs(+value.toPrecision(3)))}`;

// ---- Charts

const charts = new Map();
// Those of the start, drawn when everything else is there.
let waiting = [];

// Plotly reads a little markup in labels.
const plain = (text) =>
  text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

function themed(layout) {
  const css = getComputedStyle(document.documentElement);
  const color = (name) => css.getPropertyValue(`--${name}`).trim();
  const axis = { gridcolor: color("line"), zerolinecolor: color("quiet"), automargin: true };
  const titled = (given = {}) => ({ ...axis, ...given });
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: color("text"), size: 12 },
    margin: { l: 50, r: 12, t: 36, b: 100 },
    hovermode: "x unified", hoverdistance: -1,  // also far from points that are few
    hoverlabel: { bgcolor: color("panel"), font: { color: color("text") }, namelength: -1 },
    legend: { orientation: "h", yref: "container", y: 0, yanchor: "bottom" },
    ...layout,
    title: { text: layout.title, font: { size: 14 }, x: 0, xanchor: "left" },
    xaxis: titled(layout.xaxis), yaxis: titled(layout.yaxis),
  };
}

function draw(node) {
  const { traces, layout } = charts.get(node)();
  Plotly.react(node, traces, themed(layout), CONFIG);
}

function chart(parent, label, make) {
  const node = element("div", { className: "chart", role: "img", "aria-label": label });
  parent.append(node);
  charts.set(node, make);
  if (waiting) waiting.push(node);
  else draw(node);
  return node;
}

function clear(parent) {
  for (const node of parent.querySelectorAll(".chart")) {
    Plotly.purge(node);
    charts.delete(node);
  }
  parent.replaceChildren();
}

function line(x, y, name, look = {}) {
  const { color, dash = "solid", width = 2, hovered = name, ...more } = look;
  return {
    x, y, name: plain(name), type: "scatter", mode: "lines", line: { color, dash, width },
    hovertemplate: `%{y:.3~g}<extra>${plain(hovered)}</extra>`, ...more,
  };
}

const ofRun = (name, run) => several ? `${name} · ${run.name}` : name;
const anyRun = (has) => runs.some(has);
const filled = (content) => content && Object.keys(content).length > 0;

// ---- Sections

function summarySection() {
  for (const run of runs) {
    const section = byId("summary");
    section.append(element("h3", {}, run.name));
    if (run.headline) section.append(element("p", { className: "quiet" }, run.headline));
    section.append(...run.told.map((sentence) => element("p", {}, sentence)));
    const marks = run.checks.map((check) =>
      element("li", {}, `${check.holds ? "✓ holds" : "✗ fails"}: ${check.text}`));
    if (marks.length) section.append(element("ul", {}, ...marks));
  }
}

function curveSections() {
  const groups = Object.entries(constants.groups);
  const known = new Set(groups.flatMap(([, types]) => types));
  const found = new Set(runs.flatMap((run) =>
    [...Object.values(run.curves), run.tracked.measured].flatMap(Object.keys)));
  const others = [...found].filter((type) => !known.has(type));
  if (others.length) groups.unshift(["responses", others]);
  const names = groups.flatMap(([, types]) => types).filter((type) => found.has(type));
  const sets = Object.entries(constants.sets).filter(([set]) =>
    anyRun((run) => filled(run.curves[set])));
  const nodes = [];
  const redraw = () => nodes.forEach(draw);
  let set = sets.length ? sets[0][0] : "";
  const which = choice("Prompts", sets, (value) => { set = value; redraw(); });
  const types = boxes("Types", names, redraw);
  const shownRuns = boxes("Runs", runs.map((run) => run.name), redraw);
  byId("curve-controls").append(which.node, ...(several ? [shownRuns.node] : []), types.node);

  const visible = (members) => members.filter((type) => types.shown.has(names.indexOf(type)));
  const lines = (members, of) => runs.flatMap((run, r) => !shownRuns.shown.has(r) ? [] :
    visible(members).flatMap((type) => of(run, r, type, PALETTE[members.indexOf(type)])));
  const layout = (title, x) => ({
    title, xaxis: { title: { text: x } }, yaxis: { title: { text: "nats" } },
    showlegend: true,
  });
  // One name in the legend for all lines of a type.
  const named = (run, r, type, hovered = type) => ({ legendgroup: type,
    hovered: ofRun(hovered, run),
    showlegend: hovered === type && r === Math.min(...shownRuns.shown) });
  const observed = (run, r, type, color) => type in (run.curves[set] ?? {}) ? [line(
    numbers(run.curves[set][type].x), numbers(run.curves[set][type].y),
    type, { color, dash: RUN_DASHES[r % 4], ...named(run, r, type) })] : [];
  const tracked = (run, r, type, color) => Object.keys(run.tracked).flatMap((kind) =>
    type in run.tracked[kind] ? [line(
      numbers(run.tracked[kind][type].x), numbers(run.tracked[kind][type].y),
      type, {
        color, dash: kind === "measured" ? "solid" : "dash",
        width: RUN_WIDTHS[Math.min(r, 2)],
        ...named(run, r, type, kind === "measured" ? type : `${type}, predicted`),
      })] : []);
  const panels = (parent, of, x, has) => {
    for (const [group, members] of groups) {
      if (!members.some(has)) continue;
      nodes.push(chart(byId(parent), `Lines over training: ${group}`,
        () => ({ traces: lines(members, of), layout: layout(group, x) })));
    }
  };
  panels("curve-charts", observed, "examples seen", (type) =>
    anyRun((run) => Object.values(run.curves).some((curves) => type in curves)));
  panels("tracked-charts", tracked, "updates", (type) =>
    anyRun((run) => type in run.tracked.measured));
  if (several) {
    const key = (looks) => runs.map((run, r) =>
      `${looks[Math.min(r, looks.length - 1)]}: ${run.name}`).join(", ");
    byId("curve-charts").before(element("p", {}, key(RUN_DASHES)));
    byId("tracked-charts").before(element("p", {}, key(["thick", "medium", "thin"])));
  }
  byId("curves").hidden = !sets.length;
  byId("first-order").hidden = !anyRun((run) => filled(run.tracked.measured));
  if (sets.length) byId("curves").append(endsTable(sets));
}

function endsTable(sets) {
  const last = (curve) => numbers(curve.y).at(-1);
  const rows = runs.flatMap((run) => sets.flatMap(([set, text]) =>
    Object.entries(run.curves[set] ?? {}).map(([type, curve]) => [
      ...(several ? [run.name] : []), text, type, constants.meanings[type],
      last(curve), Math.max(...numbers(curve.y)), Math.min(...numbers(curve.y)),
    ])));
  const heads = [...(several ? ["run"] : []), "prompts", "type", "which is", "change (nats)",
    "highest", "lowest"];
  return element("details", {}, element("summary", {}, "The numbers"), table(heads, rows));
}

function remainderSection() {
  if (!anyRun((run) => filled(run.remainder))) return;
  const traces = () => runs.flatMap((run, r) =>
    Object.entries(run.remainder).filter(([name]) => !several || name === "all types").map(
      ([name, curve], i) => line(
      numbers(curve.x), numbers(curve.y), ofRun(name, run), {
        color: name === "rounding floor" ? "#8a8f98" : PALETTE[(several ? r : i) % PALETTE.length],
        dash: name === "rounding floor" ? "dot" : RUN_DASHES[r % 4],
        width: name === "all types" ? 3 : 1.5,
      })));
  chart(byId("remainder-chart"), "Remainder over measured change, by update", () => ({
    traces: traces(),
    layout: { title: "", showlegend: true, xaxis: { title: { text: "updates" } },
      yaxis: { type: "log", title: { text: "ratio" } } },
  }));
}

function causeSection() {
  const able = runs.filter((run) => filled(run.parts) && filled(run.tracked.measured));
  byId("causes").hidden = !able.length;
  if (!able.length) return;
  let run = able[0];
  let type = "";
  const nodes = [];
  const types = choice("Response type", [], (value) => { type = value; draw(nodes[0]); });
  const fill = () => {
    const names = Object.keys(run.tracked.measured);
    types.fill(names.map((name) => [name, name]));
    type = names[0];
  };
  const which = choice("Run", able.map((each, place) => [place, each.name]), (place) => {
    run = able[place];
    fill();
    nodes.forEach(draw);
  });
  byId("cause-controls").append(...(able.length > 1 ? [which.node] : []), types.node);
  fill();
  const over = () => [
    ...Object.entries(run.parts).filter(([, curves]) => type in curves).map(
      ([part, curves]) => line(numbers(curves[type].x), numbers(curves[type].y),
        constants.parts[part], { color: PART_COLORS[part] })),
    line(numbers(run.tracked.measured[type].x), numbers(run.tracked.measured[type].y),
      "measured", { color: "#808080", dash: "dash", width: 3 }),
  ];
  const bars = () => [
    ...Object.entries(run.ends).map(([part, ends]) => ({
      type: "bar", name: constants.parts[part], x: Object.keys(ends),
      y: Object.values(ends), marker: { color: PART_COLORS[part] },
      hovertemplate: "%{y:.3~g}",
    })),
    { type: "scatter", mode: "markers", name: "measured",
      marker: { symbol: "diamond", size: 9, color: "#808080", line: { width: 1 } },
      hovertemplate: "%{y:.3~g}", x: Object.keys(run.tracked.measured),
      y: Object.values(run.tracked.measured).map((curve) => numbers(curve.y).at(-1)) },
  ];
  const parent = byId("cause-charts");
  nodes.push(chart(parent, "Parts of the change of one type, over updates", () => ({
    traces: over(), layout: { title: type, xaxis: { title: { text: "updates" } },
      yaxis: { title: { text: "nats" } }, showlegend: true } })));
  nodes.push(chart(parent, "Parts of the change of every type at the end", () => ({
    traces: bars(), layout: { title: "all types, at the end (diamonds: measured)",
      barmode: "relative", showlegend: false, yaxis: { title: { text: "nats" } } } })));
}

// ---- Probe browser

function browserSection() {
  const able = runs.filter((run) => run.probes);
  byId("browser").hidden = !able.length;
  if (!able.length) return;
  const state = { run: able[0], prompt: -1, response: -1, by: "measured" };
  const which = choice("Run", able.map((run, place) => [place, run.name]), (place) => {
    Object.assign(state, { run: able[place], prompt: -1 });
    fillPrompts();
  });
  const filter = element("input", { type: "search", oninput: () => fillPrompts() });
  const prompts = choice("Prompt", [], (value) => { state.prompt = +value; fillTypes(); });
  const types = choice("Response", [], (value) => { state.response = +value; show(); });
  const by = choice("Colour tokens by", [["measured", "measured change"],
    ["predicted", "predicted change"], ["remainder", "measured − predicted"]],
    (value) => { state.by = value; show(); });
  byId("browser-controls").append(...(able.length > 1 ? [which.node] : []),
    element("label", {}, "Search", filter), prompts.node, types.node, by.node);

  function fillPrompts() {
    const wanted = filter.value.toLowerCase();
    const { probes } = state.run;
    const found = probes.prompts
      .map((prompt, place) => [place, prompt])
      .filter(([, { name, text }]) => `${name} ${text}`.toLowerCase().includes(wanted));
    const detailed = new Set(Object.keys(probes.tokens?.responses ?? {})
      .map((place) => probes.responses[place].prompt));
    // Those with tokens first.
    found.sort(([a], [b]) => detailed.has(b) - detailed.has(a) || a - b);
    prompts.fill(found.map(([place, { name, text }]) => [place,
      `${name}${detailed.has(place) ? " (tokens)" : ""}: ${[...text.trim()].slice(-80).join("")}`]));
    if (!found.length) {
      clear(byId("browser-content"));
      byId("browser-content").append(element("p", {}, "No prompt has these words."));
      types.fill([]);
      return;
    }
    if (!found.some(([place]) => place === state.prompt)) state.prompt = found[0][0];
    prompts.select.value = state.prompt;
    fillTypes();
  }

  function fillTypes() {
    const { responses } = state.run.probes;
    const type = responses[state.response]?.type;
    const places = responses.flatMap(({ prompt }, place) =>
      prompt === state.prompt ? [place] : []);
    types.fill(places.map((place) => [place, responses[place].type]));
    state.response = places.find((place) => responses[place].type === type) ?? places[0];
    types.select.value = state.response;
    show();
  }

  function show() {
    const parent = byId("browser-content");
    clear(parent);
    showTexts(parent, state);
    const detail = state.run.probes.tokens?.responses[state.response];
    by.node.hidden = !detail;
    if (detail) showTokens(parent, state.run.probes.tokens, detail, state.by);
    showCurves(parent, state);
  }

  fillPrompts();
}

function showTexts(parent, { run, prompt, response }) {
  const { prompts, responses } = run.probes;
  const block = (head, text) => element("div", {}, element("h3", {}, head),
    element("div", { className: "text", dir: "auto", tabIndex: 0 }, text));
  const { type, text } = responses[response];
  parent.append(element("div", { className: "columns" },
    block(`Prompt ${prompts[prompt].name}`, prompts[prompt].text),
    block(`${type}: ${constants.meanings[type] ?? "a response"}`, text)));
}

function showCurves(parent, { run, response }) {
  const { observed, tracked } = run.probes;
  const place = run.probes.tracked.places?.indexOf(response) ?? -1;
  const grid = element("div", { className: "charts" });
  parent.append(element("h3", {}, "The whole response"), grid);
  const { log_prob, argmax_log_prob, measured_step, predicted_step } = observed.tables;
  const over = (title, traces, x = "updates") => traces.length && chart(grid, title, () => ({
    traces, layout: { title, showlegend: true, xaxis: { title: { text: x } },
      yaxis: { title: { text: "nats" } } } }));
  const known = (packed, name, look) => {
    const y = packed ? column(packed, response) : [];
    return y.some(Number.isFinite) ? [line(observed.steps, y, name,
      { connectgaps: true, ...look })] : [];
  };
  over("Log-prob", [
    ...known(log_prob, "of the response", { color: PALETTE[0] }),
    ...known(argmax_log_prob, "of the greedy tokens", { color: PALETTE[1] })]);
  over("Change by the next update", [
    ...known(measured_step, "measured", { color: PALETTE[0], mode: "lines+markers" }),
    ...known(predicted_step, "predicted", { color: PALETTE[0], dash: "dash" })]);
  if (place >= 0) {
    over("Added up over all updates", ["measured", "predicted"].map((name) => line(
      tracked.steps, column(tracked.tables[name], place), name,
      { color: PALETTE[0], dash: name === "measured" ? "solid" : "dash" })));
  }
}

// ---- Tokens

const CODES = { " ": "␣", "\n": "⏎\n", "\t": "⇥\t" };

function visible(text) {
  if (text === "") return "▫";
  const code = (sign) => `⟨U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  const unseen = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
  const shown = text.replace(unseen, (sign) =>
    sign === "\u200d" || sign === "\u200c" ? sign : CODES[sign] ?? code(sign));
  return text.trim() === "" ? shown.replaceAll(" ", "␣") : shown;
}

// Zero is the page itself; both signs darken it, and the text stays readable.
function colored(node, value, scale) {
  const share = scale > 0 ? Math.min(1, Math.abs(value) / scale) : 0;
  const sign = value < 0 ? "down" : "up";
  node.style.backgroundColor = `rgba(var(--${sign}), ${(0.75 * share).toFixed(3)})`;
  return node;
}

function colorKey(scale) {
  return element("p", { className: "quiet" }, element("span", { className: "key" },
    `−${number(scale)}`, element("span", { className: "ramp" }), `+${number(scale)} nats`));
}

function largest(...arrays) {
  return arrays.flatMap((array) => [...array]).reduce((a, b) => Math.max(a, Math.abs(b)), 0);
}

function showTokens(parent, tokens, detail, by) {
  const measured = numbers(detail.measured);
  const predicted = numbers(detail.predicted);
  const values = { measured, predicted,
    remainder: measured.map((value, i) => value - predicted[i]) }[by];
  const scale = +largest(measured, predicted).toPrecision(3);
  const spans = detail.texts.map((text, i) => colored(element("span", {
    className: "token", role: "button", tabIndex: i ? -1 : 0, "aria-pressed": "false",
    title: `${signed(values[i])} nats` }, visible(text)), values[i], scale));
  const block = element("div", { className: "text tokens", dir: "auto", role: "group",
    "aria-label": "Tokens; arrow keys move, the details follow" }, ...spans);
  const about = element("div", { "aria-live": "polite" });
  let current = -1;
  const select = (place) => {
    if (place < 0 || place >= spans.length) return;
    if (current >= 0) {
      spans[current].setAttribute("aria-pressed", "false");
      spans[current].tabIndex = -1;
    }
    spans[place].setAttribute("aria-pressed", "true");
    spans[place].tabIndex = 0;
    current = place;
    clear(about);
    showToken(about, tokens, detail, place);
  };
  block.addEventListener("click", (event) => {
    const place = spans.indexOf(event.target.closest(".token"));
    if (place >= 0) select(place);
  });
  block.addEventListener("keydown", (event) => {
    const to = { ArrowRight: current + 1, ArrowDown: current + 1, ArrowLeft: current - 1,
      ArrowUp: current - 1, Home: 0, End: spans.length - 1,
      Enter: Math.max(current, 0), " ": Math.max(current, 0) }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    select(to);
    spans[current]?.focus();
  });
  parent.append(element("h3", {}, `Its tokens, by ${by} change over the run`),
    colorKey(scale), block, about);
  select(values.reduce((best, value, i) =>
    Math.abs(value) > Math.abs(values[best]) ? i : best, 0));
}

function showToken(parent, tokens, detail, place) {
  const curve = column(detail.log_prob, place);
  const [before, after] = [curve[0], curve.at(-1)];
  parent.append(element("h3", {}, `Token ${place + 1}: `,
    element("bdi", {}, visible(detail.texts[place]))),
    element("p", {}, `Log-prob ${number(before)} before, ${number(after)} after; measured ` +
      `${signed(numbers(detail.measured)[place])}, predicted ` +
      `${signed(numbers(detail.predicted)[place])} nats.`));
  const grid = element("div", { className: "charts" });
  parent.append(grid);
  chart(grid, "Log-prob of the token over training", () => ({
    traces: [line(tokens.steps, curve, "log-prob", { color: PALETTE[0] })],
    layout: { title: "Log-prob of this token", xaxis: { title: { text: "updates" } },
      yaxis: { title: { text: "nats" } } } }));
  if (detail.moved) grid.append(movedTables(tokens, detail.moved, place));
  if (detail.maps) showMap(parent, tokens, detail.maps, place);
}

function movedTables(tokens, moved, place) {
  const [ids, before, after] = ["ids", "before", "after"].map((name) => row(moved[name], place));
  const rows = [...ids].map((id, i) => {
    const [was, is] = [Math.exp(before[i]), Math.exp(after[i])];
    return { token: visible(tokens.vocabulary[id]), was, is, gain: is - was };
  });
  const shown = (list) => table(["token", "before", "after"],
    list.map(({ token, was, is }) => [token, was, is]));
  const gained = rows.filter(({ gain }) => gain > 0).sort((a, b) => b.gain - a.gain);
  const lost = rows.filter(({ gain }) => gain < 0).sort((a, b) => a.gain - b.gain);
  return element("div", { className: "columns" },
    element("div", {}, element("h3", {}, "Gained most probability here"), shown(gained)),
    element("div", {}, element("h3", {}, "Lost most"), shown(lost)));
}

function showMap(parent, tokens, maps, place) {
  const content = element("div");
  const show = (j) => {
    const [places, shares] = [row(maps[j].places, place), row(maps[j].shares, place)];
    const rest = numbers(maps[j].rest)[place];
    const total = shares.reduce((sum, share) => sum + share, rest);
    const of = new Map([...places].map((at, i) => [at, shares[i]]));
    const scale = +largest(shares).toPrecision(3);
    let at = 0;
    content.replaceChildren(
      element("p", {}, `This update's own gradient moved the token by ${signed(total)} nats, ` +
        `${signed(rest)} of it by the tokens that are not coloured.`), colorKey(scale),
      ...tokens.updates[j].texts.map(({ side, row: number_, ids }) => {
        const spans = ids.map((id) => {
          const share = of.get(at++);
          const span = element("span", { className: "token" }, visible(tokens.vocabulary[id]));
          if (share === undefined) return span;
          span.title = `${signed(share)} nats`;
          return colored(span, share, scale);
        });
        return element("div", {}, element("h4", {}, `${side}, row ${number_ + 1}`),
          element("div", { className: "text tokens", dir: "auto" }, ...spans));
      }));
  };
  const which = choice("Update", tokens.updates.map(({ step }, j) => [j, `after ${step} updates`]), show);
  parent.append(element("h3", {}, "Which trained tokens moved it"),
    element("div", { className: "controls" }, which.node), content);
  show(0);
}

// ---- Signatures, maps, configuration

function signatureSection() {
  const marks = { holds: "✓ holds", fails: "✗ fails", "not applicable": "– not applicable" };
  const rows = runs.flatMap((run) => Object.entries(run.signatures).flatMap(
    ([set, verdicts]) => verdicts.map((verdict) => [
      ...(several ? [run.name] : []), constants.sets[set] ?? set, verdict.id,
      verdict.strength, marks[verdict.verdict], verdict.text,
      [...Object.entries(verdict.numbers).map(([name, value]) => `${name} = ${number(value)}`),
        verdict.why].filter(Boolean).join("; ")])));
  byId("signatures").hidden = !rows.length;
  const heads = [...(several ? ["run"] : []), "prompts", "signature", "strength", "verdict",
    "what it says", "numbers"];
  byId("signatures").append(table(heads, rows));
}

function mapSection() {
  const found = runs.flatMap((run) => run.tables.map((each) => ({ run, each })));
  byId("maps").hidden = !found.length;
  if (!found.length) return;
  let [now, step] = [0, 0];
  const slider = element("input", { type: "range", min: 0, value: 0,
    oninput: () => { step = +slider.value; redraw(); } });
  const text = element("output");
  const timed = element("label", {}, "Update", slider, text);
  const which = choice("Quantity", found.map(({ run, each }, place) =>
    [place, ofRun(each.name, run)]), (place) => { now = +place; reset(); redraw(); });
  byId("map-controls").append(which.node, timed);
  const reset = () => {
    const { steps } = found[now].each;
    step = steps.length - 1;
    slider.max = step;
    slider.value = step;
    timed.hidden = step === 0;
  };
  reset();
  const node = chart(byId("map-chart"), "Heat map", () => heatMap(found[now].each, step));
  function redraw() { draw(node); text.value = found[now].each.steps[step]; }
  text.value = found[now].each.steps[step];
}

function heatMap({ name, values, rows, columns }, step) {
  const [, height, width] = shape(values);
  const all = numbers(values).subarray(step * height * width, (step + 1) * height * width);
  const z = Array.from({ length: height }, (_, i) => all.subarray(i * width, (i + 1) * width));
  const page = getComputedStyle(document.documentElement).getPropertyValue("--page").trim();
  const isSigned = all.some((value) => value < 0);
  const labels = (texts) => texts.length ? {
    tickvals: texts.map((_, place) => place), ticktext: texts.map((each) => plain(visible(each))),
  } : {};
  const most = largest(all.filter(Number.isFinite));
  return {
    traces: [{ type: "heatmap", z, zmin: isSigned ? -most : 0, zmax: most,
      colorscale: isSigned ? [[0, "#D55E00"], [0.5, page], [1, "#0072B2"]]
        : [[0, page], [1, "#0072B2"]],
      hovertemplate: "%{y}, %{x}: %{z:.3~g}<extra></extra>" }],
    layout: { title: plain(name), hovermode: "closest", xaxis: labels(columns),
      yaxis: { ...labels(rows), autorange: "reversed" } },
  };
}

function figureSection() {
  const pictures = runs.flatMap((run) => run.figures.map(({ name, source }) =>
    element("figure", {}, element("img", { src: source, alt: ofRun(name, run) }),
      element("figcaption", {}, ofRun(name, run)))));
  byId("figures").hidden = !pictures.length;
  byId("figures").append(...pictures);
}

function configurationSection() {
  const flat = (content, path = "") => Object.entries(content).flatMap(([name, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? flat(value, `${path}${name}.`)
      : [[`${path}${name}`, Array.isArray(value) ? JSON.stringify(value) : String(value)]]);
  byId("configuration").append(...runs.map((run) => element("details", {},
    element("summary", {}, run.name), table(["setting", "value"], flat(run.config)))));
}

function contents() {
  const sections = [...document.querySelectorAll("section")].filter(({ hidden }) => !hidden);
  byId("contents").append(...sections.map(({ id, firstElementChild }) =>
    element("a", { href: `#${id}` }, firstElementChild.textContent)));
}

document.head.append(element("script", {}, library));
byId("title").append(runs.map((run) => run.name).join(", "));
summarySection();
curveSections();
remainderSection();
causeSection();
browserSection();
signatureSection();
mapSection();
figureSection();
configurationSection();
contents();
byId("status").remove();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () =>
  [...charts.keys()].forEach(draw));
document.documentElement.dataset.readyMs = Math.round(performance.now());
const first = waiting;
waiting = null;
for (const node of first) {
  await new Promise((resolve) => setTimeout(resolve));  // who reads goes first
  if (charts.has(node)) draw(node);
}
document.documentElement.dataset.drawnMs = Math.round(performance.now());
})();
