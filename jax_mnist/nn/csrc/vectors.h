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

inline Vector zero() { return _mm512_setzero_ps(); }
inline Vector all(float v) { return _mm512_set1_ps(v); }
inline Vector load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
inline Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
inline Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
inline Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
inline Vector larger(Vector a, Vector b) { return _mm512_max_ps(a, b); }
inline Vector where_positive(Vector condition, Vector v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(condition, zero(), _CMP_GT_OQ), v);
}
inline Vector where_equal(Vector a, Vector b, Vector v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), v);
}
inline Vector where_different(Vector a, Vector b, Vector v) {  // also where one is NaN
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ), v);
}

#elif defined(__AVX2__) && defined(__FMA__)

using Vector = __m256;
constexpr int LANES = 8, REGISTERS = 16;

inline Vector zero() { return _mm256_setzero_ps(); }
inline Vector all(float v) { return _mm256_set1_ps(v); }
inline Vector load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
inline Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
inline Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
inline Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
inline Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
inline Vector where_positive(Vector condition, Vector v) {
  return _mm256_and_ps(_mm256_cmp_ps(condition, zero(), _CMP_GT_OQ), v);
}
inline Vector where_equal(Vector a, Vector b, Vector v) {
  return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ), v);
}
inline Vector where_different(Vector a, Vector b, Vector v) {  // also where one is NaN
  return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ), v);
}

#else
#error "The kernels need AVX-512, or AVX2 with fused multiply-add."
#endif

// `larger` gives its second argument if one is NaN: a NaN stays one.
inline Vector relu(Vector v) { return larger(zero(), v); }

// The sum of 16 floats: halves, quarters, eighths, in this order on every processor.
inline float sum_of_lanes(const float* p) {
  const __m256 eight = _mm256_add_ps(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

}  // namespace jax_mnist
