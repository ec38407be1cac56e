// The maximum over windows of 2x2 positions.
#include <algorithm>

#include "kernels.h"
#include "vectors.h"

namespace jax_mnist {
namespace {

// The larger one; NaN if one of them is.
inline Vector maximum(Vector a, Vector b) { return add(larger(a, b), where_different(a, a, a)); }

}  // namespace

void pool_forward(const Pooling& c, const float* x, const float* multiplier, const float* offset,
                  float* y) {
  const ptrdiff_t row = (ptrdiff_t)c.width * c.channels * BLOCK, right = c.channels * BLOCK;
  for (int h = 0; h < c.height / 2; h++)
    for (int w = 0; w < c.width / 2; w++) {
      const float* p = x + 2 * h * row + 2 * w * right;
      for (int i = 0; i < c.channels * BLOCK; i += LANES, p += LANES, y += LANES) {
        Vector v[4] = {load(p), load(p + right), load(p + row), load(p + row + right)};
        if (c.affine)
          for (Vector& one : v) one = fma(one, load(multiplier + i), load(offset + i));
        const Vector most = maximum(maximum(v[0], v[1]), maximum(v[2], v[3]));
        store(y, c.relu_in ? relu(most) : most);
      }
    }
}

void pool_backward(const Pooling& c, const float* x, const float* multiplier, const float* offset,
                   const float* dy, float* dx, float* dmultiplier, float* doffset) {
  const ptrdiff_t row = (ptrdiff_t)c.width * c.channels * BLOCK, right = c.channels * BLOCK;
  const ptrdiff_t places[4] = {0, right, row, row + right};
  std::fill_n(dmultiplier, c.channels * BLOCK, 0.f);
  std::fill_n(doffset, c.channels * BLOCK, 0.f);
  if (c.height % 2 || c.width % 2) std::fill_n(dx, c.input_size(), 0.f);  // no window has the rest
  for (int h = 0; h < c.height / 2; h++)
    for (int w = 0; w < c.width / 2; w++) {
      const ptrdiff_t window = 2 * h * row + 2 * w * right;
      for (int i = 0; i < c.channels * BLOCK; i += LANES, dy += LANES) {
        const Vector m = c.affine ? load(multiplier + i) : all(1);
        const Vector o = c.affine ? load(offset + i) : zero();
        Vector input[4], v[4], d = load(dy), dm = load(dmultiplier + i);
        for (int k = 0; k < 4; k++) {
          input[k] = load(x + window + i + places[k]);
          v[k] = fma(input[k], m, o);
        }
        const Vector most = maximum(maximum(v[0], v[1]), maximum(v[2], v[3]));
        if (c.relu_in) d = where_positive(most, d);
        store(doffset + i, add(load(doffset + i), d));
        for (int k = 0; k < 4; k++) {
          const Vector here = where_equal(v[k], most, d);
          d = where_different(v[k], most, d);  // nothing is left for a later one
          dm = fma(here, input[k], dm);
          store(dx + window + i + places[k], multiply(here, m));
        }
        store(dmultiplier + i, dm);
      }
    }
}

}  // namespace jax_mnist
