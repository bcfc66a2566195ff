"use strict";
// Everything on the page is there without this; it sorts, filters and opens.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);

  // A column is sorted by the button that its head becomes; what was not measured stays last.
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const order = cell.dataset.o;
    return order === undefined ? cell.textContent.trim() : order === "" ? null : Number(order);
  };
  const compare = (a, b, sign) => {
    if (a === null || b === null) return (a === null) - (b === null);
    if (typeof a === "number") return sign * (a - b);
    return sign * (a < b ? -1 : a > b ? 1 : 0);
  };
  const sort = (table, head, column) => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => [valueOf(row, column), row]);
    keyed.sort((a, b) => compare(a[0], b[0], sign));
    body.append(...keyed.map((pair) => pair[1]));
  };
  for (const table of all("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.setAttribute("aria-label", `Sort by ${head.textContent.trim()}`);
      button.addEventListener("click", () => sort(table, head, column));
      head.append(button);
    });
  }

  // Filters show rows, tables and details that fit all of them.
  const filters = byId("filters");
  const rows = all("table.sortable tbody tr");
  if (rows.length > 1) {
    const texts = new Map();
    const textOf = (element) => {
      if (!texts.has(element)) texts.set(element, (element.querySelector("summary") || element).textContent.toLowerCase());
      return texts.get(element);
    };
    const apply = () => {
      const [text, profile, status, rating] = ["f-text", "f-p", "f-s", "f-r"].map((id) => byId(id).value);
      const words = text.toLowerCase().split(/\s+/).filter(Boolean);
      const fits = (element, itsProfile) =>
        (!profile || itsProfile === profile) &&
        (!status || element.dataset.s === status) &&
        (!rating || element.dataset.r === rating) &&
        words.every((word) => textOf(element).includes(word));
      let count = 0;
      for (const group of all(".results")) {
        let some = false;
        for (const row of group.querySelector("tbody").rows) {
          const visible = fits(row, group.dataset.p);
          row.hidden = !visible;
          some ||= visible;
          count += visible;
        }
        group.hidden = !some;
      }
      for (const cell of all("details.cell")) cell.hidden = !fits(cell, cell.dataset.p);
      byId("f-count").textContent = `${count} of ${rows.length} cells`;
    };
    filters.hidden = false;
    for (const input of all("input, select", filters)) input.addEventListener("input", apply);
    apply();
  }

  // A link to details opens them, also where a filter had hidden them.
  const reveal = () => {
    const target = location.hash ? byId(location.hash.slice(1)) : null;
    if (target === null) return;
    target.hidden = false;
    if (target instanceof HTMLDetailsElement) target.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  reveal();

  const openAll = byId("open-all");
  if (openAll !== null) {
    openAll.hidden = false;
    openAll.addEventListener("click", (event) => {
      const open = event.target.dataset.open;
      if (open !== undefined) for (const cell of all("details.cell")) cell.open = open === "1";
    });
  }
})();
