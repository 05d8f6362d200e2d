/** The server view: live charts from /metrics, and the requests that are under way. */
import uPlot from "../vendor/uplot/uPlot.esm.js";
import { get, getText, remove } from "./api.js";
import { between, parseMetrics } from "./metrics.js";
import { Problem, count, html, useEffect, useRef, useState } from "./ui.js";

const PERIOD = 1000; // ms
const NUM_POINTS = 60;

const asPercent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(0)} %`);
const asCount = (value) => (value === null || value === undefined ? "–" : count(Math.round(value)));
const asSeconds = (value) =>
  value === null || value === undefined ? "–" : `${count(Math.round(1000 * value))} ms`;

/** The charts: a title, the series with their names, how to write a value, and the top of the scale where it is fixed. */
const CHARTS = [
  {
    title: "Tokens per second",
    series: [
      ["generated", "generated"],
      ["prompt", "prompt"],
    ],
    write: asCount,
  },
  {
    title: "Requests",
    series: [
      ["running", "running"],
      ["waiting", "waiting"],
    ],
    write: asCount,
  },
  { title: "KV cache in use", series: [["kvCache", "in use"]], write: asPercent, top: 1 },
  { title: "Prefix cache hit rate", series: [["hitRate", "hits"]], write: asPercent, top: 1 },
  { title: "Draft acceptance", series: [["acceptance", "accepted"]], write: asPercent, top: 1 },
  {
    title: "Time to first token",
    series: [
      ["firstToken", "median"],
      ["firstToken95", "95th percentile"],
    ],
    write: asSeconds,
  },
];

/** Read the metrics each second while the page is seen; return the points so far and what went wrong. */
function usePoints() {
  const [points, setPoints] = useState([]);
  const [error, setError] = useState(null);
  useEffect(() => {
    let [before, last] = [null, 0];
    async function read() {
      if (document.hidden) return;
      try {
        const now = parseMetrics(await getText("metrics"));
        const time = performance.now();
        if (before) {
          const point = { ...between(before, now, (time - last) / 1000) };
          setPoints((all) => [...all.slice(1 - NUM_POINTS), point]);
        }
        [before, last] = [now, time];
        setError(null);
      } catch (problem) {
        setError(problem);
      }
    }
    read();
    const timer = setInterval(read, PERIOD);
    return () => clearInterval(timer);
  }, []);
  return { points, error };
}

function Chart({ chart, points }) {
  const place = useRef(null);
  const plot = useRef(null);
  useEffect(() => {
    const style = getComputedStyle(place.current);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = {
      stroke: color("--muted"),
      grid: { stroke: color("--line"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui",
    };
    plot.current = new uPlot(
      {
        width: place.current.clientWidth,
        height: 140,
        legend: { show: false },
        cursor: { show: false },
        scales: {
          x: { time: false, range: [1 - NUM_POINTS, 0] },
          y: { range: (_, low, high) => [0, chart.top ?? Math.max(high ?? 0, 1e-3) * 1.1] },
        },
        axes: [
          {
            ...axis,
            space: 60,
            size: 26,
            values: (_, values) => values.map((value) => (value === 0 ? "now" : `${value} s`)),
          },
          { ...axis, size: 56, values: (_, values) => values.map(chart.write) },
        ],
        series: [
          {},
          ...chart.series.map((_, index) => ({
            stroke: color(`--series-${index}`),
            width: 2,
            spanGaps: true,
            points: { size: 4 },
          })),
        ],
      },
      [[], ...chart.series.map(() => [])],
      place.current,
    );
    const resized = new ResizeObserver(() =>
      plot.current.setSize({ width: place.current.clientWidth, height: 140 }),
    );
    resized.observe(place.current);
    return () => (resized.disconnect(), plot.current.destroy());
  }, []);
  useEffect(() => {
    plot.current.setData([
      points.map((_, index) => 1 + index - points.length),
      ...chart.series.map(([name]) => points.map((point) => point[name])),
    ]);
  }, [points]);
  const latest = (name) => points.findLast((point) => point[name] !== null)?.[name];
  return html`<figure class="chart">
    <figcaption>
      <strong>${chart.title}</strong>
      ${chart.series.map(([name, label], index) => html`<span key=${name} class="series-${index}">${label} <b data-metric=${name}>${chart.write(latest(name))}</b></span>`)}
    </figcaption>
    <div ref=${place} aria-hidden="true"></div>
  </figure>`;
}

function useRequests() {
  const [requests, setRequests] = useState([]);
  useEffect(() => {
    const read = () =>
      document.hidden ||
      get("v1/requests").then(
        ({ data }) => setRequests(data),
        () => {},
      );
    read();
    const timer = setInterval(read, PERIOD);
    return () => clearInterval(timer);
  }, []);
  return requests;
}

function Requests() {
  const requests = useRequests();
  const [error, setError] = useState(null);
  const cancel = (id) => remove(`v1/requests/${encodeURIComponent(id)}`).then(() => setError(null), setError);
  return html`<h2>Requests under way</h2>
    <${Problem} error=${error} />
    ${
      requests.length === 0
        ? html`<p class="muted">None of this key.</p>`
        : html`<div class="scrolled" tabindex="0" role="region" aria-label="Requests under way">
            <table>
              <thead>
                <tr>
                  <th>id</th>
                  <th>endpoint</th>
                  <th>state</th>
                  <th>prompt</th>
                  <th>answer</th>
                  <th>age</th>
                  <th><span class="visually-hidden">Cancel</span></th>
                </tr>
              </thead>
              <tbody>
                ${requests.map(
                  (request) =>
                    html`<tr key=${request.id}>
                      <td><code>${request.id}</code></td>
                      <td>${request.endpoint}</td>
                      <td>${request.state}${request.position === null ? "" : ` (${request.position})`}</td>
                      <td>${count(request.prompt_tokens)}</td>
                      <td>${count(request.completion_tokens)}</td>
                      <td>${request.age.toFixed(1)} s</td>
                      <td>
                        <button
                          type="button"
                          aria-label=${`Cancel ${request.id}`}
                          onClick=${() => cancel(request.id)}
                        >
                          Cancel
                        </button>
                      </td>
                    </tr>`,
                )}
              </tbody>
            </table>
          </div>`
    }`;
}

/** The view. */
export function Monitor() {
  const { points, error } = usePoints();
  return html`<section class="single" aria-label="Server">
    <${Problem} error=${error} />
    <div class="charts">
      ${CHARTS.map((chart) => html`<${Chart} key=${chart.title} chart=${chart} points=${points} />`)}
    </div>
    <${Requests} />
  </section>`;
}
