// One response: its texts, its curves, its tokens, and what moved it.
function showResponse(parent, { run, token }, chosen, select, remember) {
  const { probes } = run;
  const { place, type, prompt } = chosen;
  clear(parent);
  const siblings = probes.responses.flatMap((each, i) =>
    each.prompt === probes.responses[place].prompt ? [[i, each.type]] : []);
  const types = choice("Response to this prompt", siblings, (i) => select(+i));
  types.select.value = place;
  const block = (head, text) => element("div", {}, element("h4", {}, ...head),
    element("div", { className: "text", dir: "auto", tabIndex: 0 }, text));
  parent.append(
    element("h3", {}, `${type} of ${ofRun(prompt, run)}`),
    element("div", { className: "controls" }, types.node),
    element("div", { className: "columns" },
      block([`Prompt ${prompt}`], probes.prompts[probes.responses[place].prompt].text),
      block(type in constants.meanings
        ? [unbroken(term(type), ":"), ` ${constants.meanings[type]}`] : [term(type)],
        chosen.text)));
  const asked = { run, probe: prompt, type };
  if (run.difference) {
    showPlaces(parent, run, prompt, type);
  } else {
    responseCurves(parent, run, place);
    const origins = element("div");
    parent.append(origins);
    showLedger(origins, asked);
  }
  const tokenOrigins = element("div");
  const detail = probes.tokens?.responses[place];
  if (detail) {
    showTokens(parent, run, place, token, (at) => {
      clear(tokenOrigins);
      showLedgerToken(tokenOrigins, { ...asked, token: at });
      remember(at);
    });
  } else {
    remember();
  }
  parent.append(tokenOrigins);
}

function responseCurves(parent, run, response) {
  const { observed, tracked } = run.probes;
  const grid = element("div", { className: "charts" });
  parent.append(grid);
  const over = (title, lines, xLabel = "updates") => lines.length && lineChart(grid, () =>
    ({ title, lines, xLabel, yLabel: "nats" }));
  const known = (packed, name, look) => {
    const y = packed ? column(packed, response) : [];
    return y.some(Number.isFinite) ? [lineOf(name, observed.steps, y, { joins: true, ...look })] : [];
  };
  const { log_prob, argmax_log_prob, measured_step, predicted_step } = observed.tables;
  over("Log-prob", [...known(log_prob, "of the response", { color: "var(--c0)" }),
    ...known(argmax_log_prob, "of the greedy tokens", { color: "var(--c2)" })]);
  const place = tracked.places?.indexOf(response) ?? -1;
  if (place >= 0) {
    over("Change, added up over all updates", KINDS.filter(([kind]) => kind in tracked.tables)
      .map(([kind, dash, text]) => lineOf(text, tracked.steps,
        column(tracked.tables[kind], place), { dash, color: "var(--c0)" })));
  }
  over("Change by the next update", [
    ...known(measured_step, "measured", { color: "var(--c0)" }),
    ...known(predicted_step, "first order", { color: "var(--c0)", dash: "dash" })]);
}

