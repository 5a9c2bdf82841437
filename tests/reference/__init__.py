"""The same network elsewhere: oracles for the tests, peers for the benchmarks."""
