"use strict";
// Rows are drawn a page at a time: five thousand of them at once would make a browser wait.
// What is shown stands in the address (#q=..&verdict=..&sort=..), so that a view can be sent on.
(() => {
  const PAGE = 100;
  const data = JSON.parse(document.getElementById("data").textContent);
  const at = Object.fromEntries(data.columns.map((name, index) => [name, index]));
  const HEADS = [
    ["input", "Adapter"], ["verdict", "Verdict"], ["state", "State"], ["kept", "Update that moves"],
    ["moved", "Layers"], ["phi_mean", "Similarity"], ["size_out", "Size"], ["message", "Note"],
  ];
  const NUMBERS = new Set(["kept", "moved", "phi_mean", "size_out"]);
  const FILTERS = ["verdict", "state", "reason"];
  const field = (id) => document.getElementById(id);
  const texts = data.rows.map((row) => [row[at.input], row[at.reason], row[at.message],
    row[at.flags]].join(" ").toLowerCase());
  let view = { sort: "", down: false, page: 0 };

  const percent = (value) => value === null ? "–" : `${(100 * value).toFixed(1)} %`;
  const megabytes = (value) => value === null ? "–" : `${(value / 1e6).toFixed(1)} MB`;

  function element(name, text, kind) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  function chosen() {
    const words = field("q").value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = [];
    data.rows.forEach((row, index) => {
      const fits = FILTERS.every((name) => !field(name).value || row[at[name]] === field(name).value);
      if (fits && words.every((word) => texts[index].includes(word))) found.push(row);
    });
    if (!view.sort) return found;
    const column = at[view.sort], sign = view.down ? -1 : 1;
    return found.sort((one, other) => {
      const a = one[column], b = other[column];
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
    });
  }

  function drawRow(row) {
    const line = element("tr");
    const name = element("td", undefined, "name");
    if (row[at.preview]) {
      const picture = element("img");
      picture.loading = "lazy";
      picture.alt = "";
      picture.src = row[at.preview];
      name.append(picture);
    }
    const shown = element(row[at.output] ? "a" : "span", row[at.input]);
    if (row[at.output]) shown.href = row[at.output];
    name.append(shown);
    const note = [row[at.message], row[at.flags]].filter(Boolean).join("; ");
    line.append(name, element("td", row[at.verdict], row[at.verdict]), element("td", row[at.state]),
      element("td", percent(row[at.kept]), "number"),
      element("td", row[at.modules] ? `${row[at.moved]} of ${row[at.modules]}` : "–", "number"),
      element("td", row[at.phi_mean] === null ? "–" : row[at.phi_mean].toFixed(3), "number"),
      element("td", megabytes(row[at.size_out]), "number"), element("td", note, "note"));
    return line;
  }

  function draw() {
    const rows = chosen(), pages = Math.max(Math.ceil(rows.length / PAGE), 1);
    view.page = Math.min(Math.max(view.page, 0), pages - 1);
    const some = rows.slice(view.page * PAGE, (view.page + 1) * PAGE);
    document.querySelector("tbody").replaceChildren(...some.map(drawRow));
    field("shown").textContent = `${rows.length} of ${data.rows.length} files`;
    field("page").textContent = `page ${view.page + 1} of ${pages}`;
    field("less").disabled = view.page === 0;
    field("more").disabled = view.page === pages - 1;
    document.querySelectorAll("th").forEach((head) => {
      const mine = head.dataset.column === view.sort;
      head.setAttribute("aria-sort", mine ? (view.down ? "descending" : "ascending") : "none");
      head.querySelector("span").textContent = mine ? (view.down ? " ▼" : " ▲") : "";
    });
  }

  function remember() {
    const words = new URLSearchParams();
    ["q", ...FILTERS].forEach((name) => { if (field(name).value) words.set(name, field(name).value); });
    if (view.sort) words.set("sort", (view.down ? "-" : "") + view.sort);
    history.replaceState(null, "", `#${words}`);
  }

  function readAddress() {
    const words = new URLSearchParams(location.hash.slice(1));
    ["q", ...FILTERS].forEach((name) => { field(name).value = words.get(name) || ""; });
    const sort = words.get("sort") || "", name = sort.replace(/^-/, "");
    view = { sort: name in at ? name : "", down: sort.startsWith("-"), page: 0 };
    draw();
  }

  FILTERS.forEach((name) => {
    const values = [...new Set(data.rows.map((row) => row[at[name]]).filter(Boolean))].sort();
    field(name).append(...values.map((value) => { const o = element("option", value); o.value = value; return o; }));
  });
  document.querySelector("thead tr").append(...HEADS.map(([column, text]) => {
    const head = element("th"), button = element("button", text);
    head.dataset.column = column;
    head.scope = "col";
    if (NUMBERS.has(column)) head.className = "number";
    button.type = "button";
    button.append(element("span"));
    button.addEventListener("click", () => {
      view = { sort: column, down: view.sort === column && !view.down, page: 0 };
      remember();
      draw();
    });
    head.append(button);
    return head;
  }));
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  ["q", ...FILTERS].forEach((name) => field(name).addEventListener("input", () => {
    view.page = 0;
    remember();
    draw();
  }));
  [["less", -1], ["more", 1]].forEach(([id, step]) => field(id).addEventListener("click", () => {
    view.page += step;
    draw();
  }));
  window.addEventListener("hashchange", () => {
    readAddress();
    field("files").scrollIntoView();
  });
  readAddress();
  if (location.hash.length > 1) field("files").scrollIntoView();
})();
