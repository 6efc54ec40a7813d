byId("title").append(runs.map((run) => run.name).join(", "));
viewControls();
overviewSection();
differenceSection();
curveSection();
accountSection();
originSection();
responseSection();
firstExamples();
signatureSection();
mapSection();
figureSection();
configurationSection();
glossarySection();
contents();
for (const node of document.querySelectorAll("main > section > p:not([role])")) {
  node.replaceChildren(...explained(node.textContent));
}
byId("status").remove();
// Colours of pixels do not follow the style by themselves.
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
