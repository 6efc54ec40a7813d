// Words that explain themselves to who hovers, focuses or taps them.
const tip = element("div", { id: "tip", role: "tooltip", hidden: true });
document.body.append(tip);

function term(word, text = word) {
  if (!(word in constants.glossary)) return document.createTextNode(text);
  return element("button", { type: "button", className: "term", "data-term": word }, text);
}

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
const TERMS = new RegExp(`(?<![\\w*])(${Object.keys(constants.glossary)
  .sort((a, b) => b.length - a.length).map(escaped).join("|")})(?![\\w*])`, "g");

// A term and the sign behind it, which a line may break before since a term is a button.
const unbroken = (node, sign) =>
  sign ? element("span", { className: "unbroken" }, node, sign) : node;

// A sentence with the first of each word that the glossary knows as a term.
function explained(sentence) {
  const seen = new Set();
  const pieces = sentence.replaceAll(/(?<=\s)-(?=\d)/g, "−").split(TERMS);
  for (let i = 1; i < pieces.length; i += 2) {  // words are between the rest
    if (seen.has(pieces[i])) continue;
    seen.add(pieces[i]);
    const [sign] = pieces[i + 1].match(/^\p{P}*/u);
    pieces[i + 1] = pieces[i + 1].slice(sign.length);
    pieces[i] = unbroken(term(pieces[i]), sign);
  }
  return pieces;
}

function showTip(node) {
  const { term: word } = node.dataset;
  tip.replaceChildren(element("strong", {}, word), ` ${constants.glossary[word]}`);
  tip.hidden = false;
  node.setAttribute("aria-describedby", "tip");
  const at = node.getBoundingClientRect();
  const { offsetWidth, offsetHeight } = tip;
  const left = Math.min(at.left, document.documentElement.clientWidth - offsetWidth - 8);
  const below = at.bottom + 6 + offsetHeight <= innerHeight;
  tip.style.left = `${Math.max(8, left)}px`;
  tip.style.top = `${below ? at.bottom + 6 : Math.max(4, at.top - offsetHeight - 6)}px`;
}

function hideTip() {
  tip.hidden = true;
  document.querySelector(".term[aria-describedby]")?.removeAttribute("aria-describedby");
}

for (const kind of ["pointerover", "focusin", "click"]) {
  document.addEventListener(kind, ({ target }) => {
    const node = target.closest?.(".term");
    if (node) showTip(node);
    else if (kind !== "focusin") hideTip();
  });
}
document.addEventListener("focusout", hideTip);
document.addEventListener("keydown", ({ key }) => { if (key === "Escape") hideTip(); });
document.addEventListener("scroll", () => {
  const node = document.querySelector(".term[aria-describedby]");
  if (node) showTip(node);  // it moves along
}, { passive: true, capture: true });

function glossarySection() {
  byId("glossary").append(folded("All words", () => element("dl", {},
    ...Object.entries(constants.glossary).flatMap(([word, meaning]) => [
      element("dt", {}, word), element("dd", {}, meaning)]))));
}

