"""What every introduction says of CNNs, each sentence as something that is measured; for `experiments.textbook`."""
