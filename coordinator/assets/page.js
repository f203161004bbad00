// Keeps the page current: the server sends the parts that have changed, and charts are drawn from the numbers in them.
"use strict";
(() => {
  const live = document.body.dataset.live;
  const offline = document.getElementById("offline");
  const charts = new Map();
  const colors = () => matchMedia("(prefers-color-scheme: dark)").matches
    ? ["#8ab8f0", "#ff9a92", "#7fd197", "#e6bd6a"] : ["#1f77b4", "#d62728", "#2ca02c", "#9467bd"];

  function options(place, names) {
    const style = getComputedStyle(document.body);
    const [ink, line] = [style.getPropertyValue("--soft"), style.getPropertyValue("--line")];
    const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    const series = names.map((label, at) => ({ label, stroke: colors()[at % 4], width: 2, spanGaps: true }));
    return {
      width: place.clientWidth, height: 220, scales: { x: { time: false } },
      axes: [axis, { ...axis, size: 60 }], series: [{ label: "step" }, ...series],
    };
  }

  function draw(part) {
    for (const place of part.querySelectorAll("[data-chart]")) {
      const { names, data } = JSON.parse(place.dataset.chart);
      const known = charts.get(place.id);
      if (known && known.series.length === names.length + 1) {
        place.append(known.root);
        known.setData(data);
      } else {
        charts.set(place.id, new uPlot(options(place, names), data, place));
      }
    }
  }

  function swap(parts) {
    for (const [id, html] of Object.entries(parts)) {
      const part = document.getElementById(id);
      if (!part) continue;
      const focused = document.activeElement;
      const link = part.contains(focused) && focused.getAttribute("href");
      part.innerHTML = html;
      draw(part);
      const again = link && [...part.querySelectorAll("a")].find((a) => a.getAttribute("href") === link);
      if (again) again.focus({ preventScroll: true });
    }
  }

  function say(text) {
    offline.textContent = text;
    offline.hidden = !text;
  }

  let source = null;
  function open() {
    if (source) return;
    source = new EventSource(live);
    source.onopen = () => say("");
    source.addEventListener("parts", (event) => swap(JSON.parse(event.data)));
    source.addEventListener("end", () => {
      close();
      document.removeEventListener("visibilitychange", follow);
      say("The coordinator has ended. This is what it showed last.");
    });
    source.onerror = () => {
      say("The coordinator does not answer. This is what it showed last.");
      if (source.readyState === EventSource.CLOSED) {
        source = null;
        setTimeout(follow, 15000);
      }
    };
  }
  function close() {
    if (source) source.close();
    source = null;
  }
  // A browser has few connections for each server: a page that nobody sees gives its own back.
  function follow() {
    if (document.hidden) close();
    else open();
  }

  function redraw() {
    for (const chart of charts.values()) chart.destroy();
    charts.clear();
    draw(document);
  }
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width !== innerWidth) redraw();
    width = innerWidth;
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  draw(document);
  if (live) {
    follow();
    document.addEventListener("visibilitychange", follow);
    addEventListener("pagehide", close);
  }
})();
