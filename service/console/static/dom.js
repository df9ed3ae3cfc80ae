// Makes elements. Text is always text: nothing here parses markup, so names that clients chose can't become any.

const SVG = "http://www.w3.org/2000/svg";

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, each] of Object.entries(value)) element.style.setProperty(key, each);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function make(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

export function draw(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

// A table: `columns` are [header, cell of a row, class], and `onrow` makes rows clickable.
export function table(columns, rows, { onrow, selected, empty = "nothing" } = {}) {
  if (!rows.length) return make("p", { class: "nothing" }, empty);
  const head = make("tr", {}, ...columns.map(([header, , kind]) => make("th", { class: kind ?? null }, header)));
  const body = rows.map((row) => {
    const cells = columns.map(([, cell, kind]) => {
      const content = cell(row);
      return make("td", { class: kind ?? null }, content instanceof Node ? content : String(content));
    });
    const link = onrow && { class: "link", tabindex: 0, onclick: () => onrow(row), onkeydown: (event) => event.key === "Enter" && onrow(row) };
    return make("tr", { ...link, "aria-selected": selected?.(row) ? "true" : null }, ...cells);
  });
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

const tip = () => document.getElementById("tip");

// Shows lines of [label, value, colour] beside the pointer.
export function showTip(event, title, lines) {
  const box = tip();
  box.replaceChildren(
    make("strong", {}, title),
    ...lines.map(([label, value, colour]) =>
      make("div", {}, make("span", { style: colour ? { color: colour } : {} }, label), make("b", {}, value))),
  );
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, event.clientX + 14 + width > innerWidth ? event.clientX - width - 14 : event.clientX + 14)}px`;
  box.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
}

export function hideTip() {
  tip().hidden = true;
}
