// The leaderboard: sorts by its column heads, hides rows and columns by the form above it. Without this script all is shown.
"use strict";
(() => {
  const board = document.getElementById("leaderboard");
  if (!board) return;
  const heads = [...board.tHead.rows[0].cells];
  const body = board.tBodies[0];
  const first = [...body.rows];
  const form = document.querySelector(".filters");
  const shown = document.getElementById("shown");

  const valueOf = (row, column) => {
    const held = row.cells[column].dataset.value;
    return held === undefined ? null : column === 0 ? held : Number(held);
  };

  const sort = (column, direction) => {
    const sign = direction === "descending" ? -1 : 1;
    const compare = (a, b) => {
      const [one, other] = [valueOf(a, column), valueOf(b, column)];
      if (one === null || other === null) return (one === null) - (other === null); // what was not measured comes last
      return sign * (column === 0 ? one.localeCompare(other) : one - other);
    };
    body.append(...(direction === "none" ? first : [...first].sort(compare)));
    heads.forEach((head, i) => head.setAttribute("aria-sort", i === column ? direction : "none"));
  };

  heads.forEach((head, column) => {
    const best = head.dataset.first || "ascending";
    const worst = best === "ascending" ? "descending" : "ascending";
    const next = { none: best, [best]: worst, [worst]: "none" };
    head.querySelector(".sort").addEventListener("click", () => sort(column, next[head.getAttribute("aria-sort")] || best));
  });

  const chosen = (name) => form.querySelector(`[data-filter="${name}"]`).value;
  const fits = (element, names) => names.every((name) => !chosen(name) || element.dataset[name] === chosen(name));

  const filter = () => {
    const controls = form.querySelector("[data-controls]").checked;
    const kept = heads.map((head, column) => column === 0 || fits(head, ["runner", "grain"]));
    heads.forEach((head, column) => { head.hidden = !kept[column]; });
    let rows = 0;
    for (const row of first) {
      row.hidden = !fits(row, ["family", "arch"]) || (!controls && row.classList.contains("control"));
      rows += !row.hidden;
      [...row.cells].forEach((cell, column) => { cell.hidden = !kept[column]; });
    }
    const columns = kept.filter(Boolean).length - 1;
    const all = columns === heads.length - 1 && rows === first.length;
    shown.textContent = all ? "" : columns && rows
      ? `${rows} of ${first.length} encoders, ${columns} of ${heads.length - 1} recipes`
      : "Nothing fits all of these filters: choose “all” in one of them.";
  };

  form.addEventListener("change", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector(".reset").addEventListener("click", () => { form.reset(); filter(); sort(-1, "none"); });
  filter(); // a browser may bring chosen filters back with the page
})();
