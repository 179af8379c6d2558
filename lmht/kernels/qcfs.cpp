// QCFS, the quantised ANN's activation (Eq. 4), on the CPU: one read and one write forward, two reads and one write backward.

namespace {

struct Activation {
  WIDE levels, scale, height;  // Tq, vartheta, vartheta / Tq

  Activation(WIDE tq, const WIDE* vartheta) : levels(tq), scale(*vartheta), height(scale / levels) {}

  INLINE Wide level(const Wide& x) const { return (x * Wide(levels) / Wide(scale) + Wide(0.5)).floor(); }
  INLINE Wide value(const Wide& level) const { return clamp(level, Wide(0), Wide(levels)) * Wide(height); }  // NaN stays NaN
  INLINE Wide mask(const Wide& level) const { return level.ge(Wide(0)) * level.le(Wide(levels)); }
};

}  // namespace

extern "C" void forward(const SCALAR* x, int64_t size, WIDE levels, const WIDE* scale, int threads, SCALAR* out) {
#pragma omp parallel for num_threads(threads_for(size, threads)) schedule(static)
  for (int64_t start = 0; start < size; start += CHUNK) {
    const Activation activation(levels, scale);
    vectors(start, std::min(start + CHUNK, size), [&](int64_t first, auto n) INLINE {
      store(activation.value(activation.level(load(x + first, n))), out + first, n);
    });
  }
}

// dx and, unless it is null, dscale: summed within a chunk, then over the chunks in order, so the number of threads does not show.
extern "C" void backward(const SCALAR* grad, const SCALAR* x, int64_t size, WIDE levels, const WIDE* scale, int threads, SCALAR* dx,
                         WIDE* dscale) {
  std::vector<double> partial((size + CHUNK - 1) / CHUNK);
#pragma omp parallel for num_threads(threads_for(size, threads)) schedule(static)
  for (int64_t start = 0; start < size; start += CHUNK) {
    const Activation activation(levels, scale);
    Part sum(0);
    const Wide one(1);
    vectors(start, std::min(start + CHUNK, size), [&](int64_t first, auto n) INLINE {
      const Wide input = load(x + first, n), g = load(grad + first, n), level = activation.level(input);
      const Wide masked = g * activation.mask(level);
      store(masked, dx + first, n);
      add_product(g * activation.value(level) - masked * input, one, sum);  // elements from n on are zeros
    });
    partial[start / CHUNK] = total(sum);
  }
  if (dscale) *dscale = std::accumulate(partial.begin(), partial.end(), 0.0) / *scale;
}
