// Serving on the CPU: one step an event through all blocks, and the k best items of each user.
//
// Matrices come in panels of PANEL columns: panel after panel, in each the rows one after another,
// the last one filled up with zeros. Every row of a product is computed alone and in a fixed order,
// so a user's numbers have the same bits whatever else is in the batch, and with any threads.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

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

// ---------------------------------------------------------------------------------------- top k

constexpr int64_t CHUNK = 2048;  // items scored before any is looked at; a multiple of PANEL
constexpr int64_t SHARED = 512;  // users that go through the catalogue together, at most
constexpr float NONE = -std::numeric_limits<float>::infinity();

struct Item {
  float score;
  int32_t index;
  // Best first; of equal scores, the lower index first.
  bool operator<(const Item& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};

// The best items of one user so far, among up to `room` candidates; items come by rising index.
struct Best {
  Item* items;
  int64_t size, k, room;
  float bar;  // only scores above it can be among the best

  void add(float score, int32_t index) {
    items[size++] = {score, index};
    if (size == room) keep_k();
  }
  void keep_k() {
    if (size < k) return;
    std::nth_element(items, items + k - 1, items + size);
    size = k;
    bar = items[k - 1].score;
  }
};

// A score that at least k of the first `width` scores reach, if it is easy to find one.
float score_of_k(const float* scores, int64_t width, int64_t k) {
  if (2 * k > PANEL) return NONE;
  Vector most[VECTORS];
  for (int v = 0; v < VECTORS; ++v) most[v] = all(NONE);
  for (int64_t i = 0; i < width; i += PANEL)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      const Vector score = load(scores + i + v * LANES);
      most[v] = score > most[v] ? score : most[v];
    }
  float lanes[PANEL];
  std::memcpy(lanes, most, sizeof lanes);
  std::nth_element(lanes, lanes + k - 1, lanes + PANEL, std::greater<float>());
  return lanes[k - 1];
}

struct Query {
  const float *outputs, *panels, *bias;
  const int64_t* excluded;     // (users, excluded_width)
  const uint8_t* unavailable;  // (items,) or null
  int64_t users, width, items, k, excluded_width;
};

void top_k_of_users(const Query& q, int64_t first_user, int64_t users, float* scores_out,
                    int64_t* items_out) {
  const int64_t room = std::max(2 * q.k, q.k + 64);
  std::vector<Item> kept(users * room);
  std::vector<Best> best(users);
  for (int64_t u = 0; u < users; ++u) best[u] = {kept.data() + u * room, 0, q.k, room, NONE};
  constexpr int64_t STRIDE = CHUNK + LANES;  // room for exclusions that lie elsewhere
  std::vector<float> scores(ROWS * STRIDE);
  float bias[CHUNK];
  for (int64_t first = 0; first < q.items; first += CHUNK) {
    const int64_t width = std::min(CHUNK, q.items - first), padded = up_to_panels(width);
    std::copy_n(q.bias + first, width, bias);
    std::fill(bias + width, bias + padded, NONE);
    if (first == 0) bias[0] = NONE;  // the pad token
    if (q.unavailable)
      for (int64_t i = 0; i < width; ++i)
        bias[i] = q.unavailable[first + i] ? NONE : bias[i];
    in_groups(users, [&](int64_t group, int64_t rows) {
      for (int64_t i = 0; i < padded; i += PANEL)
        product(rows, q.outputs + (first_user + group) * q.width, q.width,
                q.panels + (first + i) * q.width, bias + i, q.width, scores.data() + i, STRIDE);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t user = first_user + group + r;
        float* score = scores.data() + r * STRIDE;
        for (int64_t i = 0; i < q.excluded_width; ++i) {
          const uint64_t at = q.excluded[user * q.excluded_width + i] - first;
          score[std::min<uint64_t>(at, CHUNK)] = NONE;
        }
        Best& own = best[group + r];
        if (first == 0) {
          const float reached = score_of_k(score, padded, q.k);
          own.bar = std::nextafter(reached, NONE);
        }
        for (int64_t i = 0; i < padded; i += LANES) {
          uint32_t above = greater(load(score + i), all(own.bar));
          for (; above; above &= above - 1) {
            const int64_t at = i + __builtin_ctz(above);
            if (score[at] > own.bar) own.add(score[at], int32_t(first + at));
          }
        }
        own.keep_k();
      }
    });
  }
  for (int64_t u = 0; u < users; ++u) {
    std::sort(best[u].items, best[u].items + best[u].size);
    for (int64_t i = 0; i < q.k; ++i) {
      const bool found = i < best[u].size;
      scores_out[(first_user + u) * q.k + i] = found ? best[u].items[i].score : NONE;
      items_out[(first_user + u) * q.k + i] = found ? best[u].items[i].index : 0;
    }
  }
}

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

// As in serving_native.py, like Model.
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

// Returns 0, or 1 if an excluded item is none of the catalogue: then nothing was written.
int serving_top_k(const float* outputs, const float* panels, const float* bias,
                  const int64_t* excluded, const uint8_t* unavailable, int64_t users,
                  int64_t width, int64_t items, int64_t k, int64_t excluded_width, float* scores_out,
                  int64_t* items_out, int threads) {
  uint64_t most = 0;
  for (int64_t i = 0; i < users * excluded_width; ++i)
    most = std::max(most, uint64_t(excluded[i]));
  if (most >= uint64_t(items)) return 1;
  const Query query{outputs, panels, bias, excluded, unavailable, users,
                    width,   items,  k,    excluded_width};
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
