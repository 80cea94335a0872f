"use strict";
// Links open what they lead to; commands can be copied; on a narrow screen the contents begin closed.
(() => {
  const named = (hash) => {
    try {
      return decodeURIComponent(hash);
    } catch {
      return hash; // typed by hand, with a % that begins no escape
    }
  };
  const openTarget = () => {
    const target = document.getElementById(named(location.hash.slice(1)));
    for (let node = target; node; node = node.parentElement) if (node.tagName === "DETAILS") node.open = true;
    if (target) target.scrollIntoView();
  };
  addEventListener("hashchange", openTarget);
  if (location.hash) openTarget();

  const contents = document.getElementById("contents");
  const narrow = matchMedia("(max-width: 63.99rem)");
  if (narrow.matches) contents.open = false;
  contents.addEventListener("click", (event) => {
    if (narrow.matches && event.target.tagName === "A") contents.open = false;
  });

  for (const command of document.querySelectorAll("pre.command")) {
    const text = command.textContent;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "copy";
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        getSelection().selectAllChildren(command.querySelector("code"));
        button.textContent = "selected";
      }
    });
    command.append(button);
  }
})();

// The samples: a page of rows at a time, of those that pass the filters, in the order of one column.
(() => {
  const source = document.getElementById("sample-data");
  if (!source) return;
  const data = JSON.parse(source.textContent);
  const controls = document.getElementById("sample-controls");
  const pages = document.getElementById("sample-pages");
  const status = document.getElementById("sample-status");
  const table = document.getElementById("samples-table");
  const state = { config: 0, sort: "error", descending: true, page: 0, haystacks: new Map() };
  const field = (name) => controls.elements[name];
  const config = () => data.configs[state.config];
  const samples = () => data.sets[config().set];

  const columns = () =>
    [...samples().columns, ...config().columns].filter(
      (column) => (column.of !== "heads" || field("heads").checked) && (column.of !== "edges" || field("edges").checked),
    );
  const isText = (column) => column.digits === undefined;
  const text = (column, row) => {
    const value = column.values[row];
    if (value === null) return "–";
    if (column.names) return column.names[value];
    return isText(column) ? value : (value / 10 ** column.digits).toFixed(column.digits);
  };

  const compare = (column) => (one, other) => {
    const [a, b] = [column.values[one], column.values[other]];
    if (a === null || b === null) return (a === null) - (b === null);
    const order = typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
    return state.descending ? -order : order;
  };

  const haystack = () => {
    const found = state.haystacks.get(samples());
    if (found) return found;
    const texts = samples().columns.filter((column) => column.title === "id" || column.title === "text");
    const made = texts[0].values.map((_, row) => texts.map((column) => column.values[row]).join("\n").toLowerCase());
    state.haystacks.set(samples(), made);
    return made;
  };

  const passes = (filter, chosen, row) => chosen === "" || filter.values[row].includes(Number(chosen));
  const rows = () => {
    const { classes, speakers } = samples();
    const words = field("search").value.toLowerCase();
    const chosen = haystack()
      .map((_, row) => row)
      .filter(
        (row) =>
          haystack()[row].includes(words) &&
          passes(classes, field("class").value, row) &&
          (!speakers || passes(speakers, field("speaker").value, row)),
      );
    return chosen.sort(compare(columns().find((column) => column.title === state.sort)));
  };

  const element = (name, content, className) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    made.textContent = content; // never as HTML: a transcript may hold anything
    return made;
  };

  const sortBy = (column) => {
    state.descending = state.sort === column.title ? !state.descending : !isText(column);
    state.sort = column.title;
    state.page = 0;
    showRows();
  };

  const showHeader = () => {
    if (!columns().some((column) => column.title === state.sort)) [state.sort, state.descending] = ["error", true];
    const header = document.createElement("tr");
    for (const column of columns()) {
      const cell = element("th", "", isText(column) ? "words" : "");
      cell.scope = "col";
      const button = element("button", column.title);
      button.type = "button";
      button.addEventListener("click", () => sortBy(column));
      cell.append(button);
      header.append(cell);
    }
    table.tHead.replaceChildren(header);
  };

  const showRows = () => {
    const shown = columns();
    [...table.tHead.rows[0].cells].forEach((cell, number) => {
      const sorted = shown[number].title === state.sort;
      cell.ariaSort = sorted ? (state.descending ? "descending" : "ascending") : "none";
      cell.firstChild.textContent = shown[number].title + (sorted ? (state.descending ? " ▼" : " ▲") : "");
    });
    const found = rows();
    const size = Number(pages.querySelector("select").value);
    const last = Math.max(0, Math.ceil(found.length / size) - 1);
    state.page = Math.min(Math.max(state.page, 0), last);
    const begin = state.page * size;
    const part = found.slice(begin, begin + size);
    table.tBodies[0].replaceChildren(
      ...part.map((row) => {
        const line = document.createElement("tr");
        for (const [place, column] of shown.entries()) {
          const kind = isText(column) ? (column.title === "text" ? "words text" : "words") : "";
          const cell = element(place ? "td" : "th", text(column, row), kind);
          if (!place) cell.scope = "row";
          line.append(cell);
        }
        return line;
      }),
    );
    const total = samples().columns[0].values.length;
    const which = found.length ? `${begin + 1}–${begin + part.length} of ${found.length}` : "none";
    status.textContent = `${which} (${total} samples); ${config().full}, ${config().seeds}`;
    for (const button of pages.querySelectorAll("button")) {
      button.disabled = ["first", "previous"].includes(button.dataset.page) ? state.page === 0 : state.page === last;
    }
  };

  const fill = (select, filter) => {
    const label = select.closest("label");
    label.hidden = !filter;
    label.style.display = filter ? "" : "none";
    if (!filter) return;
    label.querySelector("span").textContent = filter.title;
    const all = element("option", "all");
    all.value = "";
    select.replaceChildren(
      all,
      ...filter.names.map((name, number) => {
        const option = element("option", name);
        option.value = number;
        return option;
      }),
    );
  };

  const showFilters = () => {
    fill(field("class"), samples().classes);
    fill(field("speaker"), samples().speakers);
  };

  const showConfig = () => {
    for (const kind of ["heads", "edges"]) {
      const there = config().columns.some((column) => column.of === kind);
      field(kind).disabled = !there;
      if (!there) field(kind).checked = false;
    }
    table.closest("[role=region]").ariaLabel = `Samples: ${config().name}, ${config().seeds}`;
    showHeader();
    showRows();
  };

  field("config").append(
    ...data.configs.map((one, number) => {
      const option = element("option", one.name);
      option.value = number;
      option.title = one.full;
      return option;
    }),
  );
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", (event) => {
    state.page = 0;
    const { name, value } = event.target;
    if (name === "config") {
      const before = samples();
      state.config = Number(value);
      if (samples() !== before) showFilters();
      showConfig();
    } else {
      if (name === "heads" || name === "edges") showHeader();
      showRows();
    }
  });
  pages.addEventListener("click", (event) => {
    const to = event.target.dataset.page;
    if (!to) return;
    state.page = { first: 0, previous: state.page - 1, next: state.page + 1, last: Infinity }[to];
    showRows();
  });
  pages.addEventListener("input", () => {
    state.page = 0;
    showRows();
  });
  controls.hidden = pages.hidden = false;
  showFilters();
  showConfig();
})();
