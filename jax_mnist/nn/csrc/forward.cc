// The forward pass of a convolution.
#include <algorithm>
#include <vector>

#include "tiles.h"

namespace jax_mnist {
namespace {

// Stores a tile, after a ReLU if asked to, and adds it to the sums of its row.
struct Finish {
  float *y, *sums, *squares;  // of the row and of the group's first channel
  int features;
  bool with_relu;

  template <int CHANNELS, int POSITIONS>
  INLINE void operator()(Vector (&tile)[CHANNELS][POSITIONS], int position, int part) const {
    float* out = y + (ptrdiff_t)position * features * BLOCK + part;
    UNROLL for (int c = 0; c < CHANNELS; c++) {
      float *s = sums + c * BLOCK + part, *q = squares + c * BLOCK + part;
      Vector sum = load(s), square = load(q);
      UNROLL for (int p = 0; p < POSITIONS; p++) {
        const Vector v = with_relu ? relu(tile[c][p]) : tile[c][p];
        store(out + ((ptrdiff_t)p * features + c) * BLOCK, v);
        sum = add(sum, v);
        square = fma(v, v, square);
      }
      store(s, sum);
      store(q, square);
    }
  }
};

}  // namespace

void pack_forward(const Convolution& c, const float* kernel, float* packed) {
  const Groups groups{c.features};
  for (int g = 0; g < groups.number(); g++)
    for (int t = 0; t < c.rows * c.columns * c.channels; t++)
      packed = std::copy(kernel + (size_t)t * c.features + groups.begin(g),
                         kernel + (size_t)t * c.features + groups.begin(g + 1), packed);
}

size_t scratch_forward(const Convolution& c) {
  return BLOCK * ((size_t)c.rows * c.width * c.channels + 2 * (size_t)c.features);
}

void convolve_forward(const Convolution& c, const float* packed, const ForwardBlock& b,
                      float* scratch) {
  const ptrdiff_t row = (ptrdiff_t)c.width * c.channels * BLOCK;
  const bool mapped = c.affine || c.relu_in;
  const int moments = c.features * BLOCK, terms = c.columns * c.channels;
  float *ring = scratch, *row_sums = ring + c.rows * row, *row_squares = row_sums + moments;
  std::fill_n(row_sums, 2 * moments, 0.f);
  std::fill_n(b.sums, moments, 0.f);
  std::fill_n(b.squares, moments, 0.f);
  const Groups groups{c.features};
  std::vector<Line> lines(c.rows);
  int ready = 0;  // rows of the input that have been mapped into the ring
  for (int h = 0; h < c.out_height(); h++) {
    for (; mapped && ready < h + c.rows; ready++)
      map_row(b.x + ready * row, b.multiplier, b.offset, c.width, c.channels, c.relu_in,
              ring + ready % c.rows * row);
    const float* weights = packed;
    for (int g = 0; g < groups.number(); g++) {
      const int first = groups.begin(g), channels = groups.begin(g + 1) - first;
      for (int r = 0; r < c.rows; r++, weights += terms * channels)
        lines[r] = {mapped ? ring + (h + r) % c.rows * row : b.x + (h + r) * row, weights};
      row_of_tiles(channels, lines.data(), c.rows, terms, c.out_width(),
                   (ptrdiff_t)c.channels * BLOCK,
                   Finish{b.y + ((ptrdiff_t)h * c.out_width() * c.features + first) * BLOCK,
                          row_sums + first * BLOCK, row_squares + first * BLOCK, c.features,
                          c.relu_out});
    }
    add_row(row_sums, b.sums, moments);
    add_row(row_squares, b.squares, moments);
  }
}

}  // namespace jax_mnist
