// The kernels as XLA's custom calls: arrays are checked, and blocks are spread over threads.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace jax_mnist {

// ---- Arguments and results --------------------------------------------------------------------

struct Array {
  float* data;
  char kind;          // the letter of its first axis
  bool result;
  int64_t rows, row;  // of the first axis, and of all others together
};

// The arguments and results of a call, which must be float32 and fit a signature such as
// "x:BHWCL kernel:RSCF -> y:BhwFL": a letter stands for the size of an axis, the same wherever the
// letter stands. N is the number of examples, B that of their blocks, and L the size of a block. M
// is N, 1 or 0, and * stands for all axes before the others, as one.
class Call {
 public:
  std::vector<Array> arrays;

  Call(const char* signature, ffi::RemainingArgs arguments, ffi::RemainingRets results,
       ffi::Dictionary settings)
      : signature_(signature), settings_(settings) {
    for (size_t i = 0; i < arguments.size(); i++)
      buffers_.push_back(arguments.get<ffi::AnyBuffer>(i).value());
    for (size_t i = 0; i < results.size(); i++)
      buffers_.push_back(*results.get<ffi::AnyBuffer>(i).value());
    std::fill_n(sizes_, 128, UNKNOWN);
    sizes_['2'] = 2;
    sizes_['L'] = BLOCK;
    const auto given = settings_.get<int64_t>("examples");
    const int64_t examples = given.has_value() ? *given : -1;
    sizes_['N'] = examples;
    sizes_['B'] = examples < 0 ? -1 : examples / BLOCK + (examples % BLOCK > 0);
    const char *axes = signature, *arrow = std::strchr(signature, '>');
    for (const ffi::AnyBuffer& buffer : buffers_) {
      axes = std::strchr(axes + 1, ':');
      check(axes && (axes > arrow) == (arrays.size() >= arguments.size()));
      bind(axes + 1, buffer, axes > arrow);
    }
    check(!std::strchr(axes + 1, ':'));
  }

  int64_t operator[](char letter) const { return sizes_[(int)letter]; }
  bool flag(const char* name) const {
    const auto value = settings_.get<bool>(name);
    check(value.has_value());
    return *value;
  }
  void check(bool fits) const {
    if (fits) return;
    std::ostringstream text;
    text << "expected float32 " << signature_ << " and settings, not";
    for (const ffi::AnyBuffer& buffer : buffers_) {
      text << ' ' << buffer.element_type() << '[';
      for (const int64_t size : buffer.dimensions()) text << ' ' << size;
      text << " ]";
    }
    throw std::invalid_argument(text.str());
  }

 private:
  void bind(const char* axes, const ffi::AnyBuffer& buffer, bool result) {
    const auto shape = buffer.dimensions();
    const size_t letters = std::strcspn(axes, " ");
    const bool any = *axes == '*';
    check(any ? shape.size() + 1 >= letters : shape.size() == letters);
    Array array{static_cast<float*>(buffer.untyped_data()), *axes, result, 1, 1};
    size_t axis = 0;
    for (size_t i = 0; i < letters; i++) {
      int64_t size = 1, &known = sizes_[(int)axes[i]];
      for (size_t n = any && i == 0 ? shape.size() + 1 - letters : 1; n > 0; n--)
        size *= shape[axis++];
      if (known == UNKNOWN) known = size;
      check(size == known && size <= INT32_MAX);
      (i == 0 ? array.rows : array.row) *= size;
    }
    check(buffer.element_type() == ffi::F32);
    check(*axes != 'M' || array.rows < 2 || array.rows == sizes_['N']);
    arrays.push_back(array);
  }

  static constexpr int64_t UNKNOWN = INT64_MIN;
  const char* signature_;
  ffi::Dictionary settings_;
  std::vector<ffi::AnyBuffer> buffers_;
  int64_t sizes_[128];
};

// ---- Threads ----------------------------------------------------------------------------------

// Calls work(0) ... work(number - 1) on XLA's threads. The caller works too, and waits only for
// calls that have begun, so that it cannot wait for a thread that waits for it.
template <class Work>
void parallel(ffi::ThreadPool& pool, int64_t number, const Work& work) {
  struct State {  // outlives this function for threads that come too late
    const Work& work;
    const int number;
    std::atomic<int> next{0}, done{0};
    std::atomic<bool> failed{false};

    State(const Work& work, int number) : work(work), number(number) {}
    void run() {
      for (int i; (i = next++) < number;) {
        try {
          work(i);
        } catch (...) {
          failed = true;
        }
        if (++done == number) done.notify_all();
      }
    }
  };
  const auto state = std::make_shared<State>(work, (int)number);
  for (int64_t t = std::min<int64_t>(number, pool.num_threads()); t > 1; t--)
    pool.Schedule([state] { state->run(); });
  state->run();
  for (int done; (done = state->done) < number;) state->done.wait(done);
  if (state->failed) throw std::bad_alloc();
}

#ifdef __SANITIZE_ADDRESS__
constexpr bool FRESH = true;  // of exactly the size, so that no access beside it goes unnoticed
#else
constexpr bool FRESH = false;
#endif

// Memory of this thread, kept from call to call: memory that is given back to the system is cleared
// page by page when it is used again.
float* scratch(size_t floats) {
  thread_local std::unique_ptr<float[], decltype(&std::free)> memory(nullptr, &std::free);
  thread_local size_t size = 0;
  if (floats > size || FRESH) {
    size = 0;
    memory.reset();
    memory.reset((float*)std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64));
    if (!memory) throw std::bad_alloc();
    size = floats;
  }
  return memory.get();
}

// ---- Blocks -----------------------------------------------------------------------------------

// A block's values of examples, [channels, 16], given [rows, channels]. Lanes without an example
// get 0, and so do all if there are no rows.
void read(const Array& array, int64_t examples, int64_t block, float* out) {
  for (int64_t lane = 0; lane < BLOCK; lane++) {
    const int64_t example = block * BLOCK + lane;
    const bool exists = array.rows > 0 && example < examples;
    const float* row = array.data + (array.rows == 1 ? 0 : example) * array.row;
    for (int64_t c = 0; c < array.row; c++) out[c * BLOCK + lane] = exists ? row[c] : 0;
  }
}

// The reverse, with a row for each example.
void write(const float* in, int64_t channels, int64_t examples, int64_t block, float* out) {
  for (int64_t lane = 0; lane < BLOCK && block * BLOCK + lane < examples; lane++)
    for (int64_t c = 0; c < channels; c++)
      out[(block * BLOCK + lane) * channels + c] = in[c * BLOCK + lane];
}

// out = the sum of rows, in their order.
void sum_rows(const float* rows, int64_t number, int64_t size, float* out) {
  std::fill_n(out, size, 0.f);
  for (int64_t n = 0; n < number; n++)
    for (int64_t i = 0; i < size; i++) out[i] += rows[n * size + i];
}

// Calls work(parts, memory) for each block of examples, with a part of each array: of blocks it is
// one of them, or null if there are none; of values of examples it is [channels, 16]; an argument
// of another kind is given as it is. The sum of what is written to a result of another kind for
// each block, or to values that all examples share for each example, is the result.
template <class Work>
void for_each_block(ffi::ThreadPool& pool, Call& call, size_t memory, const Work& work) {
  const std::vector<Array>& arrays = call.arrays;
  const int64_t examples = call['N'], blocks = call['B'];
  std::vector<std::vector<float>> terms(arrays.size());
  const auto of_examples = [](const Array& a) { return a.kind == 'M' || a.kind == 'N'; };
  for (size_t i = 0; i < arrays.size(); i++) {
    const Array& a = arrays[i];
    if (of_examples(a)) memory += a.row * BLOCK;
    if (a.result && a.kind == 'M' && a.rows == 1) terms[i].resize(examples * a.row);
    if (a.result && a.kind == 'R') terms[i].resize(blocks * a.rows * a.row);
  }
  parallel(pool, blocks, [&](int n) {
    float *next = scratch(memory), *parts[16];
    for (size_t i = 0; i < arrays.size(); i++) {
      const Array& a = arrays[i];
      if (of_examples(a)) {
        parts[i] = next;
        next += a.row * BLOCK;
        if (!a.result) read(a, examples, n, parts[i]);
      } else if (a.kind == 'R') {
        parts[i] = a.result ? terms[i].data() + n * a.rows * a.row : a.data;
      } else {
        parts[i] = a.rows > 0 ? a.data + n * a.row : nullptr;
      }
    }
    work(parts, next);
    for (size_t i = 0; i < arrays.size(); i++)
      if (const Array& a = arrays[i]; a.result && of_examples(a) && a.rows > 0)
        write(parts[i], a.row, examples, n, terms[i].empty() ? a.data : terms[i].data());
  });
  for (size_t i = 0; i < arrays.size(); i++)
    if (const Array& a = arrays[i]; a.result && a.kind == 'R')
      sum_rows(terms[i].data(), blocks, a.rows * a.row, a.data);
    else if (a.result && a.kind == 'M' && a.rows == 1)
      sum_rows(terms[i].data(), examples, a.row, a.data);
}

// ---- The calls --------------------------------------------------------------------------------

// Defines a symbol of the library, which Python registers, and begins the function behind it.
// Exceptions become XLA's errors, which JAX raises.
#define HANDLER(name, signature)                                                             \
  void call_##name(ffi::ThreadPool&, Call&);                                                 \
  ffi::Error handle_##name(ffi::ThreadPool pool, ffi::RemainingArgs arguments,               \
                           ffi::RemainingRets results, ffi::Dictionary settings) {           \
    try {                                                                                    \
      Call call(signature, arguments, results, settings);                                    \
      call_##name(pool, call);                                                               \
      return ffi::Error::Success();                                                          \
    } catch (const std::bad_alloc&) {                                                        \
      return ffi::Error(ffi::ErrorCode::kResourceExhausted, "jax_mnist: out of memory");     \
    } catch (const std::exception& error) {                                                  \
      return ffi::Error::InvalidArgument(std::string("jax_mnist: ") + error.what());         \
    }                                                                                        \
  }                                                                                          \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* name(XLA_FFI_CallFrame*); \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(                                                             \
      name, handle_##name,                                                                   \
      ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attrs());      \
  void call_##name(ffi::ThreadPool& pool, Call& call)

Convolution convolution_of(const Call& call) {
  const Convolution c{(int)call['H'], (int)call['W'], (int)call['C'],
                      (int)call['R'], (int)call['S'], (int)call['F'],
                      call['M'] > 0,  call.flag("relu_in"), call.flag("relu_out")};
  call.check(1 <= c.rows && c.rows <= c.height && 1 <= c.columns && c.columns <= c.width);
  call.check(call['h'] == c.out_height() && call['w'] == c.out_width());
  call.check(c.affine || !c.relu_in || call['N'] == 0);
  return c;
}

HANDLER(ConvolveForward,
        "x:BHWCL kernel:RSCF multiplier:MC offset:MC -> y:BhwFL sums:NF squares:NF") {
  const Convolution c = convolution_of(call);
  std::vector<float> packed(c.kernel_size());
  pack_forward(c, call.arrays[1].data, packed.data());
  for_each_block(pool, call, scratch_forward(c), [&](float** a, float* memory) {
    convolve_forward(c, packed.data(), {a[0], a[2], a[3], a[4], a[5], a[6]}, memory);
  });
}

// Without blocks of dx, it is not computed, and the gradients of the map are 0.
HANDLER(ConvolveBackward,
        "x:BHWCL kernel:RSCF multiplier:MC offset:MC y:BhwFL dy:BhwFL dsums:NF dsquares:NF -> "
        "dx:bHWCL dkernel:RSCF dmultiplier:MC doffset:MC") {
  const Convolution c = convolution_of(call);
  call.check(call['b'] == 0 || call['b'] == call['B']);
  std::vector<float> packed(c.kernel_size());
  pack_backward(c, call.arrays[1].data, packed.data());
  for_each_block(pool, call, scratch_backward(c), [&](float** a, float* memory) {
    const BackwardBlock block{a[0], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]};
    convolve_backward(c, packed.data(), block, memory);
  });
}

Pooling pooling_of(const Call& call) {
  call.check(call['h'] == call['H'] / 2 && call['w'] == call['W'] / 2);
  return {(int)call['H'], (int)call['W'], (int)call['C'], call['M'] > 0, call.flag("relu_in")};
}

HANDLER(PoolForward, "x:BHWCL multiplier:MC offset:MC -> y:BhwCL") {
  for_each_block(pool, call, 0, [c = pooling_of(call)](float** a, float*) {
    pool_forward(c, a[0], a[1], a[2], a[3]);
  });
}

HANDLER(PoolBackward,
        "x:BHWCL multiplier:MC offset:MC dy:BhwCL -> dx:BHWCL dmultiplier:MC doffset:MC") {
  for_each_block(pool, call, 0, [c = pooling_of(call)](float** a, float*) {
    pool_backward(c, a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
  });
}

HANDLER(Interpolate, "images:*HW places:*2HW -> out:*HW") {
  const int height = (int)call['H'], width = (int)call['W'];
  parallel(pool, call['*'], [&, &a = call.arrays](int n) {
    interpolate(height, width, a[0].data + n * a[0].row, a[1].data + n * a[1].row,
                a[2].data + n * a[2].row, scratch(scratch_interpolate(height, width)));
  });
}

}  // namespace jax_mnist
