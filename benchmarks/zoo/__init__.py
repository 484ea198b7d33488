"""Five real tasks for the builder's benchmarks, prepared from ../shared/data."""
