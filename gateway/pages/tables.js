// Lists to rows. Text goes in as text only: names come from clients. A row is kept for as long as its
// thing is there, so that a button in it keeps the focus while the numbers beside it change.

export function el(tag, given = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// What is in `parent`, one node for each item: `make(item)` once, `update(node, item)` each time.
export function keyed(parent, items, { key, make, update }) {
  const held = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let before = null;
  for (const item of items) {
    const name = String(key(item));
    let node = held.get(name);
    if (node === undefined) {
      node = make(item);
      node.dataset.key = name;
    }
    held.delete(name);
    update(node, item);
    const place = before === null ? parent.firstChild : before.nextSibling;
    if (place !== node) parent.insertBefore(node, place);
    before = node;
  }
  for (const node of held.values()) node.remove();
}

// A table in `box`; `columns` have a title, `cell(item, td)`, and may be `num`. Explicit roles, for the
// narrow layout takes the tables' display away and with it what browsers would say of them.
export function table(box, { caption, columns, key, wide = false }) {
  const body = el("tbody", { role: "rowgroup" });
  const titles = columns.map((column) =>
    el("th", { role: "columnheader", scope: "col", class: kind(column), text: column.title }));
  const whole = el("table", { role: "table", class: wide && "wide" },
    el("caption", { class: "hidden", text: caption }),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...titles)),
    body);
  box.replaceChildren(whole);
  return (items) => {
    whole.hidden = items.length === 0;
    keyed(body, items, {
      key,
      make: () => el("tr", { role: "row" }, ...columns.map((column) => el("td", {
        role: "cell",
        class: kind(column),
        "data-label": column.title,
      }))),
      update: (row, item) => {
        row.className = item.total ? "total" : "";
        columns.forEach((column, index) => column.cell(item, row.children[index]));
      },
    });
  };
}

function kind(column) {
  return [column.num && "num", column.free && "free"].filter(Boolean).join(" ") || null;
}

// A cell of plain text.
export function text(read) {
  return (item, td) => fill(td, [["span", read(item)]]);
}

// A cell of lines: [tag, text, class].
export function fill(parent, lines) {
  const kept = lines.filter(([, line]) => line !== null && line !== undefined && line !== "");
  keyed(parent, kept.map(([tag, line, kind], index) => ({ tag, line, kind, index })), {
    key: (one) => `${one.index}${one.tag}`,
    make: (one) => el(one.tag),
    update: (node, one) => {
      node.className = one.kind ?? "";
      say(node, one.line);
    },
  });
}

// A list of bars: items have a name, what is `said` beside it, `part` of the track that is full (none:
// null), and a line `below`.
export function bars(list, items) {
  keyed(list, items, {
    key: (item) => item.name,
    make: () => el("li", {},
      el("div", { class: "row" }, el("span", { class: "name" }), el("span", { class: "muted" })),
      el("div", { class: "track", "aria-hidden": "true" }, el("div", { class: "fill" })),
      el("div", { class: "sub" })),
    update: (node, item) => {
      const [row, track, below] = node.children;
      say(row.children[0], item.name);
      say(row.children[1], item.said);
      row.children[1].className = `muted ${item.tone ?? ""}`;
      track.hidden = item.part === null;
      track.firstChild.style.width = `${Math.min(100, 100 * (item.part ?? 0))}%`;
      track.firstChild.hidden = !item.part;
      below.hidden = !item.below;
      say(below, item.below ?? "");
    },
  });
}
