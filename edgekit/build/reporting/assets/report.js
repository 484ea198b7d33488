"use strict";
// Comfort only: the page says everything without this script.

// Click or Enter on a column's head sorts its table; a second time reverses it.
for (const head of document.querySelectorAll("table.candidates th.num[scope=col]")) {
  head.tabIndex = 0;
  head.classList.add("sortable");
  const sort = () => {
    const body = head.closest("table").tBodies[0];
    const index = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[index];
      // A row that was not measured has fewer cells and always goes last.
      return row.querySelector(".none") && index > 1 ? NaN : Number(cell && cell.dataset.v);
    };
    const rows = [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return down ? y - x : x - y;
    });
    body.append(...rows);
  };
  head.addEventListener("click", sort);
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); }
  });
}

// A button beside each command copies it.
for (const box of document.querySelectorAll(".command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    const code = box.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      // Files opened from disk may not use the clipboard: select it, and let the reader press Ctrl+C.
      const range = document.createRange();
      range.selectNodeContents(code);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      if (!document.execCommand("copy")) { button.textContent = "Press Ctrl+C"; return; }
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  box.append(button);
}

// A point and its row light up together.
for (const point of document.querySelectorAll("a.point")) {
  const row = document.getElementById("c" + point.dataset.row);
  const same = document.querySelectorAll(`a.point[data-row="${point.dataset.row}"]`);
  const light = (on) => {
    if (row) row.classList.toggle("lit", on);
    for (const one of same) one.classList.toggle("lit", on);
  };
  for (const element of [point, row].filter(Boolean)) {
    element.addEventListener("mouseenter", () => light(true));
    element.addEventListener("mouseleave", () => light(false));
  }
}

// A link to a folded candidate unfolds it.
const unfold = () => {
  const target = /^#[dc]\d+$/.test(location.hash) && document.getElementById("d" + location.hash.slice(2));
  if (target && location.hash[1] === "d") target.open = true;
};
addEventListener("hashchange", unfold);
unfold();
