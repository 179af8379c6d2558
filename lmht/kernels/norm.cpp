// Batch normalisation's part beside the activation's kernels, channels innermost.

#include <cmath>

// What Channels takes: rows [3, period]. Of weight and bias [C], unless they are null, and of the statistics that normalise, mean and
// variance [C]; inverse [C] = 1 / sqrt(variance + eps).
extern "C" void rows(const WIDE* weight, const WIDE* bias, const WIDE* mean, const WIDE* variance, WIDE eps, int64_t channels,
                     int64_t period, WIDE* rows, WIDE* inverse) {
  for (int64_t c = 0; c < channels; ++c) {
    inverse[c] = 1 / std::sqrt(variance[c] + eps);
    const WIDE scale = weight ? weight[c] * inverse[c] : inverse[c];
    const WIDE shift = bias ? bias[c] - mean[c] * scale : -mean[c] * scale;
    for (int64_t i = c; i < period; i += channels) rows[i] = scale, rows[period + i] = shift, rows[2 * period + i] = mean[c];
  }
}

// The rest of the backward pass: from sums [2, period], an activation's dchannels, the gradients of weight and bias [C]; and, unless
// it is null, dx = scale * (dy - (x - mean) * inverse^2 * sum of dy * (x - mean) / count - sum of dy / count), in two reads and one
// write. count is infinite for statistics that are given: they don't depend on x.
extern "C" void backward(const SCALAR* dy, const SCALAR* x, int64_t size, const WIDE* rows, const WIDE* inverse, const WIDE* sums,
                         int64_t channels, int64_t period, double count, int threads, SCALAR* dx, WIDE* dweight, WIDE* dbias) {
  std::vector<WIDE> slope(period), offset(period);
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0, centred = 0;
    for (int64_t i = c; i < period; i += channels) total += sums[i], centred += sums[period + i];
    dweight[c] = centred * inverse[c], dbias[c] = total;
    for (int64_t i = c; i < period; i += channels) {
      slope[i] = -double(rows[c]) * inverse[c] * inverse[c] * centred / count;
      offset[i] = -double(rows[c]) * total / count;
    }
  }
  if (!dx) return;
  const int64_t chunk = (CHUNK + period - 1) / period * period;  // whole rows
#pragma omp parallel for num_threads(threads_for(size, threads)) schedule(static)
  for (int64_t start = 0; start < size; start += chunk) {
    int64_t c = 0;
    vectors(start, std::min(start + chunk, size), [&](int64_t first, auto n) INLINE {
      const Wide centred = load(x + first, n) - Wide::loadu(rows + 2 * period + c);
      const Wide rest = fmadd(Wide::loadu(&slope[c]), centred, Wide::loadu(&offset[c]));
      store(fmadd(Wide::loadu(rows + c), load(dy + first, n), rest), dx + first, n);
      c = c + WIDTH == period ? 0 : c + WIDTH;
    });
  }
}
