// Serving on the CPU: one step an event through all blocks, and the k best items of each user.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "bytes.h"
#include "panels.h"
#include "top_k.h"

namespace {

// ----------------------------------------------------------------------------------------- step

constexpr int64_t TILE = 48;  // events that go through the blocks together; a multiple of ROWS
constexpr float NORM_EPSILON = 1e-5f;

// erf(z), within 5e-7: z times a quotient of polynomials in z^2, fitted for the smallest largest
// relative error (2.5e-8) over |z| <= 4; beyond 3.92 it is 1 in single precision.
Vector erf(Vector z) {
  const Vector limit = all(3.92f), one = all(1.0f);
  const Vector size = z < 0.0f ? -z : z, t = size > limit ? limit * limit : z * z;
  Vector p = all(1.98664819e-06f), q = all(3.74182072e-05f);
  for (float c : {0.000284555429f, 0.0038833397f, 0.0531017542f, 0.193546455f, 1.12837914f})
    p = p * t + c;
  for (float c : {0.0011855494f, 0.0152072713f, 0.115350412f, 0.504858637f, 1.0f}) q = q * t + c;
  const Vector y = z * p / q;
  return size > limit ? (z < 0.0f ? -one : one) : y;
}

// x = GELU(x) in place; width a multiple of LANES.
void gelu(float* x, int64_t width) {
  for (int64_t i = 0; i < width; i += LANES) {
    const Vector v = load(x + i);
    store(x + i, 0.5f * v * (1.0f + erf(v * 0.70710678f)));
  }
}

struct Norm {
  const float *weight, *bias;
};

// y = LayerNorm(y + x) in place.
void add_and_norm(float* y, const float* x, int64_t width, Norm by) {
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < width; ++i) sum += y[i] += x[i];
  const float mean = sum / width;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < width; ++i) squares += (y[i] - mean) * (y[i] - mean);
  const float scale = 1 / std::sqrt(squares / width + NORM_EPSILON);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) y[i] = (y[i] - mean) * scale * by.weight[i] + by.bias[i];
}

// u += lambda * h in place, and h = u; pairs (re, im).
void recur(float* u, const float* lam, float* h, int64_t channels) {
#pragma omp simd
  for (int64_t c = 0; c < channels; ++c) {
    const float a = lam[2 * c], b = lam[2 * c + 1], re = h[2 * c], im = h[2 * c + 1];
    h[2 * c] = u[2 * c] += a * re - b * im;
    h[2 * c + 1] = u[2 * c + 1] += a * im + b * re;
  }
}

struct Affine {
  const float *panels, *bias;
  int64_t depth, width;  // the width in whole panels
};

// As in native_step.py, like Model.
struct Block {
  const float* lam;
  Affine recurrent_in, recurrent_out;
  Norm recurrent_norm;
  Affine inner, outer;
  Norm norm;
};

struct Model {
  const float* embedding;  // (items, width)
  const Block* blocks;
  int64_t items, width, channels, n_blocks;
};

void affine(const Affine& by, int64_t rows, const float* x, int64_t x_stride, float* y,
            int64_t y_stride) {
  for (int64_t column = 0; column < by.width; column += PANEL)
    in_groups(rows, [&](int64_t first, int64_t size) {
      product(size, x + first * x_stride, x_stride, by.panels + column * by.depth,
              by.bias + column, by.depth, y + first * y_stride + column, y_stride);
    });
}

// Takes the events of consecutive users through all blocks; `states` holds the states before and
// after. `owner` is the user of each event.
void advance_users(const Model& model, const int64_t* items, const int64_t* owner, int64_t events,
                   float* states, float* outputs) {
  const int64_t d = model.width, c = 2 * model.channels, state = c * model.n_blocks;
  int64_t narrow = 0, wide = 0;
  for (int64_t b = 0; b < model.n_blocks; ++b) {
    const Block& block = model.blocks[b];
    narrow = std::max({narrow, block.recurrent_out.width, block.outer.width});
    wide = std::max({wide, block.recurrent_in.width, block.inner.width});
  }
  const int64_t most = std::min(TILE, events);
  std::vector<float> memory(most * (2 * narrow + wide));
  float *x = memory.data(), *y = x + most * narrow, *z = y + most * narrow;
  for (int64_t first = 0; first < events; first += TILE) {
    const int64_t rows = std::min(TILE, events - first);
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(model.embedding + items[first + r] * d, d, x + r * narrow);
    for (int64_t b = 0; b < model.n_blocks; ++b) {
      const Block& block = model.blocks[b];
      affine(block.recurrent_in, rows, x, narrow, z, wide);
      for (int64_t r = 0; r < rows; ++r)
        recur(z + r * wide, block.lam, states + owner[first + r] * state + b * c, model.channels);
      affine(block.recurrent_out, rows, z, wide, y, narrow);
      for (int64_t r = 0; r < rows; ++r)
        add_and_norm(y + r * narrow, x + r * narrow, d, block.recurrent_norm);
      affine(block.inner, rows, y, narrow, z, wide);
      for (int64_t r = 0; r < rows; ++r) gelu(z + r * wide, block.inner.width);
      affine(block.outer, rows, z, wide, x, narrow);
      for (int64_t r = 0; r < rows; ++r)
        add_and_norm(x + r * narrow, y + r * narrow, d, block.norm);
    }
    for (int64_t r = 0; r < rows; ++r)
      std::copy_n(x + r * narrow, d, outputs + (first + r) * d);
  }
}

}  // namespace

extern "C" {

int64_t serving_panel() { return PANEL; }

void serving_erf(const float* z, float* y, int64_t n) {
  for (int64_t i = 0; i + LANES <= n; i += LANES) store(y + i, erf(load(z + i)));
}

int64_t serving_bytes_fast_from() { return FAST_FROM; }

// Makes the first pass over bytes ready; returns 0, or 1 if the weights are not for it.
int serving_make_bytes(Catalogue* by, uint8_t* bytes, float* scale, float* above, float* rest,
                       float* norm) {
  return !make_bytes(*by, bytes, scale, above, rest, norm);
}

// The bounds of every score, (users, items); returns 0, or 1 if the outputs are not for them.
int serving_bounds(const Catalogue* by, const float* outputs, int64_t users, float* lower,
                   float* upper) {
  const int64_t deep = up_to_fours(by->width);
  std::vector<int8_t> q(deep);
  std::vector<float> y(PANEL);
  for (int64_t u = 0; u < users; ++u, lower += by->items, upper += by->items) {
    const Spread spread = spread_of(*by, outputs + u * by->width, q.data());
    if (!spread.fits) return 1;
    for (int64_t i = 0; i < by->items; ++i) {
      const int64_t first = i / PANEL * PANEL;
      if (i == first) bounds(1, &spread, q.data(), *by, i, by->above + i, y.data());
      upper[i] = y[i - first];
      lower[i] = bound_below(spread, *by, i, upper[i]);
    }
  }
  return 0;
}

// Returns 0, or 1 if an excluded item is none of the catalogue: then nothing was written.
int serving_top_k(const Catalogue* catalogue, const float* outputs, const int64_t* excluded,
                  const uint8_t* unavailable, int64_t users, int64_t k, int64_t excluded_width,
                  float* scores_out, int64_t* items_out, int threads) {
  uint64_t most = 0;
  for (int64_t i = 0; i < users * excluded_width; ++i)
    most = std::max(most, uint64_t(excluded[i]));
  if (most >= uint64_t(catalogue->items)) return 1;
  const Query query{*catalogue, outputs, excluded, unavailable, users, k, excluded_width};
  const int64_t parts = std::max<int64_t>(threads, (users + SHARED - 1) / SHARED);
  const int64_t size = (users + parts - 1) / parts;
  const int64_t count = size ? (users + size - 1) / size : 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t part = 0; part < count; ++part) {
    const int64_t first = part * size;
    top_k_of_users(query, first, std::min(size, users - first), scores_out, items_out);
  }
  return 0;
}

// Returns 0, or 1 if lengths or items are not what they must be: then nothing was written.
int serving_advance(const Model* model, const float* before, const int64_t* items,
                    const int64_t* lengths, int64_t users, int64_t events, float* after,
                    float* outputs, int threads) {
  int64_t sum = 0;
  for (int64_t u = 0; u < users; ++u) {
    if (lengths[u] < 1 || lengths[u] > events - sum) return 1;
    sum += lengths[u];
  }
  if (sum != events) return 1;
  for (int64_t e = 0; e < events; ++e)
    if (uint64_t(items[e]) >= uint64_t(model->items)) return 1;
  std::vector<int64_t> owner(events), parts{0};  // parts: where the shares of the threads begin
  for (int64_t u = 0, e = 0; u < users; ++u) {
    if (threads > 1 && e - parts.back() >= TILE) parts.push_back(e);
    std::fill_n(owner.begin() + e, lengths[u], u);
    e += lengths[u];
  }
  parts.push_back(events);
  std::copy_n(before, users * 2 * model->channels * model->n_blocks, after);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t part = 0; part < int64_t(parts.size()) - 1; ++part) {
    const int64_t e = parts[part];
    advance_users(*model, items + e, owner.data() + e, parts[part + 1] - e, after,
                  outputs + e * model->width);
  }
  return 0;
}
}
