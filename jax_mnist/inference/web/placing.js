// Placing a drawing as MNIST's digits are placed. The steps are those of pictures.py, whose comments
// give the reasons. The paper of a drawing is known, so nothing has to be subtracted.

const SIDE = 28, BOX = 20, CENTRE = 14; // of MNIST: image size, size of the digit, its centre
const MIN_CONTRAST = 0.1; // between ink and paper
const MIN_PART = 0.05; // smaller connected parts are dirt; a fraction of the largest part's pixels

/** To the nearest integer; halves to the even one, as in Python. */
function round(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2) ? floor + 1 : floor;
}

/** The threshold that minimises the variance within the two classes (Otsu 1979). */
function otsuThreshold(ink, most) {
  const counts = new Float64Array(256);
  for (const value of ink) counts[Math.min(255, Math.floor((value / most) * 256))]++;
  const total = ink.length;
  const sum = counts.reduce((sum, count, i) => sum + count * (i + 0.5), 0);
  let best = -1, threshold = 0, below = 0, sumBelow = 0;
  for (let i = 0; i < 255; i++) {
    below += counts[i];
    sumBelow += counts[i] * (i + 0.5);
    const above = total - below;
    const between = below * above * (sumBelow / below - (sum - sumBelow) / above) ** 2;
    if (between > best) [best, threshold] = [between, ((i + 1) / 256) * most];
  }
  return threshold;
}

/** Calls `visit` with a pixel, and with those that touch it, even at corners. */
function visitAround(at, width, height, visit) {
  const x = at % width, y = (at - x) / width;
  for (let row = Math.max(y - 1, 0); row <= Math.min(y + 1, height - 1); row++) {
    for (let column = Math.max(x - 1, 0); column <= Math.min(x + 1, width - 1); column++) {
      visit(row * width + column);
    }
  }
}

/** The pixels above the threshold as lists, one for each part whose pixels touch. */
function connectedParts(ink, width, height, threshold) {
  const seen = ink.map((level) => level <= threshold), parts = [];
  for (let start = 0; start < ink.length; start++) {
    if (seen[start]) continue;
    const part = [start];
    seen[start] = 1;
    for (let i = 0; i < part.length; i++) {
      visitAround(part[i], width, height, (at) => {
        if (!seen[at]) part.push(at);
        seen[at] = 1;
      });
    }
    parts.push(part);
  }
  return parts;
}

/** Crops to the digit without specks; 0 to 1 across the edges of the ink, 1 within it. */
function cutOut(ink, width, height, threshold) {
  const parts = connectedParts(ink, width, height, threshold);
  const largest = Math.max(...parts.map((part) => part.length));
  const digit = new Uint8Array(ink.length); // with the soft edges of its strokes
  let left = width, right = 0, top = height, bottom = 0;
  for (const at of parts.filter((part) => part.length >= MIN_PART * largest).flat()) {
    visitAround(at, width, height, (pixel) => { digit[pixel] = 1; });
    const x = at % width, y = (at - x) / width;
    left = Math.min(left, x), right = Math.max(right, x + 1);
    top = Math.min(top, y), bottom = Math.max(bottom, y + 1);
  }
  const values = new Float32Array((right - left) * (bottom - top));
  for (let y = top, to = 0; y < bottom; y++) {
    for (let x = left; x < right; x++, to++) {
      const level = Math.min(1, Math.max(0, ink[y * width + x] / threshold - 0.5));
      values[to] = level * digit[y * width + x];
    }
  }
  return { width: right - left, height: bottom - top, values };
}

/** Scales rows to another length by averaging, as Pillow's BOX does, and swaps rows and columns. */
function scaleRows({ width, height, values }, length) {
  const scale = width / length, window = Math.max(scale, 1);
  const scaled = new Float32Array(length * height);
  for (let to = 0; to < length; to++) {
    const middle = (to + 0.5) * scale;
    let first = Math.max(0, Math.floor(middle - window / 2 + 0.5));
    let last = Math.min(width, Math.floor(middle + window / 2 + 0.5));
    // Pillow asks again whether a pixel is in the box, and rounding may then decide otherwise.
    if ((first - middle + 0.5) * (1 / window) <= -0.5) first++;
    if ((last - 1 - middle + 0.5) * (1 / window) > 0.5) last--;
    for (let row = 0; row < height; row++) {
      let sum = 0;
      for (let from = first; from < last; from++) sum += values[row * width + from];
      scaled[to * height + row] = sum / (last - first);
    }
  }
  return { width: height, height: length, values: scaled };
}

/** Scales a digit so that its longer side is BOX pixels and its maximum 1. */
function fitToBox(digit) {
  const scale = BOX / Math.max(digit.width, digit.height);
  const sizeOf = (side) => Math.max(1, round(side * scale));
  const small = scaleRows(scaleRows(digit, sizeOf(digit.width)), sizeOf(digit.height));
  const most = Math.max(...small.values);
  return { ...small, values: small.values.map((value) => value / most) };
}

/** Puts the digit's centre of mass at the centre of an image, as far as the digit fits. */
function place({ width, height, values }) {
  let mass = 0, x = 0, y = 0;
  values.forEach((value, i) => {
    mass += value;
    x += value * (i % width);
    y += value * Math.floor(i / width);
  });
  const start = (moment, length) =>
    Math.min(Math.max(0, round(CENTRE - moment / mass)), SIDE - length);
  const left = start(x, width), top = start(y, height);
  const image = new Uint8Array(SIDE * SIDE);
  values.forEach((value, i) => {
    image[(top + Math.floor(i / width)) * SIDE + left + (i % width)] = round(255 * value);
  });
  return image;
}

/** Makes a 28x28 image, 0 to 255, of a drawing, ink levels from 0 to 1; null if it is empty. */
function centre(ink, width, height) {
  let most = 0;
  for (const level of ink) most = Math.max(most, level);
  if (most < MIN_CONTRAST) return null;
  return place(fitToBox(cutOut(ink, width, height, otsuThreshold(ink, most))));
}
