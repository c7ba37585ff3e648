// Draws the charts in the page's own colours, again when those change.
(function () {
  const charts = JSON.parse(document.getElementById("charts").textContent);
  const color = (name) =>
    getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const narrow = window.matchMedia("(max-width: 640px)");

  function layout(chart) {
    const axis = {
      gridcolor: color("--line"), linecolor: color("--line"), tickcolor: color("--line"),
    };
    const given = chart.figure.layout;
    const both = (name) =>
      Object.assign({}, given[name], axis, { fixedrange: narrow.matches });
    return Object.assign({}, given, {
      xaxis: both("xaxis"),
      yaxis: both("yaxis"),
      height: chart.height,
      font: { family: color("--font"), size: 12.5, color: color("--soft") },
      hoverlabel: {
        bgcolor: color("--card"), bordercolor: color("--line"), align: "left",
        font: { family: color("--font"), color: color("--ink") },
      },
    });
  }

  function draw() {
    for (const chart of charts) {
      const place = document.getElementById("chart-" + chart.name);
      if (!place) continue;
      Plotly.react(place, chart.figure.data, layout(chart), {
        responsive: true, displayModeBar: false, displaylogo: false,
      });
    }
  }

  draw();
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  narrow.addEventListener("change", draw);
  // A chart in a closed part of the page has no width until it is opened.
  for (const part of document.querySelectorAll("details")) {
    part.addEventListener("toggle", () => {
      for (const place of part.querySelectorAll(".chart")) Plotly.Plots.resize(place);
    });
  }
  for (const button of document.querySelectorAll("button.copy")) {
    if (!navigator.clipboard) { button.remove(); continue; }
    button.addEventListener("click", () => {
      const text = button.parentElement.querySelector("code").textContent;
      navigator.clipboard.writeText(text).then(() => {
        button.textContent = "copied";
        setTimeout(() => { button.textContent = "copy"; }, 1500);
      });
    });
  }
})();
