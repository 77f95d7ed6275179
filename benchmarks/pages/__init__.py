"""The generated parts of ``benchmarks/README.md`` and ``benchmarks/evidence.md``."""
