// Which trained tokens moved a token of a response, over the run.
function showLedgerToken(parent, { run, probe, type, token }) {
  const { ledger } = run;
  const place = ledger ? ledgerPlace(ledger, probe, type) : -1;
  if (place < 0) return;
  const found = ledger.tokens?.responses[place];
  if (!found) {
    parent.append(element("p", { className: "quiet" }, "Which trained tokens moved it over " +
      "all updates is told where the ledger was made by ",
    element("code", {}, "ldjax ledger RUN --by-token N"), ", for the first N responses."));
    return;
  }
  const [lifted, lowered] = row(found.sums, token);
  const [rows, totals] = [row(found.rows, token), row(found.totals, token)];
  const unit = numbers(found.unit)[token];
  const places = row(found.tokens, token);
  const shares = Array.from(row(found.shares, token), (share) => share * unit);
  const [named, scale] = [places.length / rows.length, +largest(shares).toPrecision(3)];
  const cards = Array.from(rows, (of, i) => ({ value: totals[i], node: () => tokenCard(
    ledger, ledger.tokens.examples[of], totals[i], row(found.rests, token)[i], scale,
    new Map(Array.from({ length: named }, (_, n) =>
      [places[i * named + n], shares[i * named + n]]))) }));
  const list = (head, of) => element("div", {}, element("h5", {}, head),
    ...(of.length ? of.map(({ node }) => node())
      : [element("p", { className: "quiet" }, "none")]));
  const half = rows.length / 2;
  parent.append(element("h4", {}, `Which trained tokens moved it, over ${spanOf(run)}`),
    element("p", {}, `Training examples lifted this token by ${magnitude(lifted)} nats and ` +
      `lowered it by ${magnitude(lowered)}: ${signed(lifted + lowered)} together. Those that ` +
      `did most are below; of each the ${named} tokens with the largest shares are coloured.`),
    colorKey(scale),
    element("div", { className: "columns" },
      list("Lifted it most", cards.slice(0, half).filter(({ value }) => value > 0)),
      list("Lowered it most", cards.slice(half).filter(({ value }) => value < 0))));
}

function tokenCard(ledger, { name, sides }, total, rest, scale, shares) {
  let place = 0;
  const blocks = Object.entries(sides).map(([side, texts]) => {
    const spans = texts.map((text) => {
      const share = shares.get(place++);
      const span = element("span", { className: "token" }, visible(text));
      if (!share) return span;
      span.title = `${signed(share)} nats`;
      return colored(span, share, scale);
    });
    const head = isOfPairs(ledger)
      ? [element("span", { className: "quiet" }, `${side}: `)] : [];
    return element("div", { className: "text tokens", dir: "auto", tabIndex: 0 },
      ...head, ...spans);
  });
  const { prompt = "" } = ledger.examples.find((of) => of.name === name) ?? {};
  return element("div", { className: "token-share" },
    element("p", {}, element("strong", {}, signed(total)), ` ${name}`,
      ...(place > shares.size ? [element("span", { className: "quiet" },
        `, tokens without a colour ${signed(rest)}`)] : [])),
    element("p", { className: "excerpt", dir: "auto" }, prompt), ...blocks);
}
