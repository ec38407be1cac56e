// The kernels as XLA's custom calls: arguments are checked, and blocks are spread over threads.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jax_mnist {
namespace {

// ---- Arguments and results --------------------------------------------------------------------

using Shape = std::vector<int64_t>;

std::string text_of(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

struct Array {
  std::string name;
  Shape shape;
  float* data;

  void expect(const Shape& wanted) const {
    if (shape != wanted)
      throw std::invalid_argument(name + " must be of the shape " + text_of(wanted) + ", not " +
                                  text_of(shape));
  }
};

// Hands out what a call is given: the arguments and the results, each in their order, and settings.
class Call {
 public:
  Call(ffi::RemainingArgs arguments, ffi::RemainingRets results, ffi::Dictionary settings)
      : arguments_(arguments), results_(results), settings_(settings) {}

  // `rank` axes; with `batched`, all axes before the last `rank` ones become one.
  Array argument(const char* name, size_t rank, bool batched = false) {
    return checked(name, rank, batched, arguments_.get<ffi::AnyBuffer>(argument_++));
  }
  Array result(const char* name, size_t rank, bool batched = false) {
    auto result = results_.get<ffi::AnyBuffer>(result_++);
    if (!result.has_value()) throw std::invalid_argument(std::string(name) + " is missing");
    return checked(name, rank, batched, ffi::ErrorOr<ffi::AnyBuffer>(**result));
  }
  bool flag(const char* name) const { return setting<bool>(name); }
  int64_t number(const char* name) const { return setting<int64_t>(name); }

 private:
  template <class T>
  T setting(const char* name) const {
    const auto value = settings_.get<T>(name);
    if (!value.has_value())
      throw std::invalid_argument(std::string(name) + " is missing, or of another type");
    return *value;
  }
  static Array checked(const char* name, size_t rank, bool batched,
                       ffi::ErrorOr<ffi::AnyBuffer> buffer) {
    if (!buffer.has_value()) throw std::invalid_argument(std::string(name) + " is missing");
    const auto sizes = buffer->dimensions();
    Array array{name, {sizes.begin(), sizes.end()}, static_cast<float*>(buffer->untyped_data())};
    Shape& shape = array.shape;
    if (buffer->element_type() != ffi::F32)
      throw std::invalid_argument(array.name + " must be of the type float32");
    if (batched ? shape.size() < rank : shape.size() != rank)
      throw std::invalid_argument(array.name + " must have " + std::to_string(rank) +
                                  " axes, not the shape " + text_of(shape));
    if (batched) {
      int64_t batch = 1;
      while (shape.size() > rank) batch *= shape.front(), shape.erase(shape.begin());
      shape.insert(shape.begin(), batch);
    }
    if (std::any_of(shape.begin(), shape.end(), [](int64_t size) { return size > INT32_MAX; }))
      throw std::invalid_argument(array.name + " is too large: " + text_of(shape));
    return array;
  }

  ffi::RemainingArgs arguments_;
  ffi::RemainingRets results_;
  ffi::Dictionary settings_;
  size_t argument_ = 0, result_ = 0;
};

// ---- Threads ----------------------------------------------------------------------------------

// Calls work(0) ... work(number - 1) on XLA's threads. The caller works too, and waits only for
// calls that have begun, so that it cannot wait for a thread that waits for it.
template <class Work>
void parallel(ffi::ThreadPool& pool, int number, const Work& work) {
  const int threads = (int)std::min<int64_t>(number, pool.num_threads());
  if (threads <= 1) {
    for (int i = 0; i < number; i++) work(i);
    return;
  }
  struct State {  // outlives this function for threads that come too late
    const Work& work;
    const int number;
    std::atomic<int> next{0}, done{0};
    std::atomic<bool> failed{false};
    std::exception_ptr error;

    State(const Work& work, int number) : work(work), number(number) {}
    void run() {
      for (int i; (i = next.fetch_add(1)) < number;) {
        try {
          work(i);
        } catch (...) {
          if (!failed.exchange(true)) error = std::current_exception();
        }
        if (done.fetch_add(1) + 1 == number) done.notify_all();
      }
    }
  };
  const auto state = std::make_shared<State>(work, number);
  for (int t = 1; t < threads; t++) pool.Schedule([state] { state->run(); });
  state->run();
  for (int done; (done = state->done.load()) < number;) state->done.wait(done);
  if (state->failed) std::rethrow_exception(state->error);
}

// Memory of this thread, kept from call to call: memory that is given back to the system is cleared
// page by page when it is used again.
float* scratch(size_t floats) {
  thread_local std::unique_ptr<float[], decltype(&std::free)> memory(nullptr, &std::free);
  thread_local size_t size = 0;
  if (floats > size) {
    memory.reset();
    memory.reset(static_cast<float*>(
        std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64)));
    size = memory ? floats : 0;
    if (!memory) throw std::bad_alloc();
  }
  return memory.get();
}

int64_t blocks_of(int64_t examples) { return examples / BLOCK + (examples % BLOCK > 0); }

// ---- Values of examples -----------------------------------------------------------------------

// A block's part of `values`, [examples, channels] or [1, channels] for all of them, as
// [channels, 16]. Lanes without an example get 0.
void spread(const Array& values, int64_t examples, int block, float* out) {
  const int64_t channels = values.shape[1];
  for (int lane = 0; lane < BLOCK; lane++) {
    const int64_t example = (int64_t)block * BLOCK + lane;
    const float* row = values.data + (values.shape[0] == 1 ? 0 : example) * channels;
    for (int64_t c = 0; c < channels; c++) out[c * BLOCK + lane] = example < examples ? row[c] : 0;
  }
}

// The reverse, into `values` of all examples.
void collect(const float* in, int64_t examples, int64_t channels, int block, float* values) {
  for (int64_t lane = 0; lane < BLOCK && block * BLOCK + lane < examples; lane++)
    for (int64_t c = 0; c < channels; c++)
      values[(block * BLOCK + lane) * channels + c] = in[c * BLOCK + lane];
}

// out = the sum of rows, in their order.
void sum_rows(const float* rows, size_t number, size_t size, float* out) {
  std::fill_n(out, size, 0.f);
  for (size_t n = 0; n < number; n++)
    for (size_t i = 0; i < size; i++) out[i] += rows[n * size + i];
}

// The affine map of the input: of each example, of all of them, or none if it has no rows.
struct AffineMap {
  Array multiplier, offset;
  int64_t examples;

  AffineMap(Call& call, int64_t examples, int64_t channels)
      : multiplier(call.argument("the multiplier", 2)),
        offset(call.argument("the offset", 2)),
        examples(examples) {
    multiplier.expect({rows() > 1 ? examples : rows(), channels});
    offset.expect(multiplier.shape);
  }
  int64_t rows() const { return multiplier.shape[0]; }
  size_t floats() const { return 2 * (size_t)multiplier.shape[1] * BLOCK; }
  void of_block(int block, float* m, float* o) const {
    if (rows() > 0) {
      spread(multiplier, examples, block, m);
      spread(offset, examples, block, o);
    } else {
      std::fill_n(m, floats() / 2, 1.f);
      std::fill_n(o, floats() / 2, 0.f);
    }
  }
};

// Collects the gradients of an affine map; `finish` adds those of a map that all examples share.
class MapGradient {
 public:
  MapGradient(Call& call, const AffineMap& map)
      : dmultiplier_(call.result("the multiplier's gradient", 2)),
        doffset_(call.result("the offset's gradient", 2)),
        map_(map) {
    dmultiplier_.expect(map.multiplier.shape);
    doffset_.expect(map.multiplier.shape);
    if (map.rows() == 1) of_examples_.resize(2 * map.examples * channels());
  }
  void collect(int block, const float* dm, const float* d_o) {
    if (map_.rows() == 0) return;
    float* m = map_.rows() == 1 ? of_examples_.data() : dmultiplier_.data;
    float* o = map_.rows() == 1 ? m + map_.examples * channels() : doffset_.data;
    jax_mnist::collect(dm, map_.examples, channels(), block, m);
    jax_mnist::collect(d_o, map_.examples, channels(), block, o);
  }
  void finish() {
    if (map_.rows() != 1) return;
    const float* m = of_examples_.data();
    sum_rows(m, map_.examples, channels(), dmultiplier_.data);
    sum_rows(m + map_.examples * channels(), map_.examples, channels(), doffset_.data);
  }

 private:
  int64_t channels() const { return map_.multiplier.shape[1]; }

  Array dmultiplier_, doffset_;
  const AffineMap& map_;
  std::vector<float> of_examples_;
};

// ---- The calls --------------------------------------------------------------------------------

Convolution convolution_of(const Array& x, const Array& kernel, const AffineMap& map, bool relu_in,
                           bool relu_out) {
  const Shape &X = x.shape, &K = kernel.shape;
  x.expect({blocks_of(map.examples), X[1], X[2], X[3], BLOCK});
  kernel.expect({K[0], K[1], X[3], K[3]});
  if (K[0] < 1 || K[1] < 1 || K[0] > X[1] || K[1] > X[2])
    throw std::invalid_argument("the kernel " + text_of(K) + " does not fit into x " + text_of(X));
  return {(int)X[1], (int)X[2], (int)X[3], (int)K[0], (int)K[1], (int)K[3],
          map.rows() > 0, relu_in, relu_out};
}

Shape output_shape(const Array& x, const Convolution& c) {
  return {x.shape[0], c.out_height(), c.out_width(), c.features, BLOCK};
}

void call_convolve_forward(ffi::ThreadPool& pool, Call& call) {
  const Array x = call.argument("x", 5), kernel = call.argument("the kernel", 4);
  const Array y = call.result("y", 5), sums = call.result("the sums", 2);
  const Array squares = call.result("the sums of squares", 2);
  const int64_t examples = sums.shape[0];
  const AffineMap map(call, examples, x.shape[3]);
  const Convolution c = convolution_of(x, kernel, map, call.flag("relu_in"),
                                       call.flag("relu_out"));
  y.expect(output_shape(x, c));
  sums.expect({examples, c.features});
  squares.expect(sums.shape);

  std::vector<float> packed(c.kernel_size());
  pack_forward(c, kernel.data, packed.data());
  const size_t moments = (size_t)c.features * BLOCK;
  parallel(pool, (int)blocks_of(examples), [&](int n) {
    float* m = scratch(map.floats() + 2 * moments + scratch_forward(c));
    float *o = m + map.floats() / 2, *s = m + map.floats(), *q = s + moments;
    map.of_block(n, m, o);
    convolve_forward(c, packed.data(),
                     {x.data + n * c.input_size(), m, o, y.data + n * c.output_size(), s, q},
                     q + moments);
    collect(s, examples, c.features, n, sums.data);
    collect(q, examples, c.features, n, squares.data);
  });
}

void call_convolve_backward(ffi::ThreadPool& pool, Call& call) {
  const Array x = call.argument("x", 5), kernel = call.argument("the kernel", 4);
  const int64_t examples = call.number("examples");
  const AffineMap map(call, examples, x.shape[3]);
  const Array y = call.argument("y", 5), dy = call.argument("y's gradient", 5);
  const Array dsums = call.argument("the sums' gradient", 2);
  const Array dsquares = call.argument("the sums of squares' gradient", 2);
  const Array dx = call.result("x's gradient", 5);
  const Array dkernel = call.result("the kernel's gradient", 4);
  const Convolution c = convolution_of(x, kernel, map, call.flag("relu_in"),
                                       call.flag("relu_out"));
  MapGradient dmap(call, map);
  y.expect(output_shape(x, c));
  dy.expect(y.shape);
  dsums.expect({examples, c.features});
  dsquares.expect(dsums.shape);
  dkernel.expect(kernel.shape);
  const bool wanted = dx.shape[0] > 0;
  if (wanted) dx.expect(x.shape);

  const int blocks = (int)blocks_of(examples);
  std::vector<float> packed(c.kernel_size()), kernels(c.kernel_size() * blocks);
  pack_backward(c, kernel.data, packed.data());
  const size_t moments = (size_t)c.features * BLOCK;
  parallel(pool, blocks, [&](int n) {
    float* m = scratch(2 * map.floats() + 2 * moments + scratch_backward(c));
    float *o = m + map.floats() / 2, *dm = m + map.floats(), *d_o = dm + map.floats() / 2;
    float *ds = dm + map.floats(), *dq = ds + moments;
    map.of_block(n, m, o);
    spread(dsums, examples, n, ds);
    spread(dsquares, examples, n, dq);
    convolve_backward(c, packed.data(),
                      {x.data + n * c.input_size(), m, o, y.data + n * c.output_size(),
                       dy.data + n * c.output_size(), ds, dq,
                       wanted ? dx.data + n * c.input_size() : nullptr,
                       kernels.data() + n * c.kernel_size(), dm, d_o},
                      dq + moments);
    if (wanted) dmap.collect(n, dm, d_o);
  });
  sum_rows(kernels.data(), blocks, c.kernel_size(), dkernel.data);
  dmap.finish();
}

Pooling pooling_of(const Array& x, const AffineMap& map, bool relu_in) {
  const Shape& X = x.shape;
  x.expect({blocks_of(map.examples), X[1], X[2], X[3], BLOCK});
  return {(int)X[1], (int)X[2], (int)X[3], map.rows() > 0, relu_in};
}

void call_pool_forward(ffi::ThreadPool& pool, Call& call) {
  const Array x = call.argument("x", 5), y = call.result("y", 5);
  const AffineMap map(call, call.number("examples"), x.shape[3]);
  const Pooling c = pooling_of(x, map, call.flag("relu_in"));
  y.expect({x.shape[0], c.height / 2, c.width / 2, c.channels, BLOCK});
  parallel(pool, (int)blocks_of(map.examples), [&](int n) {
    float *m = scratch(map.floats()), *o = m + map.floats() / 2;
    map.of_block(n, m, o);
    pool_forward(c, x.data + n * c.input_size(), m, o, y.data + n * c.output_size());
  });
}

void call_pool_backward(ffi::ThreadPool& pool, Call& call) {
  const Array x = call.argument("x", 5);
  const AffineMap map(call, call.number("examples"), x.shape[3]);
  const Array dy = call.argument("y's gradient", 5), dx = call.result("x's gradient", 5);
  const Pooling c = pooling_of(x, map, call.flag("relu_in"));
  MapGradient dmap(call, map);
  dy.expect({x.shape[0], c.height / 2, c.width / 2, c.channels, BLOCK});
  dx.expect(x.shape);
  parallel(pool, (int)blocks_of(map.examples), [&](int n) {
    float* m = scratch(2 * map.floats());
    float *o = m + map.floats() / 2, *dm = m + map.floats(), *d_o = dm + map.floats() / 2;
    map.of_block(n, m, o);
    pool_backward(c, x.data + n * c.input_size(), m, o, dy.data + n * c.output_size(),
                  dx.data + n * c.input_size(), dm, d_o);
    dmap.collect(n, dm, d_o);
  });
  dmap.finish();
}

void call_interpolate(ffi::ThreadPool& pool, Call& call) {
  const Array images = call.argument("the images", 2, true);
  const Array places = call.argument("the places", 3, true);
  const Array out = call.result("the result", 2, true);
  const Shape& sizes = images.shape;
  places.expect({sizes[0], 2, sizes[1], sizes[2]});
  out.expect(sizes);
  const int height = (int)sizes[1], width = (int)sizes[2];
  const size_t pixels = (size_t)height * width;
  parallel(pool, (int)sizes[0], [&](int n) {
    interpolate(height, width, images.data + n * pixels, places.data + n * 2 * pixels,
                out.data + n * pixels, scratch(scratch_interpolate(height, width)));
  });
}

// Turns exceptions into XLA's errors, which JAX raises.
template <void (*function)(ffi::ThreadPool&, Call&)>
ffi::Error handle(ffi::ThreadPool pool, ffi::RemainingArgs arguments, ffi::RemainingRets results,
                  ffi::Dictionary attributes) {
  try {
    Call call(arguments, results, attributes);
    function(pool, call);
    return ffi::Error::Success();
  } catch (const std::bad_alloc&) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jax_mnist: there is not enough memory");
  } catch (const std::exception& error) {
    return ffi::Error::InvalidArgument(std::string("jax_mnist: ") + error.what());
  }
}

}  // namespace
}  // namespace jax_mnist

// A symbol of the library, which Python registers.
#define HANDLER(name, function)                                                         \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* name(XLA_FFI_CallFrame*); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, jax_mnist::handle<function>,                      \
                                ffi::Ffi::Bind()                                        \
                                    .Ctx<ffi::ThreadPool>()                             \
                                    .RemainingArgs()                                    \
                                    .RemainingRets()                                    \
                                    .Attrs())

HANDLER(ConvolveForward, jax_mnist::call_convolve_forward);
HANDLER(ConvolveBackward, jax_mnist::call_convolve_backward);
HANDLER(PoolForward, jax_mnist::call_pool_forward);
HANDLER(PoolBackward, jax_mnist::call_pool_backward);
HANDLER(Interpolate, jax_mnist::call_interpolate);
