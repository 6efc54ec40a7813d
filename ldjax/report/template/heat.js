// A table of numbers as colours: zero is the page, the two signs are two colours.
function heatChart(parent, make) {
  return chart(parent, () => {
    const content = make();
    const name = (names, i) => names[i] === undefined ? i : visible(names[i]);
    return { ...content, name, rows: () => [["row", "column", "value"],
      ...Array.from(content.values, (value, i) => [
        name(content.rowNames, Math.floor(i / content.columns)),
        name(content.columnNames, i % content.columns), value])] };
  }, renderHeat);
}

const heatColor = (share, [red, green, blue]) =>
  [red, green, blue, Math.round(255 * Math.min(1, Math.abs(share)))];

function renderHeat({ node, body, legend, content }) {
  const { values, columns, rowNames, columnNames, name } = content;
  const rows = values.length / columns;
  const most = largest(values.filter(Number.isFinite)) || 1;
  const canvas = element("canvas", { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const triple = (css) => getComputedStyle(document.documentElement)
    .getPropertyValue(css).split(",").map(Number);
  const [up, down] = [triple("--up"), triple("--down")];
  values.forEach((value, i) => {
    if (Number.isFinite(value)) {
      image.data.set(heatColor(value / most, value < 0 ? down : up), 4 * i);
    }
  });
  context.putImageData(image, 0, 0);
  const width = Math.max(200, node.width);
  const left = rowNames.length ? 96 : 40;
  const cell = Math.min((width - left - 8) / columns, 480 / rows, 40);
  const height = cell * rows + (columnNames.length ? 86 : 30);
  const svg = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}` },
    drawn("image", { href: canvas.toDataURL(), x: left, y: 4, width: cell * columns,
      height: cell * rows, preserveAspectRatio: "none", style: "image-rendering: pixelated" }),
    drawn("rect", { x: left, y: 4, width: cell * columns, height: cell * rows, class: "frame" }));
  const axis = drawn("g", { class: "axis" });
  const every = (count) => Math.max(1, Math.ceil(14 / cell), Math.ceil(count / 60));
  for (let i = 0; i < rows; i += every(rows)) {
    axis.append(drawn("text", { x: left - 6, y: 4 + (i + 0.5) * cell, "text-anchor": "end",
      "dominant-baseline": "middle" }, excerpt(String(name(rowNames, i)), 12)));
  }
  for (let j = 0; j < columns; j += every(columns)) {
    const [x, y] = [left + (j + 0.5) * cell, cell * rows + 16];
    axis.append(drawn("text", columnNames.length ? { x, y, "text-anchor": "end",
      transform: `rotate(-60 ${x} ${y})` } : { x, y, "text-anchor": "middle" },
    excerpt(String(name(columnNames, j)), 12)));
  }
  svg.append(axis);
  body.replaceChildren(svg);
  body.onpointermove = (event) => {
    const box = svg.getBoundingClientRect();
    const j = Math.floor((event.clientX - box.left - left) / cell);
    const i = Math.floor((event.clientY - box.top - 4) / cell);
    if (i < 0 || j < 0 || i >= rows || j >= columns) return readout(body);
    return readout(body, [{ name: `${name(rowNames, i)}, ${name(columnNames, j)}`,
      value: number(+values[i * columns + j].toPrecision(4)), color: "transparent" }],
    content.title, event.clientX - box.left);
  };
  body.onpointerleave = () => readout(body);
  const low = values.some((value) => value < 0) ? `−${number(most)}` : "0";
  legend.replaceChildren(key(low, number(most)));
}

// Zero is the page itself; both signs darken it, and the text stays readable.
function colored(node, value, scale) {
  const share = scale > 0 ? Math.min(1, Math.abs(value) / scale) : 0;
  const sign = value < 0 ? "down" : "up";
  node.style.backgroundColor = `rgba(var(--${sign}), ${(0.75 * share).toFixed(3)})`;
  return node;
}

function key(low, high) {
  const ramp = `ramp${low === "0" ? " up" : ""}`;
  return element("p", { className: "quiet" }, element("span", { className: "key" },
    low, element("span", { className: ramp }), high));
}

const colorKey = (scale) => key(`−${number(scale)}`, `+${number(scale)} nats`);

