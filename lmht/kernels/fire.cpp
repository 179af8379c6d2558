// The fused LM-HT operator on the CPU: one read and one write forward, two reads and one write backward, whatever T. With a batch
// normalisation before it (Channels) likewise, and norm.cpp ends the backward pass.
//
// STEPS is T up to 16; one kernel with STEPS = 64 takes all T from 17 to 64. A thread takes a vector of neurons through all T steps
// at once. A row is one time-step of x [T, M], its elements adjacent.

#if STEPS > 16  // rows stay in the first cache; REGISTERS > 1 hides how long a sum over T takes
#define UNROLL
#elif defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")  // keeps rows in registers
#endif

namespace {

// Called inside OpenMP's loops, which take what stands outside them by address: there the compiler would not see a constant.
constexpr int known(int steps) { return STEPS > 16 ? steps : STEPS; }

// Each thread has a copy: what it writes could otherwise, for all the compiler knows, change the parameters.
struct Neuron {
  bool mixed;       // there is an Omega, else the current is x itself
  bool potentials;  // v(0) is [M], else one number
  const WIDE* v0;
  WIDE theta, levels, low, high;  // low, high: the ends of the surrogate's window (Eq. 8)
  WIDE leak[STEPS], omega[STEPS * STEPS];

  Neuron(int T, const WIDE* omega_from, const WIDE* leak_from, const WIDE* v0_from, bool vector, const WIDE* constants)
      : mixed(omega_from), potentials(vector), v0(v0_from) {
    theta = constants[0], levels = constants[1], low = constants[2], high = constants[3];
    std::copy_n(leak_from, T, leak);
    if (mixed) std::copy_n(omega_from, T * T, omega);
  }
};

// before: v(t-1), after the soft reset; m: v(t-1) * lambda + I(t); out: s(t) * theta.
template <typename Count>
INLINE inline void integrate_and_fire(int T, const Neuron& neuron, int64_t first, Count n, const Wide (&x)[STEPS],
                                      Wide (&before)[STEPS], Wide (&m)[STEPS], Wide (&out)[STEPS]) {
  const Wide theta(neuron.theta), levels(neuron.levels), zero(0);
  Wide v(*neuron.v0);
  if (neuron.potentials) v = registers<PARTS>(neuron.v0 + first, n);
  UNROLL for (int t = 0; t < T; ++t) {
    before[t] = v;
    Wide potential = Wide(neuron.leak[t]) * v;
    if (neuron.mixed)
      UNROLL for (int j = 0; j < T; ++j) potential = potential + Wide(neuron.omega[t * T + j]) * x[j];
    else
      potential = potential + x[t];
    m[t] = potential;
    out[t] = clamp((potential / theta).floor(), zero, levels) * theta;  // NaN stays NaN
    v = potential - out[t];
  }
}

}  // namespace

extern "C" void forward(int steps, const SCALAR* x, int64_t stride, int64_t size, const WIDE* omega, const WIDE* leak,
                        const WIDE* v0, bool potentials, const WIDE* constants, int threads, const WIDE* normalization,
                        int64_t period, const SCALAR* residual, SCALAR* out) {
  const Channels channels{normalization, period, residual};
#pragma omp parallel for num_threads(threads_for(size * steps, threads)) schedule(static)
  for (int64_t start = 0; start < size; start += channels.chunk()) {
    const int T = known(steps);
    const Neuron neuron(T, omega, leak, v0, potentials, constants);
    int64_t c = 0;
    vectors(start, std::min(start + channels.chunk(), size), [&](int64_t first, auto n) INLINE {
      Wide xs[STEPS], before[STEPS], m[STEPS], outs[STEPS];
      UNROLL for (int t = 0; t < T; ++t)
        xs[t] = channels.current(load(x + t * stride + first, n), t * size + first, c, n);
      c = channels.after(c);
      integrate_and_fire(T, neuron, first, n, xs, before, m, outs);
      UNROLL for (int t = 0; t < T; ++t) store(outs[t], out + t * size + first, n);
    });
  }
}

// dx and, unless they are null, dleak [T] and domega [T, T] (without Omega: zeros). These are summed within a chunk, then over the
// chunks in order, so the number of threads does not show. With a normalisation dx is the gradient after it (and, as it is, that of
// the residual), and dchannels has its sums, and its sums with x - mean, over all elements at a place of the row.
extern "C" void backward(int steps, const SCALAR* grad, int64_t grad_stride, const SCALAR* x, int64_t stride, int64_t size,
                         const WIDE* omega, const WIDE* leak, const WIDE* v0, bool potentials, const WIDE* constants, int threads,
                         bool chain, const WIDE* normalization, int64_t period, const SCALAR* residual, SCALAR* dx, WIDE* dleak,
                         WIDE* domega, WIDE* dchannels) {
  const Channels channels{normalization, period, residual};
  const int64_t size_of_chunk = channels.chunk(), chunks = (size + size_of_chunk - 1) / size_of_chunk;
  const int all_sums = steps + steps * steps;
  std::vector<double> partial(dleak ? chunks * all_sums : 0);
  std::vector<WIDE> partial_channels(chunks * channels.sums());
#pragma omp parallel for num_threads(threads_for(size * steps, threads)) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int T = known(steps), SUMS = T + T * T;
    const Neuron neuron(T, omega, leak, v0, potentials, constants);
    const Wide low(neuron.low), high(neuron.high), one(1);
    Part sums[STEPS + STEPS * STEPS];  // T for lambda, then T x T for Omega
    std::fill_n(sums, SUMS, Part(0));
    int64_t c = 0;
    vectors(chunk * size_of_chunk, std::min((chunk + 1) * size_of_chunk, size), [&](int64_t first, auto n) INLINE {
      Wide xs[STEPS], before[STEPS], m[STEPS], outs[STEPS], dm[STEPS], all(0), products(0);
      UNROLL for (int t = 0; t < T; ++t)
        xs[t] = channels.current(load(x + t * stride + first, n), t * size + first, c, n);
      integrate_and_fire(T, neuron, first, n, xs, before, m, outs);
      UNROLL for (int t = T - 1; t >= 0; --t) {
        const Wide window = m[t].ge(low) * m[t].le(high);
        dm[t] = load(grad + t * grad_stride + first, n) * window;
        if (chain && t + 1 < T)  // v(t) = m(t) - s(t) * theta passes on (1 - window) of its gradient
          dm[t] = dm[t] + Wide(neuron.leak[t + 1]) * dm[t + 1] * (one - window);
      }
      UNROLL for (int j = 0; j < T; ++j) {
        Wide value = dm[j];
        if (neuron.mixed) {
          value = Wide(neuron.omega[j]) * dm[0];
          UNROLL for (int t = 1; t < T; ++t) value = fmadd(Wide(neuron.omega[t * T + j]), dm[t], value);
        }
        store(value, dx + j * size + first, n);
        if (channels.rows) {
          const Wide gradient = Channels::narrowed(value);
          all = all + gradient;
          products = fmadd(gradient, channels.centred(load(x + j * stride + first, n), c), products);
        }
      }
      if (channels.rows) channels.add(all, products, c, partial_channels.data() + chunk * channels.sums());
      c = channels.after(c);
      if (dleak)
        UNROLL for (int t = 0; t < T; ++t) {
          add_product(dm[t], before[t], sums[t]);
          if (neuron.mixed)
            UNROLL for (int j = 0; j < T; ++j) add_product(dm[t], xs[j], sums[T + t * T + j]);
        }
    });
    if (dleak)
      for (int k = 0; k < SUMS; ++k) partial[chunk * SUMS + k] = total(sums[k]);
  }
  add_up(partial_channels, channels.sums(), dchannels);
  if (dleak)
    for (int k = 0; k < all_sums; ++k) {
      double sum = 0;
      for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk * all_sums + k];
      (k < steps ? dleak[k] : domega[k - steps]) = sum;
    }
}
