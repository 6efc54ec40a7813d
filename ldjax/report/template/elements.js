// Elements. Texts of a run reach the page as text nodes only: `element` makes all of it.
const byId = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  node.append(...children);  // first: `dir` looks at them each time one comes
  for (const [name, value] of Object.entries(properties)) {
    if (name in node) node[name] = value;
    else node.setAttribute(name, value);
  }
  return node;
}

const SVG = "http://www.w3.org/2000/svg";

function drawn(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function choice(label, options, onchange) {
  const select = element("select", { onchange: () => onchange(select.value) });
  const fill = (pairs) => select.replaceChildren(
    ...pairs.map(([value, text]) => element("option", { value }, text)));
  fill(options);
  return { node: element("label", {}, label, select), select, fill };
}

function table(heads, rows) {
  const cell = (content) => typeof content === "number"
    ? element("td", { className: "number" }, number(content))
    : element("td", { dir: "auto" }, content);
  return element("div", { className: "scroll", tabIndex: 0 }, element("table", {},
    element("thead", {}, element("tr", {},
      ...heads.map((head) => element("th", { scope: "col" }, head)))),
    element("tbody", {},
      ...rows.map((row) => element("tr", {}, ...row.map(cell))))));
}

// What is long is there when it is asked for.
function folded(summary, fill, isOpen = false) {
  const node = element("details", {}, element("summary", {}, summary));
  const open = () => {
    node.removeEventListener("toggle", open);
    node.append(...[fill()].flat());
  };
  if (isOpen) {
    node.open = true;
    open();
  } else {
    node.addEventListener("toggle", open);
  }
  return node;
}

function clear(parent) {
  parent.replaceChildren();
}

