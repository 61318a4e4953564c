"use strict";
// Draws the bars of each chart on the page of usage.

const HEIGHT = 200;
const LABEL_WIDTH = 84;
const LONGEST_LABEL = 12;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const shorten = (text) => (text.length > LONGEST_LABEL ? `${text.slice(0, LONGEST_LABEL - 1)}…` : text);

function draw(place) {
  const { labels, values } = JSON.parse(place.dataset.chart);
  const width = place.clientWidth;
  const step = Math.ceil(labels.length / Math.max(1, Math.floor((width - 60) / LABEL_WIDTH)));
  const ticks = labels.map((_, index) => index).filter((index) => index % step === 0);
  const axis = { stroke: colour("--pale"), ticks: { stroke: colour("--line") } };
  place.replaceChildren();
  new uPlot(
    {
      width,
      height: HEIGHT,
      legend: { show: false },
      cursor: { show: false },
      scales: {
        x: { time: false, range: [-0.5, labels.length - 0.5] },
        y: { range: (_plot, _least, most) => [0, most || 1] },
      },
      axes: [
        { ...axis, grid: { show: false }, splits: () => ticks, values: (_plot, at) => at.map((one) => shorten(labels[one])) },
        { ...axis, grid: { stroke: colour("--line") }, size: 64 },
      ],
      series: [
        {},
        { fill: colour("--main"), stroke: colour("--main"), points: { show: false }, paths: uPlot.paths.bars({ size: [0.7, 64] }) },
      ],
    },
    [values.map((_, index) => index), values],
    place,
  );
}

const drawAll = () => document.querySelectorAll("[data-chart]").forEach(draw);
drawAll();
addEventListener("resize", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
