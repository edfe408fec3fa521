"use strict";
// Click or press a heading to sort by it; once more for the other way round. Cells without a value stay last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const body = table.tBodies[0];
      const keyed = [...body.rows].map((row) => [row.cells[column], row]);
      const numeric = keyed.some(([cell]) => "value" in cell.dataset);
      const up = head.getAttribute("aria-sort") === "descending" || (!numeric && !head.hasAttribute("aria-sort"));
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const value = (cell) => (cell.dataset.value === "" ? NaN : Number(cell.dataset.value));
      keyed.sort(([a], [b]) => {
        if (!numeric) return (up ? 1 : -1) * a.textContent.localeCompare(b.textContent);
        const [x, y] = [value(a), value(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return up ? x - y : y - x;
      });
      body.append(...keyed.map(([, row]) => row));
    });
  });
}
