// The network: layers as data, activations as {height, width, channels, values}, row by row, with
// the channels of a pixel side by side.

/** Reads little-endian float32 numbers from base64. */
function decodeFloats(text) {
  const view = new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  return Float32Array.from({ length: view.byteLength / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** A convolution with stride 1, without padding or bias; the kernel is [rows, columns, in, out]. */
function convolve(x, kernel, size, features) {
  const height = x.height - size + 1, width = x.width - size + 1, channels = x.channels;
  const values = new Float32Array(height * width * features);
  const sums = new Float64Array(features);
  for (let top = 0, to = 0; top < height; top++) {
    for (let left = 0; left < width; left++, to += features) {
      sums.fill(0);
      for (let row = 0, at = 0; row < size; row++) {
        // The columns of a window lie side by side, as those of the kernel do.
        const from = ((top + row) * x.width + left) * channels;
        for (let i = from; i < from + size * channels; i++) {
          const value = x.values[i];
          for (let feature = 0; feature < features; feature++) sums[feature] += value * kernel[at++];
        }
      }
      values.set(sums, to);
    }
  }
  return { height, width, channels: features, values };
}

/** Replaces windows of size x size, side by side, by what `summary` makes of their values. */
function pool(x, size, summary) {
  const height = Math.floor(x.height / size), width = Math.floor(x.width / size);
  const values = new Float32Array(height * width * x.channels);
  const window = new Float32Array(size * size);
  values.forEach((_, to) => {
    const channel = to % x.channels, pixel = (to - channel) / x.channels;
    const left = (pixel % width) * size, top = Math.floor(pixel / width) * size;
    for (let i = 0; i < window.length; i++) {
      const row = top + Math.floor(i / size), column = left + (i % size);
      window[i] = x.values[(row * x.width + column) * x.channels + channel];
    }
    values[to] = summary(window);
  });
  return { height, width, channels: x.channels, values };
}

const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

/** What may follow a convolution; `next(n)` returns the next n weights. */
const OPERATIONS = {
  "ReLU": (x) => ({ ...x, values: x.values.map((value) => Math.max(value, 0)) }),
  "norm": (x, next) => {
    const scale = next(x.channels), offset = next(x.channels);
    const affine = (value, i) => value * scale[i % x.channels] + offset[i % x.channels];
    return { ...x, values: x.values.map(affine) };
  },
  "max-pool 2x2": (x) => pool(x, 2, (window) => Math.max(...window)),
  "average-pool 4x4": (x) => pool(x, 4, mean),
};

function softmax(logits) {
  const most = Math.max(...logits);
  const exponentials = Array.from(logits, (logit) => Math.exp(logit - most));
  const sum = exponentials.reduce((a, b) => a + b);
  return exponentials.map((value) => value / sum);
}

/** The probabilities of the classes of one image, 784 numbers from 0 to 255, by one seed. */
function classify(network, weights, image) {
  let used = 0;
  const next = (count) => weights.subarray(used, (used += count));
  const { mean, std } = network.normalization;
  const values = Float32Array.from(image, (level) => (level / 255 - mean) / std);
  let x = { height: 28, width: 28, channels: 1, values };
  for (const { size, features, then } of network.layers) {
    x = convolve(x, next(size * size * x.channels * features), size, features);
    for (const operation of then) x = OPERATIONS[operation](x, next);
  }
  return softmax(x.values);
}
