// The k best items of each user, exactly: every score, a chunk of items at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "panels.h"

namespace {

constexpr int64_t CHUNK = 2048;  // items scored before any is looked at; a multiple of PANEL
constexpr int64_t SHARED = 512;  // users that go through the catalogue together, at most
constexpr int64_t STRIDE = CHUNK + LANES;  // of a user's scores: room to strike what lies elsewhere
constexpr float NONE = -std::numeric_limits<float>::infinity();

// Both as in native_top_k.py. Either panels or rows hold the weights; with rows comes what a
// first pass over bytes needs, see bytes.h.
struct Widest {
  float scale, rest, norm, bias;
};

struct Catalogue {
  const float *panels, *rows, *bias;
  const uint8_t* bytes;
  const float *scale, *above, *rest, *norm;
  int64_t items, width;
  float most_weight, most_bias;
  Widest widest;
};

struct Query {
  const Catalogue& items;
  const float* outputs;        // (users, width)
  const int64_t* excluded;     // (users, excluded_width)
  const uint8_t* unavailable;  // (items,) or null
  int64_t users, k, excluded_width;
};

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
  // Strikes out the highest until k are gone: no branch depends on the scores, unlike in a sort.
  for (int64_t found = 0;;) {
    Vector high = most[0];
    for (int v = 1; v < VECTORS; ++v) high = most[v] > high ? most[v] : high;
    float highest = high[0];
    for (int i = 1; i < LANES; ++i) highest = std::max(highest, high[i]);
    Mask struck{};
    for (int v = 0; v < VECTORS; ++v) {
      const Mask is_it = most[v] == highest;
      struck += is_it;
      most[v] = is_it ? all(NONE) : most[v];
    }
    for (int i = 0; i < LANES; ++i) found -= struck[i];
    if (found >= k || highest == NONE) return highest;
  }
}

// Copies what scores of a chunk start from, in whole panels: NONE for what no user may get.
void copy_starts(const Query& q, const float* starts, int64_t first, int64_t width, float* to) {
  std::copy_n(starts + first, width, to);
  std::fill(to + width, to + up_to_panels(width), NONE);
  if (first == 0) to[0] = NONE;  // the pad token
  if (q.unavailable)
    for (int64_t i = 0; i < width; ++i) to[i] = q.unavailable[first + i] ? NONE : to[i];
}

// Strikes a user's excluded items out of the scores of a chunk.
void strike(const Query& q, int64_t user, int64_t first, float* scores) {
  for (int64_t i = 0; i < q.excluded_width; ++i) {
    const uint64_t at = q.excluded[user * q.excluded_width + i] - first;
    scores[std::min<uint64_t>(at, CHUNK)] = NONE;
  }
}

// Calls visit(i) where scores[i] is above the bar, which visit may raise; that is seldom.
template <class Visit>
void visit_above(const float* scores, int64_t padded, const float& bar, Visit visit) {
  Vector level = all(bar);
  for (int64_t i = 0; i < padded; i += PANEL) {
    uint32_t any = 0;
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) any |= greater(load(scores + i + v * LANES), level);
    if (__builtin_expect(any == 0, 1)) continue;
    for (int64_t j = i; j < i + PANEL; j += LANES) {
      uint32_t above = greater(load(scores + j), all(bar));
      for (; above; above &= above - 1) {
        const int64_t at = j + __builtin_ctz(above);
        if (scores[at] > bar) visit(at);
      }
    }
    level = all(bar);
  }
}

// Makes panels of so many rows.
void panels_of_rows(const float* rows, int64_t count, int64_t width, float* panels) {
  for (int64_t first = 0; first < count; first += PANEL, panels += PANEL * width) {
    const int64_t size = std::min<int64_t>(PANEL, count - first);
    const float* from = rows + first * width;
    if (size < PANEL) std::fill_n(panels, PANEL * width, 0.0f);
    int64_t r = 0;
    for (; r + 8 <= size; r += 8)
      for (int64_t c = 0; c < width; ++c)
#pragma GCC unroll 8
        for (int64_t i = 0; i < 8; ++i) panels[c * PANEL + r + i] = from[(r + i) * width + c];
    for (; r < size; ++r)
      for (int64_t c = 0; c < width; ++c) panels[c * PANEL + r] = from[r * width + c];
  }
}

void put_out(Item* items, int64_t size, int64_t k, float* scores_out, int64_t* items_out) {
  std::sort(items, items + size);
  for (int64_t i = 0; i < k; ++i) {
    scores_out[i] = i < size ? items[i].score : NONE;
    items_out[i] = i < size ? items[i].index : 0;
  }
}

void top_k_by_floats(const Query& q, int64_t first_user, int64_t users, float* scores_out,
                     int64_t* items_out) {
  const int64_t d = q.items.width, room = std::max(2 * q.k, q.k + 64);
  std::vector<Item> kept(users * room);
  std::vector<Best> best(users);
  for (int64_t u = 0; u < users; ++u) best[u] = {kept.data() + u * room, 0, q.k, room, NONE};
  std::vector<float> scores(ROWS * STRIDE), made(q.items.panels ? 0 : CHUNK * d);
  float bias[CHUNK];
  for (int64_t first = 0; first < q.items.items; first += CHUNK) {
    const int64_t width = std::min(CHUNK, q.items.items - first), padded = up_to_panels(width);
    copy_starts(q, q.items.bias, first, width, bias);
    const float* panels = q.items.panels + first * d;
    if (!q.items.panels) {
      panels_of_rows(q.items.rows + first * d, width, d, made.data());
      panels = made.data();
    }
    in_groups(users, [&](int64_t group, int64_t rows) {
      for (int64_t i = 0; i < padded; i += PANEL)
        product(rows, q.outputs + (first_user + group) * d, d, panels + i * d, bias + i, d,
                scores.data() + i, STRIDE);
      for (int64_t r = 0; r < rows; ++r) {
        float* score = scores.data() + r * STRIDE;
        strike(q, first_user + group + r, first, score);
        Best& own = best[group + r];
        if (first == 0) own.bar = std::nextafter(score_of_k(score, padded, q.k), NONE);
        visit_above(score, padded, own.bar,
                    [&](int64_t at) { own.add(score[at], int32_t(first + at)); });
        own.keep_k();
      }
    });
  }
  for (int64_t u = 0; u < users; ++u)
    put_out(best[u].items, best[u].size, q.k, scores_out + (first_user + u) * q.k,
            items_out + (first_user + u) * q.k);
}

}  // namespace
