"use strict";
const WINDOWS = 16, RECORDERS = 4, PAST = 60;
const at = id => document.getElementById(id);
const percent = fraction => (100 * fraction).toFixed(1) + "\u00a0%";
// As GET /v1/models gives them: name, network, pixels, frames, step, heads, default_heads, text, live_seconds.
// Where the server needs a key they are not in the page, and come with the first request that has the key.
let models = JSON.parse(at("model-data").textContent);
const several = () => models.length > 1;
// One entry for each file: its file, status (waiting, predicting, done, failed), text, result, controller, button.
let entries = [], selected = null, working = false, address = null, explaining = new AbortController();
let typed = { names: [], prompt: "" };

function create(tag, text, name) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (name) element.className = name;
  return element;
}

function say(text, bad) {
  at("state").textContent = text;
  at("state").className = bad ? "bad" : "soft";
}

// --- the models ------------------------------------------------------------------------------------------------------

function drawModels() {
  at("models").append(...models.map(model => {
    const box = create("details"), title = create("summary"), list = create("ul"), count = Object.keys(model.heads).length;
    const facts = [model.network, model.pixels + " pixels", model.frames + " frames"];
    if (model.step) facts.push("step " + model.step.toLocaleString("en"));
    if (model.engine !== "eager") facts.push(model.engine);
    title.append(create("b", model.name || "unnamed"), " (" + facts.join(", ") + "): " + [count ? (count === 1 ? "1 head" : count + " heads") : "", model.text ? "class names that you type" : ""].filter(text => text).join(", and "));
    list.append(...Object.entries(model.heads).map(([name, head]) => create("li", name + ": " + headFacts(name, head))));
    box.append(title, list);
    if (model.default_heads.length < count) box.append(allHeads(model));
    box.open = !several() && count <= 4;
    return box;
  }));
  at("models").hidden = !models.length;
  at("typed").hidden = !models.some(model => model.text);
}

// Only the own head of a fitted model answers, unless the others are asked for too.
function allHeads(model) {
  const label = create("label"), box = create("input");
  box.type = "checkbox";
  box.onchange = () => { model.asked = box.checked ? Object.keys(model.heads) : []; again(() => true); };
  label.append(box, " ask all heads, not only " + model.default_heads.join(", "));
  return label;
}

function headFacts(name, head) {
  const sets = Object.entries(head.datasets).map(([set, samples]) => (set === name ? "" : set + ", ") + (samples === null ? "" : samples.toLocaleString("en") + " training samples"));
  const known = sets.map(text => text.replace(/, $/, "")).filter(text => text);
  return head.classes.toLocaleString("en") + (head.classes === 1 ? " class" : " classes") + (head.multi_label ? ", any number of them" : "") + (known.length ? "; " + known.join("; ") : "");
}

// --- requests --------------------------------------------------------------------------------------------------------

function send(file, route, signal) {
  const body = new FormData();
  body.append("file", file);
  return request(route, { method: "POST", body, signal });
}

async function request(route, options) {
  const headers = at("key").value ? { Authorization: "Bearer " + at("key").value } : {};
  const response = await fetch(route, { ...options, headers });
  const body = await response.json();
  if (response.status === 401) at("ask").hidden = false;
  if (!response.ok) throw Object.assign(new Error(body.error), { status: response.status });
  return body;
}

async function loadModels(signal) {
  if (models.length) return;
  const found = await request("v1/models", { signal });
  if (models.length) return;  // another request was earlier
  models = found;
  drawModels();
}

function problem(error) {
  if (error.status === 401) return at("key").value ? "this is not the key of this server" : "this server needs its key first";
  return error instanceof TypeError ? "the server does not answer, or it refused the upload" : error.message;
}

function routeOf(what, model, values) {
  const query = new URLSearchParams(values);
  if (several()) query.set("model", model.name);
  if (what === "predict" && model.text) {
    for (const name of typed.names) query.append("classes", name);
    if (typed.names.length && typed.prompt) query.set("prompt", typed.prompt);
  }
  if (what === "predict" && !query.has("classes")) for (const name of model.asked || []) query.append("head", name);
  return "v1/" + what + "?" + query;
}

// The answers of all models to a file, as one result: an output for each head of each model.
async function predictWithAll(file, values, signal) {
  await loadModels(signal);
  const answers = await Promise.all(models.map(model => send(file, routeOf("predict", model, values), signal)));
  const outputs = answers.flatMap((answer, number) => Object.entries(answer.heads).map(([head, guesses]) => ({
    model: models[number],
    head,
    title: several() ? head + " \u00b7 " + models[number].name : head,
    guesses,
    segments: answer.segments[head] || [],
    best: answer.timeline.map(part => part.heads[head][0]),
  })));
  const { media, seconds, damage, timeline } = answers[0];
  return { media, seconds, damage, parts: timeline.map(({ start, end }) => ({ start, end })), outputs };
}

// --- the list of files -----------------------------------------------------------------------------------------------

function add(files) {
  const added = [...files].map(file => ({ file, status: "waiting", text: "waiting", result: null, controller: new AbortController() }));
  if (!added.length) return;
  entries.push(...added);
  drawQueue();
  select(added[0]);
  work();
}

// One file after the other, so that each gets its answer as early as it can.
async function work() {
  if (working) return;
  working = true;
  for (let entry; (entry = entries.find(each => each.status === "waiting")); ) await predict(entry);
  working = false;
}

async function predict(entry) {
  const began = performance.now(), controller = entry.controller = new AbortController(), { signal } = controller;
  update(entry, "predicting", "predicting \u2026");
  try {
    const result = await predictWithAll(entry.file, { top: 5, timeline: WINDOWS }, signal);
    if (signal.aborted) return;  // asked again with other class names, or removed, while the answer arrived
    entry.result = result;
    const { media, seconds, damage } = result, what = media === "video" ? "a video of " + seconds.toFixed(1) + " s" : "an image";
    update(entry, "done", what + ", predicted in " + ((performance.now() - began) / 1000).toFixed(1) + " s" + (damage ? "; damaged: " + damage : ""));
  } catch (error) {
    if (signal.aborted) return;
    controller.abort();  // what other models still do for this file
    entry.locked = error.status === 401;
    update(entry, "failed", problem(error));
  }
}

function update(entry, status, text) {
  Object.assign(entry, { status, text });
  drawQueue();
  if (entry !== selected) return;
  say(entry.file.name + ": " + text, status === "failed");
  if (status === "done") draw(entry.result);
}

function again(which) {
  for (const entry of entries.filter(which)) {
    entry.controller.abort();
    Object.assign(entry, { status: "waiting", text: "waiting", result: null });
  }
  if (selected) select(selected);
  work();
}

// The buttons stay as they are, so that one keeps the focus while its text changes.
function drawQueue() {
  at("files").hidden = !entries.length;
  if (!entries.length) at("queue").replaceChildren();
  for (const entry of entries) {
    if (!entry.button) {
      const item = create("li");
      entry.button = create("button");
      entry.button.type = "button";
      entry.button.append(create("span", entry.file.name), create("span"));
      entry.button.onclick = () => select(entry);
      item.append(entry.button);
      at("queue").append(item);
    }
    const best = entry.result ? entry.result.outputs.map(output => output.guesses[0].name).slice(0, 3).join(", ") : entry.text;
    Object.assign(entry.button.lastChild, { textContent: best, className: entry.status === "failed" ? "bad" : "soft" });
    entry.button.setAttribute("aria-current", String(entry === selected));
  }
}

function select(entry) {
  selected = entry;
  clear();
  drawQueue();
  if (!entry) return;
  show(entry.file);
  say(entry.file.name + ": " + entry.text, entry.status === "failed");
  if (entry.result) draw(entry.result);
}

function removeAll() {
  for (const entry of entries) entry.controller.abort();
  entries = [];
  select(null);
  at("shown").replaceChildren();
  at("shown").hidden = true;
  say("");
  at("file").focus();
}

function clear() {
  const video = at("shown").querySelector("video");
  if (video) video.ontimeupdate = video.onseeking = null;
  explaining.abort();
  for (const id of ["reasons", "names", "timeline"]) at(id).replaceChildren();
  for (const id of ["reasons", "timeline"]) at(id).hidden = true;
}

function show(file) {
  if (address) URL.revokeObjectURL(address);
  address = URL.createObjectURL(file);
  const moving = file.type.startsWith("video/"), picture = create(moving ? "video" : "img");
  at("shown").hidden = false;
  picture.onerror = () => at("shown").replaceChildren(create("p", "Your browser cannot show this file; the server may still read it.", "soft"));
  if (moving) Object.assign(picture, { controls: true, muted: true, loop: true, autoplay: true, playsInline: true });
  else picture.alt = "your image";
  picture.src = address;
  at("shown").replaceChildren(picture);
}

// --- a result: each function draws one part of it --------------------------------------------------------------------

function draw(result) {
  drawNames(result);
  drawTimeline(result);
  drawReasons(result);
}

function guessRow(guess) {
  const row = create("div", undefined, "guess"), bar = create("progress");
  bar.max = 1;
  bar.value = guess.probability;
  bar.setAttribute("aria-label", guess.name);
  row.append(create("span", guess.name), create("span", percent(guess.probability), "soft"), bar);
  return row;
}

// A section for each head. Models that have a head of the same name stand side by side in it.
function drawNames({ outputs }) {
  const heads = [...new Set(outputs.map(output => output.head))];
  at("names").className = several() ? "several" : "";
  at("names").replaceChildren(...heads.map(head => {
    const section = create("section"), same = outputs.filter(output => output.head === head);
    section.append(create("h2", head));
    if (!several()) {
      section.append(...same[0].guesses.map(guessRow));
      return section;
    }
    const pair = create("div", undefined, "pair"), best = new Set(same.map(output => output.guesses[0].name));
    pair.append(...same.map(output => {
      const half = create("div");
      half.append(create("h3", output.model.name), ...output.guesses.map(guessRow));
      return half;
    }));
    section.append(pair);
    if (same.length > 1) section.append(create("p", best.size === 1 ? "They agree: " + [...best][0] : "They differ: " + [...best].join(" / "), "differ"));
    return section;
  }));
}

function drawTimeline(result) {
  const { parts, seconds, outputs } = result, video = at("shown").querySelector("video");
  const lanes = create("div"), scrub = create("input"), folded = create("details");
  at("timeline").hidden = !parts.length;
  if (!parts.length) return;
  lanes.id = "lanes";
  Object.assign(scrub, { id: "scrub", type: "range", min: 0, max: seconds, step: .05, value: 0 });
  scrub.setAttribute("aria-label", "time in the video");
  lanes.append(create("span", "time", "soft"), scrub);
  for (const output of outputs) lanes.append(create("span", output.title), laneOf(output.title, output.segments, seconds));
  folded.id = "parts";
  folded.append(create("summary", "All parts as a table"), tableOf(result));
  at("timeline").replaceChildren(create("h2", "Over time"), lanes, folded);
  const move = () => showTime(result, video ? video.currentTime : Number(scrub.value));
  scrub.oninput = () => { seek(Number(scrub.value)); move(); };
  // The arrows move by a part, so that a long video is walked through in a few steps; Shift makes small steps.
  scrub.onkeydown = event => {
    const step = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1 }[event.key];
    if (step) seek(Math.min(seconds, Math.max(0, Number(scrub.value) + step * (event.shiftKey ? .1 : seconds / parts.length))));
    else if (event.key === " " && video) video.paused ? video.play() : video.pause();
    else return;
    event.preventDefault();
    move();
  };
  if (video) video.ontimeupdate = video.onseeking = move;
  move();
}

function seek(seconds) {
  const video = at("shown").querySelector("video");
  at("scrub").value = seconds;
  if (!video) return;
  video.pause();
  video.currentTime = seconds;
}

// Segments of different classes may overlap; each goes into the first row of the lane that is free.
function laneOf(head, segments, seconds) {
  const lane = create("div", undefined, "lane"), ends = [];
  lane.setAttribute("role", "group");
  lane.setAttribute("aria-label", "segments of " + head);
  if (!segments.length) lane.append(create("span", "no class reaches 50\u00a0%", "soft"));
  for (const segment of segments) {
    const free = ends.findIndex(end => end <= segment.start), row = free < 0 ? ends.length : free, button = create("button", segment.name);
    ends[row] = segment.end;
    button.title = segment.name + ", " + percent(segment.probability) + ", " + segment.start.toFixed(1) + "–" + segment.end.toFixed(1) + " s";
    button.setAttribute("aria-label", button.title);
    Object.assign(button.dataset, { start: segment.start, end: segment.end });
    Object.assign(button.style, { left: 100 * segment.start / seconds + "%", width: 100 * (segment.end - segment.start) / seconds + "%", top: .1 + 1.7 * row + "rem" });
    button.style.setProperty("--sure", segment.probability);
    button.onclick = () => seek(segment.start);
    lane.append(button);
  }
  lane.style.height = 1.7 * Math.max(1, ends.length) + "rem";
  lane.append(create("i"));
  return lane;
}

function showTime({ parts, seconds: length }, seconds) {
  const scrub = at("scrub"), now = [];
  for (const line of document.querySelectorAll(".lane i")) line.style.left = 100 * Math.min(1, seconds / length) + "%";
  for (const button of document.querySelectorAll(".lane button")) {
    const inside = button.dataset.start <= seconds && seconds < button.dataset.end;
    button.classList.toggle("now", inside);
    if (inside) now.push(button.textContent);
  }
  if (document.activeElement !== scrub || Math.abs(scrub.value - seconds) > .05) scrub.value = seconds;
  scrub.setAttribute("aria-valuetext", seconds.toFixed(1) + " seconds" + (now.length ? ": " + now.join(", ") : ""));
  markNow(at("parts").querySelector("table"), parts, seconds);
}

function tableOf({ parts, outputs }) {
  const table = create("table"), head = create("tr");
  head.append(create("th", "seconds"), ...parts.map(part => {
    const cell = create("th"), jump = create("button", part.start.toFixed(1) + "\u2013" + part.end.toFixed(1));
    jump.title = "show this part";
    jump.onclick = () => seek(part.start);
    cell.append(jump);
    return cell;
  }));
  table.append(head, ...outputs.map(output => {
    const row = create("tr");
    row.append(create("th", output.title), ...output.best.map(best => {
      const cell = create("td", best.name + " ");
      cell.append(create("span", percent(best.probability), "soft"));
      return cell;
    }));
    return row;
  }));
  return table;
}

function markNow(table, parts, seconds) {
  const now = 1 + parts.findIndex(part => part.start <= seconds && seconds < part.end);
  for (const row of table.rows) [...row.cells].forEach((cell, place) => cell.classList.toggle("now", place > 0 && place === now));
}

// One button for each head, because an explanation costs the server several times as much as a prediction.
function drawReasons({ outputs }) {
  const asks = create("div"), result = create("div"), entry = selected;
  const known = outputs.filter(output => output.head in output.model.heads);
  asks.id = "asks";
  asks.append(...known.map(output => {
    const button = create("button", output.title + ": why \u201c" + output.guesses[0].name + "\u201d?");
    button.setAttribute("aria-pressed", "false");
    button.onclick = async () => {
      for (const each of asks.children) each.disabled = true;
      result.replaceChildren(create("p", "explaining \u2026", "soft"));
      explaining = new AbortController();
      try {
        const reasons = await send(entry.file, routeOf("explain", output.model, { head: output.head }), explaining.signal);
        if (entry === selected) result.replaceChildren(...heatOf(reasons));
      } catch (error) {
        result.replaceChildren(create("p", problem(error), "bad"));
      }
      for (const each of asks.children) Object.assign(each, { disabled: false, ariaPressed: String(each === button) });
      button.focus();
    };
    return button;
  }));
  result.setAttribute("aria-live", "polite");
  at("reasons").hidden = !known.length;
  at("reasons").replaceChildren(create("h2", "Explain a prediction"), asks, result);
}

function heatOf(reasons) {
  const all = reasons.frames.flatMap(frame => frame.heat.flat()), most = all.reduce((one, other) => Math.max(one, other), 0), grid = create("div");
  if (!most) return [create("p", "No place in these frames speaks for \u201c" + reasons.name + "\u201d.", "soft")];
  const full = Math.max(2 / reasons.frames.length, ...reasons.frames.map(frame => frame.weight)), moving = reasons.media === "video";
  grid.id = "heat";
  grid.className = moving ? "" : "single";
  grid.append(...reasons.frames.map(frame => {
    const figure = create("figure"), under = create("div", undefined, "under"), caption = create("figcaption"), bar = create("progress");
    under.append(pictureOf(frame, "the same frame with its heat map"), heatMap(frame.heat, most));
    figure.append(pictureOf(frame, moving ? "at " + frame.time.toFixed(2) + " seconds" : "as the model sees it"), under);
    if (!moving) return figure;
    Object.assign(bar, { max: full, value: frame.weight });
    bar.setAttribute("aria-label", "the frame's part of the heat");
    caption.append(create("span", percent(frame.weight)), create("span", frame.time.toFixed(2) + "\u00a0s", "soft"));
    figure.append(bar, caption);
    return figure;
  }));
  const ofMean = heat => (heat * all.length).toPrecision(3) + "x";
  const title = create("p", reasons.head + ": \u201c" + reasons.name + "\u201d "), legend = create("p", "heat of a patch, in multiples of the mean: 0", "soft legend");
  title.append(create("span", percent(reasons.probability), "soft"));
  legend.append(heatMap([Array.from({ length: 64 }, (_, place) => (place / 63) ** 2)], 1, 1), ofMean(most) + ", in the middle " + ofMean(most / 4));
  if (moving) legend.append(create("span", "\u00b7 bars: the part of the heat in each frame; all frames together have 100\u00a0%"));
  return [title, grid, legend];
}

function pictureOf(frame, text) {
  const picture = create("img");
  picture.alt = text;
  picture.src = frame.picture;
  return picture;
}

// The same colours as in the pictures of `cover explain`. The brightness follows the square root of the heat.
const SCALE = [[0, 0, 4], [51, 10, 95], [120, 28, 109], [187, 55, 84], [237, 105, 37], [252, 181, 25], [252, 255, 164]];

function heatMap(rows, most, opacity) {
  const canvas = create("canvas"), cells = rows.flat(), height = rows.length, width = rows[0].length, pixels = new ImageData(width, height);
  cells.forEach((cell, number) => {
    const light = Math.sqrt(cell / most), place = light * (SCALE.length - 1), below = Math.min(Math.floor(place), SCALE.length - 2);
    SCALE[below].forEach((value, channel) => {
      pixels.data[4 * number + channel] = value + (SCALE[below + 1][channel] - value) * (place - below);
    });
    pixels.data[4 * number + 3] = 255 * (opacity || .85 * light);
  });
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// --- the camera: overlapping short clips, each a file of its own; at most RECORDERS are recorded at a time -------------

const live = { stream: null, timer: 0, recorders: new Set(), busy: false, dropped: 0, began: 0, controller: new AbortController() };

async function startLive() {
  if (!navigator.mediaDevices || !window.MediaRecorder) {
    say("this browser gives no camera to the page; that needs an encrypted connection, or localhost", true);
    return;
  }
  at("camera").disabled = true;
  try {
    await loadModels();
  } catch (error) {
    at("camera").disabled = false;
    say("camera: " + problem(error), true);
    return;
  }
  try {
    live.stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 640 }, height: { ideal: 480 } }, audio: false });
  } catch (error) {
    say(error.name === "NotAllowedError" ? "the camera was not allowed" : "no camera: " + error.message, true);
    return;
  } finally {
    at("camera").disabled = false;
  }
  const video = create("video"), now = create("div"), said = create("p", undefined, "soft"), past = create("ul");
  Object.assign(video, { muted: true, autoplay: true, playsInline: true, srcObject: live.stream });
  video.setAttribute("aria-label", "the camera");
  now.id = "now";
  said.id = "said";
  said.setAttribute("role", "status");
  past.id = "past";
  past.tabIndex = 0;
  past.setAttribute("aria-label", "earlier predictions");
  at("live").replaceChildren(create("h2", "Camera"), video, now, said, past);
  at("live").hidden = false;
  at("camera").setAttribute("aria-pressed", "true");
  at("camera").textContent = "Stop the camera";
  Object.assign(live, { busy: false, dropped: 0, began: performance.now(), controller: new AbortController() });
  live.stream.getVideoTracks()[0].onended = stopLive;
  say("the camera is on; the first prediction comes after " + windowSeconds().toFixed(1) + " s");
  record();
  live.timer = setInterval(record, 1000 * Math.max(1, windowSeconds() / RECORDERS));
}

function stopLive() {
  clearInterval(live.timer);
  live.controller.abort();
  for (const recorder of live.recorders) if (recorder.state !== "inactive") recorder.stop();
  live.recorders.clear();
  if (live.stream) for (const track of live.stream.getTracks()) track.stop();
  live.stream = null;
  at("camera").setAttribute("aria-pressed", "false");
  at("camera").textContent = "Use the camera";
  const video = at("live").querySelector("video");
  if (video) video.remove();
  say("the camera is off");
}

function windowSeconds() {
  return Math.min(10, Math.max(.5, ...models.map(model => model.live_seconds)));
}

function record() {
  const type = ["video/webm;codecs=vp8", "video/webm", "video/mp4"].find(each => MediaRecorder.isTypeSupported(each));
  const recorder = new MediaRecorder(live.stream, { mimeType: type, videoBitsPerSecond: 2e6 }), end = performance.now() + 1000 * windowSeconds();
  recorder.ondataavailable = event => {
    live.recorders.delete(recorder);
    if (live.stream && event.data.size) predictPiece(event.data, end);
  };
  live.recorders.add(recorder);
  recorder.start();
  setTimeout(() => { if (recorder.state !== "inactive") recorder.stop(); }, 1000 * windowSeconds());
}

// A server that is slower than the camera gets the newest clip; those in between are left out, and counted.
async function predictPiece(clip, end) {
  if (live.busy) {
    live.dropped++;
    return;
  }
  live.busy = true;
  const { signal } = live.controller;
  try {
    const result = await predictWithAll(clip, { top: 3 }, signal);
    if (!signal.aborted) drawLive(result, end);
  } catch (error) {
    if (!signal.aborted) say("camera: " + problem(error), true);
  }
  if (signal === live.controller.signal) live.busy = false;
}

function drawLive({ outputs }, end) {
  const delay = (performance.now() - end) / 1000, since = (end - live.began) / 1000;
  at("now").replaceChildren(...outputs.map(output => {
    const box = create("div");
    box.append(create("h3", output.title), ...output.guesses.map(guessRow));
    return box;
  }));
  const summary = more => outputs.map(output => (outputs.length > 1 ? output.title + ": " : "") + output.guesses[0].name + more(output.guesses[0])).join("; ");
  const best = summary(() => "");
  if (at("said").textContent !== best) at("said").textContent = best;  // so that a screen reader speaks at a change only
  at("past").prepend(create("li", since.toFixed(0) + "\u00a0s: " + summary(guess => " " + percent(guess.probability))));
  while (at("past").children.length > PAST) at("past").lastChild.remove();
  say("camera: " + delay.toFixed(1) + " s behind" + (live.dropped ? ", " + live.dropped + " clips left out" : ""));
}

// --- what the user does ----------------------------------------------------------------------------------------------

drawModels();
at("ask").hidden = models.length > 0;
at("file").onchange = () => { add(at("file").files); at("file").value = ""; };
at("camera").onclick = () => live.stream ? stopLive() : startLive();
at("clear").onclick = removeAll;
at("ask").onsubmit = async event => {
  event.preventDefault();
  try {
    await loadModels();
    at("ask").hidden = true;
    say("");
    again(entry => entry.locked && entry.status === "failed");
  } catch (error) {
    say(problem(error), true);
  }
};
at("typed").onsubmit = event => {
  event.preventDefault();
  const names = at("classes").value.split("\n").map(name => name.trim()).filter(name => name);
  typed = { names: [...new Set(names)], prompt: at("prompt").value.trim() };
  again(() => true);
};
for (const event of ["dragenter", "dragover"]) document.addEventListener(event, e => { e.preventDefault(); at("drop").classList.add("over"); });
for (const event of ["dragleave", "drop"]) document.addEventListener(event, e => { e.preventDefault(); at("drop").classList.remove("over"); });
document.addEventListener("drop", e => add(e.dataTransfer.files));
