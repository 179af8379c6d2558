// Batch normalisation's part of the backward pass, after an activation's: two reads and one write.

// Through the normalisation: dx = p[c] * dy + q[c] * (x - mean[c]) + r[c], of which rows holds p, q, r and mean.
extern "C" void normalization_backward(const SCALAR* dy, const SCALAR* x, int64_t size, const WIDE* rows, int64_t period, int threads,
                                       SCALAR* dx) {
  const int64_t chunk = (CHUNK + period - 1) / period * period;  // whole rows
#pragma omp parallel for num_threads(threads_for(size, threads)) schedule(static)
  for (int64_t start = 0; start < size; start += chunk) {
    int64_t c = 0;
    vectors(start, std::min(start + chunk, size), [&](int64_t first, auto n) INLINE {
      const WIDE* row = rows + c;
      const Wide centred = load(x + first, n) - Wide::loadu(row + 3 * period);
      const Wide rest = fmadd(Wide::loadu(row + period), centred, Wide::loadu(row + 2 * period));
      store(fmadd(Wide::loadu(row), load(dy + first, n), rest), dx + first, n);
      c = c + WIDTH == period ? 0 : c + WIDTH;
    });
  }
}
