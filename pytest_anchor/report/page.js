"use strict";
(() => {
const data = JSON.parse(document.getElementById("data").textContent);
const rows = ({ fields, rows }) => rows.map(row => Object.fromEntries(fields.map((name, at) => [name, row[at]])));
const { seconds, cap, lanes, live, running } = data, tests = rows(data.tests), sessions = rows(data.sessions);
const by = id => document.getElementById(id);
const isFailed = test => test.outcome === "failed" || test.outcome === "error";
const PHASES = ["wait", "create", "own", "failed", "idle", "end", "lost"];
const [WAIT, CREATE, OWN, FAILED, IDLE, END, LOST] = PHASES.keys();
const NAMES = ["waiting for the plan", "being created", "used by tests", "used by failing tests", "idle", "being ended", "lost"];
const ROW = 22, BAR = 15, ROWS = 6, DENSE = 34, CHART = 96, AXIS = 22;

// Times.

const clock = time => {
  const whole = Math.floor(time), minutes = Math.floor(whole / 60) % 60, pad = number => String(number).padStart(2, "0");
  return whole < 3600 ? `${minutes}:${pad(whole % 60)}` : `${Math.floor(whole / 3600)}:${pad(minutes)}:${pad(whole % 60)}`;
};
const span = time => time < 10 ? `${time.toFixed(1)} s` : time < 120 ? `${Math.round(time)} s` : `${Math.floor(time / 60)} min ${Math.round(time % 60)} s`;

// What is drawn: each session's phases, and a row in its lane that no other session has at that time.

const add = (session, from, to, phase) => { if (to > from) session.parts.push([from, to, phase]); };
sessions.forEach((session, number) => {
  const until = session.ended ?? (session.state === "ended" ? session.created ?? session.begun : seconds);
  Object.assign(session, { number, parts: [], until: Math.max(until, session.begun), failed: false });
  add(session, session.asked, session.begun, WAIT);
  if (session.created === null) return add(session, session.begun, session.until, LOST);
  if (session.lost !== null) {
    add(session, session.begun, session.created, LOST);
  } else {
    add(session, session.begun, session.created, CREATE);
  }
  const ending = session.ending ?? session.until;
  let at = session.created;
  for (const number of session.tests) {
    const test = tests[number], from = Math.max(at, test.began), to = Math.min(ending, test.ended);
    add(session, at, Math.min(from, ending), IDLE);
    add(session, from, to, isFailed(test) ? FAILED : OWN);
    session.failed ||= isFailed(test);
    at = Math.max(at, Math.min(to, ending));
  }
  add(session, at, ending, IDLE);
  add(session, ending, session.until, END);
});
const strips = lanes.map((name, number) => ({ name, number, sessions: [], rows: [], top: 0, height: 0 }));
for (const session of [...sessions].sort((a, b) => a.asked - b.asked)) {
  const strip = strips[session.lane];
  let row = strip.rows.findIndex(until => until <= session.asked + 0.0005);
  if (row < 0) row = strip.rows.push(0) - 1;
  strip.rows[row] = session.until;
  session.row = row;
  session.place = strip.sessions.push(session) - 1;
}
for (const strip of strips) strip.most = Math.min(strip.rows.length, ROWS);

// The view: which part of the run is drawn, and how.

const lanesCanvas = by("lanes"), liveCanvas = by("live"), scroll = by("scroll"), tip = by("tip");
const view = { from: 0, to: Math.max(seconds, 0.001) };
let width = 0, gutter = 64, total = 0, colors = {}, chosen = null;
const x = time => gutter + (time - view.from) / (view.to - view.from) * (width - gutter);
const timeAt = at => view.from + (at - gutter) / (width - gutter) * (view.to - view.from);

const show = (from, to) => {
  const whole = Math.max(seconds, 0.001), length = Math.min(Math.max(to - from, Math.min(0.5, whole)), whole);
  view.from = Math.min(Math.max((from + to - length) / 2, 0), whole - length);
  view.to = view.from + length;
  draw();
};
const zoom = (factor, around = (view.from + view.to) / 2) =>
  show(around - (around - view.from) / factor, around + (view.to - around) / factor);

const context = (canvas, height) => {
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.height = `${height}px`;
  const brush = canvas.getContext("2d");
  brush.scale(ratio, ratio);
  brush.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  brush.textBaseline = "middle";
  return brush;
};

const ticks = () => {
  const least = (view.to - view.from) / Math.max((width - gutter) / 90, 1);
  const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400].find(one => one >= least)
    ?? 10 ** Math.ceil(Math.log10(least));
  const found = [];
  for (let number = Math.ceil(view.from / step - 1e-9); number * step <= view.to + 1e-9; number++) found.push(number * step);
  return { step, found };
};

const drawLive = () => {
  const brush = context(liveCanvas, CHART + AXIS), most = live.reduce((peak, [, number]) => Math.max(peak, number), 1);
  const near = cap && cap <= 4 * most, top = Math.max(most, near ? cap : 0), y = number => CHART - number / top * (CHART - 18);
  const { step, found } = ticks();
  brush.fillStyle = colors.grid;
  for (const time of found) brush.fillRect(Math.round(x(time)), 0, 1, CHART);
  brush.save();
  brush.beginPath();
  brush.rect(gutter, 0, width - gutter, CHART + 1);
  brush.clip();
  // The most that were open within each pixel, and the step after it.
  brush.beginPath();
  brush.moveTo(gutter, CHART);
  let at = 0;
  while (at + 1 < live.length && live[at + 1][0] <= view.from) at++;
  for (let pixel = gutter, number = live[at]?.[1] ?? 0; pixel < width; pixel++) {
    let peak = number;
    for (const end = timeAt(pixel + 1); at + 1 < live.length && live[at + 1][0] <= end;) peak = Math.max(peak, number = live[++at][1]);
    brush.lineTo(pixel, y(peak));
    brush.lineTo(pixel + 1, y(peak));
  }
  brush.lineTo(width, CHART);
  brush.fillStyle = colors["live-fill"];
  brush.fill();
  brush.strokeStyle = colors.live;
  brush.lineWidth = 1.25;
  brush.stroke();
  if (near) {
    brush.strokeStyle = colors.failed;
    brush.setLineDash([5, 4]);
    brush.beginPath();
    brush.moveTo(gutter, Math.round(y(cap)) + 0.5);
    brush.lineTo(width, Math.round(y(cap)) + 0.5);
    brush.stroke();
  }
  brush.restore();
  brush.fillStyle = colors.dim;
  brush.textAlign = "right";
  brush.fillText("0", gutter - 8, CHART - 5);
  if (!near || y(cap) + 13 < y(most)) brush.fillText(String(most), gutter - 8, Math.min(Math.max(y(most), 9), CHART - 18));
  if (near) {
    brush.fillStyle = colors.failed;
    brush.textAlign = "right";
    brush.fillText(gutter < 50 ? `${cap}` : `cap ${cap}`, gutter - 8, Math.max(y(cap), 9));
  }
  brush.fillStyle = colors.dim;
  brush.textAlign = "center";
  for (const time of found) {
    const text = step < 1 ? time.toFixed(1) : clock(time), half = brush.measureText(text).width / 2;
    if (x(time) + half < width) brush.fillText(text, Math.max(x(time), gutter + (time ? 0 : half)), CHART + AXIS / 2 + 1);
  }
};

const inView = session => session.until > view.from && session.asked < view.to;

// Where bars would be thinner than the eye can tell, a lane is dense: it shows the shares of the phases over time.
const lay = () => {
  total = 0;
  for (const strip of strips) {
    strip.seen = strip.sessions.reduce((sum, session) => sum + inView(session), 0);
    strip.dense = strip.seen > (width - gutter) / 10 * strip.most;
    strip.top = total;
    strip.height = strip.dense ? DENSE : strip.most * ROW + 8;
    total += strip.height;
  }
};

const drawDense = (brush, strip) => {
  const columns = Math.max(Math.ceil(Math.min(strip.seen / 4, (width - gutter) / 4)), 1);
  const each = (view.to - view.from) / columns, breadth = (width - gutter) / columns;
  const shares = PHASES.map(() => new Float32Array(columns)), sums = new Float32Array(columns);
  for (const session of strip.sessions) {
    if (!inView(session)) continue;
    for (const [from, to, phase] of session.parts) {
      const first = (Math.max(from, view.from) - view.from) / each, last = (Math.min(to, view.to) - view.from) / each;
      for (let column = Math.floor(first); column < last && column < columns; column++) {
        const share = Math.min(last, column + 1) - Math.max(first, column);
        shares[phase][column] += share;
        sums[column] += share;
      }
    }
  }
  const scale = (DENSE - 9) / sums.reduce((most, sum) => Math.max(most, sum), 1), bottom = strip.top + DENSE - 3;
  for (let column = 0; column < columns; column++) {
    const left = Math.round(gutter + column * breadth), right = Math.round(gutter + (column + 1) * breadth);
    let y = bottom;
    for (const phase of [OWN, FAILED, IDLE, END, CREATE, WAIT, LOST]) {
      const part = shares[phase][column] * scale;
      brush.fillStyle = colors[PHASES[phase]];
      brush.fillRect(left, y - part, right - left, part);
      y -= part;
    }
  }
  brush.fillStyle = colors.failed;
  for (const session of strip.sessions) if (session.failed && inView(session)) brush.fillRect(Math.max(x(session.until) - 1, gutter), strip.top + 1, 2, 3);
};

const drawBars = (brush, strip) => {
  for (const session of strip.sessions) {
    if (!inView(session)) continue;
    const top = barTop(strip, session);
    for (const [from, to, phase] of session.parts) {
      const left = Math.max(x(from), gutter), right = Math.min(x(to), width);
      if (right < left) continue;
      brush.fillStyle = colors[PHASES[phase]];
      brush.fillRect(left, top, Math.max(right - left, 0.75), BAR);
    }
    if (session.failed) {
      brush.fillStyle = colors.failed;
      brush.fillRect(Math.max(x(session.until) - 2, gutter), top - 2, 2, BAR + 4);
    }
    if ((session.state === "open" || session.state === "lost") && !running) {
      brush.fillStyle = colors.failed;
      brush.fillText("▸", Math.min(x(session.until), width) - 9, top + BAR / 2);
    }
    for (const number of session.tests) {
      const test = tests[number], left = Math.max(x(Math.max(test.began, session.created ?? 0)), gutter);
      const room = Math.min(x(Math.min(test.ended, session.ending ?? session.until)), width) - left - 8;
      if (room > 34) {
        brush.fillStyle = colors["on-own"];
        brush.fillText(fit(brush, shortName(test.test), room), left + 4, top + BAR / 2 + 0.5);
      }
    }
  }
};

const barTop = (strip, session) => strip.top + 4 + Math.min(session.row, ROWS - 1) * ROW + (ROW - BAR) / 2;
const shortName = test => test.slice(test.lastIndexOf("::") + 1).replace(/^:/, "").replace(/^test_/, "");
const fit = (brush, text, room) => {
  if (brush.measureText(text).width <= room) return text;
  let length = Math.floor(text.length * room / brush.measureText(text).width);
  while (length > 0 && brush.measureText(`${text.slice(0, length)}…`).width > room) length--;
  return length > 1 ? `${text.slice(0, length)}…` : "";
};

const drawLanes = () => {
  const brush = context(lanesCanvas, Math.max(total, ROW));
  brush.fillStyle = colors.grid;
  for (const time of ticks().found) brush.fillRect(Math.round(x(time)), 0, 1, total);
  for (const strip of strips) {
    if (strip.number) {
      brush.fillStyle = colors.grid;
      brush.fillRect(0, strip.top, width, 1);
    }
    brush.save();
    brush.beginPath();
    brush.rect(gutter, strip.top, width - gutter, strip.height);
    brush.clip();
    brush.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    (strip.dense ? drawDense : drawBars)(brush, strip);
    brush.restore();
    brush.fillStyle = chosen?.lane === strip.number ? colors.ink : colors.dim;
    brush.fillText(fit(brush, strip.name, gutter - 10), width < 600 ? 7 : 10, strip.top + strip.height / 2);
  }
  if (chosen) {
    const strip = strips[chosen.lane], left = Math.max(x(chosen.asked), gutter), right = Math.min(x(chosen.until), width);
    brush.strokeStyle = colors.ink;
    brush.lineWidth = 2;
    if (strip.dense) brush.strokeRect(left - 1, strip.top + 2, Math.max(right - left, 2) + 2, strip.height - 4);
    else brush.strokeRect(left - 1, barTop(strip, chosen) - 2, Math.max(right - left, 2) + 2, BAR + 4);
  }
};

const draw = () => {
  const style = getComputedStyle(document.documentElement);
  for (const name of [...PHASES, "ink", "dim", "grid", "live", "live-fill", "on-own"]) colors[name] = style.getPropertyValue(`--${name}`).trim();
  width = Math.max(by("chart").clientWidth, 200);
  gutter = width < 600 ? 46 : 64;
  lay();
  drawLive();
  drawLanes();
};

// What a person points at, and chooses.

const sessionAt = (left, top) => {
  const strip = strips.find(one => top >= one.top && top < one.top + one.height), time = timeAt(left);
  if (!strip || left < gutter) return {};
  const slack = 3 * (view.to - view.from) / (width - gutter);
  const near = strip.sessions.filter(session => session.asked - slack <= time && time <= session.until + slack);
  const row = Math.floor((top - strip.top - 4) / ROW);
  return { strip, time, session: strip.dense ? null : near.find(session => Math.min(session.row, ROWS - 1) === row) };
};

const testsOf = session => session.tests.map(number => tests[number]);
const title = session => session.tests.length > 1 ? `${session.tests.length} tests, created by ${session.test}` : session.test;
const words = session => {
  const outcomes = [...new Set(testsOf(session).map(test => test.outcome))].join(", ");
  return `${title(session)}\n${outcomes ? `${outcomes} · ` : ""}${lanes[session.lane]} · ${clock(session.begun)}, ${span(session.until - session.begun)}`;
};
const denseWords = (strip, time) => {
  const reach = 6 * (view.to - view.from) / (width - gutter);
  const near = strip.sessions.filter(session => session.until > time - reach && session.asked < time + reach);
  const failed = near.filter(session => session.failed).length;
  return `${strip.name} around ${clock(time)}: ${near.length} ${near.length === 1 ? "session" : "sessions"}${failed ? `, ${failed} with failures` : ""}\nClick to look closer`;
};

const fact = (list, name, text) => {
  list.append(Object.assign(document.createElement("dt"), { textContent: name }), Object.assign(document.createElement("dd"), { textContent: text }));
};
const choose = (session, reveal = true) => {
  chosen = session;
  if (reveal) {
    const length = view.to - view.from, margin = length * 0.05;
    if ((session.until - session.asked) / length * (width - gutter) < 12) {
      const close = Math.max((session.until - session.asked) * 12, 5);
      show(session.asked - close / 2, session.until + close / 2);
    } else if (session.asked < view.from || session.until > view.to) {
      show(session.asked - margin, session.asked - margin + length);
    } else draw();
    const strip = strips[session.lane];
    if (strip.top < scroll.scrollTop || strip.top + strip.height > scroll.scrollTop + scroll.clientHeight) scroll.scrollTop = strip.top - scroll.clientHeight / 2;
  } else draw();
  const box = by("detail"), list = document.createElement("dl");
  const ends = { test: "by the test", teardown: "at teardown", keeper: "after it was kept open", sweep: "by the final sweep", reaper: "by the reaper, after the run was killed", recovery: "by a later run" };
  if (session.asked < session.begun) fact(list, "waited for the plan", span(session.begun - session.asked));
  if (session.lost !== null) fact(list, "creation", `no answer after ${span(session.lost - session.begun)}`);
  else if (session.created !== null) fact(list, "created", `at ${clock(session.created)}, in ${span(session.created - session.begun)}${session.ahead ? ", ahead of its test" : ""}${session.retried ? `, tried ${session.retried + 1} times` : ""}`);
  for (const test of testsOf(session).slice(0, 20)) fact(list, test.outcome, `${test.test}${test.rerun ? ` (rerun ${test.rerun})` : ""}, ${clock(test.began)} to ${clock(test.ended)}`);
  if (session.tests.length > 20) fact(list, "", `and ${session.tests.length - 20} more`);
  if (session.unused) fact(list, "used", "never: it was created ahead, and no test took it");
  const used = session.parts.reduce((sums, [from, to, phase]) => (sums[phase] += to - from, sums), NAMES.map(() => 0));
  if (session.created !== null) fact(list, "used", `${span(used[OWN] + used[FAILED])} of ${span((session.ended ?? seconds) - session.created)}`);
  if (session.ended !== null) fact(list, "ended", `at ${clock(session.ended)} ${session.already ? "already, by itself" : ends[session.ended_by] ?? ""}`);
  else fact(list, "ended", running || session.state === "kept" ? "not yet" : session.state === "lost" ? "not known to exist" : "not confirmed");
  if (session.id) fact(list, "id", session.id);
  box.replaceChildren(Object.assign(document.createElement("h3"), { textContent: `${title(session)} [${lanes[session.lane]}]` }), list);
};
const chooseTest = number => {
  const session = sessions[tests[number].sessions[0]];
  if (session) {
    choose(session);
    by("timeline").scrollIntoView({ block: "start" });
    lanesCanvas.focus({ preventScroll: true });
  }
};
const nextFailed = () => {
  const failed = [...sessions].filter(session => session.failed).sort((a, b) => a.until - b.until);
  const after = chosen ? failed.findIndex(session => session.until > chosen.until || (session.until === chosen.until && session.number > chosen.number)) : 0;
  if (failed.length) choose(failed[Math.max(after, 0)]);
};
const nearest = (strip, time) => strip.sessions.reduce((best, one) => !best || Math.abs(one.asked - time) < Math.abs(best.asked - time) ? one : best, null);

let drag = null;
lanesCanvas.addEventListener("pointerdown", event => {
  drag = { at: event.clientX, from: view.from, to: view.to, moved: false };
  lanesCanvas.setPointerCapture(event.pointerId);
});
lanesCanvas.addEventListener("pointermove", event => {
  const { offsetX, offsetY } = event;
  if (drag) {
    const by = (event.clientX - drag.at) / (width - gutter) * (drag.to - drag.from);
    drag.moved ||= Math.abs(event.clientX - drag.at) > 3;
    if (drag.moved) show(drag.from - by, drag.to - by);
    tip.hidden = true;
    return;
  }
  const { strip, session, time } = sessionAt(offsetX, offsetY);
  tip.hidden = !(session || strip?.dense);
  if (tip.hidden) return;
  tip.textContent = session ? words(session) : denseWords(strip, time);
  const room = by("chart").clientWidth - tip.offsetWidth - 8, below = scroll.offsetTop + offsetY - scroll.scrollTop + 18;
  tip.style.left = `${Math.max(Math.min(offsetX + 12, room), 8)}px`;
  tip.style.top = `${below + tip.offsetHeight > by("chart").clientHeight ? Math.max(below - tip.offsetHeight - 30, 0) : below}px`;
});
lanesCanvas.addEventListener("pointerup", event => {
  const moved = drag?.moved;
  drag = null;
  if (moved) return;
  const { strip, session, time } = sessionAt(event.offsetX, event.offsetY);
  if (session) choose(session, false);
  else if (strip?.dense) zoom(8, time);
});
lanesCanvas.addEventListener("pointercancel", () => { drag = null; });
lanesCanvas.addEventListener("pointerleave", () => { tip.hidden = true; });
by("chart").addEventListener("wheel", event => {
  if (event.ctrlKey || event.metaKey) zoom(event.deltaY < 0 ? 1.25 : 0.8, timeAt(event.offsetX));
  else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    const by = event.deltaX / (width - gutter) * (view.to - view.from);
    show(view.from + by, view.to + by);
  } else return;
  event.preventDefault();
}, { passive: false });
lanesCanvas.addEventListener("keydown", event => {
  const strip = strips[chosen?.lane ?? 0], go = session => session && choose(session);
  const moves = {
    ArrowRight: () => go(chosen ? strip.sessions[chosen.place + 1] : strip?.sessions[0]),
    ArrowLeft: () => go(chosen && strip.sessions[chosen.place - 1]),
    ArrowDown: () => go(chosen ? strips[chosen.lane + 1] && nearest(strips[chosen.lane + 1], chosen.asked) : strip?.sessions[0]),
    ArrowUp: () => go(chosen && strips[chosen.lane - 1] && nearest(strips[chosen.lane - 1], chosen.asked)),
    Home: () => go(strip?.sessions[0]), End: () => go(strip?.sessions.at(-1)),
    "+": () => zoom(2), "=": () => zoom(2), "-": () => zoom(0.5), 0: () => show(0, seconds), f: nextFailed,
  };
  if (event.key in moves && !event.ctrlKey && !event.metaKey && !event.altKey) {
    moves[event.key]();
    event.preventDefault();
  }
});
by("zoom-in").addEventListener("click", () => zoom(2));
by("zoom-out").addEventListener("click", () => zoom(0.5));
by("zoom-fit").addEventListener("click", () => show(0, seconds));
by("next-failed").addEventListener("click", nextFailed);
by("next-failed").hidden = !sessions.some(session => session.failed);
document.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button?.dataset.test) chooseTest(Number(button.dataset.test));
  if (button?.classList.contains("shot")) button.classList.toggle("large");
});

// The table.

const WORDS = { passed: "✓ passed", failed: "✗ failed", error: "✗ error", skipped: "– skipped", xfailed: "– xfailed", xpassed: "– xpassed" };
const waited = test => test.waits.reduce((sum, one) => sum + one, 0);
const VALUES = {
  test: test => test.test, outcome: test => test.outcome, lane: test => test.lane, began: test => test.began,
  took: test => test.ended - test.began, waited,
};
const PAGE = 100;
const table = { sort: "waited", down: true, shown: PAGE };
const cell = (text, kind = "") => Object.assign(document.createElement("td"), { textContent: text, className: kind });
const fill = () => {
  const text = by("find").value.toLowerCase(), outcome = by("outcome").value, value = VALUES[table.sort], sign = table.down ? -1 : 1;
  const found = tests.map((test, number) => number).filter(number =>
    tests[number].test.toLowerCase().includes(text) && (!outcome || tests[number].outcome === outcome));
  found.sort((a, b) => {
    const [one, other] = [value(tests[a]), value(tests[b])];
    return sign * (one < other ? -1 : one > other ? 1 : 0) || a - b;
  });
  by("table").tBodies[0].replaceChildren(...found.slice(0, table.shown).map(number => {
    const test = tests[number], row = document.createElement("tr"), name = document.createElement("td");
    const button = Object.assign(document.createElement("button"), { type: "button", className: "link", textContent: test.test, title: "Show in the timeline" });
    button.dataset.test = number;
    name.append(button);
    row.append(name, cell(`${WORDS[test.outcome] ?? test.outcome}${test.rerun ? ` (rerun ${test.rerun})` : ""}`, isFailed(test) ? "fail" : ""), cell(lanes[test.lane]),
      cell(clock(test.began), "number"), cell(span(test.ended - test.began), "number"), cell(span(waited(test)), "number"));
    return row;
  }));
  for (const header of document.querySelectorAll("#table th")) {
    const sorted = header.firstElementChild.dataset.sort === table.sort;
    if (sorted) header.setAttribute("aria-sort", table.down ? "descending" : "ascending");
    else header.removeAttribute("aria-sort");
  }
  by("found").textContent = found.length > table.shown ? `${table.shown} of ${found.length} tests` : `${found.length} ${found.length === 1 ? "test" : "tests"}`;
  by("more").hidden = found.length <= table.shown;
};
for (const outcome of new Set(tests.map(test => test.outcome))) by("outcome").append(new Option(outcome));
by("tests").hidden = !tests.length;
by("table").tHead.addEventListener("click", event => {
  const name = event.target.closest("button")?.dataset.sort;
  if (!name) return;
  Object.assign(table, { down: name === table.sort ? !table.down : name === "took" || name === "waited", sort: name });
  fill();
});
for (const id of ["find", "outcome"]) by(id).addEventListener("input", () => { table.shown = PAGE; fill(); });
by("more").addEventListener("click", () => { table.shown += 5 * PAGE; fill(); });

// Paper is white.
const paper = on => { document.documentElement.classList.toggle("paper", on); draw(); };
window.addEventListener("beforeprint", () => paper(true));
window.addEventListener("afterprint", () => paper(false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
new ResizeObserver(() => { if (by("chart").clientWidth !== width) draw(); }).observe(by("chart"));
fill();
draw();
})();
