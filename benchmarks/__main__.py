"""``python -m benchmarks``."""

try:
    from benchmarks.cli import app
except KeyboardInterrupt:  # the libraries take seconds to import
    raise SystemExit(130) from None

app()
