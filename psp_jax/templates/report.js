"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const css = (name) => getComputedStyle(document.documentElement)
    .getPropertyValue(name).trim();
  const number = (n) => n.toLocaleString("en");
  const percent = (x, digits = 1) =>
    x === null ? "none" : `${(100 * x).toFixed(digits)} %`;
  const times100 = (xs) => xs.map((x) => (x === null ? null : 100 * x));
  // plotly takes a few tags in texts for markup; names have none.
  const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;")
    .replace(/>/g, "&gt;");
  const short = (text, length) => plain(
    text.length > length ? `${text.slice(0, length - 1)}…` : text);
  const narrow = () => innerWidth < 640;
  const count = data.names.length;
  const options = { displayModeBar: false, responsive: true,
    showTips: false };

  function axis(more) {
    return { gridcolor: css("--grid"), zerolinecolor: css("--line"),
      linecolor: css("--line"), tickcolor: css("--line"), fixedrange: true,
      automargin: true, ...more };
  }

  function layout(more) {
    return {
      paper_bgcolor: "transparent", plot_bgcolor: "transparent",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12,
        color: css("--muted") },
      hoverlabel: { bgcolor: css("--page"), bordercolor: css("--line"),
        font: { color: css("--text"), size: 13 }, align: "left" },
      margin: { l: 8, r: 8, t: 8, b: 8 }, dragmode: false, showlegend: false,
      ...more,
    };
  }

  // ---- Classes: bars and the table, in one order.

  const keys = ["name", "iou", "accuracy", "share"];
  const sorting = { key: "iou", descending: true };
  const rows = [...document.querySelectorAll("#class-table tbody tr")];

  function order() {
    const { key, descending } = sorting;
    const sign = descending ? -1 : 1;
    const values = key === "name" ? data.names : data[key];
    return data.names.map((_, i) => i).sort((i, j) => {
      const [a, b] = [values[i], values[j]];
      if (a === null || b === null) {
        return (a === null) - (b === null) || i - j;  // Absent ones last.
      }
      const by = key === "name" ? a.localeCompare(b) : a - b;
      return sign * by || i - j;
    });
  }

  function drawBars() {
    const at = order();
    const places = at.map((_, i) => i);
    const take = (values) => at.map((i) => values[i]);
    const hover = at.map((i) => `<b>${plain(data.names[i])}</b><br>` +
      `IoU ${percent(data.iou[i])}<br>accuracy ${percent(data.accuracy[i])}` +
      `<br>${percent(data.share[i], 2)} of the pixels`);
    const bar = (values, color, more) => ({
      type: "bar", orientation: "h", y: places, x: times100(take(values)),
      marker: { color }, hoverinfo: "text", hovertext: hover,
      textposition: "none", ...more });
    const figures = take(data.iou).map(
      (x) => ` ${x === null ? "absent" : (100 * x).toFixed(1)}`);
    const split = narrow() ? 0.72 : 0.8;
    Plotly.react("bars", [
      bar(data.accuracy, css("--second"), { offset: 0, width: 0.36 }),
      bar(data.iou, css("--accent"), { offset: -0.36, width: 0.36 }),
      bar(data.share, css("--third"), { xaxis: "x2", offset: -0.36,
        width: 0.72 }),
      { type: "scatter", mode: "text", y: places.map((p) => p - 0.18),
        x: take(data.iou).map((v) => 100 * (v || 0)), text: figures,
        textposition: "middle right", hoverinfo: "skip", cliponaxis: false,
        textfont: { size: 11, color: css("--text") } },
    ], layout({
      height: 34 + 30 * count, barmode: "overlay", hovermode: "closest",
      margin: { l: 8, r: 8, t: 30, b: 4 },
      xaxis: axis({ side: "top", domain: [0, split - 0.04],
        range: [0, narrow() ? 132 : 109],  // Room for the last figure.
        ...(narrow() ? { tickvals: [0, 50, 100] } : {
          tickvals: [0, 25, 50, 75, 100] }),
        labelalias: { 100: "100 %" } }),
      xaxis2: axis({ side: "top", domain: [split, 1], rangemode: "tozero",
        ticksuffix: " %", nticks: narrow() ? 2 : 4 }),
      yaxis: axis({ range: [count - 0.5, -0.5], tickvals: places,
        ticktext: at.map((i) => short(data.names[i], narrow() ? 14 : 28)),
        tickfont: { size: 13, color: css("--text") }, showgrid: false,
        zeroline: false, ticks: "" }),
    }), options);
    byId("class-table").tBodies[0].append(...at.map((i) => rows[i]));
  }

  const buttons = [...document.querySelectorAll("[data-sort]")];
  const labels = buttons.map((button) => button.textContent);

  function showSorting() {
    buttons.forEach((button, i) => {
      const pressed = button.dataset.sort === sorting.key;
      button.setAttribute("aria-pressed", pressed);
      button.textContent = labels[i] +
        (pressed ? (sorting.descending ? " ↓" : " ↑") : "");
    });
    drawBars();
  }

  buttons.forEach((button) => button.addEventListener("click", () => {
    const key = button.dataset.sort;
    // Numbers begin with the largest, names with A; again turns it round.
    sorting.descending = key === sorting.key ? !sorting.descending
      : key !== "name";
    sorting.key = key;
    showSorting();
  }));

  // ---- The confusion matrix.

  // Small shares are what one looks for: colour goes with their root.
  function colour(share) {
    const part = (hex, i) => parseInt(hex.slice(1 + 2 * i, 3 + 2 * i), 16);
    const [from, to] = [css("--surface"), css("--accent")];
    return [0, 1, 2].map((i) => Math.round(part(from, i) +
      Math.sqrt(share) * (part(to, i) - part(from, i))));
  }

  // Black or white, whatever is read better on it; blue asks for white.
  function ink([red, green, blue]) {
    const linear = (x) => (x / 255) ** 2.2;
    const light = 0.2126 * linear(red) + 0.7152 * linear(green) +
      0.0722 * linear(blue);
    return light > 0.3 ? "#111" : "#fff";
  }

  function drawMatrix() {
    const cell = count <= 20 ? 38 : count <= 40 ? 24 : 15;
    const length = count <= 40 ? 16 : 20;
    const ticks = { tickvals: data.names.map((_, i) => i), showgrid: false,
      ticktext: data.names.map((name) => short(name, length)), ticks: "",
      zeroline: false, tickfont: { size: count <= 40 ? 12 : 11,
        color: css("--text") } };
    const totals = data.confusion.map((row) => row.reduce((a, b) => a + b, 0));
    const z = data.confusion.map((row, i) => row.map(
      (n) => (totals[i] ? 100 * n / totals[i] : null)));
    const hovertext = data.confusion.map((row, i) => row.map((n, j) =>
      `<b>${plain(data.names[i])}</b> called <b>${plain(data.names[j])}</b>` +
      `<br>${z[i][j] === null ? "no pixels" : `${z[i][j].toFixed(1)} %`}` +
      `<br>${number(n)} of ${number(totals[i])} pixels`));
    const scale = [0, 0.01, 0.03, 0.07, 0.12, 0.2, 0.3, 0.45, 0.65, 1].map(
      (s) => [s, `rgb(${colour(s)})`]);
    const shown = count > 20 ? [] : z.flatMap((row, i) => row.map(
      (v, j) => [v, i, j])).filter(([v]) => v >= 0.5);
    const margin = 10 + 7.6 * Math.min(length,
      Math.max(...data.names.map((n) => n.length)));
    const side = margin + cell * count;
    const legend = 70;
    Plotly.react("matrix", [{
      type: "heatmap", z, hovertext, hoverinfo: "text", zmin: 0, zmax: 100,
      colorscale: scale, xgap: count <= 40 ? 2 : 1, ygap: count <= 40 ? 2 : 1,
      hoverongaps: false,
      colorbar: { thickness: 8, len: Math.min(cell * count, 240),
        lenmode: "pixels", y: 1, yanchor: "top", outlinewidth: 0,
        tickvals: [0, 25, 50, 75, 100],
        ticktext: ["0", "25", "50", "75", "100 %"], x: 1, xpad: 14 },
    }, {
      type: "scatter", mode: "text", hoverinfo: "skip",
      x: shown.map(([, , j]) => j), y: shown.map(([, i]) => i),
      text: shown.map(([v]) => v.toFixed(0)),
      textfont: { size: 12, color: shown.map(([v]) => ink(colour(v / 100))) },
    }], layout({
      width: side + legend, height: side + 12, hovermode: "closest",
      margin: { l: margin, r: legend, t: margin, b: 12, autoexpand: false },
      xaxis: axis({ ...ticks, side: "top", tickangle: -90,
        range: [-0.5, count - 0.5], automargin: false }),
      yaxis: axis({ ...ticks, range: [count - 0.5, -0.5],
        automargin: false }),
    }), { ...options, responsive: false });
  }

  // ---- Curves.

  const lastStep = Math.max(0, ...data.training.step, ...data.validation.step);

  function drawCurve(id, { step }, values, more = {}) {
    if (!byId(id)) return;
    const few = step.length <= 60;
    Plotly.react(id, [{
      type: "scatter", mode: few ? "lines+markers" : "lines", x: step,
      y: values, line: { color: css("--accent"), width: 2 },
      marker: { size: 5 }, hovertemplate: `%{y:${more.format || ".4g"}}` +
        "<extra></extra>",
    }], layout({
      height: 240, hovermode: "x",
      xaxis: axis({ range: [-0.01 * lastStep, 1.02 * lastStep], showgrid: false, nticks: 6,
        separatethousands: true, tickformat: ",d" }),
      yaxis: axis({ rangemode: "tozero", nticks: 6, ...more.axis }),
    }), options);
  }

  function draw() {
    drawBars();
    drawMatrix();
    const inPercent = { format: ".2f", axis: { ticksuffix: " %" } };
    const { training, validation } = data;
    drawCurve("loss", training, training.loss);
    drawCurve("miou", validation, times100(validation.miou), inPercent);
    drawCurve("pixels", training, times100(training.pixel_accuracy),
      inPercent);
    drawCurve("rate", training, training.learning_rate,
      { axis: { exponentformat: "power" } });
  }

  showSorting();
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  matchMedia("(max-width: 640px)").addEventListener("change", draw);

  // ---- Pictures.

  const images = byId("images");
  if (images) {
    const layers = [...images.querySelectorAll("[name=layer]")];
    const choose = () => {
      const { value } = layers.find((input) => input.checked);
      images.dataset.layer = value;
      images.querySelectorAll(".tag.right").forEach((tag) => {
        tag.textContent = value;
      });
    };
    layers.forEach((input) => input.addEventListener("change", choose));
    choose();
    images.querySelectorAll(".wipe").forEach((wipe) => {
      const input = wipe.querySelector("input");
      const move = () => wipe.style.setProperty("--at", `${input.value}%`);
      input.addEventListener("input", move);
      move();  // Browsers keep the value of a page that is loaded again.
    });
  }
})();
