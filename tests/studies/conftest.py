import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The made-up study must be importable by name in worker processes, as real studies are.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def as_a_worker() -> Iterator[None]:
    """Computing as the workers of a run do, on one thread, and with a global state that nothing may come from."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(123)
    yield
    torch.set_num_threads(threads)
