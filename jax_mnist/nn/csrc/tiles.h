// Sums of products that stay in registers: a tile is some channels of some neighbouring positions.
#pragma once
#include "kernels.h"
#include "vectors.h"

#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

namespace jax_mnist {

// Channels are cut as evenly as possible into groups of at most `MOST_CHANNELS`.
constexpr int MOST_CHANNELS = REGISTERS == 32 ? 10 : 6;

struct Groups {
  int channels, most = MOST_CHANNELS;
  int number() const { return (channels + most - 1) / most; }
  int begin(int group) const {
    const int least = channels / number(), longer = channels % number();
    return group * least + (group < longer ? group : longer);
  }
};

// Positions of a tile, so that its sums, its inputs and one weight fit into the registers.
constexpr int positions(int channels) {
  int p = 1;
  while (p < 6 && channels * (p + 1) + (p + 1) + 1 <= REGISTERS) p++;
  return p;
}

// A row of inputs, and the weights that it meets: [terms][channels of the tile].
struct Line {
  const float *input, *weights;
};

// The tile whose first position begins `at` floats into each line: every position reads `terms`
// consecutive vectors of each line, and the next one begins `step` floats later. `finish` gets the
// sums.
template <int CHANNELS, int POSITIONS, class Finish>
INLINE void tile(const Line* lines, int number, int terms, ptrdiff_t at, ptrdiff_t step,
                 const Finish& finish) {
  Vector sums[CHANNELS][POSITIONS];
  UNROLL for (int c = 0; c < CHANNELS; c++)
    UNROLL for (int p = 0; p < POSITIONS; p++) sums[c][p] = zero();
  for (int n = 0; n < number; n++) {
    const float *input = lines[n].input + at, *weights = lines[n].weights;
    for (int t = 0; t < terms; t++, input += BLOCK, weights += CHANNELS) {
      Vector x[POSITIONS];
      UNROLL for (int p = 0; p < POSITIONS; p++) x[p] = load(input + p * step);
      UNROLL for (int c = 0; c < CHANNELS; c++) {
        const Vector weight = all(weights[c]);
        UNROLL for (int p = 0; p < POSITIONS; p++) sums[c][p] = fma(x[p], weight, sums[c][p]);
      }
    }
  }
  finish(sums);
}

// A row of `width` positions and one group of channels, for each register's part of a block.
// `finish(sums, position, part)` gets each tile.
template <int CHANNELS, class Finish>
__attribute__((noinline)) void row_of_tiles(const Line* lines, int number, int terms, int width,
                                            ptrdiff_t step, const Finish& finish) {
  constexpr int POSITIONS = positions(CHANNELS);
  for (int part = 0; part < BLOCK; part += LANES) {
    int w = 0;
    for (; w + POSITIONS <= width; w += POSITIONS)
      tile<CHANNELS, POSITIONS>(lines, number, terms, w * step + part, step,
                                [&](auto& sums) __attribute__((always_inline)) {
                                  finish(sums, w, part);
                                });
    for (; w < width; w++)
      tile<CHANNELS, 1>(lines, number, terms, w * step + part, step,
                        [&](auto& sums) __attribute__((always_inline)) { finish(sums, w, part); });
  }
}

template <class Finish>
INLINE void row_of_tiles(int channels, const Line* lines, int number, int terms, int width,
                         ptrdiff_t step, const Finish& finish) {
  switch (channels) {  // there are no more than MOST_CHANNELS
#define CASE(n) \
  case n: return row_of_tiles<(n <= MOST_CHANNELS ? n : 1)>(lines, number, terms, width, step, finish);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10)
#undef CASE
  }
}

// out = relu?(multiplier * x + offset), one row: [width, channels, 16].
inline void map_row(const float* x, const float* multiplier, const float* offset, int width,
                    int channels, bool with_relu, float* out) {
  for (int w = 0; w < width; w++)
    for (int i = 0; i < channels * BLOCK; i += LANES, x += LANES, out += LANES) {
      const Vector v = fma(load(x), load(multiplier + i), load(offset + i));
      store(out, with_relu ? relu(v) : v);
    }
}

// total += row, and row = 0: sums are taken by rows first, which rounds less.
inline void add_row(float* row, float* total, int floats) {
  for (int i = 0; i < floats; i += LANES) {
    store(total + i, add(load(total + i), load(row + i)));
    store(row + i, zero());
  }
}

}  // namespace jax_mnist
