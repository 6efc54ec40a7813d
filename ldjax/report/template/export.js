// Charts as files: their numbers, and what is seen.
const quoted = (cell) => {
  const text = cell === null || Number.isNaN(cell) ? "" : String(cell);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
};

const csv = (rows) => rows.map((cells) => `${cells.map(quoted).join(",")}\r\n`).join("");

function save(blob, name) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 10_000);
}

const LOOKS = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray",
  "stroke-opacity", "opacity", "font-size", "font-weight", "font-family", "text-anchor",
  "dominant-baseline", "image-rendering"];

// A copy that looks the same without the page's style.
function styled(svg) {
  const copy = svg.cloneNode(true);
  const nodes = [svg, ...svg.querySelectorAll("*")];
  [copy, ...copy.querySelectorAll("*")].forEach((node, i) => {
    const look = getComputedStyle(nodes[i]);
    node.removeAttribute("style");  // its colours are names that only the page knows
    for (const name of LOOKS) node.setAttribute(name, look.getPropertyValue(name));
  });
  return copy;
}

// The drawing with its title above and its legend below.
async function picture(figure) {
  const svg = figure.querySelector("svg");
  const { width, height } = svg.getBoundingClientRect();
  const colors = getComputedStyle(document.documentElement);
  const color = (name) => colors.getPropertyValue(`--${name}`).trim();
  const copy = styled(svg);
  for (const [name, value] of Object.entries({ xmlns: SVG, width, height })) {
    copy.setAttribute(name, value);
  }
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(
    new XMLSerializer().serializeToString(copy))}`;
  await image.decode();
  const items = [...figure.querySelectorAll(".legend [aria-pressed=true]")];
  const [scale, top, per] = [2, 28, 20];
  const bottom = per * Math.ceil(items.length / 2) + 8;
  const canvas = element("canvas", { width: scale * width,
    height: scale * (top + height + bottom) });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = color("page");
  context.fillRect(0, 0, width, top + height + bottom);
  context.drawImage(image, 0, top, width, height);
  context.fillStyle = color("text");
  context.font = "600 14px system-ui, sans-serif";
  context.fillText(figure.querySelector("figcaption").textContent, 8, 18);
  context.font = "12px system-ui, sans-serif";
  items.forEach((item, i) => {
    const [x, y] = [8 + (i % 2) * width / 2, top + height + per * (i >> 1) + 14];
    context.fillStyle = getComputedStyle(item.querySelector(".mark")).backgroundColor;
    context.fillRect(x, y - 7, 14, 4);
    context.fillStyle = color("text");
    context.fillText(item.textContent, x + 20, y);
  });
  return new Promise((resolve) => { canvas.toBlob(resolve, "image/png"); });
}

const fileName = (title, kind) =>
  `${title.toLowerCase().replaceAll(/[^\p{L}\p{N}]+/gu, "_").replaceAll(/^_|_$/g, "") || "chart"}.${kind}`;

function exportButtons(figure, title, rows) {
  const button = (kind, make) => element("button", { type: "button", className: "small",
    "aria-label": `${title}: ${kind}`,
    onclick: async () => save(await make(), fileName(title, kind.toLowerCase())) }, kind);
  return element("span", { className: "exports" },
    button("CSV", () => new Blob([csv(rows())], { type: "text/csv" })),
    button("PNG", () => picture(figure)));
}

