// QCFS, the quantised ANN's activation (Eq. 4), on the CPU: one read and one write forward, two reads and one write backward;
// with a batch normalisation before it as in fire.cpp.

namespace {

struct Activation {
  WIDE levels, scale, height;  // Tq, vartheta, vartheta / Tq

  Activation(WIDE tq, const WIDE* vartheta) : levels(tq), scale(*vartheta), height(scale / levels) {}

  INLINE Wide level(const Wide& x) const { return (x * Wide(levels) / Wide(scale) + Wide(0.5)).floor(); }
  INLINE Wide value(const Wide& level) const { return clamp(level, Wide(0), Wide(levels)) * Wide(height); }  // NaN stays NaN
  INLINE Wide mask(const Wide& level) const { return level.ge(Wide(0)) * level.le(Wide(levels)); }
};

}  // namespace

extern "C" void forward(const SCALAR* x, int64_t size, WIDE levels, const WIDE* scale, int threads,
                        const WIDE* normalization, int64_t period, const SCALAR* residual, SCALAR* out) {
  const Channels channels{normalization, period, residual};
#pragma omp parallel for num_threads(threads_for(size, threads)) schedule(static)
  for (int64_t start = 0; start < size; start += channels.chunk()) {
    const Activation activation(levels, scale);
    int64_t c = 0;
    vectors(start, std::min(start + channels.chunk(), size), [&](int64_t first, auto n) INLINE {
      const Wide current = channels.current(load(x + first, n), first, c, n);
      store(activation.value(activation.level(current)), out + first, n);
      c = channels.after(c);
    });
  }
}

// dx and, unless it is null, dscale: summed within a chunk, then over the chunks in order, so the number of threads does not show.
extern "C" void backward(const SCALAR* grad, const SCALAR* x, int64_t size, WIDE levels, const WIDE* scale, int threads,
                         const WIDE* normalization, int64_t period, const SCALAR* residual, SCALAR* dx, WIDE* dscale,
                         WIDE* dchannels) {
  const Channels channels{normalization, period, residual};
  const int64_t size_of_chunk = channels.chunk(), chunks = (size + size_of_chunk - 1) / size_of_chunk;
  std::vector<double> partial(chunks);
  std::vector<WIDE> partial_channels(chunks * channels.sums());
#pragma omp parallel for num_threads(threads_for(size, threads)) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const Activation activation(levels, scale);
    Part sum(0);
    const Wide one(1);
    int64_t c = 0;
    vectors(chunk * size_of_chunk, std::min((chunk + 1) * size_of_chunk, size), [&](int64_t first, auto n) INLINE {
      const Wide from = load(x + first, n), input = channels.current(from, first, c, n);
      const Wide g = load(grad + first, n), level = activation.level(input);
      const Wide masked = g * activation.mask(level);
      store(masked, dx + first, n);
      if (channels.rows)
        channels.add(masked, masked * channels.centred(from, c), c, partial_channels.data() + chunk * channels.sums());
      c = channels.after(c);
      add_product(g * activation.value(level) - masked * input, one, sum);  // elements from n on are zeros
    });
    partial[chunk] = total(sum);
  }
  add_up(partial_channels, channels.sums(), dchannels);
  if (dscale) *dscale = std::accumulate(partial.begin(), partial.end(), 0.0) / *scale;
}
