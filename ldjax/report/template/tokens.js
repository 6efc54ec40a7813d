// The tokens of a tracked response: how each moved, what gained and lost at its place,
// and which trained tokens moved it.
const TOKEN_KINDS = [["measured", "measured change"], ["predicted", "first order"],
  ["remainder", "measured − first order"]];

function showTokens(parent, run, place, wanted, onSelect) {
  const { tokens } = run.probes;
  const detail = tokens.responses[place];
  const measured = numbers(detail.measured);
  const predicted = numbers(detail.predicted);
  const kinds = { measured, predicted,
    remainder: measured.map((value, i) => value - predicted[i]) };
  const scale = +largest(measured, predicted).toPrecision(3);
  const spans = detail.texts.map((text, i) => element("span", { className: "token",
    role: "button", tabIndex: i ? -1 : 0, "aria-pressed": "false" }, visible(text)));
  const paint = (kind) => spans.forEach((span, i) => {
    colored(span, kinds[kind][i], scale).title = `${signed(kinds[kind][i])} nats`;
  });
  paint("measured");
  const block = element("div", { className: "text tokens", dir: "auto", role: "group",
    "aria-label": "Tokens; arrow keys move, the details follow" }, ...spans);
  const about = element("div", { "aria-live": "polite" });
  let current = -1;
  const select = (at) => {
    if (!spans[at]) return;
    spans[current]?.setAttribute("aria-pressed", "false");
    if (current >= 0) spans[current].tabIndex = -1;
    spans[at].setAttribute("aria-pressed", "true");
    spans[at].tabIndex = 0;
    current = at;
    clear(about);
    showToken(about, run, place, at);
    onSelect(at);
  };
  block.addEventListener("click", (event) => {
    select(spans.indexOf(event.target.closest(".token")));
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
  parent.append(element("h4", {}, "Its tokens, by their change"),
    element("div", { className: "controls" },
      choice("Colour by", TOKEN_KINDS, paint).node, colorKey(scale)), block, about);
  const most = measured.reduce((best, value, i) =>
    Math.abs(value) > Math.abs(measured[best]) ? i : best, 0);
  select(spans[wanted] ? wanted : most);
}

function showToken(parent, run, place, at) {
  const { tokens } = run.probes;
  const detail = tokens.responses[place];
  const curve = column(detail.log_prob, at);
  const [first, last] = [curve[0], curve.at(-1)];
  parent.append(element("h4", {}, `Token ${at + 1}: `,
    element("bdi", {}, visible(detail.texts[at]))),
    element("p", {}, `Log-prob ${number(first)} before, ${number(last)} after; measured ` +
      `${signed(numbers(detail.measured)[at])}, first order ` +
      `${signed(numbers(detail.predicted)[at])} nats.`));
  const grid = element("div", { className: "charts" });
  parent.append(grid);
  if (!run.difference) lineChart(grid, () => ({ title: "Log-prob of this token", xLabel: "updates", yLabel: "nats",
    lines: [lineOf("log-prob", tokens.steps, curve)] }));
  if (detail.moved) grid.append(movedTables(tokens, detail.moved, at));
  if (detail.maps) showMap(parent, run, place, at);
}

function movedTables(tokens, moved, at) {
  const [ids, before, after] = ["ids", "before", "after"].map((name) => row(moved[name], at));
  const rows = [...ids].map((id, i) => {
    const [was, is] = [Math.exp(before[i]), Math.exp(after[i])];
    return { token: visible(tokens.vocabulary[id]), was, is, gain: is - was };
  });
  const shown = (list) => table(["token", "before", "after"],
    list.map(({ token, was, is }) => [token, was, is]));
  const gained = rows.filter(({ gain }) => gain > 0).sort((a, b) => b.gain - a.gain);
  const lost = rows.filter(({ gain }) => gain < 0).sort((a, b) => a.gain - b.gain);
  return element("div", { className: "columns moved" },
    element("div", {}, element("h4", {}, "Gained most probability here"), shown(gained)),
    element("div", {}, element("h4", {}, "Lost most"), shown(lost)));
}

const FIRST_TEXTS = 4;

function showMap(parent, run, place, at) {
  const { tokens } = run.probes;
  const { maps } = tokens.responses[place];
  const content = element("div");
  const show = (j) => {
    const map = maps[j];
    const [places, shares] = [row(map.places, at), sharesOf(map, at)];
    const of = new Map([...places].map((each, i) => [each, shares[i]]));
    let next = 0;
    const texts = tokens.updates[j].texts.map((text) => {
      const values = text.ids.map(() => of.get(next++));
      return { ...text, values, sum: sumOf(values.map((value) => value ?? 0)) };
    }).sort((a, b) => Math.abs(b.sum) - Math.abs(a.sum));
    const scale = +largest(shares).toPrecision(3);
    const block = (text) => mapText(tokens, text, scale);
    content.replaceChildren(element("p", {}, ...explained(mapSentence(run, place, at, j))),
      colorKey(scale), ...texts.slice(0, FIRST_TEXTS).map(block));
    if (texts.length > FIRST_TEXTS) {
      content.append(folded(`The other ${texts.length - FIRST_TEXTS} texts of this update`,
        () => texts.slice(FIRST_TEXTS).map(block)));
    }
  };
  const which = choice("Update", tokens.updates.map(({ step }, j) =>
    [j, `after ${step} updates`]), show);
  parent.append(element("h4", {}, "Which trained tokens moved it"),
    element("div", { className: "controls" }, which.node), content);
  show(0);
}

function mapText(tokens, { side, row: place, ids, values, sum }, scale) {
  const spans = ids.map((id, i) => {
    const span = element("span", { className: "token" }, visible(tokens.vocabulary[id]));
    if (values[i] === undefined) return span;
    span.title = `${signed(values[i])} nats`;
    return colored(span, values[i], scale);
  });
  return element("div", {},
    element("h5", {}, `${side}, row ${place + 1}: ${signed(sum)} nats by what is coloured`),
    element("div", { className: "text tokens", dir: "auto" }, ...spans));
}

// They are whole numbers of a unit of their own for each watched token.
const sharesOf = ({ shares, unit }, at) =>
  Float64Array.from(row(shares, at), (share) => share * numbers(unit)[at]);

// What the colours explain: of the update's own gradient, and beside what else it did.
function mapSentence(run, place, at, j) {
  const { updates, responses } = run.probes.tokens;
  const map = responses[place].maps[j];
  const rest = numbers(map.rest)[at];
  const shares = sharesOf(map, at);
  const own = sumOf(shares) + rest;
  const sizes = sumOf([...shares].map(Math.abs));
  const all = sizes + numbers(map.hidden)[at];
  const covered = all ? ` (${percent(sizes / all)} of what all tokens did to either side)` : "";
  const of = updates[j].balances?.[place];
  const whole = !of ? "" : ` Of the whole response, this update changed ${signed(of.measured)} ` +
    `nats: ${Object.entries(of.parts).map(([name, value]) =>
      `${partLabel(name)} ${signed(value)}`).join(", ")}. Only gradients of this update have ` +
    "tokens to colour.";
  return `This update's own gradient moved the token by ${signed(own)} nats: ` +
    `${signed(own - rest)} by the coloured tokens${covered} and ${signed(rest)} by the ` +
    `others.${whole}`;
}

