// What the kernels share: vectors of elements in the dtype that is computed in, and chunks whose sums are added in order.
//
// compiled.py defines SCALAR (the dtype of x, out and their gradients), WIDE (computed in) and REGISTERS (of elements that are taken
// at once) above this text, and puts the kernel below it. Products and sums stay separate (the compiler is told not to contract them)
// and the division is IEEE's, so that a tie falls as in the reference.

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <type_traits>
#include <vector>

#define INLINE __attribute__((always_inline))

namespace {

constexpr int PARTS = REGISTERS * sizeof(WIDE) / sizeof(SCALAR);
using Narrow = at::vec::VectorizedN<SCALAR, REGISTERS>;
using Wide = at::vec::VectorizedN<WIDE, PARTS>;  // as many elements
using Part = at::vec::Vectorized<WIDE>;

constexpr int WIDTH = Narrow::size();
constexpr int64_t CHUNK = 4096;             // elements whose sums are taken in WIDE; sums of chunks in double
constexpr int64_t WORTH_THREADS = 1 << 15;  // elements

int threads_for(int64_t elements, int threads) { return elements < WORTH_THREADS ? 1 : threads; }

// Calls f(first, n) for vectors of n elements from start to end; n is a constant but for the last, shorter one.
template <typename F>
INLINE inline void vectors(int64_t start, int64_t end, F f) {
  for (; start + WIDTH <= end; start += WIDTH) f(start, std::integral_constant<int, WIDTH>());
  if (start < end) f(start, int(end - start));
}

// Zeros from n on. (VectorizedN's own loadu, given n, leaves whole registers as they are there: ones, or in torch 2.6 whatever they
// held; and in torch 2.6 on AVX2 a register of halves likewise.)
template <int N, typename T, typename Count>
INLINE inline at::vec::VectorizedN<T, N> registers(const T* row, Count n) {
  using Registers = at::vec::VectorizedN<T, N>;
  if constexpr (!std::is_same_v<Count, int>) return Registers::loadu(row);
  T lanes[Registers::size()] = {};
  std::copy_n(row, int(n), lanes);
  return Registers::loadu(lanes);
}

template <typename Count>
INLINE inline Wide load(const SCALAR* row, Count n) {
  return at::vec::convert<WIDE, PARTS, SCALAR, REGISTERS>(registers<REGISTERS>(row, n));
}

template <typename Count>
INLINE inline void store(const Wide& value, SCALAR* row, Count n) {
  const Narrow narrow = at::vec::convert<SCALAR, REGISTERS, WIDE, PARTS>(value);
  n < WIDTH ? narrow.store(row, n) : narrow.store(row);
}

INLINE inline void add_product(const Wide& a, const Wide& b, Part& sum) {
  for (int i = 0; i < PARTS; ++i) sum = fmadd(a[i], b[i], sum);
}

// A batch normalisation before the activation, and a residual sum after it: the current is x * scale[c] + shift[c] + residual. Channels
// lie innermost, so that element i has channel i mod C; each row holds the C values again and again, up to a multiple of WIDTH.
struct Channels {
  const WIDE* rows;  // scale, shift, mean, one after the other; null: the current is x itself
  int64_t period;    // of a row
  const SCALAR* residual;  // laid out as x, or null

  // Elements whose sums are taken together: whole rows, and so many that a chunk's own 2 * period sums don't weigh.
  int64_t chunk() const { return rows ? std::max<int64_t>(16, (CHUNK + period - 1) / period) * period : CHUNK; }

  // rounded to SCALAR where a tensor would be, after the normalisation and after the sum
  template <typename Count>
  INLINE Wide current(const Wide& x, int64_t offset, int64_t channel, Count n) const {
    if (!rows) return x;
    Wide y = narrowed(fmadd(x, Wide::loadu(rows + channel), Wide::loadu(rows + period + channel)));
    return residual ? narrowed(y + load(residual + offset, n)) : y;
  }

  static Wide narrowed(const Wide& value) {
    if constexpr (std::is_same_v<SCALAR, WIDE>) return value;
    return at::vec::convert<WIDE, PARTS, SCALAR, REGISTERS>(at::vec::convert<SCALAR, REGISTERS, WIDE, PARTS>(value));
  }

  int64_t after(int64_t channel) const { return channel + WIDTH == period ? 0 : channel + WIDTH; }

  Wide centred(const Wide& x, int64_t channel) const { return x - Wide::loadu(rows + 2 * period + channel); }

  // to the chunk's sums over all elements of a channel, rows of gradients and of gradients * (x - mean)
  INLINE void add(const Wide& gradient, const Wide& product, int64_t channel, WIDE* sums) const {
    WIDE* to = sums + channel;
    (Wide::loadu(to) + gradient).store(to);
    (Wide::loadu(to + period) + product).store(to + period);
  }

  int64_t sums() const { return rows ? 2 * period : 0; }
};

// Over the chunks, in order: parts [chunks, count] to sums [count].
void add_up(const std::vector<WIDE>& parts, int64_t count, WIDE* sums) {
  for (int64_t i = 0; i < count; ++i) {
    double sum = 0;
    for (size_t at = i; at < parts.size(); at += count) sum += parts[at];
    sums[i] = sum;
  }
}

double total(const Part& sum) {
  WIDE lanes[Part::size()];
  sum.store(lanes);
  return std::accumulate(lanes, lanes + Part::size(), 0.0);
}

}  // namespace
