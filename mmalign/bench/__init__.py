"""`mmalign bench`: mmalign against its peers and against itself, in time and memory, on the machine at hand.

One file per family of benchmarks. The parent process (`run`) only starts others: each side of a benchmark is loaded,
timed and measured in a process of its own (`worker`), and what they return becomes ratios (`ratios`) in one file of
results (`results`).
"""
