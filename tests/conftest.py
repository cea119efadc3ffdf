"""Makes `table` and `oracles` importable from every folder of tests, and keeps torch to one thread: the toys are tiny."""

import torch

torch.set_num_threads(1)
