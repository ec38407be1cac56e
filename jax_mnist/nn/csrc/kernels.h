// What the library computes, one block of examples at a time.
//
// Activations are [blocks, height, width, channels, 16]. A block holds 16 examples whatever a
// register holds, and the lanes of a register are always examples: no sum over positions or
// channels crosses lanes, and its order depends neither on the processor nor on the number of
// threads.
#pragma once
#include <cstddef>

namespace jax_mnist {

constexpr int BLOCK = 16;  // examples

// y = relu?(convolution of relu?(multiplier * x + offset)), with stride 1 and without padding.
struct Convolution {
  int height, width, channels;    // of the input
  int rows, columns, features;    // of the kernel, [rows, columns, channels, features]
  bool affine, relu_in, relu_out;

  int out_height() const { return height - rows + 1; }
  int out_width() const { return width - columns + 1; }
  size_t input_size() const { return (size_t)height * width * channels * BLOCK; }
  size_t output_size() const { return (size_t)out_height() * out_width() * features * BLOCK; }
  size_t kernel_size() const { return (size_t)rows * columns * channels * features; }
};

// Multiplier and offset are [channels, 16]; the sums of y and of its squares are [features, 16].
struct ForwardBlock {
  const float *x, *multiplier, *offset;
  float *y, *sums, *squares;
};

// The gradients of y, of its sums and of its squares come in. That of the block's own kernel goes
// out and, unless `dx` is null, those of x, of the multiplier and of the offset, which are else 0.
struct BackwardBlock {
  const float *x, *multiplier, *offset, *y, *dy, *dsums, *dsquares;
  float *dx, *dkernel, *dmultiplier, *doffset;
};

// The kernel in the order in which it is read: `kernel_size` floats.
void pack_forward(const Convolution&, const float* kernel, float* packed);
void pack_backward(const Convolution&, const float* kernel, float* packed);

// Floats of memory that a call needs for itself.
size_t scratch_forward(const Convolution&);
size_t scratch_backward(const Convolution&);

void convolve_forward(const Convolution&, const float* packed, const ForwardBlock&, float* scratch);
void convolve_backward(const Convolution&, const float* packed, const BackwardBlock&,
                       float* scratch);

// y = maximum of relu?(multiplier * x + offset) over windows of 2x2, with stride 2. If values tie,
// the first gets the gradient.
struct Pooling {
  int height, width, channels;
  bool affine, relu_in;

  size_t input_size() const { return (size_t)height * width * channels * BLOCK; }
  size_t output_size() const { return (size_t)(height / 2) * (width / 2) * channels * BLOCK; }
};

void pool_forward(const Pooling&, const float* x, const float* multiplier, const float* offset,
                  float* y);
void pool_backward(const Pooling&, const float* x, const float* multiplier, const float* offset,
                   const float* dy, float* dx, float* dmultiplier, float* doffset);

// An image, [height, width], at `places`, [2, height, width]: rows, and then columns, in pixels.
// What lies outside of the image is 0.
size_t scratch_interpolate(int height, int width);
void interpolate(int height, int width, const float* image, const float* places, float* out,
                 float* scratch);

}  // namespace jax_mnist
