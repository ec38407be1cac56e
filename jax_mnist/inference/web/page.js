// The page: strokes go to the canvas; before each frame, a changed drawing is classified.

const network = JSON.parse(document.getElementById("network").textContent);
const seeds = network.weights.map(decodeFloats);
const find = (id) => document.getElementById(id);
const canvas = find("drawing");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const PEN_WIDTH = canvas.width / 15; // some 2 of the 28 pixels, as in MNIST
const last = new Map(); // the last point of each pointer that is down
let waiting = false;

/** The drawing as ink levels: how opaque each pixel is, whatever its colour. */
function inkOfDrawing() {
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  const ink = new Float64Array(data.length / 4);
  for (let i = 0; i < ink.length; i++) ink[i] = data[4 * i + 3] / 255;
  return ink;
}

/** The image that the network sees of the drawing, or null. */
function imageOfDrawing() {
  const image = centre(inkOfDrawing(), canvas.width, canvas.height);
  if (!image || !network.transposed) return image;
  return image.map((_, i) => image[(i % SIDE) * SIDE + Math.floor(i / SIDE)]);
}

const percent = (p) => `${(100 * p).toFixed(1)} %`;
const indexOfMost = (values) => values.indexOf(Math.max(...values));

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text; // screen readers read what changes
}

/** Adds a row to a table for each heading, with empty cells of these classes. */
function addRows(id, headings, classes) {
  for (const textContent of headings) {
    const row = find(id).insertRow();
    row.append(Object.assign(document.createElement("th"), { scope: "row", textContent }));
    for (const name of classes) row.insertCell().className = name;
  }
}

/** Shows a probability in a row of a table: as a bar, and in digits. */
function showRow(row, probability, best = false) {
  row.classList.toggle("best", best);
  row.style.setProperty("--p", probability ?? 0);
  setText(row.querySelector(".percent"), probability === undefined ? "" : percent(probability));
}

function showImage(image) {
  const levels = find("image").getContext("2d");
  const pixels = levels.createImageData(SIDE, SIDE);
  image?.forEach((level, i) => pixels.data.set([level, level, level, 255], 4 * i));
  levels.putImageData(pixels, 0, 0);
}

function update() {
  waiting = false;
  const image = imageOfDrawing();
  const votes = image ? seeds.map((weights) => classify(network, weights, image)) : [];
  const means = network.labels.map((_, i) => mean(votes.map((vote) => vote[i])));
  const best = image ? indexOfMost(means) : -1;
  setText(find("answer"), image ? network.labels[best] : "–");
  setText(find("confidence"), image ? percent(means[best]) : "Nothing drawn yet");
  document.querySelectorAll("#classes tr").forEach((row, i) =>
    showRow(row, image ? means[i] : undefined, i === best));
  document.querySelectorAll("#votes tr").forEach((row, i) => {
    const vote = votes[i] && indexOfMost(votes[i]);
    setText(row.querySelector(".vote"), votes[i] ? network.labels[vote] : "–");
    showRow(row, votes[i]?.[vote]);
  });
  showImage(image);
}

function requestUpdate() {
  if (!waiting) requestAnimationFrame(update);
  waiting = true;
}

/** Draws a line from the last point of a pointer to where it is now. */
function drawTo(event) {
  const box = canvas.getBoundingClientRect(), scale = canvas.width / box.width;
  const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
  pen.beginPath();
  pen.moveTo(...(last.get(event.pointerId) ?? [x, y]));
  pen.lineTo(x + 0.01, y); // no line is drawn of no length
  pen.stroke();
  last.set(event.pointerId, [x, y]);
  requestUpdate();
}

function start() {
  addRows("classes", network.labels, ["bar", "percent"]);
  addRows("votes", network.seeds.map((seed) => `Seed ${seed}`), ["vote", "percent"]);
  find("votes").hidden = seeds.length === 1;
  Object.assign(pen, { lineWidth: PEN_WIDTH, lineCap: "round", lineJoin: "round" });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId); // a stroke may leave the canvas and come back
    drawTo(event);
  });
  canvas.addEventListener("pointermove", (event) => {
    const events = event.getCoalescedEvents?.() ?? []; // there may be several in a frame
    if (last.has(event.pointerId)) [...events, event].forEach(drawTo);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    canvas.addEventListener(end, (event) => last.delete(event.pointerId));
  }
  find("clear").addEventListener("click", () => {
    pen.clearRect(0, 0, canvas.width, canvas.height);
    requestUpdate();
  });
  update();
}

start();
