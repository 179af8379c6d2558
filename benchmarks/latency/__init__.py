"""Latency and memory of neurons and networks.

    python -m benchmarks run latency [--device cpu|cuda] [--quick]     # into the store
    python -m benchmarks report latency                                # from the store into out/ (--publish: results/)
    pytest benchmarks/latency --benchmark-json FILE                    # without a store

Whatever is compared is timed in one run, round by round, so that ratios survive a busy machine; and a backend is only timed once
its outputs and gradients equal the reference's.
"""
