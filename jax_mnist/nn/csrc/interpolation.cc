// Bilinear interpolation: what an image shows between its pixels.
#include <algorithm>
#include <cmath>

#include "kernels.h"

namespace jax_mnist {

size_t scratch_interpolate(int height, int width) { return (size_t)(height + 3) * (width + 3); }

void interpolate(int height, int width, const float* image, const float* places, float* out,
                 float* scratch) {
  // The image within a border of zeros, so that no place needs a test.
  const int row = width + 3, pixels = height * width;
  std::fill_n(scratch, scratch_interpolate(height, width), 0.f);
  for (int h = 0; h < height; h++)
    std::copy_n(image + h * width, width, scratch + (h + 1) * row + 1);

  // From -1, or whatever is no number, to the size: beyond, everything is zero.
  const auto within = [](float place, int size) {
    return place > -1 ? std::min(place, (float)size) : -1.f;
  };
  for (int i = 0; i < pixels; i++) {
    const float y = within(places[i], height), x = within(places[pixels + i], width);
    const float top = std::floor(y), left = std::floor(x), down = y - top, right = x - left;
    const float* p = scratch + ((int)top + 1) * row + (int)left + 1;
    const float above = std::fma(right, p[1] - p[0], p[0]);
    const float below = std::fma(right, p[row + 1] - p[row], p[row]);
    out[i] = std::fma(down, below - above, above);
  }
}

}  // namespace jax_mnist
