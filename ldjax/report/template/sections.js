// What is looked up: signatures, maps, pictures, settings.
function signatureSection() {
  const marks = { holds: "✓ holds", fails: "✗ fails", "not applicable": "– not applicable" };
  const told = ({ verdict, id, strength, text, numbers: of, why }) => element("li", {},
    element("strong", {}, `${marks[verdict]}: `), ...explained(text),
    element("div", { className: "quiet" }, [`${id}, ${strength}`,
      ...Object.entries(of).map(([name, value]) => `${name} = ${number(value)}`), why]
      .filter(Boolean).join("; ")));
  const parent = byId("signatures");
  for (const run of runs) {
    for (const [set, verdicts] of Object.entries(run.signatures)) {
      const holds = verdicts.filter(({ verdict }) => verdict === "holds").length;
      const which = `${ofRun(constants.sets[set] ?? set, run)}: ${holds} of ${verdicts.length} hold`;
      parent.append(folded(which, () => element("ul", {}, ...verdicts.map(told))));
    }
    if (run.checks.length) {
      const holds = run.checks.filter((check) => check.holds).length;
      parent.append(folded(`${ofRun("Checks", run)}: ${holds} of ${run.checks.length} hold`,
        () => element("ul", {}, ...run.checks.map((check) =>
          element("li", {}, element("strong", {}, check.holds ? "✓ holds: " : "✗ fails: "),
            check.text)))));
    }
  }
  parent.hidden = !parent.querySelector("details");
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
    text.value = steps[step];
  };
  reset();
  const node = heatChart(byId("map-chart"), () => {
    const { name, values, rows, columns } = found[now].each;
    const [, height, width] = shape(values);
    return { title: name, columns: width, rowNames: rows, columnNames: columns,
      values: numbers(values).subarray(step * height * width, (step + 1) * height * width) };
  });
  function redraw() {
    draw(node);
    text.value = found[now].each.steps[step];
  }
}

function figureSection() {
  const pictures = runs.flatMap((run) => run.figures.map(({ name, source }) =>
    element("figure", {}, element("img", { src: source, alt: ofRun(name, run) }),
      element("figcaption", {}, ofRun(name, run)))));
  byId("figures").hidden = !pictures.length;
  byId("figures").append(...pictures);
}

// What is trained on, as the model reads it.
function firstExamples() {
  const shown = ({ type, source, pieces, num_tokens: all, num_scored: scored }) =>
    element("div", {},
      element("p", { className: "quiet" }, `${type} of ${source}: ${all} tokens, of which the ` +
        `${scored} marked ones are scored`),
      element("div", { className: "text", dir: "auto", tabIndex: 0 },
        ...pieces.map(([text, isScored]) => isScored ? element("mark", {}, text) : text)));
  byId("responses").append(...runs.filter((run) => run.first.length).map((run) =>
    folded(ofRun("The first training example, as the model reads it", run),
      () => run.first.map(shown))));
}

function configurationSection() {
  const flat = (content, path = "") => Object.entries(content).flatMap(([name, value]) =>
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? flat(value, `${path}${name}.`)
      : [[`${path}${name}`, Array.isArray(value) ? JSON.stringify(value) : String(value)]]);
  byId("configuration").append(...runs.map((run) => folded(run.name, () =>
    table(["setting", "value"], flat(run.config)))));
}

function contents() {
  const sections = [...document.querySelectorAll("main > section")].filter(({ hidden }) => !hidden);
  byId("contents").append(...sections.map(({ id, firstElementChild }) =>
    element("a", { href: `#${id}` },
      firstElementChild.dataset.short ?? firstElementChild.textContent)));
}

