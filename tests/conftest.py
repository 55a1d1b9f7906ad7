"""One thread for every test: small networks gain nothing from more, and thread counts change sums in the last digit."""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402

torch.set_num_threads(1)
