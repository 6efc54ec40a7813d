// Which training examples moved a response, over the run or at an update.

// The window that is looked at, whichever response is; -1 is the whole run.
let ledgerWindow = -1;

const ledgerPlace = ({ responses }, probe, type) =>
  responses.findIndex((of) => of.probe === probe && of.type === type);

function showLedger(parent, { run, probe, type }) {
  const { ledger } = run;
  if (!ledger) {
    parent.append(element("p", { className: "quiet" }, "Which training examples moved it is " +
      "not known yet: ", element("code", {}, "ldjax ledger RUN"), " works it out and adds it here."));
    return;
  }
  const place = ledgerPlace(ledger, probe, type);
  if (place < 0) {
    parent.append(element("p", { className: "quiet" }, withoutAccount(ledger)));
    return;
  }
  showBalance(parent, run, place);
  showExamples(parent, ledger, place);
}

function withoutAccount({ responses }) {
  const known = [...new Set(responses.map(({ probe }) => probe))];
  const more = known.length > 4 ? ` and ${known.length - 4} more` : "";
  return "The ledger has no account of this response, but of those to " +
    `${known.slice(0, 4).join(", ")}${more}.`;
}

function showBalance(parent, run, place) {
  const { ledger } = run;
  let bySide = false;
  const { measured, floor } = ledger.responses[place];
  const rounding = floor === null ? "" : ` The rounding floor is ${magnitude(floor)}.`;
  parent.append(element("h4", {}, "What its change is the sum of"),
    element("p", {}, ...explained(`Over ${spanOf(run)} it moved by ` +
      `${signed(measured)} nats. Each part begins where those above it end, and all end at ` +
      `what was measured.${rounding}`)));
  const controls = element("div", { className: "controls" });
  const grid = element("div", { className: "charts wide" });
  parent.append(controls, grid);
  const node = waterfall(grid, () => {
    const { parts, total } = ledgerBalance(ledger, [place]);
    return { title: "Parts of the measured change", parts: bySide ? inSides(parts) : parts, total };
  });
  if (isOfPairs(ledger)) {
    controls.append(element("label", {}, element("input", { type: "checkbox",
      onchange: ({ target }) => { bySide = target.checked; draw(node); } }), "Pairs by side"));
  }
  if (!ledger.layers) return;
  parent.append(folded("By layer", () => {
    const layers = element("div", { className: "charts wide" });
    requestAnimationFrame(() => layerBars(layers, ledger.layers, place));
    return layers;
  }));
}

// ---- Examples

// The shares of a group, from the one that lifted most to the one that lowered most.
function ledgerShares({ starts, examples, sides, when }, group) {
  const [from, to] = [numbers(starts)[group], numbers(starts)[group + 1]];
  return Array.from({ length: to - from }, (_, i) => {
    const values = row(sides, from + i);
    return { example: numbers(examples)[from + i], sides: values, value: sumOf(values),
      when: when ? timesOf(when, from + i) : [] };
  });
}

// The windows in which a share was earned, and what of it.
function timesOf({ starts, windows, values }, share) {
  const [from, to] = [numbers(starts)[share], numbers(starts)[share + 1]];
  return Array.from({ length: to - from }, (_, i) =>
    ({ window: numbers(windows)[from + i], value: numbers(values)[from + i] }));
}

const windowsOf = ({ num_steps, width }) => Math.ceil(num_steps / width);

// What the examples of every window gave: its own, and the others.
function datedOf(ledger, place) {
  const count = windowsOf(ledger);
  return Array.from({ length: count }, (_, window) =>
    [...row(ledger.dated, place * count + window)]);
}

// The first and the last update of a window.
const windowEnds = ({ width, num_steps }, window) =>
  [window * width + 1, Math.min(num_steps, (window + 1) * width)];

function windowName(ledger, window) {
  const [first, last] = windowEnds(ledger, window);
  return first === last ? `update ${first}` : `updates ${first} to ${last}`;
}

function showExamples(parent, ledger, place) {
  const dated = datedOf(ledger, place);
  const last = dated.length - 1;
  const [told, lists] = [element("p", { role: "status" }), element("div")];
  const whole = element("button", { type: "button", onclick: () => show(-1) }, "All updates");
  const exact = element("input", { type: "number", min: 1, max: ledger.num_steps,
    onchange: () => show(Math.floor((exact.value - 1) / ledger.width)) });
  const slider = element("input", { type: "range", min: 0, max: last, "aria-label": "Update",
    oninput: () => show(+slider.value) });
  const grid = element("div", { className: "charts wide" });
  parent.append(element("h4", {}, "Which training examples moved it"), grid);
  const strip = windowBars(grid, ledger, dated, (window) => show(window));
  const show = (wanted) => {
    ledgerWindow = Math.min(Math.max(wanted, -1), last);
    const isWhole = ledgerWindow < 0;
    slider.value = Math.max(ledgerWindow, 0);
    slider.className = isWhole ? "idle" : "";
    slider.setAttribute("aria-valuetext",
      isWhole ? "all updates" : windowName(ledger, ledgerWindow));
    exact.value = isWhole ? "" : ledgerWindow * ledger.width + 1;
    whole.setAttribute("aria-pressed", isWhole);
    draw(strip);
    const { text, node } = isWhole ? examplesOfRun(ledger, place)
      : examplesOfWindow(ledger, place, ledgerWindow, dated[ledgerWindow]);
    told.textContent = text;
    lists.replaceChildren(node);
  };
  parent.append(element("div", { className: "controls" }, whole,
    element("label", {}, "At update", exact), slider), told, lists, howCounted(ledger));
  show(ledgerWindow);
}

// ---- Over the updates

// What the examples of every window gave: what lifted above zero, what lowered below.
function windowBars(parent, ledger, dated, onselect) {
  const parts = ["own", "others"].map((whose) =>
    ({ name: whoseName(ledger, whose), color: ledgerColor(whose) }));
  return chart(parent, () => ({
    title: "By the update that trained the examples", parts, ledger, dated,
    rows: () => [["from update", "to update", ...parts.map(({ name }) => name)],
      ...dated.map((values, window) => [...windowEnds(ledger, window), ...values])],
  }), (drawing) => renderWindows(drawing, onselect));
}

const WINDOWS_HEIGHT = 160;

function renderWindows({ node, body, legend, content }, onselect) {
  const { ledger, dated, parts } = content;
  const width = Math.max(200, node.width);
  const positive = dated.map((values) => sumOf(values.map((value) => Math.max(0, value))));
  const negative = dated.map((values) => sumOf(values.map((value) => Math.min(0, value))));
  const most = largest(positive, negative) || 1;
  const x = scaleOf([0, ledger.num_steps], [MARGINS.left, width - MARGINS.right]);
  const y = scaleOf([-most, most], [WINDOWS_HEIGHT - MARGINS.bottom, MARGINS.top]);
  const svg = drawn("svg", { width, height: WINDOWS_HEIGHT, class: "windows",
    viewBox: `0 0 ${width} ${WINDOWS_HEIGHT}` });
  axes(svg, x, y, { xLabel: "updates", yLabel: "nats" });
  const [from, to] = [(window) => x(window * ledger.width),
    (window) => x(Math.min(ledger.num_steps, (window + 1) * ledger.width))];
  if (ledgerWindow >= 0) {
    svg.append(drawn("rect", { x: from(ledgerWindow) - 2, y: y.to, height: y.from - y.to,
      width: to(ledgerWindow) - from(ledgerWindow) + 4, class: "chosen" }));
  }
  svg.append(...parts.map(({ color }, part) => {
    const path = drawn("path", { d: dated.map((values, window) => {
      const before = sumOf(values.slice(0, part).filter((value) => value * values[part] > 0));
      return `M${from(window)} ${y(before)}H${to(window)}V${y(before + values[part])}H${from(window)}Z`;
    }).join("") });
    path.style.fill = color;
    return path;
  }));
  svg.addEventListener("click", ({ clientX }) => {
    const updates = x.back(clientX - svg.getBoundingClientRect().left);
    onselect(Math.min(Math.max(0, Math.floor(updates / ledger.width)), dated.length - 1));
  });
  body.replaceChildren(svg);
  legend.replaceChildren(...parts.map(({ name, color }) =>
    element("span", { "aria-pressed": true }, mark(color), name)));
}

// ---- Lists

const magnitude = (value) => number(Math.abs(+value.toPrecision(3)));

function examplesOfRun(ledger, place) {
  const shares = ledgerShares(ledger.of_run, place);
  const [lifted, lowered] = [ledger.lifted, ledger.lowered].map(({ counts, sums }) =>
    ({ count: counts[place], sum: sums[place] }));
  const told = (verb, { count, sum }) => count
    ? `${number(count)} ${verb} it, by ${magnitude(sum)} nats together` : `none ${verb} it`;
  return { node: shareColumns(ledger, place, shares, { lifted, lowered }),
    text: `Of ${number(ledger.num_examples)} training examples ` +
      `${told("lifted", lifted)}, and ${told("lowered", lowered)}.` };
}

function examplesOfWindow(ledger, place, window, [own, others]) {
  const group = place * windowsOf(ledger) + window;
  const shares = ledgerShares(ledger.of_windows, group);
  const left = numbers(ledger.of_windows.counts)[group] - shares.length;
  const rest = own + others - sumOf(shares.map(({ value }) => value));
  const hidden = left > 0
    ? ` ${number(left)} of them are not shown: ${signed(rest)} together.` : "";
  return { node: shareColumns(ledger, place, shares),
    text: `The examples of ${windowName(ledger, window)} gave ${signed(own + others)} nats: ` +
      `${whoseName(ledger, "own")} ${signed(own)}, ${whoseName(ledger, "others")} ` +
      `${signed(others)}.${hidden}` };
}

// What lifted and what lowered it, side by side, and how much of each is not shown.
function shareColumns(ledger, place, shares, all) {
  const most = largest(shares.map(({ value }) => value));
  const list = (head, of, whole) => {
    const left = whole ? whole.count - of.length : 0;
    return element("div", {}, element("h4", {}, head),
      of.length ? element("ol", { className: "shares" }, ...of.map((share, i) =>
        element("li", {}, shareCard(ledger, place, share, most, i === 0))))
        : element("p", { className: "quiet" }, "none"),
      left > 0 ? element("p", { className: "quiet" }, `and ${number(left)} more: ` +
        `${signed(whole.sum - sumOf(of.map(({ value }) => value)))} nats together`) : "");
  };
  return element("div", { className: "columns" },
    list("Lifted it most", shares.filter(({ value }) => value > 0), all?.lifted),
    list("Lowered it most", shares.filter(({ value }) => value < 0).reverse(), all?.lowered));
}

function shareCard(ledger, place, { example, sides, value, when }, most, isOpen) {
  const { name, prompt, sides: texts = {} } = ledger.examples[example];
  const isOwn = name.split(":")[0] === ledger.responses[place].probe;
  const bySide = ledger.sides.map((side, i) => ({ side, value: sides[i] }))
    .filter(({ side, value: of }) => of !== 0 || side in texts);
  const meter = element("span", { className: "meter", "aria-hidden": "true" });
  Object.assign(meter.style, { width: `${(100 * Math.abs(value)) / most}%`,
    backgroundColor: signColor(value) });
  const quiet = (text) => element("span", { className: "quiet" }, text);
  const head = element("summary", {},
    element("span", { className: "share-head" }, ...[
      element("strong", {}, brief(value)), element("span", {}, name),
      ...(isOwn ? [element("span", { className: "own" }, whoseName(ledger, "own"))] : []),
      ...(isOfPairs(ledger) ? [quiet(bySide.map(({ side, value: of }) =>
        `${side} ${brief(of)}`).join(", "))] : []),
      ...(when.length ? [quiet(whenWords(ledger, when))] : [])].flatMap((each) => [each, " "])),
    meter, element("span", { className: "excerpt", dir: "auto" }, prompt ?? ""));
  const block = (title, text) => [element("h5", {}, title),
    element("div", { className: "text", dir: "auto", tabIndex: 0 }, text)];
  return element("details", { open: isOpen }, head, ...(prompt === undefined
    ? [quiet("Its texts are not on this page; ledger/examples.jsonl of the run has them.")]
    : [...block("prompt", prompt), ...bySide.flatMap(({ side, value: of }) => block(
      isOfPairs(ledger) ? `${side}: ${brief(of)} nats` : "response", texts[side] ?? ""))]));
}

// When an example was trained on, and where it did most.
function whenWords(ledger, when) {
  const { window } = when.reduce((best, each) =>
    Math.abs(each.value) > Math.abs(best.value) ? each : best);
  const name = windowName(ledger, window);
  return when.length > 1 ? `${when.length} times, most at ${name}` : `at ${name}`;
}

function howCounted({ width, top, top_of_window }) {
  return folded("How this is counted", () => [
    element("p", {}, "A share is counted at the update that trained the example, with all " +
      "that the optimizer's moments pay of it later. Scales such as Adam's second moments " +
      "are taken as they were. That an example changed later gradients is charged to those " +
      "later examples. So shares divide what happened; what training without an example " +
      "would have done is another question."),
    element("p", {}, ...explained("Before the run is what the optimizer's state held when it " +
      "began; weight decay belongs to no example; quadrature and rounding are what the account " +
      "of single updates leaves.")),
    element("p", {}, `Of each response this page keeps the ${top} examples that lifted and ` +
      `the ${top} that lowered it most over the run, and the ${top_of_window} of ` +
      `${width > 1 ? `each ${width} updates` : "each update"}; sums are of all examples. ` +
      "Every share is in ledger/ledger.parquet of the run."),
  ]);
}
