// Runs the kernels over random shapes, to be compiled with sanitizers, and compares them with loops.
//
// Every number is a small integer, with which float32 is exact, and every array has memory of its
// own and of exactly its size, so that no access beside it goes unnoticed.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels.h"

using namespace jax_mnist;
using Floats = std::vector<float>;

std::mt19937 generator(0);

int between(int low, int high) { return low + (int)(generator() % (unsigned)(high - low + 1)); }

Floats integers(size_t size, int most = 1) {
  Floats values(size);
  for (float& v : values) v = (float)between(-most, most);
  return values;
}

void expect(const Floats& found, const Floats& expected, const char* name) {
  for (size_t i = 0; i < expected.size(); i++)
    if (found[i] != expected[i]) {
      std::printf("%s[%zu] is %g, not %g\n", name, i, found[i], expected[i]);
      std::exit(1);
    }
}

// What a map, or no map, and a ReLU make of a number of a channel and lane.
struct Map {
  bool affine, relu;
  Floats multiplier, offset;
  Map(bool affine, bool relu, int channels)
      : affine(affine),
        relu(relu),
        multiplier(affine ? integers(channels * BLOCK) : Floats(channels * BLOCK, 1)),
        offset(affine ? integers(channels * BLOCK) : Floats(channels * BLOCK, 0)) {}
  float operator()(float x, size_t of) const {
    const float v = x * multiplier[of] + offset[of];
    return relu ? std::max(v, 0.f) : v;
  }
};

void check_convolution() {
  static const int sizes[][2] = {{1, 1}, {3, 3}, {2, 3}, {5, 5}, {3, 1}, {1, 2}};
  const int* size = sizes[between(0, 5)];
  const Convolution c{size[0] + between(0, 9), size[1] + between(0, 9), between(1, 23),
                      size[0],                 size[1],                 between(1, 23),
                      between(0, 1) > 0,       between(0, 1) > 0,       between(0, 1) > 0};
  const Map map(c.affine, c.relu_in, c.channels);
  const Floats x = integers(c.input_size()), kernel = integers(c.kernel_size());
  const int inputs = c.channels * BLOCK, outputs = c.features * BLOCK;
  Floats packed(c.kernel_size());
  pack_forward(c, kernel.data(), packed.data());
  Floats y(c.output_size()), sums(outputs), squares(outputs), scratch(scratch_forward(c));
  convolve_forward(c, packed.data(),
                   {x.data(), map.multiplier.data(), map.offset.data(), y.data(), sums.data(),
                    squares.data()},
                   scratch.data());

  // `each(input, weight, output)` for every product of the convolution.
  const auto products = [&](const auto& each) {
    for (int h = 0; h < c.out_height(); h++)
      for (int w = 0; w < c.out_width(); w++)
        for (int r = 0; r < c.rows; r++)
          for (int s = 0; s < c.columns; s++)
            for (int i = 0; i < c.channels; i++)
              for (int f = 0; f < c.features; f++)
                for (int lane = 0; lane < BLOCK; lane++)
                  each((((size_t)(h + r) * c.width + w + s) * c.channels + i) * BLOCK + lane,
                       (((size_t)r * c.columns + s) * c.channels + i) * c.features + f,
                       (((size_t)h * c.out_width() + w) * c.features + f) * BLOCK + lane);
  };
  Floats want_y(y.size()), want_sums(outputs), want_squares(outputs);
  products([&](size_t in, size_t weight, size_t out) {
    want_y[out] += map(x[in], in % inputs) * kernel[weight];
  });
  for (size_t i = 0; i < want_y.size(); i++) {
    if (c.relu_out) want_y[i] = std::max(want_y[i], 0.f);
    want_sums[i % outputs] += want_y[i];
    want_squares[i % outputs] += want_y[i] * want_y[i];
  }
  expect(y, want_y, "y");
  expect(sums, want_sums, "sums");
  expect(squares, want_squares, "squares");

  const Floats dy = integers(y.size()), dsums = integers(outputs), dsquares = integers(outputs);
  Floats d(y.size());
  for (size_t i = 0; i < d.size(); i++)
    if (!c.relu_out || y[i] > 0)
      d[i] = dy[i] + dsums[i % outputs] + 2 * y[i] * dsquares[i % outputs];
  Floats want_dx(x.size()), want_dkernel(kernel.size()), want_dm(inputs), want_do(inputs);
  products([&](size_t in, size_t weight, size_t out) {
    want_dkernel[weight] += map(x[in], in % inputs) * d[out];
    want_dx[in] += kernel[weight] * d[out];
  });
  for (size_t i = 0; i < x.size(); i++) {
    if (c.relu_in && !(map(x[i], i % inputs) > 0)) want_dx[i] = 0;
    want_dm[i % inputs] += want_dx[i] * x[i];
    want_do[i % inputs] += want_dx[i];
    want_dx[i] *= map.multiplier[i % inputs];
  }
  pack_backward(c, kernel.data(), packed.data());
  for (const bool wanted : {true, false}) {
    Floats dx(x.size()), dkernel(kernel.size()), dm(inputs), d_o(inputs);
    Floats own(scratch_backward(c));
    convolve_backward(c, packed.data(),
                      {x.data(), map.multiplier.data(), map.offset.data(), y.data(), dy.data(),
                       dsums.data(), dsquares.data(), wanted ? dx.data() : nullptr, dkernel.data(),
                       dm.data(), d_o.data()},
                      own.data());
    expect(dkernel, want_dkernel, "dkernel");
    if (!wanted) continue;
    expect(dx, want_dx, "dx");
    expect(dm, want_dm, "dmultiplier");
    expect(d_o, want_do, "doffset");
  }
}

void check_pooling() {
  const Pooling c{between(1, 7), between(1, 7), between(1, 19), between(0, 1) > 0,
                  between(0, 1) > 0};
  const Map map(c.affine, c.relu_in, c.channels);
  const int inputs = c.channels * BLOCK;
  const Floats x = integers(c.input_size(), 2), dy = integers(c.output_size());
  Floats y(c.output_size()), want_y(y.size());
  Floats want_dx(x.size()), want_dm(inputs), want_do(inputs);
  for (size_t out = 0; out < y.size(); out++) {
    const size_t of = out % inputs, position = out / inputs;
    const size_t h = position / (c.width / 2) * 2, w = position % (c.width / 2) * 2;
    size_t largest = 0;
    for (int k = 0; k < 4; k++) {
      const size_t in = ((h + k / 2) * c.width + w + k % 2) * inputs + of;
      if (k == 0 || map(x[in], of) > map(x[largest], of)) largest = in;
    }
    want_y[out] = map(x[largest], of);
    if (c.relu_in && want_y[out] == 0) continue;
    want_dx[largest] = dy[out] * map.multiplier[of];
    want_dm[of] += dy[out] * x[largest];
    want_do[of] += dy[out];
  }
  pool_forward(c, x.data(), map.multiplier.data(), map.offset.data(), y.data());
  Floats dx(x.size(), NAN), dm(inputs), d_o(inputs);
  pool_backward(c, x.data(), map.multiplier.data(), map.offset.data(), dy.data(), dx.data(),
                dm.data(), d_o.data());
  expect(y, want_y, "pooled");
  expect(dx, want_dx, "pooling's dx");
  expect(dm, want_dm, "pooling's dmultiplier");
  expect(d_o, want_do, "pooling's doffset");
}

void check_interpolation() {
  const int height = between(1, 9), width = between(1, 9), pixels = height * width;
  const Floats image = integers(pixels, 3);
  Floats places(2 * pixels), out(pixels), want(pixels), scratch(scratch_interpolate(height, width));
  static const float odd[] = {NAN, INFINITY, -INFINITY, 1e30f, -1e30f};
  for (float& p : places) p = between(0, 9) ? (float)between(-6, 24) / 2 : odd[between(0, 4)];
  for (int i = 0; i < pixels; i++) {
    const float y = places[i], x = places[pixels + i];
    if (std::isfinite(y) && std::isfinite(x))
      for (int h = 0; h < height; h++)
        for (int w = 0; w < width; w++)
          want[i] += image[h * width + w] * std::max(0.f, 1 - std::abs(y - (float)h)) *
                     std::max(0.f, 1 - std::abs(x - (float)w));
  }
  interpolate(height, width, image.data(), places.data(), out.data(), scratch.data());
  expect(out, want, "interpolated");
}

int main() {
  for (int n = 0; n < 60; n++) {
    check_convolution();
    check_pooling();
    check_interpolation();
  }
}
