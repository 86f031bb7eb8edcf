// The k best items of each user, exactly, by a first pass over a quarter of the memory.
//
// Weights and outputs are rounded to bytes; processors multiply and add bytes four times as fast as
// floats. The pass gives bounds between which the float32 score of each item lies; items that may
// be among the k best by them are scored as top_k.h scores them, to the same bits.
//
// The bound. For one user and one item, let u and w be the float32 vectors, of d <= MAX_DEPTH
// numbers, b the bias, s the score: a chain of d multiply-adds in float32 that starts from b.
// u' = p a and w' = q c are the rounded ones, a and c whole numbers of at most 127, p and q their
// scales. All norms are Euclidean: by Cauchy and Schwarz |x y| <= |x| |y|. With e = 2^-24:
//
//   u w - u' w' = u (w - w') + (u - u') w'   is at most   |u| |w - w'| + |u - u'| |w'|,
//   s - (b + u w)    is at most   (d + 2) e (|b| + |u| |w|)   where nothing underflows,
//
// the second because no term of the sum is rounded more than d + 1 times (d where multiplication
// and addition are fused), each time by a factor of at most 1 + e, and (1 + e)^(d+1) - 1 <=
// (d + 2) e for such d; |u_1 w_1| + |u_2 w_2| + ... <= |u| |w|. A result that underflows adds at
// most 2^-126, even if it is flushed to zero. A number of u or w that small may be read as zero:
// the norms of u - u' and w - w' are taken sqrt(d) 2^-126 too large for that. Measured in q, let
// r be at least |w - w'| / q and n at least |w'| / q, for a whole panel of items; so |w| <= q (n +
// r), and u' w' = q p (a c) with |p (a c)| <= |u'| n <= (|u| + |u - u'|) n. The pass computes
//
//   t = p (a c) + E,   U = q t + B   in float32, where, with G = (d + 16) e,
//   E >= |u| (1 + G) r + (|u - u'| + G (|u| + |u - u'|)) n + 2^-120,   B >= b + G |b| + 2^-110.
//
// a c is exact: below 2^24. Four roundings at most (two where multiplication and addition are
// fused) change U by at most 4 e (1 + e) (q (|u'| n + E) + |B|), and underflows by 2^-126 (q + 1):
// less than what G has above (d + 2) e, and 2^-120 and 2^-110. So s <= U, the bound from above.
// From below, with D = q E + (B - b): U <= b + u' w' + D + (those roundings), and D holds both what
// s may differ from b + u' w' and those roundings, so that s >= U - 2 D. It is computed in double
// precision and rounded to float32, e (|U| + 2 D) more, for which G has enough left.
#pragma once

#include "top_k.h"

namespace {

constexpr int64_t MAX_DEPTH = 1024;
constexpr float TOO_LARGE = 1e36f;  // scores from here on are left to floats: none may overflow
constexpr float LARGE_OUTPUT = 1e30f;  // so are users from here on: |p (a c)| <= 2^13 |u|
constexpr float LEAST = std::numeric_limits<float>::min();  // 2^-126: below, numbers may be zero
constexpr double UP = 1 + 0x1p-20;  // more than what rounding a bound itself may lose

int64_t up_to_fours(int64_t depth) { return (depth + 3) / 4 * 4; }
double slack(int64_t depth) { return (depth + 16) * 0x1p-24; }  // G

// Rounds a vector to scale * q, q whole numbers up to 127; returns the scale, and the norms of
// what is left (or would be, were tiny numbers zero) and of the rounded vector.
struct Rounded {
  float scale;
  double rest, norm;
};
Rounded round_to_bytes(const float* x, int64_t n, int8_t* q) {
  float most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = std::max(most, std::fabs(x[i]));
  const float scale = std::max(most / 127, LEAST);
  const double inverse = 1 / double(scale);
  double rest = 0, norm = 0;
#pragma omp simd reduction(+ : rest, norm)
  for (int64_t i = 0; i < n; ++i) {
    const double steps = std::nearbyint(x[i] * inverse), most_steps = steps < 127 ? steps : 127;
    const double whole = most_steps > -127 ? most_steps : -127, left = x[i] - whole * scale;
    q[i] = int8_t(whole);
    rest += left * left;
    norm += whole * whole;
  }
  return {scale, std::sqrt(rest) + std::sqrt(double(n)) * LEAST, scale * std::sqrt(norm)};
}

// sum + four products each of a byte of the items, OFFSET too large, and a signed byte of the user.
// FAST_FROM: items from which on the pass is faster than one over floats, for 1, 8 and 256 users;
// 0: never.
#if defined(__AVX512VNNI__)
constexpr int64_t FAST_FROM = 12'000;
constexpr int OFFSET = 128;  // the instruction wants one side without sign
Mask add_products(Mask sum, Mask items, Mask user) {
  return (Mask)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)items, (__m512i)user);
}
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
constexpr int64_t FAST_FROM = 24'000;
constexpr int OFFSET = 128;
Mask add_products(Mask sum, Mask items, Mask user) {
  return (Mask)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)items, (__m256i)user);
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
constexpr int64_t FAST_FROM = 50'000;
constexpr int OFFSET = 0;
Mask add_products(Mask sum, Mask items, Mask user) {
  // a b = |a| (b sgn a). Two such products are at most 2 * 127 * 127, which 16 bits hold.
  const __m256i a = (__m256i)items, twos = _mm256_maddubs_epi16(
      _mm256_abs_epi8(a), _mm256_sign_epi8((__m256i)user, a));
  return sum + (Mask)_mm256_madd_epi16(twos, _mm256_set1_epi16(1));
}
#else
constexpr int64_t FAST_FROM = 0;
constexpr int OFFSET = 0;
Mask add_products(Mask sum, Mask items, Mask user) {
  for (int shift = 0; shift < 32; shift += 8)
    sum += (items << (24 - shift) >> 24) * (user << (24 - shift) >> 24);
  return sum;
}
#endif

// Fills bytes, scale, above, rest and norm of a catalogue, and the greatest weight and bias.
// Returns false where the pass cannot be used.
bool make_bytes(Catalogue& by, uint8_t* bytes, float* scale, float* above, float* rest,
                float* norm) {
  const int64_t d = by.width, deep = up_to_fours(d);
  if (d > MAX_DEPTH) return false;
  std::vector<int8_t> q(deep);
  double most_weight = 0, most_bias = 0;
  Widest widest{};
  for (int64_t i = 0; i < up_to_panels(by.items); ++i) {
    const int64_t panel = i / PANEL, lane = i % PANEL;
    uint8_t* to = bytes + panel * PANEL * deep + 4 * lane;
    if (lane == 0) rest[panel] = norm[panel] = 0;
    scale[i] = 0, above[i] = NONE;
    std::fill(q.begin(), q.end(), int8_t(0));
    if (i < by.items) {
      const Rounded w = round_to_bytes(by.rows + i * d, d, q.data());
      const double b = by.bias[i], size = std::fabs(b);
      scale[i] = w.scale;
      rest[panel] = std::max(rest[panel], float(w.rest / w.scale * UP));
      norm[panel] = std::max(norm[panel], float(w.norm / w.scale * UP));
      const double weight = w.rest + w.norm;
      if (!(weight < TOO_LARGE)) return false;  // NaNs, too
      most_weight = std::max(most_weight, weight);
      if (b != NONE) {
        if (!(size < TOO_LARGE)) return false;
        most_bias = std::max(most_bias, size);
        above[i] = std::nextafter(float(b + slack(d) * size + 0x1p-110), -NONE);
        if (i < CHUNK) {
          widest.scale = std::max(widest.scale, scale[i]);
          widest.bias = std::max(widest.bias, float((above[i] - b) * UP));
        }
      }
    }
    for (int64_t c = 0; c < deep; ++c) to[c / 4 * 4 * PANEL + c % 4] = uint8_t(q[c] + OFFSET);
  }
  const int64_t seen = std::min(up_to_panels(by.items), CHUNK) / PANEL;
  widest.rest = *std::max_element(rest, rest + seen);
  widest.norm = *std::max_element(norm, norm + seen);
  by.widest = widest;
  by.most_weight = float(most_weight * UP), by.most_bias = float(most_bias);
  return true;
}

// What the bounds of a user's scores are made of.
struct Spread {
  float scale;             // p
  float by_rest, by_norm;  // E = by_rest * r + by_norm * n + 2^-120
  int32_t start;           // takes back the OFFSET that each byte of an item has too much
  bool fits;               // no score can overflow

  float at(const Catalogue& by, int64_t panel) const {  // E
    return by_rest * by.rest[panel] + (by_norm * by.norm[panel] + 0x1p-120f);
  }
};

Spread spread_of(const Catalogue& by, const float* u, int8_t* q) {
  const int64_t d = by.width;
  std::fill(q + d, q + up_to_fours(d), int8_t(0));
  double squares = 0;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < d; ++i) squares += double(u[i]) * u[i];
  const double size = std::sqrt(squares), g = slack(d);
  if (!(size < LARGE_OUTPUT && 8 * size * by.most_weight + by.most_bias < TOO_LARGE)) return {};
  const Rounded to = round_to_bytes(u, d, q);
  int32_t sum = 0;
  for (int64_t i = 0; i < d; ++i) sum += q[i];
  return {to.scale, float(size * (1 + g) * UP), float((to.rest + g * (size + to.rest)) * UP),
          -OFFSET * sum, true};
}

// y[r] = U of a panel's items, for R users.
template <int R>
void bounds_of_rows(const Spread* users, const int8_t* q, const Catalogue& by, int64_t first,
                    const float* above, float* y) {
  const int64_t deep = up_to_fours(by.width);
  const uint8_t* panel = by.bytes + first * deep;
  Mask sum[R][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) sum[r][v] = Mask{} + users[r].start;
  for (int64_t i = 0; i < deep / 4; ++i) {
    Mask w[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      __builtin_prefetch(panel + 4 * ((i + AHEAD) * PANEL + v * LANES));
      std::memcpy(&w[v], panel + 4 * (i * PANEL + v * LANES), sizeof w[v]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      int32_t four;
      std::memcpy(&four, q + r * deep + 4 * i, 4);
      const Mask a = Mask{} + four;
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sum[r][v] = add_products(sum[r][v], w[v], a);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Vector spread = all(users[r].at(by, first / PANEL));
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      const Vector t = all(users[r].scale) * __builtin_convertvector(sum[r][v], Vector) + spread;
      store(y + r * STRIDE + v * LANES, load(by.scale + first + v * LANES) * t +
                                            load(above + v * LANES));
    }
  }
}

// As above, for 1 to ROWS users.
void bounds(int64_t rows, const Spread* users, const int8_t* q, const Catalogue& by,
            int64_t first, const float* above, float* y) {
  switch (rows) {
#define CASE(R) \
  case R: return bounds_of_rows<R>(users, q, by, first, above, y);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#undef CASE
  }
}

// U - 2 D of an item.
float bound_below(const Spread& user, const Catalogue& by, int64_t item, float upper) {
  const double e = user.at(by, item / PANEL), b = by.bias[item];
  return float(upper - 2 * (by.scale[item] * e + (by.above[item] - b)));
}

// As much as D of any item of the first chunk, for one user.
double widest_of(const Spread& user, const Widest& by) {
  return by.scale * (double(user.by_rest) * by.rest + double(user.by_norm) * by.norm + 0x1p-120) *
             UP + by.bias;
}

// What may be among the k best of one user. None of those has a score below the k-th best bound
// from below, so the bar, just below that one, never rises above any.
struct Candidates {
  struct Bounded {
    float upper, lower;
    int32_t index;
  };
  std::vector<Bounded> found;
  int64_t k, most;  // more than `most` candidates: scoring all items is faster
  float bar = NONE;
  size_t room;  // so many candidates before the bar is raised again
  bool given_up = false;

  // Not inline: the loop around it, over scores that are below the bar, has registers to lose.
  __attribute__((noinline)) void add(float upper, float lower, int32_t index) {
    if (found.size() >= room) keep_above();
    found.push_back({upper, lower, index});
  }
  void raise(float reached) { bar = std::max(bar, std::nextafter(reached, NONE)); }
  void keep_above() {
    if (int64_t(found.size()) >= k && !given_up) {
      std::vector<float> lowers(found.size());
      for (size_t i = 0; i < found.size(); ++i) lowers[i] = found[i].lower;
      std::nth_element(lowers.begin(), lowers.begin() + k - 1, lowers.end(), std::greater<>());
      raise(lowers[k - 1]);
      const auto is_out = [&](const Bounded& item) { return !(item.upper > bar); };
      found.erase(std::remove_if(found.begin(), found.end(), is_out), found.end());
    }
    if (int64_t(found.size()) > most) give_up();
    room = 2 * found.size() + 8;
  }
  void give_up() {
    given_up = true;
    bar = -NONE;
    found.clear();
  }
};

// A bound that at least k of the first chunk's reach.
float reached_by_k(const float* uppers, int64_t padded, int64_t k) {
  if (2 * k <= PANEL || k > padded) return score_of_k(uppers, padded, k);
  std::vector<float> sorted(uppers, uppers + padded);
  std::nth_element(sorted.begin(), sorted.begin() + k - 1, sorted.end(), std::greater<>());
  return sorted[k - 1];
}

// Scores items of one user as top_k_by_floats does.
void score_again(const Query& q, const float* output, const Candidates& from, float* panel,
                 std::vector<Item>& to) {
  const int64_t d = q.items.width, size = from.found.size();
  for (const auto& item : from.found)
    for (int64_t c = 0; c < d; c += 16) __builtin_prefetch(q.items.rows + item.index * d + c);
  float bias[PANEL] = {}, scores[PANEL];
  to.clear();
  for (int64_t first = 0; first < size; first += PANEL) {
    const int64_t count = std::min<int64_t>(PANEL, size - first);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t item = from.found[first + i].index;
      const float* row = q.items.rows + item * d;
      for (int64_t c = 0; c < d; ++c) panel[c * PANEL + i] = row[c];
      bias[i] = q.items.bias[item];
    }
    product(1, output, d, panel, bias, d, scores, PANEL);
    for (int64_t i = 0; i < count; ++i) to.push_back({scores[i], from.found[first + i].index});
  }
}

// Where bounds leave too many candidates, floats do it for those users together.
void top_k_of_given_up(const Query& q, const std::vector<int64_t>& users, float* scores_out,
                       int64_t* items_out) {
  const int64_t count = users.size(), d = q.items.width;
  std::vector<float> outputs(count * d), scores(count * q.k);
  std::vector<int64_t> excluded(count * q.excluded_width), items(count * q.k);
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(q.outputs + users[i] * d, d, outputs.data() + i * d);
    std::copy_n(q.excluded + users[i] * q.excluded_width, q.excluded_width,
                excluded.data() + i * q.excluded_width);
  }
  const Query own{q.items, outputs.data(), excluded.data(), q.unavailable,
                  count,   q.k,            q.excluded_width};
  top_k_by_floats(own, 0, count, scores.data(), items.data());
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(scores.data() + i * q.k, q.k, scores_out + users[i] * q.k);
    std::copy_n(items.data() + i * q.k, q.k, items_out + users[i] * q.k);
  }
}

void top_k_by_bytes(const Query& q, int64_t first_user, int64_t users, float* scores_out,
                    int64_t* items_out) {
  const Catalogue& by = q.items;
  const int64_t d = by.width, deep = up_to_fours(d), most = by.items / 256 + 8 * q.k + 256;
  std::vector<int8_t> bytes(users * deep);
  std::vector<Spread> spreads(users);
  std::vector<Candidates> candidates(users);
  for (int64_t u = 0; u < users; ++u) {
    spreads[u] = spread_of(by, q.outputs + (first_user + u) * d, bytes.data() + u * deep);
    candidates[u].k = q.k, candidates[u].most = most, candidates[u].room = 4 * q.k + 16;
    candidates[u].found.reserve(candidates[u].room);
    if (!spreads[u].fits) candidates[u].give_up();
  }
  std::vector<float> uppers(std::min<int64_t>(users, ROWS) * STRIDE), panel(PANEL * d);
  float above[CHUNK];
  int64_t given_up = 0;
  for (int64_t first = 0; first < by.items && given_up < users; first += CHUNK) {
    const int64_t width = std::min(CHUNK, by.items - first), padded = up_to_panels(width);
    copy_starts(q, by.above, first, width, above);
    in_groups(users, [&](int64_t group, int64_t rows) {
      const auto* own = &candidates[group];
      if (std::all_of(own, own + rows, [](const Candidates& of) { return of.given_up; })) return;
      for (int64_t i = 0; i < padded; i += PANEL)
        bounds(rows, &spreads[group], bytes.data() + group * deep, by, first + i, above + i,
               uppers.data() + i);
      for (int64_t r = 0; r < rows; ++r) {
        float* upper = uppers.data() + r * STRIDE;
        Candidates& own = candidates[group + r];
        const Spread& spread = spreads[group + r];
        strike(q, first_user + group + r, first, upper);
        if (first == 0)
          own.raise(float(reached_by_k(upper, padded, q.k) - 2 * widest_of(spread, by.widest)));
        visit_above(upper, padded, own.bar, [&](int64_t at) {
          own.add(upper[at], bound_below(spread, by, first + at, upper[at]), int32_t(first + at));
        });
      }
    });
    given_up = 0;
    for (const Candidates& own : candidates) given_up += own.given_up;
  }
  std::vector<int64_t> rest;
  std::vector<Item> best;
  for (int64_t u = 0; u < users; ++u) {
    const int64_t user = first_user + u;
    candidates[u].keep_above();
    if (candidates[u].given_up) {
      rest.push_back(user);
      continue;
    }
    score_again(q, q.outputs + user * d, candidates[u], panel.data(), best);
    put_out(best.data(), best.size(), q.k, scores_out + user * q.k, items_out + user * q.k);
  }
  if (!rest.empty()) top_k_of_given_up(q, rest, scores_out, items_out);
}

void top_k_of_users(const Query& q, int64_t first_user, int64_t users, float* scores_out,
                    int64_t* items_out) {
  const auto by = q.items.bytes ? top_k_by_bytes : top_k_by_floats;
  by(q, first_user, users, scores_out, items_out);
}

}  // namespace
