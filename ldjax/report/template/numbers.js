// Numbers and texts as they are shown.
function number(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en").replace("-", "−");
  const size = Math.abs(value);
  const text = size >= 1e-3 && size < 1e5
    ? String(+value.toPrecision(4)) : value.toExponential(2);
  return text.replace("-", "−");
}

const signed = (value) =>
  `${value < 0 ? "−" : "+"}${number(Math.abs(+value.toPrecision(3)))}`;

// Few digits, for tables: what is after them is within the uncertainty.
function brief(value, isSigned = true) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  const digits = size >= 100 ? 0 : size >= 10 ? 1 : 2;
  const text = size !== 0 && size < 0.005 ? size.toExponential(0) : size.toFixed(digits);
  return `${value < 0 ? "−" : isSigned ? "+" : ""}${text}`;
}

const percent = (share) => `${number(Math.round(100 * share))} %`;

const largest = (...arrays) => {
  let most = 0;
  for (const array of arrays) for (const value of array) most = Math.max(most, Math.abs(value));
  return most;
};

const sumOf = (values) => [...values].reduce((sum, value) => sum + value, 0);

const CODES = { " ": "␣", "\n": "⏎\n", "\t": "⇥\t" };

// A token's text, in which what has no look of its own is named.
function visible(text) {
  if (text === "") return "▫";
  const code = (sign) => `⟨U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  const unseen = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
  const shown = text.replace(unseen, (sign) =>
    sign === "\u200d" || sign === "\u200c" ? sign : CODES[sign] ?? code(sign));
  return text.trim() === "" ? shown.replaceAll(" ", "␣") : shown;
}

const excerpt = (text, most = 90) => {
  const signs = [...text.trim().replaceAll(/\s+/g, " ")];
  return signs.length > most ? `${signs.slice(0, most).join("")}…` : signs.join("");
};

