// Every response that was watched: which moved most, found by words, chosen by a click.
const FIRST_ROWS = 12;
const MORE_ROWS = 50;

// What a response is listed with; changes are from its first to its last observation.
function listed(run) {
  const { prompts, responses, observed, tokens } = run.probes;
  const packed = observed.tables.log_prob;
  return responses.map(({ prompt, type, text, tokens: count }, place) => {
    const ys = packed ? [...column(packed, place)].filter(Number.isFinite) : [];
    const [start, end] = [ys[0] ?? NaN, ys.at(-1) ?? NaN];
    return { place, type, prompt: prompts[prompt].name, text, start, change: end - start,
      each: count ? (end - start) / count : NaN,
      detailed: Boolean(tokens?.responses[place]),
      words: `${prompts[prompt].name} ${type} ${prompts[prompt].text} ${text}`.toLowerCase() };
  });
}

const moved = (key) => (a, b) => Math.abs(b[key]) - Math.abs(a[key]);
const rose = (key) => (a, b) => b[key] - a[key];
const fell = (key) => (a, b) => a[key] - b[key];
const named = (key) => (a, b) => a[key].localeCompare(b[key], "en", { numeric: true });
const turned = (order) => (a, b) => order(b, a);
const COLUMNS = [
  { key: "prompt", head: "prompt", orders: [named("prompt"), turned(named("prompt"))] },
  { key: "type", head: "type", orders: [named("type"), turned(named("type"))] },
  { key: "text", head: "response", name: "words", orders: [named("text"), turned(named("text"))] },
  { key: "start", head: "start", orders: [rose("start"), fell("start")] },
  { key: "change", head: "change", orders: [moved("change"), rose("change"), fell("change")],
    told: ["moved most", "rose most", "fell most"] },
  { key: "each", head: "per token", orders: [moved("each"), rose("each"), fell("each")],
    told: ["moved most", "rose most", "fell most"] },
];

// Those without a number come last, whatever the order.
const sorted = (rows, key, order) => [...rows].sort((a, b) =>
  (Number.isNaN(a[key]) - Number.isNaN(b[key])) || order(a, b) || a.place - b.place);

function responseSection() {
  const able = runs.filter((run) => run.probes?.responses.length);
  byId("responses").hidden = !able.length;
  if (!able.length) return;
  const lists = new Map();
  let isOpening = false;
  const rowsOf = (run) => {
    if (!lists.has(run)) lists.set(run, listed(run));
    return lists.get(run);
  };
  const state = { run: able[0], place: -1, token: undefined, type: "", key: "change",
    turn: 0, most: FIRST_ROWS };
  const list = element("div");
  const count = element("p", { className: "quiet", role: "status" });
  const search = element("input", { type: "search", placeholder: "words of a prompt or response",
    oninput: () => { state.most = FIRST_ROWS; fill(); } });
  const which = choice("Run", able.map((run, i) => [i, run.name]), (i) => {
    const { prompt, type } = chosen();
    open(able[i], (each) => each.prompt === prompt && each.type === type);
    remember(state.token);
  });
  const types = choice("Type", [], (type) => { state.type = type; state.most = FIRST_ROWS; fill(); });
  byId("response-controls").append(...(able.length > 1 ? [which.node] : []),
    element("label", {}, "Search", search), types.node);
  byId("response-list").append(count, list);

  const chosen = () => rowsOf(state.run)[state.place];

  function fill() {
    const wanted = search.value.trim().toLowerCase();
    const found = rowsOf(state.run).filter(({ words, type }) =>
      (!state.type || type === state.type) && words.includes(wanted));
    const { orders, told = ["", ""] } = COLUMNS.find(({ key }) => key === state.key);
    const rows = sorted(found, state.key, orders[state.turn]);
    count.replaceChildren(...explained(found.length
      ? `Each row is a probe: ${found.length} of them${told[state.turn]
        ? `, those that ${told[state.turn]} first` : ""}, in nats.`
      : "No response has these words."));
    list.replaceChildren(responseTable(rows.slice(0, state.most), state,
      (key) => {
        const { length } = COLUMNS.find((each) => each.key === key).orders;
        state.turn = state.key === key ? (state.turn + 1) % length : 0;
        state.key = key;
        fill();
        list.querySelector(`th[data-key="${key}"] button`).focus();
      },
      (place) => select(place)));
    if (rows.length > state.most) {
      list.append(element("button", { type: "button", className: "more",
        onclick: () => { state.most += MORE_ROWS; fill(); } },
      `Show ${Math.min(MORE_ROWS, rows.length - state.most)} more`));
    }
  }

  function select(place, token) {
    Object.assign(state, { place, token });
    for (const node of list.querySelectorAll("tr[data-place]")) {
      node.setAttribute("aria-current", +node.dataset.place === place);
    }
    showResponse(byId("response"), state, chosen(), select, remember);
  }

  // What was chosen, by who reads: the page by itself leaves the address as it is.
  function remember(token) {
    if (isOpening) return;
    state.token = token;
    const { prompt, type } = chosen();
    toAddress({ run: state.run.name, probe: prompt, type, token });
  }

  // The response that is wanted; else the one with tokens that moved most.
  function open(run, isWanted, token) {
    state.run = run;
    which.select.value = able.indexOf(run);
    types.fill([["", "all types"], ...[...new Set(rowsOf(run).map(({ type }) => type))]
      .map((type) => [type, type])]);
    if (!rowsOf(run).some(({ type }) => type === state.type)) state.type = "";
    types.select.value = state.type;
    const rows = sorted(rowsOf(run), "change", moved("change"));
    const found = rows.find(isWanted) ?? rows.find(({ detailed }) => detailed) ?? rows[0];
    isOpening = true;
    fill();
    select(found.place, token);
    isOpening = false;
  }

  function follow() {
    const { run, probe, type, token } = fromAddress();
    const of = able.find(({ name }) => name === run) ?? state.run;
    const place = token === undefined ? undefined : Number(token);
    open(of, (each) => each.prompt === probe && each.type === type, place);
    return probe !== undefined;
  }

  addEventListener("hashchange", () => { if (location.hash.includes("=")) follow(); });
  if (follow()) requestAnimationFrame(() => byId("response").scrollIntoView());
}

function responseTable(rows, state, sort, select) {
  const heads = COLUMNS.map(({ key, head, name = key }) => element("th", { scope: "col",
    "data-key": key, className: name, "aria-sort": key !== state.key ? "none"
      : ["other", "descending", "ascending"][key === "change" || key === "each"
        ? state.turn : 2 - state.turn] },
  element("button", { type: "button", onclick: () => sort(key) }, head)));
  const body = rows.map(({ place, prompt, type, text, start, change, each, detailed }) =>
    element("tr", { "data-place": place, "aria-current": place === state.place,
      onclick: () => select(place) },
    element("td", { className: "prompt" }, prompt),
    element("td", { className: "type" }, type),
    element("td", { className: "words" }, element("button", { type: "button", dir: "auto" },
      visible(excerpt(text)) || "(blank)", ...(detailed ? [element("small", {}, " tokens")] : []))),
    element("td", { className: "number start" }, brief(start, false)),
    element("td", { className: "number change" }, brief(change)),
    element("td", { className: "number each" }, brief(each))));
  return element("div", { className: "scroll", tabIndex: 0 }, element("table", {},
    element("thead", {}, element("tr", {}, ...heads)), element("tbody", {}, ...body)));
}

