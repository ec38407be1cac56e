// The backward pass of a convolution: all gradients in one pass over the rows.
#include <algorithm>
#include <utility>
#include <vector>

#include "tiles.h"

namespace jax_mnist {
namespace {

// Takes a tile of the gradient of the mapped input through the ReLU and the map.
struct Finish {
  const float *x, *multiplier, *offset;  // of the row, and of the group's first channel
  float *dx, *dmultiplier, *doffset;
  int channels;
  bool affine, with_relu;

  template <int CHANNELS, int POSITIONS>
  INLINE void operator()(Vector (&tile)[CHANNELS][POSITIONS], int position, int part) const {
    UNROLL for (int c = 0; c < CHANNELS; c++) {
      const int of = c * BLOCK + part;
      const ptrdiff_t at = (ptrdiff_t)position * channels * BLOCK + of;
      const Vector m = load(multiplier + of), o = load(offset + of);
      Vector dm = load(dmultiplier + of), d_o = load(doffset + of);
      UNROLL for (int p = 0; p < POSITIONS; p++) {
        const ptrdiff_t here = at + (ptrdiff_t)p * channels * BLOCK;
        const Vector input = load(x + here);
        Vector d = tile[c][p];
        if (with_relu) d = where_positive(fma(input, m, o), d);
        d_o = add(d_o, d);
        dm = fma(d, input, dm);
        store(dx + here, affine ? multiply(d, m) : d);
      }
      store(dmultiplier + of, dm);
      store(doffset + of, d_o);
    }
  }
};

// d = dy + dsums + 2 y dsquares, where y > 0 if there was a ReLU: one row, [width, features, 16].
void gradient_row(const float* y, const float* dy, const float* dsums, const float* dsquares2,
                  int width, int features, bool with_relu, float* out) {
  for (int w = 0; w < width; w++)
    for (int i = 0; i < features * BLOCK; i += LANES, y += LANES, dy += LANES, out += LANES) {
      const Vector value = load(y);
      const Vector d = add(load(dy), fma(value, load(dsquares2 + i), load(dsums + i)));
      store(out, with_relu ? where_positive(value, d) : d);
    }
}

// What one call of a `KernelTile` reads and adds to.
struct Products {
  const float *const *x, *const *d;  // rows, from the tile's first channels on
  int rows, width, channels, features;
  float* sums;  // [columns, channels, features, 16], from the tile's first entries on
};

// Adds products of the input and the gradient over some rows: COLUMNS x IN x OUT entries of the
// kernel's gradient stay in registers.
template <int COLUMNS, int IN, int OUT>
void kernel_tile(const Products& p) {
  for (int part = 0; part < BLOCK; part += LANES) {
    Vector sums[COLUMNS][IN][OUT];
    UNROLL for (int k = 0; k < COLUMNS; k++)
      UNROLL for (int i = 0; i < IN; i++)
        UNROLL for (int o = 0; o < OUT; o++) sums[k][i][o] = zero();
    for (int r = 0; r < p.rows; r++) {
      const float *x = p.x[r] + part, *d = p.d[r] + part;
      for (int w = 0; w < p.width; w++, x += p.channels * BLOCK, d += p.features * BLOCK) {
        Vector gradient[OUT];
        UNROLL for (int o = 0; o < OUT; o++) gradient[o] = load(d + o * BLOCK);
        UNROLL for (int k = 0; k < COLUMNS; k++)
          UNROLL for (int i = 0; i < IN; i++) {
            const Vector input = load(x + (k * p.channels + i) * BLOCK);
            UNROLL for (int o = 0; o < OUT; o++) sums[k][i][o] = fma(input, gradient[o], sums[k][i][o]);
          }
      }
    }
    UNROLL for (int k = 0; k < COLUMNS; k++)
      UNROLL for (int i = 0; i < IN; i++)
        UNROLL for (int o = 0; o < OUT; o++) {
          float* sum = p.sums + ((ptrdiff_t)(k * p.channels + i) * p.features + o) * BLOCK + part;
          store(sum, add(load(sum), sums[k][i][o]));
        }
  }
}

// Tiles of three columns for kernels that have three, and of one for all others.
using KernelTile = void (*)(const Products&);
constexpr int IN3 = 2, OUT3 = REGISTERS == 32 ? 4 : 2;
constexpr int IN1 = REGISTERS == 32 ? 5 : 3, OUT1 = IN1;

template <int COLUMNS, int MOST_IN, int MOST_OUT, int... N>
KernelTile choose(int in, int out, std::integer_sequence<int, N...>) {
  static constexpr KernelTile tiles[] = {
      kernel_tile<COLUMNS, N / MOST_OUT + 1, N % MOST_OUT + 1>...};
  return tiles[(in - 1) * MOST_OUT + out - 1];
}
KernelTile choose_tile(int columns, int in, int out) {
  if (columns == 3)
    return choose<3, IN3, OUT3>(in, out, std::make_integer_sequence<int, IN3 * OUT3>{});
  return choose<1, IN1, OUT1>(in, out, std::make_integer_sequence<int, IN1 * OUT1>{});
}

constexpr int CHUNK_BYTES = 24 * 1024;  // of gradients that stay in the first cache

// The rows of the output that are worked on together.
int chunk_of(const Convolution& c) {
  const int rows = CHUNK_BYTES / (c.out_width() * 4 * BLOCK * (int)sizeof(float));
  return std::clamp(rows, 1, c.out_height());
}

// Where a call keeps what it needs, in its scratch memory.
struct Layout {
  size_t x_row, d_row, ring, kernel;
  explicit Layout(const Convolution& c)
      : x_row((size_t)c.width * c.channels * BLOCK),
        d_row((size_t)(c.out_width() + 2 * (c.columns - 1)) * c.features * BLOCK),
        ring(chunk_of(c) + c.rows - 1),
        kernel(c.kernel_size() * BLOCK) {}
};

}  // namespace

// Columns are reversed: a position of the input reads the positions of the output that it reached.
void pack_backward(const Convolution& c, const float* kernel, float* packed) {
  const Groups groups{c.channels};
  for (int g = 0; g < groups.number(); g++)
    for (int r = 0; r < c.rows; r++)
      for (int w = c.columns - 1; w >= 0; w--)
        for (int f = 0; f < c.features; f++)
          for (int i = groups.begin(g); i < groups.begin(g + 1); i++)
            *packed++ = kernel[((size_t)(r * c.columns + w) * c.channels + i) * c.features + f];
}

size_t scratch_backward(const Convolution& c) {
  const Layout size(c);
  return size.ring * (size.x_row + size.d_row) + size.kernel +
         BLOCK * ((size_t)c.features + 2 * (size_t)c.channels);
}

void convolve_backward(const Convolution& c, const float* packed, const BackwardBlock& b,
                       float* scratch) {
  const Layout size(c);
  const int chunk = chunk_of(c), out_height = c.out_height(), out_width = c.out_width();
  const int ring = (int)size.ring, inputs = c.channels * BLOCK;
  const bool mapped = c.affine || c.relu_in;
  const ptrdiff_t border = (ptrdiff_t)(c.columns - 1) * c.features * BLOCK;
  const ptrdiff_t y_row = (ptrdiff_t)out_width * c.features * BLOCK;
  float* xs = scratch;                     // a ring of rows of the mapped input
  float* ds = xs + size.ring * size.x_row;  // and of the gradient, between borders of zeros
  float* kernel_sums = ds + size.ring * size.d_row;
  float* dsquares2 = kernel_sums + size.kernel;
  float* row_dmultiplier = dsquares2 + c.features * BLOCK;
  float* row_doffset = row_dmultiplier + inputs;

  for (int i = 0; i < c.features * BLOCK; i++) dsquares2[i] = 2 * b.dsquares[i];
  std::fill_n(kernel_sums, size.kernel, 0.f);
  for (int r = 0; r < ring; r++) {
    std::fill_n(ds + r * size.d_row, border, 0.f);
    std::fill_n(ds + (r + 1) * size.d_row - border, border, 0.f);
  }
  std::fill_n(row_dmultiplier, 2 * inputs, 0.f);
  std::fill_n(b.dmultiplier, inputs, 0.f);
  std::fill_n(b.doffset, inputs, 0.f);

  std::vector<const float*> x_rows(chunk), d_rows(chunk);
  std::vector<Line> lines(c.rows);
  const Groups groups{c.channels};
  int ready = 0;  // rows of the input that have been mapped
  for (int start = 0; start < out_height; start += chunk) {
    const int rows = std::min(chunk, out_height - start), end = start + rows;
    for (int h = start; h < end; h++)
      gradient_row(b.y + h * y_row, b.dy + h * y_row, b.dsums, dsquares2, out_width, c.features,
                   c.relu_out, ds + h % ring * size.d_row + border);
    for (; mapped && ready < end + c.rows - 1; ready++)
      map_row(b.x + ready * size.x_row, b.multiplier, b.offset, c.width, c.channels, c.relu_in,
              xs + ready % ring * size.x_row);

    // The kernel.
    const Groups out{c.features, c.columns == 3 ? OUT3 : OUT1};
    const Groups in{c.channels, c.columns == 3 ? IN3 : IN1};
    const int columns = c.columns == 3 ? 3 : 1;
    for (int o = 0; o < out.number(); o++) {
      for (int r = 0; r < rows; r++)
        d_rows[r] = ds + (start + r) % ring * size.d_row + border + out.begin(o) * BLOCK;
      for (int row = 0; row < c.rows; row++)
        for (int i = 0; i < in.number(); i++) {
          const KernelTile add_products = choose_tile(columns, in.begin(i + 1) - in.begin(i),
                                                      out.begin(o + 1) - out.begin(o));
          for (int column = 0; column < c.columns; column += columns) {
            const ptrdiff_t first = (ptrdiff_t)column * c.channels + in.begin(i);
            for (int r = 0; r < rows; r++) {
              const int h = start + r + row;
              x_rows[r] = (mapped ? xs + h % ring * size.x_row : b.x + h * size.x_row) +
                          first * BLOCK;
            }
            const ptrdiff_t entry =
                ((ptrdiff_t)row * c.columns * c.channels + first) * c.features + out.begin(o);
            add_products({x_rows.data(), d_rows.data(), rows, out_width, c.channels, c.features,
                          kernel_sums + entry * BLOCK});
          }
        }
    }

    // The rows of the input that no later row of the output reaches.
    const int last = end == out_height ? c.height : end;
    for (int h = start; b.dx && h < last; h++) {
      const float* weights = packed;
      for (int g = 0; g < groups.number(); g++) {
        const int first = groups.begin(g), channels = groups.begin(g + 1) - first;
        const int terms = c.columns * c.features;
        int used = 0;
        for (int r = 0; r < c.rows; r++, weights += terms * channels)
          if (h - r >= 0 && h - r < out_height)
            lines[used++] = {ds + (h - r) % ring * size.d_row, weights};
        const ptrdiff_t at = h * size.x_row + first * BLOCK;
        row_of_tiles(channels, lines.data(), used, terms, c.width, (ptrdiff_t)c.features * BLOCK,
                     Finish{b.x + at, b.multiplier + first * BLOCK, b.offset + first * BLOCK,
                            b.dx + at, row_dmultiplier + first * BLOCK,
                            row_doffset + first * BLOCK, c.channels, c.affine, c.relu_in});
      }
      add_row(row_dmultiplier, b.dmultiplier, inputs);
      add_row(row_doffset, b.doffset, inputs);
    }
  }
  for (size_t i = 0; i < c.kernel_size(); i++) b.dkernel[i] = sum_of_lanes(kernel_sums + i * BLOCK);
}

}  // namespace jax_mnist
