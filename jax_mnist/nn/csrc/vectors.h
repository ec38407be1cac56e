// One register of floats, and what the kernels do with it.
//
// Products are added by `fma`, which rounds once, and by nothing else: compiled with
// -ffp-contract=off, every compiler makes the same roundings in the same order.
#pragma once
#include <immintrin.h>

namespace jax_mnist {

#if defined(__AVX512F__)

using Vector = __m512;
constexpr int LANES = 16, REGISTERS = 32;
#define MM(operation) _mm512_##operation##_ps
template <int TEST>
inline Vector where(Vector a, Vector b, Vector v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, TEST), v);
}

#elif defined(__AVX2__) && defined(__FMA__)

using Vector = __m256;
constexpr int LANES = 8, REGISTERS = 16;
#define MM(operation) _mm256_##operation##_ps
template <int TEST>
inline Vector where(Vector a, Vector b, Vector v) {
  return _mm256_and_ps(_mm256_cmp_ps(a, b, TEST), v);
}

#else
#error "The kernels need AVX-512, or AVX2 with fused multiply-add."
#endif

inline Vector zero() { return MM(setzero)(); }
inline Vector all(float v) { return MM(set1)(v); }
inline Vector load(const float* p) { return MM(loadu)(p); }
inline void store(float* p, Vector v) { MM(storeu)(p, v); }
inline Vector add(Vector a, Vector b) { return MM(add)(a, b); }
inline Vector multiply(Vector a, Vector b) { return MM(mul)(a, b); }
inline Vector fma(Vector a, Vector b, Vector c) { return MM(fmadd)(a, b, c); }
// `larger` gives its second argument if one is NaN: a NaN stays one.
inline Vector larger(Vector a, Vector b) { return MM(max)(a, b); }
inline Vector relu(Vector v) { return larger(zero(), v); }
// v where the condition holds, and else 0. What is NaN is different from everything.
inline Vector where_positive(Vector a, Vector v) { return where<_CMP_GT_OQ>(a, zero(), v); }
inline Vector where_equal(Vector a, Vector b, Vector v) { return where<_CMP_EQ_OQ>(a, b, v); }
inline Vector where_different(Vector a, Vector b, Vector v) { return where<_CMP_NEQ_UQ>(a, b, v); }

// The sum of 16 floats: halves, quarters, eighths, in this order on every processor.
inline float sum_of_lanes(const float* p) {
  const __m256 eight = _mm256_add_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace jax_mnist
