// The recurrence h_t = u_t + lambda * h_{t-1} over segments, and its gradients.
//
// Complex numbers are pairs (re, im), as torch stores them. A row is one position: `channels` pairs.
// Rows lie time-major, the longest segment first: position t of segment s is at row step[t] + s.
//
// A tile is computed by one thread, in the order in which its rows lie: the wider it is, the longer
// the streams in which memory is read, while what each row needs of the one before is still in the
// second cache. So threads get tiles as wide as lets all of them work, of as many rows each. What
// is summed over segments is summed by blocks of SEGMENTS, and over these in their order: the bits do
// not depend on tiles, and so not on threads.

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace {

constexpr int64_t SEGMENTS = 4;
constexpr int64_t WIDEST = 128;  // segments of a tile, whose states take 128 KB in single precision
constexpr int64_t CHANNELS = 128;
constexpr int64_t FEW = 1 << 14;  // numbers below which a second thread costs more than it brings

struct Rows {
  const int64_t *lengths, *step;
  int64_t segments, channels;

  int64_t blocks() const { return (segments + SEGMENTS - 1) / SEGMENTS; }
  int64_t at(int64_t s, int64_t t) const { return 2 * channels * (step[t] + s); }
  int64_t count(int64_t first, int64_t last) const {
    return std::accumulate(lengths + first, lengths + last, int64_t(0));
  }
  int threads(int wished) const { return count(0, segments) * channels < FEW ? 1 : wished; }
};

struct Tile {
  int64_t first, last, longest, channel, width;
};

// Cuts the segments where each thread has its share of rows, and wherever a tile would be too wide.
std::vector<Tile> cut(const Rows& rows, int threads) {
  const int64_t all = rows.count(0, rows.segments);
  std::vector<Tile> tiles;
  int64_t first = 0, taken = 0, shares = 1;
  for (int64_t last = 0; last < rows.segments;) {
    const int64_t begin = last;
    last = std::min(begin + SEGMENTS, rows.segments);
    taken += rows.count(begin, last);
    if (taken * threads < all * shares && last - first < WIDEST) continue;
    for (int64_t c = 0; c < rows.channels; c += CHANNELS)
      tiles.push_back({first, last, rows.lengths[first], c, std::min(CHANNELS, rows.channels - c)});
    first = last;
    shares = taken * threads / all + 1;
  }
  return tiles;
}

// Calls visit(s, t) for every position of a tile.
template <class Visit>
void forwards(const Rows& rows, const Tile& tile, Visit visit) {
  for (int64_t t = 0; t < tile.longest; ++t)
    for (int64_t s = tile.first; s < tile.last && t < rows.lengths[s]; ++s) visit(s, t);
}

template <class Visit>
void backwards(const Rows& rows, const Tile& tile, Visit visit) {
  for (int64_t t = tile.longest; t-- > 0;)
    for (int64_t s = tile.first; s < tile.last && t < rows.lengths[s]; ++s) visit(s, t);
}

// h = u + lambda * before
template <class T>
void advance(const T* u, const T* lam, const T* before, T* h, int64_t width) {
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const T re = before[2 * c], im = before[2 * c + 1], a = lam[2 * c], b = lam[2 * c + 1];
    h[2 * c] = u[2 * c] + a * re - b * im;
    h[2 * c + 1] = u[2 * c + 1] + a * im + b * re;
  }
}

// d = grad + conj(lambda) * after, and d_lam += d * conj(before)
template <class T>
void retreat(const T* grad, const T* lam, const T* after, const T* before, T* d, T* d_lam,
             int64_t width) {
#pragma omp simd
  for (int64_t c = 0; c < width; ++c) {
    const T a = lam[2 * c], b = lam[2 * c + 1];
    const T re = grad[2 * c] + a * after[2 * c] + b * after[2 * c + 1];
    const T im = grad[2 * c + 1] + a * after[2 * c + 1] - b * after[2 * c];
    d[2 * c] = re;
    d[2 * c + 1] = im;
    d_lam[2 * c] += re * before[2 * c] + im * before[2 * c + 1];
    d_lam[2 * c + 1] += im * before[2 * c] - re * before[2 * c + 1];
  }
}

template <class T>
void forward(const T* u, const T* lam, const T* h0, T* h, const Rows& rows, int threads) {
  threads = rows.threads(threads);
  const std::vector<Tile> tiles = cut(rows, threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (size_t number = 0; number < tiles.size(); ++number) {
    const Tile& tile = tiles[number];
    const int64_t c = 2 * tile.channel;
    forwards(rows, tile, [&](int64_t s, int64_t t) {
      const T* before = t ? h + rows.at(s, t - 1) : h0 + 2 * rows.channels * s;
      const int64_t row = rows.at(s, t) + c;
      advance(u + row, lam + c, before + c, h + row, tile.width);
    });
  }
}

// `sums` has room for blocks() rows: what each block of segments adds to lambda's gradient.
template <class T>
void backward(const T* grad, const T* lam, const T* h0, const T* h, T* d, T* sums, T* d_lam,
              const Rows& rows, int threads) {
  std::fill_n(sums, 2 * rows.channels * rows.blocks(), T(0));
  threads = rows.threads(threads);
  const std::vector<Tile> tiles = cut(rows, threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (size_t number = 0; number < tiles.size(); ++number) {
    const Tile& tile = tiles[number];
    const int64_t c = 2 * tile.channel;
    const T nothing[2 * CHANNELS] = {};
    backwards(rows, tile, [&](int64_t s, int64_t t) {
      const T* after = t + 1 < rows.lengths[s] ? d + rows.at(s, t + 1) + c : nothing;
      const T* before = t ? h + rows.at(s, t - 1) : h0 + 2 * rows.channels * s;
      const int64_t row = rows.at(s, t) + c;
      T* sum = sums + 2 * rows.channels * (s / SEGMENTS) + c;
      retreat(grad + row, lam + c, after, before + c, d + row, sum, tile.width);
    });
  }
  for (int64_t c = 0; c < 2 * rows.channels; ++c) {
    double sum = 0;
    for (int64_t block = 0; block < rows.blocks(); ++block)
      sum += sums[2 * rows.channels * block + c];
    d_lam[c] = T(sum);
  }
}

}  // namespace

extern "C" {

int64_t scan_segments_of_a_block() { return SEGMENTS; }

#define EXPORT(T)                                                                                 \
  void scan_forward_##T(const T* u, const T* lam, const T* h0, T* h, const int64_t* lengths,      \
                        const int64_t* step, int64_t segments, int64_t channels, int threads) {   \
    forward(u, lam, h0, h, Rows{lengths, step, segments, channels}, threads);                     \
  }                                                                                               \
  void scan_backward_##T(const T* grad, const T* lam, const T* h0, const T* h, T* d, T* sums,     \
                         T* d_lam, const int64_t* lengths, const int64_t* step,                   \
                         int64_t segments, int64_t channels, int threads) {                       \
    backward(grad, lam, h0, h, d, sums, d_lam, Rows{lengths, step, segments, channels}, threads); \
  }

EXPORT(float)
EXPORT(double)
}
