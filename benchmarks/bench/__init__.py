"""Speed, error and memory of the whole, each as ratios taken in one run, beside what others use."""
