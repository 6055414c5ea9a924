"""The programs that `experiments.benchmark` compares, each in a process of its own."""
