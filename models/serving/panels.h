// Products of rows with matrices in panels, for what serves on the CPU.
//
// Matrices come in panels of PANEL columns: panel after panel, in each the rows one after another,
// the last one filled up with zeros. Every row of a product is computed alone and in a fixed order,
// so its numbers have the same bits whatever else is in the batch, and with any threads.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, VECTORS = 4;  // 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr int LANES = 8, VECTORS = 2;  // 12 of 16
#elif defined(__aarch64__)
constexpr int LANES = 4, VECTORS = 4;
#else
constexpr int LANES = 4, VECTORS = 2;
#endif
constexpr int PANEL = LANES * VECTORS;
constexpr int ROWS = 6;    // of a product computed at once
constexpr int AHEAD = 16;  // rows of a panel asked for early: a large catalogue is waited for

using Vector = float __attribute__((vector_size(4 * LANES)));
using Mask = int32_t __attribute__((vector_size(4 * LANES)));

Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
void store(float* to, Vector v) { std::memcpy(to, &v, sizeof v); }
Vector all(float x) { return x - Vector{}; }

// Bit i says whether a[i] > b[i]; a NaN is greater than nothing.
uint32_t greater(Vector a, Vector b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ);
#elif defined(__AVX__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ));
#else
  uint32_t bits = 0;
  for (int i = 0; i < LANES; ++i) bits |= uint32_t(a[i] > b[i]) << i;
  return bits;
#endif
}

// y[r] = start + x[r] panel, for R rows; panel (depth, PANEL).
template <int R>
void product_of_rows(const float* x, int64_t x_stride, const float* panel, const float* start,
                     int64_t depth, float* y, int64_t y_stride) {
  Vector sum[R][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = load(start + v * LANES);
  for (int64_t i = 0; i < depth; ++i) {
    Vector w[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      __builtin_prefetch(panel + (i + AHEAD) * PANEL + v * LANES);
      w[v] = load(panel + i * PANEL + v * LANES);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector a = all(x[r * x_stride + i]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sum[r][v] += a * w[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) store(y + r * y_stride + v * LANES, sum[r][v]);
}

// As above, for 1 to ROWS rows.
void product(int64_t rows, const float* x, int64_t x_stride, const float* panel,
             const float* start, int64_t depth, float* y, int64_t y_stride) {
  switch (rows) {
#define CASE(R) \
  case R: return product_of_rows<R>(x, x_stride, panel, start, depth, y, y_stride);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
  }
}

// Calls visit(first, rows) for groups of nearly equal size, none above ROWS.
template <class Visit>
void in_groups(int64_t rows, Visit visit) {
  int64_t groups = (rows + ROWS - 1) / ROWS;
  for (int64_t first = 0; groups > 0; --groups) {
    const int64_t size = (rows - first + groups - 1) / groups;
    visit(first, size);
    first += size;
  }
}

int64_t up_to_panels(int64_t width) { return (width + PANEL - 1) / PANEL * PANEL; }

}  // namespace
