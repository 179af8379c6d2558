// What the kernels share: vectors of elements in the dtype that is computed in, and chunks whose sums are added in order.
//
// compiled.py defines SCALAR (the dtype of x, out and their gradients), WIDE (computed in) and REGISTERS (of elements that are taken
// at once) above this text, and puts the kernel below it. Products and sums stay separate (the compiler is told not to contract them) and the division is IEEE's, so that a tie
// falls as in the reference.

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

template <typename Count>
INLINE inline Wide load(const SCALAR* row, Count n) {  // zeros from n on (VectorizedN's own loadu leaves ones in whole registers)
  if constexpr (!std::is_same_v<Count, int>) return at::vec::convert<WIDE, PARTS, SCALAR, REGISTERS>(Narrow::loadu(row));
  constexpr int size = at::vec::Vectorized<SCALAR>::size();
  Narrow narrow(0);
  for (int i = 0; i * size < n; ++i)
    narrow[i] = at::vec::Vectorized<SCALAR>::loadu(row + i * size, std::min(size, n - i * size));
  return at::vec::convert<WIDE, PARTS, SCALAR, REGISTERS>(narrow);
}

template <typename Count>
INLINE inline void store(const Wide& value, SCALAR* row, Count n) {
  const Narrow narrow = at::vec::convert<SCALAR, REGISTERS, WIDE, PARTS>(value);
  n < WIDTH ? narrow.store(row, n) : narrow.store(row);
}

INLINE inline void add_product(const Wide& a, const Wide& b, Part& sum) {
  for (int i = 0; i < PARTS; ++i) sum = fmadd(a[i], b[i], sum);
}

double total(const Part& sum) {
  WIDE lanes[Part::size()];
  sum.store(lanes);
  return std::accumulate(lanes, lanes + Part::size(), 0.0);
}

}  // namespace
