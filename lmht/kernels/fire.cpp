// The fused LM-HT operator on the CPU: one read and one write forward, two reads and one write backward, whatever T.
//
// compiled.py defines STEPS, SCALAR (the dtype of x, out and their gradients) and WIDE (computed in) above this text. A thread
// takes a vector of neurons through all T steps at once. Products and sums stay separate (the compiler is told not to contract
// them) and the division is IEEE's, so that a tie falls as in the reference. A row is one time-step of x [T, M], its elements
// adjacent.

#include <ATen/cpu/vec/vec.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace {

constexpr int PARTS = sizeof(WIDE) / sizeof(SCALAR);
using Narrow = at::vec::VectorizedN<SCALAR, 1>;
using Wide = at::vec::VectorizedN<WIDE, PARTS>;  // as many neurons

constexpr int T = STEPS, WIDTH = Narrow::size(), SUMS = T + T * T;
constexpr int64_t CHUNK = 4096;             // neurons; their gradients for lambda and Omega are summed in WIDE, then in double
constexpr int64_t WORTH_THREADS = 1 << 15;  // elements

struct Neuron {
  const WIDE *omega, *leak, *v0;  // [T, T], or null: the current is x itself; [T]; [M] or one number
  bool potentials;                // v0 is [M]
  const WIDE* constants;          // theta, L, and the two ends of the surrogate's window (Eq. 8)
};

// n elements, then zeros
Wide load(const SCALAR* row, int n) {
  return at::vec::convert<WIDE, PARTS, SCALAR, 1>(n < WIDTH ? Narrow::loadu(row, n) : Narrow::loadu(row));
}

void store(const Wide& value, SCALAR* row, int n) {
  const Narrow narrow = at::vec::convert<SCALAR, 1, WIDE, PARTS>(value);
  if (n < WIDTH)
    narrow.store(row, n);
  else
    narrow.store(row);
}

double total(const Wide& value) {
  WIDE lanes[WIDTH];
  value.store(lanes);
  return std::accumulate(lanes, lanes + WIDTH, 0.0);
}

// Of n neurons from the first on. before: v(t-1), after the soft reset; m: v(t-1) * lambda + I(t); out: s(t) * theta.
void integrate_and_fire(const Neuron& neuron, int64_t first, int n, const Wide (&x)[T], Wide (&before)[T], Wide (&m)[T],
                        Wide (&out)[T]) {
  const Wide theta(neuron.constants[0]), levels(neuron.constants[1]), zero(0);
  Wide v(*neuron.v0);
  if (neuron.potentials) v = Wide::loadu(neuron.v0 + first, n);
  for (int t = 0; t < T; ++t) {
    before[t] = v;
    Wide potential = Wide(neuron.leak[t]) * v;
    if (neuron.omega)
      for (int j = 0; j < T; ++j) potential = potential + Wide(neuron.omega[t * T + j]) * x[j];
    else
      potential = potential + x[t];
    m[t] = potential;
    out[t] = minimum(maximum((potential / theta).floor(), zero), levels) * theta;  // both pass NaN on
    v = potential - out[t];
  }
}

int threads_for(int64_t size, int threads) { return size * T < WORTH_THREADS ? 1 : threads; }

}  // namespace

extern "C" void forward(const SCALAR* x, int64_t stride, int64_t size, const WIDE* omega, const WIDE* leak, const WIDE* v0,
                        bool potentials, const WIDE* constants, int threads, SCALAR* out) {
  const Neuron neuron{omega, leak, v0, potentials, constants};
#pragma omp parallel for num_threads(threads_for(size, threads)) schedule(static)
  for (int64_t start = 0; start < size; start += CHUNK)
    for (int64_t first = start; first < std::min(start + CHUNK, size); first += WIDTH) {
      const int n = std::min<int64_t>(WIDTH, size - first);
      Wide xs[T], before[T], m[T], outs[T];
      for (int t = 0; t < T; ++t) xs[t] = load(x + t * stride + first, n);
      integrate_and_fire(neuron, first, n, xs, before, m, outs);
      for (int t = 0; t < T; ++t) store(outs[t], out + t * size + first, n);
    }
}

// dx and, unless they are null, dleak [T] and domega [T, T] (without Omega: zeros). These are summed within a chunk, then over the
// chunks in order, so the number of threads does not show.
extern "C" void backward(const SCALAR* grad, int64_t grad_stride, const SCALAR* x, int64_t stride, int64_t size, const WIDE* omega,
                         const WIDE* leak, const WIDE* v0, bool potentials, const WIDE* constants, int threads, bool chain,
                         SCALAR* dx, WIDE* dleak, WIDE* domega) {
  const Neuron neuron{omega, leak, v0, potentials, constants};
  const Wide low(constants[2]), high(constants[3]), one(1);
  const int64_t chunks = (size + CHUNK - 1) / CHUNK;
  std::vector<double> partial(dleak ? chunks * SUMS : 0);
#pragma omp parallel for num_threads(threads_for(size, threads)) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    Wide sums[SUMS];  // T for lambda, then T x T for Omega
    std::fill_n(sums, SUMS, Wide(0));
    for (int64_t first = chunk * CHUNK; first < std::min((chunk + 1) * CHUNK, size); first += WIDTH) {
      const int n = std::min<int64_t>(WIDTH, size - first);
      Wide xs[T], before[T], m[T], outs[T], dm[T];
      for (int t = 0; t < T; ++t) xs[t] = load(x + t * stride + first, n);
      integrate_and_fire(neuron, first, n, xs, before, m, outs);
      for (int t = T - 1; t >= 0; --t) {
        const Wide window = m[t].ge(low) * m[t].le(high);
        dm[t] = load(grad + t * grad_stride + first, n) * window;
        if (chain && t + 1 < T)  // v(t) = m(t) - s(t) * theta passes on (1 - window) of its gradient
          dm[t] = dm[t] + Wide(leak[t + 1]) * dm[t + 1] * (one - window);
      }
      for (int j = 0; j < T; ++j) {
        Wide value = dm[j];
        if (omega) {
          value = Wide(omega[j]) * dm[0];
          for (int t = 1; t < T; ++t) value = value + Wide(omega[t * T + j]) * dm[t];
        }
        store(value, dx + j * size + first, n);
      }
      if (!dleak) continue;
      for (int t = 0; t < T; ++t) {
        sums[t] = sums[t] + dm[t] * before[t];
        if (omega)
          for (int j = 0; j < T; ++j) sums[T + t * T + j] = sums[T + t * T + j] + dm[t] * xs[j];
      }
    }
    if (!dleak) continue;
    for (int k = 0; k < SUMS; ++k) partial[chunk * SUMS + k] = total(sums[k]);
  }
  if (!dleak) return;
  for (int k = 0; k < SUMS; ++k) {
    double sum = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * SUMS + k];
    (k < T ? dleak[k] : domega[k - T]) = sum;
  }
}
