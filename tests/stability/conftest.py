"""One thread per test process: the tensors are small, and workers share the cores."""

import torch

torch.set_num_threads(1)
